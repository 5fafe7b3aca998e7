package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weirnet/weir/e2e/harness"
)

// probed is the JSON of weirctl probe.
type probed struct {
	Agrees                            bool
	Seen, Source, Destination, Answer string
	Expected                          struct {
		Verdict         string
		Egress, Ingress struct{ Policy string }
	}
	Nodes []struct {
		Node, Output string
		Passes       bool
		Decisions    []struct {
			Direction, Action, Table, Rule, Meaning string
			Policies                                []string
		}
	}
	Sights []struct{ Node, Event, Pod, Answer string }
}

// weirctl runs the binary against the cluster's policy service.
func weirctl(t *testing.T, c *harness.Cluster, args ...string) (code int, stdout string) {
	t.Helper()
	args = append(args, "--server", c.PolicyAddress(), "--ca", c.PKI("ca.crt"), "--cert", c.PKI("operator.crt"), "--key", c.PKI("operator.key"))
	cmd := c.Fabric.Command(t.Context(), filepath.Join(bin, "weirctl"), args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	} else if err != nil {
		code = exit.ExitCode()
	}
	if complaint.Len() > 0 {
		t.Logf("weirctl %s: %s", strings.Join(args, " "), complaint.String())
	}
	return code, out.String()
}

// probePolicies decide over smallCluster's Pods: by the Kubernetes policies of
// nginx and remote, by a tier, and by nothing.
var probePolicies = policy("nginx-from-client", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}") +
	policy("remote-80", "{podSelector: {matchLabels: {app: remote}}, ingress: [{ports: [{protocol: TCP, port: 80}]}], egress: [], policyTypes: [Ingress, Egress]}") + `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: no-8080}
spec:
  priority: 5
  tier: securityops
  appliedTo: [{podSelector: {matchLabels: {app: nginx}}}]
  ingress:
  - {name: drop-8080, action: Drop, ports: [{protocol: TCP, port: 8080}]}
  - {name: reject-8081, action: Reject, ports: [{protocol: TCP, port: 8081}, {protocol: UDP, port: 8081}]}
`

