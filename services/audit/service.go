package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/facts"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/audit/sink"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/rpc"
	"github.com/weirnet/weir/storage/eventlog"
)

// Version is the build's, set by the linker.
var Version = "dev"

// Isolation drops in np.log.
const (
	IsolationKind  = "kind"  // K8sNetworkPolicy, as Antrea prints.
	IsolationNamed = "named" // K8sNetworkPolicy:ns/a,ns/b.
)

// Config of a Service.
type Config struct {
	Dir      string                   // Folder of the event log, and of what is made from it; required.
	NATS     *eventlog.NATSConfig     // The event log is in a stream of NATS. Nil: in Dir.
	Listen   string                   // host:port of gRPC.
	TLS      identity.Files           // All empty: plain text, or Enroll.
	Enroll   *identity.EnrolledConfig // Certificates by a token, from the policy service. Nil: TLS counts.
	Insecure bool                     // Plain text may be listened to, and forwarded, beyond loopback.
	Metrics  string                   // host:port of /metrics, /healthz, /readyz. Empty: none.

	RetentionAge   time.Duration // Zero: no limit.
	RetentionBytes uint64        // Zero: no limit.
	MinFree        uint64        // Zero: eventlog.DefaultMinFree.

	NPLogDir string // DIR/NODE/np.log for every node. Empty: none.
	NPLog    string // One file for the lines of Node. Empty: none.
	Node     string
	// PolicyServers are host:port of replicas of the policy service, which tell whose
	// addresses are, and what becomes of policies. None: records go without.
	PolicyServers  []string
	NPLogIsolation string         // Empty: IsolationKind.
	LogZone        *time.Location // Of np.log. Nil: local.
	JSONFile       string         // Empty: none.
	Syslog         []string       // udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT.
	Sinks          string         // File of further sinks, see sink.ParseSpecs. Empty: none.
	// Forward are host:port of another collector, or of several on one log, to any
	// of which the record is sent on; with Node, that node's alone, and then others
	// may not report. It is dialled as ForwardTLS or ForwardEnroll say, which are
	// not shown to who reports; both empty: as TLS or Enroll say.
	Forward       []string
	ForwardTLS    identity.Files
	ForwardEnroll *identity.EnrolledConfig
	Rotation      sink.Rotation // Of all files.

	Logger hclog.Logger

	// MaxSubscribers is how many Tails may run at once; those of one identity half of
	// them. Zero: DefaultMaxSubscribers.
	MaxSubscribers int

	retell time.Duration // Of the watcher. Zero: retellInterval.
	review time.Duration // Of the reviewer. Zero: reviewInterval.
}

// DefaultMaxSubscribers is Config.MaxSubscribers where it is zero.
const DefaultMaxSubscribers = 2000

// healthInterval is how soon the health service says what the log is.
const healthInterval = 100 * time.Millisecond

// Service is the collector.
type Service struct {
	auditv1.UnimplementedCollectorServiceServer
	auditv1.UnimplementedAuditServiceServer

	cfg       Config
	logger    hclog.Logger
	log       *eventlog.Log
	sinks     []projection
	rpc       *rpc.Server
	own       identity.Credentials // Of the listener. Nil: plain text.
	forwarder identity.Credentials // By which is forwarded. Nil: nothing is, or plain text.
	enrolled  []*identity.Enrolled // Whose certificates are to be got and renewed.
	metrics   metrics
	sessions  sessions
	reviewer  *reviewer // Nil: users of the cluster are not let in.
	feed      *feed
	seats     seats
	overview  *overview
	watcher   *watcher      // Nil: nothing is followed.
	facts     *facts.Facts  // The watcher's. Nil, as it is.
	decoders  sync.Pool     // Of record.Decoder, for requests.
	stopping  chan struct{} // Closed when streams are to end.
	now       func() time.Time
}

// New checks the configuration, opens the log, binds the addresses, and starts
// nothing. While the disk has no room for the log to be opened it waits, until the
// context ends.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, logger: cfg.Logger, metrics: newMetrics(), stopping: make(chan struct{}), now: time.Now,
		seats:    seats{most: cmp.Or(cfg.MaxSubscribers, DefaultMaxSubscribers), by: make(map[string]int)},
		sessions: sessions{byBoot: make(map[[2]string]*session)}, decoders: sync.Pool{New: func() any { return record.NewDecoder() }}}
	var err error
	if s.log, err = openLog(ctx, &cfg); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.log.Close())
	}
	return s, nil
}

