package storage

// span is the nodes of a scope, each with the revision by which it joined. It
// holds no pointers: there are as many of its entries as nodes times scopes.
type span struct {
	nodes []joined
	index *index // Of positions in nodes, where these are many.
}

type joined struct {
	revision uint64
	node     uint32 // Its number.
	at       int32  // Where the node has the scope.
}

// hashNode spreads the numbers of nodes, which are small and dense.
func hashNode(number uint32) uint32 {
	h := number * 0x9e3779b1
	return h ^ h>>15
}

func (s *span) hashAt(i int32) uint32 { return hashNode(s.nodes[i].node) }

// find is the position of a node; -1 where it is not in the span.
func (s *span) find(n *node) int {
	if s.index != nil {
		return int(s.index.find(hashNode(n.number), func(i int32) bool { return s.nodes[i].node == n.number }))
	}
	for i := range s.nodes {
		if s.nodes[i].node == n.number {
			return i
		}
	}
	return -1
}

// joined is the revision by which a node joined; zero where it is not in the span.
func (s *span) joined(n *node) uint64 {
	if i := s.find(n); i >= 0 {
		return s.nodes[i].revision
	}
	return 0
}

// add takes in a node that is not in the span, and has the scope at a position.
func (s *span) add(n *node, rev uint64, at int32) {
	s.nodes = append(s.nodes, joined{rev, n.number, at})
	switch last := int32(len(s.nodes) - 1); {
	case s.index != nil:
		s.index.add(hashNode(n.number), last, s.hashAt)
	case last >= spanScanned:
		s.index = new(index)
		for i := range s.nodes {
			s.index.add(s.hashAt(int32(i)), int32(i), s.hashAt)
		}
	}
}

// spanScanned is up to how many nodes a span has no index. Looking at this many
// costs less than memory for it in every scope.
const spanScanned = 32

// remove takes out the node at a position.
func (s *span) remove(i int) {
	last := len(s.nodes) - 1
	if s.index != nil {
		s.index.remove(s.hashAt(int32(i)), int32(i), s.hashAt)
		if i != last {
			s.index.move(s.hashAt(int32(last)), int32(last), int32(i))
		}
	}
	s.nodes[i] = s.nodes[last]
	s.nodes = s.nodes[:last]
}
