package packetlog

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage/faultpoint"
)

// Meaning is what the pipeline says that a reported packet means.
type Meaning struct {
	Direction policyv1.Direction
	Action    policyv1.Action
	Table     string
	Policies  []*policyv1.PolicyRef
	Isolation bool
	Rule      string
	LogLabel  string
	Priority  *uint32
	AppliedTo string
	Peer      string
	Staged    *auditv1.StagedOutcome // Nil: the verdict would be the same.
	Service   string
	Unlogged  bool // On record for Staged alone.
	Observed  bool // On record as a sample, whatever policies say.
	Spoof     bool // Dropped because it is not from who it says.
}

// Key tells flows' reports apart before their meaning is worked out.
type Key struct {
	Table           uint8
	Cookie          uint64
	InPort, OutPort uint32
	Decision        uint32    // Of an isolation: which.
	Mark            [3]uint32 // What staged policies would have decided, and by what.
	Service         uint32    // Id of the Service's port that it was for. Zero: none.
	Revision        uint16    // Of the rules that judged it. Zero: not known.
	Unlogged        bool
	Class           uint32 // Those of one class have one share of the log: see fair.
}

// Window is how long identical packets gather into one event.
const Window = 100 * time.Millisecond

// DefaultCapacity of a Log, in events.
const DefaultCapacity = 65536

// Log gathers events until the Reporter takes them. It is safe for concurrent
// use.
type Log struct {
	capacity int
	wake     chan struct{}

	mu      sync.Mutex // Guards what follows.
	pending map[identity]*auditv1.PacketEvent
	order   []identity // Of pending, oldest first.
	queue   *fair[*auditv1.PacketEvent]
	losses  losses // Not taken yet.
	dropped uint64 // Packets dropped in all.
	packets uint64 // Packets taken in all.
}

// identity is all that two packets of one event share.
type identity struct {
	key Key
	pkt Packet
}

// NewLog returns an empty log. A capacity of zero is DefaultCapacity.
func NewLog(capacity int) *Log {
	if capacity <= 0 {
		capacity = DefaultCapacity
	}
	return &Log{capacity: capacity, wake: make(chan struct{}, 1), pending: make(map[identity]*auditv1.PacketEvent), queue: newFair[*auditv1.PacketEvent](), losses: newLosses()}
}

// Add takes one reported packet. Its meaning is asked for only where it begins
// an event; a packet without meaning any more, since its flow is going, is
// recorded as it is, with the reason "unattributed".
func (l *Log) Add(now time.Time, key Key, pkt Packet, meaning func() (Meaning, bool)) {
	id := identity{key, pkt}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.packets++
	if e := l.pending[id]; e != nil {
		e.Count++
		e.Last = timestamppb.New(now)
		return
	}
	e := &auditv1.PacketEvent{First: timestamppb.New(now), Count: 1,
		SourceIp: pkt.Src.AsSlice(), DestinationIp: pkt.Dst.AsSlice(), Protocol: uint32(pkt.Proto), Length: pkt.Length, TcpFlags: uint32(pkt.TCPFlags)}
	e.SourceMac, e.ClaimedMac, e.EtherType = hardware(pkt.Forged.SourceMAC), hardware(pkt.Forged.ClaimedMAC), uint32(pkt.Forged.EtherType)
	e.TargetIp = pkt.Forged.Target.AsSlice()
	if pkt.HasPorts {
		src, dst := uint32(pkt.SrcPort), uint32(pkt.DstPort)
		e.SourcePort, e.DestinationPort = &src, &dst
	}
	if pkt.HasICMP {
		typ, code := uint32(pkt.ICMPType), uint32(pkt.ICMPCode)
		e.IcmpType, e.IcmpCode = &typ, &code
	}
	m, known := meaning()
	e.Direction, e.Action, e.Table, e.Policies, e.Isolation = m.Direction, m.Action, m.Table, m.Policies, m.Isolation
	e.Rule, e.LogLabel, e.OpenflowPriority, e.AppliedTo, e.Peer = m.Rule, m.LogLabel, m.Priority, m.AppliedTo, m.Peer
	e.Staged, e.Service = m.Staged, m.Service
	switch {
	case !known:
		e.Reason = "unattributed"
	case m.Spoof:
		e.Reason = "spoof"
	case m.Observed:
		e.Reason = "observed"
	case m.Unlogged:
		e.Reason = "staged"
	case m.Isolation:
		e.Reason = "isolation"
	default:
		e.Reason = "rule"
	}
	l.pending[id] = e
	l.order = append(l.order, id)
	if len(l.pending) >= l.capacity {
		l.flushLocked(now, true)
	}
}

