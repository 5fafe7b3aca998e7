package policy

import (
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/server"
)

// Names implements server.Model.
func (s *Service) Names(begin func()) []api.Ref {
	s.mu.RLock()
	defer s.mu.RUnlock()
	begin()
	names := s.evaluator.Addressed()
	for ref := range s.versions {
		names = append(names, ref)
	}
	return names
}

// Objects implements server.Model.
func (s *Service) Objects(refs []api.Ref) []server.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]server.Object, len(refs))
	for i, ref := range refs {
		out[i] = s.objectLocked(ref)
	}
	return out
}

func (s *Service) objectLocked(ref api.Ref) server.Object {
	if v := s.versions[ref]; v != nil {
		return server.Object{Version: v, Pods: s.engine.Endpoints(ref)}
	}
	return server.Object{Addressed: s.evaluator.Object(ref)}
}

// beforeLocked are the objects of events that have not been applied; nil where
// nobody watches.
func (s *Service) beforeLocked(events []api.Event) []server.Change {
	if !s.face.Watched() {
		return nil
	}
	changes := make([]server.Change, len(events))
	for i, ev := range events {
		changes[i] = server.Change{Ref: ev.Ref, Was: s.objectLocked(ev.Ref)}
	}
	return changes
}

// tellLocked completes what beforeLocked returned, and hands it on.
func (s *Service) tellLocked(changes []server.Change, read time.Time) {
	for i := range changes {
		changes[i].Is = s.objectLocked(changes[i].Ref)
	}
	s.face.Tell(changes, read)
}

// keepLocked takes over the version that comes with an event.
func (s *Service) keepLocked(ev api.Event) {
	if ev.Version != nil {
		s.versions[ev.Ref] = ev.Version
	} else {
		delete(s.versions, ev.Ref)
	}
}
