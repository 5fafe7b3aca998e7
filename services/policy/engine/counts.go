package engine

import (
	"cmp"
	"slices"
)

// counts says how often each node is in something, by the nodes' numbers in
// ascending order. Most have a few nodes. A node more or less moves up to
// eight bytes for each of the others, which for thousands of nodes is still
// less than a map's work.
type counts []nodeCount

type nodeCount struct{ node, n uint32 }

func (c counts) position(node uint32) (int, bool) {
	return slices.BinarySearchFunc(c, node, func(e nodeCount, node uint32) int { return cmp.Compare(e.node, node) })
}

func (c counts) has(node uint32) bool {
	_, found := c.position(node)
	return found
}

// add counts a node once more, and reports whether it was not there before.
func (c *counts) add(node uint32) (first bool) {
	i, found := c.position(node)
	if found {
		(*c)[i].n++
		return false
	}
	*c = slices.Insert(*c, i, nodeCount{node, 1})
	return true
}

// remove counts a node once less, and reports whether it is gone.
func (c *counts) remove(node uint32) (last bool) {
	i, found := c.position(node)
	if !found {
		panic("engine: a node is counted out that was never in")
	}
	if (*c)[i].n--; (*c)[i].n > 0 {
		return false
	}
	*c = slices.Delete(*c, i, i+1)
	return true
}
