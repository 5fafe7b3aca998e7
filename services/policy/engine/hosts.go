package engine

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// A group of Nodes is an address group like any other, but that its members are
// Nodes with all addresses that their hosts have. As an applied-to group it
// stands in the facts of its Nodes, each of which counts for itself.
// There are few of these groups, so a Node is compared with all of them.

// hostGroup is the group of the Nodes that a selector selects.
func (e *Engine) hostGroup(s *selector) *group {
	if g := e.hostGroups[s]; g != nil {
		return g
	}
	return e.beginGroup(&group{pods: s, hosts: make(map[*node]struct{})})
}

func (e *Engine) beginHosts(g *group) {
	e.hostGroups[g.pods] = g
	for _, n := range e.nodes.list.items {
		if n.obj != nil && g.pods.match(n.obj.Labels) {
			g.hosts[n] = struct{}{}
		}
	}
}

func (g *group) has(n *node) bool {
	_, is := g.hosts[n]
	return is
}

// rehost follows a Node in the groups of Nodes.
func (e *Engine) rehost(n *node, before *api.Node) {
	for _, g := range e.hostGroups {
		was, is := g.has(n), n.obj != nil && g.pods.match(n.obj.Labels)
		switch {
		case is && !was:
			g.hosts[n] = struct{}{}
			e.gain(g, n)
		case was && !is:
			delete(g.hosts, n)
			e.lose(g, n)
		case !is || slices.Equal(hostAddresses(before), hostAddresses(n.obj)):
			continue
		}
		if g.told {
			e.pending.hosts = append(e.pending.hosts, groupHost{g, n})
		}
	}
}

// hostTargets are the ids of the applied-to groups that hold a Node, ascending.
func (e *Engine) hostTargets(n *node) [][]byte {
	var ids [][]byte
	for _, g := range e.hostGroups {
		if g.guards.len() > 0 && g.has(n) {
			ids = append(ids, g.id[:])
		}
	}
	slices.SortFunc(ids, slices.Compare)
	return ids
}

func hostKey(n *node) string { return storage.NodeKey(n.name) }

func (e *Engine) host(n *node) storage.Encoded {
	return storage.Encoded{Key: hostKey(n), Body: string(e.encoder.host(n.obj))}
}
