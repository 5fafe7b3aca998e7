package bridge

import (
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// WalkOptions say how Send and Trace walk.
type WalkOptions struct {
	// CtNext are the states that the connection tracker reports, one a
	// recirculation, and after the last one always +trk+new, as in Trace; the
	// tracker itself is neither asked nor changed. Nil: the Fake's tracker is used.
	CtNext []uint32
}

// Walk is what became of a packet.
type Walk struct {
	Outputs        []Delivery
	PacketIns      []ControllerCopy
	Trail          []Hit
	Recirculations int
	// Ambiguous are pairs of flows of the same priority that both matched, so
	// that a real switch may take either.
	Ambiguous [][2]openflow.Flow
}

// Delivery is a packet as it left.
type Delivery struct {
	Port   uint32
	Packet Packet
}

// ControllerCopy is a packet that went to a controller.
type ControllerCopy struct {
	ControllerID uint16
	openflow.PacketIn
}

// Hit is one look-up: the flow that was hit, or none.
type Hit struct {
	Table uint8
	Flow  openflow.Flow // zero where Miss
	Miss  bool
}

// Ports are the numbers of the ports that the packet left by, ascending.
func (w Walk) Ports() []uint32 {
	var out []uint32
	for _, d := range w.Outputs {
		out = append(out, d.Port)
	}
	slices.Sort(out)
	return out
}

// Tables are the tables that the packet was looked up in, in order.
func (w Walk) Tables() []uint8 {
	var out []uint8
	for _, h := range w.Trail {
		out = append(out, h.Table)
	}
	return out
}

// Send is a packet that comes in: it is counted, tracked, and copied to
// controllers.
func (f *Fake) Send(p Packet) Walk {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.newWalkLocked(WalkOptions{})
	w.lookup(w.begin(p), 0)
	w.drain()
	w.deliver()
	return w.result
}

// Walk tells what would become of a packet; nothing is counted or sent. With
// CtNext the connection tracker is left alone, too; without, it learns of the
// packet as of one that was sent.
func (f *Fake) Walk(p Packet, opts WalkOptions) Walk {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.newWalkLocked(opts)
	w.dry = true
	w.lookup(w.begin(p), 0)
	w.drain()
	return w.result
}

// walk is one packet's way, all of its copies. The Fake's lock is held.
type walk struct {
	fake   *Fake
	opts   WalkOptions
	dry    bool
	result Walk
	queue  []func() // recirculations, after the pipeline that they left
	forks  int      // recirculations begun
	steps  int      // actions taken
}

// Bounds on one packet's way; Open vSwitch has like ones.
const (
	maxRecirculations = 4096
	maxSteps          = 1 << 16
)

func (f *Fake) newWalkLocked(opts WalkOptions) *walk { return &walk{fake: f, opts: opts} }

func (w *walk) begin(p Packet) *state { return &state{packet: p} }

func (w *walk) drain() {
	for len(w.queue) > 0 && w.result.Recirculations < maxRecirculations {
		next := w.queue[0]
		w.queue = w.queue[1:]
		w.result.Recirculations++
		next()
	}
}

// deliver hands the copies for controllers to those that listen.
func (w *walk) deliver() {
	for _, c := range w.result.PacketIns {
		if l := w.fake.listeners[c.ControllerID]; l != nil {
			l.put(c.PacketIn)
		}
	}
}

// lookup finds the flow in a table and takes its steps.
func (w *walk) lookup(s *state, table uint8) {
	flow := w.classify(s, table)
	if flow == nil {
		w.result.Trail = append(w.result.Trail, Hit{Table: table, Miss: true})
		return
	}
	if !w.dry {
		flow.flow.Packets++
		flow.flow.Bytes += uint64(len(s.packet.Frame()))
	}
	w.result.Trail = append(w.result.Trail, Hit{Table: table, Flow: flow.flow})
	w.execute(s, flow.steps, flow)
}

func (f *Fake) tableLocked(table uint8) []*fakeFlow {
	if f.tables == nil {
		f.tables = map[uint8][]*fakeFlow{}
		for _, flow := range f.flows {
			f.tables[flow.flow.Table] = append(f.tables[flow.flow.Table], flow)
		}
		for _, list := range f.tables {
			slices.SortFunc(list, func(a, b *fakeFlow) int { return compareKeys(a.flow.Key(), b.flow.Key()) })
		}
	}
	return f.tables[table]
}

// classify finds the flow as Open vSwitch does: the highest priority wins, and
// at the same one a flow beats conjunctions. Where all clauses of a conjunction
// are satisfied at a priority, the whole table is looked up again, without
// clauses and with the conjunction's id.
func (w *walk) classify(s *state, table uint8) *fakeFlow {
	list := w.fake.tableLocked(table)
	for start := 0; start < len(list); {
		end := start
		for end < len(list) && list[end].flow.Priority == list[start].flow.Priority {
			end++
		}
		hard, soft := w.matching(s, list[start:end])
		if hard != nil {
			return hard
		}
		for _, id := range satisfied(soft) {
			if flow := w.again(s, list, id); flow != nil {
				return flow
			}
		}
		start = end
	}
	return nil
}

func (w *walk) matching(s *state, list []*fakeFlow) (hard *fakeFlow, soft []*fakeFlow) {
	for _, flow := range list {
		if !s.matches(flow.conditions) {
			continue
		}
		switch {
		case flow.soft:
			soft = append(soft, flow)
		case hard == nil:
			hard = flow
		default:
			w.result.Ambiguous = append(w.result.Ambiguous, [2]openflow.Flow{hard.flow, flow.flow})
		}
	}
	return hard, soft
}

// satisfied are the ids of the conjunctions whose clauses all have a flow,
// ascending.
func satisfied(soft []*fakeFlow) []uint32 {
	type seen struct {
		clauses uint64
		of      uint8
	}
	found := map[uint32]seen{}
	var out []uint32
	for _, flow := range soft {
		for _, a := range flow.steps {
			c, ok := a.(openflow.Conjunction)
			if !ok {
				continue
			}
			e := found[c.ID]
			if e.of != 0 && e.of != c.Clauses {
				continue
			}
			before := e
			e.clauses, e.of = e.clauses|1<<c.Clause, c.Clauses
			found[c.ID] = e
			all := ^uint64(0) >> (64 - c.Clauses)
			if e.clauses == all && before.clauses != all {
				out = append(out, c.ID)
			}
		}
	}
	slices.Sort(out)
	return out
}

// again looks the whole table up with a conjunction's id and without clauses.
func (w *walk) again(s *state, list []*fakeFlow, id uint32) *fakeFlow {
	s.extra[openflow.FieldConjID] = openflow.Uint(uint64(id))
	defer func() { s.extra[openflow.FieldConjID] = openflow.Value{} }()
	for i, flow := range list {
		if flow.soft || !s.matches(flow.conditions) {
			continue
		}
		for _, other := range list[i+1:] {
			if other.flow.Priority != flow.flow.Priority {
				break
			}
			if !other.soft && s.matches(other.conditions) {
				w.result.Ambiguous = append(w.result.Ambiguous, [2]openflow.Flow{flow.flow, other.flow})
			}
		}
		return flow
	}
	return nil
}

// execute takes steps; flow is where they stand, nil for a packet-out.
func (w *walk) execute(s *state, steps []openflow.Action, flow *fakeFlow) {
	for _, a := range steps {
		if w.steps++; w.steps > maxSteps || s.held {
			return
		}
		switch a := a.(type) {
		case openflow.Output:
			w.output(s, a.Port, flow)
		case openflow.OutputReg:
			if port, ok := portOfRegister(s.bits(a.From).Uint64()); ok {
				w.output(s, port, flow)
			}
		case openflow.SetField:
			s.set(a.ID, s.get(a.ID).AndNot(a.Mask).Or(a.Value.And(a.Mask)))
		case openflow.Move:
			s.setBits(a.To, s.bits(a.From))
		case openflow.CT:
			w.track(s, &a)
		case openflow.Controller:
			w.toController(s, &a, flow)
		case openflow.ToGroup:
			w.toGroup(s, uint32(a), flow)
		case openflow.MeterBy:
			if m := w.fake.meters[uint32(a)]; m != nil && !w.dry && !m.passes(w.fake.clock) {
				return
			}
		case openflow.Resubmit:
			w.lookup(s, uint8(a))
		case openflow.Goto:
			w.lookup(s, uint8(a))
		}
	}
}

// portOfRegister is the port that a register names: by 16 bits, whatever the
// version of OpenFlow, so that the reserved ports are there by their lower halves.
func portOfRegister(v uint64) (port uint32, ok bool) {
	switch {
	case v > 0xffff:
		return 0, false
	case v >= 0xff00:
		return 0xffff0000 | uint32(v), true
	}
	return uint32(v), true
}

func (w *walk) output(s *state, port uint32, flow *fakeFlow) {
	switch port {
	case openflow.PortInPort:
		port = s.packet.InPort
	case s.packet.InPort:
		return // nothing leaves by the port that it came from
	case openflow.PortController:
		w.toController(s, &openflow.Controller{}, flow)
		return
	case openflow.PortTable:
		w.lookup(s, 0)
		return
	case openflow.PortNormal:
		w.flood(s)
		return
	}
	if port != openflow.PortLocal && (port == 0 || port >= 0xffffff00) {
		return
	}
	w.result.Outputs = append(w.result.Outputs, Delivery{port, s.packet})
}

// flood is NORMAL on a bridge that has learnt nothing.
func (w *walk) flood(s *state) {
	for _, p := range w.fake.ports {
		if p.Number != 0 && p.Number != s.packet.InPort {
			w.result.Outputs = append(w.result.Outputs, Delivery{p.Number, s.packet})
		}
	}
}

func (w *walk) toController(s *state, a *openflow.Controller, flow *fakeFlow) {
	if m := w.fake.meters[a.MeterID]; m != nil && !w.dry && !m.passes(w.fake.clock) {
		return
	}
	frame := s.packet.Frame()
	in := openflow.PacketIn{Packet: frame, FullLen: uint32(len(frame)), Reason: openflow.ReasonAction, UserData: []byte(a.UserData)}
	if a.Reason != 0 {
		in.Reason = a.Reason
	}
	if flow != nil {
		in.Table, in.Cookie = flow.flow.Table, flow.flow.Cookie
	}
	in.Metadata = s.metadata()
	in.Paused = a.Pause
	s.held = a.Pause
	w.result.PacketIns = append(w.result.PacketIns, ControllerCopy{a.ControllerID, in})
}

// toGroup sends copies through a group's buckets. What a bucket changes is not
// seen after the group.
func (w *walk) toGroup(s *state, id uint32, flow *fakeFlow) {
	g, ok := w.fake.groups[id]
	if !ok || len(g.Buckets) == 0 {
		return
	}
	run := func(b openflow.Bucket) {
		c := *s
		w.execute(&c, b.Actions.List(), flow)
	}
	if g.Type != openflow.GroupSelect {
		for _, b := range g.Buckets {
			run(b)
		}
		return
	}
	total := uint64(0)
	for _, b := range g.Buckets {
		total += uint64(b.Weight)
	}
	if total == 0 {
		return
	}
	h := fnv.New64a()
	fmt.Fprint(h, s.packet.IPSrc, s.packet.IPDst, s.packet.IPProto, s.packet.SrcPort, s.packet.DstPort)
	pick := h.Sum64() % total
	for _, b := range g.Buckets {
		if pick < uint64(b.Weight) {
			run(b)
			return
		}
		pick -= uint64(b.Weight)
	}
}

// track sends the packet through the connection tracker. Its copy goes on in
// the table that the action names; the packet itself goes on untracked.
func (w *walk) track(s *state, a *openflow.CT) {
	zone := a.Zone
	if a.ZoneFrom.Len != 0 {
		zone = uint16(s.bits(a.ZoneFrom).Uint64())
	}
	c := *s
	if w.opts.CtNext != nil {
		w.pretend(&c, zone)
	} else {
		v := w.fake.conns.track(&c.packet, &c.md, a, zone)
		if v.conn != nil && a.Commit {
			v.mark, v.label = w.mark(s, a, v.conn)
		}
		c.setTracked(v, zone)
		if !a.Recirc { // the translation shows, the tracker's findings do not
			s.packet, s.md = c.packet, c.md
		}
	}
	s.clearTracked()
	if a.Recirc {
		w.forks++
		w.queue = append(w.queue, func() { w.lookup(&c, a.Table) })
	}
}

// pretend gives the packet the state that the options say is next.
func (w *walk) pretend(c *state, zone uint16) {
	mark, label := c.get(openflow.FieldCTMark), c.get(openflow.FieldCTLabel)
	c.clearTracked()
	state := uint32(openflow.CtTrk | openflow.CtNew)
	if w.forks < len(w.opts.CtNext) {
		state = w.opts.CtNext[w.forks]
	}
	c.extra[openflow.FieldCTState] = openflow.Uint(uint64(state))
	c.extra[openflow.FieldCTZone] = openflow.Uint(uint64(zone))
	c.extra[openflow.FieldCTMark], c.extra[openflow.FieldCTLabel] = mark, label
}

// mark changes the connection's mark and label as the action says.
func (w *walk) mark(s *state, a *openflow.CT, conn *connection) (mark, label openflow.Value) {
	scratch := *s
	scratch.extra[openflow.FieldCTMark], scratch.extra[openflow.FieldCTLabel] = conn.mark, conn.label
	for _, e := range a.Exec {
		switch e := e.(type) {
		case openflow.SetField:
			scratch.set(e.ID, scratch.get(e.ID).AndNot(e.Mask).Or(e.Value.And(e.Mask)))
		case openflow.Move:
			scratch.setBits(e.To, scratch.bits(e.From))
		}
	}
	conn.mark, conn.label = scratch.extra[openflow.FieldCTMark], scratch.extra[openflow.FieldCTLabel]
	return conn.mark, conn.label
}
