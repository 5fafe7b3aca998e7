package audit

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/storage/eventlog"
)

// When a subscriber is told how far the log was read, without a record.
const (
	tellRecords  = 65536
	tellInterval = time.Second
)

// subscription is one Tail. It belongs to the call's goroutine.
type subscription struct {
	feed *feed
	view *view
	// reviewed has the view that counts from now on, whenever there is another. Nil: it
	// stays.
	reviewed <-chan *view
	match    *record.Filter
	call     grpc.ServerStream
	now      func() time.Time
	left     uint32 // Records that may still be sent. Zero: no limit.
	batch    int    // Records of a response. Zero: one, as such.

	after  uint64    // Everything up to it was sent, or does not match.
	last   uint64    // Where to end.
	told   uint64    // The cursor of the last response,
	toldAt time.Time // and when one came without a record.
	ended  bool      // The limit is reached.
}

// run sends until what was asked for is sent, or follows until the call ends.
func (c *subscription) run(ctx context.Context, follow bool, stopping <-chan struct{}) error {
	for {
		wake := c.feed.wake()
		more, err := c.advance(ctx)
		if err != nil || c.ended {
			return err
		}
		if more {
			if err := c.tell(c.after-c.told >= tellRecords); err != nil {
				return err
			}
			continue
		}
		if !follow {
			c.toldAt = time.Time{}
			return c.tell(true)
		}
		if err := c.tell(true); err != nil {
			return err
		}
		var due <-chan time.Time
		if c.after > c.told {
			due = time.After(c.toldAt.Add(tellInterval).Sub(c.now()))
		}
		select {
		case <-wake:
		case <-due:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-stopping:
			return errStopping
		}
	}
}

// tell says how far the log was read, if there is something to say and it was not
// said just before.
func (c *subscription) tell(due bool) error {
	if !due || c.after <= c.told || c.now().Sub(c.toldAt) < tellInterval {
		return nil
	}
	return c.send(&auditv1.TailResponse{Cursor: c.after})
}

func (c *subscription) send(r *auditv1.TailResponse) error {
	c.told, c.toldAt = r.Cursor, c.now()
	return c.call.SendMsg(r)
}

// advance reads on by a page. More: it is not behind the newest.
func (c *subscription) advance(ctx context.Context) (more bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	select {
	case c.view = <-c.reviewed:
	default:
	}
	if _, newest := c.feed.log.Range(); c.after >= min(newest, c.last) {
		return false, nil
	}
	p, err := c.feed.shared(c.after)
	own := p == nil
	if err == nil && own {
		p, err = c.feed.older(ctx, c.span(), func(e *eventlog.Entry, event *record.Event) (response, error) { return c.pick(e, event, nil) })
	}
	if err != nil {
		return false, err
	}
	if p.skipped > 0 && c.after == p.after && c.after > 0 {
		if err := c.send(&auditv1.TailResponse{Cursor: c.after, Skipped: p.skipped}); err != nil {
			return false, err
		}
	}
	before := c.after
	var together batch
	for i := range p.entries {
		e := &p.entries[i]
		if e.Cursor <= c.after {
			continue
		}
		if e.Cursor > c.last {
			break
		}
		if c.reviewed != nil && ctx.Err() != nil { // A slow caller may have lost its right since the page was read.
			return false, context.Cause(ctx)
		}
		wire := e.wire
		if !own {
			if wire, err = c.pick(&e.Entry, &e.event, e.wire); err != nil {
				return false, err
			}
		}
		c.after = e.Cursor
		if wire == nil {
			continue
		}
		if c.left > 0 {
			c.left--
			c.ended = c.left == 0
		}
		if c.batch > 0 {
			together.add(wire)
		} else if err := c.call.SendMsg(wire); err != nil {
			return false, err
		}
		c.told = e.Cursor
		if c.ended || together.n > 0 && together.n == c.batch {
			if err := together.send(c.call, e.Cursor); err != nil || c.ended {
				return false, err
			}
		}
	}
	if err := together.send(c.call, c.told); err != nil {
		return false, err
	}
	c.after = max(c.after, min(p.last, c.last))
	return c.after > before, nil
}

