package validate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// warnRules tells of what rules mean beside others: those of one policy, which
// are in the index. Changed: the others are not judged with it.
func (x *Index) warnRules(f *findings, rules []*rule, changed bool) {
	for _, r := range rules {
		x.warnCovered(f, r)
		x.warnContradicted(f, r, changed)
		if r.egress {
			x.warnDNS(f, r)
			x.warnMetadata(f, r)
		}
	}
}

// warnCovered tells of a rule that never decides anything.
func (x *Index) warnCovered(f *findings, r *rule) {
	by := x.covering(r)
	switch {
	case len(by) == 0:
	case len(by) == 1:
		f.warn(r.policy.Ref(), r.field(), "the rule%s decides nothing: all that it matches is decided before, by rule %s (%s); move it before that rule, or remove it",
			quoted(r), by[0].name(r.policy.Ref()), by[0].spec().Action)
	default:
		var names []string
		for _, e := range by {
			if len(names) == mostNames {
				names = append(names, fmt.Sprintf("and %d more", len(by)-mostNames))
				break
			}
			names = append(names, fmt.Sprintf("%s (%s)", e.name(r.policy.Ref()), e.spec().Action))
		}
		f.warn(r.policy.Ref(), r.field(), "the rule%s decides nothing: all that it matches is decided before, by the rules %s together; move it before one of them, or remove it",
			quoted(r), strings.Join(names, ", "))
	}
}

func quoted(r *rule) string {
	if n := r.spec().Name; n != "" {
		return fmt.Sprintf(" %q", n)
	}
	return ""
}

// warnContradicted tells of rules that are of equal precedence, match some of
// the same traffic and say different things of it. A rule names the first of
// them, and how many more there are. Among all that there is it is said of the
// one that loses; of a change, whichever wins.
func (x *Index) warnContradicted(f *findings, r *rule, changed bool) {
	others := x.contradicting(r, changed, &x.budget)
	if len(others) == 0 {
		return
	}
	more := ""
	if n := len(others) - 1; n > 0 {
		more = fmt.Sprintf(" (and so have %d more rules)", n)
	}
	wins := others[0]
	if x.compare(r, wins) < 0 {
		wins = r
	}
	f.warn(r.policy.Ref(), r.field(), "the rule%s (%s) and rule %s (%s) have equal precedence and match some of the same traffic%s; there %s wins, write priorities that differ if that is not meant",
		quoted(r), r.spec().Action, others[0].name(r.policy.Ref()), others[0].spec().Action, more, wins.spec().Action)
}

// costOfContradiction is what one takes of the budget: a rule may contradict
// thousands, which are gathered and put in order.
const costOfContradiction = 50

// contradicting are the rules that contradict one and win over it, in order;
// or all that contradict it.
func (x *Index) contradicting(r *rule, all bool, looks *budget) []*rule {
	if _, ranked := x.rank(r.policy); !ranked {
		return nil
	}
	found := map[*rule]bool{}
	for _, b := range r.region {
		x.equal[placeOf(r)].meeting(b, func(e entry) bool {
			if !looks.spend() {
				return false
			}
			if e.spec().Action == r.spec().Action || e.policy == r.policy || found[e.rule] || !b.meets(e.box) {
				return true
			}
			if _, some := b.and(e.box); some && (all || x.compare(e.rule, r) < 0) {
				found[e.rule] = true
				looks.left -= costOfContradiction
			}
			return true
		})
	}
	if looks.spent() {
		return nil
	}
	return slices.SortedFunc(maps.Keys(found), x.compare)
}

// unguarded tells of Namespaces with Pods to which nothing is denied.
func (x *Index) unguarded(f *findings) {
	if len(x.policies) == 0 && len(x.isolating) == 0 {
		return // There is nothing yet from which they could have been left out.
	}
	var subjects []box
	seen := map[string]bool{}
	named := map[string]bool{}
	for _, c := range x.policies {
		if _, ranked := x.rank(c.OrderedPolicy); !ranked || c.Staged {
			continue
		}
		for _, r := range c.rules {
			if a := r.spec().Action; a != api.ActionDrop && a != api.ActionReject {
				continue
			}
			for _, b := range r.region {
				s := b.subject()
				if v := s.values(subjectNamespace, ""); !v.except {
					for _, n := range v.list {
						named[n] = true
					}
				} else if key := fmt.Sprint(s); !seen[key] {
					seen[key] = true
					subjects = append(subjects, s)
				}
			}
		}
	}
	var names []string
	for name := range x.namespaces {
		if len(x.pods.classes[name]) == 0 || named[name] || len(x.isolating[name]) > 0 {
			continue
		}
		if !slices.ContainsFunc(subjects, func(b box) bool { return b.guards(x.namespaces[name]) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for i, name := range names {
		more := ""
		if i == mostNames-1 && len(names) > mostNames {
			more = fmt.Sprintf(" (and to those of %d more Namespaces)", len(names)-mostNames)
		}
		f.warn(api.Ref{Kind: api.KindNamespace, Name: name}, "", "no policy denies anything to its Pods%s; write a NetworkPolicy with podSelector: {} and policyTypes: [Ingress], unless everyone may reach them", more)
		if more != "" {
			return
		}
	}
}

// subject is what a box says of the subject alone.
func (b box) subject() box {
	for i, c := range b {
		if c.aspect >= peerKind {
			return b[:i:i]
		}
	}
	return b
}

// guards reports whether a box may be of Pods in a Namespace.
func (b box) guards(n *api.Namespace) bool {
	for _, c := range b {
		switch c.aspect {
		case subjectKind:
			if !c.set.meets(only(kindPod)) {
				return false
			}
		case subjectNamespace:
			if !c.set.(values).has(n.Name) {
				return false
			}
		case subjectNamespaceLabel:
			value, there := n.Labels.Get(c.key)
			if !there {
				value = absent
			}
			if !c.set.(values).has(value) {
				return false
			}
		}
	}
	return true
}
