package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
)

// Realization is how far one policy is in force, over all replicas. A node that is
// in none of the lists has acknowledged the present content, and enforces it. Where
// groups change without rest, that is the content as of latePatience ago: what else
// would be true at no moment of many nodes.
type Realization struct {
	Info    engine.PolicyInfo
	Content []byte    // As in PolicySummary.
	Changed time.Time // When its items were last changed; zero: that is forgotten, and some time ago.
	// Took is how long after that the last node acknowledged it; zero where that is
	// not told, since it is longer ago or has not come about.
	Took  time.Duration
	Nodes int // Of its span.
	// Waiting nodes have not acknowledged it, and will within a moment as far as can
	// be told. Of Unknown ones nothing is known: the replica that had them is gone,
	// and they have had no time to come elsewhere.
	Waiting, Unknown int
	Lacking          []string  // Nodes that are late, with how, by name.
	Refused          []Refused // By node.
}

// Refused is a node that does not enforce a policy, with what it says.
type Refused struct{ Node, Error string }

// Realized is how many nodes enforce the policy as far as is known.
func (r *Realization) Realized() int {
	return max(0, r.Nodes-r.Waiting-r.Unknown-len(r.Lacking)-len(r.Refused))
}

// How long a node may lack something before it counts as late: while it is
// connected, while it connects anew, and after a replica has gone of whose nodes
// the others know nothing. And how long two replicas may have read something
// else of a policy that does not change.
const (
	latePatience  = 5 * time.Second
	gonePatience  = 15 * time.Second
	lossPatience  = time.Minute
	apartPatience = 10 * time.Second
)

// Realizations gathers what all replicas know of the policies, by kind, Namespace
// and name.
func (s *Server) Realizations(ctx context.Context) []Realization {
	r := newReach(s.cfg.Store, s.cfg.Model.Policies())
	return s.gather(ctx, r, true)
}

// gather adds what other replicas know, where asked for, to this one's own.
func (s *Server) gather(ctx context.Context, r *reach, all bool) []Realization {
	g := gathering{own: s.report(r, time.Now()), reach: r}
	if others := s.barriers.replicas; others != nil && all {
		g.others = elsewhere(ctx, others, func(ctx context.Context, c *grpc.ClientConn, opts ...grpc.CallOption) (*policyv1.RealizationResponse, error) {
			return policyv1.NewReplicaServiceClient(c).Realization(ctx, &policyv1.RealizationRequest{}, opts...)
		})
	}
	now := time.Now()
	g.lost = now.Sub(s.knowsSince(all)) < lossPatience
	g.names = s.cfg.Store.Nodes()
	g.apart = s.acks.keptApart(now)
	g.changed = make([]time.Time, len(r.infos))
	for i := range r.infos {
		var newest uint64
		for _, item := range r.infos[i].Items {
			newest = max(newest, s.cfg.Store.ItemRevision(item.Scope, item.Key))
		}
		if at, known := s.commits.at(newest); known {
			g.changed[i] = at
		}
	}
	g.now = now
	return g.merge()
}

// knowsSince is since when what nodes acknowledged has not been lost with a
// replica.
func (s *Server) knowsSince(all bool) time.Time {
	since := s.begun
	if r := s.barriers.replicas; r != nil && all {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.lost.After(since) {
			since = r.lost
		}
	}
	return since
}

// keptApart returns a function that says since when a replica has read something
// else of a policy than this one. It forgets those about which it is not asked.
func (a *acknowledgements) keptApart(now time.Time) func(apartKey) time.Duration {
	a.mu.Lock()
	former := a.apart
	next := make(map[apartKey]time.Time)
	a.apart = next
	a.mu.Unlock()
	return func(k apartKey) time.Duration {
		a.mu.Lock()
		defer a.mu.Unlock()
		at, was := former[k]
		if !was {
			at = now
		}
		next[k] = at
		return now.Sub(at)
	}
}

