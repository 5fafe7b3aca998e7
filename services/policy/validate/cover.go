package validate

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// How many boxes are looked at for all there is, and for one change. Where that
// does not do, as for thousands of rules that need no label, the rules that are
// left go unjudged: nothing that is said is wrong, but something may go unsaid.
const (
	looksOfSet    = 30_000_000
	looksOfChange = 5_000_000
)

// budget is how many boxes may still be looked at.
type budget struct{ left int }

// spend takes one, and says whether there was one.
func (b *budget) spend() bool {
	b.left--
	return b.left >= 0
}

func (b *budget) spent() bool { return b.left < 0 }

// coverage finds out whether what is left of a rule lies in others.
type coverage struct {
	*budget
	rules *ruleSet
	may   func(*rule) bool // Whether a rule counts.
	order func(a, b *rule) int
	used  map[*rule]bool
}

// covers reports whether a region lies in the union of the rules that count.
func (c *coverage) covers(r region) bool {
	c.used = map[*rule]bool{}
	left := slices.Clone(r)
	for len(left) > 0 {
		b := left[len(left)-1]
		left = left[:len(left)-1]
		by, found := c.cut(b)
		if !found || c.spent() {
			return false
		}
		c.used[by.rule] = true
		left = append(left, b.less(by.box)...)
	}
	return true
}

// cut finds an entry that has a part of a box: one that has all of it, or else
// the first in order.
func (c *coverage) cut(b box) (best entry, found bool) {
	whole := false
	c.rules.within(b, func(e entry) bool {
		if !c.spend() {
			return false
		}
		if !b.meets(e.box) {
			return true
		}
		all := b.within(e.box)
		if whole && !all || !c.may(e.rule) {
			return true
		}
		if !all {
			if _, some := b.and(e.box); !some {
				return true
			}
		}
		if !found || all && !whole || c.order(e.rule, best.rule) < 0 {
			best, found, whole = e, true, all
		}
		return true
	})
	return best, found
}

// precedes reports whether a rule counts as earlier than another: it is judged
// before it in the same world. What is staged is not there for what is
// enforced; what is enforced is there for what is staged.
func (x *Index) precedes(a, b *rule) bool {
	if a == b || a.policy.Staged && !b.policy.Staged {
		return false
	}
	_, ranked := x.rank(a.policy)
	return ranked && x.compare(a, b) < 0
}

// covering finds the earlier rules that decide all that a rule matches, in
// order: one, where one alone does, or else several, of which none can be left
// out. None: something is left for the rule, or it matches nothing by itself.
func (x *Index) covering(r *rule) []*rule {
	if _, ranked := x.rank(r.policy); !ranked || len(r.region) == 0 {
		return nil
	}
	c := &coverage{budget: &x.budget, rules: x.rules[setOf(r)], order: x.compare, may: func(e *rule) bool { return x.precedes(e, r) }}
	if !c.covers(r.region) {
		return nil
	}
	var list []*rule
	for e := range c.used {
		list = append(list, e)
	}
	slices.SortFunc(list, x.compare)
	alone := x.overlapping(r)
	if x.budget.spent() {
		return nil
	}
	for _, e := range alone {
		if x.within(r.region, []*rule{e}) {
			return []*rule{e}
		}
	}
	for i := len(list) - 1; i >= 0 && len(list) > 1; i-- {
		if rest := slices.Delete(slices.Clone(list), i, i+1); x.within(r.region, rest) {
			list = rest
		}
	}
	return list
}

// overlapping are earlier rules that may cover a rule alone, in order.
func (x *Index) overlapping(r *rule) []*rule {
	var list []*rule
	seen := map[*rule]bool{}
	x.rules[setOf(r)].within(r.region[0], func(e entry) bool {
		if !x.budget.spend() {
			return false
		}
		if _, some := r.region[0].and(e.box); some && !seen[e.rule] && x.precedes(e.rule, r) {
			seen[e.rule] = true
			list = append(list, e.rule)
		}
		return true
	})
	slices.SortFunc(list, x.compare)
	return list
}

// within reports whether a region lies in the union of some rules.
func (x *Index) within(r region, rules []*rule) bool {
	set := newRuleSet()
	for _, e := range rules {
		set.add(e)
	}
	c := coverage{budget: &x.budget, rules: set, may: func(*rule) bool { return true }, order: func(a, b *rule) int { return slices.Index(rules, a) - slices.Index(rules, b) }}
	return c.covers(r)
}

// overlap reports whether two regions have a packet in common.
func overlap(a, b region) bool {
	return slices.ContainsFunc(b, func(q box) bool { return a.meets(q) })
}

func (r region) meets(b box) bool {
	for _, p := range r {
		if _, some := p.and(b); some {
			return true
		}
	}
	return false
}

// setIndex names a ruleSet.
type setIndex struct{ egress, late bool }

func setOf(r *rule) setIndex { return setIndex{r.egress, late(r.policy)} }

// place is what rules of equal precedence have in common.
type place struct {
	setIndex
	tier     string
	kind     api.Kind // Of upstream policies, of which one kind precedes the other.
	priority float64
	index    int
}

func placeOf(r *rule) place {
	p := place{setIndex: setOf(r), tier: r.policy.Tier, priority: r.policy.Priority, index: r.index}
	if p.tier == "" {
		p.kind = r.policy.Kind
	}
	return p
}
