package engine

import (
	"slices"
	"strconv"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// requirement is one normalised condition on one key: In with one value stands
// for matchLabels too. Values are sorted and unique.
type requirement struct {
	key    string
	op     api.Operator
	values []string
}

func (r *requirement) matches(labels api.Labels) bool {
	value, has := labels.Get(r.key)
	switch r.op {
	case api.OpIn:
		return has && slices.Contains(r.values, value)
	case api.OpNotIn: // A missing key counts as another value.
		return !has || !slices.Contains(r.values, value)
	case api.OpExists:
		return has
	case api.OpDoesNotExist:
		return !has
	}
	return false
}

// requirements is a normalised selector; empty matches everything.
type requirements []requirement

func normalise(s *api.Selector) requirements {
	var rs requirements
	for _, l := range s.MatchLabels {
		rs = append(rs, requirement{key: l.Key, op: api.OpIn, values: []string{l.Value}})
	}
	for _, m := range s.MatchExpressions {
		values := slices.Clone(m.Values)
		slices.Sort(values)
		rs = append(rs, requirement{key: m.Key, op: m.Operator, values: slices.Compact(values)})
	}
	slices.SortFunc(rs, compareRequirements)
	return slices.CompactFunc(rs, func(a, b requirement) bool { return compareRequirements(a, b) == 0 })
}

func compareRequirements(a, b requirement) int {
	if c := strings.Compare(a.key, b.key); c != 0 {
		return c
	}
	if a.op != b.op {
		return int(a.op) - int(b.op)
	}
	return slices.Compare(a.values, b.values)
}

func (rs requirements) match(labels api.Labels) bool {
	for i := range rs {
		if !rs[i].matches(labels) {
			return false
		}
	}
	return true
}

// anchor is a label of which one must be there for the selector to match: an
// In with the fewest values. It is nil where the selector has none.
func (rs requirements) anchor() *requirement {
	var best *requirement
	for i := range rs {
		if r := &rs[i]; r.op == api.OpIn && (best == nil || len(r.values) < len(best.values)) {
			best = r
		}
	}
	return best
}

// text is the selector in kubectl's form, unambiguous since keys and values
// hold none of its punctuation.
func (rs requirements) text() string {
	var b strings.Builder
	for i := range rs {
		if i > 0 {
			b.WriteByte(',')
		}
		r := &rs[i]
		switch {
		case r.op == api.OpIn && len(r.values) == 1:
			b.WriteString(r.key + "=" + r.values[0])
		case r.op == api.OpIn:
			b.WriteString(r.key + " in (" + strings.Join(r.values, ",") + ")")
		case r.op == api.OpNotIn:
			b.WriteString(r.key + " notin (" + strings.Join(r.values, ",") + ")")
		case r.op == api.OpExists:
			b.WriteString(r.key)
		case r.op == api.OpDoesNotExist:
			b.WriteString("!" + r.key)
		default:
			b.WriteString(r.key + " op" + strconv.Itoa(int(r.op)))
		}
	}
	return b.String()
}

// podSelector is a normalised selection of Pods.
type podSelector struct {
	namespace  string       // Where namespaces is nil: the one Namespace.
	namespaces requirements // On Namespace labels; nil where namespace counts.
	pods       requirements
}

// selectPods normalises a pair of selectors as peers and applied-to entries
// have them. A nil Namespace selector means the given Namespace; a nil Pod
// selector means all Pods.
func selectPods(namespace string, namespaces, pods *api.Selector) podSelector {
	var s podSelector
	if namespaces == nil {
		s.namespace = namespace
	} else if s.namespaces = normalise(namespaces); s.namespaces == nil {
		s.namespaces = requirements{}
	}
	if pods != nil {
		s.pods = normalise(pods)
	}
	return s
}

// text is the canonical form: equal selections written alike have the same.
func (s *podSelector) text() string {
	if s.namespaces == nil {
		return "namespace " + s.namespace + ", pods " + orAll(s.pods.text())
	}
	return "namespaces " + orAll(s.namespaces.text()) + ", pods " + orAll(s.pods.text())
}

func orAll(s string) string {
	if s == "" {
		return "all"
	}
	return "[" + s + "]"
}

func (s *podSelector) matchNamespace(ns *namespace) bool {
	if s.namespaces == nil {
		return ns.name == s.namespace
	}
	return s.namespaces.match(ns.labels)
}
