package pipeline

import (
	"fmt"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
	"github.com/weirnet/weir/storage"
)

// newLadders makes the ladder of every table whose rules have an order.
func newLadders(move func(s *slot, to uint16)) map[uint8]*ladder {
	out := make(map[uint8]*ladder)
	for _, w := range stepsOf {
		for _, dir := range bothDirections {
			out[w[dir].policy] = newLadder(prioMiss+1, prioGate-1, limitTiers, move)
			out[w[dir].last] = newLadder(prioMiss+1, prioIsolation-1, limitBaseline, move)
		}
	}
	return out
}

// touchedPolicy is a policy item that a cut touched.
type touchedPolicy struct {
	scope storage.ScopeID
	key   string
	next  *policy // Nil: the item is gone.
}

// touchedPolicies reads the policy items that a cut touched, by key.
func (c *Compiler) touchedPolicies(state *storage.Replica, touched storage.Touched) []touchedPolicy {
	var out []touchedPolicy
	for id, ts := range touched {
		if c.kind(state, id) != storage.ScopePolicies {
			continue
		}
		for _, key := range c.touchedKeys(state, id, ts) {
			t := touchedPolicy{scope: id, key: key}
			if w := state.Item(id, key).GetPolicy(); w != nil {
				t.next = newPolicy(w)
			}
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b touchedPolicy) int { return strings.Compare(a.key, b.key) })
	return out
}

// fits refuses policies with a rule that denies or passes and cannot be read whole,
// and such with which one would be past
// its table's limit: what comes after it must not decide in its place. An Allow
// that is left out leaves the packet to later rules and Kubernetes isolation,
// and is a problem alone; so is what is left out of the staged world.
func (c *Compiler) fits(policies []touchedPolicy) error {
	come, gone := make(map[uint8]map[precedence]int), make(map[uint8]map[precedence]int)
	count := func(in map[uint8]map[precedence]int, p *policy) {
		for _, r := range p.ordered() {
			if in[r.table()] == nil {
				in[r.table()] = make(map[precedence]int)
			}
			in[r.table()][r.at]++
		}
	}
	for _, t := range policies {
		count(gone, c.policies[t.scope][t.key])
		count(come, t.next)
	}
	var refused []Problem
	for _, t := range policies {
		if t.next == nil {
			continue
		}
		for _, err := range t.next.unread {
			refused = append(refused, Problem{Scope: t.scope, Key: t.key, Err: err})
		}
	}
	for table, at := range come {
		past := c.ladders[table].fits(at, gone[table])
		if len(past) > 0 {
			refused = append(refused, c.denials(table, past, policies)...)
		}
	}
	if len(refused) == 0 {
		return nil
	}
	sortProblems(refused)
	return &Refused{refused}
}

// denials are the rules of a table past its limit that are no Allow, once the
// touched policies are taken over.
func (c *Compiler) denials(table uint8, past map[precedence]struct{}, policies []touchedPolicy) []Problem {
	var out []Problem
	look := func(scope storage.ScopeID, key string, p *policy) {
		for _, r := range p.ordered() {
			if _, is := past[r.at]; is && r.table() == table && r.at.Action != policyv1.Action_ACTION_ALLOW {
				out = append(out, Problem{Scope: scope, Key: key, Err: r.past(c.ladders[table].limit)})
			}
		}
	}
	touched := make(map[storage.ScopeID]map[string]bool)
	for _, t := range policies {
		if touched[t.scope] == nil {
			touched[t.scope] = make(map[string]bool)
		}
		touched[t.scope][t.key] = true
		look(t.scope, t.key, t.next)
	}
	for scope, held := range c.policies {
		for key, p := range held {
			if !touched[scope][key] {
				look(scope, key, p)
			}
		}
	}
	return out
}

// past is the problem of a rule that is past its table's limit.
func (r *rule) past(limit int) error {
	return fmt.Errorf("%s rule %d: %s has room for %d rule priorities, and this one comes after them",
		directionName(r.wire.GetDirection()), r.wire.GetIndex(), TableName(r.table()), limit)
}

// ordered are the rules that have a level in the enforced world; a policy of nil
// has none.
func (p *policy) ordered() []*rule {
	if p == nil || p.world() == staged || p.wire.GetRank() == order.RankK8s {
		return nil
	}
	return p.rules
}

