package shim

import (
	"context"
	"net/netip"
	"sync"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/igmp"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
)

// What becomes of messages that Pods send by IGMP, and of queries to them: values of
// a metric's label.
const (
	castTaken    = "taken"
	castDenied   = "denied"      // By a rule, for a group at least.
	castUnread   = "unread"      // It says nothing, or nothing whole.
	castRoomless = "roomless"    // There was no room for a group.
	castOver     = "over-budget" // The Pod, or all together, said too much.
	querySent    = "sent"
	queryDenied  = "denied"
	queryLost    = "lost"
)

// Messages gather for a while, and so many at the most, before the loop takes them
// in: what a Pod does by turns costs no bundle each.
const (
	gatherMessages = 50 * time.Millisecond
	gatherMost     = 512
)

// multicast reads what Pods say by IGMP. It has a goroutine and a connection of its
// own; the loop judges what they say, knows the members and sends the queries.
type multicast struct {
	shim *Shim

	mu     sync.Mutex // Guards what follows.
	budget igmp.Budget
	fresh  []castMessage // For the loop.
}

// castMessage is a message and the port that it came from.
type castMessage struct {
	port uint32
	igmp.Message
}

func newMulticast(s *Shim) *multicast { return &multicast{shim: s} }

// run reads messages, and has the loop take its turns, until the context ends.
func (m *multicast) run(ctx context.Context, packets <-chan openflow.PacketIn) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	gather := time.NewTimer(0)
	defer gather.Stop()
	var turns chan<- func(context.Context) // Nil: nothing is to be done.
	waits := true
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p := <-packets:
			if m.packetIn(&p, time.Now()) && !waits {
				gather.Reset(gatherMessages)
				waits = true
			}
		case <-gather.C:
			turns, waits = m.shim.turns, false
		case <-second.C:
			turns = m.shim.turns
		case turns <- m.shim.loop.takeMulticast:
			turns = nil
		}
	}
}

// packetIn reads a message, and says whether there is one for the loop.
func (m *multicast) packetIn(p *openflow.PacketIn, now time.Time) bool {
	port := p.Metadata.InPort()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.budget.Take(now, port) || len(m.fresh) >= gatherMost {
		m.count(castOver)
		return false
	}
	msg, err := igmp.Parse(p.Packet)
	if err != nil {
		m.count(castUnread)
		return false
	}
	m.fresh = append(m.fresh, castMessage{port, msg})
	return true
}

// fetch are the messages since it was called last.
func (m *multicast) fetch() []castMessage {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.fresh
	m.fresh = nil
	return list
}

func (m *multicast) count(outcome string) { m.shim.metrics.igmp.WithLabelValues(outcome).Inc() }

// casts is what the loop knows of groups.
type casts struct {
	members igmp.Members
	asked   map[igmp.Port]asked
	kept    time.Time // When those whose time was over went last.
}

// asked is how often a port was asked, and when it is to be asked again.
type asked struct {
	times int
	next  time.Time
}

// takeMulticast takes in what Pods said, lets go of members whose time is over, whose
// port is gone or that rules deny by now, and asks the ports that are to be asked.
func (l *loop) takeMulticast(ctx context.Context) {
	list := l.shim.multicast.fetch()
	if l.compiler == nil {
		return
	}
	now := time.Now()
	for _, m := range list {
		l.shim.multicast.count(l.hearIGMP(now, m))
	}
	if now.Sub(l.casts.kept) >= time.Second {
		l.casts.kept = now
		l.casts.members.Keep(now, l.staysMember)
		l.askMembers(ctx, now)
	}
	l.bringMembers(ctx)
}

// hearIGMP takes in a message and says what became of it.
func (l *loop) hearIGMP(now time.Time, m castMessage) string {
	port, open := l.compiler.CastPort(m.port)
	if !open {
		return castDenied
	}
	outcome := castTaken
	for _, r := range m.Records {
		at := igmp.Member{Group: r.Group, Port: port}
		if m.Type != igmp.Leave && !l.judgeIGMP(now, policyv1.Direction_DIRECTION_EGRESS, port, m.Message, r.Group) {
			outcome = castDenied
			l.casts.members.Leave(at)
			continue
		}
		switch {
		case r.Leaves:
			l.casts.members.Leave(at)
		case r.Joins:
			if _, err := l.casts.members.Join(now, at, m.Type); err != nil {
				outcome = castRoomless
			}
		}
	}
	return outcome
}

// judgeIGMP says whether a message about a group may pass, and records it where it is
// to be recorded.
func (l *loop) judgeIGMP(now time.Time, dir policyv1.Direction, port igmp.Port, m igmp.Message, group netip.Addr) bool {
	allowed, a, recorded := l.compiler.JudgeIGMP(dir, port.Number, m.Type, group)
	if recorded {
		pkt := packetlog.Packet{Src: m.Source, Dst: group, Proto: igmp.Protocol, Length: uint32(m.Length), HasICMP: true, ICMPType: m.Type}
		key := packetlog.Key{InPort: port.Number, Revision: uint16(l.compiler.Revision()), Unlogged: a.Unlogged}
		l.shim.log.Add(now, key, pkt, func() (packetlog.Meaning, bool) { return packetlog.Meaning(a), true })
	}
	return allowed
}

// staysMember says whether a member may still be one.
func (l *loop) staysMember(m igmp.Member, typ uint8) bool {
	if port, open := l.compiler.CastPort(m.Port.Number); !open || port != m.Port {
		return false
	}
	allowed, _, _ := l.compiler.JudgeIGMP(policyv1.Direction_DIRECTION_EGRESS, m.Port.Number, typ, m.Group)
	return allowed
}

// bringMembers puts in force who is a member.
func (l *loop) bringMembers(ctx context.Context) {
	if !l.compiler.SetMembers(l.casts.members.All()) {
		return
	}
	change, err := l.compiler.Update(nil, nil, l.usable()) // With no policies touched it refuses none.
	if err == nil {
		err = l.tell(ctx, change)
	}
	if err != nil {
		l.failed(err)
	}
}

// askMembers sends the queries that are due: to a port twice when it opens, and then
// now and again.
func (l *loop) askMembers(ctx context.Context, now time.Time) {
	ports := l.compiler.CastPorts()
	former := l.casts.asked
	l.casts.asked = make(map[igmp.Port]asked, len(ports))
	for _, port := range ports {
		a := former[port]
		if !now.Before(a.next) {
			l.shim.metrics.queries.WithLabelValues(l.ask(ctx, now, port)).Inc()
			a.times++
			if a.next = now.Add(igmp.Interval); a.times == 1 {
				a.next = now.Add(igmp.Startup)
			}
		}
		l.casts.asked[port] = a
	}
}

// ask sends a port a query, unless its ingress rules deny that, and says what became
// of it.
func (l *loop) ask(ctx context.Context, now time.Time, port igmp.Port) string {
	frame := igmp.AppendQuery(nil, l.compiler.Gateway(), uint8(igmp.Interval/time.Second))
	query := igmp.Message{Type: igmp.Query, Source: netip.IPv4Unspecified(), Length: igmp.QueryLength}
	if !l.judgeIGMP(now, policyv1.Direction_DIRECTION_INGRESS, port, query, igmp.AllHosts) {
		return queryDenied
	}
	if err := l.shim.bridge.PacketOut(ctx, openflow.PacketOut{Actions: pipeline.Ask(port.Number), Packet: frame}); err != nil {
		return queryLost
	}
	return querySent
}
