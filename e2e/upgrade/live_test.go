package upgrade

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit"
	"github.com/weirnet/weir/services/policy"
	"github.com/weirnet/weir/shim"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// serveRaw serves every method by a handler of rawCodec.
func serveRaw(t *testing.T, handler grpc.StreamHandler) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	g := grpc.NewServer(grpc.UnknownServiceHandler(handler), grpc.ForceServerCodec(rawCodec{}))
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return l.Addr().String()
}

// services are a policy service and a collector in this process.
type services struct {
	manifests          string
	policyd, collector string // Addresses.
	inspection         policyv1.InspectionServiceClient
}

// run runs something until the test ends.
func run(t *testing.T, fn func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func newServices(t *testing.T, objects string) *services {
	t.Helper()
	s := &services{manifests: t.TempDir()}
	s.write(t, objects)
	p, err := policy.New(policy.Config{Manifests: s.manifests, Listen: "127.0.0.1:0", Logger: hclog.NewNullLogger()})
	must(t, err)
	run(t, p.Run)
	a, err := audit.New(t.Context(), audit.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", MinFree: 1, Logger: hclog.NewNullLogger()})
	must(t, err)
	run(t, a.Run)
	s.policyd, s.collector = p.Addr(), a.Addr()
	conn, err := grpc.NewClient(s.policyd, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	s.inspection = policyv1.NewInspectionServiceClient(conn)
	return s
}

// write puts objects in the place of the former.
func (s *services) write(t *testing.T, objects string) {
	t.Helper()
	path := filepath.Join(s.manifests, "all.yaml")
	must(t, os.WriteFile(path+".new", []byte(objects), 0o644))
	must(t, os.Rename(path+".new", path))
}

// inSync waits until the node is in sync with a state that has so many policies.
func (s *services) inSync(t *testing.T, policies int) {
	t.Helper()
	eventually(t, func() error {
		resp, err := s.inspection.ListNodes(t.Context(), &policyv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, n := range resp.GetNodes() {
			if n.GetName() == "n1" && n.GetInSync() && int(n.GetPolicies()) == policies {
				return nil
			}
		}
		return fmt.Errorf("n1 is not in sync with %d policies: %v", policies, resp.GetNodes())
	})
}

func eventually(t *testing.T, try func() error) {
	t.Helper()
	deadline, tick := time.After(20*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

// dataplane is a Fake as a shim runs it.
type dataplane struct{ *bridge.Fake }

func (dataplane) SetUp(context.Context) error { return nil }
func (dataplane) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// node is a bridge with the ports of two Pods, on which one shim runs after the other.
type node struct {
	cfg    shim.Config
	bridge *bridge.Fake
}

func newNode(t *testing.T, collector string) *node {
	t.Helper()
	cfg := shim.Defaults()
	cfg.Node, cfg.StateDir, cfg.Logger = "n1", t.TempDir(), hclog.NewNullLogger()
	cfg.MarkOwnTraffic, cfg.NodePolicies, cfg.MetricsListen, cfg.Socket = false, false, "", ""
	cfg.StatsInterval, cfg.PeerBarrier = 200*time.Millisecond, 100*time.Millisecond
	if collector != "" {
		cfg.Collectors = []string{collector}
	}
	fake := bridge.NewFake(bridge.Config{Name: cfg.Bridge, Mark: bridge.Mark{Value: pipeline.CookieMark, Mask: pipeline.CookieMask},
		Controllers: []bridge.Controller{{ID: pipeline.LogController}, {ID: pipeline.RejectController}}})
	cfg.Dataplane = dataplane{fake}
	for i, pod := range localPods {
		must(t, fake.AddPort(t.Context(), "if-"+pod, map[string]string{"pod-namespace": "shop", "pod-name": pod, "attached-mac": fmt.Sprintf("02:00:00:00:00:%02x", i+1)}))
	}
	return &node{cfg: cfg, bridge: fake}
}

// start runs a shim until stop is called or the test ends.
func (n *node) start(t *testing.T, policyd string) (s *shim.Shim, stop func()) {
	t.Helper()
	n.cfg.PolicyServers = []string{policyd}
	s, err := shim.New(n.cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

// opened waits until the ports of the Pods are open.
func opened(t *testing.T, s *shim.Shim) {
	t.Helper()
	eventually(t, func() error {
		ports := s.Stats().GetPorts()
		for _, p := range ports {
			if !p.GetOpen() {
				return fmt.Errorf("%s is closed: %s", p.GetInterface(), p.GetReason())
			}
		}
		if len(ports) != len(localPods) {
			return fmt.Errorf("%d ports are told of", len(ports))
		}
		return nil
	})
}

// packet is a first packet from a local Pod's port.
func packet(from int, to string, protocol uint8, port uint16) bridge.Packet {
	addr := netip.MustParseAddr(to)
	return bridge.Packet{InPort: uint32(from + 1), EthSrc: [6]byte{2, 0, 0, 0, 0, byte(from + 1)}, EthDst: [6]byte{2, 0xee}, EthType: openflow.EtherIPv4,
		IPSrc: netip.AddrFrom4([4]byte{10, 0, 1, byte(from + 1)}), IPDst: addr, IPProto: protocol, TTL: 64, SrcPort: 40000, DstPort: port, TCPFlags: bridge.TCPSyn}
}

// verdicts are where first packets between Pods, and to Services and hosts beyond, go.
func (n *node) verdicts() (out []string) {
	for from := range localPods {
		for _, to := range []string{"10.0.1.1", "10.0.1.2", "10.0.2.1", "10.96.0.10", "198.51.100.7", "203.0.113.9"} {
			for _, port := range []uint16{53, 80, 443, 8080, 9090} {
				for _, protocol := range []uint8{6, 17} {
					w := n.bridge.Walk(packet(from, to, protocol, port), bridge.WalkOptions{})
					out = append(out, fmt.Sprintf("%s to %s:%d/%d: %v", localPods[from], to, port, protocol, w.Ports()))
				}
			}
		}
	}
	return out
}

// sessions are what is recorded, in turn: the same node, with more objects each time.
const (
	sessionStart     = "start"     // From nothing; then a change.
	sessionInSync    = "insync"    // Again, nothing having changed.
	sessionInventory = "inventory" // Again, after a change.
	sessionNack      = "nack"      // What a cut brings is lost on its way, and is repaired.
)

var sessions = []string{sessionStart, sessionInSync, sessionInventory, sessionNack}

// live runs all sessions with the present services and shim, and returns what was
// said, where packets go in the end, and the folder that the shim leaves.
func live(t *testing.T) (policyd, collector *recorder, verdicts []string, state string) {
	t.Helper()
	s := newServices(t, objects(0))
	policyd, policydAddress := newRecorder(t, s.policyd)
	collector, collectorAddress := newRecorder(t, s.collector)
	n := newNode(t, collectorAddress)

	policyd.begin(sessionStart, nil)
	collector.begin(sessionStart, nil)
	sh, stop := n.start(t, policydAddress)
	s.inSync(t, policiesOf(0))
	s.write(t, objects(1))
	s.inSync(t, policiesOf(1))
	opened(t, sh)
	for port := range uint16(20) { // Denied, and on record.
		n.bridge.Send(packet(1, "10.0.1.1", 6, 1000+port))
	}
	collector.until(t, sessionStart+".Report", func(list []message) bool {
		return slices.ContainsFunc(list, func(m message) bool {
			var r auditv1.ReportResponse
			return m.fromService && proto.Unmarshal(m.body, &r) == nil && r.GetAckedSequence() > 0
		})
	})
	policyd.until(t, sessionStart+".Subscribe", func(list []message) bool { // Counters among the stats.
		return slices.ContainsFunc(list, func(m message) bool {
			var r policyv1.SubscribeRequest
			return !m.fromService && proto.Unmarshal(m.body, &r) == nil && len(r.GetStats().GetRules()) > 0
		})
	})
	tail(t, collectorAddress)
	stop()

	policyd.begin(sessionInSync, nil)
	collector.begin("", nil) // Not kept.
	_, stop = n.start(t, policydAddress)
	s.inSync(t, policiesOf(1))
	stop()

	s.write(t, objects(2))
	eventually(t, func() error { return s.read(t, 2) })
	policyd.begin(sessionInventory, nil)
	_, stop = n.start(t, policydAddress)
	s.inSync(t, policiesOf(2))
	stop()

	policyd.begin(sessionNack, spoilOnce())
	sh, stop = n.start(t, policydAddress)
	s.inSync(t, policiesOf(2))
	s.write(t, objects(3))
	s.inSync(t, policiesOf(3))
	opened(t, sh)
	stop()
	return policyd, collector, n.verdicts(), n.cfg.StateDir
}

// read fails until the service has read the objects of a step.
func (s *services) read(t *testing.T, step int) error {
	resp, err := s.inspection.ListPolicies(t.Context(), &policyv1.ListPoliciesRequest{})
	if got := len(resp.GetPolicies()); err == nil && got < 2+step {
		err = fmt.Errorf("%d policies are read", got)
	}
	return err
}

// spoilOnce takes out what the first cut brings.
func spoilOnce() func(string, []byte) []byte {
	done := false
	return func(method string, body []byte) []byte {
		var m policyv1.SubscribeResponse
		if done || method != "Subscribe" || proto.Unmarshal(body, &m) != nil || m.GetCut() == nil {
			return body
		}
		done = true
		m.GetCut().Scopes = nil
		b, _ := proto.Marshal(&m)
		return b
	}
}

// tail reads the record as it stands.
func tail(t *testing.T, address string) (records []*auditv1.Record) {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	stream, err := auditv1.NewAuditServiceClient(conn).Tail(t.Context(), &auditv1.TailRequest{})
	must(t, err)
	for {
		resp, err := stream.Recv()
		if err != nil {
			return records
		}
		if r := resp.GetRecord(); r != nil {
			records = append(records, r)
		}
	}
}

var localPods = []string{"web", "client"}

// objects are those of a step: each has more than the one before.
func objects(step int) string {
	var b strings.Builder
	b.WriteString(`
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {env: prod}, annotations: {networkpolicy.antrea.io/enable-logging: "true"}}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}, annotations: {weir.dev/gateway-addresses: '10.0.1.254'}}
spec: {podCIDRs: [10.0.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.0.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
`)
	for _, p := range [][3]string{{"web", "n1", "10.0.1.1"}, {"client", "n1", "10.0.1.2"}, {"far", "n2", "10.0.2.1"}} {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop, uid: uid-%[1]s, labels: {app: %[1]s}}
spec: {nodeName: %s, containers: [{name: c, image: c, ports: [{name: http, containerPort: 8080, protocol: TCP}]}]}
status: {podIPs: [{ip: %s}]}
`, p[0], p[1], p[2])
	}
	b.WriteString(`---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {app: web}, sessionAffinity: ClientIP, ports: [{name: http, port: 80, targetPort: http, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.1.1], nodeName: n1, zone: z1, hints: {forZones: [{name: z1}]}, conditions: {ready: true}}, {addresses: [10.0.2.1], nodeName: n2, conditions: {ready: false, serving: true, terminating: true}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop, uid: uid-np, generation: 3, creationTimestamp: "2024-01-02T03:04:05Z"}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}, {ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}}], ports: [{port: http}, {port: 80, endPort: 90}]}], egress: [{to: [{podSelector: {}}], ports: [{port: http}]}, {ports: [{port: 53, protocol: UDP}]}]}
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterGroup
metadata: {name: clients}
spec: {podSelector: {matchLabels: {app: client}}}
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: securityops
  priority: 5.5
  appliedTo: [{podSelector: {matchLabels: {app: web}}, namespaceSelector: {matchLabels: {env: prod}}}]
  ingress:
  - {name: reject-alt, action: Reject, enableLogging: true, logLabel: alt, from: [{group: clients}], ports: [{protocol: TCP, port: 9090, endPort: 9099}]}
  - {name: no-echo, action: Drop, from: [{ipBlock: {cidr: 203.0.113.0/24}}], protocols: [{icmp: {icmpType: 8, icmpCode: 0}}]}
  - {name: no-query, action: Drop, protocols: [{igmp: {igmpType: 17, groupAddress: 224.0.0.1}}]}
  - {name: own, action: Pass, from: [{namespaces: {match: Self}}], ports: [{protocol: TCP, port: 443, sourcePort: 40000, sourceEndPort: 50000}]}
  egress:
  - {name: names, action: Allow, to: [{fqdn: "*.example.com"}], ports: [{protocol: TCP, port: 443}]}
`)
	steps := []string{`---
apiVersion: crd.antrea.io/v1beta1
kind: NetworkPolicy
metadata: {name: to-service, namespace: shop}
spec:
  priority: 1
  appliedTo: [{podSelector: {matchLabels: {app: client}}}]
  egress:
  - {name: web, action: Drop, toServices: [{name: web, namespace: shop}]}
`, `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: nodes}
spec:
  priority: 2
  appliedTo: [{podSelector: {matchLabels: {app: client}}}]
  ingress:
  - {name: from-nodes, action: Drop, from: [{nodeSelector: {}}]}
`, `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: shop}
spec: {podSelector: {matchLabels: {app: client}}, ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}]}
`}
	for _, s := range steps[:step] {
		b.WriteString(s)
	}
	return b.String()
}

// policiesOf is how many policy items the node holds in a step: guard has a part for
// the Namespace, too.
func policiesOf(step int) int { return 3 + step }
