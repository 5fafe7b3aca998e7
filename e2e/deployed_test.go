package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// TestDeployed applies every overlay to a real API server, twice and in both ways, and
// runs what it says: with the flags, users, capabilities, volumes and permissions
// of the manifests, and no others.
func TestDeployed(t *testing.T) {
	t.Parallel()
	for overlay, gates := range map[string]string{"dev": "WatchList=true", "production": listsOnly, "node-logs": listsOnly} {
		t.Run(overlay, func(t *testing.T) {
			t.Parallel()
			in := install(t, overlay, gates)
			kept := in.startAll()
			in.useAll()
			in.protectTiers()
			in.apply(overlay)
			if now := in.secrets(); now != kept {
				t.Errorf("applying again changed the authority:\n%s\n%s", kept, now)
			}
			in.judgePermissions(gates == listsOnly) // An API server that begins refuses what it has not read yet.
			in.surviveServer()
		})
	}
}

// listsOnly makes an API server like older ones, which give lists only where they
// are asked for, and not as the beginning of a watch.
const listsOnly = "WatchList=false"

// startAll starts everything as a first installation does, and waits until it is
// ready. It returns the authority that was made.
func (in *installation) startAll() string {
	in.t.Helper()
	in.replicas, in.shims = nil, nil
	var later []*installedPod // Until the policy service has made an authority.
	collector := in.pod("statefulset/weir-auditd", "weir-auditd-0", "node-1")
	collector.start("auditd")
	in.collector = collector
	later = append(later, collector)
	for _, name := range []string{"node-1", "node-2"} {
		in.startSwitch(in.nodes[name])
		p := in.pod("daemonset/weir-shim", "weir-shim-"+name, name)
		for _, c := range p.object.Spec.Containers {
			p.start(c.Name)
		}
		in.shims = append(in.shims, p)
		later = append(later, p)
	}
	for i, name := range []string{"node-1", "node-2"} {
		p := in.pod("deployment/weir-policyd", fmt.Sprintf("weir-policyd-%d", i), name)
		p.start("policyd")
		in.replicas = append(in.replicas, p)
	}
	for _, p := range in.replicas {
		p.ready("policyd")
	}
	in.serve()
	if err := collector.probe("auditd", "ready"); err == nil {
		in.t.Error("the collector says that it is ready without a certificate")
	}
	for _, p := range later {
		p.giveRoots()
	}
	for _, p := range later {
		for _, c := range p.object.Spec.Containers {
			p.ready(c.Name)
		}
	}
	return in.secrets()
}

// serve says, in place of the controller that does it on a cluster, that the Services
// of the policy services and of the collector lead to them, and waits until the API
// server calls the webhooks.
func (in *installation) serve() {
	in.t.Helper()
	for _, s := range []struct {
		name, ports string
		pods        []*installedPod
	}{
		{"weir-policyd", "{name: grpc, port: 9740, protocol: TCP}, {name: webhook, port: 9743, protocol: TCP}", in.replicas},
		{"weir-auditd", "{name: grpc, port: 9741, protocol: TCP}", []*installedPod{in.collector}},
	} {
		var endpoints []string
		for _, p := range s.pods {
			endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], conditions: {ready: true}, targetRef: {kind: Pod, namespace: %s, name: %s}}", p.address, weirNamespace, p.object.Name))
		}
		kubectl(in.t, in.Kube, fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s-1, namespace: %s, labels: {kubernetes.io/service-name: %s}}\n"+
			"addressType: IPv4\nports: [%s]\nendpoints: [%s]\n", s.name, weirNamespace, s.name, s.ports, strings.Join(endpoints, ", ")), "apply", "-f", "-")
	}
	must(in.t, harness.Eventually(in.t.Context(), 30*time.Second, func() error {
		_, err := in.Kubectl(in.t.Context(), []byte(acnp("tier: nowhere")), "create", "--dry-run=server", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "Tier nowhere does not exist") {
			return fmt.Errorf("webhooks do not answer: %v", err)
		}
		return nil
	}))
}

func (in *installation) secrets() string {
	in.t.Helper()
	out := kubectl(in.t, in.Kube, "", "get", "-n", weirNamespace, "secret/weir-pki", "configmap/weir-ca", "-o", "jsonpath={range .items[*]}{.data}{end}")
	if !strings.Contains(out, "ca.key") || strings.Count(out, "ca.crt") != 2 {
		in.t.Errorf("the authority is %s", out)
	}
	return out
}

