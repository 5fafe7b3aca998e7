package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// The nodes that the reference's examples of policies for Nodes name, and one that
// they do not.
const (
	controlNode = "k8s-node-control-plane"
	workerNode  = "k8s-node-worker-1"
	spareNode   = "k8s-node-worker-2"
)

// nodeCluster has these nodes, a Pod on the first and one on the second, and
// hosts beyond at some addresses. All serve TCP at some ports.
func nodeCluster(t *testing.T, outside ...string) *harness.Cluster {
	t.Helper()
	served := []harness.Service{{Protocol: api.ProtocolTCP, Port: 22}, {Protocol: api.ProtocolTCP, Port: 80}, {Protocol: api.ProtocolTCP, Port: 81}}
	cfg := harness.Config{}
	for i, name := range []string{controlNode, workerNode, spareNode} {
		cfg.Nodes = append(cfg.Nodes, harness.NodeConfig{Name: name, IPs: []netip.Addr{ip(fmt.Sprintf("192.168.240.%d", 200+i)), ip(fmt.Sprintf("2001:db8:240::%d", 200+i))}})
	}
	c := startCluster(t, cfg)
	must(t, c.SetPods(t.Context(), []harness.PodConfig{
		{Namespace: "default", Name: "on-control", Node: controlNode, IPs: []netip.Addr{ip("10.20.0.2")}, Serves: served},
		{Namespace: "default", Name: "on-worker", Node: workerNode, IPs: []netip.Addr{ip("10.20.1.2")}, Serves: served}}))
	for _, n := range c.Nodes {
		must(t, n.Host().Serve(served...))
	}
	for _, a := range outside {
		h, err := c.Outside(t.Context(), ip(a))
		must(t, err)
		must(t, h.Serve(served...))
	}
	return c
}

// guardedNodes are the objects of nodeCluster.
func guardedNodes() string {
	var b strings.Builder
	b.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n")
	for i, name := range []string{controlNode, workerNode, spareNode} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s, labels: {kubernetes.io/os: linux, kubernetes.io/hostname: %s}, annotations: {weir.dev/gateway-addresses: '169.254.1.1'}}\nstatus: {addresses: [{type: InternalIP, address: 192.168.240.%d}, {type: InternalIP, address: '2001:db8:240::%d'}]}\n", name, name, 200+i, 200+i)
	}
	for i, p := range []string{"on-control " + controlNode, "on-worker " + workerNode} {
		f := strings.Fields(p)
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {nodeName: %s, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.20.%d.2}]}\n", f[0], f[1], i)
	}
	return b.String()
}

// forNodes is a policy for Nodes with a label, written as the reference's examples are
// where these are not at hand.
func forNodes(name, tier, key, value, rules string) string {
	return fmt.Sprintf(`---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: %s}
spec: {tier: %s, priority: 5, appliedTo: [{nodeSelector: {matchLabels: {kubernetes.io/%s: %s}}}], %s}
`, name, tier, key, value, rules)
}

// end is where a probe begins or ends: a node, a Pod or a host beyond.
func end(t *testing.T, c *harness.Cluster, name string) *harness.Host {
	t.Helper()
	if n := c.Nodes[name]; n != nil {
		return n.Host()
	}
	if p := c.Pod(name); p != nil {
		return p
	}
	h, err := c.Outside(t.Context(), ip(name))
	must(t, err)
	return h
}

// meets tries connections by TCP, "FROM TO PORT OUTCOME".
func meets(t *testing.T, c *harness.Cluster, list ...string) {
	t.Helper()
	var probes []harness.Probe
	var want []string
	for _, line := range list {
		f := strings.Fields(line)
		var port uint16
		if _, err := fmt.Sscan(f[2], &port); err != nil {
			t.Fatal(err)
		}
		to, err := netip.ParseAddr(f[1])
		if err != nil {
			to = end(t, c, f[1]).Addr(false)
		}
		probes, want = append(probes, harness.Probe{From: end(t, c, f[0]), To: to, Protocol: api.ProtocolTCP, Port: port}), append(want, f[3])
	}
	outcomes(t, probes, want...)
}

