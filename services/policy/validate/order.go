package validate

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// rule is a rule of a policy that is judged in order.
type rule struct {
	policy *api.OrderedPolicy
	egress bool
	index  int
	region region
}

func (r *rule) spec() *api.OrderedRule {
	if r.egress {
		return &r.policy.Egress[r.index]
	}
	return &r.policy.Ingress[r.index]
}

// field is the rule's path in its policy.
func (r *rule) field() string {
	if r.egress {
		return fmt.Sprintf("spec.egress[%d]", r.index)
	}
	return fmt.Sprintf("spec.ingress[%d]", r.index)
}

// name is how messages call the rule, from within a policy.
func (r *rule) name(from api.Ref) string {
	text := r.field()
	if n := r.spec().Name; n != "" {
		text = fmt.Sprintf("%q (%s)", n, text)
	}
	if r.policy.Ref() != from {
		text += " of " + r.policy.Ref().String()
	}
	return text
}

// rank is where a policy stands among the tiers. False: its tier is not there,
// so that it is held back.
func (x *Index) rank(p *api.OrderedPolicy) (uint8, bool) {
	switch {
	case p.Tier != "":
		if static, is := api.StaticTier(p.Tier); is {
			return static, true
		}
		t := x.tiers[p.Tier]
		if t == nil {
			return 0, false
		}
		return t.Priority, true
	case p.Baseline:
		return api.RankUpstreamBaseline, true
	}
	return api.RankAdmin, true
}

// late reports whether a policy is judged after Kubernetes NetworkPolicies.
func late(p *api.OrderedPolicy) bool { return p.Baseline || p.Tier == api.TierBaseline }

// ties is the order of actions where all else is equal.
var ties = map[api.Action]int{api.ActionDrop: 1, api.ActionReject: 2, api.ActionPass: 3, api.ActionAllow: 4}

// compare is the order in which two rules of one direction are judged: tier,
// priority, of upstream kinds AdminNetworkPolicy first, index; then ties. Both
// policies have a rank.
func (x *Index) compare(a, b *rule) int {
	if c := x.comparePlace(a, b); c != 0 {
		return c
	}
	p, q := a.policy, b.policy
	quiet := map[bool]int{false: 1} // What is recorded comes first.
	return cmp.Or(cmp.Compare(ties[a.spec().Action], ties[b.spec().Action]), cmp.Compare(quiet[a.spec().Log], quiet[b.spec().Log]), cmp.Compare(born(p.Created), born(q.Created)),
		cmp.Compare(p.Kind, q.Kind), strings.Compare(p.Namespace, q.Namespace), strings.Compare(p.Name, q.Name))
}

// born is when an object was created. One of which that is not known counts as
// the youngest, as wherever rules are put in order.
func born(created int64) int64 {
	if created == 0 {
		return math.MaxInt64
	}
	return created
}

// comparePlace is compare without ties: zero where precedence is equal.
func (x *Index) comparePlace(a, b *rule) int {
	p, q := a.policy, b.policy
	ranked, _ := x.rank(p)
	other, _ := x.rank(q)
	c := cmp.Or(cmp.Compare(ranked, other), cmp.Compare(p.Priority, q.Priority))
	if c == 0 && p.Tier == "" {
		c = cmp.Compare(p.Kind, q.Kind)
	}
	return cmp.Or(c, cmp.Compare(a.index, b.index))
}

// entry is one box of a rule in a ruleSet.
type entry struct {
	*rule
	box
}

// ruleSet holds rules, to be found by a value that they need: each box hangs on
// the values of one dimension of strings to which it is held, if there is one.
type ruleSet struct {
	pinned map[dimension]map[string][]entry
	wild   []entry
}

type pin struct {
	dimension
	value string
}

func newRuleSet() *ruleSet { return &ruleSet{pinned: map[dimension]map[string][]entry{}} }

// pins are the values of the dimension on which a box hangs: that with the
// fewest, and among these the first.
func (b box) pins() []pin {
	var best constraint
	most := 0
	for _, c := range b {
		if v, is := c.set.(values); is && !v.except && (most == 0 || len(v.list) < most) {
			best, most = c, len(v.list)
		}
	}
	if most == 0 {
		return nil
	}
	out := make([]pin, most)
	for i, value := range best.set.(values).list {
		out[i] = pin{best.dimension, value}
	}
	return out
}

func (s *ruleSet) add(r *rule) {
	for _, b := range r.region {
		pins := b.pins()
		for _, p := range pins {
			if s.pinned[p.dimension] == nil {
				s.pinned[p.dimension] = map[string][]entry{}
			}
			s.pinned[p.dimension][p.value] = append(s.pinned[p.dimension][p.value], entry{r, b})
		}
		if len(pins) == 0 {
			s.wild = append(s.wild, entry{r, b})
		}
	}
}

func (s *ruleSet) remove(r *rule) {
	own := func(e entry) bool { return e.rule == r }
	for _, b := range r.region {
		pins := b.pins()
		for _, p := range pins {
			of := s.pinned[p.dimension]
			if of == nil {
				continue // It went with another box of the rule.
			}
			if of[p.value] = slices.DeleteFunc(of[p.value], own); len(of[p.value]) == 0 {
				delete(of, p.value)
			}
			if len(of) == 0 {
				delete(s.pinned, p.dimension)
			}
		}
		if len(pins) == 0 {
			s.wild = slices.DeleteFunc(s.wild, own)
		}
	}
}

func (s *ruleSet) empty() bool { return len(s.pinned) == 0 && len(s.wild) == 0 }

// within calls with the entries that may cover a part of a box which is not
// negligible: they are held to strings only where the box itself is. Where the
// box is free, or held to all strings but some, there are values of which no
// list of strings speaks, and so what is held to a list covers nothing of the
// box there. It ends when the call returns false.
func (s *ruleSet) within(b box, call func(entry) bool) {
	for _, e := range s.wild {
		if !call(e) {
			return
		}
	}
	for _, c := range b {
		v, is := c.set.(values)
		if !is || v.except {
			continue
		}
		for _, value := range v.list {
			for _, e := range s.pinned[c.dimension][value] {
				if !call(e) {
					return
				}
			}
		}
	}
}

// meeting calls with the entries that may have anything in common with a box:
// those that are held to a value of it, or in a dimension where it is not held
// to a list. It ends when the call returns false.
func (s *ruleSet) meeting(b box, call func(entry) bool) {
	all := func(list []entry) bool {
		return !slices.ContainsFunc(list, func(e entry) bool { return !call(e) })
	}
	if !all(s.wild) {
		return
	}
	for d, of := range s.pinned {
		if held, is := b.get(d); is && !held.(values).except {
			for _, value := range held.(values).list {
				if !all(of[value]) {
					return
				}
			}
			continue
		}
		for _, list := range of {
			if !all(list) {
				return
			}
		}
	}
}
