package engine

import (
	"math"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// encoder writes items as bytes, as storage.Encode would write the messages
// (wire_test.go holds it to that): fields by number but those of a oneof last,
// zero values left out. It writes over what it wrote before, so an answer is
// good until the next call.
type encoder struct{ buf []byte }

// Numbers of the fields of policyv1.Item.
const itemNode, itemEndpoint, itemPolicy, itemMember, itemRoute, itemService, itemBackend = 1, 2, 3, 4, 5, 6, 7

// nodeKey is the key of a node's facts.
const nodeKey = "node"

// node is the item of a Node: its own addresses, wherever they were found,
// each once and sorted, its gateways as written, its zone, the applied-to groups
// that hold it, and who steers it.
func (enc *encoder) node(n *api.Node, groups [][]byte, servers []netip.AddrPort, clients []netip.Addr) []byte {
	b, start := open(enc.buf[:0], itemNode)
	b = appendString(b, 1, n.Name)
	b = appendAddrs(b, 2, hostAddresses(n))
	b = appendAddrs(b, 3, n.Gateways)
	b = appendString(b, 4, n.Zone)
	for _, id := range groups {
		b = appendBytes(b, 5, id)
	}
	for _, s := range servers {
		var server int
		b, server = open(b, 6)
		b = appendAddr(b, 1, s.Addr())
		b = appendUint(b, 2, uint64(s.Port()))
		b = shut(b, server)
	}
	b = appendAddrs(b, 7, clients)
	enc.buf = shut(b, start)
	return enc.buf
}

// hostAddresses are all that a Node's host may speak from, each once and sorted.
func hostAddresses(n *api.Node) []netip.Addr {
	all := slices.Concat(n.Addresses, n.Gateways, n.Transport)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// host is the item of a Node in an address group.
func (enc *encoder) host(n *api.Node) []byte {
	b, start := open(enc.buf[:0], itemMember)
	b = appendAddrs(b, 4, hostAddresses(n))
	b = appendString(b, 2, n.Name)
	enc.buf = shut(b, start)
	return enc.buf
}

// endpoint is the item of a Pod on its node, which names its applied-to groups.
func (enc *encoder) endpoint(p *api.Pod, groups [][]byte) []byte {
	b, start := open(enc.buf[:0], itemEndpoint)
	b = appendString(b, 1, p.Namespace)
	b = appendString(b, 2, p.Name)
	b = appendAddrs(b, 3, p.IPs)
	for _, id := range groups {
		b = appendBytes(b, 4, id)
	}
	b = appendPorts(b, 5, p.Ports)
	b = appendString(b, 6, p.UID)
	enc.buf = shut(b, start)
	return enc.buf
}

// route is the item of a Node's Pod network.
func (enc *encoder) route(n *api.Node) []byte {
	b, start := open(enc.buf[:0], itemRoute)
	b = appendString(b, 1, n.Name)
	for _, p := range n.PodCIDRs {
		b = appendPrefix(b, 2, p)
	}
	b = appendAddrs(b, 3, n.Reached)
	enc.buf = shut(b, start)
	return enc.buf
}

// service is the item of a Service.
func (enc *encoder) service(s *api.Service) []byte {
	b, start := open(enc.buf[:0], itemService)
	b = appendString(b, 1, s.Namespace)
	b = appendString(b, 2, s.Name)
	b = appendAddrs(b, 3, s.ClusterIPs)
	b = appendServicePorts(b, 4, s.Ports)
	b = appendUint(b, 5, uint64(s.AffinitySeconds))
	b = appendBool(b, 6, s.InternalLocal)
	enc.buf = shut(b, start)
	return enc.buf
}

// backend is the item of one of a Service's backends.
func (enc *encoder) backend(d *backend) []byte {
	b, start := open(enc.buf[:0], itemBackend)
	b = appendString(b, 1, d.namespace)
	b = appendString(b, 2, d.service)
	b = appendAddr(b, 3, d.ip.Unmap())
	b = appendServicePorts(b, 4, d.ports)
	b = appendString(b, 5, d.node)
	b = appendBool(b, 6, d.terminating)
	b = appendStrings(b, 7, d.zones)
	b = appendStrings(b, 8, d.nodes)
	enc.buf = shut(b, start)
	return enc.buf
}

// member is the item of a Pod in an address group.
func (enc *encoder) member(p *api.Pod) []byte {
	b, start := open(enc.buf[:0], itemMember)
	b = appendAddrs(b, 4, p.IPs)
	b = appendPorts(b, 5, p.Ports)
	b, pod := open(b, 1)
	b = appendString(b, 1, p.Namespace)
	b = appendString(b, 2, p.Name)
	b = shut(b, pod)
	enc.buf = shut(b, start)
	return enc.buf
}

// policy is the item of a policy. The groups are those of its selections, as
// policy.groups has them.
func (enc *encoder) policy(d *draft, groups []*group) []byte {
	b, start := open(enc.buf[:0], itemPolicy)
	b, ref := open(b, 1)
	b = appendUint(b, 1, uint64(d.kind))
	b = appendString(b, 2, d.namespace)
	b = appendString(b, 3, d.name)
	b = shut(b, ref)
	b = appendString(b, 2, d.uid)
	b = appendUint(b, 3, uint64(d.generation))
	if bits := math.Float64bits(d.priority); bits != 0 {
		b = protowire.AppendFixed64(protowire.AppendTag(b, 4, protowire.Fixed64Type), bits)
	}
	b = appendUint(b, 5, uint64(d.created))
	targets, groups := groups[:len(d.appliedTo)], groups[len(d.appliedTo):]
	for i := range d.rules {
		b, groups = appendRule(b, 6, &d.rules[i], groups)
	}
	b = appendBool(b, 7, d.isolatesIngress)
	b = appendBool(b, 8, d.isolatesEgress)
	b = appendIDs(b, 9, targets)
	b = appendBool(b, 10, d.logIsolation)
	b = appendBool(b, 11, d.staged)
	b = appendUint(b, 12, uint64(d.rank))
	b = appendString(b, 13, d.part)
	b = appendBool(b, 14, d.allowLockout)
	enc.buf = shut(b, start)
	return enc.buf
}

// appendRule takes the rule's groups from the front of the list.
func appendRule(b []byte, field protowire.Number, r *draftRule, groups []*group) ([]byte, []*group) {
	take := func(n int) []*group {
		taken := groups[:n]
		groups = groups[n:]
		return taken
	}
	b, start := open(b, field)
	b = appendUint(b, 1, uint64(r.direction))
	b = appendUint(b, 2, uint64(r.action))
	b = appendUint(b, 3, uint64(r.index))
	b = appendString(b, 4, r.name)
	if !r.anything {
		var services int
		b, services = open(b, 5)
		for i := range r.services {
			b = appendService(b, 1, &r.services[i])
		}
		b = shut(b, services)
	}
	peers := take(len(r.peers))
	if !r.anyone {
		var list int
		b, list = open(b, 6)
		b = appendIDs(b, 1, peers)
		for _, block := range r.blocks {
			b = appendBlock(b, 2, block)
		}
		for _, name := range r.toServices {
			var ref int
			b, ref = open(b, 3)
			b = appendString(b, 1, name.Namespace)
			b = appendString(b, 2, name.Name)
			b = shut(b, ref)
		}
		for _, name := range r.names {
			b = appendString(b, 4, name)
		}
		b = shut(b, list)
	}
	b = appendIDs(b, 7, take(len(r.appliedTo)))
	b = appendBool(b, 8, r.log)
	b = appendString(b, 9, r.logLabel)
	b = appendIDs(b, 10, take(len(r.named)))
	b = appendBool(b, 11, r.nodePorts)
	b = appendBool(b, 12, r.host)
	return shut(b, start), groups
}

func appendService(b []byte, field protowire.Number, s *service) []byte {
	b, start := open(b, field)
	b = appendUint(b, 1, uint64(s.protocol))
	b = appendUint(b, 2, uint64(s.port))
	b = appendUint(b, 3, uint64(s.endPort))
	b = appendString(b, 4, s.portName)
	b = appendUint(b, 5, uint64(s.sourcePort))
	b = appendUint(b, 6, uint64(s.sourceEndPort))
	b = appendOptional(b, 7, s.icmpType)
	b = appendOptional(b, 8, s.icmpCode)
	b = appendOptional(b, 9, s.igmpType)
	if len(s.groupAddress) > 0 {
		b = appendBytes(b, 10, s.groupAddress)
	}
	return shut(b, start)
}

func appendBlock(b []byte, field protowire.Number, block *api.IPBlock) []byte {
	b, start := open(b, field)
	b = appendPrefix(b, 1, block.CIDR)
	for _, p := range block.Except {
		b = appendPrefix(b, 2, p)
	}
	return shut(b, start)
}

func appendPrefix(b []byte, field protowire.Number, p netip.Prefix) []byte {
	p = p.Masked()
	b, start := open(b, field)
	b = appendAddr(b, 1, p.Addr())
	b = appendUint(b, 2, uint64(p.Bits()))
	return shut(b, start)
}

func appendPorts(b []byte, field protowire.Number, ports []api.ContainerPort) []byte {
	for _, p := range ports {
		var start int
		b, start = open(b, field)
		b = appendString(b, 1, p.Name)
		b = appendUint(b, 2, uint64(wireProtocol(p.Protocol)))
		b = appendUint(b, 3, uint64(p.Port))
		b = shut(b, start)
	}
	return b
}

func appendServicePorts(b []byte, field protowire.Number, ports []api.ServicePort) []byte {
	for i := range ports {
		var start int
		b, start = open(b, field)
		b = appendString(b, 1, ports[i].Name)
		b = appendUint(b, 2, uint64(wireProtocol(ports[i].Protocol)))
		b = appendUint(b, 3, uint64(ports[i].Port))
		b = shut(b, start)
	}
	return b
}

func wireProtocol(p api.Protocol) policyv1.Protocol {
	switch p {
	case api.ProtocolTCP:
		return policyv1.Protocol_PROTOCOL_TCP
	case api.ProtocolUDP:
		return policyv1.Protocol_PROTOCOL_UDP
	case api.ProtocolSCTP:
		return policyv1.Protocol_PROTOCOL_SCTP
	case api.ProtocolICMP:
		return policyv1.Protocol_PROTOCOL_ICMP
	}
	return policyv1.Protocol_PROTOCOL_UNSPECIFIED
}
