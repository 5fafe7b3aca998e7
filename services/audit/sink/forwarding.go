package sink

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // Registers the codec that is wrapped here.
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/storage/eventlog"
)

// Limits of a forwarder's connection.
const (
	forwardBatchEvents = 1024
	forwardBatchBytes  = 256 << 10 // One event may be larger.
	maxFlightBytes     = 4 << 20
	maxFlightBatches   = 64
	maxUpstreams       = 256 // One for each node that has reported lately.
	ackTimeout         = 30 * time.Second
)

// forwarding is one connection to the other collector. One goroutine runs it;
// each stream has one more, that receives.
type forwarding struct {
	*Forward
	address string
	conn    *grpc.ClientConn
	reader  *eventlog.Reader
	held    *eventlog.Entry // Read, and not for the batch that it was read for.
	atEnd   bool            // There was nothing more to read.
	streams map[string]*upstream
	answers chan answer
	flights []flight // In the order of the log.
	bytes   int      // Of flights.
	cursor  uint64   // All up to it is the other's, or not for it.
	uses    uint64
	skipped uint64 // Of reader, that are in the stats.
}

// upstream is a stream of Report, of a node's latest boot.
type upstream struct {
	node, boot string
	stream     grpc.BidiStreamingClient[auditv1.ReportRequest, auditv1.ReportResponse]
	end        context.CancelFunc
	greeted    bool   // The other has said what it has.
	high       uint64 // Highest sequence that it has acknowledged.
	flights    int
	used       uint64 // When it was used last, on forwarding.uses.
}

// answer of a stream: an acknowledgement, or its end.
type answer struct {
	from *upstream
	high uint64
	err  error
}

// flight is a batch that is not acknowledged.
type flight struct {
	to     *upstream
	last   uint64 // Sequence of its last event.
	cursor uint64 // Of what was read with it.
	events uint64
	bytes  int
	sent   time.Time
}

