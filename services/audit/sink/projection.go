package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/storage/eventlog"
	"github.com/weirnet/weir/storage/faultpoint"
)

// projection is one run from what is stored to the first error.
type projection struct {
	*Sink
	reader  *eventlog.Reader
	decoder *record.Decoder
	dedup   *record.Dedup
	failed  error // Of the output.
	dirty   bool  // Lines were written since the last sync.
	merged  uint64
	skipped uint64
	testing []string // Tests since the last commit.
}

func (s *Sink) project(ctx context.Context) (err error) {
	out := s.cfg.Output
	if err := out.Open(ctx, s.link()); err != nil {
		return errors.Join(err, out.Close())
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	p := &projection{Sink: s, reader: s.cfg.Log.NewReader(s.kept.read), decoder: record.NewDecoder()}
	writing := ctx
	p.dedup = record.NewDedup(record.DedupConfig{Key: s.cfg.Key, MaxWindows: s.cfg.MaxWindows, Emit: func(l *record.Line) { p.emit(writing, l) }})
	if err := p.resume(); err != nil {
		return err
	}
	if err := p.follow(ctx); err != nil {
		return err
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	writing = end
	if p.dedup.Flush(); p.failed != nil {
		return p.failed
	}
	return p.commit(end)
}

// endTimeout is how long the last lines may take.
const endTimeout = 2 * time.Second

func (s *Sink) link() Link {
	return Link{
		State: s.kept.output,
		Keep: func(state []byte) error {
			k := s.kept
			k.output = state
			return s.store(k)
		},
		Trouble: s.trouble,
		Refused: s.refused,
	}
}

// resume opens the windows again that were open when the cursor was stored.
func (p *projection) resume() error {
	windows := p.kept.windows
	reader := p.cfg.Log.NewReader(p.kept.cursor)
	var missing uint64
	for len(windows) > 0 {
		var r record.Record
		more, err := p.next(reader, &r)
		if err != nil {
			return err
		}
		for len(windows) > 0 && (!more || windows[0].Cursor < r.Cursor) {
			missing++
			windows = windows[1:]
		}
		if len(windows) > 0 && windows[0].Cursor == r.Cursor {
			p.dedup.Resume(&r, windows[0], p.cfg.Now())
			windows = windows[1:]
		}
	}
	if missing > 0 {
		p.skip(missing)
	}
	return nil
}

func (p *projection) skip(n uint64) {
	p.cfg.Logger.Warn("retention removed records before the sink had written them", "sink", p.cfg.Name, "count", n)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Skipped += n
}

// follow projects what there is and what comes, until the context ends.
func (p *projection) follow(ctx context.Context) error {
	wake, stop := p.cfg.Log.Follow()
	defer stop()
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	committed := p.cfg.Now()
	for {
		more, err := p.read()
		if err != nil {
			return err
		}
		now := p.cfg.Now()
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
				return nil
			}
			continue
		}
		if p.dirty {
			if err := p.cfg.Output.Flush(ctx); err != nil {
				return err
			}
		}
		var ticks <-chan time.Time
		if p.dirty || p.dedup.Open() > 0 || p.reader.After() != p.kept.read || p.Stats().LastError != "" {
			ticks = tick.C
		}
		select {
		case <-wake:
		case <-ticks:
		case <-p.reopen:
			if err := p.moved(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// moved is for files that were moved away: what is written belongs to them.
func (p *projection) moved(ctx context.Context) error {
	r, ok := p.cfg.Output.(Reopener)
	if !ok {
		return nil
	}
	if err := p.commit(ctx); err != nil {
		return err
	}
	return r.Reopen()
}

// read takes a run of records. It is false when there are no more for now.
func (p *projection) read() (more bool, err error) {
	now := p.cfg.Now()
	var r record.Record
	for range batchRecords {
		if ok, err := p.next(p.reader, &r); err != nil || !ok {
			return false, err
		}
		if !p.wants(&r) {
			continue
		}
		if p.dedup.Add(&r, now); p.failed != nil {
			return false, p.failed
		}
	}
	return true, nil
}

// wants says whether the sink writes a record. A test is for one sink, whatever
// its filter is.
func (p *projection) wants(r *record.Record) bool {
	if r.Kind != record.KindTest {
		return p.cfg.Filter.Matches(r.Node, &r.Event)
	}
	if r.Test.Sink != p.cfg.Name {
		return false
	}
	p.testing = append(p.testing, r.Test.ID)
	p.hop(r.Test.ID, Hop{Name: "read", Detail: fmt.Sprintf("cursor %d", r.Cursor)})
	return true
}

// next reads the next record that can be read. It is false when there is none.
func (p *projection) next(reader *eventlog.Reader, r *record.Record) (bool, error) {
	for {
		e, ok, err := reader.Next()
		if err != nil || !ok {
			return false, err
		}
		if err := p.decoder.DecodeInto(e.Data, &r.Event); err != nil {
			// It was checked before it was stored: another version's.
			p.cfg.Logger.Error("a stored event cannot be read; it is left out", "sink", p.cfg.Name, "cursor", e.Cursor, "err", err)
			continue
		}
		r.Cursor, r.Node, r.Boot, r.Sequence, r.Received = e.Cursor, e.Node, e.Boot, e.Sequence, e.Received
		return true, nil
	}
}

func (p *projection) emit(ctx context.Context, l *record.Line) {
	if p.failed != nil {
		return
	}
	faultpoint.Reach("auditd.sink.line")
	n, err := p.cfg.Output.Write(ctx, l)
	if err != nil {
		p.failed = err
		return
	}
	if l.Kind == record.KindTest {
		p.written(l.Test.ID, n)
	}
	p.dirty = true
	p.mu.Lock()
	p.stats.Lines += uint64(n)
	p.mu.Unlock()
}

// commit makes safe what was written, and stores how far that is.
func (p *projection) commit(ctx context.Context) error {
	k := kept{cursor: p.reader.After(), read: p.reader.After(), windows: p.dedup.Save(nil), output: p.kept.output}
	if len(k.windows) > 0 {
		k.cursor = k.windows[0].Cursor - 1
	}
	stateful, _ := p.cfg.Output.(Stateful)
	changed := p.dirty || k.read != p.kept.read
	if p.dirty {
		if err := p.cfg.Output.Flush(ctx); err != nil {
			return err
		}
		faultpoint.Reach("auditd.sink.flushed")
		if err := p.cfg.Output.Sync(ctx); err != nil {
			return err
		}
		faultpoint.Reach("auditd.sink.synced")
		p.dirty = false
	}
	for _, id := range p.testing {
		p.hop(id, Hop{Name: "written", Detail: p.peer()})
	}
	if changed {
		if stateful != nil {
			k.output = stateful.State()
		}
		if err := p.store(k); err != nil {
			return err
		}
		faultpoint.Reach("auditd.sink.stored")
		if stateful != nil {
			stateful.Stored()
		}
	}
	if n := p.reader.Skipped() - p.skipped; n > 0 {
		p.skip(n)
		p.skipped += n
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Cursor = p.kept.cursor
	p.stats.Merged += p.dedup.Merged() - p.merged
	p.merged = p.dedup.Merged()
	p.stats.LastError = ""
	for _, id := range p.testing {
		p.hopLocked(id, Hop{Name: "acknowledged", Detail: fmt.Sprintf("cursor %d is stored", p.kept.cursor), Last: true})
	}
	p.testing = nil
	return nil
}