// useAll has each part do its work once.
func (in *installation) useAll() {
	t := in.t
	t.Helper()
	operator := in.operator()
	err := harness.Eventually(t.Context(), 20*time.Second, func() error {
		out, err := in.weirctl("", append([]string{"get", "nodes", "-o", "json", "--server", "127.0.0.1:9740"}, operator...)...)
		if err != nil {
			return err
		}
		for _, name := range []string{"node-1", "node-2"} {
			if !strings.Contains(out, name) {
				return fmt.Errorf("%s is not there: %s", name, out)
			}
		}
		return nil
	})
	must(t, err)
	_, err = in.weirctlAt(in.network.NS, "", append([]string{"audit", "stats", "--server", "127.0.0.1:9741"}, operator...)...)
	must(t, err)
	if slices.ContainsFunc(in.shims[0].object.Spec.Containers, func(c corev1.Container) bool { return c.Name == "auditd" }) {
		in.useNodeLogs(operator)
	} else {
		in.reported(in.network.NS, in.network.Address, 2)
	}
	for _, p := range in.shims {
		for name, file := range map[string]string{"cni-bin": "weir-cni", "cni-conf": "10-weir.conflist", "state": "identity.pem", "socket": "shim.sock"} {
			err := harness.Eventually(t.Context(), 20*time.Second, func() error { _, err := os.Stat(filepath.Join(p.volumes[name], file)); return err })
			if err != nil {
				t.Errorf("%s: %v", p.object.Name, err)
			}
		}
	}
	in.announce()
	in.askAsUser()
	in.useStatus()
}

// useStatus has a status of each kind written, and an Event, and waits for them.
func (in *installation) useStatus() {
	t := in.t
	t.Helper()
	const spec = "spec: {priority: 5, appliedTo: [{podSelector: {matchLabels: {app: nobody}}}], ingress: [{name: in, action: Drop}]}"
	objects := "apiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: told}\n" + spec +
		"\n---\napiVersion: crd.antrea.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: told, namespace: default}\n" + spec +
		"\n---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterGroup\nmetadata: {name: told}\nspec: {podSelector: {}}" +
		"\n---\napiVersion: crd.antrea.io/v1beta1\nkind: Group\nmetadata: {name: told, namespace: default}\nspec: {podSelector: {}}\n"
	kubectl(t, in.Kube, objects, "apply", "-f", "-")
	kubectl(t, in.Kube, "", "wait", "--for=condition=Realized", "--timeout=60s", "acnp/told", "annp/told")
	kubectl(t, in.Kube, "", "wait", "--for=condition=GroupMembersComputed", "--timeout=60s", "clustergroup/told", "groups.crd.antrea.io/told")
	kubectl(t, in.Kube, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: told, namespace: default}\nspec: {podSelector: {matchLabels: {app: nobody}}}\n", "apply", "-f", "-")
	must(t, harness.Eventually(t.Context(), 60*time.Second, func() error {
		out, err := in.Kubectl(t.Context(), nil, "get", "events", "-n", "default", "-o", "jsonpath={.items[*].involvedObject.name}")
		if err == nil && !strings.Contains(out, "told") {
			err = fmt.Errorf("events are about %q", out)
		}
		return err
	}))
}

// reported waits until so many nodes report to a collector.
func (in *installation) reported(ns *harness.NetNS, collector netip.Addr, nodes int) {
	in.t.Helper()
	must(in.t, harness.Eventually(in.t.Context(), 20*time.Second, func() error {
		text, err := in.read(ns, fmt.Sprintf("http://%s:9751/metrics", collector))
		if err == nil && !strings.Contains(text, fmt.Sprintf("\nweir_audit_streams %d\n", nodes)) {
			err = fmt.Errorf("not %d nodes report to the collector at %s", nodes, collector)
		}
		return err
	}))
}

// useNodeLogs has a drop reported to a node's own collector: it is in the node's
// np.log, and at the centre.
func (in *installation) useNodeLogs(operator []string) {
	t := in.t
	t.Helper()
	for _, p := range in.shims {
		in.reported(p.ns, p.address, 1)
	}
	p := in.shims[0]
	conn, err := p.dial("127.0.0.1:9741", insecure.NewCredentials())
	must(t, err)
	defer conn.Close()
	stream, err := auditv1.NewCollectorServiceClient(conn).Report(t.Context())
	must(t, err)
	must(t, stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: p.node.name, Boot: "test"}}}))
	drop := &auditv1.PacketEvent{First: timestamppb.Now(), Direction: policyv1.Direction_DIRECTION_INGRESS, Action: policyv1.Action_ACTION_DROP, Table: "IngressDefaultRule",
		Policies:  []*policyv1.PolicyRef{{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "default", Name: "deny"}},
		Isolation: true, AppliedTo: "default/web", SourceIp: []byte{10, 244, 2, 9}, DestinationIp: []byte{10, 244, 1, 9}, Protocol: 1, Length: 84}
	must(t, stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: 1, Events: []*auditv1.Event{{Kind: &auditv1.Event_Packet{Packet: drop}}}}}}))
	must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
		log, err := os.ReadFile(filepath.Join(p.volumes["antrea-logs"], "networkpolicy", "np.log"))
		if err == nil && !strings.Contains(string(log), "IngressDefaultRule K8sNetworkPolicy") {
			err = fmt.Errorf("np.log has %q", log)
		}
		return err
	}))
	must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
		out, err := in.weirctlAt(in.network.NS, "", append([]string{"audit", "tail", "-o", "json", "--server", "127.0.0.1:9741"}, operator...)...)
		if err == nil && (!strings.Contains(out, p.node.name) || !strings.Contains(out, "10.244.2.9")) {
			err = fmt.Errorf("the collector has %q", out)
		}
		return err
	}))
}

