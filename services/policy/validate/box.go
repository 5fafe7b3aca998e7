package validate

import (
	"slices"
	"strings"
)

// aspect is what is looked at of a packet and of the two that it is between:
// the subject, which a rule guards, and its peer.
type aspect uint8

const (
	subjectKind aspect = iota
	subjectService
	subjectNamespace // By name.
	subjectNamespaceLabel
	subjectPodLabel
	subjectAccount
	subjectNodeLabel
	peerKind
	peerNamespace
	peerNamespaceLabel
	peerPodLabel
	peerAccount
	peerNodeLabel
	peerAddress
	peerName    // Whether the address is known by a name of a pattern, which is the key.
	peerService // The Service to whose address the packet was sent, absent if to none.
	sameLabel   // Whether both Namespaces have the label that is the key, with one value. No key: they are one.
	protocol
	port
	sourcePort
	icmpType
	icmpCode
	igmpType
	igmpGroup // To which a packet of ingress goes. In egress, that is the peer's address.
	portName  // Whether the destination calls the packet's port so, by protocol and name.
)

// What subjectKind and peerKind may be.
const (
	kindPod = iota
	kindNode
	kindOther // A Service's node port as subject, anyone outside as peer.
)

// dimension is an aspect, and the key of the label, name or port meant.
type dimension struct {
	aspect
	key string
}

func (d dimension) compare(o dimension) int {
	if d.aspect != o.aspect {
		return int(d.aspect) - int(o.aspect)
	}
	if d.key == o.key { // As where the aspect has no keys.
		return 0
	}
	return strings.Compare(d.key, o.key)
}

// all is the numbers that a dimension of numbers has.
func (d dimension) all() span {
	switch d.aspect {
	case subjectKind, peerKind:
		return span{small(0), small(2)}
	case peerName, sameLabel, portName:
		return span{small(0), small(1)}
	case protocol, icmpType, icmpCode, igmpType:
		return span{small(0), small(255)}
	case port, sourcePort:
		return span{small(0), small(65535)}
	case igmpGroup:
		return span{small(0), small(1<<32 - 1)}
	}
	return span{last: largest}
}

// No and yes, of the dimensions that are questions.
var (
	no  = only(0)
	yes = only(1)
)

// set is a set of values of one dimension: values or ranges. Sets of two kinds
// never meet in one dimension.
type set interface {
	and(set) set
	not(dimension) set // What the dimension has beside it.
	empty() bool
	within(set) bool
	meets(set) bool // Whether the intersection is not empty.
}

// constraint holds a dimension to a set, which is not empty.
type constraint struct {
	dimension
	set
}

// box is the packets that meet some constraints, sorted by dimension, of which
// each has one at most. Dimensions without constraint are free; they are
// independent of each other save for what settle knows.
type box []constraint

func (b box) find(d dimension) (int, bool) {
	return slices.BinarySearchFunc(b, d, func(c constraint, d dimension) int { return c.dimension.compare(d) })
}

func (b box) get(d dimension) (set, bool) {
	i, found := b.find(d)
	if !found {
		return nil, false
	}
	return b[i].set, true
}

// with holds a dimension to a set too. False: nothing is left.
func (b box) with(d dimension, s set) (box, bool) {
	i, found := b.find(d)
	if !found {
		return slices.Insert(slices.Clone(b), i, constraint{d, s}), !s.empty()
	}
	b = slices.Clone(b)
	b[i].set = b[i].set.and(s)
	return b, !b[i].set.empty()
}

// and intersects two boxes. False: nothing is in both.
func (b box) and(o box) (box, bool) {
	if !b.meets(o) {
		return nil, false
	}
	return b.merge(o).settle()
}

// merge holds all constraints of both.
func (b box) merge(o box) box {
	out := make(box, 0, len(b)+len(o))
	i, j := 0, 0
	for i < len(b) && j < len(o) {
		switch c := b[i].dimension.compare(o[j].dimension); {
		case c < 0:
			out = append(out, b[i])
			i++
		case c > 0:
			out = append(out, o[j])
			j++
		default:
			out = append(out, constraint{b[i].dimension, b[i].set.and(o[j].set)})
			i++
			j++
		}
	}
	return append(append(out, b[i:]...), o[j:]...)
}

// meets reports whether the boxes have a common value in every dimension.
func (b box) meets(o box) bool {
	for i, j := 0, 0; i < len(b) && j < len(o); {
		switch c := b[i].dimension.compare(o[j].dimension); {
		case c < 0:
			i++
		case c > 0:
			j++
		default:
			if !b[i].set.meets(o[j].set) {
				return false
			}
			i++
			j++
		}
	}
	return true
}

// within reports whether every constraint of the other holds by one of the
// box's own. False does not say that it sticks out.
func (b box) within(o box) bool {
	i := 0
	for _, c := range o {
		for i < len(b) && b[i].dimension.compare(c.dimension) < 0 {
			i++
		}
		if i == len(b) || b[i].dimension != c.dimension || !b[i].set.within(c.set) {
			return false
		}
	}
	return true
}

// less is the box without the other, as boxes of which no two overlap.
func (b box) less(o box) []box {
	if _, meet := b.and(o); !meet {
		return []box{b}
	}
	var out []box
	rest := b
	for _, c := range o {
		outside := c.set.not(c.dimension)
		if piece, some := rest.with(c.dimension, outside); some {
			if piece, some = piece.settle(); some {
				out = append(out, piece)
			}
		}
		inside, some := rest.with(c.dimension, c.set)
		if !some {
			return out
		}
		rest = inside
	}
	return out
}
