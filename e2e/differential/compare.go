package differential

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
)

// Comparer runs Cases. The zero Comparer compares without Open vSwitch.
type Comparer struct {
	// Switch is held to the Fake. Nil: none is. It serves one Comparer at a time.
	Switch *Switch

	// tamper breaks the flows, to test the test.
	tamper func(*pipeline.Change)
}

// Stats count what a Comparer looked at.
type Stats struct {
	Clusters, Steps, Connections, Denied, Packets, Traces int
	Staged                                                int // Directions in which staged policies would decide otherwise.
	Balanced, Hairpins, Unserved                          int // Connections to Services: that had an endpoint, their own, or none.
	NodePorts                                             int // Connections to ports of nodes.
	Hosts, HostsJudged                                    int // Ends that are hosts, and those of which a rule decides.
}

// Add adds another's counts.
func (s *Stats) Add(o Stats) {
	s.Clusters += o.Clusters
	s.Steps += o.Steps
	s.Connections += o.Connections
	s.Denied += o.Denied
	s.Packets += o.Packets
	s.Traces += o.Traces
	s.Staged += o.Staged
	s.Balanced += o.Balanced
	s.Hairpins += o.Hairpins
	s.Unserved += o.Unserved
	s.NodePorts += o.NodePorts
	s.Hosts += o.Hosts
	s.HostsJudged += o.HostsJudged
}

// Compare runs a Case and returns the first difference; nil where there is
// none. The error is that of a Switch that failed.
func (cmp *Comparer) Compare(ctx context.Context, c *Case) (stats Stats, d *Difference, err error) {
	r := &run{ctx: ctx, cmp: cmp, c: c}
	defer func() {
		stats = r.stats
		var broken *switchError
		if p := recover(); p != nil {
			d, err = r.differ("panic: %v\n%s", p, debug.Stack()), nil
		} else if errors.As(err, &broken) {
			return
		} else if as := (*invalid)(nil); errors.As(err, &as) {
			d, err = r.differ("validation refuses an object: %v", as), nil
			d.Invalid = true
		} else if err != nil {
			d, err = r.differ("%v", err), nil
		}
	}()
	if r.cluster, err = newCluster(c); err != nil {
		return r.stats, nil, err
	}
	if cmp.Switch != nil {
		if err := cmp.Switch.begin(ctx, r.cluster); err != nil {
			return r.stats, nil, err
		}
	}
	r.stats.Clusters++
	for i := range c.Steps {
		r.step = i
		if d, err := r.enter(&c.Steps[i]); d != nil || err != nil {
			return r.stats, d, err
		}
	}
	return r.stats, nil, nil
}

// run is one run of a Case.
type run struct {
	ctx     context.Context
	cmp     *Comparer
	c       *Case
	cluster *cluster
	stats   Stats

	step        int
	established []connection
	affine      map[affinity]netip.AddrPort // Endpoints of the step's clients.
	walks       []Walked                    // Of the connection being judged.
	connection  *evaluate.Connection
	result      *evaluate.Result
	staged      *evaluate.Result // With the staged policies.
}

// connection is one that was allowed.
type connection struct {
	probe    evaluate.Connection
	from, to place
	chosen   chosen        // Of one to a Service.
	seen     bridge.Packet // What the endpoint got of it.
}

// keep is how many connections of a step are to outlive it.
const keep = 6

func (r *run) differ(format string, args ...any) *Difference {
	return &Difference{Case: r.c, Step: r.step, Problem: fmt.Sprintf(format, args...), Connection: r.connection, Result: r.result, Walks: r.walks}
}

func (r *run) enter(s *Step) (*Difference, error) {
	r.stats.Steps++
	r.connection, r.result, r.walks, r.affine = nil, nil, nil, make(map[affinity]netip.AddrPort)
	changes, err := r.cluster.enter(r.c, s, r.cmp.tamper)
	if err != nil {
		return nil, err
	}
	if r.cmp.Switch != nil {
		if err := r.cmp.Switch.apply(r.ctx, r.cluster, changes); err != nil {
			return nil, err
		}
	}
	if d := r.outlive(); d != nil {
		return d, nil
	}
	for _, probe := range s.Probes {
		if d, err := r.probe(probe); d != nil || err != nil {
			return d, err
		}
	}
	return nil, nil
}

