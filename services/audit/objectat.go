package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/audit/trail"
)

// ObjectAt implements AuditService.
func (s *Service) ObjectAt(ctx context.Context, req *auditv1.ObjectAtRequest) (*auditv1.ObjectAtResponse, error) {
	if err := mayRead(ctx); err != nil {
		return nil, err
	}
	ref := req.GetPolicy()
	p := record.Policy{Kind: ref.GetKind(), Namespace: ref.GetNamespace(), Name: ref.GetName()}
	key, ok := trail.KeyOfPolicy(p)
	if !ok || p.Name == "" {
		return nil, status.Error(codes.InvalidArgument, "policy: kind and name are needed")
	}
	if err := s.overview.await(ctx); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	at, version, err := s.moment(req.GetCursor(), p)
	if err != nil {
		return nil, err
	}
	entry, next, ok := s.overview.at(key, at, version)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "the log does not tell of %s at %s: it was not followed then, or retention took it", p, at.UTC().Format(time.RFC3339))
	}
	resp := &auditv1.ObjectAtResponse{}
	if resp.Change, err = s.change(entry.Cursor, key); err != nil {
		return nil, err
	}
	if next != nil {
		if resp.Next, err = s.change(next.Cursor, key); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// moment is when a record's first packet was, and which version of a policy it is
// known to have met. Without a record: now.
func (s *Service) moment(cursor uint64, p record.Policy) (time.Time, record.Version, error) {
	if cursor == 0 {
		return s.now(), record.Version{}, nil
	}
	e, ok, err := s.log.NewReader(cursor - 1).Next()
	if err != nil {
		return time.Time{}, record.Version{}, status.Error(codes.Unavailable, err.Error())
	}
	if !ok || e.Cursor != cursor {
		return time.Time{}, record.Version{}, status.Errorf(codes.NotFound, "cursor %d: %v", cursor, errNoRecord)
	}
	event, err := record.NewDecoder().Decode(e.Data)
	if err != nil {
		return time.Time{}, record.Version{}, status.Errorf(codes.DataLoss, "record %d: %v", cursor, err)
	}
	if c := event.Context; c != nil && len(c.Policies) == len(event.Packet.Policies) {
		for i, ref := range event.Packet.Policies {
			if ref == p {
				return event.Time(), c.Policies[i], nil
			}
		}
	}
	return event.Time(), record.Version{}, nil
}

// change is the record of a change, which must be one of the object.
func (s *Service) change(cursor uint64, key trail.Key) (*auditv1.Record, error) {
	r, err := recordAt(s.log, cursor)
	switch {
	case errors.Is(err, errNoRecord):
		return nil, status.Errorf(codes.NotFound, "the change is not in the log any more: cursor %d", cursor)
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	case trail.KeyOf(r.GetEvent().GetChange().GetObject()) != key:
		return nil, status.Error(codes.DataLoss, fmt.Sprintf("record %d is not of %v", cursor, key))
	}
	return r, nil
}
