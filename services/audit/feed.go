package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/storage/eventlog"
)

// Bounds of what subscribers hold.
const (
	pageRecords  = 128 // Of one page: who waits for its peer holds a page.
	pageBytes    = 64 << 10
	batchRecords = 4096 // Of one page of who takes batches.
	batchBytes   = 512 << 10
	ringRecords  = 16384 // That are held, decoded, for all who follow.
	ringBytes    = 8 << 20
	slots        = 8        // Readers of what is older, at a time.
	slotRecords  = 8192     // That one reads before another has its turn.
	chunkBytes   = 64 << 10 // Of a reader.
	wakePause    = 10 * time.Millisecond
)

// feed reads the log for all subscribers. Those near the log's end share a ring of
// pages, each read, decoded and encoded once, by the first who needs it. Who is
// behind the ring reads the log, in a slot, a page at a time, and holds nothing of
// the log while it sends. A subscriber is known here by its cursor alone: a slow
// one holds nobody up and pins no more than its page.
type feed struct {
	log   *eventlog.Log
	ring  uint64 // Records that the ring holds at most.
	slots chan *record.Decoder

	// reading is held by who reads on for all, and guards reader and decoder. It is
	// taken before mu.
	reading sync.Mutex
	reader  *eventlog.Reader
	decoder *record.Decoder

	mu      sync.RWMutex  // Guards what follows.
	pages   []*page       // Each goes on where the one before it ends.
	records int           // In the pages,
	bytes   int           // and of how many bytes.
	changed chan struct{} // Closed when there are new records, and replaced.
}

// page is all records after one cursor, up to another. It is immutable.
type page struct {
	after, last uint64
	skipped     uint64 // Of these, that retention had removed.
	bytes       int
	entries     []entry
}

// entry is a record as the log has it, decoded, and encoded for who sees all of it.
type entry struct {
	eventlog.Entry // Its data lie in wire.
	event          record.Event
	wire           response
}

// response is an encoded TailResponse.
type response []byte

func newFeed(log *eventlog.Log) *feed {
	f := &feed{log: log, ring: ringRecords, slots: make(chan *record.Decoder, slots), decoder: record.NewDecoder(), changed: make(chan struct{})}
	for range slots {
		f.slots <- record.NewDecoder()
	}
	return f
}