// outlive sends packets of connections that were established in earlier steps.
func (r *run) outlive() *Difference {
	for _, c := range r.established {
		from, ok1 := r.cluster.locate(c.probe.From)
		to, ok2 := r.cluster.locate(c.probe.To)
		if c.chosen.endpoint.IsValid() {
			to, ok2 = r.cluster.at(c.chosen.endpoint.Addr())
		}
		if !ok1 || !ok2 || from != c.from || to != c.to {
			continue // Another Pod may be there, or another port.
		}
		r.connection, r.result, r.walks = &c.probe, nil, nil
		p := first(c.probe)
		if c.chosen.endpoint.IsValid() {
			if d := r.passes(r.way(from, to, next(p), c.chosen), "an established connection is cut"); d != nil {
				return d
			}
			if d := r.answers(c.probe, from, to, next(c.seen), "an established connection's reply is cut"); d != nil {
				return d
			}
			continue
		}
		if d := r.passes(hops(from, to, next(p)), "an established connection is cut"); d != nil {
			return d
		}
		if d := r.passes(hops(to, from, next(reply(p))), "an established connection's reply is cut"); d != nil {
			return d
		}
	}
	return nil
}

// probe judges one connection. One of which an end is not there is left out.
func (r *run) probe(probe evaluate.Connection) (*Difference, error) {
	r.connection, r.result, r.walks = &probe, nil, nil
	from, ok1 := r.cluster.locate(probe.From)
	if ok1 && probe.To.Service != "" {
		return r.toService(probe, from)
	}
	to, ok2 := r.cluster.locate(probe.To)
	if ok1 && ok2 && probe.To.Node != "" {
		if d := r.toNodePort(probe, from, to); d != nil {
			return d, nil
		}
	}
	way := hops(from, to, first(probe))
	if !ok1 || !ok2 || len(way) == 0 {
		return nil, nil
	}
	result, err := r.cluster.evaluator.Explain(probe)
	if err != nil {
		d := r.differ("the evaluator refuses the connection: %v", err)
		d.Invalid = true
		return d, nil
	}
	if why := unexplained(&result); why != "" {
		return r.differ("the explanation is not that of the verdict: %s", why), nil
	}
	r.setResult(&result)
	r.stats.Connections++
	if result.Verdict != evaluate.Allow {
		r.stats.Denied++
	}
	if d := r.ofHosts(probe, from, to); d != nil {
		return d, nil
	}
	if d, err := r.trace(way); d != nil || err != nil {
		return d, err
	}
	arrived, d := r.begin(way)
	if d != nil {
		return d, nil
	}
	if !arrived {
		return r.denied(from, to, way), nil
	}
	p := first(probe)
	if d := r.passes(hops(to, from, reply(p)), "the reply to an allowed connection is dropped"); d != nil {
		return d, nil
	}
	if d := r.passes(hops(from, to, next(p)), "the second packet of an allowed connection is dropped"); d != nil {
		return d, nil
	}
	// SCTP is judged packet by packet, so that an update may cut it.
	if probe.Protocol != api.ProtocolSCTP && len(r.established) < keep*(r.step+1) {
		r.established = append(r.established, connection{probe: probe, from: from, to: to})
	}
	return nil, nil
}

// setResult notes what the evaluator says of the connection being judged.
func (r *run) setResult(result *evaluate.Result) {
	r.result, r.staged = result, result
	if result.Staged != nil {
		r.staged = result.Staged
	}
}

