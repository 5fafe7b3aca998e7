package counters

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

func subject(n int) pipeline.Subject {
	return pipeline.Subject{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "x", Name: fmt.Sprintf("p%d", n/2), UID: fmt.Sprintf("u%d", n/2),
		Direction: policyv1.Direction_DIRECTION_INGRESS, Index: uint32(n % 2)}
}

// model is a switch, the packets that it saw, and the shims that read it: one
// after the other, each with what its forerunner stored.
type model struct {
	t    *testing.T
	rand *rand.Rand

	now   time.Duration // Of both clocks.
	boot  int
	flows map[openflow.FlowKey]*counting
	next  uint32

	books   *Books
	stored  []byte
	journal []byte

	seen    map[pipeline.Subject]Tally // All packets, by what they were for.
	lost    []loss                     // Packets that no reading can know of.
	retired map[uint32]bool
	ids     map[uint32][]pipeline.Subject // In force.
}

// counting is a counting flow of the switch.
type counting struct {
	count          pipeline.Count
	packets, bytes uint64
	born           time.Duration
	read           bool   // It has been put on the books, and they stored.
	unread         []loss // What it counted since then.
}

// loss is a packet with when it was counted.
type loss struct {
	at       time.Duration
	subjects []pipeline.Subject
	tally    Tally
}

var epoch = time.Unix(1_700_000_000, 0)

func newModel(t *testing.T, seed uint64) *model {
	return &model{t: t, rand: rand.New(rand.NewPCG(seed, 1)), flows: make(map[openflow.FlowKey]*counting), next: 1, books: New("n", epoch),
		seen: make(map[pipeline.Subject]Tally), retired: make(map[uint32]bool), ids: make(map[uint32][]pipeline.Subject)}
}

func (m *model) stamp() Stamp {
	return Stamp{Wall: epoch.Add(m.now), Up: m.now, Boot: fmt.Sprint(m.boot)}
}

func (m *model) pass(most time.Duration) { m.now += time.Duration(m.rand.Int64N(int64(most))) + 1 }

// keysOf are the counting flows of an id, and what each counts.
func keysOf(id uint32) map[openflow.FlowKey]pipeline.Count {
	match := func(f openflow.FieldID) openflow.Match {
		return openflow.NewMatch(openflow.Masked(f, openflow.Uint(uint64(id)), openflow.Ones(0, 32)))
	}
	if id%3 == 0 { // It denies.
		return map[openflow.FlowKey]pipeline.Count{{Table: 27, Priority: 1, Match: match(openflow.FieldReg0)}: {ID: id, Packets: true, Sessions: true}}
	}
	return map[openflow.FlowKey]pipeline.Count{
		{Table: 13, Priority: 1, Match: match(openflow.FieldReg0)}:    {ID: id, Packets: true},
		{Table: 13, Priority: 2, Match: match(openflow.FieldCTLabel)}: {ID: id, Packets: true, Carried: true},
		{Table: 28, Priority: 2, Match: match(openflow.FieldReg0)}:    {ID: id, Sessions: true},
	}
}

// begin puts a new id in force, for one subject or, as an isolation, for two.
func (m *model) begin() {
	id := m.next
	m.next++
	subjects := []pipeline.Subject{subject(m.rand.IntN(10))}
	if m.rand.IntN(3) == 0 {
		subjects = append(subjects, subject(10+m.rand.IntN(4)))
	}
	m.ids[id] = subjects
	l := Learned{ID: id, Subjects: subjects}
	m.journal = AppendLearned(m.journal, l)
	m.books.Learn(l)
	m.install(id)
}

func (m *model) install(id uint32) {
	for k, c := range keysOf(id) {
		if m.flows[k] == nil {
			m.flows[k] = &counting{count: c, born: m.now}
		}
	}
}

// traffic is counted by flows of all ids that have any.
func (m *model) traffic() {
	for _, k := range m.keys() {
		f := m.flows[k]
		if m.rand.IntN(2) == 0 || (m.retired[f.count.ID] && !f.count.Carried) {
			continue
		}
		n := uint64(m.rand.IntN(5))
		if n == 0 {
			continue
		}
		m.pass(time.Millisecond)
		bytes := n * uint64(60+m.rand.IntN(1400))
		f.packets += n
		f.bytes += bytes
		var tally Tally
		if f.count.Packets {
			tally.Packets, tally.Bytes = n, bytes
		}
		if f.count.Sessions {
			tally.Sessions = n
		}
		for _, s := range m.ids[f.count.ID] {
			m.seen[s] = sum(m.seen[s], tally)
		}
		f.unread = append(f.unread, loss{m.now, m.ids[f.count.ID], tally})
	}
}

func sum(a, b Tally) Tally {
	return Tally{a.Sessions + b.Sessions, a.Packets + b.Packets, a.Bytes + b.Bytes}
}

