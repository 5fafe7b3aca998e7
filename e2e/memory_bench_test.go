package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// BenchmarkShimMemory is about a node with 10,000 rules whose peers are 100,000
// Pods of other nodes, each of one group, which are each named by so many rules:
// what weir-shim has in memory (resident, MB) when all is in force and two
// readings have passed, at the most until then, and the same of a shim that begins
// from its checkpoint.
func BenchmarkShimMemory(b *testing.B) {
	for _, each := range []int{1, 10} {
		b.Run(fmt.Sprint(each), func(b *testing.B) { shimMemory(b, 10_000/each) })
	}
}

func shimMemory(b *testing.B, groups int) {
	c := startCluster(b, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1")}}}})
	must(b, c.SetPods(b.Context(), []harness.PodConfig{{Namespace: "default", Name: "nginx", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.2")}}}))
	node := c.Nodes["node-1"]
	settle := func() {
		b.Helper()
		must(b, harness.Eventually(b.Context(), 5*time.Minute, func() error {
			resp, err := c.Inspection().ListNodes(b.Context(), &policyv1.ListNodesRequest{})
			if err != nil {
				return err
			}
			for _, n := range resp.GetNodes() {
				if n.GetEndpoints() == 1 && n.GetInSync() {
					return nil
				}
			}
			return fmt.Errorf("not in sync: %v", resp.GetNodes())
		}))
	}
	report := func(when string, steady time.Duration) {
		b.Helper()
		_, most, err := node.Shim.Memory()
		must(b, err)
		time.Sleep(steady) // What is measured is what it has after a while.
		now, later, err := node.Shim.Memory()
		must(b, err)
		b.ReportMetric(float64(now)/1e6, when+"-MB")
		b.ReportMetric(float64(max(most, later))/1e6, when+"-most-MB")
	}
	for b.Loop() {
		must(b, c.WriteManifests(b.Context(), []byte(manyPeers(10_000, 100_000, groups))))
		settle()
		report("cut", 20*time.Second)
		out, err := node.OVS.Run(b.Context(), "ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", harness.Bridge)
		must(b, err)
		b.Logf("%s", out)
		node.Shim.Terminate()
		must(b, node.Shim.Start())
		settle()
		report("restart", 20*time.Second)
	}
}

// manyPeers are so many rules for nginx, whose peers are so many Pods, in groups.
func manyPeers(rules, peers, groups int) string {
	const each = 10 // Rules of a policy.
	var s strings.Builder
	s.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n")
	s.WriteString(podObject("nginx", "nginx", "10.9.1.2"))
	for i := range peers {
		fmt.Fprintf(&s, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: peer-%d-of-some-deployment-%x, namespace: default, labels: {app: app-%d}}\nspec: {nodeName: node-%d, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.%d.%d.%d}]}\n",
			i, 7919*i, i%groups, 2+i%1000, 100+i/62500, i/250%250, 1+i%250)
	}
	for i := range rules / each {
		var list []string
		for k := range each {
			n := i*each + k
			list = append(list, fmt.Sprintf("{from: [{podSelector: {matchLabels: {app: app-%d}}}], ports: [{port: %d}]}", n%groups, 1000+n))
		}
		s.WriteString(policy(fmt.Sprint("policy-", i), fmt.Sprintf("{podSelector: {matchLabels: {app: nginx}}, ingress: [%s]}", strings.Join(list, ", "))))
	}
	return s.String()
}
