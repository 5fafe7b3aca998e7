package eventlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// Batch is a run of events of one boot, with consecutive sequence numbers.
type Batch struct {
	Node, Boot string
	First      uint64 // Sequence of Events[0]; at least one.
	Events     []Event
	Received   time.Time
}

// Event is one event of a batch. The log keeps its data as it is.
type Event struct {
	Data  []byte            // An encoded auditv1.Event.
	Stage auditv1.LossStage // Of a loss. Zero: it is none.
	Lost  uint64            // Count of a loss.
}

// Result says what became of a batch.
type Result struct {
	High     uint64 // Highest sequence of the boot that is durable.
	Stored   int    // Events that are new.
	Repeated int    // Events that were stored before.
	Missing  uint64 // Sequence numbers left out before the batch; stored as a loss.
}

// ErrSequence is the error for a batch whose numbers cannot be.
var ErrSequence = errors.New("sequence numbers begin with one and do not wrap")

// pending is a batch in the queue.
type pending struct {
	batch Batch
	size  int64
	done  func(Result, error)

	// The writer's.
	result Result
}

// Append stores a batch durably.
func (l *Log) Append(ctx context.Context, b Batch) (Result, error) {
	type outcome struct {
		result Result
		err    error
	}
	c := make(chan outcome, 1)
	if err := l.Submit(ctx, b, func(r Result, err error) { c <- outcome{r, err} }); err != nil {
		return Result{}, err
	}
	select {
	case o := <-c:
		return o.result, o.err
	case <-l.done:
		return Result{}, fmt.Errorf("append to event log: %w", errClosed)
	case <-ctx.Done():
		return Result{}, fmt.Errorf("append to event log: %w", ctx.Err())
	}
}

// Submit queues a batch; done is called once with what became of it, unless
// Submit returns an error or Run ends. Done is called by the writer, and must not wait. If
// the queue is full, Submit waits. Batches of one caller are stored in order.
func (l *Log) Submit(ctx context.Context, b Batch, done func(Result, error)) error {
	if b.First == 0 || len(b.Events) == 0 || b.First+uint64(len(b.Events)) < b.First {
		return fmt.Errorf("append to event log: %d events of node %s from %d: %w", len(b.Events), b.Node, b.First, ErrSequence)
	}
	p := &pending{batch: b, done: done}
	for _, e := range b.Events {
		p.size += int64(len(e.Data)) + binary.MaxVarintLen32
	}
	p.size = min(p.size, queueBytes)
	if err := l.room.Acquire(ctx, p.size); err != nil {
		return fmt.Errorf("append to event log: %w", err)
	}
	select {
	case l.queue <- p:
		return nil
	case <-ctx.Done():
		l.room.Release(p.size)
		return fmt.Errorf("append to event log: %w", ctx.Err())
	case <-l.done:
		l.room.Release(p.size)
		return fmt.Errorf("append to event log: %w", errClosed)
	}
}

// gather takes what else waits, up to the size of one commit.
func (l *Log) gather(p *pending) []*pending {
	group, size := []*pending{p}, p.size
	for size < groupBytes {
		select {
		case p := <-l.queue:
			group = append(group, p)
			size += p.size
		default:
			return group
		}
	}
	return group
}

// write stores a group with one sync and tells its owners.
func (l *Log) write(group []*pending) {
	err := l.named(l.store.store(group))
	l.setHealth(err)
	for _, p := range group {
		l.room.Release(p.size)
		if err != nil {
			p.done(Result{}, err)
		} else {
			p.done(p.result, nil)
		}
	}
}

// setHealth notes whether appending works; changes are logged.
func (l *Log) setHealth(err error) {
	l.mu.Lock()
	before := l.health
	l.health = err
	l.mu.Unlock()
	switch {
	case err != nil && before == nil:
		l.cfg.Logger.Error("appending fails; nothing is acknowledged until it works again", "err", err)
	case err == nil && before != nil:
		l.cfg.Logger.Info("appending works again")
	}
}

// heal tries whether a log that does not work would now.
func (l *Log) heal() {
	if l.Health() == nil {
		return
	}
	l.setHealth(l.named(l.store.ready(time.Now())))
}

// named says of an error that it is of appending, and where to.
func (l *Log) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("append to event log %s: %w", l.cfg.where(), err)
}

// place makes the blocks of one batch, of whose boot the sequences up to high are
// stored, the last of them at a time.
func (b *Batch) place(high uint64, last time.Time, put func(header, func([]byte) []byte) error) (Result, error) {
	events, first := b.Events, b.First
	r := Result{High: high}
	if first <= high {
		n := min(uint64(len(events)), high-first+1)
		events, first = events[n:], first+n
		r.Repeated = int(n)
	}
	if len(events) == 0 {
		return r, nil
	}
	if first > high+1 {
		r.Missing = first - high - 1
		if err := put(missing(b, last, r.Missing)); err != nil {
			return r, err
		}
	}
	r.Stored, r.High = len(events), first+uint64(len(events))-1
	h := header{node: b.Node, boot: b.Boot, first: first, received: b.Received, count: uint64(len(events))}
	for _, e := range events {
		if e.Stage != 0 {
			h.lose(e.Stage, e.Lost)
		}
	}
	return r, put(h, func(body []byte) []byte {
		for _, e := range events {
			body = binary.AppendUvarint(body, uint64(len(e.Data)))
			body = append(body, e.Data...)
		}
		return body
	})
}

// missing is the block that states which numbers never arrived.
func missing(batch *Batch, last time.Time, count uint64) (header, func([]byte) []byte) {
	loss := &auditv1.LossEvent{To: timestamppb.New(batch.Received), Count: count, Stage: auditv1.LossStage_LOSS_STAGE_TRANSPORT}
	loss.From = loss.To
	if !last.IsZero() && last.Before(batch.Received) {
		loss.From = timestamppb.New(last)
	}
	h := header{node: batch.Node, boot: batch.Boot, received: batch.Received, count: 1}
	h.lose(loss.Stage, count)
	return h, func(b []byte) []byte { return appendEvent(b, &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: loss}}) }
}
