package bridge

import (
	"time"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// learn notes a flow that a packet makes. It is there once the packet's way up to
// the next recirculation was worked out, not for what follows on that way.
func (w *walk) learn(s *state, a *openflow.Learn) {
	if w.dry {
		return
	}
	var fields []openflow.Field
	var steps []openflow.Action
	for i := range a.Specs {
		spec := &a.Specs[i]
		v := spec.Value
		if spec.From.Len != 0 {
			v = s.bits(spec.From)
		}
		id, v, mask := spec.To.Field, v.Shift(int(spec.To.Offset)), openflow.Ones(int(spec.To.Offset), int(spec.To.Len))
		if spec.Load {
			steps = append(steps, openflow.SetMasked(id, v, mask))
		} else {
			fields = append(fields, openflow.Masked(id, v, mask))
		}
	}
	match, err := openflow.MakeMatch(fields...)
	if err != nil {
		return // conditions that contradict each other make no flow
	}
	flow := openflow.Flow{Table: a.Table, Priority: a.Priority, Match: match, Cookie: a.Cookie, Actions: openflow.NewActions(steps...),
		IdleTimeout: a.IdleTimeout, HardTimeout: a.HardTimeout}
	limit := a.Limit
	if w.packetOut { // as Open vSwitch 3.1 has it
		limit = 0
	}
	w.learned = append(w.learned, func() { w.fake.putLearnedLocked(flow, limit) })
}

// settleLearned puts what the packet has made until now.
func (w *walk) settleLearned() {
	for _, put := range w.learned {
		put()
	}
	w.learned = nil
}

// putLearnedLocked adds a learned flow, or has its time begin anew; where there
// are as many as the limit, not even that.
func (f *Fake) putLearnedLocked(flow openflow.Flow, limit uint32) {
	if limit != 0 {
		for _, other := range f.flows {
			if other.flow.Table == flow.Table && other.flow.Cookie == flow.Cookie {
				limit--
			}
			if limit == 0 {
				return
			}
		}
	}
	if old := f.flows[flow.Key()]; old != nil && old.flow.Same(flow) {
		old.used, old.renewed = time.Now(), time.Now()
		return
	}
	var done undo
	_ = f.putFlowLocked(flow, &done) // what it matches and does was checked with the action
}

// PassTime has flows whose time is over go, as if so much more had passed. Without
// it, none go.
func (f *Fake) PassTime(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	over := func(seconds uint16, since time.Time) bool {
		return seconds != 0 && time.Since(since) >= time.Duration(seconds)*time.Second
	}
	for key, flow := range f.flows {
		flow.born, flow.used, flow.renewed = flow.born.Add(-d), flow.used.Add(-d), flow.renewed.Add(-d)
		if over(flow.flow.IdleTimeout, flow.used) || over(flow.flow.HardTimeout, flow.renewed) {
			delete(f.flows, key)
			f.tables = nil
		}
	}
}

// checkLearn refuses what the switch refuses in a learn action: fields that need
// what the flow does not match, or what the learned flow does not match before.
func checkLearn(a *openflow.Learn, match []openflow.Field) error {
	var learned []openflow.Field
	for i := range a.Specs {
		spec := &a.Specs[i]
		if spec.From.Len != 0 && !present(spec.From.Field, match) {
			return errInconsistent
		}
		if !present(spec.To.Field, learned) {
			return errInconsistent
		}
		if !spec.Load && spec.From.Len == 0 {
			learned = append(learned, openflow.Masked(spec.To.Field, spec.Value.Shift(int(spec.To.Offset)), openflow.Ones(int(spec.To.Offset), int(spec.To.Len))))
		}
	}
	return nil
}

// present tells whether packets that match have a field: whether a match of it
// adds nothing but itself.
func present(id openflow.FieldID, match []openflow.Field) bool {
	if id >= openflow.FieldTunID && id < openflow.FieldCTProto { // of every packet
		return true
	}
	if _, ok := id.Registers(); ok {
		return true
	}
	with, err := openflow.MakeMatch(append(match[:len(match):len(match)], openflow.Masked(id, openflow.Value{}, openflow.Value{}))...)
	if err != nil {
		return false
	}
	without, err := openflow.MakeMatch(match...)
	return err == nil && with == without
}
