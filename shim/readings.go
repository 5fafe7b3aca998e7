package shim

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/counters"
	"github.com/weirnet/weir/shim/pipeline"
)

// Counting flows are read on a goroutine of their own, for that takes a while
// and nobody waits for it; what is read is entered into the accounts there, too.
// The loop sees to the order: what a bundle takes out or puts anew is read, and
// the accounts are stored, before it.
//
//	Update ─► learn ids ─► bundle ─► settled ─► reading ─► stored ─► retired flows go
//
// Beside the compiler's retired ids there are orphans: counting flows of a former
// shim that the compiler does not know. They are kept and go as those do.

const (
	readingTimeout = 5 * time.Second
	lastTimeout    = 2 * time.Second // When the shim ends.
	recountedApart = 100             // More ids than these are read with all others.
)

// readingDone is how a reading ended.
type readingDone struct {
	leaving map[uint32]bool // Ids whose flows may go now. Nil: none.
	entered uint64          // How many readings there were after it.
	err     error
}

// readCounters begins a reading, if none is under way.
func (l *loop) readCounters(ctx context.Context) {
	if l.reading || !l.counted || l.compiler == nil {
		return
	}
	leaving := l.leaving()
	may := leaving
	if l.unsettled || l.stale {
		may = nil
	}
	l.reading = true
	serial := l.counts.entered()
	go func() {
		ctx, cancel := context.WithTimeout(ctx, readingTimeout)
		defer cancel()
		l.readings <- readingDone{may, serial + 1, l.enterReading(ctx, serial, leaving)}
	}()
}

// leaving are the ids whose flows may go once they have been read: what is not in
// force, if no connection carries on by it. Without a complete state nobody knows.
func (l *loop) leaving() map[uint32]bool {
	out := make(map[uint32]bool)
	if !l.complete {
		return out
	}
	for _, id := range l.compiler.Retired() {
		out[id] = !l.carriesOn(id)
	}
	for id := range l.orphans { // A former shim may have asked for it, and the switch is about to do it.
		out[id] = !l.carriesOn(id)
	}
	return out
}

// enterReading reads all counting flows and enters them. It may be called from
// any goroutine.
func (l *loop) enterReading(ctx context.Context, serial uint64, leaving map[uint32]bool) error {
	r := counters.Reading{Began: l.counts.now(), Leaving: leaving}
	if err := l.sw.Counters(ctx, pipeline.CountFilter(), func(f openflow.Flow) {
		if count, counts := pipeline.CountOf(f); counts {
			r.Flows = append(r.Flows, counters.FlowOf(f, count))
		}
	}); err != nil {
		return err
	}
	r.Ended = l.counts.now()
	return l.counts.enter(serial, r, false)
}

// carriesOn says whether the flows of an id that is not in force stay: established
// connections go on by it, for a policy that is still there.
func (l *loop) carriesOn(id uint32) bool {
	return l.counts.counts(id) && slices.ContainsFunc(l.counts.subjects(id), l.compiler.Holds)
}

// endReading takes out what is not needed any more, once it has been read.
func (l *loop) endReading(ctx context.Context, r readingDone) {
	l.reading = false
	if r.err != nil {
		if !errors.Is(r.err, errOvertaken) && ctx.Err() == nil {
			l.notCounted(r.err)
		}
		return
	}
	l.notCounted(nil)
	if l.compiler == nil || l.counts.entered() != r.entered { // A later one does not know what is to go.
		return
	}
	l.hear()
	goes := func(id uint32) bool { return r.leaving[id] && !l.carriesOn(id) }
	change := l.compiler.Drop(slices.DeleteFunc(l.compiler.Retired(), func(id uint32) bool { return !goes(id) }))
	for id, keys := range l.orphans {
		if goes(id) {
			change.Delete = append(change.Delete, keys...)
			delete(l.orphans, id)
		}
	}
	if len(change.Delete) == 0 {
		return
	}
	if err := l.bring(ctx, change); err != nil {
		l.failed(err)
	}
}

// notCounted logs once for as long as it lasts why rules' counters are not read.
func (l *loop) notCounted(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != l.uncounted {
		l.shim.logger.Error("what rules matched cannot be read; trying on", "err", err)
	}
	l.uncounted = text
}

// lastReading is that of a shim that ends: it stops a reading that is under way.
func (l *loop) lastReading(ctx context.Context) {
	if l.reading {
		<-l.readings
	}
	if !l.counted || l.compiler == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	if err := l.enterReading(ctx, l.counts.entered(), nil); err != nil {
		l.notCounted(err)
	}
}

// learn says for what flows count that are to be put in.
func (l *loop) learn(flows iter.Seq[openflow.Flow]) {
	for f := range flows {
		if count, ok := pipeline.CountOf(f); ok {
			l.counts.learn(count.ID, l.compiler.Subjects(count.ID))
		}
	}
}

// recount puts on the books what ids counted for others than they do from now on.
func (l *loop) recount(ctx context.Context, ids []uint32) {
	wanted := make(map[uint32]bool)
	for _, id := range ids {
		if known := l.counts.subjects(id); known != nil && !slices.Equal(known, l.compiler.Subjects(id)) {
			wanted[id] = true
		}
	}
	if len(wanted) == 0 {
		return
	}
	if l.counted {
		if err := l.readPart(ctx, wanted); err != nil {
			l.notCounted(err)
		}
	}
	for id := range wanted {
		l.counts.learn(id, l.compiler.Subjects(id))
	}
}

