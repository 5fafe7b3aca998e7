package shim

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/dns"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage/faultpoint"
)

// holdAnswers is how long a DNS answer is held at the most, and heldMost how many
// are at a time. Past either an answer goes on, and is learned as soon as may be.
const (
	holdAnswers = 100 * time.Millisecond
	heldMost    = 1024
)

// What becomes of DNS answers: values of a metric's label.
const (
	nameLearned  = "learned"  // In force before the Pod had it.
	nameLate     = "late"     // The Pod had it first.
	nameUnheld   = "unheld"   // It was not held, since many are.
	nameUnread   = "unread"   // Nothing could be learned of it, or of a query.
	nameRoomless = "roomless" // There was no room for the host.
	nameLost     = "lost"     // It could not be delivered.
)

// names has the answers that Pods get from DNS servers learned before the Pods
// get them. It has a goroutine and a connection of its own; what is learned is put
// in force by the loop.
type names struct {
	shim  *Shim
	talks *dns.Talks

	mu    sync.Mutex // Guards what follows.
	fresh []heard    // For the loop.
	asked bool       // The loop was asked for a turn.
	last  map[connection]chan struct{}
	held  int
}

// heard is what an answer said, and who waits until it is in force.
type heard struct {
	list []dns.Heard
	done chan struct{}
}

// connection is one way of a TCP connection, whose segments stay in order.
type connection struct {
	port     uint32
	from, to netip.AddrPort
}

func newNames(s *Shim) *names {
	return &names{shim: s, talks: dns.NewTalks(), last: make(map[connection]chan struct{})}
}

// run looks at DNS packets until the context ends.
func (n *names) run(ctx context.Context, packets <-chan openflow.PacketIn) error {
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-minute.C:
			n.talks.Expire(now)
		case p := <-packets:
			n.packetIn(ctx, p, time.Now())
		}
	}
}

// packetIn takes in a query, or an answer that is held.
func (n *names) packetIn(ctx context.Context, p openflow.PacketIn, now time.Time) {
	m := n.shim.metrics
	if pipeline.Queries(p.UserData) {
		if err := n.talks.Query(now, p.Metadata.InPort(), p.Packet); err != nil {
			m.names.WithLabelValues(nameUnread).Inc()
		}
		return
	}
	list, err := n.talks.Answer(now, p.Metadata.Reg(1), p.Packet)
	if err != nil {
		m.names.WithLabelValues(nameUnread).Inc()
	}
	h := heard{list, make(chan struct{})}
	if len(list) == 0 {
		close(h.done)
	}
	before, after := n.order(&p)
	waits := n.take(ctx, h)
	if !waits {
		h.done = make(chan struct{})
		close(h.done)
	}
	select {
	case <-before:
		select {
		case <-h.done: // There is nothing to wait for.
			n.deliver(ctx, &p, after)
			return
		default:
		}
	default:
	}
	go func() {
		limit := time.NewTimer(holdAnswers)
		defer limit.Stop()
		select {
		case <-h.done:
			m.names.WithLabelValues(nameLearned).Inc()
		case <-limit.C:
			m.names.WithLabelValues(nameLate).Inc()
		case <-ctx.Done():
		}
		<-before
		n.deliver(context.WithoutCancel(ctx), &p, after)
		if waits {
			n.mu.Lock()
			n.held--
			n.mu.Unlock()
		}
	}()
}

