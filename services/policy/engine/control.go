package engine

import (
	"fmt"
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
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

// kubelet is the port at which a node's own agent is asked.
const kubelet = 10250

// lockouts are the rules of a policy for Nodes that would cut these off from what
// steers them, and are overruled there.
func (e *Engine) lockouts(o *ordered) (faults []Fault) {
	p := o.items[""]
	if p == nil || p.set == nil || p.draft.allowLockout {
		return nil
	}
	said := make(map[*draftRule]bool)
	for _, d := range []policyv1.Direction{policyv1.Direction_DIRECTION_INGRESS, policyv1.Direction_DIRECTION_EGRESS} {
		for _, server := range e.control.servers {
			port, what := uint32(server.Port()), "what Nodes send to "+server.String()
			if d == policyv1.Direction_DIRECTION_INGRESS {
				port, what = kubelet, fmt.Sprintf("what %s sends to kubelets", server.Addr())
			}
			r := p.first(d, server.Addr(), port)
			if r == nil || said[r] || r.action != policyv1.Action_ACTION_DROP && r.action != policyv1.Action_ACTION_REJECT {
				continue
			}
			said[r] = true
			list := "ingress"
			if d == policyv1.Direction_DIRECTION_EGRESS {
				list = "egress"
			}
			faults = append(faults, Fault{Reason: ReasonLockout, Widens: true, Message: fmt.Sprintf(
				"%s: %s is let through in spite of it, or Nodes would be cut off; annotation weir.dev/allow-lockout: \"true\" has it denied", ruleText(list, int(r.index), r.name), what)})
		}
	}
	return faults
}

// first is the first rule for hosts that is about what is sent to a port by TCP, to
// or from an address of none but hosts; nil where there is none.
func (p *policy) first(d policyv1.Direction, peer netip.Addr, port uint32) *draftRule {
	groups := p.groups[len(p.draft.appliedTo):]
	for i := range p.draft.rules {
		r := &p.draft.rules[i]
		peers := groups[:len(r.peers)]
		groups = groups[len(r.peers)+len(r.appliedTo)+len(r.named):]
		traffic := r.anything || slices.ContainsFunc(r.services, func(s service) bool {
			return s.sourcePort == 0 && s.hasPort(policyv1.Protocol_PROTOCOL_TCP, port)
		})
		within := r.anyone || slices.ContainsFunc(peers, func(g *group) bool { return g.hasHostAt(peer) }) ||
			slices.ContainsFunc(r.blocks, func(b *api.IPBlock) bool {
				return b.CIDR.Contains(peer) && !slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(peer) })
			})
		if r.host && r.direction == d && traffic && within {
			return r
		}
	}
	return nil
}

func (g *group) hasHostAt(a netip.Addr) bool {
	for n := range g.hosts {
		if slices.Contains(hostAddresses(n.obj), a) {
			return true
		}
	}
	return false
}