// gathering is what replicas know, to be made one. It is a function of its fields.
type gathering struct {
	reach   *reach
	own     *policyv1.RealizationResponse
	others  []*policyv1.RealizationResponse
	now     time.Time
	changed []time.Time                          // When the items of each policy were last changed.
	names   []string                             // All nodes that ought to hold something.
	lost    bool                                 // A replica has gone, not long ago, with what it knew.
	apart   func(apartKey) time.Duration         // Since when contents differ.
	best    map[string]*policyv1.NodeRealization // By node, what the replica knows that had it last.
	by      map[string]int                       // And which that is: 0 is this one.
}

// merge says of each policy what the replicas know together. What a replica says
// counts for the nodes that it had last, of policies of which it has read the same
// as this one.
func (g *gathering) merge() []Realization {
	out := make([]Realization, len(g.own.GetPolicies()))
	positions := make(map[policyID]int, len(out))
	for i, p := range g.own.GetPolicies() {
		positions[idOf(p.GetRef(), p.GetUid())] = i
		out[i] = Realization{Info: g.reach.infos[i], Content: p.GetContent(), Changed: g.changed[i], Nodes: g.reach.spanSize(uint32(i))}
	}
	reports := append([]*policyv1.RealizationResponse{g.own}, g.others...)
	g.choose(reports)
	for of, report := range reports {
		agreed := g.agreed(report, positions)
		for _, n := range report.GetNodes() {
			if g.by[n.GetName()] == of && g.best[n.GetName()] == n {
				g.take(out, n, agreed)
			}
		}
		if of > 0 {
			g.disagree(out, of, report, agreed)
		}
	}
	for _, name := range g.names {
		if g.best[name] != nil {
			continue
		}
		for _, p := range g.reach.lacking(name, g.reach.store.Missing(name, 0)) {
			if g.lost {
				out[p].Unknown++
			} else {
				out[p].Lacking = append(out[p].Lacking, name+" has not come")
			}
		}
	}
	for i := range out {
		slices.Sort(out[i].Lacking)
		slices.SortFunc(out[i].Refused, func(a, b Refused) int { return cmp.Compare(a.Node, b.Node) })
		if g.young(i) && out[i].Nodes > 0 && out[i].Realized() == out[i].Nodes {
			out[i].Took = g.took(i)
		}
	}
	return out
}

// young says whether a policy itself has just changed.
func (g *gathering) young(policy int) bool { return g.now.Sub(g.changed[policy]) < latePatience }

// took is how long after its change the last node acknowledged a policy.
func (g *gathering) took(policy int) time.Duration {
	took := time.Microsecond
	for name := range g.reach.span(uint32(policy)) {
		if n := g.best[name]; n != nil {
			took = max(took, g.now.Add(-time.Duration(n.GetAckedMs())*time.Millisecond).Sub(g.changed[policy]))
		}
	}
	return took
}

// keepsUp says whether a node has acknowledged all that was so latePatience ago.
func keepsUp(n *policyv1.NodeRealization) bool {
	return n.GetConnected() && n.GetBehindMs() < uint64(latePatience.Milliseconds())
}

// choose finds who had each node last: whose stream of it began last.
func (g *gathering) choose(reports []*policyv1.RealizationResponse) {
	g.best, g.by = make(map[string]*policyv1.NodeRealization), make(map[string]int)
	for of, report := range reports {
		for _, n := range report.GetNodes() {
			if have := g.best[n.GetName()]; have == nil || n.GetSinceMs() < have.GetSinceMs() {
				g.best[n.GetName()], g.by[n.GetName()] = n, of
			}
		}
	}
}