// take hands to the loop what was heard, and says whether there is room to wait
// for it.
func (n *names) take(ctx context.Context, h heard) (waits bool) {
	if len(h.list) == 0 {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fresh = append(n.fresh, h)
	if !n.asked {
		n.asked = true
		go func() {
			select {
			case n.shim.turns <- n.shim.loop.learnNames:
			case <-ctx.Done():
			}
		}()
	}
	if n.held >= heldMost {
		n.shim.metrics.names.WithLabelValues(nameUnheld).Inc()
		return false
	}
	n.held++
	return true
}

// fetch is what was heard since it was called last.
func (n *names) fetch() []heard {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.fresh
	n.fresh, n.asked = nil, false
	return list
}

// order says what has to be delivered before a packet, and what is to be closed
// after it. Datagrams wait for none.
func (n *names) order(p *openflow.PacketIn) (before <-chan struct{}, after func()) {
	none := make(chan struct{})
	close(none)
	from, to, tcp := dns.Ends(p.Packet)
	if !tcp {
		return none, func() {}
	}
	key := connection{p.Metadata.Reg(1), from, to}
	mine := make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	before = none
	if last := n.last[key]; last != nil {
		before = last
	}
	n.last[key] = mine
	return before, func() {
		close(mine)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.last[key] == mine {
			delete(n.last, key)
		}
	}
}

func (n *names) deliver(ctx context.Context, p *openflow.PacketIn, after func()) {
	defer after()
	if err := n.shim.bridge.PacketOut(ctx, openflow.PacketOut{Actions: pipeline.Deliver(p.Metadata), Packet: p.Packet}); err != nil {
		n.shim.metrics.names.WithLabelValues(nameLost).Inc()
	}
}

// learnNames puts in force what answers said since the last time.
func (l *loop) learnNames(ctx context.Context) {
	list := l.shim.names.fetch()
	var changes []dns.Change
	now := time.Now()
	for _, h := range list {
		for _, said := range h.list {
			more, err := l.cache.Learn(now, said)
			if err != nil {
				l.shim.metrics.names.WithLabelValues(nameRoomless).Inc()
			}
			changes = append(changes, more...)
		}
	}
	l.untold = l.untold || len(list) > 0
	l.bringNames(ctx, changes)
	faultpoint.Reach("shim.names.learned")
	for _, h := range list {
		close(h.done)
	}
}

// expireNames takes out the addresses whose time is over.
func (l *loop) expireNames(ctx context.Context, now time.Time) {
	gone := l.cache.Expire(now)
	l.untold = l.untold || len(gone) > 0
	l.bringNames(ctx, gone)
	l.tellNames()
	if l.compiler != nil {
		l.compiler.SetFull(l.cache.Full())
		l.setNames(ctx) // Of another compiler, maybe.
		l.lease(ctx, now)
	}
}

// bringNames puts in force what names stand for from now on.
func (l *loop) bringNames(ctx context.Context, changes []dns.Change) {
	if len(changes) == 0 {
		return
	}
	if l.compiler == nil {
		return // It begins with all.
	}
	l.warnOfServices(changes)
	l.compiler.SetNamed(named(changes))
	change, err := l.compiler.Update(nil, nil, l.usable()) // With no policies touched it refuses none.
	if err == nil {
		err = l.tell(ctx, change)
	}
	if err != nil {
		l.failed(err)
	}
}

// warnOfServices says, once each, which names stand for Services: they match nothing.
func (l *loop) warnOfServices(changes []dns.Change) {
	for _, c := range changes {
		service := l.compiler.ClusterIP(c.Addr)
		if said := l.services[c.Name]; c.Gone || service == "" || service == said {
			continue
		}
		l.services[c.Name] = service
		l.shim.logger.Warn("a name of a policy stands for a Service, whose traffic is judged by the endpoint that it reaches: use toServices, or selectors of its Pods", "fqdn", c.Name, "service", service)
	}
}

// setNames takes over which names rules write. Some may be known already.
func (l *loop) setNames(ctx context.Context) {
	if names := l.compiler.Names(); !slices.Equal(names, l.written) {
		l.written = names
		l.untold = true
		l.bringNames(ctx, l.cache.SetNames(names))
	}
}

// lease has answers held for some seconds more, where DNS is watched.
func (l *loop) lease(ctx context.Context, now time.Time) {
	if !l.compiler.WatchesNames() || now.Sub(l.leased) < pipeline.LeaseTime/3 {
		return
	}
	if err := l.sw.Apply(ctx, bridge.Change{Upsert: []openflow.Flow{pipeline.Lease()}}); err == nil {
		l.leased = now
	}
}

// namesTold is of how many addresses the policy service is told.
const namesTold = 1000

// tellNames stores what names stand for, has the policy service told, and logs once for as
// long as it lasts which have no room.
func (l *loop) tellNames() {
	if l.untold {
		l.untold = false
		l.saveNames()
		list := l.cache.Entries()
		var named []*policyv1.NamedAddress
		for _, e := range list[:min(len(list), namesTold)] {
			named = append(named, &policyv1.NamedAddress{Host: e.Host, Ip: e.Addr.AsSlice(), UntilMs: e.Until.UnixMilli(), Names: slices.Clone(e.Names)})
		}
		l.shim.node.setNames(named, len(list))
	}
	text := strings.Join(l.cache.Full(), ", ")
	if text != "" && text != l.roomless {
		l.shim.logger.Warn("names of policies stand for more hosts than are kept: those beyond match nothing", "names", text)
	}
	l.roomless = text
}

func named(changes []dns.Change) []pipeline.Named {
	out := make([]pipeline.Named, len(changes))
	for i, c := range changes {
		out[i] = pipeline.Named(c)
	}
	return out
}
