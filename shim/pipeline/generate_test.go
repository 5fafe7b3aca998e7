package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/order"
	"github.com/weirnet/weir/storage"
)

// randomPolicy makes a policy of any rank.
func randomPolicy(rng *rand.Rand, name string) *policyv1.Policy {
	kinds := policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY
	p := &policyv1.Policy{Rank: []uint32{50, 250, 250, order.RankAdmin, order.RankK8s, order.RankK8s, order.RankBaseline, order.RankUpstreamBaseline}[rng.IntN(8)], Priority: float64(rng.IntN(4)) / 2, Created: int64(rng.IntN(4)), Staged: rng.IntN(4) == 0}
	switch p.Rank {
	case order.RankAdmin:
		kinds = []policyv1.PolicyKind{policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY, policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY}[rng.IntN(2)]
	case order.RankUpstreamBaseline:
		kinds = []policyv1.PolicyKind{policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY, policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY}[rng.IntN(2)]
	case order.RankK8s:
		kinds = policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY
		p.IsolatesIngress, p.IsolatesEgress = rng.IntN(2) == 0, rng.IntN(2) == 0
		p.Priority, p.LogIsolation = 0, rng.IntN(3) == 0
	}
	p.Ref = &policyv1.PolicyRef{Kind: kinds, Name: name}
	group := func() []byte { return groupIDs(testGroups[rng.IntN(4)])[0] }
	onRules := p.Rank < order.RankK8s && rng.IntN(3) == 0
	if !onRules {
		p.AppliedTo = [][]byte{group()}
	}
	for _, dir := range []policyv1.Direction{ingress, egress} {
		for i := range rng.IntN(4) {
			r := &policyv1.Rule{Direction: dir, Index: uint32(i), Name: fmt.Sprint(name, "-", dir, "-", i), Action: allow, Log: p.Rank != order.RankK8s && rng.IntN(3) == 0}
			if p.Rank != order.RankK8s {
				r.Action = []policyv1.Action{allow, drop, reject, pass}[rng.IntN(4)]
			}
			if onRules {
				r.AppliedTo = [][]byte{group()}
			}
			r.Peers, r.Services = randomPeers(rng, group), randomServices(rng)
			if dir == egress && (r.Peers == nil || len(r.Peers.Blocks) > 0) {
				r.PortNameGroups = groupIDs(everyone)
			}
			p.Rules = append(p.Rules, r)
		}
	}
	return p
}

func randomPeers(rng *rand.Rand, group func() []byte) *policyv1.Peers {
	if rng.IntN(4) == 0 {
		return nil
	}
	out := &policyv1.Peers{}
	for range rng.IntN(3) {
		if rng.IntN(2) == 0 {
			out.Groups = append(out.Groups, group())
			continue
		}
		b := &policyv1.IPBlock{Cidr: storage.PrefixToWire(netip.MustParsePrefix([]string{"10.0.0.0/8", "10.0.0.0/29", "192.0.2.0/24", "fd00::/64", "0.0.0.0/0"}[rng.IntN(5)]))}
		if except := netip.MustParsePrefix([]string{"10.0.0.2/31", "192.0.2.0/25", "10.0.0.1/32"}[rng.IntN(3)]); rng.IntN(2) == 0 && b.Cidr.Length < 25 && len(b.Cidr.Address) == 4 {
			b.Except = append(b.Except, storage.PrefixToWire(except))
		}
		out.Blocks = append(out.Blocks, b)
	}
	return out
}

func randomServices(rng *rand.Rand) *policyv1.Services {
	if rng.IntN(3) == 0 {
		return nil
	}
	tcp, udp, sctp := policyv1.Protocol_PROTOCOL_TCP, policyv1.Protocol_PROTOCOL_UDP, policyv1.Protocol_PROTOCOL_SCTP
	out := &policyv1.Services{}
	for range rng.IntN(4) {
		out.Services = append(out.Services, []*policyv1.Service{
			{Protocol: tcp, Port: 80}, {Protocol: tcp, PortName: "http"}, {Protocol: udp, Port: 50, EndPort: 55}, {Protocol: udp, PortName: "http"},
			{Protocol: sctp, Port: 80}, {Protocol: sctp}, {Protocol: policyv1.Protocol_PROTOCOL_ICMP}, {},
		}[rng.IntN(8)])
	}
	return out
}

func randomPod(rng *rand.Rand, i int) *testPod {
	p := &testPod{name: fmt.Sprint("pod-", i), groups: map[string]bool{everyone: true}, ips: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}}
	if i < 5 {
		p.port = uint32(i)
	}
	if rng.IntN(2) == 0 {
		p.ips = append(p.ips, netip.MustParseAddr(fmt.Sprintf("fd00::%d", i)))
	}
	for _, g := range testGroups[:3] {
		if rng.IntN(2) == 0 {
			p.groups[g] = true
		}
	}
	for range rng.IntN(3) {
		p.ports = append(p.ports, &policyv1.NamedPort{Name: "http", Protocol: []policyv1.Protocol{policyv1.Protocol_PROTOCOL_TCP, policyv1.Protocol_PROTOCOL_UDP}[rng.IntN(2)], Port: uint32(79 + rng.IntN(3))})
	}
	return p
}

// randomPacket is one between a local Pod and another Pod or a stranger, with
// its two ends; nil is a stranger.
func (n *node) randomPacket(rng *rand.Rand) (p bridge.Packet, from, to *testPod) {
	from, to = n.pods[fmt.Sprint("pod-", 1+rng.IntN(4))], n.pods[fmt.Sprint("pod-", 1+rng.IntN(6))]
	i := rng.IntN(2)
	stranger := []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(256))}), netip.MustParseAddr("fd00::99")}
	address := func(pod *testPod) (netip.Addr, bool) {
		if pod == nil {
			return stranger[i], true
		}
		return pod.ips[min(i, len(pod.ips)-1)], i < len(pod.ips)
	}
	if to == from || rng.IntN(5) == 0 {
		to = nil
	}
	if rng.IntN(2) == 0 {
		from, to = to, from
	}
	src, ok := address(from)
	dst, okay := address(to)
	if !ok || !okay {
		return n.randomPacket(rng)
	}
	p = bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: src, IPDst: dst, TTL: 64, SrcPort: 1234, InPort: openflow.PortLocal, EthSrc: config.LocalMAC,
		IPProto: []uint8{openflow.ProtoTCP, openflow.ProtoUDP, openflow.ProtoSCTP, openflow.ProtoICMP}[rng.IntN(4)], DstPort: []uint16{53, 79, 80, 81}[rng.IntN(4)]}
	if dst.Is6() {
		p.EthType = openflow.EtherIPv6
	}
	switch p.IPProto {
	case openflow.ProtoTCP:
		p.TCPFlags = bridge.TCPSyn
	case openflow.ProtoICMP:
		p.SrcPort, p.DstPort, p.ICMPType = 0, 0, 8
		if dst.Is6() {
			p.IPProto, p.ICMPType = openflow.ProtoICMPv6, 128
		}
	}
	if from != nil && from.port != 0 {
		p.InPort, p.EthSrc, p.EthDst = from.port, port(from.port, from.name).MAC, config.LocalMAC
	}
	return p, from, to
}
