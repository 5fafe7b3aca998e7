package audit

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/storage/eventlog"
)

// mayRead admits operators; without TLS all that come over loopback, or that
// the operator let in by --insecure.
func mayRead(ctx context.Context) error {
	id, verified, err := identity.FromContext(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if verified && !id.Has(identity.RoleOperator) {
		return status.Errorf(codes.PermissionDenied, "%s may not read the record; an operator's certificate is needed", id)
	}
	return nil
}

// Tail implements AuditService.
func (s *Service) Tail(req *auditv1.TailRequest, call grpc.ServerStreamingServer[auditv1.TailResponse]) error {
	if err := mayRead(call.Context()); err != nil {
		return err
	}
	if req.GetFromEnd() && req.GetAfter() != 0 {
		return status.Error(codes.InvalidArgument, "from_end: after must be zero")
	}
	match, err := newFilter(req.GetFilter())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	wake, stop := s.log.Follow()
	defer stop()
	oldest, newest := s.log.Range()
	after := req.GetAfter()
	if req.GetFromEnd() {
		after = newest
	}
	// Without follow, the answer is what there is now: a log that grows faster
	// than it is read must not keep the caller for ever.
	last := ^uint64(0)
	if !req.GetFollow() {
		last = newest
	}
	if oldest == 0 && !req.GetFollow() {
		return nil
	}
	reader, decoder := s.log.NewReader(after), record.NewDecoder()
	for sent := uint32(0); ; {
		e, ok, err := reader.Next()
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		if ok && e.Cursor <= last {
			var event record.Event
			if err := decoder.DecodeInto(e.Data, &event); err != nil {
				return status.Errorf(codes.DataLoss, "record %d: %v", e.Cursor, err)
			}
			if match.Matches(e.Node, &event) {
				if err := sendRecord(call, &e); err != nil {
					return err
				}
				if sent++; sent == req.GetLimit() {
					return nil
				}
			}
			if e.Cursor%1024 == 0 && call.Context().Err() != nil {
				return status.FromContextError(call.Context().Err()).Err()
			}
			continue
		}
		if !req.GetFollow() {
			return nil
		}
		select {
		case <-wake:
		case <-call.Context().Done():
			return status.FromContextError(call.Context().Err()).Err()
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the collector is stopping")
		}
	}
}

func sendRecord(call grpc.ServerStreamingServer[auditv1.TailResponse], e *eventlog.Entry) error {
	event := &auditv1.Event{}
	if err := proto.Unmarshal(e.Data, event); err != nil {
		return status.Errorf(codes.DataLoss, "record %d: %v", e.Cursor, err)
	}
	return call.Send(&auditv1.TailResponse{Record: &auditv1.Record{
		Cursor: e.Cursor, Node: e.Node, Boot: e.Boot, Sequence: e.Sequence, Received: timestamppb.New(e.Received), Event: event}})
}

// Stats implements AuditService.
func (s *Service) Stats(ctx context.Context, _ *auditv1.StatsRequest) (*auditv1.StatsResponse, error) {
	if err := mayRead(ctx); err != nil {
		return nil, err
	}
	st := s.log.Stats()
	out := &auditv1.StatsResponse{Received: st.Kept + st.Duplicates, Kept: st.Kept, Duplicates: st.Duplicates, NewestCursor: st.Newest, OldestCursor: st.Oldest}
	for _, n := range st.Nodes {
		ne := &auditv1.NodeEvents{Node: n.Node, Kept: n.Kept}
		if !n.Last.IsZero() {
			ne.Last = timestamppb.New(n.Last)
		}
		out.Nodes = append(out.Nodes, ne)
		for _, l := range n.Lost {
			out.Lost = append(out.Lost, &auditv1.LossCount{Node: n.Node, Stage: l.Stage, Count: l.Count})
		}
	}
	for _, k := range s.sinks {
		ks := k.Stats()
		o := &auditv1.SinkStats{Name: ks.Name, Cursor: ks.Cursor, Lines: ks.Lines, Deduplicated: ks.Merged, LastError: ks.LastError,
			Skipped: ks.Skipped, DeadLetters: ks.DeadLetters, Type: ks.Type, Format: ks.Format}
		if lag, oldest, err := s.waiting(ks.Cursor); err != nil {
			return nil, status.Error(codes.Unavailable, fmt.Sprintf("sink %s: %v", ks.Name, err))
		} else if lag > 0 {
			o.Lag, o.Oldest = lag, durationpb.New(max(0, oldest))
		}
		out.Sinks = append(out.Sinks, o)
	}
	out.Rules = s.overview.ruleEvents()
	if err := s.log.Health(); err != nil {
		out.Unhealthy = err.Error()
	}
	return out, nil
}

// waiting is how many records there are behind a cursor, and the age of the
// first.
func (s *Service) waiting(cursor uint64) (count uint64, age time.Duration, err error) {
	_, newest := s.log.Range()
	e, ok, err := s.log.NewReader(cursor).Next()
	if err != nil || !ok || e.Cursor > newest {
		return 0, 0, err
	}
	return newest - e.Cursor + 1, s.now().Sub(e.Received), nil
}
