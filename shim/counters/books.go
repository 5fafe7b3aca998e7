package counters

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// Tally is what was counted for a subject.
type Tally struct{ Sessions, Packets, Bytes uint64 }

// Stamp is a moment by two clocks.
type Stamp struct {
	Wall time.Time     // As people read it. It may be set.
	Up   time.Duration // Of the machine's monotonic clock, by which flows age.
	Boot string        // Which start of the machine Up is of.
}

// since is the time from another moment to this one; false where the machine was
// started in between.
func (s Stamp) since(o Stamp) (time.Duration, bool) { return s.Up - o.Up, s.Boot == o.Boot }

// Interval is a time in which what matched may not have been counted.
type Interval struct{ From, To time.Time }

// Bounds of what Books keep beside what there are flows for.
const (
	maxIntervals = 32                  // The last ones; the time of all is kept as a sum.
	maxGone      = 10000               // Subjects that have left the node.
	keepGone     = 30 * 24 * time.Hour // And for how long.
)

// Books are the accounts of one node.
type Books struct {
	node      string
	began     time.Time // When they were begun.
	reading   uint64    // Number of the last one: its time, so that those of former books were lower.
	last      Stamp     // When it ended; zero: there was none.
	uncounted []Interval
	lost      time.Duration // Sum of all that were uncounted.
	why       string        // The last was, for people.
	subjects  map[pipeline.Subject]*account
	ids       map[uint32]*owner
	highest   uint32 // Of all ids that there ever were.
	flows     map[Key]*flow
}

// account is a subject's.
type account struct {
	subject pipeline.Subject
	tally   Tally
	changed uint64    // Reading in which the tally last changed. Zero: it is empty.
	ids     int       // That count for it.
	left    time.Time // Since when there is none.
}

// owner is what the flows of an id count for.
type owner struct {
	accounts []*account
	flows    int
	carried  bool  // Connections carry the id.
	counted  Stamp // When one of them last counted, or came, or the last reading before the id was known.
}

// Key is the hash of a flow's key.
type Key [16]byte

// KeyOf is that of a flow.
func KeyOf(k openflow.FlowKey) Key {
	var buf [128]byte
	return xxh3.Hash128(k.Append(buf[:0])).Bytes()
}

// flow is what a flow counted when it was last read.
type flow struct {
	count          pipeline.Count
	packets, bytes uint64
	age            time.Duration
	at             time.Duration // When that was, as Stamp.Up: not before the last reading of all flows.
	leaving        bool          // It may be taken out before the next reading.
	replaced       bool          // It was put in anew since and keeps its counters.
	seen           uint64        // Number of the reading.
}

// New are the books of a node that has none.
func New(node string, now time.Time) *Books {
	return &Books{node: node, began: now,
		subjects: make(map[pipeline.Subject]*account), ids: make(map[uint32]*owner), flows: make(map[Key]*flow)}
}

// Uncounted states that what matched from one time until another may not be in
// the books. Times that overlap count once.
func (b *Books) Uncounted(from, to time.Time) {
	if n := len(b.uncounted); n > 0 {
		last := &b.uncounted[n-1]
		if !from.After(last.To) {
			if to.After(last.To) {
				b.lost += to.Sub(last.To)
				last.To = to
			}
			return
		}
	}
	if !to.After(from) {
		return
	}
	b.lost += to.Sub(from)
	b.uncounted = append(b.uncounted, Interval{from, to})
	if len(b.uncounted) > maxIntervals {
		b.uncounted = slices.Delete(b.uncounted, 0, 1)
	}
}

// Learned says what the flows of an id count for.
type Learned struct {
	ID       uint32
	Subjects []pipeline.Subject
}

// Learn takes over what the flows of an id count for. From then on they count
// for these; what they did before stays where it is.
func (b *Books) Learn(l Learned) {
	o := b.owner(l.ID)
	former := o.accounts
	o.accounts = nil
	for _, s := range l.Subjects {
		a := b.subjects[s]
		if a == nil {
			a = &account{subject: s}
			b.subjects[s] = a
		}
		a.ids++
		o.accounts = append(o.accounts, a)
	}
	b.release(former)
}

