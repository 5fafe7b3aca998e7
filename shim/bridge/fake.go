package bridge

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Fake is a bridge in memory with the semantics of the real one: what it
// refuses, what it replaces, what it forgets. Send walks packets through its
// tables, with a connection tracker of its own. The suite holds it to what Open
// vSwitch does. It is for tests.
type Fake struct {
	cfg         Config
	reconnected chan struct{}
	changed     chan struct{}
	listeners   map[uint16]*listener

	// mu guards what follows.
	mu        sync.Mutex
	connected bool
	connects  uint64
	flows     map[openflow.FlowKey]*fakeFlow
	tables    map[uint8][]*fakeFlow // by descending priority; built when needed
	groups    map[uint32]openflow.Group
	meters    map[uint32]*fakeMeter
	ports     []Port
	portCount uint32
	conns     conntrack
	sent      []Sent
	clock     func() time.Time // Of meters. Nil: they let all pass.
}

// Sent is a packet that PacketOut was given, and what became of it.
type Sent struct {
	openflow.PacketOut
	Walk Walk
}

type fakeFlow struct {
	flow       openflow.Flow
	conditions []openflow.Field
	steps      []openflow.Action
	soft       bool // nothing but conjunctions
	// born is when it was put, renewed when it was put or learned last, used when
	// a packet hit it or it was renewed.
	born, renewed, used time.Time
}

type fakeMeter struct {
	openflow.Meter
	stats openflow.MeterStats
	born  time.Time
	level float64   // Packets that may pass at once, as of last.
	last  time.Time // When it was worked out. Zero: the meter has limited nothing yet.
}

// LimitMeters has meters limit what passes, by a clock.
func (f *Fake) LimitMeters(now func() time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = now
}

// passes counts a packet that comes to a meter, and says whether it may pass: a
// bucket of the burst's size, full at first, which fills at the meter's rate.
func (m *fakeMeter) passes(now func() time.Time) bool {
	m.stats.Packets++
	if now == nil {
		return true
	}
	burst := float64(m.Burst)
	if m.Burst == 0 {
		burst = float64(m.Rate)
	}
	at := now()
	if m.last.IsZero() {
		m.level = burst
	} else {
		m.level = min(burst, m.level+at.Sub(m.last).Seconds()*float64(m.Rate))
	}
	if m.last = at; m.level < 1 {
		m.stats.Dropped++
		return false
	}
	m.level--
	return true
}

// NewFake makes a connected, empty bridge with its LOCAL port.
func NewFake(cfg Config) *Fake {
	f := &Fake{
		cfg:         cfg,
		reconnected: make(chan struct{}, 1),
		changed:     make(chan struct{}, 1),
		listeners:   map[uint16]*listener{},
	}
	for _, c := range cfg.Controllers {
		f.listeners[c.ID] = newListener(c)
	}
	f.ports = []Port{{ID: "local", Name: cfg.Name, Number: openflow.PortLocal, MAC: [6]byte{2, 0xee}, AdminUp: true, LinkUp: true}}
	f.Restart()
	return f
}

// Restart is what a restart of the switch does: flows, groups, meters and
// connections are forgotten, ports stay.
func (f *Fake) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flows, f.tables = map[openflow.FlowKey]*fakeFlow{}, nil
	f.groups, f.meters = map[uint32]openflow.Group{}, map[uint32]*fakeMeter{}
	f.conns = newConntrack()
	f.connected = true
	f.connects++
	signal(f.reconnected)
}

// Disconnect makes calls fail until Reconnect or Restart.
func (f *Fake) Disconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connected = false
}

// Reconnect ends a Disconnect; the bridge still holds what it held.
func (f *Fake) Reconnect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connected = true
	f.connects++
	signal(f.reconnected)
}

// Name is the bridge's name.
func (f *Fake) Name() string { return f.cfg.Name }

// Reconnected is as Bridge.Reconnected.
func (f *Fake) Reconnected() <-chan struct{} { return f.reconnected }

// Connected is as Bridge.Connected.
func (f *Fake) Connected() (bool, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.connected, f.connects
}

// Apply is as Bridge.Apply.
func (f *Fake) Apply(_ context.Context, c Change) error {
	if err := c.check(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return ErrDisconnected
	}
	for _, m := range c.PutMeters {
		if m.ID == 0 || m.ID > 0xffff0000 {
			return &ChangeError{"meter " + m.String(), openflow.ErrInvalidMeter}
		}
		if have := f.meters[m.ID]; have != nil {
			have.Meter, have.last = m, time.Time{}
		} else {
			f.meters[m.ID] = &fakeMeter{Meter: m, stats: openflow.MeterStats{ID: m.ID}, born: time.Now()}
		}
	}
	var done undo
	for i := range c.bundled() {
		if err := f.applyItemLocked(&c, i, &done); err != nil {
			done.revert()
			return &ChangeError{shorten(c.itemText(i)), err}
		}
	}
	for _, id := range c.DeleteMeters {
		delete(f.meters, id)
		f.deleteReferringLocked(func(a openflow.Action) bool {
			return a == openflow.MeterBy(id) // a Controller may name a meter that is not there
		}, &done)
	}
	return nil
}

