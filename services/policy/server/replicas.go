package server

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// replicas are the other replicas of the policy service, and how they are asked
// about arrivals, and about what they know (elsewhere.go). A replica that cannot
// be reached has no connected nodes.
type replicas struct {
	addresses []string // host:port; a host may have several addresses.
	creds     credentials.TransportCredentials
	epoch     string
	logger    hclog.Logger

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // By address and host.
	self  map[string]bool             // Those that answered as this replica itself.
	mute  map[string]bool             // Those that did not answer when they were last asked what they know.
	lost  time.Time                   // When one of them last went or fell silent.
	nodes map[string]bool             // That are connected to another, as of the last exchange. Immutable.
	tally map[string]talliesMark      // How far each told its tallies.
}

// talliesMark is up to which change a replica told what it knows of counters.
type talliesMark struct {
	epoch string // Of the replica.
	mark  uint64
}

func (r *replicas) tallied(address string) talliesMark {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tally[address]
}

func (r *replicas) setTallied(address string, m talliesMark) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tally[address] = m
}

// How often names are resolved, and how long a replica may take to answer. It
// need not be longer than any shim waits.
const (
	resolveInterval = 5 * time.Second
	awaitTimeout    = 5 * time.Second
	maxArrivals     = 10000
)

func newReplicas(addresses []string, creds credentials.TransportCredentials, epoch string, logger hclog.Logger) *replicas {
	return &replicas{addresses: addresses, creds: creds, epoch: epoch, logger: logger,
		conns: make(map[string]*grpc.ClientConn), self: make(map[string]bool), mute: make(map[string]bool), tally: make(map[string]talliesMark)}
}

// run keeps a connection to every address of every name, and asks now and then
// which nodes are connected there.
func (r *replicas) run(ctx context.Context) error {
	ticker := time.NewTicker(resolveInterval)
	defer ticker.Stop()
	exchange := time.NewTicker(exchangeInterval)
	defer exchange.Stop()
	said := ""
	for {
		if err := r.resolve(ctx); err == nil {
			said = ""
		} else if err.Error() != said {
			said = err.Error()
			r.logger.Warn("other replicas cannot be found; a new Pod does not wait for their nodes", "err", err)
		}
		select {
		case <-ctx.Done():
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, c := range r.conns {
				c.Close()
			}
			return ctx.Err()
		case <-ticker.C:
		case <-exchange.C:
			r.exchange(ctx)
		}
	}
}

func (r *replicas) resolve(ctx context.Context) error {
	found := make(map[string]string) // Host by address.
	for _, a := range r.addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return fmt.Errorf("replica %q: %w", a, err)
		}
		ips, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return fmt.Errorf("replica %q: %w", a, err)
		}
		for _, ip := range ips {
			found[net.JoinHostPort(ip, port)] = host
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for address, conn := range r.conns {
		if _, still := found[address]; !still {
			conn.Close()
			if !r.self[address] {
				r.lost = time.Now()
			}
			delete(r.conns, address)
			delete(r.self, address)
			delete(r.mute, address)
			delete(r.tally, address)
		}
	}
	for _, address := range slices.Sorted(maps.Keys(found)) {
		if r.conns[address] != nil {
			continue
		}
		creds := r.creds
		if creds == nil {
			creds = insecure.NewCredentials()
		}
		conn, err := grpc.NewClient("passthrough:"+address, grpc.WithTransportCredentials(creds), grpc.WithAuthority(found[address]))
		if err != nil {
			return fmt.Errorf("replica %s: %w", address, err)
		}
		r.conns[address] = conn
	}
	return nil
}

// others are the replicas to ask, without this one.
func (r *replicas) others() map[string]*grpc.ClientConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	others := make(map[string]*grpc.ClientConn, len(r.conns))
	for address, conn := range r.conns {
		if !r.self[address] {
			others[address] = conn
		}
	}
	return others
}

