package server

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// tallies are what nodes reported of what rules matched, and the sums over them.
// Whichever replica a node reports to, all replicas get to know it: each asks the
// others for what they have that is new (counters.go). So what is known of a node
// goes by the number of the reading that it told of, and not by who was told.
//
// A sum is of what each node reported last, of nodes that are gone too. What is
// known of a policy that does not exist any more is dropped after a while.
type tallies struct {
	mu       sync.Mutex // Guards what follows.
	policies map[tallyKey]*policyTally
	nodes    map[string]*nodeTally
	changes  uint64 // Of blocks, and of nodes; each has the number of its last.
}

// tallyKey is a policy object: one that comes again by its name is another.
type tallyKey struct {
	kind                 policyv1.PolicyKind
	namespace, name, uid string
}

// ruleKey is a rule of a policy, or the isolation by it in a direction.
type ruleKey struct {
	direction policyv1.Direction
	rule      string // Empty: index says which.
	index     uint32
	isolation bool
}

// cell is what one rule matched.
type cell struct{ sessions, packets, bytes uint64 }

// policyTally is of one policy.
type policyTally struct {
	places map[ruleKey]int // In what follows.
	sums   []cell
	blocks map[*nodeTally]*block
	doubt  time.Time // Since when there is no such policy; zero: there is.
}

// block is what one node reported of one policy.
type block struct {
	cells  []cell // As far as the node told; by place.
	change uint64
}

// nodeTally is what a node tells of its accounts.
type nodeTally struct {
	name        string
	reading     uint64
	since       int64 // Unix milliseconds.
	uncounted   []*policyv1.Interval
	uncountedMs uint64
	change      uint64
	told        time.Time // When it last changed.
}

// maxGoneNodes is of how many nodes that do not exist any more it is remembered
// what each reported. What the others did stays in the sums alone.
const maxGoneNodes = 10000

// maxRules is how many rules a policy may have had, as nodes tell; more are not counted.
const maxRules = 10000

// doubtTime is for how long a policy must be unknown before its tallies go: a node
// may have it from a replica that has read further.
const doubtTime = 5 * time.Minute

func newTallies() *tallies {
	return &tallies{policies: make(map[tallyKey]*policyTally), nodes: make(map[string]*nodeTally)}
}

func keyOf(ref *policyv1.PolicyRef, uid string) tallyKey {
	return tallyKey{ref.GetKind(), ref.GetNamespace(), ref.GetName(), uid}
}

// report takes a whole report: of the node itself, or as another replica knows
// it. What another knows counts only if it is not older than what is here.
func (t *tallies) report(node string, report []*policyv1.NodeStats, direct bool, now time.Time) {
	if len(report) == 0 || report[0].GetReading() == 0 {
		return
	}
	head := report[0]
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[node]
	if n == nil {
		n = &nodeTally{name: node}
		t.nodes[node] = n
	}
	reading := head.GetReading()
	if direct && reading < n.reading { // Its accounts were lost, and its clock is another.
		reading = n.reading + 1
	}
	if reading < n.reading {
		return
	}
	if reading > n.reading || direct {
		t.changes++
		n.reading, n.since, n.uncounted, n.uncountedMs = reading, head.GetCountedSinceMs(), head.GetUncounted(), head.GetUncountedMs()
		n.change, n.told = t.changes, now
	}
	for _, m := range report {
		for _, c := range m.GetRules() {
			t.setLocked(n, c)
		}
	}
}

// setLocked puts a counter in the place of the node's former one.
func (t *tallies) setLocked(n *nodeTally, c *policyv1.RuleCounter) {
	key := keyOf(c.GetPolicy(), c.GetUid())
	p := t.policies[key]
	if p == nil {
		p = &policyTally{places: make(map[ruleKey]int), blocks: make(map[*nodeTally]*block)}
		t.policies[key] = p
	}
	rule := ruleKey{c.GetDirection(), c.GetRule(), c.GetIndex(), c.GetIsolation()}
	place, known := p.places[rule]
	if !known {
		if len(p.sums) >= maxRules {
			return
		}
		place = len(p.sums)
		p.places[rule] = place
		p.sums = append(p.sums, cell{})
	}
	b := p.blocks[n]
	if b == nil {
		b = &block{}
		p.blocks[n] = b
	}
	if grow := place + 1 - len(b.cells); grow > 0 {
		b.cells = slices.Grow(b.cells, grow)[:place+1]
	}
	was, is, sum := b.cells[place], cell{c.GetSessions(), c.GetPackets(), c.GetBytes()}, &p.sums[place]
	if was == is {
		return
	}
	sum.sessions += is.sessions - was.sessions
	sum.packets += is.packets - was.packets
	sum.bytes += is.bytes - was.bytes
	b.cells[place] = is
	t.changes++
	b.change = t.changes
}

// stats are the sums of a policy. Of several lists of its rules, as its parts
// have, there is one.
type stats struct {
	cells     map[ruleKey]cell
	nodes     int
	since     int64 // The latest of the nodes; zero: there are none.
	uncounted time.Duration
}