// announce reports a Pod's address as a shim of a third node does, and another
// one afterwards.
func (in *installation) announce() {
	t := in.t
	t.Helper()
	kubectl(t, in.Kube, "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default}\nspec: {nodeName: node-3, containers: [{name: c, image: i}]}\n", "apply", "-f", "-")
	cert, roots := in.thirdNode()
	conn, err := in.replicas[0].dial("127.0.0.1:9740", credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}, RootCAs: roots}))
	must(t, err)
	defer conn.Close()
	stream, err := policyv1.NewPolicyServiceClient(conn).Subscribe(t.Context())
	must(t, err)
	must(t, stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: &policyv1.Hello{Node: "node-3"}}}))
	for _, address := range []string{"10.244.3.2", "10.244.3.3"} {
		port := &policyv1.PortState{Namespace: "default", Name: "web", Interface: "v", Ips: [][]byte{netip.MustParseAddr(address).AsSlice()}}
		must(t, stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Stats{Stats: &policyv1.NodeStats{Ports: []*policyv1.PortState{port}}}}))
		err := harness.Eventually(t.Context(), 20*time.Second, func() error {
			out, err := in.Kubectl(t.Context(), nil, "get", "nodeendpoints", "node-3", "-o", "jsonpath={.endpoints[0].ips[0]}")
			if err == nil && out != address {
				err = fmt.Errorf("the address written is %q", out)
			}
			return err
		})
		must(t, err)
	}
}

// thirdNode is the certificate of a node of which nothing runs, and the authority.
func (in *installation) thirdNode() (*tls.Certificate, *x509.CertPool) {
	in.t.Helper()
	kubectl(in.t, in.Kube, "apiVersion: v1\nkind: Node\nmetadata: {name: node-3}\n", "apply", "-f", "-")
	in.nodes["node-3"] = &installedNode{name: "node-3", ns: in.nodes["node-1"].ns, address: netip.MustParseAddr("198.18.0.99"), folders: map[string]string{"/run/openvswitch": in.dir}}
	p := in.pod("daemonset/weir-shim", "weir-shim-node-3", "node-3")
	return in.enrollNode(p.token("--audience", "weir"))
}

// dial connects to an address in the Pod's network.
func (p *installedPod) dial(address string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), grpc.WithContextDialer(func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = p.ns.Do(func() error { conn, err = new(net.Dialer).DialContext(ctx, "tcp", address); return err })
		return conn, err
	}))
}

// enrollNode gets the certificate of a node by a token.
func (in *installation) enrollNode(token string) (*tls.Certificate, *x509.CertPool) {
	t := in.t
	t.Helper()
	dir, ca, file := in.path("node-3-pki"), in.path("ca.crt"), in.path("node-3-token")
	must(t, os.WriteFile(ca, []byte(in.roots()), 0o644))
	must(t, os.WriteFile(file, []byte(token), 0o600))
	_, err := in.weirctl("", "pki", "enroll", "--token-file", file, "--ca", ca, "--dir", dir)
	must(t, err)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "node-node-3.crt"), filepath.Join(dir, "node-node-3.key"))
	must(t, err)
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	must(t, err)
	if !roots.AppendCertsFromPEM(text) {
		t.Fatal("ca.crt holds no certificate")
	}
	return &cert, roots
}

// protectTiers tries to change the static tiers.
func (in *installation) protectTiers() {
	t := in.t
	t.Helper()
	for _, name := range []string{"emergency", "securityops", "networkops", "platform", "application", "baseline"} {
		for want, args := range map[string][]string{
			"tier " + name + " is static and cannot be deleted":          {"delete", "tier", name},
			"tier " + name + " is static and its spec cannot be changed": {"patch", "tier", name, "--type=merge", "-p", `{"spec": {"description": "mine"}}`},
		} {
			if out, err := in.Kubectl(t.Context(), nil, args...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("kubectl %s: %s, %v", strings.Join(args, " "), out, err)
			}
		}
	}
	kubectl(t, in.Kube, "", "label", "tier", "emergency", "a=b")
	kubectl(t, in.Kube, "apiVersion: crd.antrea.io/v1beta1\nkind: Tier\nmetadata: {name: mine}\nspec: {priority: 20}\n", "apply", "-f", "-")
	kubectl(t, in.Kube, "", "patch", "tier", "mine", "--type=merge", "-p", `{"spec": {"description": "mine"}}`)
	kubectl(t, in.Kube, "", "delete", "tier", "mine")
}

// surviveServer takes the API server away: everything stays alive and ready.
func (in *installation) surviveServer() {
	t := in.t
	t.Helper()
	in.StopServer()
	pods := slices.Concat(in.replicas, in.shims)
	look := time.NewTicker(200 * time.Millisecond) // 25 times: 5 s.
	defer look.Stop()
	for range 25 {
		<-look.C
		for _, p := range pods {
			c := p.object.Spec.Containers[0].Name
			if err := errors.Join(p.probe(c, "live"), p.probe(c, "ready")); err != nil {
				t.Fatalf("without an API server, %s: %v", p.object.Name, err)
			}
		}
	}
	must(t, in.StartServer(t.Context()))
}
