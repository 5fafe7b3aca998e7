// Package sink projects the event log to files and to receivers of other kinds,
// and forwards it to another collector.
//
//	eventlog ─► Reader ─► Filter ─► record.Dedup ─► Output (Files, Syslog, OTLP, HTTP, NATS)
//	   └──────── Cursors ◄── commit: the cursor, the open windows and the output's own state, once all before is safe
//
//	eventlog ─► Reader ─► batches ══Report══► another collector ─► acks ─► Cursors (Forward)
//
// Each sink is one goroutine with a reader, a de-duplication and a cursor of
// its own, and so at its own pace: one that is stuck holds nothing back but
// itself, and what waits for it is in the log alone. What it writes is at least
// what the log holds: the cursor is stored only when all lines below it are safe
// (on the disk, or acknowledged by the peer), so that after a crash lines may
// come again, and none is lost. Files do better: with the cursor goes how long
// each file was, and what a crash left behind that is cut off before it is
// written again, so that each line is there once. On any error the sink waits,
// opens its output again and goes on from what is stored.
//
// Records that retention removes before a sink has read them are counted
// (Stats.Skipped) and logged.
//
// Read sink_test.go first.
package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/storage/eventlog"
)

// Output is where a sink writes. One goroutine calls it.
type Output interface {
	// Open makes ready; after an error of any method it is called again. The link
	// is good until Close.
	Open(ctx context.Context, link Link) error
	// Write takes a line, and says how many lines or messages came of it. It may
	// keep it until Flush.
	Write(ctx context.Context, l *record.Line) (int, error)
	// Flush lets others see what was written.
	Flush(ctx context.Context) error
	// Sync returns when all that was written survives a crash of ours, or is the
	// peer's.
	Sync(ctx context.Context) error
	// Close gives up what Open took. What was not flushed is lost.
	Close() error
}

// Stateful is an Output that has something stored with the cursor.
type Stateful interface {
	// State is what is to be stored, after Sync.
	State() []byte
	// Stored says that it was.
	Stored()
}

// Reopener is an Output that can be told that its files were moved away.
type Reopener interface{ Reopen() error }

// Peered is an Output that knows whom it is connected with.
type Peered interface{ Peer() string }

// Link is what a sink lends its output.
type Link struct {
	State   []byte                   // What was stored last with the cursor. Empty: nothing.
	Keep    func(state []byte) error // Stores another state with the cursor as it is stored.
	Trouble func(err error)          // The peer is away, or does not take it; the output tries on.
	Refused func(lines int)          // The peer took everything but so many lines, and never will.
}

// Intervals of a sink.
const (
	commitInterval = time.Second
	tickInterval   = 100 * time.Millisecond
	minBackoff     = 200 * time.Millisecond
	maxBackoff     = 10 * time.Second
	batchRecords   = 4096 // Between two looks at the clock.
)

// Config of a Sink.
type Config struct {
	Name       string // Names the cursor. The same output has the same name in every life.
	Type       string // Of the output, for Stats.
	Format     string // Of its lines, for Stats.
	Log        *eventlog.Log
	Output     Output
	Key        record.Key     // Which packets are one line.
	Filter     *record.Filter // Nil: everything.
	MaxWindows int            // Zero: record.DefaultMaxWindows.
	Logger     hclog.Logger
	Now        func() time.Time // Nil: time.Now.
}

// Stats say how far a sink is.
type Stats struct {
	Name        string
	Type        string
	Format      string
	Cursor      uint64 // Everything up to it is written.
	Lines       uint64 // Since start; repeated ones too.
	Merged      uint64 // Packets in a line that was written for another.
	Skipped     uint64 // Records that retention removed before they were read.
	DeadLetters uint64 // Lines that the peer refused for good.
	LastError   string // Empty: none since the last success.
}

// Sink is one projection. New, Run.
type Sink struct {
	cfg    Config
	kept   kept          // What is stored. Of the goroutine of Run.
	reopen chan struct{} // One slot: the files were moved away.

	mu    sync.Mutex // Guards what follows.
	stats Stats
	tests map[string]chan Hop // That somebody follows, by id.
}

// New returns a sink.
func New(cfg Config) (*Sink, error) {
	if cfg.Name == "" || cfg.Log == nil || cfg.Output == nil {
		return nil, errors.New("sink: name, log and output are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cursor, stored, err := cfg.Log.Cursors().LoadState(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	s := &Sink{cfg: cfg, reopen: make(chan struct{}, 1), tests: make(map[string]chan Hop), stats: Stats{Name: cfg.Name, Type: cfg.Type, Format: cfg.Format, Cursor: cursor}}
	if s.kept, err = decodeKept(cursor, stored); err != nil {
		return nil, fmt.Errorf("sink %s: %w", cfg.Name, err)
	}
	return s, nil
}

// Stats says how far the sink is.
func (s *Sink) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Reopen has the sink open its files anew, as after logrotate.
func (s *Sink) Reopen() {
	select {
	case s.reopen <- struct{}{}:
	default:
	}
}

// Run writes until the context ends. Then it ends the open windows, so that a
// clean restart repeats nothing.
func (s *Sink) Run(ctx context.Context) error {
	pause := minBackoff
	for {
		before := s.kept.read
		err := s.project(ctx)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				s.cfg.Logger.Warn("sink ended with lines to repeat", "sink", s.cfg.Name, "err", err)
			}
			return ctx.Err()
		}
		if s.kept.read > before {
			pause = minBackoff
		}
		s.trouble(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, maxBackoff)
	}
}

// trouble notes an error, and logs the first of several.
func (s *Sink) trouble(err error) {
	s.mu.Lock()
	first := s.stats.LastError == ""
	s.stats.LastError = err.Error()
	for id := range s.tests {
		s.hopLocked(id, Hop{Name: "failed", Error: err.Error()})
	}
	s.mu.Unlock()
	if first {
		s.cfg.Logger.Warn("sink fails; it goes on from its cursor", "sink", s.cfg.Name, "cursor", s.kept.cursor, "err", err)
	}
}

func (s *Sink) refused(lines int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.DeadLetters += uint64(lines)
	for id := range s.tests {
		s.hopLocked(id, Hop{Name: "refused", Error: fmt.Sprintf("the receiver refuses %d lines for good; they are among the dead letters", lines)})
	}
}

// store keeps durably how far the sink is.
func (s *Sink) store(k kept) error {
	if err := s.cfg.Log.Cursors().StoreState(s.cfg.Name, k.cursor, k.encode()); err != nil {
		return err
	}
	s.kept = k
	return nil
}