// of sums up a policy that was created at some Unix second; zero where that is not known.
func (t *tallies) of(key tallyKey, created int64) stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.policies[key]
	if p == nil {
		return stats{}
	}
	s := stats{cells: make(map[ruleKey]cell, len(p.places)), nodes: len(p.blocks)}
	for rule, place := range p.places {
		s.cells[rule] = p.sums[place]
	}
	for n := range p.blocks {
		s.since = max(s.since, n.since)
		s.uncounted += n.uncountedSince(created * 1000)
	}
	return s
}

// uncountedSince is for how long the node may have lost counts after some Unix
// millisecond. Of what is before its last intervals only the sum is known: that
// counts where nothing says when.
func (n *nodeTally) uncountedSince(ms int64) time.Duration {
	total, listed := int64(0), int64(0)
	for _, i := range n.uncounted {
		listed += i.GetToMs() - i.GetFromMs()
		if from := max(i.GetFromMs(), ms); from < i.GetToMs() {
			total += i.GetToMs() - from
		}
	}
	if earlier := int64(n.uncountedMs) - listed; earlier > 0 && (len(n.uncounted) == 0 || ms < n.uncounted[0].GetFromMs()) {
		total += earlier
	}
	return time.Duration(total) * time.Millisecond
}

// changed are the reports that say what changed after a mark, by node, and the
// new mark.
func (t *tallies) changed(after uint64) (reports map[string][]*policyv1.NodeStats, mark uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rules := make(map[string][]*policyv1.RuleCounter)
	for key, p := range t.policies {
		var by []ruleKey
		for n, b := range p.blocks {
			if b.change <= after {
				continue
			}
			if by == nil {
				by = p.byPlace()
			}
			for place, c := range b.cells {
				if (c == cell{}) {
					continue
				}
				rule := by[place]
				rules[n.name] = append(rules[n.name], &policyv1.RuleCounter{
					Policy: &policyv1.PolicyRef{Kind: key.kind, Namespace: key.namespace, Name: key.name}, Uid: key.uid, Direction: rule.direction,
					Rule: rule.rule, Index: rule.index, Isolation: rule.isolation, Sessions: c.sessions, Packets: c.packets, Bytes: c.bytes})
			}
		}
	}
	reports = make(map[string][]*policyv1.NodeStats)
	for name, n := range t.nodes {
		list := rules[name]
		if n.change <= after && len(list) == 0 {
			continue
		}
		for more := true; more; {
			part := list[:min(len(list), talliesPerMessage)]
			list = list[len(part):]
			more = len(list) > 0
			reports[name] = append(reports[name], &policyv1.NodeStats{Rules: part, More: more, Reading: n.reading, CountedSinceMs: n.since, Uncounted: n.uncounted, UncountedMs: n.uncountedMs})
		}
	}
	return reports, t.changes
}

// talliesPerMessage is how many counters replicas tell each other in a message.
const talliesPerMessage = 2000

// byPlace are the rules by their places.
func (p *policyTally) byPlace() []ruleKey {
	out := make([]ruleKey, len(p.places))
	for rule, place := range p.places {
		out[place] = rule
	}
	return out
}

// prune drops what is known of policies that do not exist, and bounds what is
// known of nodes that do not.
func (t *tallies) prune(exists func(tallyKey) bool, nodes []string, now time.Time) {
	t.mu.Lock()
	keys := slices.Collect(maps.Keys(t.policies))
	t.mu.Unlock()
	there := make(map[tallyKey]bool, len(keys)) // Asked without the lock: who knows it has one of its own.
	for _, key := range keys {
		there[key] = exists(key)
	}
	known := make(map[string]bool, len(nodes))
	for _, name := range nodes {
		known[name] = true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, key := range keys {
		p := t.policies[key]
		switch {
		case p == nil:
		case there[key]:
			p.doubt = time.Time{}
		case p.doubt.IsZero():
			p.doubt = now
		case now.Sub(p.doubt) >= doubtTime:
			delete(t.policies, key)
		}
	}
	var gone []*nodeTally
	for name, n := range t.nodes {
		if !known[name] {
			gone = append(gone, n)
		}
	}
	if len(gone) <= maxGoneNodes {
		return
	}
	slices.SortFunc(gone, func(a, b *nodeTally) int { return cmp.Or(a.told.Compare(b.told), strings.Compare(a.name, b.name)) })
	for _, n := range gone[:len(gone)-maxGoneNodes] {
		delete(t.nodes, n.name)
		for _, p := range t.policies {
			delete(p.blocks, n)
		}
	}
}

// series is a rule of a policy with its sum.
type series struct {
	policy tallyKey
	rule   ruleKey
	sum    cell
}

// all are the sums of all policies, in order.
func (t *tallies) all() []series {
	t.mu.Lock()
	var out []series
	for key, p := range t.policies {
		for rule, place := range p.places {
			out = append(out, series{key, rule, p.sums[place]})
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b series) int {
		return cmp.Or(cmp.Compare(a.policy.kind, b.policy.kind), strings.Compare(a.policy.namespace, b.policy.namespace), strings.Compare(a.policy.name, b.policy.name),
			strings.Compare(a.policy.uid, b.policy.uid), cmp.Compare(a.rule.direction, b.rule.direction), strings.Compare(a.rule.rule, b.rule.rule), cmp.Compare(a.rule.index, b.rule.index))
	})
	return out
}
