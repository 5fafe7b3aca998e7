package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

// Config of a Source.
type Config struct {
	Kubeconfig string       // Empty: the service account of the Pod that it runs in.
	Rest       *rest.Config // In place of Kubeconfig. Tests set it.
	// TakeOver goes on where Antrea's CustomResourceDefinitions are installed;
	// otherwise Run ends with an error.
	TakeOver bool
	// Versions has batches say what policies, tiers and groups are as they were
	// written, and who wrote them.
	Versions bool
	Registry prometheus.Registerer
	Logger   hclog.Logger
}

// Batch is what changed between two calls of Next.
type Batch struct {
	Events   []api.Event // Each object once, in the order of kinds, Namespaces and names.
	Position uint64      // resourceVersion of the newest change that was handed out.
	Read     uint64      // resourceVersion up to which everything was read.
	Problems int         // Objects that are not in force as they stand.
}

// Source reads an API server.
type Source struct {
	clients  *clients
	takeOver bool
	keep     bool // Versions.
	logger   hclog.Logger
	kinds    []*kind
	crds     *definitions
	nodes    *announcer
	metrics  *metrics
	wake     chan struct{} // One slot: something is dirty, or has been read.

	mu       sync.Mutex // Guards what follows.
	objects  map[api.Ref]api.Object
	versions map[api.Ref]*api.Version
	problems map[api.Ref]Problem    // Objects that cannot be read.
	refused  map[api.Ref]string     // Objects that cannot stand beside others, with the reason.
	flat     map[api.Ref]*api.Group // What is in force of those groups among them.
	related  map[api.Ref]api.Object
	stale    bool                           // refused is to be worked out again.
	dirty    map[api.Ref]struct{}           // May differ from what was handed out.
	reported map[string]map[key]nodeAddress // By node, what its shim says of Pods.
	unread   map[*kind]struct{}             // Kinds that have not been read as a whole yet.
	settled  bool                           // It is known which kinds there are.
	position uint64
	read     uint64
	told     uint64 // read, as of the last batch.
}