// unexplained says how the steps of an explanation do not lead to its
// decisions: the last one decides where any rule does, and names that rule.
func unexplained(result *evaluate.Result) string {
	for name, d := range map[string]*evaluate.Decision{"egress": &result.Egress, "ingress": &result.Ingress} {
		var last *evaluate.Step
		if n := len(d.Steps); n > 0 {
			last = &d.Steps[n-1]
		}
		switch {
		case d.Policy == nil && len(d.IsolatedBy) == 0:
		case last == nil || last.Outcome != d.Reason:
			return fmt.Sprintf("%s: %q, and the last step says %+v", name, d.Reason, last)
		case d.Policy != nil && !slices.ContainsFunc(last.Rules, func(c evaluate.Considered) bool {
			return c.Decides && c.RuleRef == evaluate.RuleRef{Policy: *d.Policy, Rule: d.Rule}
		}):
			return fmt.Sprintf("%s: no rule of %+v is %s of %s", name, last.Rules, d.Rule, d.Policy)
		}
	}
	return ""
}

// begin sends the first packet as far as it goes, and holds each bridge's
// judgement against the evaluator's.
func (r *run) begin(way []hop) (arrived bool, d *Difference) {
	for i := range way {
		h := &way[i]
		o, w := r.send(h)
		if d := r.judged(h, o, w); d != nil {
			return false, d
		}
		if o.delivered {
			continue
		}
		// What the source's node holds back, the destination's would judge all
		// the same.
		for j := range way[i+1:] {
			later := &way[i+1+j]
			w := r.cluster.nodes[later.node].fake.Walk(later.packet, bridge.WalkOptions{CtNext: []uint32{}})
			r.stats.Packets++
			r.walks = append(r.walks, Walked{later.node, later.packet, w})
			if d := r.judged(later, later.read(w), w); d != nil {
				return false, d
			}
		}
		return false, nil
	}
	return true, nil
}

// judged holds what a bridge did against what the evaluator says.
func (r *run) judged(h *hop, o outcome, w bridge.Walk) *Difference {
	if o.wrong != "" {
		return r.differ("on %s, %s", h.node, o.wrong)
	}
	for _, dir := range []struct {
		direction policyv1.Direction
		judgement judgement
		decision  *evaluate.Decision
		staged    *evaluate.Decision
	}{
		{policyv1.Direction_DIRECTION_EGRESS, o.egress, &r.result.Egress, &r.staged.Egress},
		{policyv1.Direction_DIRECTION_INGRESS, o.ingress, &r.result.Ingress, &r.staged.Ingress},
	} {
		want := allowed
		if dir.decision.Action != evaluate.Allow {
			want = denied
		}
		name := map[policyv1.Direction]string{policyv1.Direction_DIRECTION_EGRESS: "egress", policyv1.Direction_DIRECTION_INGRESS: "ingress"}[dir.direction]
		if dir.judgement == unseen {
			continue
		}
		if dir.judgement != want {
			return r.differ("%s: the evaluator says %s, the flows of %s say %s", name, want, h.node, dir.judgement)
		}
		if why := r.judges(h, dir.direction, want); why != "" {
			return r.differ("%s: %s", name, why)
		}
		if why := r.attributed(h, w, dir.direction, dir.decision); why != "" {
			return r.differ("%s: %s", name, why)
		}
		if why := answered(w, dir.direction, dir.decision); why != "" {
			return r.differ("%s: %s", name, why)
		}
		if why := r.recorded(h, w, dir.direction, dir.decision, dir.staged); why != "" {
			return r.differ("%s: %s", name, why)
		}
	}
	return nil
}

// judges holds the compiler's own judgement against the evaluator's, where rules are
// asked: they are not of what the host itself sends, nor of what a Pod sends itself.
func (r *run) judges(h *hop, dir policyv1.Direction, want judgement) string {
	p := h.judged()
	if p.EthSrc == hostMAC || p.IPSrc == p.IPDst {
		return ""
	}
	port := p.InPort
	if dir == policyv1.Direction_DIRECTION_INGRESS {
		port = h.want
	}
	hit := pipeline.Hit{Src: p.IPSrc, Dst: p.IPDst, Proto: p.IPProto, SrcPort: p.SrcPort, DstPort: p.DstPort, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode, Service: h.service}
	if passes := r.cluster.nodes[h.node].compiler.Judge(dir, port, hit); passes != (want == allowed) {
		return fmt.Sprintf("the evaluator says %s, the compiler of %s judges that it passes: %v", want, h.node, passes)
	}
	return ""
}

