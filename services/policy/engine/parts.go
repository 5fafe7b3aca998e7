package engine

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

func (pl *plan) fault(reason string, widens bool, format string, args ...any) {
	pl.faults = append(pl.faults, Fault{Reason: reason, Message: fmt.Sprintf(format, args...), Widens: widens})
}

func ruleText(list string, index int, name string) string {
	if name == "" {
		return fmt.Sprintf("%s[%d]", list, index)
	}
	return fmt.Sprintf("%s[%d] (%s)", list, index, name)
}

// tuple is the values that a Namespace has of the keys of a relation, and so
// the part of a policy for Namespaces that share them.
type tuple []api.Label

// tupleOf is what a Namespace has of some keys; nil where it lacks one.
func tupleOf(ns *namespace, keys []string) tuple {
	t := make(tuple, 0, len(keys))
	for _, key := range keys {
		value, has := ns.label(key)
		if !has {
			return nil
		}
		t = append(t, api.Label{Key: key, Value: value})
	}
	return t
}

// String names the part: "env=prod,org=a".
func (t tuple) String() string {
	list := make([]string, len(t))
	for i, l := range t {
		list[i] = l.Key + "=" + l.Value
	}
	return strings.Join(list, ",")
}

func (t tuple) is(keys []string) bool {
	if len(t) != len(keys) {
		return false
	}
	for i, key := range keys {
		if t[i].Key != key {
			return false
		}
	}
	return true
}

// within is a selection's share in Namespaces that have some labels, and some
// keys with any value.
func (s selection) within(labels []api.Label, exist []string) selection {
	if s.hosts || len(labels) == 0 && len(exist) == 0 {
		return s // Nodes are in no Namespace.
	}
	var all api.Selector
	if s.namespaces != nil {
		all = *s.namespaces
	} else {
		all.MatchLabels = api.Labels{{Key: api.LabelNamespaceName, Value: s.namespace}}
	}
	rs := append([]api.Requirement{}, all.MatchExpressions...)
	for _, l := range labels {
		rs = append(rs, api.Requirement{Key: l.Key, Operator: api.OpIn, Values: []string{l.Value}})
	}
	for _, key := range exist {
		rs = append(rs, api.Requirement{Key: key, Operator: api.OpExists})
	}
	return selection{namespaces: &api.Selector{MatchLabels: all.MatchLabels, MatchExpressions: rs}, pods: s.pods}
}

// header is a draft of the policy without rules.
func (pl *plan) header() *draft {
	p := pl.policy
	return &draft{kind: api.WireKind(p.Kind), namespace: p.Namespace, name: p.Name, uid: p.UID, generation: p.Generation, created: p.Created,
		rank: pl.rank, priority: p.Priority, staged: p.Staged, allowLockout: p.AllowLockout}
}

// draft is the policy but for its parts: the rules, as far as their peers are
// the same for every Pod that they guard. It is nil where there is none.
func (pl *plan) draft() *draft {
	d := pl.header()
	var concerned []selection
	for i := range pl.rules {
		r := &pl.rules[i]
		if before := max(i-1, 0); i == 0 || r.anyone != pl.rules[before].anyone || !sameSelections(r.targets, pl.rules[before].targets) {
			concerned = nil
			for _, t := range r.targets {
				concerned = append(concerned, pl.concerned(t, r.anyone)...)
			}
		}
		if !r.anyone && len(r.peers) == 0 && len(r.blocks) == 0 && len(r.toServices) == 0 && len(r.names) == 0 || !r.anything && len(r.services) == 0 {
			continue // It matches nothing.
		}
		rule := r.draftRule
		if rule.appliedTo = concerned; len(concerned) > 0 {
			d.rules = append(d.rules, rule)
		}
	}
	return d.settled()
}

// concerned is the share of a target that the policy's sameLabels leave it: a
// Namespace must have all their keys, or, for a rule that is for any peer, one.
func (pl *plan) concerned(t selection, anyone bool) []selection {
	if !anyone || t.hosts || len(pl.keys) < 2 {
		return []selection{t.within(nil, pl.keys)}
	}
	var out []selection
	for _, key := range pl.keys {
		out = append(out, t.within(nil, []string{key}))
	}
	return out
}

// part is the rules for Namespaces of one tuple. It is nil where there is none.
func (pl *plan) part(t tuple) *draft {
	d := pl.header()
	d.part = t.String()
	var within []selection
	for i := range pl.rules {
		r := &pl.rules[i]
		if r.host || r.nodePorts {
			continue // A node is in no Namespace.
		}
		if within == nil || !sameSelections(r.targets, pl.rules[i-1].targets) {
			within = nil
			for _, target := range r.targets {
				within = append(within, target.within(t, pl.keys))
			}
		}
		rule := r.draftRule
		rule.peers, rule.blocks, rule.toServices, rule.names, rule.named = nil, nil, nil, nil, nil
		for _, p := range r.related {
			if t.is(p.keys) {
				rule.peers = append(rule.peers, selection{namespaces: &api.Selector{MatchLabels: api.Labels(t)}, pods: p.pods})
			}
		}
		rule.appliedTo = within
		if len(rule.peers) > 0 && len(within) > 0 && (rule.anything || len(rule.services) > 0) {
			d.rules = append(d.rules, rule)
		}
	}
	return d.settled()
}

// settled is the draft with one appliedTo where all rules have the same, and
// nil where it has no rules.
func (d *draft) settled() *draft {
	if len(d.rules) == 0 {
		return nil
	}
	first := d.rules[0].appliedTo
	for i := range d.rules {
		if !sameSelections(first, d.rules[i].appliedTo) {
			return d
		}
	}
	d.appliedTo = first
	for i := range d.rules {
		d.rules[i].appliedTo = nil
	}
	return d
}

// sameSelections compares by what was written; two that say the same in other
// words count as different, which costs some bytes and nothing else.
func sameSelections(a, b []selection) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// guards says whether targets of the plan may have Pods in a Namespace.
func (pl *plan) guards(ns *namespace, n *normaliser) bool {
	for i := range pl.rules {
		for _, t := range pl.rules[i].targets {
			if t.namespaces == nil && t.namespace == ns.name || t.namespaces != nil && n.normalise(t.namespaces).matchNamespace(ns) {
				return true
			}
		}
	}
	return false
}
