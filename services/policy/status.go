package policy

import (
	"context"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/server"
	"github.com/weirnet/weir/services/policy/status"
)

// known is the service as what statuses are made of.
type known struct{ *Service }

// Policies implements status.Model.
func (s known) Policies(ctx context.Context) []status.Policy {
	conflicts := s.Conflicts()
	found := s.face.Realizations(ctx)
	out := make([]status.Policy, len(found))
	for i := range found {
		out[i] = statusOf(&found[i], conflicts[found[i].Info.Ref])
	}
	return out
}

// statusOf is a policy as statuses have it.
func statusOf(r *server.Realization, conflicts []string) status.Policy {
	p := status.Policy{Ref: r.Info.Ref, UID: r.Info.Wire.GetUid(), Generation: r.Info.Wire.GetGeneration(),
		Nodes: r.Nodes, Realized: r.Realized(), Late: len(r.Lacking), Refused: len(r.Refused), Waiting: r.Waiting, Unknown: r.Unknown,
		Unfaithful: r.Unfaithful(), Absent: len(r.Info.Items) == 0 && len(r.Info.Faults) > 0, Changed: r.Changed, Took: r.Took}
	for _, c := range r.Conditions(conflicts) {
		p.Conditions = append(p.Conditions, status.Condition{Type: c.GetType(), Status: c.GetStatus(), Reason: c.GetReason(), Message: c.GetMessage()})
	}
	return p
}

// Groups implements status.Model.
func (s known) Groups() (out []status.Group) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, g := range s.engine.GroupObjects() {
		out = append(out, status.Group{Ref: g.Ref(), UID: g.UID, Computed: true})
	}
	return out
}

// Problems implements status.Model.
func (s known) Problems() map[api.Ref]status.Problem {
	read, is := s.source.(cluster)
	if !is {
		return nil
	}
	out := make(map[api.Ref]status.Problem)
	for ref, p := range read.Problems() {
		out[ref] = status.Problem{UID: p.UID, Generation: p.Generation, Message: p.Message}
	}
	return out
}

// Changed implements status.Model.
func (s known) Changed() <-chan struct{} { return s.told }

// tellStatus has statuses looked at soon where policies, or what they name, are
// among the changes.
func (s *Service) tellStatus(events []api.Event) {
	for _, ev := range events {
		if written, _ := api.Written(ev.Ref.Kind); written != "" {
			select {
			case s.told <- struct{}{}:
			default:
			}
			return
		}
	}
}