// New makes a source and asks nothing of the API server yet.
func New(cfg Config) (*Source, error) {
	config := cfg.Rest
	if config == nil {
		var err error
		if config, err = loadConfig(cfg.Kubeconfig); err != nil {
			return nil, err
		}
	}
	c, err := newClients(config)
	if err != nil {
		return nil, err
	}
	s := &Source{
		clients: c, takeOver: cfg.TakeOver, keep: cfg.Versions, logger: cfg.Logger, kinds: kinds(), metrics: newMetrics(), wake: make(chan struct{}, 1),
		objects: make(map[api.Ref]api.Object), versions: make(map[api.Ref]*api.Version), problems: make(map[api.Ref]Problem), refused: make(map[api.Ref]string),
		related: make(map[api.Ref]api.Object), dirty: make(map[api.Ref]struct{}), reported: make(map[string]map[key]nodeAddress),
		unread: make(map[*kind]struct{}),
	}
	for _, k := range s.kinds {
		s.unread[k] = struct{}{}
	}
	s.crds = newDefinitions()
	s.nodes = newAnnouncer(s)
	s.unread[s.nodes.kind] = struct{}{}
	if cfg.Registry != nil {
		if err := s.metrics.register(cfg.Registry); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Run reads until the context ends.
func (s *Source) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range s.kinds {
		if k.expected != nil {
			g.Go(func() error { s.follow(ctx, k, s.mirrorOf(k)); return ctx.Err() })
		}
	}
	g.Go(func() error { return s.followCustom(ctx) })
	g.Go(func() error { return s.nodes.run(ctx) })
	g.Go(func() error { return s.keepTiers(ctx) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// mirrorOf makes the mirror of a kind, which tells this source.
func (s *Source) mirrorOf(k *kind) *mirror[api.Object] {
	m := newMirror(k.convert,
		func(name key, now *entry[api.Object], at uint64) { s.changed(k, name, now, at) },
		func(version uint64, whole bool) { s.wasRead(k, version, whole) })
	if written, _ := api.Written(k.kind); s.keep && written != "" {
		m.record = s.record
	}
	return m
}

// record makes the version of an object.
func (s *Source) record(o runtime.Object, former *api.Version) *api.Version {
	accessor, err := meta.Accessor(o)
	if err != nil {
		return nil // Nor has it a name.
	}
	v, err := api.RecordVersion(accessor, former, time.Now())
	if err != nil {
		s.logger.Error("what an object says cannot be kept", "namespace", accessor.GetNamespace(), "name", accessor.GetName(), "err", err)
	}
	return v
}

// changed takes an object over.
func (s *Source) changed(k *kind, name key, now *entry[api.Object], at uint64) {
	ref := api.Ref{Kind: k.kind, Namespace: name.namespace, Name: name.name}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.position = max(s.position, at)
	s.dirty[ref] = struct{}{}
	delete(s.problems, ref)
	delete(s.versions, ref)
	if now != nil && now.content != nil {
		s.versions[ref] = now.content
	}
	switch {
	case now == nil:
		delete(s.objects, ref)
	case now.err != nil:
		delete(s.objects, ref)
		s.problems[ref] = Problem{UID: now.uid, Generation: now.generation, Message: now.err.Error()}
		s.logger.Error("object cannot be read and is not in force", "object", ref, "err", now.err)
	default:
		s.objects[ref] = now.value
	}
	switch k.kind {
	case api.KindTier, api.KindClusterGroup, api.KindGroup:
		if o := s.objects[ref]; o != nil {
			s.related[ref] = o
		} else {
			delete(s.related, ref)
		}
		s.stale = true
	}
}

// Problem is why an object is not in force.
type Problem struct {
	UID        string
	Generation int64
	Message    string // Which names the field, where it is one.
}

// Problems are the objects that are not in force as they stand: those that cannot be
// read, and those that cannot stand beside others.
func (s *Source) Problems() map[api.Ref]Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := maps.Clone(s.problems)
	for ref, message := range s.refused {
		p := Problem{Message: message}
		if o, is := s.objects[ref].(*api.Group); is { // A Tier has no status.
			p.UID, p.Generation = o.UID, o.Generation
		}
		out[ref] = p
	}
	return out
}

// wasRead notes how far a kind has been read, and has Next look.
func (s *Source) wasRead(k *kind, version uint64, whole bool) {
	s.mu.Lock()
	s.read = max(s.read, version)
	if whole {
		delete(s.unread, k)
	}
	s.mu.Unlock()
	s.signal()
}

func (s *Source) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// progressInterval is how often, at the most, a batch says only that more has
// been read.
const progressInterval = 50 * time.Millisecond

// Next waits for what differs since the last call; the first time until
// everything has been read. One goroutine calls it.
func (s *Source) Next(ctx context.Context) (Batch, error) {
	idle := time.NewTimer(progressInterval)
	defer idle.Stop()
	rested := false
	for {
		if b, ok := s.take(rested); ok {
			return b, nil
		}
		select {
		case <-s.wake:
		case <-idle.C:
			rested = true
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		}
	}
}

// take is the batch that there is; one without events only if progress counts.
func (s *Source) take(progress bool) (Batch, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unread) > 0 || !s.settled {
		return Batch{}, false
	}
	if len(s.dirty) == 0 && (!progress || s.read == s.told) {
		return Batch{}, false
	}
	s.judgeLocked()
	b := Batch{Position: s.position, Read: s.read, Problems: len(s.problems) + len(s.refused)}
	b.Events = make([]api.Event, 0, len(s.dirty))
	for ref := range s.dirty {
		b.Events = append(b.Events, api.Event{Ref: ref, Object: s.effectiveLocked(ref), Fault: s.refused[ref], Version: s.versions[ref]})
	}
	if len(s.dirty) > 1024 {
		s.dirty = make(map[api.Ref]struct{})
	} else {
		clear(s.dirty)
	}
	slices.SortFunc(b.Events, func(a, b api.Event) int { return compareRefs(a.Ref, b.Ref) })
	s.told = s.read
	return b, true
}

// judgeLocked finds what cannot stand beside others, and what is in force of it.
func (s *Source) judgeLocked() {
	if !s.stale {
		return
	}
	s.stale = false
	former, was := s.refused, s.flat
	var violations []api.Violation
	violations, s.flat = validate.Refused(slices.Collect(maps.Values(s.related)))
	s.refused = api.Faults(violations)
	for ref, fault := range s.refused {
		if former[ref] != fault {
			s.logger.Error("object cannot stand beside others and is not in force as it is written", "object", ref, "err", fault)
			s.dirty[ref] = struct{}{}
		}
		if g, old := s.flat[ref], was[ref]; g != nil && old != nil && !slices.Equal(g.Children, old.Children) {
			s.dirty[ref] = struct{}{}
		}
	}
	for ref := range former {
		if s.refused[ref] == "" {
			s.dirty[ref] = struct{}{}
		}
	}
}

// effectiveLocked is what counts as an object; nil for none.
func (s *Source) effectiveLocked(ref api.Ref) api.Object {
	o := s.objects[ref]
	if o == nil {
		return nil
	}
	if s.refused[ref] != "" {
		if g := s.flat[ref]; g != nil {
			return g
		}
		return nil
	}
	if p, is := o.(*api.Pod); is {
		return s.addressed(p)
	}
	return o
}

// addressed is a Pod with the addresses that its node's shim reports, where it
// does: a status has them later, and those of a former sandbox for a while.
func (s *Source) addressed(p *api.Pod) *api.Pod {
	r, is := s.reported[p.Node][key{p.Namespace, p.Name}]
	if !is || r.uid != "" && r.uid != p.UID || p.HostNetwork || slices.Equal(r.ips, p.IPs) {
		return p
	}
	with := *p
	with.IPs = r.ips
	return &with
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
