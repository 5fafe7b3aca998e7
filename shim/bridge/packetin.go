package bridge

import (
	"sync/atomic"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// PacketInStats count the packet-ins of one controller id.
type PacketInStats struct {
	Received uint64 // that the switch delivered
	Dropped  uint64 // of these, because the queue was full
	Bad      uint64 // of these, because they could not be read
}

// listener receives the packet-ins of one controller id, over all connections.
type listener struct {
	id      uint16
	packets chan openflow.PacketIn  // Nil: deliver takes them.
	deliver func(openflow.PacketIn) // Nil: they are queued.

	received, dropped, bad atomic.Uint64
}

func newListener(c Controller) *listener {
	n := c.Queue
	if n <= 0 {
		n = 4096
	}
	return &listener{id: c.ID, packets: make(chan openflow.PacketIn, n)}
}

// attach makes the session one that packet-ins of the id come to.
func (l *listener) attach(s *session) error {
	s.other = l.take
	b := openflow.AppendSetControllerID(nil, 0, l.id)
	b = openflow.AppendSetPacketInFormat(b, 0)
	// Last, since packet-ins begin with it.
	b = openflow.AppendSetConfig(b, 0, openflow.MaxMessage)
	return s.send(b)
}

func (l *listener) take(m openflow.Message) {
	if !openflow.IsPacketIn(m) {
		return
	}
	p, err := openflow.DecodePacketIn(m.Body)
	if err != nil {
		l.bad.Add(1)
		l.received.Add(1)
		return
	}
	l.put(p)
}

// put queues a packet-in. It is counted as received when what became of it
// stands in the other counters, so that these are never behind.
func (l *listener) put(p openflow.PacketIn) {
	if l.deliver != nil {
		l.deliver(p)
		l.received.Add(1)
		return
	}
	select {
	case l.packets <- p:
	default:
		l.dropped.Add(1)
	}
	l.received.Add(1)
}

func (l *listener) stats() PacketInStats {
	received := l.received.Load() // First: the others are at least as new.
	return PacketInStats{received, l.dropped.Load(), l.bad.Load()}
}

// PacketIns are the packets that flows sent to a controller id of the Config;
// nil if it is not one of these, or has its packets delivered. The channel is never
// closed.
func (b *Bridge) PacketIns(id uint16) <-chan openflow.PacketIn {
	if l := b.listeners[id]; l != nil {
		return l.packets
	}
	return nil
}

// Deliver has the packets that flows send to a controller id of the Config
// handed to take, by the goroutine that reads them, in place of PacketIns. It must
// not wait for anything, and is set before Run.
func (b *Bridge) Deliver(id uint16, take func(openflow.PacketIn)) {
	if l := b.listeners[id]; l != nil {
		l.deliver, l.packets = take, nil
	}
}

// PacketInStats are the counters of a controller id of the Config.
func (b *Bridge) PacketInStats(id uint16) PacketInStats {
	if l := b.listeners[id]; l != nil {
		return l.stats()
	}
	return PacketInStats{}
}

// Resume lets a packet go on that a Controller action paused.
func (b *Bridge) Resume(id uint16, p *openflow.PacketIn) error {
	s := b.session(role(id))
	if s == nil || id == 0 {
		return ErrDisconnected
	}
	if err := s.send(openflow.AppendResume(nil, 0, p)); err != nil {
		return ErrDisconnected
	}
	return nil
}
