package validate

import (
	"net/netip"
	"slices"
)

// settle reports whether a box, none of whose constraints is empty by itself,
// holds a packet: dimensions depend on each other in three ways. It returns the
// box with what follows for the Namespaces of both sides from their relation,
// so that what is free then may have any value.
func (b box) settle() (box, bool) {
	if !b.multicastPossible() || !b.namesPossible() {
		return nil, false
	}
	return b.relate()
}

var multicast = addresses(netip.MustParsePrefix("224.0.0.0/4")).or(addresses(netip.MustParsePrefix("ff00::/8")))

// multicastPossible: neither a Pod nor a Node has a multicast address.
func (b box) multicastPossible() bool {
	kind, of := b.get(dimension{aspect: peerKind})
	if !of || kind.meets(only(kindOther)) {
		return true
	}
	address, of := b.get(dimension{aspect: peerAddress})
	return !of || !address.within(multicast)
}

// namesPossible: an address has any number of names. Each pattern that must
// match one needs a name which no pattern matches that must match none.
func (b box) namesPossible() bool {
	var with, without []string
	for _, c := range b {
		if c.aspect != peerName {
			continue
		}
		if c.set.meets(yes) {
			if !c.set.meets(no) {
				with = append(with, c.key)
			}
		} else {
			without = append(without, c.key)
		}
	}
	return !slices.ContainsFunc(with, func(p string) bool { return patternWithin(p, without) })
}

// relate: Pods of one Namespace have the same Namespace labels, and labels are
// the same where both have the same value.
func (b box) relate() (box, bool) {
	subject, peer := b.values(subjectNamespace, ""), b.values(peerNamespace, "")
	one := subject.only(peer)
	related := one
	for _, c := range b {
		related = related || c.aspect == sameLabel
	}
	if !related {
		return b, true
	}
	some := true
	if answer, asked := b.get(dimension{aspect: sameLabel}); asked {
		switch {
		case !answer.meets(no):
			one = true
			if b, some = b.both(subjectNamespace, peerNamespace, "", peer.and(subject)); !some {
				return nil, false
			}
		case !answer.meets(yes) && one:
			return nil, false
		}
	}
	for _, key := range b.namespaceKeys() {
		if b, some = b.relateLabel(key, one); !some {
			return nil, false
		}
	}
	return b, true
}

// relateLabel judges one key of Namespace labels. One: both Pods are in the
// same Namespace.
func (b box) relateLabel(key string, one bool) (box, bool) {
	subject, peer := b.values(subjectNamespaceLabel, key), b.values(peerNamespaceLabel, key)
	answer, asked := b.get(dimension{sameLabel, key})
	same, differ := asked && !answer.meets(no), asked && !answer.meets(yes)
	common := subject.and(peer)
	switch {
	case same:
		common = common.and(noneOf(absent))
	case one && differ:
		common = common.and(oneOf(absent))
	case one:
	default:
		return b, !differ || !subject.only(peer) || subject.has(absent)
	}
	return b.both(subjectNamespaceLabel, peerNamespaceLabel, key, common)
}

// both holds two dimensions to one set.
func (b box) both(first, second aspect, key string, to set) (box, bool) {
	b, some := b.with(dimension{first, key}, to)
	if !some {
		return nil, false
	}
	return b.with(dimension{second, key}, to)
}

// values is the set of a dimension of strings.
func (b box) values(a aspect, key string) values {
	if s, of := b.get(dimension{a, key}); of {
		return s.(values)
	}
	return noneOf()
}

// namespaceKeys are the keys of Namespace labels of which something is said.
func (b box) namespaceKeys() []string {
	var keys []string
	for _, c := range b {
		switch c.aspect {
		case subjectNamespaceLabel, peerNamespaceLabel, sameLabel:
			if c.key != "" {
				keys = append(keys, c.key)
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}
