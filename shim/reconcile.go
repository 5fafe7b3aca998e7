package shim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/counters"
	"github.com/weirnet/weir/shim/pipeline"
)

// readShare is how many times as long as the last reading the next is put off, as
// long as the bridge has as many flows as it ought to.
const readShare = 50

// disturbedShare is the same where the switch tells of changes of others, one after the
// other.
const disturbedShare = 5

// due says whether the bridge is to be read back to see what others did to it:
// always where that takes no time to speak of, and else at once where a table
// has more or fewer flows than it ought to, or a group or meter is another. Of flows
// that were changed the switch tells (Disturbed); where it does not, those are found
// now and then.
func (l *loop) due(ctx context.Context, now time.Time) bool {
	if !l.settled || l.adopting != nil || l.compiler == nil || now.Sub(l.readAt) >= readShare*l.readTook {
		return true
	}
	counts, err := l.sw.FlowCounts(ctx)
	if err != nil {
		return true // Reading says so.
	}
	want := l.compiler.FlowCounts()
	for _, keys := range l.orphans {
		for _, key := range keys {
			want[key.Table]++
		}
	}
	for _, of := range []map[uint8]int{counts, want} {
		maps.DeleteFunc(of, func(table uint8, _ int) bool {
			return pipeline.Learns(table) || !l.recovery.until.IsZero() && table == pipeline.TableConntrackState
		})
	}
	if !maps.Equal(counts, want) {
		return true
	}
	shared, err := l.sw.ReadShared(ctx)
	return err != nil || !bridge.Diff(wantedShared(l.compiler), bridge.State{Content: shared}).IsEmpty()
}

// bindMeters has the flows put again whose meters are missing. Open vSwitch looks a
// controller action's meter up when the flow is put, and not again: a flow from before
// has the place of the meter that is gone, where any of those that come may be. So any
// of those may count what such flows report meanwhile.
func (l *loop) bindMeters(change *bridge.Change, comparison *pipeline.Comparison, actual bridge.State) {
	missing := make(map[uint32]bool)
	for _, m := range change.PutMeters {
		if _, there := actual.Meters[m.ID]; !there {
			missing[m.ID] = true
		}
	}
	if len(missing) == 0 {
		return
	}
	n := len(change.Upsert)
	for _, f := range l.compiler.Metered(missing) {
		if comparison.HasMet(f.Key()) { // Else it is put anyway.
			change.Upsert = append(change.Upsert, f)
		}
	}
	if len(change.Upsert) > n {
		maps.Copy(l.logLosses.unbound, missing)
	}
}

// mendedAtOnce is how many flows are put right in one bundle where others changed
// them. The switch keeps packets that it must look up waiting for as long as it
// works on a bundle, and flows that it replaces take it the longest.
const mendedAtOnce = 2048

