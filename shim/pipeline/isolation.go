package pipeline

import (
	"fmt"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// isolation is a set of policies that isolate endpoints in a direction and
// world. What is dropped for it counts for each of them.
type isolation struct {
	key      string // In the assignment.
	id       uint32
	policies []*policy // By name; of the staged world, the staged ones alone.
	ports    int       // Flows that lead to it.
}

// isolating are the policies of a world that isolate an endpoint in a direction,
// by name.
func (c *Compiler) isolating(ep *endpoint, dir policyv1.Direction, w world) []*policy {
	var out []*policy
	for p := range c.guarding(ep) {
		if p.world() <= w && p.isolatesIn(dir) && p.appliesTo(ep) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, comparePolicies)
	return out
}

// class is what policies as a whole mean for endpoints that are in the same
// applied-to groups.
type class struct {
	isolating [2][directions][]*policy // By world.
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
	if found != nil {
		return found
	}
	found = &class{}
	for _, dir := range bothDirections {
		for _, w := range []world{enforced, staged} {
			found.isolating[w][dir] = c.isolating(ep, dir, w)
		}
	}
	for p := range c.guarding(ep) {
		if p.world() != staged {
			continue
		}
		for _, r := range p.rules {
			if r.appliesTo(ep) {
				found.judged[r.direction] = true
			}
		}
		for _, dir := range bothDirections {
			if p.isolatesIn(dir) && p.appliesTo(ep) {
				found.judged[dir] = true
			}
		}
	}
	cs[key.String()] = found
	return found
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
		policies := cl.isolating[enforced][dir]
		logged := c.cfg.LogIsolationAll || slices.ContainsFunc(policies, func(p *policy) bool { return p.wire.GetLogIsolation() })
		here := c.isolation(ep, dir, enforced, policies)
		if here != nil {
			acts := dropBy(here.id)
			if logged {
				acts = append([]openflow.Action{logAction()}, acts...)
			}
			put(openflow.Flow{Table: stepsOf[enforced][dir].last, Priority: prioIsolation, Match: openflow.NewMatch(targetField(dir, ep.port.OFPort)),
				Cookie: cookie(KindIsolation, ep.port.OFPort), Actions: actions(acts...)})
		}
		if !ep.judged[dir] {
			continue
		}
		there, silent := c.isolation(ep, dir, staged, cl.isolating[staged][dir]), here
		if logged {
			silent = nil
		}
		for _, f := range judgedFlows(ep, dir, there, silent) {
			put(f)
		}
	}
	c.release(former)
}

// isolation is that of a set of policies, for one flow more of an endpoint; nil
// where the set is empty.
func (c *Compiler) isolation(ep *endpoint, dir policyv1.Direction, w world, policies []*policy) *isolation {
	if len(policies) == 0 {
		return nil
	}
	h := xxh3.New()
	for _, p := range policies {
		fmt.Fprintf(h, "%d/%d/%s/%s/%s\x00", p.world(), p.wire.GetRef().GetKind(), p.wire.GetRef().GetNamespace(), p.wire.GetRef().GetName(), p.wire.GetUid())
	}
	key := fmt.Sprintf("isolation/%s/%x", directionName(dir), h.Sum128().Bytes())
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
		if w == staged {
			policies = slices.DeleteFunc(slices.Clone(policies), func(p *policy) bool { return p.world() != staged })
		}
		set = &isolation{key: key, id: place.Conj, policies: policies}
		c.isolations[key] = set
		c.counts.begin(&c.flows, set.id, subjectsOf(policies, dir), decided(set.id))
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

func subjectsOf(policies []*policy, dir policyv1.Direction) (out []Subject) {
	for i, p := range policies {
		if i == 0 || comparePolicies(policies[i-1], p) != 0 { // A policy may have come in several parts.
			s := p.subject(dir)
			s.Isolation = true
			out = append(out, s)
		}
	}
	return out
}
