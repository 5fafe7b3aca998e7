package server

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// maxWatchers is how many streams of WatchChanges there may be at a time.
const maxWatchers = 16

// A run of changes ends with either of these. One manifest may go beyond.
const runChanges, runBytes = 256, 256 << 10

// Change is that an object is not what it was.
type Change struct {
	Ref     api.Ref
	Was, Is Object
}

// present says whether there is something to tell of an object.
func (o Object) present() bool { return o.Version != nil || fact(o.Addressed) != nil }

// tells says whether a watcher would be told of the change.
func (c Change) tells() bool {
	return c.Was.Version != c.Is.Version || !proto.Equal(fact(c.Was.Addressed), fact(c.Is.Addressed))
}

// watchers are the open streams of WatchChanges.
type watchers struct {
	n atomic.Int32 // How many there are.

	mu   sync.Mutex // Guards what follows.
	open map[*watcher]struct{}
}

// watcher is one stream: what is to be told on it, by name, and not the steps
// that led there. So it never holds more than there is, and was told.
type watcher struct {
	wake chan struct{} // One slot: something is dirty.

	mu      sync.Mutex // Guards what follows.
	dirty   map[api.Ref]pending
	sending map[api.Ref]pending // What was dirty and is on its way.
}

// pending is what is remembered of an object until its newest state is sent.
type pending struct {
	known  bool         // The watcher may have been told of it.
	gone   bool         // It is no more.
	at     int64        // Of the newest change, in Unix nanoseconds.
	before uint32       // Pods, as of the oldest change.
	last   *api.Version // That it had before the newest change.
}

// Watched says whether Tell has anybody to tell. From then on until it is called
// for the change, Model.Names must wait.
func (s *Server) Watched() bool { return s.watchers.n.Load() > 0 }

// Tell hands on changes that were read at a time, and that the model has. It does
// not block.
func (s *Server) Tell(changes []Change, at time.Time) {
	changes = slices.DeleteFunc(changes, func(c Change) bool { return !c.tells() })
	if len(changes) == 0 {
		return
	}
	s.watchers.mu.Lock()
	defer s.watchers.mu.Unlock()
	for w := range s.watchers.open {
		w.note(changes, at.UnixNano())
	}
}

func (w *watcher) note(changes []Change, at int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		p, is := w.dirty[c.Ref]
		if !is {
			_, underWay := w.sending[c.Ref] // As it is when it is looked up, which may be now.
			p = pending{known: c.Was.present() || underWay, before: uint32(c.Was.Pods)}
		}
		p.gone, p.at = !c.Is.present(), at
		if c.Was.Version != nil {
			p.last = c.Was.Version
		}
		if p.gone && !p.known {
			delete(w.dirty, c.Ref) // It came and went.
			continue
		}
		w.dirty[c.Ref] = p
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take is what is dirty, the oldest first, and of one time what is gone: its
// addresses may be another's. It is on its way until the next call.
func (w *watcher) take() ([]api.Ref, map[api.Ref]pending) {
	w.mu.Lock()
	w.sending, w.dirty = w.dirty, make(map[api.Ref]pending)
	sending := w.sending // Nobody changes it from here on.
	w.mu.Unlock()
	rank := func(p pending) int {
		if p.gone {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Keys(sending), func(a, b api.Ref) int {
		x, y := sending[a], sending[b]
		return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(rank(x), rank(y)), compareRefs(a, b))
	}), sending
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// gauge counts the watchers.
func (w *watchers) gauge() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weir_policy_change_watchers", Help: "Open streams of WatchChanges."},
		func() float64 { return float64(w.n.Load()) })
}

// enter opens a watcher; false where there are too many.
func (w *watchers) enter(one *watcher) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.open) >= maxWatchers {
		return false
	}
	w.open[one] = struct{}{}
	w.n.Add(1)
	return true
}

func (w *watchers) leave(one *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, one)
	w.n.Add(-1)
}