func (w *forwarding) run(ctx context.Context) error {
	wake, stop := w.cfg.Log.Follow()
	defer stop()
	tick := time.NewTicker(commitInterval)
	defer tick.Stop()
	for {
		more := true
		for more && w.bytes < maxFlightBytes && len(w.flights) < maxFlightBatches {
			var err error
			if more, err = w.send(ctx); err != nil {
				return err
			}
			select { // Acknowledgements are taken on the way.
			case a := <-w.answers:
				if err := w.take(a); err != nil {
					return err
				}
			default:
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		wait := wake
		if more {
			wait = nil // There is no room for what comes.
		}
		select {
		case <-wait:
		case a := <-w.answers:
			if err := w.take(a); err != nil {
				return err
			}
		case now := <-tick.C:
			if len(w.flights) > 0 && now.Sub(w.flights[0].sent) > ackTimeout {
				return fmt.Errorf("forward to %s: nothing acknowledged for %s", w.address, ackTimeout)
			}
			if err := w.commit(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take takes an answer.
func (w *forwarding) take(a answer) error {
	if w.streams[a.from.node] != a.from {
		return nil // We have ended it.
	}
	if a.err != nil {
		return fmt.Errorf("forward to %s, node %s: %w", w.address, a.from.node, a.err)
	}
	a.from.greeted, a.from.high = true, max(a.from.high, a.high)
	var events uint64
	for len(w.flights) > 0 && w.flights[0].to.high >= w.flights[0].last {
		f := &w.flights[0]
		w.cursor = f.cursor
		w.bytes -= f.bytes
		f.to.flights--
		events += f.events
		w.flights = w.flights[1:]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Lines += events
	return nil
}

// send sends the next batch. It is false where there is nothing more to read.
func (w *forwarding) send(ctx context.Context) (more bool, err error) {
	e, err := w.next()
	if err != nil || e == nil {
		return false, err
	}
	if e.Sequence == 0 || isTest(e.Data) || w.cfg.Node != "" && e.Node != w.cfg.Node {
		w.pass(e.Cursor)
		return true, nil
	}
	up, err := w.upstream(ctx, e.Node, e.Boot)
	if err != nil {
		return false, err
	}
	if e.Sequence <= up.high {
		w.pass(e.Cursor)
		return true, nil
	}
	f := flight{to: up, last: e.Sequence, cursor: e.Cursor, events: 1, sent: time.Now()}
	batch := appendFirst(nil, e.Sequence)
	batch = appendEvent(batch, e.Data)
	for f.events < forwardBatchEvents && len(batch) < forwardBatchBytes {
		e, err := w.next()
		if err != nil {
			return false, err
		}
		if e == nil {
			break
		}
		if e.Node != up.node || e.Boot != up.boot || e.Sequence != f.last+1 || len(batch)+len(e.Data) > forwardBatchBytes {
			w.held = e
			break
		}
		batch = appendEvent(batch, e.Data)
		f.last, f.cursor = e.Sequence, e.Cursor
		f.events++
	}
	f.bytes = len(batch)
	w.flights = append(w.flights, f)
	w.bytes += f.bytes
	up.flights++
	if err := up.stream.SendMsg(encodeBatch(batch)); err != nil {
		return false, w.ended(ctx, up, err)
	}
	return true, nil
}

// next is the next record; nil where there is none. It is good until the next
// call.
func (w *forwarding) next() (*eventlog.Entry, error) {
	if e := w.held; e != nil {
		w.held = nil
		return e, nil
	}
	e, ok, err := w.reader.Next()
	if w.atEnd = err == nil && !ok; err != nil || !ok {
		return nil, err
	}
	return &e, nil
}

// pass leaves a record out, or finds that the other has it.
func (w *forwarding) pass(cursor uint64) {
	if n := len(w.flights); n > 0 {
		w.flights[n-1].cursor = cursor
		return
	}
	w.cursor = cursor
}

// upstream is the stream of a boot, which knows what the other has of it.
func (w *forwarding) upstream(ctx context.Context, node, boot string) (*upstream, error) {
	w.uses++
	up := w.streams[node]
	if up != nil && up.boot != boot {
		if err := w.await(ctx, func() bool { return up.flights == 0 }); err != nil {
			return nil, err
		}
		w.close(up)
		up = nil
	}
	if up == nil {
		if err := w.makeRoom(ctx); err != nil {
			return nil, err
		}
		var err error
		if up, err = w.open(ctx, node, boot); err != nil {
			return nil, err
		}
		if err := w.await(ctx, func() bool { return up.greeted }); err != nil {
			return nil, err
		}
	}
	up.used = w.uses
	return up, nil
}

// makeRoom ends the stream that was idle longest where there are too many.
func (w *forwarding) makeRoom(ctx context.Context) error {
	if len(w.streams) < maxUpstreams {
		return nil
	}
	var oldest *upstream
	for _, up := range w.streams {
		if oldest == nil || up.used < oldest.used {
			oldest = up
		}
	}
	if err := w.await(ctx, func() bool { return oldest.flights == 0 }); err != nil {
		return err
	}
	w.close(oldest)
	return nil
}

// await takes answers until something is so.
func (w *forwarding) await(ctx context.Context, so func() bool) error {
	timeout := time.NewTimer(ackTimeout)
	defer timeout.Stop()
	for !so() {
		select {
		case a := <-w.answers:
			if err := w.take(a); err != nil {
				return err
			}
		case <-timeout.C:
			return fmt.Errorf("forward to %s: no answer for %s", w.address, ackTimeout)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (w *forwarding) open(ctx context.Context, node, boot string) (*upstream, error) {
	ctx, end := context.WithCancel(ctx) // It ends with the connection.
	stream, err := auditv1.NewCollectorServiceClient(w.conn).Report(ctx, grpc.ForceCodecV2(batchCodec{encoding.GetCodecV2("proto")}))
	if err != nil {
		end()
		return nil, fmt.Errorf("forward to %s: %w", w.address, err)
	}
	up := &upstream{node: node, boot: boot, stream: stream, end: end}
	w.streams[node] = up
	go func() {
		for {
			resp, err := stream.Recv()
			select {
			case w.answers <- answer{up, resp.GetAckedSequence(), err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	hello := &auditv1.ReportHello{Node: node, Boot: boot}
	if err := stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: hello}}); err != nil {
		return nil, w.ended(ctx, up, err)
	}
	return up, nil
}

// ended is the error of a stream on which sending failed: sending only hints at
// it.
func (w *forwarding) ended(ctx context.Context, up *upstream, sent error) error {
	if err := w.await(ctx, func() bool { return false }); err != nil {
		return err
	}
	return sent
}

func (w *forwarding) close(up *upstream) {
	up.end()
	delete(w.streams, up.node)
}

// commit stores the cursor.
func (w *forwarding) commit() error {
	stored := w.Stats().Cursor
	if w.cursor > stored {
		if err := w.cfg.Log.Cursors().Store(w.cfg.Name, w.cursor); err != nil {
			return err
		}
	}
	n := w.reader.Skipped() - w.skipped
	w.skipped = w.reader.Skipped()
	if n > 0 {
		w.cfg.Logger.Warn("retention removed records before the sink had read them", "sink", w.cfg.Name, "count", n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Skipped += n
	if w.cursor > stored || len(w.flights) == 0 && w.atEnd {
		w.stats.LastError = ""
	}
	w.stats.Cursor = max(w.cursor, stored)
	return nil
}

// isTest says whether an event is for one of our own sinks.
func isTest(event []byte) bool {
	number, _, n := protowire.ConsumeTag(event)
	return n > 0 && number == eventTest
}

// Numbers of the fields that are read and written here, from audit.proto.
const (
	eventTest    = 4
	requestBatch = 2
	batchFirst   = 1
	batchEvents  = 2
)

func appendFirst(b []byte, sequence uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, batchFirst, protowire.VarintType), sequence)
}

func appendEvent(b, event []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, batchEvents, protowire.BytesType), event)
}

// encodedBatch is a ReportRequest of events as they are in the log.
type encodedBatch []byte

func encodeBatch(batch []byte) encodedBatch {
	b := make([]byte, 0, len(batch)+8)
	return protowire.AppendBytes(protowire.AppendTag(b, requestBatch, protowire.BytesType), batch)
}

// batchCodec is the proto codec, but for encoded batches.
type batchCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c batchCodec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.(encodedBatch); ok {
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(v)
}
