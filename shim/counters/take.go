package counters

import (
	"fmt"
	"slices"
	"time"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// Flow is what a counting flow had counted when it was read, and for what.
type Flow struct {
	Key            Key
	Count          pipeline.Count
	Packets, Bytes uint64
	Age            time.Duration
}

// FlowOf is a flow that was read and counts. It keeps nothing of the flow: of all that
// are read at once there may be very many.
func FlowOf(f openflow.Flow, count pipeline.Count) Flow {
	return Flow{KeyOf(f.Key()), count, f.Packets, f.Bytes, f.Age}
}

// Reading is all counting flows of a bridge as they were at one time: between
// Began and Ended.
type Reading struct {
	Began, Ended Stamp
	Flows        []Flow
	// Leaving are the ids whose flows may be taken out once the reading is on the
	// books: that they are not there any more then is no loss.
	Leaving map[uint32]bool
	// Replacing are flows that will be put in anew in the place of what was read,
	// whose counters they keep, though not its age.
	Replacing map[Key]bool
}

// slack is by how much a flow's age may seem less than it is: the switch counts
// in milliseconds, of a clock that it looks at now and then.
const slack = 100 * time.Millisecond

// Take enters a reading; changed says whether the books differ from what they
// were, but for the reading's time and number.
func (b *Books) Take(r Reading) (changed bool) {
	changed = b.TakePart(r)
	for k, f := range b.flows {
		if f.seen == b.reading {
			continue
		}
		changed = true
		if !f.leaving {
			b.lose(b.last.Wall, r.Ended.Wall, "a flow of id %d is gone, which had counted %d packets", f.count.ID, f.packets)
		}
		b.remove(k, f)
	}
	b.last = r.Ended
	return b.forget(r.Ended.Wall) || changed
}

// TakePart enters a reading of some of the flows. It says nothing of the others.
func (b *Books) TakePart(r Reading) (changed bool) {
	b.reading = max(b.reading+1, uint64(r.Ended.Wall.UnixMilli()))
	lost := b.lost
	for i := range r.Flows {
		if b.enter(&r, &r.Flows[i]) {
			changed = true
		}
	}
	return changed || b.lost != lost
}

// enter takes one flow's counters.
func (b *Books) enter(r *Reading, read *Flow) (changed bool) {
	k := read.Key
	f := b.flows[k]
	id := read.Count.ID
	o := b.owner(id)
	if f != nil && f.count.ID != id { // Put in anew, for another id.
		b.remove(k, f)
		f.count.ID = id
		b.flows[k] = f
		o.flows++
	}
	birth := r.Ended.Wall.Add(-read.Age)
	packets, bytes := read.Packets, read.Bytes
	switch {
	case f == nil:
		f = &flow{}
		b.flows[k] = f
		o.flows++
		o.counted = r.Ended
		changed = true
	case b.another(f, r, read):
		if !birth.After(b.last.Wall) { // Somebody set its counters back.
			birth = r.Ended.Wall
		}
		b.lose(b.last.Wall, birth, "a flow of id %d is %v old with %d packets, and was %v with %d, %v before", id, read.Age, packets, f.age, f.packets, r.Ended.Up-f.at)
		o.counted = r.Ended
		changed = true
	default:
		packets, bytes = packets-f.packets, bytes-f.bytes
	}
	if packets != 0 {
		changed = true
		o.counted = r.Ended
		if len(o.accounts) == 0 { // Nobody knows for whom.
			b.lose(later(b.last.Wall, birth), r.Ended.Wall, "nobody knows what id %d counts for", id)
		}
	}
	if leaving, replaced := r.Leaving[id], r.Replacing[k]; f.leaving != leaving || f.replaced != replaced {
		f.leaving, f.replaced, changed = leaving, replaced, true
	}
	o.carried = o.carried || read.Count.Carried
	for _, a := range o.accounts {
		a.add(read.Count, packets, bytes, b.reading)
	}
	f.count, f.packets, f.bytes, f.age, f.at, f.seen = read.Count, read.Packets, read.Bytes, read.Age, r.Ended.Up, b.reading
	return changed
}

// lose is Uncounted with the reason.
func (b *Books) lose(from, to time.Time, format string, args ...any) {
	had := b.lost
	if b.Uncounted(from, to); b.lost > had {
		b.why = fmt.Sprintf(format, args...)
	}
}

// another says whether a flow is another than the one that was last read.
func (b *Books) another(f *flow, r *Reading, now *Flow) bool {
	_, same := r.Began.since(b.last)
	if f.replaced && same {
		return now.Packets < f.packets || now.Bytes < f.bytes
	}
	if !same || now.Age < f.age || now.Age+slack < r.Began.Up-f.at {
		return true
	}
	// It is the same, and its counters may have been set back by somebody. By a
	// little the switch itself does it, where it had counted packets twice.
	return now.Packets < f.packets/2 || now.Bytes < f.bytes/2
}

// add adds what was counted, which is below zero where the switch takes something
// back.
func (a *account) add(c pipeline.Count, packets, bytes, reading uint64) {
	if packets == 0 {
		return
	}
	if c.Packets {
		a.tally.Packets = plus(a.tally.Packets, packets)
		a.tally.Bytes = plus(a.tally.Bytes, bytes)
	}
	if c.Sessions {
		a.tally.Sessions = plus(a.tally.Sessions, packets)
	}
	a.changed = reading
}

// plus adds a difference, but not to below zero.
func plus(n, difference uint64) uint64 {
	if back := -difference; int64(difference) < 0 && back > n {
		return 0
	}
	return n + difference
}

// remove takes a flow out, and its id with its last flow.
func (b *Books) remove(k Key, f *flow) {
	delete(b.flows, k)
	o := b.ids[f.count.ID]
	if o.flows--; o.flows == 0 && f.leaving {
		b.release(o.accounts)
		delete(b.ids, f.count.ID)
	}
}

// forget drops the subjects that have been gone for long, or are too many.
func (b *Books) forget(now time.Time) (changed bool) {
	var gone []*account
	for s, a := range b.subjects {
		switch {
		case a.ids > 0:
		case a.tally == Tally{} || now.Sub(a.left) > keepGone:
			delete(b.subjects, s)
			changed = true
		default:
			gone = append(gone, a)
		}
	}
	if len(gone) <= maxGone {
		return changed
	}
	slices.SortFunc(gone, func(a, b *account) int { return a.left.Compare(b.left) })
	for _, a := range gone[:len(gone)-maxGone] {
		delete(b.subjects, a.subject)
	}
	return true
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