// undo is how to take back what was done, last first.
type undo []func()

func (u undo) revert() {
	for _, f := range slices.Backward(u) {
		f()
	}
}

func (f *Fake) applyItemLocked(c *Change, i int, done *undo) error {
	if i < len(c.PutGroups) {
		return f.putGroupLocked(c.PutGroups[i], done)
	}
	if i -= len(c.PutGroups); i < c.Upserts() {
		return f.putFlowLocked(c.upsert(i), done)
	}
	if i -= c.Upserts(); i < len(c.Delete) {
		f.deleteFlowLocked(c.Delete[i], done)
		return nil
	}
	id := c.DeleteGroups[i-len(c.Delete)]
	if g, ok := f.groups[id]; ok {
		delete(f.groups, id)
		*done = append(*done, func() { f.groups[id] = g })
		f.deleteReferringLocked(func(a openflow.Action) bool { return a == openflow.ToGroup(id) }, done)
	}
	return nil
}

func (f *Fake) putGroupLocked(g openflow.Group, done *undo) error {
	if g.Type > openflow.GroupIndirect {
		return errBadGroupType
	}
	old, was := f.groups[g.ID]
	g.Buckets = slices.Clone(g.Buckets)
	f.groups[g.ID] = g
	*done = append(*done, func() {
		if was {
			f.groups[g.ID] = old
		} else {
			delete(f.groups, g.ID)
		}
	})
	return nil
}

func (f *Fake) putFlowLocked(flow openflow.Flow, done *undo) error {
	next := &fakeFlow{flow: flow, conditions: flow.Match.Fields(), steps: flow.Actions.List()}
	if err := f.checkActionsLocked(next.steps, next.conditions, flow.Table); err != nil {
		return err
	}
	_, next.soft = first(next.steps).(openflow.Conjunction)
	next.flow.Packets, next.flow.Bytes, next.born = 0, 0, time.Now()
	next.renewed, next.used = next.born, next.born
	key := flow.Key()
	old := f.flows[key]
	if old != nil { // replaced: the counters stay, and the age does not
		next.flow.Packets, next.flow.Bytes = old.flow.Packets, old.flow.Bytes
	}
	f.flows[key], f.tables = next, nil
	*done = append(*done, func() {
		f.tables = nil
		if old != nil {
			f.flows[key] = old
		} else {
			delete(f.flows, key)
		}
	})
	return nil
}

func first(steps []openflow.Action) openflow.Action {
	if len(steps) == 0 {
		return nil
	}
	return steps[0]
}

func (f *Fake) deleteFlowLocked(key openflow.FlowKey, done *undo) {
	old := f.flows[key]
	if old == nil {
		return
	}
	delete(f.flows, key)
	f.tables = nil
	*done = append(*done, func() { f.flows[key], f.tables = old, nil })
}

// deleteReferringLocked removes the flows with a step of a kind.
func (f *Fake) deleteReferringLocked(refers func(openflow.Action) bool, done *undo) {
	for key, flow := range f.flows {
		if slices.ContainsFunc(flow.steps, refers) {
			f.deleteFlowLocked(key, done)
		}
	}
}

// Errors of the switch that only the Fake has to name.
var (
	errBadGoto         = &openflow.Error{Type: 3, Code: 2}
	errInconsistent    = &openflow.Error{Type: 2, Code: 10}
	errBadConjunction  = &openflow.Error{Type: 0xffff, Code: 15}
	errBadGroupType    = &openflow.Error{Type: 6, Code: 10}
	errUnknownArgument = &openflow.Error{Type: 2, Code: 5}
)

// checkActionsLocked refuses what the switch refuses in a flow. In buckets it
// refuses nothing of this.
func (f *Fake) checkActionsLocked(steps []openflow.Action, match []openflow.Field, table uint8) error {
	family := uint64(0)
	for _, c := range match {
		if c.ID == openflow.FieldEthType {
			family = c.Value.Uint64()
		}
	}
	isIP := family == openflow.EtherIPv4 || family == openflow.EtherIPv6
	conjunctions := 0
	for _, a := range steps {
		switch a := a.(type) {
		case openflow.Goto:
			if uint8(a) <= table {
				return errBadGoto
			}
		case openflow.ToGroup:
			if _, ok := f.groups[uint32(a)]; !ok {
				return openflow.ErrBadOutGroup
			}
		case openflow.MeterBy:
			if f.meters[uint32(a)] == nil {
				return openflow.ErrInvalidMeter
			}
		case openflow.CT:
			if !isIP {
				return errInconsistent
			}
		case openflow.SetField:
			if !present(a.ID, match) {
				return errInconsistent
			}
		case openflow.Move:
			if !present(a.From.Field, match) || !present(a.To.Field, match) {
				return errInconsistent
			}
		case openflow.Learn:
			if err := checkLearn(&a, match); err != nil {
				return err
			}
		case openflow.Conjunction:
			conjunctions++
		case openflow.Foreign:
			return errUnknownArgument
		}
	}
	if conjunctions > 0 && conjunctions < len(steps) {
		return errBadConjunction
	}
	return nil
}