// span is what to read next.
func (c *subscription) span() span {
	s := span{after: c.after, last: c.last, records: pageRecords, bytes: pageBytes}
	if c.batch > 0 {
		s.records, s.bytes = c.batch, batchBytes
	}
	s.undecoded = c.view.All && c.match == nil
	return s
}

// batch is records that are sent together.
type batch struct {
	wire response
	n    int
}

// add takes a response with a cursor and one record, of one for who sees everything.
func (b *batch) add(one response) {
	_, _, tag := protowire.ConsumeField(one) // The cursor; see encodeResponse.
	if b.wire == nil {
		b.wire = make(response, 0, batchBytes/4)
	}
	b.wire = protowire.AppendTag(b.wire, responseRecords, protowire.BytesType)
	b.wire = append(b.wire, one[tag+1:]...) // Of the record's tag, one byte.
	b.n++
}

// responseRecords is the number of TailResponse's field, from audit.proto.
const responseRecords = 5

// send sends what there is, all up to a cursor.
func (b *batch) send(call grpc.ServerStream, cursor uint64) error {
	if b.n == 0 {
		return nil
	}
	wire := protowire.AppendVarint(protowire.AppendTag(b.wire, 2, protowire.VarintType), cursor)
	*b = batch{}
	return call.SendMsg(response(wire))
}

// pick is the response of a record that matches and that the caller sees; nil of
// others. Encoded is that for those who see everything; nil: not encoded yet.
//
// A filter judges what the caller is shown, so that it cannot be used to guess
// what is hidden. Nothing matches for being hidden: what does not match as it is
// does not match as it is shown.
func (c *subscription) pick(e *eventlog.Entry, event *record.Event, encoded response) (response, error) {
	if !c.view.sees(event) || !c.match.Matches(e.Node, event) {
		return nil, nil
	}
	if c.view.All {
		if encoded == nil {
			encoded = encodeResponse(e)
		}
		return encoded, nil
	}
	r, err := recordOf(e)
	if err != nil {
		return nil, unreadable(e.Cursor, err)
	}
	redacted := c.view.redact(r)
	if redacted && c.match != nil {
		shown, err := decoded(r)
		if err != nil {
			return nil, err
		}
		if !c.match.Matches(r.GetNode(), &shown) {
			return nil, nil
		}
	}
	out, err := proto.Marshal(&auditv1.TailResponse{Record: r, Cursor: e.Cursor, Redacted: redacted})
	if err != nil {
		return nil, unreadable(e.Cursor, err)
	}
	return out, nil
}

// decoded reads a record of which something may have been taken out.
func decoded(r *auditv1.Record) (record.Event, error) {
	data, err := proto.Marshal(r.GetEvent())
	if err != nil {
		return record.Event{}, fmt.Errorf("record %d: %w", r.GetCursor(), err)
	}
	d := record.NewDecoder()
	d.Redacted = true
	event, err := d.Decode(data)
	if err != nil {
		return record.Event{}, fmt.Errorf("record %d, as it is shown: %w", r.GetCursor(), err)
	}
	return event, nil
}

// seats bounds how many subscribers there are, and that one identity has at most
// half of them.
type seats struct {
	most int

	mu    sync.Mutex // Guards what follows.
	taken int
	by    map[string]int
}

// take takes a seat, which leave gives back.
func (s *seats) take(holder string) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.most {
		return nil, fmt.Errorf("there are %d subscribers already (--max-subscribers)", s.taken)
	}
	if each := (s.most + 1) / 2; s.by[holder] >= each {
		return nil, fmt.Errorf("%s has %d subscriptions already, half of what there may be (--max-subscribers %d)", holder, each, s.most)
	}
	s.taken++
	s.by[holder]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken--
		if s.by[holder]--; s.by[holder] == 0 {
			delete(s.by, holder)
		}
	}, nil
}

func (s *seats) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}