// reconcile makes the bridge hold what the compiler wants, by reading it back.
func (l *loop) reconcile(ctx context.Context) error {
	if l.adopting != nil && !l.complete { // Or it would go on with half of a state.
		return nil
	}
	if l.compiler == nil {
		l.refreshPorts(ctx)
		if l.compiler == nil {
			return errors.New("the bridge cannot be read yet")
		}
	}
	l.disturbed = false
	start := time.Now()
	defer func() { l.readAt, l.readTook = time.Now(), time.Since(start) }()
	serial, began := l.counts.entered(), l.counts.now()
	var counting []counters.Flow
	comparison, actual, err := compared(ctx, l.sw, l.compiler, func(f openflow.Flow) {
		if count, counts := pipeline.CountOf(f); counts {
			counting = append(counting, counters.FlowOf(f, count))
		}
	})
	if err != nil {
		return l.failed(fmt.Errorf("read bridge back: %w", err))
	}
	ended := l.counts.now()
	held := len(actual.Flows) > 0 || comparison.Met() > 0
	recover := l.noticeLoss(time.Now(), held)
	leavePassing(actual)
	if l.sharing() && !l.coexists(actual, held) {
		l.shim.logger.Warn("flows on the bridge cannot share it with ours: all ports are adopted at once")
		if err := l.endSharing(ctx); err != nil {
			return l.failed(err)
		}
		return l.reconcile(ctx) // By what is wanted now.
	}
	if l.sharing() {
		actual.Foreign = nil
	}
	change := amends(l.compiler, comparison, actual)
	change.Delete = l.keepOrphans(change.Delete, actual)
	if l.sharing() {
		change.DeleteGroups, change.DeleteMeters = nil, nil
	}
	if !l.complete {
		change.Delete, change.DeleteGroups, change.DeleteMeters = nil, nil, nil
	}
	change.Upsert = append(change.Upsert, recover...)
	l.bindMeters(&change, comparison, actual)
	l.countBefore(ctx, change, readBack{actual, counting, serial, began, ended})
	if change.IsEmpty() {
		if err := l.settle(ctx); err != nil {
			return l.failed(err)
		}
		l.stale, l.settled, l.lastReport = false, true, ""
		l.publish(nil)
		return nil
	}
	if len(change.DeleteMeters) > 0 {
		l.countLosses(ctx, time.Now()) // What they counted last goes with them.
	}
	steps := []bridge.Change{change}
	if l.settled && held {
		steps = inSteps(change, comparison)
	}
	err = l.putSteps(ctx, change, steps)
	for _, id := range change.DeleteMeters {
		l.forgetMeter(id)
	}
	if err != nil {
		return l.failed(fmt.Errorf("mend bridge: %w", err))
	}
	if len(recover) > 0 {
		l.keepRecovery(ctx)
	}
	if l.settled { // Else it is what a cut or a start brings.
		l.shim.metrics.mended.Add(float64(change.Upserts() + len(change.Delete)))
		l.shim.metrics.mendedShared.Add(float64(len(change.PutGroups) + len(change.DeleteGroups) + len(change.PutMeters) + len(change.DeleteMeters)))
		l.shim.logger.Warn("others changed what the bridge holds, which is put right", "put", change.Upserts(), "removed", len(change.Delete),
			"groups", len(change.PutGroups)+len(change.DeleteGroups), "meters", len(change.PutMeters)+len(change.DeleteMeters))
	}
	l.settled = true
	l.shim.logger.Info("bridge reconciled", "put", change.Upserts(), "removed", len(change.Delete), "flows", l.compiler.FlowCount())
	l.stale, l.lastReport = false, ""
	l.publish(nil)
	return nil
}

// compared reads a bridge back but for what is as a compiler wants it; of groups and
// meters all. Each flow that was read is told to read.
func compared(ctx context.Context, sw interface {
	ReadBut(ctx context.Context, except func(openflow.Flow) bool) (bridge.State, error)
}, c *pipeline.Compiler, read func(openflow.Flow)) (*pipeline.Comparison, bridge.State, error) {
	comparison := c.Compare()
	actual, err := sw.ReadBut(ctx, func(f openflow.Flow) bool {
		read(f)
		return comparison.Meets(f)
	})
	return comparison, actual, err
}

// amends is what has a bridge hold what a compiler wants, and nothing else, by what is
// compared. Flows of others go too: the bridge is ours.
func amends(c *pipeline.Compiler, by *pipeline.Comparison, actual bridge.State) bridge.Change {
	change := bridge.Diff(wantedShared(c), bridge.State{Content: bridge.Content{Groups: actual.Groups, Meters: actual.Meters}})
	change.More = by.Rest()
	for _, flows := range []map[openflow.FlowKey]openflow.Flow{actual.Flows, actual.Foreign} {
		for key := range flows {
			if !by.Wants(key) {
				change.Delete = append(change.Delete, key)
			}
		}
	}
	slices.SortFunc(change.Delete, pipeline.CompareKeys)
	return change
}

// inSteps is a repair whose flows go in steps where they are many; but for those of
// Upsert, such as flows that are bound to their meters anew, which go with the first.
func inSteps(repair bridge.Change, by *pipeline.Comparison) []bridge.Change {
	if repair.More.Len()+len(repair.Delete) <= mendedAtOnce {
		return []bridge.Change{repair}
	}
	flows := by.Steps(repair.Delete, mendedAtOnce)
	steps := make([]bridge.Change, len(flows))
	for i, f := range flows {
		steps[i] = bridge.Change{More: f.More, Delete: f.Delete}
	}
	first, last := &steps[0], &steps[len(steps)-1]
	first.PutMeters, first.PutGroups, first.Upsert = repair.PutMeters, repair.PutGroups, repair.Upsert
	last.DeleteGroups, last.DeleteMeters = repair.DeleteGroups, repair.DeleteMeters
	return steps
}

// failed logs an error once for as long as it lasts, and returns it.
func (l *loop) failed(err error) error {
	if l.lastReport != err.Error() {
		l.lastReport = err.Error()
		l.shim.logger.Error("bridge does not hold the state; trying on", "err", err)
	}
	return err
}
