package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

var ip = netip.MustParseAddr

// smallCluster is two nodes with a client, a server and a server on the other
// node, of Namespace default.
func smallCluster(t *testing.T, shimArgs ...string) *harness.Cluster {
	t.Helper()
	c := startCluster(t, harness.Config{ShimArgs: shimArgs, Nodes: []harness.NodeConfig{
		{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1"), ip("2001:db8::1")}}, {Name: "node-2", IPs: []netip.Addr{ip("192.0.2.2"), ip("2001:db8::2")}}}})
	if err := c.SetPods(t.Context(), smallPodConfigs()); err != nil {
		t.Fatal(err)
	}
	return c
}

func smallPodConfigs() []harness.PodConfig {
	all80 := []harness.Service{{Protocol: api.ProtocolTCP, Port: 80}, {Protocol: api.ProtocolUDP, Port: 80}, {Protocol: api.ProtocolSCTP, Port: 80}}
	return []harness.PodConfig{
		{Namespace: "default", Name: "client", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.1"), ip("fd09:1::1")}},
		{Namespace: "default", Name: "nginx", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.2"), ip("fd09:1::2")}, Serves: all80},
		{Namespace: "default", Name: "remote", Node: "node-2", IPs: []netip.Addr{ip("10.9.2.1"), ip("fd09:2::1")}, Serves: all80},
	}
}

// smallObjects are the objects of smallCluster.
func smallObjects(logged bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default, annotations: {networkpolicy.antrea.io/enable-logging: %q}}\n", fmt.Sprint(logged))
	for i, n := range []string{"node-1", "node-2"} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s, annotations: {weir.dev/gateway-addresses: '169.254.1.1'}}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.%d}, {type: InternalIP, address: '2001:db8::%d'}]}\n", n, i+1, i+1)
	}
	for _, p := range []string{"client node-1 10.9.1.1 fd09:1::1", "nginx node-1 10.9.1.2 fd09:1::2", "remote node-2 10.9.2.1 fd09:2::1"} {
		f := strings.Fields(p)
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec: {nodeName: %s, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}, {ip: '%s'}]}\n", f[0], f[0], f[1], f[2], f[3])
	}
	return b.String()
}

func policy(name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec: %s\n", name, spec)
}

func set(t *testing.T, c *harness.Cluster, parts ...string) {
	t.Helper()
	if err := c.SetManifests(t.Context(), []byte(strings.Join(parts, ""))); err != nil {
		t.Fatal(err)
	}
}

// outcomes tries probes and compares what became of them.
func outcomes(t *testing.T, probes []harness.Probe, want ...string) {
	t.Helper()
	for i := range probes {
		probes[i].Answered = want[i] != harness.Drop
	}
	got, err := harness.Run(t.Context(), probes)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("outcomes %v, want %v", got, want)
	}
}

func tcp(from *harness.Host, to string) harness.Probe {
	return harness.Probe{From: from, To: ip(to), Protocol: api.ProtocolTCP, Port: 80}
}

// record is one line of the JSON file.
type record struct {
	Node   string
	Packet struct {
		Direction, Action, Reason, Table, AppliedTo, Peer, SourceIP, DestinationIP, Protocol string
		SourcePort, DestinationPort                                                          int
		Policies                                                                             []string
		Isolation                                                                            bool
		Count                                                                                int
		First                                                                                time.Time
	}
}

func records(t *testing.T, c *harness.Cluster) []record {
	t.Helper()
	text, err := os.ReadFile(c.JSONLog())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []record
	for _, line := range bytes.Split(text, []byte("\n")) {
		var r record
		if len(line) > 0 && json.Unmarshal(line, &r) == nil {
			out = append(out, r)
		}
	}
	return out
}

