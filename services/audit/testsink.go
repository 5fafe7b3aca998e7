package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/sink"
	"github.com/weirnet/weir/storage/eventlog"
)

// testsNode is where tests come from, as the log names nodes.
const testsNode = "auditd.weir.dev"

// testTimeout is how long a test is followed at most.
const testTimeout = time.Minute

// TestSink implements AuditService: it stores an event for one sink, and tells how
// it fares there, until it is acknowledged, or the caller has seen enough.
func (s *Service) TestSink(req *auditv1.TestSinkRequest, call grpc.ServerStreamingServer[auditv1.TestSinkResponse]) error {
	if err := s.mayOperate(call.Context()); err != nil {
		return err
	}
	k, err := s.testable(req.GetSink())
	if err != nil {
		return err
	}
	id, begun := "test-"+rand.Text(), s.now()
	hops, stop := k.FollowTest(id)
	defer stop()
	send := func(h sink.Hop) error {
		return call.Send(&auditv1.TestSinkResponse{Hop: h.Name, Detail: h.Detail, Error: h.Error, Elapsed: durationpb.New(s.now().Sub(begun)), Id: id})
	}
	data, err := proto.Marshal(&auditv1.Event{Kind: &auditv1.Event_Test{Test: &auditv1.TestEvent{Sink: req.GetSink(), Id: id, Time: timestamppb.New(begun)}}})
	if err != nil {
		return status.Errorf(codes.Internal, "encode the test: %v", err)
	}
	batch := eventlog.Batch{Node: testsNode, Boot: rand.Text(), First: 1, Events: []eventlog.Event{{Data: data}}, Received: begun}
	if _, err := s.log.Append(call.Context(), batch); err != nil {
		return send(sink.Hop{Name: "stored", Error: err.Error()})
	}
	if err := send(sink.Hop{Name: "stored", Detail: "in the event log"}); err != nil {
		return err
	}
	if last := k.Stats().LastError; last != "" {
		if err := send(sink.Hop{Name: "failed", Detail: "before the test", Error: last}); err != nil {
			return err
		}
	}
	timeout := time.NewTimer(testTimeout)
	defer timeout.Stop()
	for {
		select {
		case h := <-hops:
			if err := send(h); err != nil || h.Last {
				return err
			}
		case <-timeout.C:
			return status.Errorf(codes.DeadlineExceeded, "sink %s: the test is not acknowledged after %s; it stays in the log, and the sink goes on trying", req.GetSink(), testTimeout)
		case <-call.Context().Done():
			return status.FromContextError(call.Context().Err()).Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the collector is stopping")
		}
	}
}

var errUntestable = errors.New("what forwards to another collector has no tests: ask that one")

func (s *Service) testable(name string) (*sink.Sink, error) {
	for _, p := range s.sinks {
		if p.Stats().Name != name {
			continue
		}
		if k, ok := p.(*sink.Sink); ok {
			return k, nil
		}
		return nil, status.Error(codes.FailedPrecondition, errUntestable.Error())
	}
	return nil, status.Error(codes.NotFound, fmt.Sprintf("no sink %.200q: audit stats lists them", name))
}
