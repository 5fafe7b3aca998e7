package pipeline

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// The flows of a level have one of two forms. Most are conjunctive: clause flows,
// which cost the sum of the clauses, and one flow of the conjunction's id. Where
// the rules of a level multiply to few, each combination of target, peer and
// service is one direct flow, which acts at once. A switch finds that with one
// look for all priorities; at conjunctions it tries priority after priority where
// target and service hold, until the peer does too.
//
// The form is a function of the sizes of the level's clauses, without memory: a
// switch back and forth costs the flows of few rules, directMax and what their
// clauses are. It is the form of the level and not of a rule, so that a member
// still touches few flows of each priority, however many rules name its group
// there. Kubernetes rules have one level between them, and are conjunctive.
//
// A level that is conjunctive takes what comes and goes at once. One that is
// direct only counts it: at the end of the Update its flows are made anew, or it
// becomes conjunctive. Either way the old form goes in the same bundle.

// directMax is how many flows a level may have in the direct form.
const directMax = 16

// weight is what bodies cost in the two forms, and how many must be conjunctive.
type weight struct {
	direct, clauses int
	reporting       int // Have a twin flow, which goes by the conjunction's id.
}

func (w *weight) add(o weight, sign int) {
	w.direct, w.clauses, w.reporting = w.direct+sign*o.direct, w.clauses+sign*o.clauses, w.reporting+sign*o.reporting
}

// light says whether the direct form is the one to have.
func (w weight) light() bool {
	return w.reporting == 0 && w.direct <= directMax && w.direct <= w.clauses
}

// direct says whether the body's flows have the direct form.
func (b *body) direct() bool { return b.level != nil && b.level.direct }

// weigh takes what a body weighs now into its level.
func (c *Compiler) weigh(b *body) {
	if b.level == nil {
		return
	}
	b.level.weight.add(b.weight, -1)
	b.weight = b.weighed()
	b.level.weight.add(b.weight, 1)
	c.reweighed[b.level] = struct{}{}
}

// weighed is what a body weighs. A clause that matches nothing yet counts as one
// match: the first that comes must not bring many flows with it.
func (b *body) weighed() (w weight) {
	if len(b.guarded) == 0 {
		return w
	}
	if b.reports() {
		w.reporting = 1
	}
	for _, pt := range b.parts {
		w.clauses++ // The conjunction's own flow.
		for f, n := range b.in {
			product := 1
			for k := range pt.clauses {
				w.clauses += pt.sizes[f][k]
				product *= max(1, pt.sizes[f][k]+pt.sizes[either][k])
			}
			if n > 0 || f == 0 && b.in == [2]int{} {
				w.direct += product
			}
		}
		for k := range pt.clauses {
			w.clauses += pt.sizes[either][k]
		}
	}
	return w
}

// settleForms gives the flows of levels whose weight changed the form that they
// are to have, and brings direct ones up to date.
func (c *Compiler) settleForms() {
	for _, lv := range slices.SortedFunc(maps.Keys(c.reweighed), compareLevels) {
		light := lv.weight.light()
		if !light && !lv.direct {
			continue
		}
		var parts []*part
		for b := range lv.bodies {
			parts = append(parts, b.parts...)
		}
		slices.SortFunc(parts, func(a, b *part) int { return cmp.Compare(a.place.Conj, b.place.Conj) })
		if light != lv.direct {
			c.reform(lv, parts)
		}
		if light {
			for _, pt := range parts {
				c.refresh(pt)
			}
		}
	}
	clear(c.reweighed)
}

// reform gives a level the other form. All parts leave before any enters: lanes
// may come, and move what stands in them.
func (c *Compiler) reform(lv *level, parts []*part) {
	for _, pt := range parts {
		c.unform(pt)
		pt.unseat()
		pt.direct, pt.terms = nil, nil
	}
	lv.direct = !lv.direct
	for _, pt := range parts {
		c.seat(pt, func(do emit) { c.clausesOf(pt, do) })
		c.form(pt)
	}
}

// form puts in the flows of a part as they are at its priority; unform undoes it.
func (c *Compiler) form(pt *part) {
	if !pt.body.direct() {
		c.clausesOf(pt, c.join)
	}
	c.decide(pt)
}

func (c *Compiler) unform(pt *part) {
	if !pt.body.direct() {
		c.clausesOf(pt, c.leave)
	}
	c.revoke(pt)
}

// refresh makes the flows of a part of a direct level anew.
func (c *Compiler) refresh(pt *part) {
	if !pt.place.Direct {
		pt.place = RulePlace{Conj: pt.place.Conj, Direct: true}
		c.assignment.Rules[pt.key] = pt.place
	}
	c.revoke(pt)
	pt.terms = c.termsOf(pt)
	pt.direct = pt.products()
	c.decide(pt)
}

// term is one match of one clause.
type term struct {
	clause uint8
	family int
	match  openflow.Match
}

// termsOf are the matches of a part's clauses, each once.
func (c *Compiler) termsOf(pt *part) (terms []term) {
	c.clausesOf(pt, func(_ *part, clause uint8, f int, match openflow.Match) {
		if t := (term{clause, f, match}); !slices.Contains(terms, t) {
			terms = append(terms, t)
		}
	})
	return terms
}

// products are the matches of all clauses together: each choice of one term of
// each clause, of one family.
func (pt *part) products() (out []openflow.Match) {
	for f := range either {
		fields := [][]openflow.Field{nil}
		for k := range pt.clauses {
			var next [][]openflow.Field
			for _, t := range pt.terms {
				if t.clause != k || t.family != f && t.family != either {
					continue
				}
				for _, so := range fields {
					next = append(next, slices.Concat(so, t.match.Fields()))
				}
			}
			fields = next
		}
		for _, all := range fields {
			out = append(out, openflow.NewMatch(all...))
		}
	}
	return out
}

// holder is who has a part's direct flows in the flow set. Rules of one level
// may want one flow: then the one of the lowest id has it.
func (pt *part) holder() string { return fmt.Sprintf("%010d", pt.place.Conj) }

// Tied says whether two flows of one priority are of rules that do the same with
// a packet, each by what it matches: a switch may take either. It is counted for
// the one that it takes, as where two conjunctions of a priority hold.
func Tied(a, b openflow.Flow) bool {
	return directly(a) && directly(b) && a.Table == b.Table && a.Priority == b.Priority
}

// directly says whether a flow acts for a rule by what it matches, and not by the
// id of a conjunction.
func directly(f openflow.Flow) bool {
	kind, _, ours := ParseCookie(f.Cookie)
	if _, conjunctive := f.Match.Field(openflow.FieldConjID); !ours || conjunctive {
		return false
	}
	switch kind {
	case KindRule:
		return true
	case KindStaged: // Gates and isolation are that, too.
		last := f.Table == TableStagedEgressDefaultRule || f.Table == TableStagedIngressDefaultRule
		return f.Table >= TableStagedAntreaPolicyEgressRule && !(last && f.Priority == prioIsolation)
	}
	return false
}
