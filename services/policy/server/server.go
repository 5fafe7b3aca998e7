package server

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// Model answers inspection. Its methods may be called at any time from any goroutine.
type Model interface {
	Policies() []engine.PolicyInfo
	Groups(members bool) []engine.GroupInfo
	// Definitions counts the Pods of Namespaces for which of is true; nil: of all.
	Definitions(of func(namespace string) bool) []engine.GroupDefinition
	// Conflicts says of policies, in sentences, which of their rules contradict
	// others of equal precedence.
	Conflicts() map[api.Ref][]string
	// PolicyUID is the UID of a policy's object, which may be empty; false where there is none.
	PolicyUID(ref api.Ref) (uid string, known bool)
	// Explain returns an error that names the field which it cannot read. Sees says
	// what of a connection may be told, see evaluate.State.AnswerTo; nil: all.
	Explain(req *policyv1.ExplainRequest, sees func(namespace string) bool) (*policyv1.ExplainResponse, error)
	// Ends are who a connection is between; errors are as those of Explain.
	Ends(*policyv1.ExplainRequest) (from, to End, err error)
	// Names are those of all objects of which there may be something to tell, as
	// of a moment in which begin is called: of each change, Tell is called either
	// before it, or after it.
	Names(begin func()) []api.Ref
	// Objects are what objects are now, in the order of their names.
	Objects(names []api.Ref) []Object
}

// Config of a Server. All fields but Users, Replicas, ReplicaCredentials, Settle, Ports and RuleMetrics are required.
type Config struct {
	Store *storage.Store
	Model Model
	// NodeOf is the node that a caller is allowed to be, from its transport
	// credentials; "" where the transport has none and any name is taken.
	NodeOf func(context.Context) (string, error)
	// MayInspect decides over inspection from transport credentials.
	MayInspect func(context.Context) error
	// Users judges callers whom MayInspect refuses and who are no part of Weir. Nil:
	// they stay refused.
	Users Users
	// MayReplicate decides over ReplicaService from transport credentials.
	MayReplicate func(context.Context) error
	// Replicas are host:port of all replicas, which may include this one; a name
	// may have the addresses of several. ReplicaCredentials are shown to
	// them; nil is plain text.
	Replicas           []string
	ReplicaCredentials credentials.TransportCredentials
	// Settle is how long a node whose digest is not what it must be is left
	// alone when it comes, although its position is reached: for sources that are
	// several watches, which are not in step. Zero: it is repaired at once.
	Settle time.Duration
	// Ports is told what a node reports of its ports, all of them, and nil when
	// it is not connected any more. It must not block. Nil: nobody is told.
	Ports func(node string, ports []*policyv1.PortState)
	// RuleMetrics has the metrics tell of each rule by itself.
	RuleMetrics bool
	// Synced says whether the sources have been read: until then nobody is served.
	Synced   func() bool
	Registry prometheus.Registerer
	Logger   hclog.Logger
}

// Server implements PolicyService, ReplicaService and InspectionService.
type Server struct {
	policyv1.UnimplementedReplicaServiceServer
	policyv1.UnimplementedPolicyServiceServer
	policyv1.UnimplementedInspectionServiceServer
	cfg       Config
	sessions  sessions
	barriers  *barriers
	commits   commits
	absences  absences
	tallies   *tallies
	pace      pace
	probes    probes
	userCalls chan struct{} // A slot for each call of a user.
	watchers  watchers
	acks      acknowledgements
	begun     time.Time
	stopping  chan struct{} // Closed when Run ends.

	streams   prometheus.Gauge
	repairs   prometheus.Counter
	rollbacks prometheus.Counter
	applySec  prometheus.Histogram
	ackedSec  prometheus.Histogram
}

// Streams are cut into frames of this size; one item may be larger.
const frameBytes = 1 << 20

// Limits of a stream's steps.
const (
	helloTimeout     = 10 * time.Second
	positionTimeout  = 5 * time.Second  // How long a replica that is behind the node waits for its sources.
	inventoryTimeout = 10 * time.Second // How long a node may take to tell what it holds.
)

// New returns a server; Register puts it on a gRPC server, and Run drives it.
func New(cfg Config) (*Server, error) {
	s := &Server{
		cfg:       cfg,
		sessions:  sessions{byNode: make(map[string]*session)},
		tallies:   newTallies(),
		pace:      pace{passed: make(chan struct{}, 1)},
		probes:    probes{slots: make(chan struct{}, maxProbes)},
		userCalls: make(chan struct{}, maxUserCalls),
		watchers:  watchers{open: make(map[*watcher]struct{})},
		begun:     time.Now(),
		stopping:  make(chan struct{}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weir_policy_streams", Help: "Nodes that are connected."}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_policy_digest_mismatches_total", Help: "Acknowledged digests that were not the cut's; each is followed by a repair."}),
		rollbacks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_policy_position_rollbacks_total", Help: "Nodes that were served although they had been told of a later position than this replica has read."}),
		applySec: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weir_policy_apply_seconds", Help: "Time that nodes took to apply a cut.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		ackedSec: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weir_policy_acknowledged_seconds", Help: "Time from the commit of a change until a node that it concerns had acknowledged it, by node and cut.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}),
	}
	s.barriers = newBarriers(cfg.Store, &s.sessions)
	if len(cfg.Replicas) > 0 {
		s.barriers.replicas = newReplicas(cfg.Replicas, cfg.ReplicaCredentials, cfg.Store.Epoch(), cfg.Logger)
	}
	collectors := []prometheus.Collector{s.streams, s.repairs, s.rollbacks, s.applySec, s.ackedSec, nodeMetrics{s}, s.watchers.gauge(), s.barriers.settled, s.barriers.expired}
	if cfg.RuleMetrics {
		collectors = append(collectors, ruleMetrics{s})
	}
	for _, c := range collectors {
		if err := cfg.Registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

// Register puts the services on a gRPC server made with Codec.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	policyv1.RegisterPolicyServiceServer(r, s)
	policyv1.RegisterReplicaServiceServer(r, s)
	policyv1.RegisterInspectionServiceServer(r, s)
}