// openLog opens the event log, and tries on while there is no room: to end would have
// whoever starts the process wait longer each time.
func openLog(ctx context.Context, cfg *Config) (*eventlog.Log, error) {
	said := false
	for {
		log, err := eventlog.Open(eventlog.Config{Dir: cfg.Dir, NATS: cfg.NATS, RetentionAge: cfg.RetentionAge, RetentionBytes: cfg.RetentionBytes,
			MinFree: cfg.MinFree, Logger: cfg.Logger.Named("eventlog")})
		if err == nil || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			return log, err
		}
		if !said {
			cfg.Logger.Error("the disk has no room for the event log to be opened; free some; trying on", "dir", cfg.Dir, "err", err)
			said = true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (c *Config) check() error {
	if c.Dir == "" {
		return errors.New("no folder for the event log: give --dir DIR")
	}
	if err := c.checkNATS(); err != nil {
		return err
	}
	if c.NPLog != "" && c.Node == "" || c.Node != "" && c.NPLog == "" && len(c.Forward) == 0 {
		return errors.New("--node and --np-log belong together: the file is of that node's lines")
	}
	if err := c.checkForward(); err != nil {
		return err
	}
	if c.MaxSubscribers < 0 {
		return fmt.Errorf("--max-subscribers %d: write how many callers may read at once", c.MaxSubscribers)
	}
	for _, address := range c.PolicyServers {
		withTLS := c.TLS.Set() || c.Enroll != nil || c.ForwardTLS.Set() || c.ForwardEnroll != nil
		if err := identity.CheckListen(address, withTLS, c.Insecure); err != nil {
			return fmt.Errorf("--policy-server: %w", err)
		}
	}
	if c.NPLogIsolation != "" && c.NPLogIsolation != IsolationKind && c.NPLogIsolation != IsolationNamed {
		return fmt.Errorf("--np-log-isolation %q: write %s or %s", c.NPLogIsolation, IsolationKind, IsolationNamed)
	}
	return identity.CheckListen(c.Listen, c.TLS.Set() || c.Enroll != nil, c.Insecure)
}

func (s *Service) open() error {
	var err error
	if s.own, err = s.credentials(s.cfg.TLS, s.cfg.Enroll); err != nil {
		return err
	}
	if err := s.addSinks(); err != nil {
		return err
	}
	if err := s.addForward(); err != nil {
		return err
	}
	s.overview = newOverview(s.log, filepath.Join(s.cfg.Dir, "changes.index"), s.logger.Named("overview"))
	s.addWatcher()
	s.feed = newFeed(s.log)
	registry := prometheus.NewRegistry()
	registry.MustRegister(s, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cfg := rpc.Config{Listen: s.cfg.Listen, Metrics: s.cfg.Metrics, Logger: s.cfg.Logger, Registry: registry,
		Options: []grpc.ServerOption{grpc.ForceServerCodecV2(newCodec())}}
	if s.own != nil {
		cfg.TLS = s.own.Server()
	}
	if s.own != nil && len(s.cfg.PolicyServers) > 0 {
		s.reviewer = &reviewer{addresses: s.cfg.PolicyServers, creds: s.own.Client(), interval: s.cfg.review, conns: make(map[string]*grpc.ClientConn)}
		cfg.Credentials = identity.WithUsers(s.own)
		cfg.Anyone = []string{"/" + auditv1.AuditService_ServiceDesc.ServiceName + "/"}
	}
	if s.rpc, err = rpc.New(cfg); err != nil {
		return err
	}
	auditv1.RegisterCollectorServiceServer(s.rpc.GRPC, s)
	auditv1.RegisterAuditServiceServer(s.rpc.GRPC, s)
	return nil
}

// addWatcher follows the policy service, if there is one.
func (s *Service) addWatcher() {
	if len(s.cfg.PolicyServers) == 0 {
		return
	}
	s.facts = facts.New(facts.Config{})
	s.watcher = &watcher{addresses: s.cfg.PolicyServers, facts: s.facts, overview: s.overview, log: s.log, logger: s.logger.Named("watcher"),
		now: s.now, shared: s.cfg.NATS != nil, retell: cmp.Or(s.cfg.retell, retellInterval)}
	if creds := cmp.Or(s.own, s.forwarder); creds != nil {
		s.watcher.creds = creds.Client()
	}
}

// Addr is where gRPC is served.
func (s *Service) Addr() string { return s.rpc.Addr().String() }

// Run serves until the context ends. The streams end first, then the log, whose
// last records the sinks still write.
func (s *Service) Run(ctx context.Context) (err error) {
	s.logger.Info("serving", "address", s.Addr(), "dir", s.cfg.Dir, "tls", s.cfg.TLS.Set() || s.cfg.Enroll != nil, "sinks", len(s.sinks))
	defer func() { err = errors.Join(err, s.log.Close()) }()
	if s.reviewer != nil {
		defer s.reviewer.close()
	}
	rpcCtx, stopRPC := context.WithCancel(ctx)
	defer stopRPC()
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	g, inner := errgroup.WithContext(inner)
	g.Go(func() error { return s.log.Run(inner) })
	for _, k := range s.sinks {
		g.Go(func() error { return k.Run(inner) })
	}
	for _, e := range s.enrolled {
		g.Go(func() error { return e.Run(inner) })
	}
	g.Go(func() error { return s.overview.Run(inner) })
	g.Go(func() error { return s.feed.run(inner) })
	if s.watcher != nil {
		g.Go(func() error { return s.watcher.Run(inner) })
	}
	g.Go(func() error { return s.watchHealth(inner) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-inner.Done(): // Another part has failed.
		}
		close(s.stopping)
		stopRPC()
		return nil
	})
	g.Go(func() error {
		defer stopInner()
		return s.rpc.Run(rpcCtx)
	})
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// condition is whether events can be brought and stored, and what else is wrong.
func (s *Service) condition() rpc.Condition {
	var c rpc.Condition
	if e, ok := s.own.(*identity.Enrolled); ok && !e.Issued() {
		c.Refusal = "the policy service has not given a certificate yet"
	}
	if err := s.log.Health(); err != nil {
		c.Refusal = err.Error()
	}
	for _, k := range s.sinks {
		if st := k.Stats(); st.LastError != "" {
			c.Warnings = append(c.Warnings, fmt.Sprintf("sink %s: %s", st.Name, st.LastError))
		}
	}
	for _, dir := range s.log.SetAside() {
		c.Warnings = append(c.Warnings, fmt.Sprintf("the event log's database was damaged: what could not be read of it is stated as lost (stage damaged); it is set aside in %s, remove that when it is not needed", dir))
	}
	if s.watcher != nil && !s.watcher.connected.Load() {
		c.Warnings = append(c.Warnings, "the policy service is not followed: records come without the names of what is new")
	}
	return c
}

// watchHealth says by the health service whether events can be brought and stored.
func (s *Service) watchHealth(ctx context.Context) error {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		s.rpc.SetCondition(s.condition())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
