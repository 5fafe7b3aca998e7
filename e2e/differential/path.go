package differential

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// hop is a packet's way through one bridge.
type hop struct {
	node   string
	packet bridge.Packet
	// Where it leaves if it passes. Zero: nowhere, since the destination has no
	// open port.
	want uint32
	// Whom the bridge guards: source, destination or both.
	egress, ingress bool
	// Of a packet to a Service: the endpoint that it is to go to, and the id of
	// the Service's port. Not valid: it is for nobody but its destination.
	chosen  netip.AddrPort
	service uint32
}

// judged is the packet as policies see it.
func (h *hop) judged() bridge.Packet {
	p := h.packet
	if h.chosen.IsValid() {
		p.IPDst, p.DstPort = h.chosen.Addr(), h.chosen.Port()
	}
	return p
}

// hops are the bridges that a packet from one place to another passes: that of
// the source, if it is a Pod, then that of the destination, if it is a Pod
// elsewhere. Nil: none, or the packet cannot be sent.
func hops(from, to place, p bridge.Packet) []hop {
	p.EthSrc, p.EthDst = macOf(from.port), localMAC
	if from.isPod() {
		if from.port == 0 {
			return nil
		}
		first := hop{node: from.node, packet: p, want: openflow.PortLocal, egress: true}
		first.packet.InPort = from.port
		if !to.isPod() {
			return []hop{first}
		}
		if to.node == from.node {
			first.want, first.ingress = to.port, true
			return []hop{first}
		}
		return []hop{first, arrival(from, to, p)}
	}
	if !to.isPod() {
		return nil
	}
	return []hop{arrival(from, to, p)}
}

// arrival is the destination's bridge: the packet comes in by LOCAL, forwarded
// by the host or its own.
func arrival(from, to place, p bridge.Packet) hop {
	p.InPort, p.EthSrc, p.EthDst = openflow.PortLocal, localMAC, macOf(to.port)
	if !from.isPod() && from.node == to.node {
		p.EthSrc = hostMAC
	}
	return hop{node: to.node, packet: p, want: to.port, ingress: true}
}

// first is the first packet of a connection.
func first(c evaluate.Connection) bridge.Packet {
	p := bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: c.From.Addr, IPDst: c.To.Addr, IPProto: uint8(c.Protocol), TTL: 64,
		SrcPort: c.SourcePort, DstPort: c.Port}
	if c.To.Addr.Is6() {
		p.EthType = openflow.EtherIPv6
	}
	switch c.Protocol {
	case api.ProtocolTCP:
		p.TCPFlags = bridge.TCPSyn
	case api.ProtocolICMP:
		p.SrcPort, p.DstPort, p.ICMPID, p.ICMPType = 0, 0, c.SourcePort, 8
		if c.To.Addr.Is6() {
			p.IPProto, p.ICMPType = openflow.ProtoICMPv6, 128
		}
	}
	return p
}

// reply is the answer to a first packet.
func reply(p bridge.Packet) bridge.Packet {
	p.IPSrc, p.IPDst, p.SrcPort, p.DstPort = p.IPDst, p.IPSrc, p.DstPort, p.SrcPort
	switch p.IPProto {
	case openflow.ProtoTCP:
		p.TCPFlags = bridge.TCPSyn | bridge.TCPAck
	case openflow.ProtoICMP:
		p.ICMPType = 0
	case openflow.ProtoICMPv6:
		p.ICMPType = 129
	}
	return p
}

// next is what a sender goes on with, whether or not it was answered.
func next(p bridge.Packet) bridge.Packet {
	if p.IPProto == openflow.ProtoTCP {
		p.TCPFlags = bridge.TCPAck
	}
	return p
}

// judgement is what became of a packet in one direction on one bridge.
type judgement uint8

const (
	unseen judgement = iota
	allowed
	denied
)

func (j judgement) String() string { return [...]string{"unseen", "allow", "drop"}[j] }

// outcome is what became of a packet on one bridge.
type outcome struct {
	egress, ingress judgement
	delivered       bool
	wrong           string // What must never happen. Empty: nothing.
}

// read says what a walk means for the hop.
func (h *hop) read(w bridge.Walk) outcome {
	visited := make(map[uint8]bool)
	for _, t := range w.Tables() {
		visited[t] = true
	}
	judge := func(guarded, begun, passed bool) judgement {
		switch {
		case !guarded || !begun:
			return unseen
		case passed:
			return allowed
		}
		return denied
	}
	o := outcome{
		egress: judge(h.egress, true, visited[pipeline.TableEgressMetric]),
		// Forwarding drops what is for a closed port, which says nothing of ingress.
		ingress: judge(h.ingress && h.want != 0, visited[pipeline.TableForwarding], visited[pipeline.TableIngressMetric]),
	}
	switch ports := w.Ports(); {
	case slices.ContainsFunc(w.Ambiguous, untied):
		o.wrong = fmt.Sprintf("two flows of one priority match: %v", w.Ambiguous)
	case len(ports) > 1:
		o.wrong = "the packet is delivered more than once"
	case len(ports) == 1 && h.want == 0:
		o.wrong = "the packet is delivered although its destination has no open port"
	case len(ports) == 1 && ports[0] != h.want:
		o.wrong = "the packet is delivered to another port"
	case len(ports) == 1:
		o.delivered = true
		want := localMAC
		if h.ingress {
			want = macOf(h.want)
		}
		if w.Outputs[0].Packet.EthDst != want {
			o.wrong = "the packet is delivered with another destination MAC"
		}
	}
	if o.wrong == "" && h.chosen.IsValid() {
		o.wrong = h.misled(w)
	}
	passed := o.egress != denied && o.ingress != denied && h.want != 0
	if o.wrong == "" && passed != o.delivered {
		o.wrong = "the packet is lost although it was allowed"
	}
	return o
}

// untied says whether it matters which of two flows is taken.
func untied(pair [2]openflow.Flow) bool { return !pipeline.Tied(pair[0], pair[1]) }
