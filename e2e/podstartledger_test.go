package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// ledger changes the objects of a cluster, one set after the other, and knows
// which of the sets may be in force on a node at a time. Times are since base.
type ledger struct {
	t        testing.TB
	c        *harness.Cluster
	base     time.Time
	policies int // That change without end; zero: only Pods do.
	rng      *rand.Rand
	asked    chan struct{} // One slot: there are edits.

	mu        sync.Mutex // Guards what follows.
	edits     []edit
	sets      []*objectSet
	sightings map[string][]sighting // By node, in order.
}

// edit is what changes with the next set: manifests by key, empty for what goes.
type edit struct {
	objects map[string]string
	done    chan int // Gets the number of the set, once it has been read.
}

// objectSet is all objects as they were for a while.
type objectSet struct {
	texts    map[string]string
	objects  map[string][]api.Object
	began    time.Duration // Before it was written.
	position uint64        // Of the policy service once it had read it; zero: not yet.
	state    *evaluate.State
}

// sighting says that a node had a set, or a later one, in force.
type sighting struct {
	at  time.Duration
	set int
}

func newLedger(t testing.TB, c *harness.Cluster, seed uint64, policies int, objects map[string]string) *ledger {
	l := &ledger{t: t, c: c, base: time.Now(), policies: policies, rng: rand.New(rand.NewPCG(seed, 0)), asked: make(chan struct{}, 1), sightings: make(map[string][]sighting)}
	l.edits = []edit{{objects, make(chan int, 1)}}
	return l
}

func (l *ledger) now() time.Duration { return time.Since(l.base) }

// change makes a change part of the next set, and returns its number once the
// policy service has read it.
func (l *ledger) change(ctx context.Context, objects map[string]string) (int, error) {
	e := edit{objects, make(chan int, 1)}
	l.mu.Lock()
	l.edits = append(l.edits, e)
	l.mu.Unlock()
	select {
	case l.asked <- struct{}{}:
	default:
	}
	select {
	case set := <-e.done:
		return set, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// write writes set after set.
func (l *ledger) write(ctx context.Context) error {
	for ctx.Err() == nil {
		l.mu.Lock()
		edits := l.edits
		l.edits = nil
		next := &objectSet{texts: map[string]string{}, objects: map[string][]api.Object{}}
		if len(l.sets) > 0 {
			last := l.sets[len(l.sets)-1]
			next.texts, next.objects = maps.Clone(last.texts), maps.Clone(last.objects)
		}
		l.mu.Unlock()
		if l.policies == 0 && len(edits) == 0 {
			select {
			case <-l.asked:
			case <-ctx.Done():
			}
			continue
		}
		if l.policies > 0 {
			edits = append(edits, edit{objects: l.churn()})
		}
		for _, e := range edits {
			if err := next.apply(e.objects); err != nil {
				return err
			}
		}
		number, err := l.put(ctx, next)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for _, e := range edits {
			if e.done != nil {
				e.done <- number
			}
		}
	}
	return nil
}

func (s *objectSet) apply(objects map[string]string) error {
	for key, text := range objects {
		delete(s.texts, key)
		delete(s.objects, key)
		if text == "" {
			continue
		}
		m, err := api.Decode([]byte(text))
		if err != nil {
			return fmt.Errorf("%w\n%s", err, text)
		}
		s.texts[key] = text
		for _, o := range m.Objects {
			s.objects[key] = append(s.objects[key], o.Object)
		}
	}
	return nil
}

// put writes a set and waits until the policy service has read it.
func (l *ledger) put(ctx context.Context, s *objectSet) (number int, err error) {
	var all []api.Object
	for _, list := range s.objects {
		all = append(all, list...)
	}
	s.state = evaluate.New(all...)
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s.texts)) {
		text.WriteString(s.texts[key])
	}
	before, err := l.read(ctx)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	s.began = l.now()
	number = len(l.sets)
	l.sets = append(l.sets, s)
	l.mu.Unlock()
	if err := l.c.WriteManifests(ctx, []byte(text.String())); err != nil {
		return 0, err
	}
	return number, harness.Eventually(ctx, 30*time.Second, func() error {
		now, err := l.read(ctx)
		if err != nil {
			return err
		}
		if now <= before {
			return fmt.Errorf("set %d is not read: position %d, before %d\n%s", number, now, before, l.c.Policyd.Tail())
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		s.position = now
		return nil
	})
}

// read is how far the policy service has read.
func (l *ledger) read(ctx context.Context) (position uint64, err error) {
	err = harness.Eventually(ctx, 20*time.Second, func() error {
		resp, err := l.c.Inspection().ListNodes(ctx, &policyv1.ListNodesRequest{})
		position = resp.GetPosition().GetSources()["manifests"]
		return err
	})
	return position, err
}

// watch notes which nodes are in sync with what.
func (l *ledger) watch(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		resp, err := l.c.Inspection().ListNodes(ctx, &policyv1.ListNodesRequest{})
		if err != nil {
			continue // The service may be away.
		}
		at, position := l.now(), resp.GetPosition().GetSources()["manifests"]
		l.mu.Lock()
		set := len(l.sets) - 1
		for set >= 0 && (l.sets[set].position == 0 || l.sets[set].position > position) {
			set--
		}
		for _, n := range resp.GetNodes() {
			seen := l.sightings[n.GetName()]
			quiet := n.GetConnected() && n.GetInSync() && n.GetAckedRevision() >= n.GetSentRevision() // Or a cut may be on its way that a later one takes back.
			if set >= 0 && quiet && (len(seen) == 0 || seen[len(seen)-1].set < set) {
				l.sightings[n.GetName()] = append(seen, sighting{at, set})
			}
		}
		l.mu.Unlock()
	}
}

