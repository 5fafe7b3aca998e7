package policy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/services/policy/server"
	"github.com/weirnet/weir/services/policy/source/kubernetes"
	"github.com/weirnet/weir/services/policy/source/manifests"
	"github.com/weirnet/weir/services/policy/status"
	"github.com/weirnet/weir/services/policy/validate"
	"github.com/weirnet/weir/services/rpc"
	"github.com/weirnet/weir/storage"
)

// Version is the build's, set by the linker.
var Version = "dev"

// Config of a Service.
type Config struct {
	// Where objects come from; one of the three is required.
	Manifests  string // Folder of manifests.
	Kubernetes bool   // An API server, by Kubeconfig or, where that is empty, the service account of the Pod.
	Source     Source

	TakeOver bool // Of an API server that has Antrea's kinds.
	// ChangeTrail keeps what policies, tiers and groups say, and who wrote it, for
	// those who watch changes.
	ChangeTrail bool
	Kubeconfig  string         // File.
	Listen      string         // host:port of gRPC.
	TLS         identity.Files // All empty: plain text, or Cluster.
	// Cluster has the service keep a certificate authority in the cluster, and
	// Grants say who gets a certificate of it by a token. Nil: TLS counts.
	Cluster  *identity.ClusterConfig
	Grants   []identity.Grant
	Insecure bool   // Plain text may be listened to beyond loopback.
	Metrics  string // host:port of /metrics, /healthz, /readyz. Empty: none.
	Logger   hclog.Logger
	// RuleMetrics has the metrics tell of each rule what it matched.
	RuleMetrics bool
	// MaxConnectionAge is after how long a shim is sent to connect anew, to any
	// replica and with its present certificate. Zero: never.
	MaxConnectionAge time.Duration
	// Webhook is host:port of the admission webhooks, over HTTPS. It needs an API
	// server that is read, and TLS. WebhookNamespace is that of the Service by which
	// they are called. Empty: none.
	Webhook, WebhookNamespace string
	// WebhookConfigurations are names of MutatingWebhookConfigurations beside those
	// of the manifests, which are given the authority too.
	WebhookConfigurations []string
	// Namespace is that of the service itself, where the Lease is by which one replica
	// writes the status of policies. Empty: none does, as without an API server.
	Namespace string
	// Replicas are host:port of the service's replicas, this one perhaps among
	// them. They tell each other which nodes know a new Pod.
	Replicas []string
}

// Service is the policy service.
type Service struct {
	cfg     Config
	logger  hclog.Logger
	source  Source
	store   *storage.Store
	face    *server.Server
	rpc     *rpc.Server
	synced  atomic.Bool
	read    chan struct{}      // Closed when synced becomes true.
	cluster *identity.Cluster  // Nil: certificates are not the cluster's.
	users   *identity.Users    // Nil: there are none.
	webhook *webhook           // Nil: none is served.
	status  *status.Controller // Nil: none is written.
	told    chan struct{}      // One slot: a policy has changed.

	mu        sync.RWMutex // Guards what follows; the writer is Run's.
	engine    *engine.Engine
	evaluator *evaluate.State
	versions  map[api.Ref]*api.Version
	since     map[api.Ref]int64 // When Pods, Nodes and Services were read that changed after begun.
	begun     int64             // When all had been read, in Unix nanoseconds. Zero: not yet, or no trail is kept.
	judge     *judge            // Has locks of its own.

	registry *prometheus.Registry
	objects  prometheus.Counter
	problems prometheus.Gauge
	revision prometheus.Gauge
}

// settleKubernetes is how far the watches of one API server may be apart.
const settleKubernetes = 300 * time.Millisecond