// hardware is an address as it goes over the wire: nothing where it is zero.
func hardware(mac [6]byte) []byte {
	if mac == [6]byte{} {
		return nil
	}
	return mac[:]
}

// Lose takes a loss that was found elsewhere, of no class that is reckoned.
func (l *Log) Lose(e *auditv1.LossEvent) { l.lose(e) }

// LoseOf takes a loss of a class: reports that its meter held back, or others.
func (l *Log) LoseOf(class uint32, overRate bool, e *auditv1.LossEvent) {
	l.lose(e, share{class, overRate, e.GetCount()})
}

func (l *Log) lose(e *auditv1.LossEvent, of ...share) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losses.add(e, of...)
	l.signal()
}

// Holds says whether something of a class is yet to be taken.
func (l *Log) Holds(class uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue.lines[class] != nil || slices.ContainsFunc(l.order, func(id identity) bool { return id.key.Class == class }) || l.losses.concern(class)
}

// Flush makes what has gathered for a Window ready to be taken; it is called
// a few times a Window.
func (l *Log) Flush(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushLocked(now, false)
}

func (l *Log) flushLocked(now time.Time, all bool) {
	n := 0
	for ; n < len(l.order); n++ {
		e := l.pending[l.order[n]]
		// One of the future is from before the clock was set back: it waits for no hour.
		if age := now.Sub(e.First.AsTime()); !all && age >= 0 && age < Window {
			break
		}
		delete(l.pending, l.order[n])
		l.queue.push(l.order[n].key.Class, e)
	}
	if n == 0 {
		return
	}
	l.order = slices.Delete(l.order, 0, n)
	faultpoint.Reach("shim.log.queued")
	l.boundLocked()
	l.signal()
}

// boundLocked drops packets of a queue that is too long: the oldest of the class
// that has most.
func (l *Log) boundLocked() {
	for l.queue.n > l.capacity {
		class, p, _ := l.queue.shed()
		l.dropped += p.Count
		e := &auditv1.LossEvent{From: p.First, To: timestamppb.New(lastOf(p)), Count: p.Count, Stage: auditv1.LossStage_LOSS_STAGE_QUEUE, Direction: p.Direction}
		if e.Rule = p.Rule; p.Reason != "rule" && p.Reason != "staged" && p.Reason != "unattributed" {
			e.Reason = p.Reason
		}
		if len(p.Policies) == 1 {
			e.Policy = p.Policies[0]
		} else {
			e.Rule = ""
		}
		l.losses.add(e, share{class, false, p.Count})
	}
}

func lastOf(p *auditv1.PacketEvent) time.Time {
	if p.Last != nil {
		return p.Last.AsTime()
	}
	return p.First.AsTime()
}

func (l *Log) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Wake has a token when there may be something to Take.
func (l *Log) Wake() <-chan struct{} { return l.wake }

// logged is an event with what it says of the classes.
type logged struct {
	event  *auditv1.Event
	shares []share
}

// Take removes up to n events: what was lost, and then the oldest packets.
func (l *Log) Take(n int) []*auditv1.Event { return events(l.take(n)) }

func events(list []logged) []*auditv1.Event {
	var out []*auditv1.Event
	for i := range list {
		out = append(out, list[i].event)
	}
	return out
}

func (l *Log) take(n int) []logged {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.losses.take(n)
	packets := min(n-len(out), l.queue.n)
	shares := make([]share, packets)
	for i := range packets {
		class, p, _ := l.queue.pop()
		shares[i] = share{class, false, p.Count}
		out = append(out, logged{&auditv1.Event{Kind: &auditv1.Event_Packet{Packet: p}}, shares[i : i+1 : i+1]})
	}
	if l.losses.n() > 0 || l.queue.n > 0 {
		l.signal()
	}
	return out
}

// Counts are what went through the log in all: packets taken, and of these
// dropped because the queue was full.
func (l *Log) Counts() (packets, dropped uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.packets, l.dropped
}