// readPart reads and enters the flows of some ids.
func (l *loop) readPart(ctx context.Context, ids map[uint32]bool) error {
	ctx, cancel := context.WithTimeout(ctx, readingTimeout)
	defer cancel()
	filters := []openflow.FlowFilter{pipeline.CountFilter()}
	if len(ids) <= recountedApart {
		filters = nil
		for _, id := range slices.Sorted(maps.Keys(ids)) {
			f := pipeline.CountFilter()
			f.Cookie, f.CookieMask = f.Cookie|uint64(id), ^uint64(0)
			filters = append(filters, f)
		}
	}
	serial := l.counts.overtake()
	r := counters.Reading{Began: l.counts.now()}
	for _, filter := range filters {
		if err := l.sw.Counters(ctx, filter, func(f openflow.Flow) {
			if count, counts := pipeline.CountOf(f); counts && ids[count.ID] {
				r.Flows = append(r.Flows, counters.FlowOf(f, count))
			}
		}); err != nil {
			return err
		}
	}
	r.Ended = l.counts.now()
	return l.counts.enter(serial, r, true)
}

// enterNow reads the flows of a reading once more, and enters that.
func (l *loop) enterNow(ctx context.Context, r counters.Reading) error {
	ctx, cancel := context.WithTimeout(ctx, readingTimeout)
	defer cancel()
	counts := make(map[counters.Key]pipeline.Count, len(r.Flows))
	for _, f := range r.Flows {
		counts[f.Key] = f.Count
	}
	serial := l.counts.overtake()
	r.Began, r.Flows = l.counts.now(), nil
	if _, err := l.sw.ReadBut(ctx, func(f openflow.Flow) bool {
		if count, is := counts[counters.KeyOf(f.Key())]; is {
			r.Flows = append(r.Flows, counters.FlowOf(f, count))
		}
		return true
	}); err != nil {
		return err
	}
	r.Ended = l.counts.now()
	return l.counts.enter(serial, r, false)
}

// readBack is what reconcile read, and when.
type readBack struct {
	state        bridge.State    // But for the flows that are as they are wanted.
	counting     []counters.Flow // All.
	serial       uint64          // How many readings there were before.
	began, ended counters.Stamp
}

// keepOrphans leaves out of what is to be removed those counting flows of a former shim of
// which it is known what they count for: they may go once they have been read,
// with no packet on its way that is still to be counted.
func (l *loop) keepOrphans(remove []openflow.FlowKey, actual bridge.State) []openflow.FlowKey {
	clear(l.orphans)
	return slices.DeleteFunc(remove, func(key openflow.FlowKey) bool {
		count, counts := pipeline.CountOf(actual.Flows[key])
		orphan := counts && len(l.counts.subjects(count.ID)) > 0
		if orphan {
			l.orphans[count.ID] = append(l.orphans[count.ID], key)
		}
		return orphan
	})
}

// countBefore enters what was read back, where the change would lose counters,
// or where nothing has been entered yet by this shim or this compiler. It is
// done before ids are learned to count for others.
func (l *loop) countBefore(ctx context.Context, change bridge.Change, at readBack) {
	r := counters.Reading{Began: at.began, Ended: at.ended, Leaving: l.leaving(), Replacing: make(map[counters.Key]bool)}
	need := !l.counted
	for _, key := range change.Delete {
		if count, counts := pipeline.CountOf(at.state.Flows[key]); counts {
			r.Leaving[count.ID], need = true, true
		}
	}
	for f := range change.EachUpsert {
		old, there := at.state.Flows[f.Key()]
		if count, counts := pipeline.CountOf(f); counts && there {
			r.Replacing[counters.KeyOf(f.Key())], need = true, true
			if _, same := pipeline.CountOf(old); !same { // Of another layout.
				r.Flows = append(r.Flows, counters.FlowOf(old, count))
			}
		}
	}
	if !need {
		return
	}
	wanted := make(map[uint32]bool)
	if !l.counted {
		for _, id := range l.compiler.Counting() {
			wanted[id] = true
		}
		for id := range l.orphans {
			wanted[id] = true
		}
		for id := range wanted {
			if l.counts.subjects(id) == nil {
				l.counts.learn(id, l.compiler.Subjects(id))
			}
		}
	}
	r.Flows = append(r.Flows, at.counting...)
	err := l.counts.enter(at.serial, r, false)
	if errors.Is(err, errOvertaken) { // Since then another was entered, which may be newer.
		err = l.enterNow(ctx, r)
	}
	if err != nil {
		l.notCounted(fmt.Errorf("before a change: %w", err))
	}
	if l.counted {
		return
	}
	for id := range wanted {
		if subjects := l.compiler.Subjects(id); subjects != nil { // Else it is an orphan's.
			l.counts.learn(id, subjects)
		}
	}
	if l.complete {
		l.counts.keep(wanted)
	}
	l.counted = true
}
