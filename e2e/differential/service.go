package differential

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// chosen is what a node made of a connection to a Service.
type chosen struct {
	endpoint netip.AddrPort // Not valid: nothing.
	service  uint32         // Id of the Service's port.
}

// affinity is a client of a Service's port.
type affinity struct {
	client, vip netip.Addr
	protocol    api.Protocol
	port        uint16
}

// chosenBy reads in the way of a packet what was chosen for it.
func chosenBy(w bridge.Walk) (c chosen) {
	for _, hit := range w.Trail {
		if hit.Table != pipeline.TableServiceEndpoint || hit.Miss {
			continue
		}
		var addr netip.Addr
		var port uint16
		for _, a := range hit.Flow.Actions.List() {
			switch a := a.(type) {
			case openflow.CT:
				addr, port = a.NAT.MinAddr, a.NAT.MinPort
			case openflow.SetField:
				switch a.ID {
				case openflow.FieldIPv4Dst:
					addr = a.Value.IPv4()
				case openflow.FieldIPv6Dst:
					addr = a.Value.IPv6()
				case openflow.FieldSCTPDst:
					port = uint16(a.Value.Uint64())
				}
			}
		}
		if addr.IsValid() {
			_, c.service, _ = pipeline.ParseCookie(hit.Flow.Cookie)
			c.endpoint = netip.AddrPortFrom(addr, port)
		}
	}
	return c
}

// misled says how a packet to a Service went elsewhere than to the endpoint that
// was chosen.
func (h *hop) misled(w bridge.Walk) string {
	if c := chosenBy(w); c.endpoint.IsValid() && c.endpoint != h.chosen {
		return fmt.Sprintf("%s is chosen, and %s was before", c.endpoint, h.chosen)
	}
	if len(w.Outputs) == 0 {
		return ""
	}
	p := w.Outputs[0].Packet
	if to := netip.AddrPortFrom(p.IPDst, p.DstPort); to != h.chosen {
		return fmt.Sprintf("what is for %s goes to %s", h.chosen, to)
	}
	if at := h.want == h.packet.InPort; at == (p.IPSrc == h.packet.IPSrc) {
		return fmt.Sprintf("it comes from %s", p.IPSrc)
	}
	return ""
}

// toService judges a Pod's connection to a Service's ClusterIP: by the endpoint
// that its node chose, which must be one that the evaluator lets it have.
func (r *run) toService(probe evaluate.Connection, from place) (*Difference, error) {
	if !from.isPod() || from.port == 0 {
		return nil, nil
	}
	svc, _ := r.cluster.objects[api.Ref{Kind: api.KindService, Namespace: probe.To.Namespace, Name: probe.To.Service}].(*api.Service)
	if svc == nil || !svc.Balanced() || !slices.Contains(svc.ClusterIPs, probe.To.Addr) {
		return nil, nil
	}
	begin := departure(from, first(probe))
	w := r.cluster.nodes[from.node].fake.Walk(begin.packet, bridge.WalkOptions{CtNext: []uint32{}})
	c := chosenBy(w)
	each, err := r.cluster.evaluator.ExplainEach(probe)
	if err != nil {
		return r.unserved(begin, c, err), nil
	}
	i := slices.IndexFunc(each, func(e evaluate.Reached) bool { return e.Endpoint == c.endpoint })
	if i < 0 {
		r.walks = append(r.walks, Walked{from.node, begin.packet, w})
		return r.differ("%s is chosen, which the evaluator does not have among %v", c.endpoint, endpoints(each)), nil
	}
	to, sole := r.cluster.at(c.endpoint.Addr())
	if !sole {
		return nil, nil // Whose packets these are is up to who comes last.
	}
	if d := r.keeps(probe, svc, c, each); d != nil {
		return d, nil
	}
	return r.throughService(probe, from, to, c, &each[i].Result)
}

func endpoints(each []evaluate.Reached) (list []netip.AddrPort) {
	for _, e := range each {
		list = append(list, e.Endpoint)
	}
	return list
}

// keeps holds a node to the endpoint that it gave a client before, if the Service
// has its clients keep theirs.
func (r *run) keeps(probe evaluate.Connection, svc *api.Service, c chosen, each []evaluate.Reached) *Difference {
	if svc.AffinitySeconds == 0 {
		return nil
	}
	client := affinity{probe.From.Addr, probe.To.Addr, probe.Protocol, probe.Port}
	had, is := r.affine[client]
	r.affine[client] = c.endpoint
	if is && had != c.endpoint {
		return r.differ("%s is chosen, and the client keeps to %s, of %v", c.endpoint, had, endpoints(each))
	}
	return nil
}