// WatchChanges implements InspectionService.
func (s *Server) WatchChanges(_ *policyv1.WatchChangesRequest, call grpc.ServerStreamingServer[policyv1.WatchChangesResponse]) error {
	if err := s.admit(call.Context()); err != nil {
		return err
	}
	w := &watcher{wake: make(chan struct{}, 1), dirty: make(map[api.Ref]pending)}
	entered := false
	names := s.cfg.Model.Names(func() { entered = s.watchers.enter(w) }) // What changes from then on is dirty.
	if !entered {
		return status.Errorf(codes.ResourceExhausted, "there are %d watchers already", maxWatchers)
	}
	defer s.watchers.leave(w)
	r := run{server: s, call: call}
	if err := r.everything(names); err != nil {
		return err
	}
	for {
		select {
		case <-w.wake:
		case <-call.Context().Done():
			return status.FromContextError(call.Context().Err()).Err()
		case <-s.stopping:
			return errStopping
		}
		if err := r.changes(w.take()); err != nil {
			return err
		}
	}
}

// run gathers changes, and sends them by and by.
type run struct {
	server *Server
	call   grpc.ServerStreamingServer[policyv1.WatchChangesResponse]
	next   *policyv1.WatchChangesResponse
	bytes  int
}

// everything sends what there is. What it is not kept of when it was read is
// read now.
func (r *run) everything(names []api.Ref) error {
	slices.SortFunc(names, compareRefs)
	now := time.Now().UnixNano()
	err := r.each(names, func(ref api.Ref, o Object) (*policyv1.ObjectChange, error) {
		return r.present(ref, o, pending{at: cmp.Or(o.Read, now), before: uint32(o.Pods)})
	})
	if err != nil {
		return err
	}
	return r.flush(true)
}

// changes sends what is dirty, as it is now. What has gone since is dirty again,
// and told then.
func (r *run) changes(names []api.Ref, of map[api.Ref]pending) error {
	err := r.each(names, func(ref api.Ref, o Object) (*policyv1.ObjectChange, error) {
		p := of[ref]
		c, err := r.present(ref, o, p)
		if err != nil || c != nil || !p.gone {
			return c, err
		}
		if c, err = goneChange(ref, p.last); err == nil {
			c.TimeUnixNano, c.PodsBefore = p.at, p.before
		}
		return c, err
	})
	if err != nil {
		return err
	}
	return r.flush(false)
}

// present is an object that there is; nil where there is nothing to tell.
func (r *run) present(ref api.Ref, o Object, p pending) (*policyv1.ObjectChange, error) {
	if o.Version == nil {
		c := fact(o.Addressed)
		if c != nil {
			c.TimeUnixNano = p.at
		}
		return c, nil
	}
	c, err := versionChange(ref, o.Version)
	if err != nil {
		return nil, err
	}
	c.TimeUnixNano, c.PodsBefore, c.PodsAfter = o.Version.Read, p.before, uint32(o.Pods)
	return c, nil
}

// each looks objects up, a run at a time, and sends what make says of each; nil
// for nothing.
func (r *run) each(names []api.Ref, make func(api.Ref, Object) (*policyv1.ObjectChange, error)) error {
	for part := range slices.Chunk(names, runChanges) {
		select {
		case <-r.server.stopping:
			return errStopping
		default:
		}
		for i, o := range r.server.cfg.Model.Objects(part) {
			c, err := make(part[i], o)
			if err != nil {
				return status.Errorf(codes.Internal, "watch: %v", err)
			}
			if c == nil {
				continue
			}
			if err := r.add(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) add(c *policyv1.ObjectChange) error {
	if r.next == nil {
		r.next = &policyv1.WatchChangesResponse{}
	}
	r.next.Changes = append(r.next.Changes, c)
	r.bytes += proto.Size(c)
	if len(r.next.Changes) < runChanges && r.bytes < runBytes {
		return nil
	}
	return r.flush(false)
}

// flush sends what has gathered. That all there was is sent is said even with
// nothing.
func (r *run) flush(complete bool) error {
	resp := r.next
	r.next, r.bytes = nil, 0
	if resp == nil {
		if !complete {
			return nil
		}
		resp = &policyv1.WatchChangesResponse{}
	}
	resp.Complete = complete
	return r.call.Send(resp)
}
