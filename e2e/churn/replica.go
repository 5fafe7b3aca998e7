package churn

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy"
)

// service is one life of the policy service: what weir-policyd runs, in this
// process.
type service struct {
	*policy.Service
	cancel context.CancelFunc
	done   chan error
}

// startService begins a life. Of its log the errors are shown: nothing that
// happens here is one of the service's own.
func startService(source policy.Source, log io.Writer) (*service, error) {
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: log})
	s, err := policy.New(policy.Config{Source: source, Listen: "127.0.0.1:0", Logger: logger})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	life := &service{Service: s, cancel: cancel, done: make(chan error, 1)}
	go func() { life.done <- s.Run(ctx) }()
	return life, nil
}

func (s *service) stop() error {
	s.cancel()
	return <-s.done
}

// connect calls fn with a connection to the service, once that has read its source.
func (s *service) connect(ctx context.Context, fn func(*grpc.ClientConn) error) error {
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	health, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	for {
		switch state, err := health.Recv(); {
		case err != nil:
			return err
		case state.GetStatus() == healthv1.HealthCheckResponse_SERVING:
			return fn(conn)
		}
	}
}

// nodes is what the service says of the nodes, by name.
func (s *service) nodes(ctx context.Context) (map[string]*policyv1.NodeSummary, error) {
	byName := map[string]*policyv1.NodeSummary{}
	err := s.connect(ctx, func(conn *grpc.ClientConn) error {
		list, err := policyv1.NewInspectionServiceClient(conn).ListNodes(ctx, &policyv1.ListNodesRequest{})
		for _, n := range list.GetNodes() {
			byName[n.GetName()] = n
		}
		return err
	})
	return byName, err
}

// replica is a place where one service after the other lives.
type replica struct {
	address string // By which shims know it.
	record  *record
	network *network
	seed    uint64
	stall   time.Duration
	log     io.Writer

	mu     sync.Mutex // Guards what follows.
	life   *service   // Nil: stopped.
	epochs map[string]bool
	totals counts // Of the lives that ended.
}

func newReplica(i int, cfg Config, r *record, n *network) *replica {
	return &replica{address: fmt.Sprintf("192.0.2.%d:9750", i+1), record: r, network: n, seed: cfg.Seed + uint64(i)<<32, stall: cfg.Stall, log: cfg.Logf,
		epochs: map[string]bool{}, totals: counts{}}
}

// start begins a life, if there is none.
func (r *replica) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.life != nil {
		return nil
	}
	life, err := startService(r.record.watch(r.seed+uint64(len(r.epochs)), r.stall), r.log)
	if err != nil {
		return fmt.Errorf("replica %s: %w", r.address, err)
	}
	if r.epochs[life.Epoch()] {
		return fmt.Errorf("replica %s: a second life has the epoch %s", r.address, life.Epoch())
	}
	r.life, r.epochs[life.Epoch()] = life, true
	r.network.open(r.address, life.Addr())
	return nil
}

// stop ends the life; abruptly: the shims see their connections close before
// anything else.
func (r *replica) stop(abruptly bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.life == nil {
		return nil
	}
	r.network.close(r.address)
	if abruptly {
		r.network.sever(r.address)
	}
	err := r.life.stop()
	r.network.sever(r.address)
	r.totals.add(r.life.Metrics())
	r.life = nil
	return err
}

// nodes is what the present life says of the nodes.
func (r *replica) nodes(ctx context.Context) (map[string]*policyv1.NodeSummary, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.life.nodes(ctx)
}

// counted adds the counters of all lives to c, and returns how many there were.
func (r *replica) counted(c counts) (lives int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, n := range r.totals {
		c[name] += n
	}
	if r.life != nil {
		c.add(r.life.Metrics())
	}
	return len(r.epochs)
}

// counts are sums of counters by name; of gRPC calls also by code, as NAME/CODE.
type counts map[string]float64

// add adds what the counters of a registry stand at.
func (c counts) add(g prometheus.Gatherer) {
	families, err := g.Gather()
	if err != nil {
		panic("churn: counters of our own: " + err.Error())
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetCounter() == nil {
				continue
			}
			c[f.GetName()] += m.GetCounter().GetValue()
			for _, l := range m.GetLabel() {
				if l.GetName() == "grpc_code" {
					c[f.GetName()+"/"+l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
}