// agreed are this replica's positions of another's policies; -1 where it has read
// something else.
func (g *gathering) agreed(report *policyv1.RealizationResponse, positions map[policyID]int) []int {
	out := make([]int, len(report.GetPolicies()))
	for i, p := range report.GetPolicies() {
		out[i] = -1
		if at, has := positions[idOf(p.GetRef(), p.GetUid())]; has {
			if own := g.own.GetPolicies()[at]; own.GetGeneration() == p.GetGeneration() && string(own.GetContent()) == string(p.GetContent()) {
				out[i] = at
			}
		}
	}
	return out
}

// take adds what is known of one node.
func (g *gathering) take(out []Realization, n *policyv1.NodeRealization, agreed []int) {
	refused := make(map[int]bool)
	for _, r := range n.GetRefused() {
		at := placed(agreed, r.GetPolicy())
		if at < 0 || refused[at] { // A node's first is enough.
			continue
		}
		refused[at] = true
		out[at].Refused = append(out[at].Refused, Refused{n.GetName(), r.GetError()})
	}
	for _, theirs := range n.GetLacking() {
		at := placed(agreed, theirs)
		if at < 0 || refused[at] {
			continue
		}
		switch p := &out[at]; {
		case keepsUp(n):
			if g.young(at) {
				p.Waiting++
			}
		case n.GetConnected():
			p.Lacking = append(p.Lacking, n.GetName()+" is late")
		case g.lost:
			p.Unknown++
		case n.GetGoneMs() < uint64(gonePatience.Milliseconds()):
			p.Waiting++
		default:
			p.Lacking = append(p.Lacking, n.GetName()+" is not connected")
		}
	}
}

func placed(agreed []int, theirs uint32) int {
	if int(theirs) >= len(agreed) {
		return -1
	}
	return agreed[theirs]
}

// disagree counts the nodes of a replica that has read something else of a policy:
// it may be about to read the same.
func (g *gathering) disagree(out []Realization, of int, report *policyv1.RealizationResponse, agreed []int) {
	has := make(map[int]bool, len(agreed))
	for _, at := range agreed {
		if at >= 0 {
			has[at] = true
		}
	}
	if len(has) == len(out) {
		return
	}
	theirs := make(map[policyID]int, len(report.GetPolicies()))
	for i, p := range report.GetPolicies() {
		theirs[idOf(p.GetRef(), p.GetUid())] = i
	}
	for i, own := range g.own.GetPolicies() {
		if has[i] {
			continue
		}
		id := idOf(own.GetRef(), own.GetUid())
		apart := g.apart(apartKey{report.GetEpoch(), id})
		follows, stands := false, true // It changes there too; or it does not.
		at, read := theirs[id]
		if read {
			p := report.GetPolicies()[at]
			follows = p.GetGeneration() == own.GetGeneration() && p.GetStillMs() < uint64(latePatience.Milliseconds())
			stands = p.GetStillMs() >= uint64(apartPatience.Milliseconds())
		}
		for name := range g.reach.span(uint32(i)) {
			n := g.best[name]
			if n == nil || g.by[name] != of {
				continue
			}
			_, lacks := slices.BinarySearch(n.GetLacking(), uint32(at))
			switch {
			case apart >= apartPatience && stands:
				out[i].Lacking = append(out[i].Lacking, name+" is connected to a replica that is late")
			case follows && !g.young(i) && (keepsUp(n) || n.GetConnected() && !lacks):
			default:
				out[i].Waiting++
			}
		}
	}
}

// faults are what nodes say of a policy that they do not enforce, the first few.
func (r *Realization) faults() (out []engine.Fault) {
	for _, n := range r.Refused {
		out = append(out, engine.Fault{Reason: ReasonRefused, Message: "node " + n.Node + ": " + n.Error, Widens: true})
	}
	if most := 4; len(out) > most {
		out = append(out[:most-1], engine.Fault{Reason: ReasonRefused, Message: fmt.Sprintf("and %d nodes more", len(out)-most+1)})
	}
	return out
}

// Unfaithful says that more gets through than the policy says, on every node.
func (r *Realization) Unfaithful() bool { return widening(r.Info.Faults) >= 0 }
