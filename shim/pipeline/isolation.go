package pipeline

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// isolation is a set of policies that isolate endpoints in a direction and
// world. What is dropped for it counts for each of them; in the staged world, for
// the staged ones.
type isolation struct {
	key   string // In the assignment.
	id    uint32
	ports int // Flows that lead to it.
}

// isolating are those of some policies that, in a world, isolate an endpoint in
// a direction, by name.
func isolating(policies map[*policy]struct{}, ep *endpoint, dir policyv1.Direction, w world) []*policy {
	var out []*policy
	for p := range policies {
		if p.world() <= w && p.isolatesIn(dir) && p.appliesTo(ep) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, comparePolicies)
	return out
}

// isolators are the policies of a world that isolate what is in some groups, in
// a direction.
type isolators struct {
	policies []*policy
	logs     bool // One of them asks for records.
	// sum is that of the policies' hashes: it tells sets apart, in whichever order
	// they were found.
	sum [2]uint64
}

// class is what policies as a whole mean for endpoints that are in the same
// applied-to groups.
type class struct {
	isolators [2][directions]isolators // By world.
	judged    [directions]bool         // The staged world judges them: a staged policy applies.
}

// classes are those looked at so far, by the ids of their groups.
type classes map[string]*class

func (cs classes) of(c *Compiler, ep *endpoint) *class {
	ids := make([]storage.ScopeID, 0, len(ep.groups))
	for g := range ep.groups {
		ids = append(ids, g)
	}
	slices.SortFunc(ids, func(a, b storage.ScopeID) int { return slices.Compare(a[:], b[:]) })
	var key strings.Builder
	for _, g := range ids {
		key.Write(g[:])
	}
	found := cs[key.String()]
	if found == nil {
		found = c.classOf(ep)
		cs[key.String()] = found
	}
	return found
}

func (c *Compiler) classOf(ep *endpoint) *class {
	cl := &class{}
	for p := range c.guarding(ep) {
		applies, is := p.appliesTo(ep), p.world()
		for _, dir := range bothDirections {
			if !applies || !p.isolatesIn(dir) {
				continue
			}
			for w := is; w <= staged; w++ {
				in := &cl.isolators[w][dir]
				in.policies, in.logs = append(in.policies, p), in.logs || p.wire.GetLogIsolation()
				var carry uint64
				in.sum[0], carry = bits.Add64(in.sum[0], p.hash.Lo, 0)
				in.sum[1], _ = bits.Add64(in.sum[1], p.hash.Hi, carry)
			}
			cl.judged[dir] = cl.judged[dir] || is == staged
		}
		if is == staged {
			for _, r := range p.rules {
				cl.judged[r.direction] = cl.judged[r.direction] || r.appliesTo(ep)
			}
		}
	}
	return cl
}

// isolate works out again which isolation flows an endpoint has, and those that
// lead to the staged world.
func (c *Compiler) isolate(ep *endpoint, cl *class) {
	for _, key := range ep.verdicts {
		c.flows.unset(ep.owner, key)
	}
	former := ep.isolated
	ep.verdicts, ep.isolated = nil, nil
	put := func(f openflow.Flow) {
		c.flows.set(ep.owner, f)
		ep.verdicts = append(ep.verdicts, f.Key())
	}
	for _, dir := range bothDirections {
		logged := c.cfg.LogIsolationAll || cl.isolators[enforced][dir].logs
		here := c.isolation(ep, dir, enforced, cl)
		if here != nil {
			acts := c.denyBy(here.id, logged)
			if logged { // With the id in its register, by which the report is read.
				acts = slices.Insert(acts, 1, c.logAction(here.id, false))
			}
			put(openflow.Flow{Table: stepsOf[enforced][dir].last, Priority: prioIsolation, Match: openflow.NewMatch(targetField(dir, ep.port.OFPort)),
				Cookie: cookie(KindIsolation, ep.port.OFPort), Actions: actions(acts...)})
		}
		if !ep.judged[dir] {
			continue
		}
		there, silent := c.isolation(ep, dir, staged, cl), here
		if logged {
			silent = nil
		}
		for _, f := range c.judgedFlows(ep, dir, there, silent) {
			put(f)
		}
	}
	c.release(former)
}

// isolation is that of an endpoint's class, for one flow more; nil where nothing
// isolates it.
func (c *Compiler) isolation(ep *endpoint, dir policyv1.Direction, w world, cl *class) *isolation {
	by := cl.isolators[w][dir]
	if len(by.policies) == 0 {
		return nil
	}
	key := fmt.Sprintf("isolation/%s/%016x%016x", directionName(dir), by.sum[1], by.sum[0])
	if w == staged {
		key = "staged/" + key
	}
	set := c.isolations[key]
	if set == nil {
		place, had := c.assignment.Rules[key]
		if !had {
			place = RulePlace{Conj: c.nextID()}
			c.assignment.Rules[key] = place
		}
		set = &isolation{key: key, id: place.Conj}
		c.isolations[key] = set
		c.counts.begin(&c.flows, set.id, func() []Subject { return by.subjects(dir, w) }, decided(set.id))
		c.counts.of[set.id].policies = by.policies
	}
	set.ports++
	ep.isolated = append(ep.isolated, set)
	return set
}

// release takes flows of an endpoint from their isolations. The last leaves
// their ids to who has the same policies until the Update ends.
func (c *Compiler) release(list []*isolation) {
	for _, set := range list {
		if set.ports--; set.ports == 0 {
			delete(c.isolations, set.key)
			c.vacated[set.key] = struct{}{}
			c.counts.end(set.id)
		}
	}
}

// subjects are those of an isolation, by name: in the staged world the staged
// policies alone.
func (by isolators) subjects(dir policyv1.Direction, w world) (out []Subject) {
	policies := slices.SortedFunc(slices.Values(by.policies), comparePolicies)
	for i, p := range policies {
		if p.world() == w && (i == 0 || comparePolicies(policies[i-1], p) != 0) { // A policy may have come in several parts.
			s := p.subject(dir)
			s.Isolation = true
			out = append(out, s)
		}
	}
	return out
}
