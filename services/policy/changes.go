package policy

import (
	"cmp"
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
	return server.Object{Addressed: s.evaluator.Object(ref), Read: cmp.Or(s.since[ref], s.begun)}
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

// keepLocked takes over the version that comes with an event, and when whose
// addresses were read. A change that says nothing of addresses counts too: an
// address is then known for a shorter time than it could be.
func (s *Service) keepLocked(ev api.Event, read time.Time) {
	switch ev.Ref.Kind {
	case api.KindPod, api.KindNode, api.KindService:
		if ev.Object == nil {
			delete(s.since, ev.Ref)
		} else if s.begun != 0 {
			s.since[ev.Ref] = read.UnixNano()
		}
		return
	}
	if ev.Version != nil {
		s.versions[ev.Ref] = ev.Version
	} else {
		delete(s.versions, ev.Ref)
	}
}
