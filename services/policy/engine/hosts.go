package engine

import (
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
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

// onHosts is the rule for what the hosts of Nodes receive or send themselves. What
// depends on the guarded Pod's Namespace is none of it, and a port's name means
// nothing where it would be the host's own.
func (e *Engine) onHosts(pl *plan, r planRule, hosts []selection, rule string) planRule {
	r.targets, r.related, r.host = hosts, nil, true
	widens := r.action != policyv1.Action_ACTION_ALLOW
	if len(r.toServices) > 0 {
		pl.fault(ReasonNotEnforced, widens, "%s: what a Node sends to Services is judged by the endpoint that it reaches; toServices matches nothing", rule)
		r.toServices = nil
	}
	if len(r.names) > 0 {
		pl.fault(ReasonNotEnforced, widens, "%s: the DNS of Nodes is not watched; names of hosts match nothing", rule)
		r.names = nil
	}
	igmp := func(s service) bool { return s.protocol == policyv1.Protocol_PROTOCOL_IGMP }
	if slices.ContainsFunc(r.services, igmp) {
		pl.fault(ReasonNotEnforced, widens, "%s: what a Node's own host says by IGMP is not watched; the rule matches nothing of it", rule)
		r.services = slices.DeleteFunc(slices.Clone(r.services), igmp)
	}
	if r.direction != policyv1.Direction_DIRECTION_INGRESS {
		return r
	}
	named := func(s service) bool { return s.portName != "" }
	if slices.ContainsFunc(r.services, named) {
		pl.fault(ReasonNotEnforced, widens, "%s: a Node's own ports have no names; write their numbers", rule)
		r.services = slices.DeleteFunc(slices.Clone(r.services), named)
	}
	return r
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