// attributed holds the policies that the deciding flow is attributed to
// against those that the evaluator names.
func (r *run) attributed(h *hop, w bridge.Walk, dir policyv1.Direction, want *evaluate.Decision) string {
	names := deciders(want)
	var got []string
	for _, hit := range w.Trail {
		kind, _, ours := pipeline.ParseCookie(hit.Flow.Cookie)
		egress := hit.Table <= pipeline.TableEgressMetric
		if !ours || (kind != pipeline.KindRule && kind != pipeline.KindIsolation) || egress != (dir == policyv1.Direction_DIRECTION_EGRESS) {
			continue
		}
		p := h.judged()
		a, ok := r.cluster.nodes[h.node].compiler.Attribute(pipeline.Hit{Table: hit.Table, Cookie: hit.Flow.Cookie, Priority: hit.Flow.Priority,
			InPort: p.InPort, OutPort: h.want, Src: p.IPSrc, Dst: p.IPDst, Proto: p.IPProto, SrcPort: p.SrcPort, DstPort: p.DstPort,
			ICMPType: p.ICMPType, ICMPCode: p.ICMPCode, Service: h.service})
		if !ok {
			return "the flow that was hit is attributed to nothing: " + hit.Flow.String()
		}
		if a.Action == policyv1.Action_ACTION_PASS {
			continue // Another rule decides, or none.
		}
		for _, ref := range a.Policies {
			got = append(got, nameOf(ref))
		}
	}
	slices.Sort(got)
	if !slices.Equal(names, got) {
		return fmt.Sprintf("the evaluator names the policies %v, the flows %v", names, got)
	}
	return ""
}

// deciders are the policies that decide, in order.
func deciders(d *evaluate.Decision) (names []string) {
	switch {
	case d.Action != evaluate.Allow && d.Policy != nil:
		names = append(names, nameOf(api.WireRef(*d.Policy)))
	case d.Action != evaluate.Allow:
		for _, ref := range d.IsolatedBy {
			names = append(names, nameOf(api.WireRef(ref)))
		}
	default:
		for _, ref := range d.AllowedBy {
			names = append(names, nameOf(api.WireRef(ref.Policy)))
		}
	}
	slices.Sort(names)
	return names
}

// nameOf names a policy with its kind.
func nameOf(r *policyv1.PolicyRef) string {
	return fmt.Sprintf("%s %s/%s", r.GetKind(), r.GetNamespace(), r.GetName())
}

// send lets a packet into a bridge.
func (r *run) send(h *hop) (outcome, bridge.Walk) {
	w := r.cluster.nodes[h.node].fake.Send(h.packet)
	r.stats.Packets++
	r.walks = append(r.walks, Walked{h.node, h.packet, w})
	return h.read(w), w
}

// passes sends a packet that must arrive.
func (r *run) passes(way []hop, otherwise string) *Difference {
	for i := range way {
		if o, _ := r.send(&way[i]); o.wrong != "" || !o.delivered {
			return r.differ("on %s, %s %s", way[i].node, otherwise, o.wrong)
		}
	}
	return nil
}

// arrives sends a packet and tells whether it arrives.
func (r *run) arrives(way []hop) bool {
	for i := range way {
		if o, _ := r.send(&way[i]); !o.delivered {
			return false
		}
	}
	return len(way) > 0
}

// denied tries to get through what was denied: by going on as if it had been
// answered, and by an answer.
func (r *run) denied(from, to place, way []hop) *Difference {
	p := way[0].packet
	if r.arrives(hops(from, to, next(p))) {
		return r.differ("a later packet of a denied connection arrives")
	}
	if p.TCPFlags != 0 && r.arrives(hops(to, from, reply(p))) {
		return r.differ("an answer to a denied connection arrives")
	}
	return nil
}