// New checks the configuration, binds the addresses and starts nothing.
func New(cfg Config) (*Service, error) {
	sources := 0
	for _, given := range []bool{cfg.Manifests != "", cfg.Kubernetes, cfg.Source != nil} {
		if given {
			sources++
		}
	}
	switch {
	case sources == 0:
		return nil, errors.New("no source of objects: give --manifests DIR or --kubeconfig FILE, or run in a Pod of the cluster")
	case sources > 1:
		return nil, errors.New("more than one source of objects: give one of --manifests and --kubeconfig")
	}
	if err := identity.CheckListen(cfg.Listen, cfg.TLS.Set() || cfg.Cluster != nil, cfg.Insecure); err != nil {
		return nil, err
	}
	s := &Service{
		cfg:       cfg,
		logger:    cfg.Logger,
		store:     storage.New(newEpoch()),
		engine:    engine.New(),
		evaluator: evaluate.New(),
		versions:  make(map[api.Ref]*api.Version),
		since:     make(map[api.Ref]int64),
		judge:     newJudge(cfg.Webhook != ""),
		read:      make(chan struct{}),
		told:      make(chan struct{}, 1),
		objects:   prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_policy_events_total", Help: "Object changes taken from the sources."}),
		problems:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_policy_source_problems", Help: "Files and objects that are not in force as they stand."}),
		revision:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_policy_revision", Help: "Newest revision of the store."}),
	}
	registry := prometheus.NewRegistry()
	s.registry = registry
	var err error
	if s.source, err = newSource(&cfg, registry); err != nil {
		return nil, err
	}
	registry.MustRegister(s.objects, s.problems, s.revision, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	faceCfg := server.Config{
		Store: s.store, Model: s, NodeOf: server.CertifiedNode, MayInspect: server.CertifiedInspector, MayReplicate: server.CertifiedReplica,
		Synced: s.synced.Load, RuleMetrics: cfg.RuleMetrics, Replicas: cfg.Replicas, Registry: registry, Logger: cfg.Logger.Named("server"),
	}
	if cfg.Kubernetes {
		faceCfg.Settle = settleKubernetes
	}
	if a, is := s.source.(Announcer); is {
		faceCfg.Ports = a.Announce
	}
	creds, enrollment, err := s.credentials()
	if err != nil {
		return nil, err
	}
	if creds != nil {
		faceCfg.ReplicaCredentials = creds.Client()
	}
	if creds != nil && cfg.Kubernetes {
		if s.users, err = identity.NewUsers(identity.UsersConfig{Kubeconfig: cfg.Kubeconfig, Namespaces: s.namespaces, Logger: cfg.Logger.Named("users")}); err != nil {
			return nil, err
		}
		faceCfg.Users = s.users
	}
	s.face, err = server.New(faceCfg)
	if err != nil {
		return nil, err
	}
	rpcCfg := rpc.Config{Listen: cfg.Listen, Metrics: cfg.Metrics, Logger: cfg.Logger, Registry: registry, MaxConnectionAge: cfg.MaxConnectionAge}
	if creds != nil {
		rpcCfg.TLS = creds.Server()
	}
	if enrollment != nil {
		rpcCfg.Anyone = []string{identity.EnrollMethod}
	}
	if s.users != nil {
		rpcCfg.Credentials = identity.WithUsers(creds)
		rpcCfg.Anyone = append(rpcCfg.Anyone, "/"+policyv1.InspectionService_ServiceDesc.ServiceName+"/")
	}
	if s.rpc, err = s.face.Transport(rpcCfg); err != nil {
		return nil, err
	}
	if cfg.Webhook != "" {
		if s.webhook, err = newWebhook(s, creds); err != nil {
			return nil, err
		}
	}
	if cfg.Kubernetes && cfg.Namespace != "" {
		if s.status, err = status.New(status.Config{Kubeconfig: cfg.Kubeconfig, Namespace: cfg.Namespace, Identity: s.Epoch(), Model: known{s},
			Registry: registry, Logger: cfg.Logger.Named("status")}); err != nil {
			return nil, err
		}
	}
	if enrollment != nil {
		policyv1.RegisterEnrollmentServiceServer(s.rpc.GRPC, enrollment)
	}
	policyv1.RegisterAccessServiceServer(s.rpc.GRPC, identity.NewAccess(s.users))
	return s, nil
}

// credentials are what the service shows and believes; nil for plain text. With
// certificates of the cluster it gives some to others, too.
func (s *Service) credentials() (identity.Credentials, *identity.Enrollment, error) {
	if s.cfg.Cluster == nil {
		if !s.cfg.TLS.Set() {
			return nil, nil, nil
		}
		creds, err := s.cfg.TLS.Credentials()
		return creds, nil, err
	}
	c, err := identity.NewCluster(*s.cfg.Cluster)
	if err != nil {
		return nil, nil, err
	}
	s.cluster = c
	e, err := identity.NewEnrollment(identity.EnrollmentConfig{Authority: c.Authority, Reviewer: c.Reviewer(), Grants: s.cfg.Grants,
		Lifetime: s.cfg.Cluster.Lifetime, Registry: s.registry, Logger: s.logger.Named("enrollment")})
	return c, e, err
}

// newSource is the source that a configuration names.
func newSource(cfg *Config, registry prometheus.Registerer) (Source, error) {
	switch {
	case cfg.Source != nil:
		return cfg.Source, nil
	case cfg.Kubernetes:
		read, err := kubernetes.New(kubernetes.Config{Kubeconfig: cfg.Kubeconfig, TakeOver: cfg.TakeOver, Versions: cfg.ChangeTrail, Registry: registry, Logger: cfg.Logger.Named("kubernetes")})
		if err != nil {
			return nil, err
		}
		return cluster{read}, nil
	}
	read, err := manifests.New(manifests.Config{Dir: cfg.Manifests, Versions: cfg.ChangeTrail, Logger: cfg.Logger.Named("manifests")})
	if err != nil {
		return nil, err
	}
	return folder{read}, nil
}

// newEpoch names this life of the process.
func newEpoch() string {
	var id [8]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// Addr is where gRPC is served.
func (s *Service) Addr() string { return s.rpc.Addr().String() }

// Epoch names this life of the service.
func (s *Service) Epoch() string { return s.store.Epoch() }

// Metrics are the service's, also served at Config.Metrics.
func (s *Service) Metrics() prometheus.Gatherer { return s.registry }

// Run serves until the context ends.
func (s *Service) Run(ctx context.Context) error {
	s.logger.Info("serving", "address", s.Addr(), "manifests", s.cfg.Manifests, "kubernetes", s.cfg.Kubernetes, "tls", s.cfg.TLS.Set() || s.cfg.Cluster != nil, "epoch", s.store.Epoch())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.source.Run(ctx) })
	if s.cluster != nil {
		g.Go(func() error { return s.cluster.Run(ctx) })
	}
	if s.users != nil {
		g.Go(func() error { return s.users.Run(ctx) })
	}
	if s.webhook != nil {
		g.Go(func() error { return s.webhook.run(ctx) })
	}
	if s.status != nil {
		g.Go(func() error {
			select {
			case <-s.read: // Before that there is nothing to say.
				return s.status.Run(ctx)
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	} else if s.cfg.Kubernetes {
		s.logger.Warn("the status of policies is not written: no Namespace of the service is given (--namespace)")
	}
	g.Go(func() error { return s.write(ctx) })
	g.Go(func() error { return s.becomeReady(ctx) })
	g.Go(func() error { return s.face.Run(ctx) })
	g.Go(func() error { return s.rpc.Run(ctx) })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// becomeReady says that the service can be used, once it has read its sources
// and has a certificate.
func (s *Service) becomeReady(ctx context.Context) error {
	wait := []<-chan struct{}{s.read}
	if s.cluster != nil {
		wait = append(wait, s.cluster.Issued())
	}
	for _, c := range wait {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.rpc.SetCondition(rpc.Condition{})
	return nil
}

// write is the one writer.
func (s *Service) write(ctx context.Context) error {
	for {
		b, err := s.source.Next(ctx)
		if err != nil {
			return err
		}
		s.take(b)
	}
}

func (s *Service) take(b Batch) {
	if b.Read != nil {
		defer s.store.Advance(b.Read)
		if len(b.Events) == 0 && s.synced.Load() {
			return // Nothing is new but how far was read.
		}
	}
	read := time.Now()
	s.mu.Lock()
	changes := s.beforeLocked(b.Events)
	for _, ev := range b.Events {
		s.keepLocked(ev, read)
		s.engine.Apply(ev)
		s.evaluator.Apply(ev)
	}
	s.judge.tell(b.Events)
	var revision uint64
	if s.synced.Load() {
		out, moves := s.engine.FlushMoves()
		revision = s.face.Commit(out, b.Position, moves)
	} else { // Nobody is served yet who could be waited for.
		revision = s.store.Commit(s.engine.Flush(), b.Position)
	}
	s.tellLocked(changes, read)
	s.tellStatus(b.Events)
	if b.Synced && s.cfg.ChangeTrail && s.begun == 0 {
		s.begun = read.UnixNano()
	}
	s.mu.Unlock()
	s.objects.Add(float64(len(b.Events)))
	s.problems.Set(float64(b.Problems))
	s.revision.Set(float64(revision))
	if b.Synced && !s.synced.Swap(true) {
		close(s.read)
	}
	level := hclog.Info
	if b.Read != nil && len(b.Events) < 100 { // A cluster changes all the time.
		level = hclog.Debug
	}
	s.logger.Log(level, "source read", "changes", len(b.Events), "problems", b.Problems, "revision", revision)
}

// Conflicts implements server.Model.
func (s *Service) Conflicts() (conflicts map[api.Ref][]string) {
	s.judge.ask(func(x *validate.Index) { conflicts = x.Conflicts() })
	return conflicts
}

// Policies implements server.Model.
func (s *Service) Policies() []engine.PolicyInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.engine.Policies()
}

// PolicyUID implements server.Model.
func (s *Service) PolicyUID(ref api.Ref) (uid string, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.engine.PolicyUID(ref)
}

// Groups implements server.Model.
func (s *Service) Groups(members bool) []engine.GroupInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.engine.Groups(members)
}

// namespaces are those that there are.
func (s *Service) namespaces() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.evaluator.Namespaces()
}

// Definitions implements server.Model.
func (s *Service) Definitions(of func(namespace string) bool) []engine.GroupDefinition {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.engine.Definitions(of)
}
