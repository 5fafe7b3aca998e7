package storage

import "slices"

// span is the nodes of a scope, each with the revision by which it joined.
type span struct {
	nodes []joined
	index map[*node]int // Positions in nodes, where these are many.
}

type joined struct {
	node     *node
	revision uint64
}

func (s *span) find(n *node) int {
	if s.index != nil {
		if i, in := s.index[n]; in {
			return i
		}
		return -1
	}
	return slices.IndexFunc(s.nodes, func(j joined) bool { return j.node == n })
}

// joined is the revision by which a node joined; zero where it is not in the span.
func (s *span) joined(n *node) uint64 {
	if i := s.find(n); i >= 0 {
		return s.nodes[i].revision
	}
	return 0
}

// add takes in a node that is not in the span.
func (s *span) add(n *node, rev uint64) {
	s.nodes = append(s.nodes, joined{n, rev})
	if s.index != nil {
		s.index[n] = len(s.nodes) - 1
	} else if len(s.nodes) > scannedKeys {
		s.index = make(map[*node]int, 2*scannedKeys)
		for i, j := range s.nodes {
			s.index[j.node] = i
		}
	}
}

// remove takes out the node at a position.
func (s *span) remove(i int) {
	last := len(s.nodes) - 1
	if s.index != nil {
		delete(s.index, s.nodes[i].node)
		if i != last {
			s.index[s.nodes[last].node] = i
		}
	}
	s.nodes[i] = s.nodes[last]
	s.nodes[last] = joined{}
	s.nodes = s.nodes[:last]
}
