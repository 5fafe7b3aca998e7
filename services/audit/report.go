package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/storage/eventlog"
	"github.com/weirnet/weir/storage/faultpoint"
)

// sessions are the streams that are served: one per node and boot.
type sessions struct {
	mu     sync.Mutex // Guards byBoot.
	byBoot map[[2]string]*session
}

// session is one stream of Report.
type session struct {
	node, boot string
	// It may state what nodes may not: a collector's, or one of nobody knows whose,
	// where a listener without certificates has been allowed.
	fromCollector bool
	replaced      chan struct{} // Closed when a newer stream takes its place.
	over          chan struct{} // Closed when nothing of it will be stored any more.
	pending       sync.WaitGroup
	acked         atomic.Uint64
	wake          chan struct{} // One slot: acked or failed changed.
	failed        atomic.Pointer[error]
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// begin puts a stream in the place of the one before it, of which something may
// still be about to be stored.
func (s *sessions) begin(se *session) (old *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := [2]string{se.node, se.boot}
	if old = s.byBoot[id]; old != nil {
		close(old.replaced)
	}
	s.byBoot[id] = se
	return old
}

// end lets go of a stream of which all is stored or has failed.
func (s *sessions) end(se *session) {
	se.pending.Wait()
	close(se.over)
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := [2]string{se.node, se.boot}; s.byBoot[id] == se {
		delete(s.byBoot, id)
	}
}

// Report implements CollectorService.
func (s *Service) Report(call grpc.BidiStreamingServer[auditv1.ReportRequest, auditv1.ReportResponse]) error {
	hello, fromCollector, err := receiveHello(call)
	if err != nil {
		return err
	}
	if !s.cfg.takes(hello.GetNode()) {
		return status.Errorf(codes.PermissionDenied, "this collector takes the events of node %s alone", s.cfg.Node)
	}
	se := &session{node: hello.GetNode(), boot: hello.GetBoot(), fromCollector: fromCollector, replaced: make(chan struct{}), over: make(chan struct{}), wake: make(chan struct{}, 1)}
	if err := s.succeed(call.Context(), se); err != nil {
		return err
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()

	sent := s.log.High(se.node, se.boot)
	ended := make(chan error, 1)
	go func() {
		ended <- s.receive(call, se)
		s.sessions.end(se)
	}()
	if err := call.Send(&auditv1.ReportResponse{AckedSequence: sent}); err != nil {
		return err
	}
	for {
		select {
		case <-se.wake:
			if err := se.failed.Load(); err != nil {
				return *err
			}
			if acked := se.acked.Load(); acked > sent {
				sent = acked
				faultpoint.Reach("auditd.report.stored")
				if err := call.Send(&auditv1.ReportResponse{AckedSequence: sent}); err != nil {
					return err
				}
				faultpoint.Reach("auditd.report.acknowledged")
			}
		case err := <-ended:
			if err != nil {
				return err
			}
			return lastAck(call, se, sent)
		case <-se.replaced:
			s.logger.Warn("a newer stream of the node replaces the older", "node", se.node)
			return errReplaced
		case <-s.stopping:
			return errStopping
		}
	}
}

// succeed waits until nothing of an older stream of the node and boot will be stored
// any more: so what the first response says is all that there is of it.
func (s *Service) succeed(ctx context.Context, se *session) error {
	old := s.sessions.begin(se)
	if old == nil {
		return nil
	}
	var err error
	select {
	case <-old.over:
		return nil
	case <-se.replaced:
		err = errReplaced
	case <-s.stopping:
		err = errStopping
	case <-ctx.Done():
		err = status.FromContextError(ctx.Err()).Err()
	}
	go func() {
		<-old.over
		s.sessions.end(se)
	}()
	return err
}

var errReplaced = status.Error(codes.Aborted, "a newer stream of this node and boot replaces this one")

// receiveHello reads the first request, and holds the node to its certificate.
func receiveHello(call grpc.ServerStream) (hello *auditv1.ReportHello, fromCollector bool, err error) {
	var f frame
	if err := call.RecvMsg(&f); err != nil {
		if err == io.EOF {
			return nil, false, status.Error(codes.InvalidArgument, "the stream ended before its hello")
		}
		return nil, false, err
	}
	r, err := (&parser{decoder: &record.Decoder{}}).parse(f)
	if err != nil {
		return nil, false, status.Error(codes.InvalidArgument, err.Error())
	}
	if r.hello == nil {
		return nil, false, status.Error(codes.InvalidArgument, "the first request must be a hello")
	}
	id, verified, err := identity.FromContext(call.Context())
	if err != nil {
		return nil, false, status.Error(codes.Unauthenticated, err.Error())
	}
	fromCollector = !verified || id.Has(identity.RoleAuditd)
	// A collector speaks for the nodes that report to it.
	if id.Node != r.hello.GetNode() && !fromCollector {
		return nil, false, status.Errorf(codes.PermissionDenied, "%s may not report for node %s", id, r.hello.GetNode())
	}
	return r.hello, fromCollector, nil
}

// receive takes batches until the stream ends. At a clean end it waits until
// all of them are stored or have failed.
func (s *Service) receive(call grpc.ServerStream, se *session) error {
	for {
		var f frame
		if err := call.RecvMsg(&f); err != nil {
			if err == io.EOF {
				se.pending.Wait()
				return nil
			}
			return err
		}
		r, err := s.parse(f, se.fromCollector)
		if err == nil && r.hello != nil {
			err = errors.New("a second hello")
		}
		if err != nil {
			s.metrics.rejected.Inc()
			s.logger.Warn("a malformed request ends a stream", "node", se.node, "err", err)
			return status.Error(codes.InvalidArgument, err.Error())
		}
		faultpoint.Reach("auditd.report.received")
		se.pending.Add(1)
		begun := s.now()
		b := eventlog.Batch{Node: se.node, Boot: se.boot, First: r.first, Events: r.events, Received: begun}
		err = s.log.Submit(call.Context(), b, func(res eventlog.Result, err error) {
			defer se.pending.Done()
			s.stored(se, res, err)
			switch {
			case res.Stored == len(r.events):
				s.overview.count(r.tally)
			case res.Stored > 0:
				s.overview.countSome(r.events[len(r.events)-res.Stored:])
			}
			s.metrics.durable.Observe(s.now().Sub(begun).Seconds())
		})
		if err != nil {
			se.pending.Done()
			return appendStatus(err)
		}
	}
}

// parse reads a request, with what is known of its packets. Decoders keep what
// they read, and are shared: there are as many as requests at one time.
func (s *Service) parse(f frame, fromCollector bool) (request, error) {
	p := parser{fromCollector: fromCollector, decoder: s.decoders.Get().(*record.Decoder)}
	defer s.decoders.Put(p.decoder)
	if s.facts != nil {
		p.context = s.facts.AppendContext
	}
	return p.parse(f)
}

// lastAck tells a stream that ended cleanly what was stored since.
func lastAck(call grpc.BidiStreamingServer[auditv1.ReportRequest, auditv1.ReportResponse], se *session, sent uint64) error {
	if err := se.failed.Load(); err != nil {
		return *err
	}
	if acked := se.acked.Load(); acked > sent {
		return call.Send(&auditv1.ReportResponse{AckedSequence: acked})
	}
	return nil
}

// stored is called by the log's writer, in order.
func (s *Service) stored(se *session, r eventlog.Result, err error) {
	if err != nil {
		err = appendStatus(err)
		se.failed.CompareAndSwap(nil, &err)
	} else {
		se.acked.Store(r.High)
		if r.Missing > 0 {
			s.logger.Warn("events of a node never arrived", "node", se.node, "count", r.Missing)
		}
	}
	se.signal()
}

func appendStatus(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, fmt.Sprintf("nothing of this was stored: %v", err))
}
