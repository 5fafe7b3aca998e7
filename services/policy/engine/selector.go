package engine

import (
	"hash/maphash"
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

func (r *requirement) matches(value string, has bool) bool {
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

func (r *requirement) equal(o *requirement) bool {
	return r.op == o.op && r.key == o.key && slices.Equal(r.values, o.values)
}

// requirements is a normalised label selector; empty matches everything.
type requirements []requirement

// normaliser holds the memory in which selectors are normalised, so that one
// that is known already costs none.
type normaliser struct {
	requirements requirements
	values       []string
}

// normalise returns the canonical form of a selector, nil being the empty one.
// It is good until the next call.
func (n *normaliser) normalise(s *api.Selector) requirements {
	rs, values := n.requirements[:0], n.values[:0]
	if s != nil {
		for _, l := range s.MatchLabels {
			values = append(values, l.Value)
			rs = append(rs, requirement{key: l.Key, op: api.OpIn, values: values[len(values)-1:]})
		}
		for _, m := range s.MatchExpressions {
			first := len(values)
			values = append(values, m.Values...)
			own := values[first:]
			slices.Sort(own)
			rs = append(rs, requirement{key: m.Key, op: m.Operator, values: slices.Compact(own)})
		}
	}
	n.requirements, n.values = rs, values
	if len(rs) > 1 {
		slices.SortFunc(rs, compareRequirements)
		rs = slices.CompactFunc(rs, func(a, b requirement) bool { return a.equal(&b) })
	}
	return rs
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

func (rs requirements) clone() requirements {
	out := slices.Clone(rs)
	for i := range out {
		out[i].values = slices.Clone(out[i].values)
	}
	return out
}

func (rs requirements) sum(seed maphash.Seed) uint32 {
	h := uint32(len(rs))
	for i := range rs {
		h = mix(h, hashString(seed, rs[i].key)+uint32(rs[i].op))
		for _, v := range rs[i].values {
			h = mix(h, hashString(seed, v))
		}
	}
	return h
}

func (rs requirements) match(labels api.Labels) bool {
	for i := range rs {
		if value, has := labels.Get(rs[i].key); !rs[i].matches(value, has) {
			return false
		}
	}
	return true
}

func (rs requirements) matchShape(s *shape) bool {
	for i := range rs {
		if value, has := s.label(rs[i].key); !rs[i].matches(value, has) {
			return false
		}
	}
	return true
}

// namespace is the one Namespace that a selector on Namespaces names and asks
// nothing more of.
func (rs requirements) namespace() (name string, one bool) {
	if len(rs) != 1 || rs[0].op != api.OpIn || len(rs[0].values) != 1 || !namesItself(rs[0].key) {
		return "", false
	}
	return rs[0].values[0], true
}

func (rs requirements) matchNamespace(ns *namespace) bool {
	for i := range rs {
		if value, has := ns.label(rs[i].key); !rs[i].matches(value, has) {
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

// appendText appends the selector in kubectl's form, unambiguous since keys
// and values hold none of its punctuation.
func (rs requirements) appendText(b []byte) []byte {
	if len(rs) == 0 {
		return append(b, "all"...)
	}
	list := func(word string, r *requirement) {
		b = append(b, word...)
		for i, v := range r.values {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, v...)
		}
		b = append(b, ')')
	}
	b = append(b, '[')
	for i := range rs {
		if i > 0 {
			b = append(b, ',')
		}
		r := &rs[i]
		if r.op == api.OpDoesNotExist {
			b = append(b, '!')
		}
		b = append(b, r.key...)
		switch {
		case r.op == api.OpIn && len(r.values) == 1:
			b = append(append(b, '='), r.values[0]...)
		case r.op == api.OpIn:
			list(" in (", r)
		case r.op == api.OpNotIn:
			list(" notin (", r)
		case r.op == api.OpExists, r.op == api.OpDoesNotExist:
		default:
			b = strconv.AppendInt(append(b, " op"...), int64(r.op), 10)
		}
	}
	return append(b, ']')
}

func hashString(seed maphash.Seed, s string) uint32 { return uint32(maphash.String(seed, s)) }
