package engine

import (
	"net/netip"
	"slices"
)

// control is where nodes are steered from, and who is steered. Nodes that
// policies apply to are told of it, so that none of these cuts them off.
type control struct {
	servers []netip.AddrPort // API servers and policy services, in order.
	clients []netip.Addr     // The addresses of all Nodes' hosts, in order. Nil where there are no servers.
	stale   bool             // Slices or Nodes have changed since.
}

// settleControl works out what of it has changed since the last Flush, and has
// the Nodes told that are concerned.
func (e *Engine) settleControl() {
	c := &e.control
	if !c.stale {
		return
	}
	former := *c
	*c = control{}
	for _, s := range e.services.slices {
		if s.Controls() {
			c.servers = append(c.servers, s.Servers()...)
		}
	}
	slices.SortFunc(c.servers, netip.AddrPort.Compare)
	c.servers = slices.Compact(c.servers)
	if len(c.servers) > 0 {
		for _, n := range e.nodes.list.items {
			if n.obj != nil {
				c.clients = append(c.clients, hostAddresses(n.obj)...)
			}
		}
		slices.SortFunc(c.clients, netip.Addr.Compare)
		c.clients = slices.Compact(c.clients)
	}
	moved, others := !slices.Equal(c.servers, former.servers), !slices.Equal(c.clients, former.clients)
	if !moved && !others {
		return
	}
	for _, n := range e.nodes.list.items {
		if n.obj != nil && (moved || c.at(n)) && len(e.hostTargets(n)) > 0 {
			e.retellNode(n)
		}
	}
}

// at says whether one of the servers is at a node.
func (c *control) at(n *node) bool {
	return slices.ContainsFunc(hostAddresses(n.obj), func(a netip.Addr) bool {
		_, is := slices.BinarySearchFunc(c.servers, a, func(s netip.AddrPort, a netip.Addr) int { return s.Addr().Compare(a) })
		return is
	})
}

// controlOf is what a Node is told of it.
func (e *Engine) controlOf(n *node, guarded bool) (servers []netip.AddrPort, clients []netip.Addr) {
	if !guarded {
		return nil, nil
	}
	if servers = e.control.servers; e.control.at(n) {
		clients = e.control.clients
	}
	return servers, clients
}
