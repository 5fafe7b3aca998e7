package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// A Node as a peer is its own addresses, that of its gateway and that of its
// transport, and no other address that its host has.
func TestNodesArePeersByTheirAddresses(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	const gateway, transport, other = "10.9.2.254", "203.0.113.2", "203.0.113.3"
	node := c.Nodes["node-2"]
	for _, address := range []string{gateway, transport, other} {
		must(t, node.NS.IP(t.Context(), "addr add "+address+"/32 dev lo"))
		must(t, c.Nodes["node-1"].NS.IP(t.Context(), "route add "+address+"/32 via "+node.Via().String()))
		must(t, (&harness.Host{NS: node.NS, IPs: []netip.Addr{ip(address)}}).Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 80}))
	}
	must(t, node.Host().Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 80}))
	objects := strings.Replace(smallObjects(false), "{name: node-2, annotations: {weir.dev/gateway-addresses: '169.254.1.1'}}",
		"{name: node-2, labels: {side: far}, annotations: {weir.dev/gateway-addresses: '"+gateway+"', weir.dev/transport-addresses: '"+transport+"'}}", 1)
	const far = "{nodeSelector: {matchLabels: {side: far}}}"
	both := func() (probes []harness.Probe) {
		for _, address := range []string{"192.0.2.2", gateway, transport, other} {
			probes = append(probes, tcp(c.Pod("default/client"), address))
		}
		for _, address := range []string{"192.0.2.2", gateway, transport, other} {
			probes = append(probes, tcp(&harness.Host{NS: node.NS, IPs: []netip.Addr{ip(address)}}, "10.9.1.2"))
		}
		return append(probes, tcp(c.Pod("default/client"), "2001:db8::2"), tcp(c.Pod("default/remote"), "10.9.1.2"))
	}
	const a, d = harness.Allow, harness.Drop
	set(t, c, objects)
	outcomes(t, both(), a, a, a, a, a, a, a, a, a, a)
	drop := "---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: far}\nspec: {priority: 1, appliedTo: [{podSelector: {}}], " +
		"ingress: [{action: Drop, from: [" + far + "]}], egress: [{action: Drop, to: [" + far + "]}]}\n"
	set(t, c, objects, drop)
	outcomes(t, both(), d, d, d, a, d, d, d, a, d, a)
	set(t, c, strings.Replace(objects, "side: far", "side: near", 1), drop)
	outcomes(t, both(), a, a, a, a, a, a, a, a, a, a)
}
