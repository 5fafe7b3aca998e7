package eventlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
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
	err := l.store(group)
	if err != nil {
		err = fmt.Errorf("append to event log %s: %w", l.cfg.Dir, err)
		l.setHealth(err)
	}
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
	if err := l.ready(time.Now()); err != nil {
		l.setHealth(fmt.Errorf("append to event log %s: %w", l.cfg.Dir, err))
		return
	}
	l.setHealth(nil)
}

// ready opens the database again if it failed, and looks whether there is room.
func (l *Log) ready(now time.Time) error {
	if l.db != nil {
		if err := l.db.failed(); err != nil {
			l.drop(err)
		}
	}
	if l.db == nil {
		if now.Before(l.reopenAt) {
			return l.failure
		}
		if err := l.open(); err != nil {
			l.drop(err)
			return err
		}
	}
	if now.Sub(l.freeChecked) < freeCheckPeriod && l.health == nil {
		return nil
	}
	usage, err := l.cfg.fs.GetDiskUsage(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	if usage.AvailBytes < l.cfg.MinFree {
		return fmt.Errorf("disk nearly full: %d MiB free, %d MiB are kept free", usage.AvailBytes>>20, l.cfg.MinFree>>20)
	}
	l.freeChecked = now
	return nil
}

// drop leaves a database that failed; ready opens it anew after a pause, which
// doubles until something was stored.
func (l *Log) drop(err error) {
	l.mu.Lock()
	l.db = nil
	l.mu.Unlock()
	l.failures++
	l.failure = err
	l.pause = min(max(2*l.pause, reopenMin), reopenMax)
	l.reopenAt = time.Now().Add(l.pause)
}

func (l *Log) store(group []*pending) error {
	if err := l.ready(time.Now()); err != nil {
		return err
	}
	b := l.db.NewBatch()
	defer b.Close()
	// What the group changes; the log's own positions follow when it is durable.
	next := commitGroup{newest: l.positions.newest, high: make(map[[2]string]uint64)}
	put := func(h header, body func([]byte) []byte) error {
		cursor := next.newest + 1
		next.newest += h.count
		next.buf = body(h.append(next.buf[:0]))
		op := b.SetDeferred(keyLen, len(next.buf))
		putKey(op.Key, cursor, kindBlock)
		copy(op.Value, next.buf)
		next.headers = append(next.headers, h)
		next.size += len(next.buf)
		return op.Finish()
	}
	for _, p := range group {
		if err := l.place(p, &next, put); err != nil {
			return err
		}
	}
	if len(next.headers) > 0 {
		if err := l.db.commit(b); err != nil {
			l.drop(err)
			return err
		}
	}
	l.pause = 0
	l.stored(&next)
	if l.blocks >= snapshotBlocks || l.bytes >= snapshotBytes {
		if err := l.snapshot(); err != nil {
			l.drop(err)
			l.setHealth(fmt.Errorf("write positions of event log %s: %w", l.cfg.Dir, err))
		}
	}
	return nil
}

// commitGroup is a group on its way to the disk.
type commitGroup struct {
	newest     uint64
	high       map[[2]string]uint64 // By node and boot.
	headers    []header             // Of the blocks, in order.
	duplicates uint64
	size       int
	buf        []byte
}

// place makes the blocks of one batch.
func (l *Log) place(p *pending, next *commitGroup, put func(header, func([]byte) []byte) error) error {
	batch := &p.batch
	id := [2]string{batch.Node, batch.Boot}
	high, ok := next.high[id]
	stored, last := l.positions.high(batch.Node, batch.Boot)
	if !ok {
		high = stored
	}
	events, first := batch.Events, batch.First
	if first <= high {
		n := min(uint64(len(events)), high-first+1)
		events, first = events[n:], first+n
		p.result.Repeated = int(n)
		next.duplicates += n
	}
	p.result.High = high
	if len(events) == 0 {
		next.high[id] = high
		return nil
	}
	if first > high+1 {
		p.result.Missing = first - high - 1
		if err := put(missing(batch, last, p.result.Missing)); err != nil {
			return err
		}
	}
	h := header{node: batch.Node, boot: batch.Boot, first: first, received: batch.Received, count: uint64(len(events))}
	for _, e := range events {
		if e.Stage != 0 {
			h.lose(e.Stage, e.Lost)
		}
	}
	err := put(h, func(b []byte) []byte {
		for _, e := range events {
			b = binary.AppendUvarint(b, uint64(len(e.Data)))
			b = append(b, e.Data...)
		}
		return b
	})
	p.result.Stored, p.result.High = len(events), first+uint64(len(events))-1
	next.high[id] = p.result.High
	return err
}

// missing is the block that states which numbers never arrived.
func missing(batch *Batch, last time.Time, count uint64) (header, func([]byte) []byte) {
	loss := &auditv1.LossEvent{To: timestamppb.New(batch.Received), Count: count, Stage: auditv1.LossStage_LOSS_STAGE_TRANSPORT}
	loss.From = loss.To
	if !last.IsZero() {
		loss.From = timestamppb.New(last)
	}
	h := header{node: batch.Node, boot: batch.Boot, received: batch.Received, count: 1}
	h.lose(loss.Stage, count)
	return h, func(b []byte) []byte {
		data, err := proto.Marshal(&auditv1.Event{Kind: &auditv1.Event_Loss{Loss: loss}})
		if err != nil {
			panic(fmt.Sprintf("encode a loss: %v", err)) // It has no strings that could be wrong.
		}
		return append(binary.AppendUvarint(b, uint64(len(data))), data...)
	}
}

// stored takes in what is durable, and wakes the followers.
func (l *Log) stored(next *commitGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.positions.duplicates += next.duplicates
	l.health = nil
	if len(next.headers) == 0 {
		return
	}
	cursor := l.positions.newest
	if l.oldest == 0 {
		l.oldest = cursor + 1
	}
	for i := range next.headers {
		h := &next.headers[i]
		cursor += h.count
		l.positions.apply(h, cursor)
	}
	l.blocks += len(next.headers)
	l.bytes += next.size
	l.wakeLocked()
}

// snapshot writes the positions behind the newest block.
func (l *Log) snapshot() error {
	b := l.db.NewBatch()
	defer b.Close()
	if err := b.Set(key(l.positions.newest, kindSnapshot), l.positions.append(nil), nil); err != nil {
		return err
	}
	if err := l.db.commit(b); err != nil {
		return err
	}
	l.blocks, l.bytes = 0, 0
	return nil
}
