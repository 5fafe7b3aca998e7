package bridge

import "github.com/weirnet/weir/shim/bridge/openflow"

// flowMonitor is the id of our monitor on its connection.
const flowMonitor = 1

// Disturbed signals that others may have changed flows: read back. Changes of ours are
// told too briefly to count, and those that go by themselves (Config.Passing) are left
// out. A switch that knows no such monitors (before Open vSwitch 2.17) signals nothing,
// and none does for groups and meters. Signals that nobody took are one.
func (b *Bridge) Disturbed() <-chan struct{} { return b.disturbed }

// monitor has the session told of what others change. It must be the one that we change
// flows by.
func (b *Bridge) monitor(s *session) error {
	if err := b.prepare(s); err != nil {
		return err
	}
	refused := s.other
	s.other = func(m openflow.Message) {
		if m.Type != openflow.TypeMultipartReply {
			refused(m)
			return
		}
		p, err := openflow.DecodePart(m.Body)
		if err != nil {
			return
		}
		updates, _, err := openflow.DecodeFlowUpdates(p)
		if err != nil || b.disturb(updates) {
			signal(b.disturbed)
		}
	}
	return s.send(openflow.AppendFlowMonitor(nil, 0, flowMonitor))
}

// disturb says whether updates tell of others' doing.
func (b *Bridge) disturb(updates []openflow.FlowUpdate) bool {
	for _, u := range updates {
		passes := u.Event < openflow.FlowsOwn && b.cfg.Passing != nil && b.cfg.Passing(u.Cookie)
		if u.Event != openflow.FlowsOwn && !passes {
			return true
		}
	}
	return false
}