// unserved judges a connection that the evaluator has no endpoint for.
func (r *run) unserved(begin hop, c chosen, why error) *Difference {
	w := r.cluster.nodes[begin.node].fake.Send(begin.packet)
	r.stats.Packets++
	r.walks = append(r.walks, Walked{begin.node, begin.packet, w})
	var none *evaluate.NoEndpoint
	if c.endpoint.IsValid() {
		return r.differ("%s is chosen, and the evaluator says: %v", c.endpoint, why)
	}
	if !errors.As(why, &none) {
		return nil // It is no port of the Service, and goes where it may.
	}
	r.stats.Unserved++
	refusals := 0
	for _, in := range w.PacketIns {
		if in.ControllerID == pipeline.RejectController && pipeline.Unserviced(in.UserData) {
			refusals++
		}
	}
	want := 1
	if none.Local != "" {
		want = 0
	}
	if refusals != want || len(w.PacketIns) != want || len(w.Outputs) > 0 {
		return r.differ("the evaluator says: %v; and the packet is refused %d times, reported %d times and leaves by %v", why, refusals, len(w.PacketIns), w.Ports())
	}
	return nil
}

// throughService judges a connection to a Service as one to the endpoint that
// was chosen.
func (r *run) throughService(probe evaluate.Connection, from, to place, c chosen, result *evaluate.Result) (*Difference, error) {
	if why := unexplained(result); why != "" {
		return r.differ("the explanation is not that of the verdict: %s", why), nil
	}
	r.setResult(result)
	r.stats.Connections++
	r.stats.Balanced++
	if result.Verdict != evaluate.Allow {
		r.stats.Denied++
	}
	if from.pod == to.pod {
		r.stats.Hairpins++
	}
	p := first(probe)
	way := r.way(from, to, p, c)
	if d, err := r.trace(way); d != nil || err != nil {
		return d, err
	}
	arrived, d := r.begin(way)
	if d != nil {
		return d, nil
	}
	if !arrived {
		if r.arrives(r.way(from, to, next(p), c)) {
			return r.differ("a later packet of a denied connection arrives"), nil
		}
		if back := r.back(to, from, way[0].judged()); probe.Protocol == api.ProtocolTCP && r.arrives(back) {
			return r.differ("an answer to a denied connection arrives"), nil
		}
		return nil, nil
	}
	seen := r.walks[len(r.walks)-1].Walk.Outputs[0].Packet
	if d := r.answers(probe, from, to, seen, "the reply to an allowed connection is dropped"); d != nil {
		return d, nil
	}
	if d := r.passes(r.way(from, to, next(p), c), "the second packet of an allowed connection is dropped"); d != nil {
		return d, nil
	}
	if probe.Protocol == api.ProtocolTCP && len(r.established) < keep*(r.step+1) {
		r.established = append(r.established, connection{probe, from, to, c, seen})
	}
	return nil, nil
}

// answers sends what the endpoint answers to what it saw: to the client it is the
// Service's.
func (r *run) answers(probe evaluate.Connection, from, to place, seen bridge.Packet, otherwise string) *Difference {
	if d := r.passes(r.back(to, from, seen), otherwise); d != nil {
		return d
	}
	p := r.walks[len(r.walks)-1].Walk.Outputs[0].Packet
	if p.IPSrc != probe.To.Addr || p.SrcPort != probe.Port || p.IPDst != probe.From.Addr || p.DstPort != probe.SourcePort {
		return r.differ("the client gets an answer of %s", p.String())
	}
	return nil
}

// departure is the bridge of a Pod that sends a packet.
func departure(from place, p bridge.Packet) hop {
	p.InPort, p.EthSrc, p.EthDst = from.port, macOf(from.port), localMAC
	return hop{node: from.node, packet: p, want: openflow.PortLocal, egress: true}
}

// way are the bridges that a packet to a Service passes on its way to the
// endpoint that was chosen.
func (r *run) way(from, to place, p bridge.Packet, c chosen) []hop {
	begin := departure(from, p)
	begin.chosen, begin.service = c.endpoint, c.service
	if from.pod == to.pod {
		begin.want, begin.ingress = from.port, true
		return []hop{begin}
	}
	way := hops(from, to, begin.judged())
	begin.want, begin.ingress = way[0].want, way[0].ingress
	way[0] = begin
	return way
}

// back are the bridges that the answer to what an endpoint saw passes.
func (r *run) back(to, from place, seen bridge.Packet) []hop {
	p := reply(seen)
	p.TTL = 64
	if from.pod == to.pod {
		h := departure(from, p)
		h.want, h.ingress = from.port, true
		return []hop{h}
	}
	return hops(to, from, p)
}

// at is who has an address; false where several Pods do.
func (cl *cluster) at(a netip.Addr) (place, bool) {
	at := place{addr: a}
	pods := 0
	for _, o := range cl.objects {
		switch o := o.(type) {
		case *api.Pod:
			if o.HostNetwork || o.Finished || !slices.Contains(o.IPs, a) {
				continue
			}
			pods++
			at.node, at.pod = o.Node, Pod{o.Namespace, o.Name}
			if port := cl.ports[at.pod]; port.Node == o.Node {
				at.port = port.Number
			}
		case *api.Node:
			if !at.isPod() && slices.Contains(slices.Concat(o.Addresses, o.Gateways, o.Transport), a) {
				at.node = o.Name
			}
		}
	}
	return at, pods < 2
}