// table is what a node has of ours in its firewall.
func table(t *testing.T, n *harness.Node) string {
	t.Helper()
	out, err := n.NS.Command(t.Context(), "nft", "list", "table", "inet", "weir").CombinedOutput()
	if err != nil && !strings.Contains(string(out), "No such file") {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// Each example of the reference of a policy for Nodes does what it says, to
// packets, in the kernel's log and on record.
func TestExamplesOfNodePolicies(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := nodeCluster(t, "10.10.0.7", "192.168.240.9", "192.168.77.9", "192.168.1.9")
	control, worker, spare := controlNode, workerNode, spareNode

	t.Run("ingress restricted to a block, with labels", func(t *testing.T) {
		set(t, c, guardedNodes(), reference(t, "45-restrict-http-to-node.yaml", forNodes("restrict-http-to-node", "application", "hostname", control,
			"ingress: [{name: near, action: Allow, from: [{ipBlock: {cidr: 10.10.0.0/16}}], ports: [{protocol: TCP, port: 80}], enableLogging: true, logLabel: allow-http}, "+
				"{name: far, action: Drop, ports: [{protocol: TCP, port: 80}], enableLogging: true, logLabel: default-drop-others}]")))
		meets(t, c, "10.10.0.7 "+control+" 80 allow", "192.168.240.9 "+control+" 80 drop", worker+" "+control+" 80 drop", worker+" 2001:db8:240::200 80 drop", "default/on-worker "+control+" 80 drop",
			"192.168.240.9 "+control+" 81 allow", "192.168.240.9 "+worker+" 80 allow", "192.168.240.9 10.20.0.2 80 allow", control+" "+worker+" 80 allow")
		text := table(t, c.Nodes[control])
		for _, prefix := range []string{`log prefix "Antrea:I:Allow:allow-http:" log prefix "weir:`, `log prefix "Antrea:I:Drop:default-drop:" log prefix "weir:`} {
			if !strings.Contains(text, prefix) {
				t.Errorf("no %s in:\n%s", prefix, text)
			}
		}
		if text := table(t, c.Nodes[worker]); strings.Contains(text, "Antrea:") {
			t.Errorf("on a node that the policy is not for:\n%s", text)
		}
		for i, want := range []string{"10.10.0.7 allow", "192.168.240.9 drop"} {
			f, source := strings.Fields(want), uint16(23000+i)
			outcomes(t, []harness.Probe{{From: end(t, c, f[0]), To: end(t, c, control).Addr(false), Protocol: api.ProtocolTCP, Port: 80, SourcePort: source}}, f[1])
			p := recordOf(t, c, int(source)).Packet
			if p.Action != f[1] || p.Table != "NodeIngress" || p.Direction != "ingress" || p.AppliedTo != "node:"+control || p.SourceIP != f[0] || p.DestinationIP != "192.168.240.200" || p.DestinationPort != 80 ||
				!slices.Equal(p.Policies, []string{"AntreaClusterNetworkPolicy:restrict-http-to-node"}) {
				t.Errorf("record %+v", p)
			}
		}
	})
	t.Run("egress to a Node and to blocks", func(t *testing.T) {
		set(t, c, guardedNodes(), reference(t, "46-egress-drop-node-to-node.yaml", forNodes("no-ssh", "application", "hostname", control,
			"egress: [{name: ssh, action: Drop, to: [{nodeSelector: {matchLabels: {kubernetes.io/hostname: "+worker+"}}}, {ipBlock: {cidr: 192.168.77.0/24}}, {ipBlock: {cidr: 10.10.0.0/24}}], ports: [{protocol: TCP, port: 22}]}]")))
		meets(t, c, control+" "+worker+" 22 drop", control+" 2001:db8:240::201 22 drop", control+" 192.168.77.9 22 drop", control+" 10.10.0.7 22 drop",
			control+" "+spare+" 22 allow", control+" "+worker+" 80 allow", worker+" "+control+" 22 allow", spare+" "+worker+" 22 allow", "default/on-control "+worker+" 22 allow", "default/on-control 192.168.77.9 22 allow")
	})
	t.Run("egress of all Nodes", func(t *testing.T) {
		set(t, c, guardedNodes(), reference(t, "13-acnp-node-egress-traffic-drop.yaml", forNodes("out", "securityops", "os", "linux",
			"egress: [{name: http, action: Drop, to: [{ipBlock: {cidr: 192.168.1.0/24}}], ports: [{protocol: TCP, port: 80}]}]")))
		meets(t, c, control+" 192.168.1.9 80 drop", spare+" 192.168.1.9 80 drop", control+" 192.168.1.9 81 allow", control+" 192.168.77.9 80 allow", "default/on-control 192.168.1.9 80 allow", "192.168.1.9 "+control+" 80 allow")
	})
	t.Run("ingress of all Nodes", func(t *testing.T) {
		set(t, c, guardedNodes(), reference(t, "14-acnp-node-ingress-traffic-drop.yaml", forNodes("in", "securityops", "os", "linux",
			"ingress: [{name: ssh, action: Drop, from: [{ipBlock: {cidr: 192.168.1.0/24}}], ports: [{protocol: TCP, port: 22}]}]")))
		meets(t, c, "192.168.1.9 "+control+" 22 drop", "192.168.1.9 "+spare+" 22 drop", "192.168.1.9 "+control+" 80 allow", "192.168.77.9 "+control+" 22 allow", "192.168.1.9 10.20.1.2 22 allow", control+" 192.168.1.9 22 allow")
	})
	set(t, c, guardedNodes())
	if text := table(t, c.Nodes[control]); strings.Contains(text, "host-") {
		t.Errorf("left without a policy:\n%s", text)
	}
}

// What policies for a node put into its firewall stays while the shim is away, is
// there again from the checkpoint where neither table nor policy service is, is
// mended, is not there where it is not wanted, and is gone once uninstalled.
func TestNodePoliciesOutliveTheirShim(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := nodeCluster(t, "203.0.113.7")
	n := c.Nodes[controlNode]
	set(t, c, guardedNodes(), fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: shut}\nspec: {priority: 1, appliedTo: [{nodeSelector: {matchLabels: {kubernetes.io/hostname: %s}}}], ingress: [{action: Drop, ports: [{port: 80}]}]}\n", controlNode))
	shut, open := "203.0.113.7 "+controlNode+" 80 drop", "203.0.113.7 "+controlNode+" 80 allow"
	meets(t, c, shut)
	n.Shim.Terminate()
	meets(t, c, shut, "203.0.113.7 "+controlNode+" 22 allow")
	c.Policyd.Terminate()
	nft := func(args ...string) {
		t.Helper()
		if out, err := n.NS.Command(t.Context(), "nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v: %s", args, err, out)
		}
	}
	nft("delete", "table", "inet", "weir")
	meets(t, c, open)
	must(t, n.Shim.Start())
	eventuallyMeets := func(what string, line string) {
		t.Helper()
		f := strings.Fields(line)
		must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
			p := harness.Probe{From: end(t, c, f[0]), To: end(t, c, f[1]).Addr(false), Protocol: api.ProtocolTCP, Port: 80}
			got, err := harness.Run(t.Context(), []harness.Probe{p})
			if err == nil && got[0] != f[3] {
				err = fmt.Errorf("%s: %s, not %s", what, got[0], f[3])
			}
			return err
		}))
	}
	eventuallyMeets("from the checkpoint", shut)
	nft("flush", "chain", "inet", "weir", "host-in-rules")
	eventuallyMeets("mended", shut)
	must(t, c.Policyd.Start())
	n.Shim.Terminate()
	n.ShimArgs("--node-policies=false")
	must(t, n.Shim.Start())
	eventuallyMeets("not wanted", open)
	n.Shim.Terminate()
	n.ShimArgs("--node-policies=true")
	must(t, n.Shim.Start())
	eventuallyMeets("wanted again", shut)
	n.Shim.Terminate()
	p := n.Uninstall()
	must(t, p.Start())
	if ok, err := p.Wait(t.Context()); err != nil || !ok {
		t.Fatalf("%v\n%s", err, p.Tail())
	}
	if text := table(t, n); strings.Contains(text, "chain") {
		t.Errorf("left: %s", text)
	}
	meets(t, c, open)
}