// possible are the first and the last set that may have been in force on a node
// between two times.
func (l *ledger) possible(node string, from, to time.Duration) (first, last int) {
	seen := l.sightings[node]
	i, _ := slices.BinarySearchFunc(seen, from, func(s sighting, at time.Duration) int { return int(s.at - at) })
	if i < len(seen) && seen[i].at == from {
		i++
	}
	if i > 0 {
		first = seen[i-1].set
	}
	last, _ = slices.BinarySearchFunc(l.sets, to, func(s *objectSet, at time.Duration) int { return int(s.began - at) })
	return first, min(last, len(l.sets)-1)
}

// churn is one policy that comes, goes or says something else.
func (l *ledger) churn() map[string]string {
	i := l.rng.IntN(l.policies)
	key := fmt.Sprintf("policies/%d", i)
	if l.rng.IntN(3) == 0 {
		return map[string]string{key: ""}
	}
	g := policyWriter{l.rng}
	return map[string]string{key: g.policy(i)}
}

// policyWriter writes policies at random, over the Pods of the start tests.
type policyWriter struct{ *rand.Rand }

func (g policyWriter) one(of ...string) string { return of[g.IntN(len(of))] }

func (g policyWriter) selector() string {
	return g.one("{}", "{matchLabels: {app: a}}", "{matchLabels: {app: b}}", "{matchLabels: {app: c}}")
}

func (g policyWriter) space() string {
	return g.one("{}", "{matchLabels: {space: one}}", "{matchLabels: {space: two}}")
}

func (g policyWriter) policy(i int) string {
	direction, peers := "ingress", "from"
	if g.IntN(2) == 0 {
		direction, peers = "egress", "to"
	}
	pods := fmt.Sprintf("namespaceSelector: %s, podSelector: %s", g.space(), g.selector())
	switch g.IntN(3) {
	case 0:
		peer := g.one("{podSelector: "+g.selector()+"}", "{"+pods+"}", "{ipBlock: {cidr: 10.77.1.0/24}}", "{ipBlock: {cidr: 'fd77:2::/64'}}")
		ports := g.one("", ", ports: [{protocol: UDP, port: 9000}]", ", ports: [{protocol: UDP, port: 9999}]")
		return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: churn-%d, namespace: %s}\nspec: {podSelector: %s, policyTypes: [%s], %s: [{%s: [%s, {podSelector: %s}]%s}]}\n",
			i, g.one("one", "two"), g.selector(), map[string]string{"ingress": "Ingress", "egress": "Egress"}[direction], direction, peers, peer, g.selector(), ports)
	case 1:
		return fmt.Sprintf("---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: churn-%d}\nspec: {priority: %d, subject: {pods: {namespaceSelector: %s, podSelector: %s}}, %s: [{action: %s, %s: [{pods: {%s}}]}]}\n",
			i, i, g.space(), g.selector(), direction, g.one("Allow", "Deny", "Deny", "Pass"), peers, pods)
	}
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: churn-%d}\nspec: {tier: %s, priority: %d, appliedTo: [{podSelector: %s}], %s: [{action: %s, %s: [{%s}]}]}\n",
		i, g.one("emergency", "application", "baseline"), i+1, g.selector(), direction, g.one("Allow", "Drop", "Drop"), peers, pods)
}