// read is a reading, which is stored, or the shim is killed before that. It may
// be killed after that, too.
func (m *model) read() (stored bool) {
	r := Reading{Began: m.stamp(), Leaving: maps.Clone(m.retired)}
	m.pass(50 * time.Millisecond)
	for k, f := range m.flows {
		r.Flows = append(r.Flows, FlowOf(openflow.Flow{Table: k.Table, Priority: k.Priority, Match: k.Match, Packets: f.packets, Bytes: f.bytes, Age: m.now - f.born}, f.count))
	}
	m.pass(50 * time.Millisecond)
	r.Ended = m.stamp()
	changed := m.books.Take(r)
	if m.rand.IntN(4) == 0 {
		m.kill()
		return false
	}
	if changed {
		m.stored, m.journal = m.books.Encode(), nil
	}
	for _, f := range m.flows {
		f.read, f.unread = true, nil
	}
	if m.rand.IntN(4) == 0 {
		m.kill()
		return true
	}
	for id := range m.retired {
		for k := range keysOf(id) {
			delete(m.flows, k)
		}
		delete(m.retired, id)
		delete(m.ids, id)
	}
	return true
}

// kill has another shim begin from what is stored.
func (m *model) kill() {
	m.books = New("n", epoch)
	if m.stored != nil {
		var err error
		if m.books, err = Decode(m.stored, "n"); err != nil {
			m.t.Fatal(err)
		}
	}
	list, _ := ReadLearned(m.journal)
	for _, l := range list {
		m.books.Learn(l)
	}
}

// lose takes flows out behind the shim's back, with what they counted, and puts
// in again those of ids that are in force: some of these, or all that there are.
func (m *model) lose(all bool) {
	known := func(f *counting) bool { return f.read && !m.retired[f.count.ID] }
	if !slices.ContainsFunc(slices.Collect(maps.Values(m.flows)), known) { // Nobody would notice.
		return
	}
	for _, k := range m.keys() {
		f := m.flows[k]
		if all || known(f) && m.rand.IntN(3) == 0 {
			if m.retired[f.count.ID] { // It was about to go, and what came after that reading does not count.
				m.forget(f.unread)
			} else {
				m.lost = append(m.lost, f.unread...)
			}
			delete(m.flows, k)
		}
	}
	m.pass(20 * time.Second)
	for id := range m.ids {
		switch {
		case !m.retired[id]:
			m.install(id)
		case all: // What is retired does not come back.
			delete(m.retired, id)
			delete(m.ids, id)
		}
	}
}

func (m *model) forget(list []loss) {
	for _, l := range list {
		for _, s := range l.subjects {
			had := m.seen[s]
			m.seen[s] = Tally{had.Sessions - l.tally.Sessions, had.Packets - l.tally.Packets, had.Bytes - l.tally.Bytes}
		}
	}
}

func (m *model) keys() []openflow.FlowKey {
	return slices.SortedFunc(maps.Keys(m.flows), func(a, b openflow.FlowKey) int { return slices.Compare(a.Append(nil), b.Append(nil)) })
}

// check compares the books, as of a reading now, with what was sent.
func (m *model) check() {
	m.t.Helper()
	m.forget(m.lost)
	for _, l := range m.lost {
		at := epoch.Add(l.at)
		if first := m.books.uncounted; len(first) == 0 || (at.After(first[0].From) && !slices.ContainsFunc(first, func(i Interval) bool { return !at.Before(i.From) && !at.After(i.To) })) {
			m.t.Fatalf("what was lost at %v is in no uncounted interval: %v", at, first)
		}
	}
	got := make(map[pipeline.Subject]Tally)
	for _, line := range m.books.Changed(0) {
		got[line.Subject] = line.Tally
	}
	for s, w := range m.seen {
		if got[s] != w {
			m.t.Fatalf("%v: counted %+v, sent %+v", s, got[s], w)
		}
	}
}

// Whatever happens to shims, rules and the switch, the tallies are what was sent,
// less what was lost with the switch's flows, and that is in stated intervals.
func TestTalliesAreWhatWasSent(t *testing.T) {
	for seed := range uint64(60) {
		m := newModel(t, seed)
		for range 300 {
			m.pass(3 * time.Second)
			m.traffic()
			switch n := m.rand.IntN(20); {
			case n < 4:
				m.begin()
			case n < 7:
				if ids := slices.Sorted(maps.Keys(m.ids)); len(ids) > 0 {
					m.retired[ids[m.rand.IntN(len(ids))]] = true
				}
			case n < 13:
				m.read()
			case n < 14:
				m.kill()
			case n < 15 && seed%2 == 0:
				m.lose(m.rand.IntN(2) == 0)
			}
		}
		for !m.read() {
		}
		m.check()
		if seed%2 == 1 && len(m.books.uncounted) > 0 {
			t.Fatalf("nothing was lost, and %v is uncounted", m.books.uncounted)
		}
	}
}