// owner is an id's.
func (b *Books) owner(id uint32) *owner {
	o := b.ids[id]
	if o == nil {
		o = &owner{counted: b.last}
		b.ids[id] = o
		b.highest = max(b.highest, id)
	}
	return o
}

// Highest is the highest id that the books ever knew, of flows that are gone too.
func (b *Books) Highest() uint32 { return b.highest }

// release says that an id counts for accounts no more.
func (b *Books) release(accounts []*account) {
	for _, a := range accounts {
		if a.ids--; a.ids == 0 {
			a.left = later(b.last.Wall, b.began)
		}
	}
}

// Known are the ids of which it is known what their flows count for.
func (b *Books) Known() map[uint32][]pipeline.Subject {
	out := make(map[uint32][]pipeline.Subject, len(b.ids))
	for id := range b.ids {
		out[id] = b.Subjects(id)
	}
	return out
}

// Knows says whether it is known what the flows of an id count for.
func (b *Books) Knows(id uint32) bool { return b.ids[id] != nil }

// Subjects are those that the flows of an id count for; nil where it is not known.
func (b *Books) Subjects(id uint32) []pipeline.Subject {
	o := b.ids[id]
	if o == nil {
		return nil
	}
	out := make([]pipeline.Subject, len(o.accounts))
	for i, a := range o.accounts {
		out[i] = a.subject
	}
	return out
}

// Quiet is for how long no flow of an id has counted, as of a moment. Carried says
// that connections carry the id; known is false where there is no such flow.
func (b *Books) Quiet(id uint32, now Stamp) (quiet time.Duration, carried, known bool) {
	o := b.ids[id]
	if o == nil || o.flows == 0 {
		return 0, false, false
	}
	quiet, known = now.since(o.counted)
	return quiet, o.carried, known
}

// keepUnused is for how long an id without a flow is known: a switch may be slow
// to do what a shim asked for that has ended.
const keepUnused = time.Hour

// Keep forgets ids that have had no flow for long and are not wanted.
func (b *Books) Keep(wanted func(id uint32) bool, now Stamp) {
	for id, o := range b.ids {
		if age, same := now.since(o.counted); o.flows == 0 && !wanted(id) && (!same || age > keepUnused) {
			b.release(o.accounts)
			delete(b.ids, id)
		}
	}
}

// Totals are what is known of the accounts as a whole.
type Totals struct {
	Reading   uint64 // Number of the last reading.
	Last      time.Time
	Began     time.Time
	Uncounted []Interval
	Lost      time.Duration // Of all that was uncounted, beyond the last intervals.
	Why       string        // The last is uncounted, for people. Empty: it is of a former shim.
}

// Totals of the books as they are.
func (b *Books) Totals() Totals {
	return Totals{Reading: b.reading, Last: b.last.Wall, Began: b.began, Uncounted: slices.Clone(b.uncounted), Lost: b.lost, Why: b.why}
}

// Line is a subject with its tally.
type Line struct {
	Subject pipeline.Subject
	Tally   Tally
}

// Changed are the tallies that changed in readings after one, in order.
func (b *Books) Changed(after uint64) []Line {
	var out []Line
	for s, a := range b.subjects {
		if a.changed > after {
			out = append(out, Line{s, a.tally})
		}
	}
	slices.SortFunc(out, func(a, b Line) int { return compare(a.Subject, b.Subject) })
	return out
}

func compare(a, b pipeline.Subject) int {
	isolation := func(s pipeline.Subject) int {
		if s.Isolation {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.UID, b.UID),
		cmp.Compare(a.Direction, b.Direction), cmp.Compare(isolation(a), isolation(b)), cmp.Compare(a.Index, b.Index), strings.Compare(a.Rule, b.Rule))
}