// ask asks every other replica about arrivals, which count on each.
func (r *replicas) ask(others map[string]*grpc.ClientConn, arrivals []*arrival, b *barriers) {
	for address, conn := range others {
		for part := range slices.Chunk(arrivals, maxArrivals) {
			go r.await(address, conn, part, b)
		}
	}
}

// await asks one replica. What it has not answered for when it has become
// unreachable is settled as far as it is concerned; what it is too late with
// is not.
func (r *replicas) await(address string, conn *grpc.ClientConn, arrivals []*arrival, b *barriers) {
	ctx, cancel := context.WithTimeout(context.Background(), awaitTimeout)
	defer cancel()
	req := &policyv1.AwaitRequest{Epoch: r.epoch}
	for _, a := range arrivals {
		wire := &policyv1.Arrival{Node: a.Node, Key: a.Key}
		for _, ip := range a.Addresses {
			wire.Ips = append(wire.Ips, ip.AsSlice())
		}
		req.Arrivals = append(req.Arrivals, wire)
	}
	open := slices.Clone(arrivals)
	err := r.each(ctx, conn, req, func(i uint32) {
		if int(i) < len(open) && open[i] != nil {
			b.settledElsewhere(open[i])
			open[i] = nil
		}
	})
	switch status.Code(err) {
	case codes.OK:
		return
	case codes.DeadlineExceeded:
		r.logger.Warn("another replica has not said in time that its nodes know new Pods", "replica", address)
		return
	case codes.FailedPrecondition:
		r.mu.Lock()
		r.self[address] = true
		r.mu.Unlock()
	case codes.Unavailable, codes.Canceled:
		r.logger.Debug("another replica cannot be reached", "replica", address, "err", err)
	default:
		r.logger.Error("another replica does not say whether its nodes know new Pods", "replica", address, "err", err)
		return
	}
	open = slices.DeleteFunc(open, func(a *arrival) bool { return a == nil })
	b.settledElsewhere(open...)
}

func (r *replicas) each(ctx context.Context, conn *grpc.ClientConn, req *policyv1.AwaitRequest, fn func(uint32)) error {
	answer, err := policyv1.NewReplicaServiceClient(conn).Await(ctx, req)
	if err != nil {
		return err
	}
	for left := len(req.Arrivals); left > 0; {
		resp, err := answer.Recv()
		if err != nil {
			return err
		}
		for _, i := range resp.GetArrivals() {
			fn(i)
			left--
		}
	}
	return nil
}

// Await implements ReplicaService.
func (s *Server) Await(req *policyv1.AwaitRequest, answer grpc.ServerStreamingServer[policyv1.AwaitResponse]) error {
	if err := s.cfg.MayReplicate(answer.Context()); err != nil {
		return status.Errorf(codes.PermissionDenied, "caller is no policy service: %v", err)
	}
	if req.GetEpoch() == s.cfg.Store.Epoch() {
		return status.Error(codes.FailedPrecondition, "the caller is this replica")
	}
	if n := len(req.GetArrivals()); n > maxArrivals {
		return status.Errorf(codes.InvalidArgument, "%d arrivals, at most %d", n, maxArrivals)
	}
	open := make(map[uint32]*policyv1.Arrival, len(req.GetArrivals()))
	for i, a := range req.GetArrivals() {
		if a.GetNode() == "" || a.GetKey() == "" || len(a.GetIps()) == 0 {
			return status.Errorf(codes.InvalidArgument, "arrivals[%d] without node, key or ips", i)
		}
		open[uint32(i)] = a
	}
	for {
		changed := s.barriers.watch()
		resp := &policyv1.AwaitResponse{}
		for i, a := range open {
			if s.barriers.here(a) {
				resp.Arrivals = append(resp.Arrivals, i)
				delete(open, i)
			}
		}
		if len(resp.Arrivals) > 0 {
			if err := answer.Send(resp); err != nil {
				return err
			}
		}
		if len(open) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-answer.Context().Done():
			return status.FromContextError(answer.Context().Err()).Err()
		case <-s.stopping:
			return errStopping
		}
	}
}
