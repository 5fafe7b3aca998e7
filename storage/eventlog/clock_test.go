package eventlog

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// TestAgeClock: the wall clock is set forward and back. The age of what arrived before
// grows as time passes.
func TestAgeClock(t *testing.T) {
	begun := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	c := ageClock{age: 24 * time.Hour}
	for i, at := range []struct{ uptime, step, lag time.Duration }{
		{0, 0, 0},
		{time.Minute, 0, 0},
		{2 * time.Minute, time.Hour, time.Hour}, // Set forward.
		{3 * time.Minute, time.Hour, time.Hour},
		{4 * time.Minute, 0, 0}, // And back again.
		{5 * time.Minute, -time.Hour, 0},
		{6 * time.Minute, time.Hour, 2 * time.Hour},
		{24*time.Hour + 5*time.Minute, time.Hour, 2 * time.Hour},
		{24*time.Hour + 6*time.Minute, time.Hour, 0}, // Nothing of before is left.
	} {
		wall := begun.Add(at.uptime + at.step)
		if got := wall.Sub(c.at(wall, at.uptime)); got != at.lag {
			t.Errorf("look %d: behind by %s, want %s", i, got, at.lag)
		}
	}
}

// TestClockSetBack: the collector's clock is set back by an hour. Arrivals ascend all the
// same: a time is found, also by retention, and losses end after they begin.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	l, stop := start(t, Config{Dir: dir})
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	now, seq := noon, uint64(0)
	one := func() {
		seq += 2 // A number is left out each time.
		b := batch("n1", seq, fmt.Sprint(now.Format("15:04"), " ", seq))
		b.Received = now
		mustAppend(t, l, b)
		now = now.Add(10 * time.Minute)
	}
	for range 6 { // Up to 12:50.
		one()
	}
	now = now.Add(-time.Hour)
	for range 3 { // It says 12:00 to 12:20.
		one()
	}
	stop() // What ascends goes on over a restart.
	l, _ = start(t, Config{Dir: dir})
	for range 6 { // 12:30 to 13:20.
		one()
	}
	var last time.Time
	arrived := make(map[uint64]uint64) // Cursors by sequence.
	for _, e := range entries(t, l, 0) {
		if e.Received.Before(last) {
			t.Errorf("record %d arrived at %s, and the one before it at %s", e.Cursor, e.Received.UTC(), last.UTC())
		}
		last = e.Received
		if arrived[e.Sequence] = e.Cursor; e.Sequence > 0 {
			continue
		}
		var event auditv1.Event
		if err := proto.Unmarshal(e.Data, &event); err != nil {
			t.Fatal(err)
		}
		if loss := event.GetLoss(); loss.GetFrom().AsTime().After(loss.GetTo().AsTime()) {
			t.Errorf("a loss from %s to %s", loss.GetFrom().AsTime(), loss.GetTo().AsTime())
		}
	}
	for _, at := range []time.Duration{20 * time.Minute, 40 * time.Minute, 70 * time.Minute} {
		first := noon.Add(at)
		after, err := l.AfterTime(first.Add(timeSlack))
		if err != nil {
			t.Fatal(err)
		}
		oldest := uint64(at/(10*time.Minute)+1) * 2 // Of the first to arrive then, before the step.
		if at >= time.Hour {
			oldest += 12 // The hour of the step counts twice.
		}
		if after >= arrived[oldest] {
			t.Errorf("what arrived from %s on is said to follow record %d, and sequence %d is at %d", first, after, oldest, arrived[oldest])
		}
	}
}

// TestClockFarAhead: a clock that was ahead by years is not followed for good.
func TestClockFarAhead(t *testing.T) {
	t.Parallel()
	l, _ := start(t, Config{Dir: t.TempDir()})
	now := time.Now()
	for i, received := range []time.Time{now.AddDate(50, 0, 0), now} {
		b := batch("n1", uint64(i+1), "x")
		b.Received = received
		mustAppend(t, l, b)
	}
	if all := entries(t, l, 1); len(all) != 1 || !all[0].Received.Equal(now.Round(0)) {
		t.Errorf("%v", all)
	}
}
