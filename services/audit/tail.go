package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

var errStopping = status.Error(codes.Unavailable, "the collector is stopping")

// Tail implements AuditService.
func (s *Service) Tail(req *auditv1.TailRequest, call grpc.ServerStreamingServer[auditv1.TailResponse]) error {
	verb, namespaces := asked(req)
	v, err := s.access(call.Context(), verb, namespaces...)
	if err != nil {
		return err
	}
	if req.GetFromEnd() && req.GetAfter() != 0 {
		return status.Error(codes.InvalidArgument, "from_end: after must be zero")
	}
	match, err := newFilter(req.GetFilter())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	leave, err := s.seats.take(v.holder)
	if err != nil {
		s.metrics.refused.Inc()
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	defer leave()
	oldest, newest := s.log.Range()
	c := subscription{feed: s.feed, view: v, match: match, call: call, now: s.now, left: req.GetLimit(), after: req.GetAfter(), told: req.GetAfter(), last: math.MaxUint64}
	if v.All && req.GetBatch() > 0 { // What is redacted is told of each record.
		c.batch = int(min(req.GetBatch(), batchRecords))
	}
	// Without follow, the answer is what there is now: a log that grows faster
	// than it is read must not keep the caller for ever.
	if !req.GetFollow() {
		if c.last = newest; oldest == 0 {
			return nil
		}
	}
	if req.GetFromEnd() {
		c.after = newest
	} else if match != nil && !match.Since.IsZero() {
		begin, err := s.feed.since(match.Since)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		c.after = max(c.after, begin)
	}
	ctx, end := context.WithCancelCause(call.Context())
	defer end(nil)
	if v.proof != nil {
		slot := make(chan *view, 1)
		c.reviewed = slot
		go s.reviewer.follow(ctx, end, v, verb, namespaces, slot)
	}
	return tailStatus(c.run(ctx, req.GetFollow(), s.stopping))
}

// asked is what a request asks to do with the record, and of which Namespaces; none:
// of any.
func asked(req *auditv1.TailRequest) (verb string, namespaces []string) {
	verb = "list"
	if req.GetFollow() {
		verb = "watch"
	}
	namespace, _, _ := strings.Cut(req.GetFilter().GetPod(), "/")
	if namespace = cmp.Or(req.GetFilter().GetNamespace(), namespace); namespace != "" {
		namespaces = []string{namespace}
	}
	return verb, namespaces
}

// tailStatus says what ended a call.
func tailStatus(err error) error {
	switch _, is := status.FromError(err); {
	case is:
		return err
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, errUnreadable):
		return status.Error(codes.DataLoss, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}

// Stats implements AuditService.
func (s *Service) Stats(ctx context.Context, _ *auditv1.StatsRequest) (*auditv1.StatsResponse, error) {
	if err := s.mayRead(ctx); err != nil {
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
	count, err = s.log.Behind(cursor)
	if err != nil || count == 0 {
		return 0, 0, err
	}
	e, ok, err := s.log.NewReader(cursor).Next()
	if err != nil || !ok {
		return 0, 0, err
	}
	return count, s.now().Sub(e.Received), nil
}