// run wakes the subscribers, but not more often than they can be served.
func (f *feed) run(ctx context.Context) error {
	wake, stop := f.log.Follow()
	defer stop()
	for {
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		f.mu.Lock()
		close(f.changed)
		f.changed = make(chan struct{})
		f.mu.Unlock()
		select {
		case <-time.After(wakePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wake is closed when there are records that were not there yet.
func (f *feed) wake() <-chan struct{} {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.changed
}

// shared is the page that goes on after a cursor. Nil: the ring does not reach back
// so far, or nothing comes after it.
func (f *feed) shared(after uint64) (*page, error) {
	if _, newest := f.log.Range(); after >= newest || newest-after > f.ring {
		return nil, nil
	}
	if p, behind := f.find(after); p != nil || behind {
		return p, nil
	}
	f.reading.Lock()
	defer f.reading.Unlock()
	p, behind := f.find(after) // Another may have read it meanwhile.
	if p != nil || behind {
		return p, nil
	}
	if f.reader == nil || f.reader.After() != after { // Nobody followed for a while.
		f.mu.Lock()
		f.pages, f.records, f.bytes = nil, 0, 0
		f.mu.Unlock()
		f.reader = f.log.NewReaderSize(after, chunkBytes)
	}
	p, err := f.read(after)
	if err != nil {
		f.reader = nil // It may have gone past records that nobody has.
		return nil, err
	}
	if p != nil {
		f.add(p)
	}
	return p, nil
}

// find looks for the page that goes on after a cursor. Behind: the ring does not
// reach back so far.
func (f *feed) find(after uint64) (p *page, behind bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(f.pages, after, func(p *page, after uint64) int {
		if p.last <= after {
			return -1
		}
		return 1
	})
	if i == len(f.pages) {
		return nil, false
	}
	if p = f.pages[i]; p.after > after {
		return nil, true
	}
	return p, false
}

// read makes the next page of the ring. Nil: there is nothing.
func (f *feed) read(after uint64) (*page, error) {
	p := &page{after: after, last: after}
	skipped := f.reader.Skipped()
	for len(p.entries) < pageRecords && p.bytes < pageBytes {
		e, ok, err := f.reader.Next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		n := entry{Entry: e, wire: encodeResponse(&e)}
		n.Data = n.wire[len(n.wire)-len(e.Data):]
		if err := f.decoder.DecodeInto(n.Data, &n.event); err != nil {
			return nil, unreadable(e.Cursor, err)
		}
		p.entries, p.last = append(p.entries, n), e.Cursor
		p.bytes += len(n.wire)
	}
	if len(p.entries) == 0 {
		return nil, nil
	}
	p.skipped = f.reader.Skipped() - skipped
	return p, nil
}

func (f *feed) add(p *page) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pages = append(f.pages, p)
	f.records += len(p.entries)
	f.bytes += p.bytes
	drop := 0
	for ; drop < len(f.pages)-1 && (uint64(f.records) > f.ring || f.bytes > ringBytes); drop++ {
		f.records -= len(f.pages[drop].entries)
		f.bytes -= f.pages[drop].bytes
	}
	f.pages = slices.Delete(f.pages, 0, drop)
}

// span is what of the log a page is to be of.
type span struct {
	after, last uint64
	records     int // At most.
	bytes       int // At most, but for one record.
	undecoded   bool
}

// older reads what is behind the ring, in a slot: a page of those records that a
// subscriber picks, encoded, out of at most slotRecords. Undecoded, pick is given no
// event.
func (f *feed) older(ctx context.Context, s span, pick func(*eventlog.Entry, *record.Event) (response, error)) (p *page, err error) {
	var d *record.Decoder
	select {
	case d = <-f.slots:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { f.slots <- d }()
	p = &page{after: s.after, last: s.after}
	r := f.log.NewReaderSize(s.after, max(chunkBytes, s.bytes))
	var event record.Event
	for n := 0; n < slotRecords && len(p.entries) < s.records && p.bytes < s.bytes && p.last < s.last; n++ {
		e, ok, err := r.Next()
		if err != nil {
			return nil, err
		}
		if !ok || e.Cursor > s.last {
			break
		}
		if !s.undecoded {
			if err := d.DecodeInto(e.Data, &event); err != nil {
				return nil, unreadable(e.Cursor, err)
			}
		}
		p.last = e.Cursor
		wire, err := pick(&e, &event)
		if err != nil {
			return nil, err
		}
		if wire != nil {
			p.entries = append(p.entries, entry{Entry: eventlog.Entry{Cursor: e.Cursor}, wire: wire})
			p.bytes += len(wire)
		}
	}
	p.skipped = r.Skipped()
	return p, nil
}

// arrivalSlack is by how much a node's clock may be ahead of the collector's, and
// the collector's may have been set back.
const arrivalSlack = time.Hour

// since is a cursor behind which all records are whose events happened at or after
// a time. An event arrives after it happened, and may do so much later, but not
// earlier, as far as clocks agree: what arrived arrivalSlack before the time
// happened before it.
func (f *feed) since(t time.Time) (uint64, error) {
	return f.log.AfterTime(t.Add(-arrivalSlack))
}

// encodeResponse is the TailResponse of a record that nothing is hidden of. The
// event comes as it lies in the log, and last.
func encodeResponse(e *eventlog.Entry) response {
	var stamp [24]byte
	received := stamp[:0] // A Timestamp.
	if n := e.Received.Unix(); n != 0 {
		received = protowire.AppendVarint(protowire.AppendTag(received, 1, protowire.VarintType), uint64(n))
	}
	if n := e.Received.Nanosecond(); n != 0 {
		received = protowire.AppendVarint(protowire.AppendTag(received, 2, protowire.VarintType), uint64(n))
	}
	// All tags are of one byte.
	size := 1 + protowire.SizeVarint(e.Cursor) + 1 + protowire.SizeBytes(len(e.Node)) + 1 + protowire.SizeBytes(len(e.Boot)) +
		1 + protowire.SizeBytes(len(received)) + 1 + protowire.SizeBytes(len(e.Data))
	if e.Sequence > 0 {
		size += 1 + protowire.SizeVarint(e.Sequence)
	}
	b := make([]byte, 0, 1+protowire.SizeVarint(e.Cursor)+1+protowire.SizeBytes(size))
	b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), e.Cursor)
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.BytesType), uint64(size))
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), e.Cursor)
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), e.Node)
	b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), e.Boot)
	if e.Sequence > 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, 4, protowire.VarintType), e.Sequence)
	}
	b = protowire.AppendBytes(protowire.AppendTag(b, 5, protowire.BytesType), received)
	return protowire.AppendBytes(protowire.AppendTag(b, 6, protowire.BytesType), e.Data)
}

var errUnreadable = errors.New("it cannot be read")

func unreadable(cursor uint64, err error) error {
	return fmt.Errorf("record %d: %w: %w", cursor, errUnreadable, err)
}

// recordOf is a record as it is told, of what this version knows.
func recordOf(e *eventlog.Entry) (*auditv1.Record, error) {
	event := &auditv1.Event{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Data, event); err != nil {
		return nil, err
	}
	return &auditv1.Record{Cursor: e.Cursor, Node: e.Node, Boot: e.Boot, Sequence: e.Sequence, Received: timestamppb.New(e.Received), Event: event}, nil
}