// A probe is a real packet: where the policies let it through it arrives, on this
// node or another, and where they do not it does not; the flows that decide are
// named with their policies. Where somebody changed a flow the two disagree, and
// the table is named.
func TestProbeComparesPacketsWithPolicies(t *testing.T) {
	t.Parallel()
	c := smallCluster(t, "--reconcile", "1h")
	set(t, c, smallObjects(false), probePolicies)
	probe := func(args ...string) (p probed, code int, out string) {
		t.Helper()
		code, out = weirctl(t, c, append([]string{"probe", "-o", "json", "--limit", "1s"}, args...)...)
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			t.Fatalf("probe %v: status %d: %v\n%s", args, code, err, out)
		}
		return p, code, out
	}
	run := func(want int, args ...string) probed {
		t.Helper()
		p, code, out := probe(args...)
		if code != want {
			t.Fatalf("probe %v: status %d, want %d:\n%s", args, code, want, out)
		}
		return p
	}
	const nginx, remote = "K8sNetworkPolicy:default/nginx-from-client", "K8sNetworkPolicy:default/remote-80"
	for _, test := range []struct {
		name                   string
		args                   []string
		verdict                string
		node, table, by, rule  string // What decided last. Empty: nothing.
		delivered, answer, out string // To whose port; and by what the source's node let it out.
	}{
		{name: "local, allowed", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "80"}, verdict: "allow",
			node: "node-1", table: "IngressRule (21)", by: nginx, delivered: "default/nginx", answer: "SYN-ACK", out: "default/nginx"},
		{name: "local, nobody listens", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "81"}, verdict: "allow",
			node: "node-1", table: "IngressRule (21)", by: nginx, delivered: "default/nginx", answer: "RST", out: "default/nginx"},
		{name: "local, UDP", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "80", "--protocol", "UDP"}, verdict: "allow",
			node: "node-1", table: "IngressRule (21)", by: nginx, delivered: "default/nginx", out: "default/nginx"},
		{name: "local, UDP, nobody listens", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "81", "--protocol", "udp"}, verdict: "allow",
			node: "node-1", table: "IngressRule (21)", by: nginx, delivered: "default/nginx", answer: "ICMP type 3 code 3", out: "default/nginx"},
		{name: "local, ICMP", args: []string{"--from", "default/client", "--to", "default/nginx", "--protocol", "ICMP"}, verdict: "allow",
			node: "node-1", table: "IngressRule (21)", by: nginx, delivered: "default/nginx", answer: "echo reply", out: "default/nginx"},
		{name: "local, SCTP", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "80", "--protocol", "SCTP"}, verdict: "allow",
			node: "node-1", table: "IngressRule (21)", by: nginx, delivered: "default/nginx", answer: "SCTP", out: "default/nginx"},
		{name: "by a tier's rule", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "8080"}, verdict: "drop",
			node: "node-1", table: "AntreaPolicyIngressRule (20)", by: "AntreaClusterNetworkPolicy:no-8080", rule: "drop-8080"},
		{name: "rejected", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "8081"}, verdict: "reject",
			node: "node-1", table: "AntreaPolicyIngressRule (20)", by: "AntreaClusterNetworkPolicy:no-8080", rule: "reject-8081", answer: "RST"},
		{name: "rejected, UDP", args: []string{"--from", "default/client", "--to", "default/nginx", "--port", "8081", "--protocol", "UDP"}, verdict: "reject",
			node: "node-1", table: "AntreaPolicyIngressRule (20)", by: "AntreaClusterNetworkPolicy:no-8080", rule: "reject-8081", answer: "ICMP type 3 code 10"},
		{name: "no policy", args: []string{"--from", "default/nginx", "--to", "default/client", "--port", "80"}, verdict: "allow", delivered: "default/client", answer: "RST", out: "default/client"},
		{name: "remote, allowed", args: []string{"--from", "default/client", "--to", "default/remote", "--port", "80"}, verdict: "allow",
			node: "node-2", table: "IngressRule (21)", by: remote, delivered: "default/remote", answer: "SYN-ACK", out: "host"},
		{name: "remote, IPv6 by address", args: []string{"--from", "default/client", "--to", "fd09:2::1", "--port", "80", "--source-port", "777"}, verdict: "allow",
			node: "node-2", table: "IngressRule (21)", by: remote, delivered: "default/remote", answer: "SYN-ACK", out: "host"},
		{name: "remote, denied there", args: []string{"--from", "default/client", "--to", "default/remote", "--port", "81"}, verdict: "drop",
			node: "node-2", table: "IngressDefaultRule (22)", by: remote, out: "host"},
		{name: "denied on egress", args: []string{"--from", "default/remote", "--to", "default/nginx", "--port", "80"}, verdict: "drop",
			node: "node-2", table: "EgressDefaultRule (12)", by: remote},
		{name: "to a node", args: []string{"--from", "default/client", "--to", "node:node-2", "--protocol", "ICMP"}, verdict: "allow", answer: "echo reply", out: "host"},
		{name: "to its own node", args: []string{"--from", "default/client", "--to", "node:node-1", "--port", "9"}, verdict: "allow", answer: "RST", out: "host"},
	} {
		p := run(0, test.args...)
		delivered, left := "", ""
		for _, s := range p.Sights {
			if s.Event == "delivered" {
				delivered = s.Pod
			}
		}
		for _, n := range p.Nodes {
			if n.Node == p.Nodes[0].Node {
				left = n.Output
			}
		}
		node, table, by, rule := "", "", "", ""
		for _, n := range p.Nodes {
			for _, d := range n.Decisions {
				node, table, by, rule = n.Node, d.Table, strings.Join(d.Policies, ","), d.Rule
			}
			if !n.Passes {
				break // What the destination's flows would do with it decides nothing.
			}
		}
		if !p.Agrees || p.Seen != test.verdict || p.Expected.Verdict != test.verdict || delivered != test.delivered || p.Answer != test.answer && test.answer != "" || left != test.out {
			t.Errorf("%s: delivered to %q, out by %q: %+v", test.name, delivered, left, p)
		}
		if node != test.node || table != test.table || by != test.by || test.rule != "" && rule != test.rule {
			t.Errorf("%s: decided on %q in %q by %q %q: %+v", test.name, node, table, by, rule, p)
		}
	}

	// What watched the probes is gone, and counts for no difference meanwhile; so
	// are their connections.
	n1 := c.Nodes["node-1"]
	if code, out := checkBridge(t, n1); code != 0 {
		t.Errorf("after the probes: %s", out)
	}
	dump, err := n1.OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, "cookie=0x57000a0000000000/0xff00ff0000000000")
	if err != nil || strings.Contains(string(dump), "priority=") {
		t.Errorf("flows that watch are left: %s, %v", dump, err)
	}
	tracked, err := n1.OVS.Appctl(t.Context(), "dpctl/dump-conntrack")
	if err != nil || strings.Contains(string(tracked), "dport=8080") || strings.Contains(string(tracked), "sport=777,") {
		t.Errorf("connections of probes are left: %s, %v", tracked, err)
	}

	// Somebody drops what the policies allow, again and again, for the shim puts it right.
	ctx, cancel := context.WithCancel(t.Context())
	var tampering sync.WaitGroup
	tampering.Go(func() {
		for ctx.Err() == nil {
			_, _ = n1.OVS.Ofctl(ctx, "add-flow", harness.Bridge, "table=20,priority=65534,tcp,nw_src=10.9.1.1,actions=drop")
		}
	})
	defer func() { cancel(); tampering.Wait() }()
	eventually(t, func() error {
		p, code, out := probe("--from", "default/client", "--to", "default/nginx", "--port", "80")
		if code != 1 || p.Agrees || p.Seen != "drop" || p.Expected.Verdict != "allow" || len(p.Nodes) != 1 || p.Nodes[0].Passes || len(p.Nodes[0].Decisions) == 0 {
			return fmt.Errorf("a flow of somebody's drops the packet: status %d\n%s", code, out)
		}
		if d := p.Nodes[0].Decisions[len(p.Nodes[0].Decisions)-1]; d.Table != "AntreaPolicyIngressRule (20)" || d.Meaning != "foreign" || d.Action != "drop" {
			return fmt.Errorf("decided by %+v", d)
		}
		return nil
	})
	eventually(t, func() error {
		code, out := weirctl(t, c, "probe", "--limit", "1s", "--from", "default/client", "--to", "default/nginx", "--port", "80")
		for _, want := range []string{"DISAGREES   allow      drop", "AntreaPolicyIngressRule (20)", "foreign", nginx} {
			if code != 1 || !strings.Contains(out, want) {
				return fmt.Errorf("status %d, and %q is not in:\n%s", code, want, out)
			}
		}
		return nil
	})

	for _, args := range [][]string{
		{"--from", "node:node-1", "--to", "default/nginx", "--port", "80"},
		{"--from", "default/nobody", "--to", "default/nginx", "--port", "80"},
		{"--from", "default/client", "--to", "fqdn:example.org", "--port", "80"},
		{"--from", "default/client", "--to", "default/nginx"},
	} {
		if code, out := weirctl(t, c, slices.Concat([]string{"probe"}, args)...); code != 1 || out != "" {
			t.Errorf("probe %v: status %d: %s", args, code, out)
		}
	}
}
