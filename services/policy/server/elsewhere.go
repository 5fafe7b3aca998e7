package server

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// EpochHeader is the response header by which inspection says which replica
// answers: its epoch.
const EpochHeader = "weir-epoch"

// How long the other replicas may take to say what they know, how much each may
// say, and how often they are asked unasked.
const (
	askTimeout       = 2 * time.Second
	maxAnswerBytes   = 64 << 20
	exchangeInterval = 15 * time.Second
)

// elsewhere asks the other replicas, all at once. Answers are in the order of
// their epochs, one for each, and without this replica's own. One that does not
// answer is left out; that is logged until it answers again, once.
func elsewhere[T any](ctx context.Context, r *replicas, ask func(context.Context, *grpc.ClientConn, ...grpc.CallOption) (T, error)) []T {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var (
		mu      sync.Mutex // Guards answers.
		answers = make(map[string]T)
		asked   sync.WaitGroup
	)
	for address, conn := range r.others() {
		asked.Go(func() {
			var header metadata.MD
			answer, err := ask(ctx, conn, grpc.Header(&header), grpc.MaxCallRecvMsgSize(maxAnswerBytes))
			epoch := strings.Join(header.Get(EpochHeader), "")
			r.answered(address, epoch, err)
			if err != nil || epoch == r.epoch {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answers[epoch] = answer
		})
	}
	asked.Wait()
	out := make([]T, 0, len(answers))
	for _, epoch := range slices.Sorted(maps.Keys(answers)) {
		out = append(out, answers[epoch])
	}
	return out
}

// answered notes how a replica answered.
func (r *replicas) answered(address, epoch string, err error) {
	r.mu.Lock()
	said := r.mute[address]
	r.mute[address] = err != nil
	if err == nil && epoch == r.epoch {
		r.self[address] = true
	}
	if err != nil && !said {
		r.lost = time.Now()
	}
	r.mu.Unlock()
	if err != nil && !said {
		r.logger.Warn("another replica does not say what it knows; it is left out until it does", "replica", address, "err", err)
	}
}

// exchange asks which nodes are connected to the other replicas.
func (r *replicas) exchange(ctx context.Context) {
	nodes := make(map[string]bool)
	for _, list := range elsewhere(ctx, r, nodesOf(false)) {
		for _, n := range list.GetNodes() {
			if n.GetConnected() {
				nodes[n.GetName()] = true
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = nodes
}

// theirs are the nodes that are connected to other replicas, as of the last
// exchange.
func (r *replicas) theirs() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nodes
}

// nodesOf asks a replica for the nodes that it knows, with or without what names
// stand for there.
func nodesOf(named bool) func(context.Context, *grpc.ClientConn, ...grpc.CallOption) (*policyv1.ListNodesResponse, error) {
	return func(ctx context.Context, c *grpc.ClientConn, opts ...grpc.CallOption) (*policyv1.ListNodesResponse, error) {
		return policyv1.NewInspectionServiceClient(c).ListNodes(ctx, &policyv1.ListNodesRequest{Local: true, Named: named}, opts...)
	}
}

// mergeNodes puts what other replicas know of nodes into what this one does.
func mergeNodes(own []*policyv1.NodeSummary, others []*policyv1.ListNodesResponse) []*policyv1.NodeSummary {
	best := make(map[string]*policyv1.NodeSummary, len(own))
	for _, n := range own {
		best[n.GetName()] = n
	}
	for _, list := range others {
		for _, n := range list.GetNodes() {
			if have := best[n.GetName()]; have == nil || closer(n, have) < 0 {
				best[n.GetName()] = n
			}
		}
	}
	out := make([]*policyv1.NodeSummary, 0, len(best))
	for _, name := range slices.Sorted(maps.Keys(best)) {
		out = append(out, best[name])
	}
	return out
}

// closer orders what two replicas say of one node: first the one that it is
// connected to. Where both think so, one has not noticed yet that the node is
// gone, and will find it neither in sync nor close. Where neither does, the node
// was in sync more recently with the one that has it behind for less long.
func closer(a, b *policyv1.NodeSummary) int {
	yes := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	if c := cmp.Compare(yes(a.GetConnected()), yes(b.GetConnected())); c != 0 {
		return c
	}
	if !a.GetConnected() {
		return cmp.Compare(a.GetBehindSeconds(), b.GetBehindSeconds())
	}
	return cmp.Or(cmp.Compare(yes(a.GetInSync()), yes(b.GetInSync())), cmp.Compare(a.GetLag(), b.GetLag()), cmp.Compare(a.GetReplica(), b.GetReplica()))
}
