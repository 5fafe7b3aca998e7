package server

import (
	"context"
	"sync/atomic"
	"time"
)

// pace spaces what concerns many nodes. A change that reaches a few is handed
// on at once. One that reaches many begins a wave; the next begins when most
// streams have taken their cut of the first and as long again has passed, so
// that under load changes gather in the store, where they coalesce, and half of
// the time is left for everything else. A wave does not wait for slow nodes.
type pace struct {
	streams atomic.Int64  // Open ones.
	cuts    atomic.Int64  // Cuts that streams have taken.
	target  atomic.Int64  // At which the wave has passed.
	passed  chan struct{} // One slot.
}

// Scopes of up to narrow nodes are not held back. A wave that has not passed
// after longestWave is taken to have.
const (
	narrow      = 64
	longestWave = 100 * time.Millisecond
)

// taken counts a cut that a stream took.
func (p *pace) taken() {
	if p.cuts.Add(1) == p.target.Load() {
		p.pass()
	}
}

func (p *pace) pass() {
	select {
	case p.passed <- struct{}{}:
	default:
	}
}

// begin is called when a wave has been dispatched. The streams have been taking
// their cuts of it since cuts had the value that is given. A stream takes one
// cut, however many of its scopes were marked.
func (p *pace) begin(before int64, marks int) {
	select { // Of a former wave.
	case <-p.passed:
	default:
	}
	target := before + max(1, min(int64(marks), p.streams.Load())*9/10)
	p.target.Store(target)
	if p.cuts.Load() >= target {
		p.pass()
	}
}

// Run wakes the streams that changes concern until the context ends. Then it
// ends the streams: nothing new would come over them. It is called once.
func (s *Server) Run(ctx context.Context) error {
	defer close(s.stopping)
	if r := s.barriers.replicas; r != nil {
		done := make(chan struct{})
		defer func() { <-done }()
		go func() { defer close(done); r.run(ctx) }()
	}
	kept := make(chan struct{})
	defer func() { <-kept }()
	go func() { defer close(kept); s.keepTallies(ctx) }()
	expire := time.NewTicker(time.Second)
	defer expire.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var looked time.Time // For nodes that were never here.
	var began time.Time  // Of the wave under way; zero for none.
	resting := false     // The wave has passed, and the timer ends its rest.
	idle := false        // No wave is under way, and the timer tells when that has lasted.
	garbage := newCollector()
	wave := func() {
		before, start := s.pace.cuts.Load(), time.Now()
		marks, _ := s.cfg.Store.Dispatch(1 << 30)
		if marks <= narrow {
			return
		}
		began, resting, idle = start, false, false
		s.pace.begin(before, marks)
		timer.Reset(longestWave)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-expire.C:
			s.barriers.expire(now)
			if now.Sub(looked) >= absenceInterval {
				looked = now
				s.absences.look(s.cfg.Store.Nodes(), &s.sessions, now)
			}
		case <-s.cfg.Store.Changed():
			if began.IsZero() {
				wave()
			} else {
				s.cfg.Store.Dispatch(narrow)
			}
		case <-s.pace.passed:
			if !began.IsZero() && !resting {
				resting = true
				timer.Reset(time.Since(began))
			}
		case <-timer.C:
			switch {
			case idle:
				idle = false
				garbage.rest()
			case began.IsZero():
			case !resting:
				resting = true
				timer.Reset(longestWave)
			default:
				began = time.Time{}
				if wave(); began.IsZero() {
					idle = true
					timer.Reset(2 * longestWave) // The last of the wave may still be on their way.
				}
			}
		}
	}
}