// setPolicies puts policies in the place of their former content. Those that go
// have gone before any comes: one may have moved from scope to scope, and has
// one id. Levels are placed together, so that many spread evenly.
func (c *Compiler) setPolicies(policies []touchedPolicy) {
	for _, t := range policies {
		former := c.policies[t.scope][t.key]
		if former == nil {
			continue
		}
		c.uninstall(former)
		c.went(former)
		c.setNaming(former, false)
		delete(c.casting.policies, former)
		if delete(c.policies[t.scope], t.key); len(c.policies[t.scope]) == 0 {
			delete(c.policies, t.scope)
		}
	}
	for _, t := range policies {
		if t.next == nil {
			continue
		}
		if c.policies[t.scope] == nil {
			c.policies[t.scope] = make(map[string]*policy)
		}
		c.policies[t.scope][t.key] = t.next
		c.enter(t.next)
		c.came(t.next)
		c.setNaming(t.next, true)
		c.setCasting(t.next)
	}
	rose := c.settle(enforced)
	for _, t := range policies {
		if t.next != nil {
			c.install(t.next)
		}
	}
	c.guardRisen(rose)
}

// settle places the levels of a world's ladders. The rules of those that have no
// place any more give up their flows; levels that have one again are returned.
func (c *Compiler) settle(w world) (rose []*level) {
	for _, dir := range bothDirections {
		for _, table := range []uint8{stepsOf[w][dir].policy, stepsOf[w][dir].last} {
			l := c.ladders[table]
			fell, back := l.settle()
			for _, lv := range fell {
				for r := range lv.rules {
					for ep := range r.body.guarded {
						c.unguard(r.body, ep)
					}
				}
			}
			l.place(fell)
			rose = append(rose, back...)
		}
	}
	return rose
}

// guardRisen gives the rules of levels that have a place again what they are to
// guard.
func (c *Compiler) guardRisen(rose []*level) {
	for _, lv := range rose {
		for r := range lv.rules {
			if r.world == staged {
				for ep := range r.judges {
					c.guard(r.body, ep)
				}
				continue
			}
			if len(r.body.guarded) > 0 {
				continue
			}
			for _, ep := range c.targets(r.applied) {
				c.guard(r.body, ep)
			}
		}
	}
}

// enter brings a policy's rules to their levels, and where they are enforced to
// their bodies. Staged ones wait for assess.
func (c *Compiler) enter(p *policy) {
	for _, r := range p.rules {
		if r.world == staged {
			continue
		}
		if r.ordered() {
			c.ladders[r.table()].enter(r)
		}
		c.admit(r)
	}
	c.policiesHeld[p.identity()]++
}

// exit undoes enter.
func (c *Compiler) exit(p *policy) {
	for _, r := range p.rules {
		if r.world == staged {
			continue
		}
		c.dismiss(r)
		if r.ordered() {
			c.ladders[r.table()].exit(r)
		}
	}
	if c.policiesHeld[p.identity()]--; c.policiesHeld[p.identity()] == 0 {
		delete(c.policiesHeld, p.identity())
	}
}

// install has the rules of a policy guard the endpoints that they apply to.
func (c *Compiler) install(p *policy) {
	scopes := p.scopes()
	for _, g := range scopes {
		link(c.guards, g, p)
	}
	c.review(p, scopes)
	for _, r := range p.rules {
		if r.world == staged || len(r.body.guarded) > 0 {
			continue // What is like it guards them already.
		}
		for _, ep := range c.targets(r.applied) {
			c.guard(r.body, ep)
		}
	}
}

// uninstall undoes install and enter. Places are kept until the Update ends, for
// the policy's successor.
func (c *Compiler) uninstall(p *policy) {
	scopes := p.scopes()
	c.review(p, scopes)
	for _, g := range scopes {
		unlink(c.guards, g, p)
	}
	for _, r := range p.rules {
		if t := r.as(staged); t != nil {
			for ep := range t.judges {
				c.unjudge(t, ep)
			}
		}
	}
	c.exit(p)
}

// scopes are all groups that a policy, or a rule of it, applies to.
func (p *policy) scopes() []storage.ScopeID {
	scopes := slices.Clone(p.applied)
	for _, r := range p.rules {
		scopes = append(scopes, r.applied...)
	}
	slices.SortFunc(scopes, func(a, b storage.ScopeID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(scopes)
}

// targets are the endpoints of groups that have a port, each once, by port.
func (c *Compiler) targets(groups []storage.ScopeID) []*endpoint {
	var out []*endpoint
	for _, g := range groups {
		for ep := range c.inGroup[g] {
			if ep.port != nil {
				out = append(out, ep)
			}
		}
	}
	slices.SortFunc(out, func(a, b *endpoint) int { return int(int64(a.port.OFPort) - int64(b.port.OFPort)) })
	return slices.Compact(out)
}
