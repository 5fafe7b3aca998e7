// Package sink projects the event log to files and syslog, and forwards it to
// another collector.
//
//	eventlog ─► Reader ─► record.Decoder ─► record.Dedup ─► Output (NPLogs, JSONFile, Syslog)
//	   └──────── Cursors ◄── commit: below the oldest open window, once that is safe
//
//	eventlog ─► Reader ─► batches ══Report══► another collector ─► acks ─► Cursors (Forward)
//
// Each sink is one goroutine with a reader, a de-duplication and a cursor of
// its own, and so at its own pace: one that is stuck holds nothing back but
// itself. What it writes is at least what the log holds: the cursor is stored
// only when all lines below it are safe (on the disk, or taken by the peer), so
// that after a crash lines may come again, and none is lost. On any error the
// sink waits, opens its output again and goes on from the stored cursor.
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
	// Open makes ready; after an error of any method it is called again.
	Open(ctx context.Context) error
	// Write takes a line, and says how many lines or messages came of it. It may
	// keep it until Flush.
	Write(l *record.Line) (int, error)
	// Flush lets others see what was written.
	Flush(ctx context.Context) error
	// Sync returns when all that was written survives a crash of ours, or is the
	// peer's.
	Sync(ctx context.Context) error
	// Close gives up what Open took. What was not flushed is lost.
	Close() error
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
	Log        *eventlog.Log
	Output     Output
	Key        record.Key // Which packets are one line.
	MaxWindows int        // Zero: record.DefaultMaxWindows.
	Logger     hclog.Logger
	Now        func() time.Time // Nil: time.Now.
}

// Stats say how far a sink is.
type Stats struct {
	Name      string
	Cursor    uint64 // Everything up to it is written.
	Lines     uint64 // Since start; repeated ones too.
	Merged    uint64 // Packets in a line that was written for another.
	Skipped   uint64 // Records that retention removed before they were read.
	LastError string // Empty: none since the last success.
}

// Sink is one projection. New, Run.
type Sink struct {
	cfg Config

	mu    sync.Mutex // Guards stats.
	stats Stats
}

// New returns a sink.
func New(cfg Config) (*Sink, error) {
	if cfg.Name == "" || cfg.Log == nil || cfg.Output == nil {
		return nil, errors.New("sink: name, log and output are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cursor, err := cfg.Log.Cursors().Load(cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	return &Sink{cfg: cfg, stats: Stats{Name: cfg.Name, Cursor: cursor}}, nil
}

// Stats says how far the sink is.
func (s *Sink) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Run writes until the context ends. Then it ends the open windows, so that a
// clean restart repeats nothing.
func (s *Sink) Run(ctx context.Context) error {
	pause := minBackoff
	for {
		before := s.Stats().Cursor
		err := s.project(ctx)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				s.cfg.Logger.Warn("sink ended with lines to repeat", "sink", s.cfg.Name, "err", err)
			}
			return ctx.Err()
		}
		after := s.Stats()
		if after.Cursor > before {
			pause = minBackoff
		}
		if after.LastError == "" {
			s.cfg.Logger.Warn("sink fails; it goes on from its cursor", "sink", s.cfg.Name, "cursor", after.Cursor, "err", err)
		}
		s.mu.Lock()
		s.stats.LastError = err.Error()
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, maxBackoff)
	}
}

// projection is one run from the stored cursor to the first error.
type projection struct {
	*Sink
	reader  *eventlog.Reader
	decoder *record.Decoder
	dedup   *record.Dedup
	failed  error // Of the output.
	dirty   bool  // Lines were written since the last sync.
	merged  uint64
	skipped uint64
}

func (s *Sink) project(ctx context.Context) (err error) {
	out := s.cfg.Output
	if err := out.Open(ctx); err != nil {
		return errors.Join(err, out.Close())
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	p := &projection{Sink: s, reader: s.cfg.Log.NewReader(s.Stats().Cursor), decoder: record.NewDecoder()}
	p.dedup = record.NewDedup(record.DedupConfig{Key: s.cfg.Key, MaxWindows: s.cfg.MaxWindows, Emit: p.emit})
	wake, stop := s.cfg.Log.Follow()
	defer stop()
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	committed := s.cfg.Now()
	for {
		more, err := p.read()
		if err != nil {
			return err
		}
		now := s.cfg.Now()
		if !more {
			p.dedup.Tick(now)
		}
		if p.failed != nil {
			return p.failed
		}
		if now.Sub(committed) >= commitInterval {
			if err := p.commit(ctx); err != nil {
				return err
			}
			committed = now
		}
		if more {
			if ctx.Err() != nil {
				return p.end()
			}
			continue
		}
		if p.dirty {
			if err := out.Flush(ctx); err != nil {
				return err
			}
		}
		var ticks <-chan time.Time
		if p.dedup.Open() > 0 || p.reader.After() != s.Stats().Cursor || s.Stats().LastError != "" {
			ticks = tick.C
		}
		select {
		case <-wake:
		case <-ticks:
		case <-ctx.Done():
			return p.end()
		}
	}
}

// read takes a run of records. It is false when there are no more for now.
func (p *projection) read() (more bool, err error) {
	now := p.cfg.Now()
	var r record.Record
	for range batchRecords {
		e, ok, err := p.reader.Next()
		if err != nil || !ok {
			return false, err
		}
		if err := p.decoder.DecodeInto(e.Data, &r.Event); err != nil {
			// It was checked before it was stored: another version's.
			p.cfg.Logger.Error("a stored event cannot be read; it is left out", "sink", p.cfg.Name, "cursor", e.Cursor, "err", err)
			continue
		}
		r.Cursor, r.Node, r.Boot, r.Sequence, r.Received = e.Cursor, e.Node, e.Boot, e.Sequence, e.Received
		if p.dedup.Add(&r, now); p.failed != nil {
			return false, p.failed
		}
	}
	return true, nil
}

func (p *projection) emit(l *record.Line) {
	if p.failed != nil {
		return
	}
	n, err := p.cfg.Output.Write(l)
	if err != nil {
		p.failed = err
		return
	}
	p.dirty = true
	p.mu.Lock()
	p.stats.Lines += uint64(n)
	p.mu.Unlock()
}

// commit makes safe what was written, and stores the cursor below which that is
// all.
func (p *projection) commit(ctx context.Context) error {
	cursor := p.reader.After()
	if oldest, ok := p.dedup.Oldest(); ok {
		cursor = oldest - 1
	}
	if p.dirty {
		if err := p.cfg.Output.Flush(ctx); err != nil {
			return err
		}
		if err := p.cfg.Output.Sync(ctx); err != nil {
			return err
		}
		p.dirty = false
	}
	stored := p.Stats().Cursor
	if cursor > stored {
		if err := p.cfg.Log.Cursors().Store(p.cfg.Name, cursor); err != nil {
			return err
		}
	}
	if n := p.reader.Skipped() - p.skipped; n > 0 {
		p.cfg.Logger.Warn("retention removed records before the sink had read them", "sink", p.cfg.Name, "count", n)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Cursor = max(cursor, stored)
	p.stats.Merged += p.dedup.Merged() - p.merged
	p.merged = p.dedup.Merged()
	p.stats.Skipped += p.reader.Skipped() - p.skipped
	p.skipped = p.reader.Skipped()
	p.stats.LastError = ""
	return nil
}

// endTimeout is how long the last lines may take.
const endTimeout = 2 * time.Second

func (p *projection) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if p.dedup.Flush(); p.failed != nil {
		return p.failed
	}
	return p.commit(ctx)
}