// A policy that denies all by an empty list leaves records of what it denies,
// in both directions, with every policy that isolates the Pod; logging begins
// and ends with the Namespace's annotation.
func TestDenyAllIsOnRecord(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	denyAll := policy("access-nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: [], policyTypes: [Ingress]}")
	second := policy("also-nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: none}}}]}]}")
	shut := policy("shut-client", "{podSelector: {matchLabels: {app: client}}, egress: [], policyTypes: [Egress]}")
	fromRemote := harness.Probe{From: c.Pod("default/remote"), To: ip("10.9.1.2"), Protocol: api.ProtocolTCP, Port: 80, SourcePort: 11111}

	set(t, c, smallObjects(false), denyAll, second, shut)
	unlogged := fromRemote
	unlogged.SourcePort = 10000
	outcomes(t, []harness.Probe{unlogged}, harness.Drop)

	set(t, c, smallObjects(true), denyAll, second, shut)
	toRemote := harness.Probe{From: c.Pod("default/client"), To: ip("10.9.2.1"), Protocol: api.ProtocolUDP, Port: 80, SourcePort: 22222}
	v6 := harness.Probe{From: c.Pod("default/remote"), To: ip("fd09:1::2"), Protocol: api.ProtocolTCP, Port: 80, SourcePort: 33333}
	outcomes(t, []harness.Probe{fromRemote, toRemote, v6}, harness.Drop, harness.Drop, harness.Drop)

	find := func(port int) (record, bool) {
		for _, r := range records(t, c) {
			if r.Packet.SourcePort == port {
				return r, true
			}
		}
		return record{}, false
	}
	for _, want := range []struct {
		port                               int
		direction, appliedTo, peer, source string
		policies                           []string
	}{
		{11111, "ingress", "default/nginx", "default/remote", "10.9.2.1", []string{"K8sNetworkPolicy:default/access-nginx", "K8sNetworkPolicy:default/also-nginx"}},
		{22222, "egress", "default/client", "", "10.9.1.1", []string{"K8sNetworkPolicy:default/shut-client"}},
		{33333, "ingress", "default/nginx", "default/remote", "fd09:2::1", []string{"K8sNetworkPolicy:default/access-nginx", "K8sNetworkPolicy:default/also-nginx"}},
	} {
		err := harness.Eventually(t.Context(), 10*time.Second, func() error {
			r, ok := find(want.port)
			if !ok {
				return fmt.Errorf("no record of source port %d", want.port)
			}
			p := r.Packet
			if p.Direction != want.direction || p.Action != "drop" || !p.Isolation || p.AppliedTo != want.appliedTo || p.SourceIP != want.source ||
				p.DestinationPort != 80 || r.Node != "node-1" || !slices.Equal(p.Policies, want.policies) || time.Since(p.First) > time.Minute {
				return fmt.Errorf("record of source port %d is %+v", want.port, r)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if r, ok := find(10000); ok {
		t.Errorf("a Namespace without the annotation has a record: %+v", r)
	}
	line := "IngressDefaultRule K8sNetworkPolicy <nil> Ingress Drop <nil> default/nginx 10.9.2.1 11111 10.9.1.2 80 TCP 60 <nil>"
	err := harness.Eventually(t.Context(), 10*time.Second, func() error {
		text, err := os.ReadFile(c.NPLog("node-1"))
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), line) {
			return fmt.Errorf("np.log has no line %q:\n%s", line, text)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// What a host itself sends to its Pods is always allowed; what it forwards, and
// what it masquerades, is judged, and so is another node.
func TestOwnHostReachesItsPods(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(false), policy("deny-all", "{podSelector: {}, ingress: []}"))
	own, other := c.Nodes["node-1"].Host(), c.Nodes["node-2"].Host()
	outcomes(t, []harness.Probe{tcp(own, "10.9.1.2"), tcp(own, "fd09:1::2"), tcp(other, "10.9.1.2"), tcp(other, "fd09:1::2"), tcp(c.Pod("default/remote"), "10.9.1.2")},
		harness.Allow, harness.Allow, harness.Drop, harness.Drop, harness.Drop)

	// Traffic from outside that the node masquerades as its own is no probe.
	n1 := c.Nodes["node-1"].NS
	nft := n1.Command(t.Context(), "nft", "-f", "-")
	nft.Stdin = strings.NewReader("table ip test {\nchain post {\ntype nat hook postrouting priority 100\noifname \"" + harness.Bridge + "\" ip saddr 203.0.113.9 masquerade\n}\n}\n")
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	outside, err := c.Outside(t.Context(), ip("203.0.113.9"))
	if err != nil {
		t.Fatal(err)
	}
	outcomes(t, []harness.Probe{tcp(outside, "10.9.1.2")}, harness.Drop)
}

// A Pod sends from its own addresses only.
func TestSpoofedSourcesAreDropped(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(false))
	client := c.Pod("default/client")
	if err := client.NS.IP(t.Context(), "addr add 10.9.9.9/32 dev eth0"); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes["node-1"].NS.IP(t.Context(), "route add 10.9.9.9/32 dev "+harness.Bridge); err != nil {
		t.Fatal(err)
	}
	spoofer := &harness.Host{NS: client.NS, IPs: []netip.Addr{ip("10.9.9.9")}}
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.2"), tcp(spoofer, "10.9.1.2")}, harness.Allow, harness.Drop)
}

// A shim that is killed and started again changes no flow, and a node that is
// in sync is sent nothing; the policy service's death changes nothing either.
func TestRestartsDisturbNothing(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	allow := policy("nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}")
	set(t, c, smallObjects(false), allow)
	node := c.Nodes["node-1"]
	probes := func() []harness.Probe {
		return []harness.Probe{tcp(c.Pod("default/client"), "10.9.1.2"), tcp(c.Pod("default/remote"), "10.9.1.2")}
	}
	check := func() { t.Helper(); outcomes(t, probes(), harness.Allow, harness.Drop) }
	check()
	// Without counters and times, a flow that was put in anew would not show: so
	// its age tells. The touch flow of table 26 is put in again on purpose.
	ages := func() map[string]bool {
		out, err := node.OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, "--no-names")
		if err != nil {
			t.Fatal(err)
		}
		young := make(map[string]bool)
		for _, line := range strings.Split(out, "\n") {
			_, rest, ok := strings.Cut(line, "duration=")
			if !ok || strings.Contains(line, "table=26,") {
				continue
			}
			var seconds float64
			fmt.Sscanf(rest, "%f", &seconds)
			if _, match, ok := strings.Cut(line, "priority="); ok && seconds < 2 {
				young[match] = true
			}
		}
		return young
	}
	if err := harness.Eventually(t.Context(), 10*time.Second, func() error { // The checkpoint, and flows that are old.
		if len(ages()) > 0 {
			return fmt.Errorf("flows are young")
		}
		_, err := os.Stat(filepath.Join(node.OVS.Dir, "state", "checkpoint"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	c.Policyd.Kill()
	node.Shim.Kill()
	check()
	if err := node.Shim.Start(); err != nil {
		t.Fatal(err)
	}
	if err := harness.Eventually(t.Context(), 10*time.Second, func() error {
		text, err := node.Metrics()
		if err == nil && !strings.Contains(text, "weir_shim_ports_open 2\n") {
			err = fmt.Errorf("ports are not open")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if young := ages(); len(young) > 0 {
		t.Errorf("the restarted shim put in %v", young)
	}
	check()
	if err := c.Policyd.Start(); err != nil {
		t.Fatal(err)
	}
	must(t, c.InSync(t.Context()))
	log, err := os.ReadFile(node.Shim.Log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "in sync: server=") {
		t.Errorf("the shim did not resume in sync:\n%s", node.Shim.Tail())
	}
	if young := ages(); len(young) > 0 {
		t.Errorf("resuming put in %v", young)
	}
	check()
}

// Flows that someone else removes or adds are noticed and mended.
func TestTamperedFlowsAreMended(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(false), policy("deny-all", "{podSelector: {}, ingress: []}"))
	node := c.Nodes["node-1"]
	probe := []harness.Probe{tcp(c.Pod("default/client"), "10.9.1.2")}
	outcomes(t, slices.Clone(probe), harness.Drop)
	for _, args := range [][]string{
		{"del-flows", harness.Bridge, "table=22"},
		{"add-flow", harness.Bridge, "table=0,priority=65535,actions=NORMAL"},
	} {
		if _, err := node.OVS.Ofctl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	err := harness.Eventually(t.Context(), 8*time.Second, func() error {
		out, err := node.OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge)
		if err == nil && (strings.Contains(out, "NORMAL") || !strings.Contains(out, "table=22")) {
			err = fmt.Errorf("not mended yet")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	outcomes(t, slices.Clone(probe), harness.Drop)
}

// grpcurl lists and calls every service of the running binaries, by the
// commands of the README.
func TestGrpcurlReachesEveryService(t *testing.T) {
	grpcurl, err := filepath.Abs("../.tools/bin/grpcurl")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(grpcurl); err != nil {
		if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
			t.Fatal("grpcurl is not installed: make e2e installs it")
		}
		t.Skip("grpcurl is not installed: make e2e installs it")
	}
	c := smallCluster(t)
	set(t, c, smallObjects(true), policy("access-nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}"))
	outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.9.1.2")}, harness.Drop)

	run := func(cert, address string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		flags := []string{"-cacert", c.PKI("ca.crt"), "-cert", c.PKI(cert + ".crt"), "-key", c.PKI(cert + ".key")}
		for len(args) > 0 && strings.HasPrefix(args[0], "-") {
			flags, args = append(flags, args[0], args[1]), args[2:]
		}
		out, err := c.Fabric.Command(ctx, grpcurl, slices.Concat(flags, []string{address}, args)...).CombinedOutput()
		return string(out), err
	}
	for _, tc := range []struct {
		name, cert, address string
		args                []string
		want                []string
	}{
		{"policyd's services", "operator", c.PolicyAddress(), []string{"list"}, []string{"weir.policy.v1.PolicyService", "weir.policy.v1.InspectionService", "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"}},
		{"auditd's services", "operator", c.AuditAddress(), []string{"list"}, []string{"weir.audit.v1.CollectorService", "weir.audit.v1.AuditService", "grpc.health.v1.Health"}},
		{"health", "operator", c.PolicyAddress(), []string{"grpc.health.v1.Health/Check"}, []string{"SERVING"}},
		{"nodes", "operator", c.PolicyAddress(), []string{"weir.policy.v1.InspectionService/ListNodes"}, []string{"node-1", "inSync"}},
		{"policies", "operator", c.PolicyAddress(), []string{"weir.policy.v1.InspectionService/ListPolicies"}, []string{"access-nginx"}},
		{"groups", "operator", c.PolicyAddress(), []string{"-d", `{"members": true}`, "weir.policy.v1.InspectionService/ListGroups"}, []string{"default/nginx"}},
		{"explain", "operator", c.PolicyAddress(), []string{"-d", `{"from": "default/client", "to": "default/nginx", "port": 80}`, "weir.policy.v1.InspectionService/Explain"}, []string{"VERDICT_DROP", "access-nginx"}},
		{"a node's stream", "node-node-1", c.PolicyAddress(), []string{"-d", `{"hello": {"node": "node-1"}}`, "weir.policy.v1.PolicyService/Subscribe"}, []string{`"snapshot": true`}},
		{"a report", "node-node-1", c.AuditAddress(), []string{"-d", `{"hello": {"node": "node-1", "boot": "by-hand"}}`, "weir.audit.v1.CollectorService/Report"}, []string{"{"}},
		{"the record", "operator", c.AuditAddress(), []string{"-d", `{"filter": {"policy": "access-nginx"}, "limit": 1}`, "weir.audit.v1.AuditService/Tail"}, []string{"default/nginx"}},
		{"stats", "operator", c.AuditAddress(), []string{"weir.audit.v1.AuditService/Stats"}, []string{"kept"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := harness.Eventually(t.Context(), 10*time.Second, func() error {
				out, err := run(tc.cert, tc.address, tc.args...)
				for _, w := range tc.want {
					if !strings.Contains(out, w) {
						return fmt.Errorf("%v: no %q in\n%s", err, w, out)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a node's ports", func(t *testing.T) {
		node := c.Nodes["node-1"]
		for method, want := range map[string]string{"list": "grpc.health.v1.Health", "weir.policy.v1.NodeService/Status": `"ready": true`} {
			out, err := node.NS.Command(t.Context(), grpcurl, "-plaintext", "-unix", node.Socket(), method).CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%s: %v: no %q in\n%s", method, err, want, out)
			}
		}
		out, err := node.NS.Command(t.Context(), grpcurl, "-plaintext", "-unix", "-d", `{"interface": "`+c.Pod("default/nginx").Port()+`"}`, node.Socket(), "weir.policy.v1.NodeService/AwaitPort").CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"open": true`) || !strings.Contains(string(out), `"nginx"`) {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("another node's stream is refused", func(t *testing.T) {
		out, err := run("node-node-1", c.PolicyAddress(), "-d", `{"hello": {"node": "node-2"}}`, "weir.policy.v1.PolicyService/Subscribe")
		if err == nil || !strings.Contains(out, "PermissionDenied") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("a node does not inspect", func(t *testing.T) {
		out, err := run("node-node-1", c.PolicyAddress(), "weir.policy.v1.InspectionService/ListNodes")
		if err == nil || !strings.Contains(out, "PermissionDenied") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// A Pod that gets the address of one that went inherits none of its
// connections.
func TestAddressesPassOnWithoutTheirConnections(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(false))
	udp := harness.Probe{From: c.Pod("default/client"), To: ip("10.9.1.2"), Protocol: api.ProtocolUDP, Port: 80, SourcePort: 15000}
	outcomes(t, []harness.Probe{udp}, harness.Allow)

	served := []harness.Service{{Protocol: api.ProtocolUDP, Port: 80}}
	err := c.SetPods(t.Context(), []harness.PodConfig{
		{Namespace: "default", Name: "client", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.1"), ip("fd09:1::1")}},
		{Namespace: "default", Name: "heir", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.2")}, Serves: served},
	})
	if err != nil {
		t.Fatal(err)
	}
	objects := strings.NewReplacer("name: nginx, labels: {app: nginx}", "name: heir, labels: {app: heir}").Replace(smallObjects(false))
	set(t, c, objects, policy("deny-heir", "{podSelector: {matchLabels: {app: heir}}, ingress: []}"))
	outcomes(t, []harness.Probe{udp}, harness.Drop)
}