// A node that a policy shuts is steered on: its shim comes back to the policy
// service, and an API server reaches its kubelet. The policy says of itself that
// it is overruled there, unless it allows a lock-out; then nothing is.
func TestNodesAreNotLockedOut(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := nodeCluster(t, "203.0.113.6", "203.0.113.7")
	must(t, end(t, c, "203.0.113.6").Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 6443}))
	n := c.Nodes[controlNode]
	must(t, n.Host().Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 10250}))
	n.ShimArgs("--stats-interval=300ms")
	shut := func(annotations string) string {
		return beyondAPIServer + fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: shut%s}\nspec: {priority: 1, appliedTo: [{nodeSelector: {matchLabels: {kubernetes.io/hostname: %s}}}], ingress: [{name: in, action: Drop}], egress: [{name: out, action: Drop}]}\n", annotations, controlNode)
	}
	of := func() *policyv1.PolicySummary {
		t.Helper()
		resp, err := c.Inspection().ListPolicies(t.Context(), &policyv1.ListPoliciesRequest{Stats: true})
		must(t, err)
		for _, p := range resp.GetPolicies() {
			if p.GetRef().GetName() == "shut" {
				return p
			}
		}
		t.Fatal("the policy is not listed")
		return nil
	}
	set(t, c, guardedNodes(), shut(""))
	n.Shim.Kill()
	must(t, n.Shim.Start())
	must(t, c.Settled(t.Context()))
	meets(t, c, "203.0.113.6 "+controlNode+" 10250 allow", "203.0.113.7 "+controlNode+" 10250 drop", controlNode+" 203.0.113.6 6443 allow", controlNode+" 203.0.113.6 80 drop", "203.0.113.6 "+controlNode+" 80 drop")
	if p := of(); len(p.GetConditions()) != 2 || p.GetConditions()[0].GetStatus() || p.GetConditions()[1].GetStatus() || p.GetConditions()[0].GetReason() != "LockoutOverruled" || p.GetNodesRealized() != 1 {
		t.Errorf("the policy's status: %v", p)
	}
	must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
		counted := make(map[string]uint64)
		for _, r := range of().GetRules() {
			counted[r.GetRule()] = r.GetPackets()
		}
		if counted["in"] < 2 || counted["out"] < 1 {
			return fmt.Errorf("counted: %v", counted)
		}
		return nil
	}))
	metrics, err := n.Metrics()
	must(t, err)
	if !strings.Contains(metrics, "weir_shim_host_lockouts 2\n") {
		t.Errorf("metrics:\n%s", metrics)
	}

	set(t, c, guardedNodes(), shut(", annotations: {weir.dev/allow-lockout: 'true'}"))
	meets(t, c, "203.0.113.6 "+controlNode+" 10250 drop", controlNode+" 203.0.113.6 6443 drop", "203.0.113.6 "+controlNode+" 80 drop")
	if p := of(); len(p.GetConditions()) != 2 || !p.GetConditions()[0].GetStatus() || !p.GetConditions()[1].GetStatus() {
		t.Errorf("the policy's status: %v", p)
	}
}

// beyondAPIServer is an API server beyond the nodes.
const beyondAPIServer = `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6443, protocol: TCP}]
endpoints: [{addresses: [203.0.113.6]}]
`