// Read is as Bridge.Read.
func (f *Fake) Read(ctx context.Context) (State, error) {
	return f.ReadBut(ctx, func(openflow.Flow) bool { return false })
}

// ReadBut is as Bridge.ReadBut.
func (f *Fake) ReadBut(_ context.Context, except func(openflow.Flow) bool) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return State{}, ErrDisconnected
	}
	state := State{Content: NewContent(), Foreign: map[openflow.FlowKey]openflow.Flow{}}
	for key, flow := range f.flows {
		switch read := flow.read(); {
		case except(read):
		case f.cfg.Mark.Ours(read.Cookie):
			state.Flows[key] = read
		default:
			state.Foreign[key] = read
		}
	}
	maps.Copy(state.Groups, f.groups)
	for id, m := range f.meters {
		state.Meters[id] = m.Meter
	}
	return state, nil
}

// ReadShared is as Bridge.ReadShared.
func (f *Fake) ReadShared(ctx context.Context) (Content, error) {
	state, err := f.Read(ctx)
	clear(state.Flows)
	return state.Content, err
}

// Counters is as Bridge.Counters.
func (f *Fake) Counters(_ context.Context, filter openflow.FlowFilter, read func(openflow.Flow)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return ErrDisconnected
	}
	for _, flow := range f.flows {
		if filter.Table != openflow.AllTables && filter.Table != flow.flow.Table || flow.flow.Cookie&filter.CookieMask != filter.Cookie&filter.CookieMask {
			continue
		}
		read(flow.read())
	}
	return nil
}

// FlowCounts is as Bridge.FlowCounts.
func (f *Fake) FlowCounts(context.Context) (map[uint8]int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return nil, ErrDisconnected
	}
	out := make(map[uint8]int)
	for _, flow := range f.flows {
		out[flow.flow.Table]++
	}
	return out, nil
}

// read is the flow as the switch reads it back.
func (f *fakeFlow) read() openflow.Flow {
	out := f.flow
	out.Age = time.Since(f.born)
	return out
}

// MeterCounters is as Bridge.MeterCounters.
func (f *Fake) MeterCounters(context.Context) ([]openflow.MeterStats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return nil, ErrDisconnected
	}
	var out []openflow.MeterStats
	for _, m := range f.meters {
		stats := m.stats
		stats.Age = time.Since(m.born)
		out = append(out, stats)
	}
	return out, nil
}

// MeterLimit is as Bridge.MeterLimit.
func (f *Fake) MeterLimit(context.Context) (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return 0, ErrDisconnected
	}
	return 1 << 18, nil
}

// Deliver is as Bridge.Deliver.
func (f *Fake) Deliver(id uint16, take func(openflow.PacketIn)) {
	if l := f.listeners[id]; l != nil {
		l.deliver = take
	}
}

// PacketIns is as Bridge.PacketIns.
func (f *Fake) PacketIns(id uint16) <-chan openflow.PacketIn {
	if l := f.listeners[id]; l != nil {
		return l.packets
	}
	return nil
}

// PacketInStats is as Bridge.PacketInStats.
func (f *Fake) PacketInStats(id uint16) PacketInStats {
	if l := f.listeners[id]; l != nil {
		return l.stats()
	}
	return PacketInStats{}
}

// PacketOut is as Bridge.PacketOut: the packet takes the given steps. Sent lists
// what came.
func (f *Fake) PacketOut(_ context.Context, out openflow.PacketOut) error {
	p, err := ParseFrame(out.Packet)
	if err != nil {
		return fmt.Errorf("packet-out: %w", err)
	}
	p.InPort = out.InPort
	if p.InPort == 0 {
		p.InPort = openflow.PortController
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return ErrDisconnected
	}
	w := f.newWalkLocked(WalkOptions{})
	w.packetOut = true
	at := w.begin(p)
	w.execute(at, out.Actions.List(), nil)
	w.drain()
	w.deliver()
	f.sent = append(f.sent, Sent{out, w.result})
	return nil
}

// Sent are the packets that PacketOut was given, in order.
func (f *Fake) Sent() []Sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.sent)
}
