package hostpolicy

import (
	"fmt"
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Kubelet is the port at which a node's own agent is asked.
const Kubelet = 10250

// Control is what it takes to steer a node: its own calls of API servers and
// policy services, and theirs of its kubelet. All is TCP.
type Control struct {
	Servers []netip.AddrPort // In order.
	Own     []netip.AddrPort // Those of Servers that are at this node.
	Nodes   []netip.Addr     // From where nodes call Own, in order. Empty where there are none.
}

func controlOf(s *State) (c Control) {
	c.Servers = slices.Clone(s.Servers)
	for _, w := range s.Facts.GetServers() {
		if a, ok := netip.AddrFromSlice(w.GetIp()); ok && w.GetPort() <= 0xffff {
			c.Servers = append(c.Servers, netip.AddrPortFrom(a, uint16(w.GetPort())))
		}
	}
	slices.SortFunc(c.Servers, netip.AddrPort.Compare)
	c.Servers = slices.Compact(c.Servers)
	for _, server := range c.Servers {
		ip := server.Addr().AsSlice()
		if slices.ContainsFunc(s.Facts.GetAddresses(), func(own []byte) bool { return string(own) == string(ip) }) {
			c.Own = append(c.Own, server)
		}
	}
	if len(c.Own) > 0 {
		for _, ip := range s.Facts.GetClients() {
			if a, ok := netip.AddrFromSlice(ip); ok {
				c.Nodes = append(c.Nodes, a)
			}
		}
	}
	return c
}

// Hosts are the addresses of servers, in order.
func Hosts(servers []netip.AddrPort) (list []netip.Addr) {
	for _, s := range servers {
		list = append(list, s.Addr())
	}
	return slices.Compact(list)
}

// steers says whether a connection of the host is what it takes to steer a node.
func (k *Control) steers(l List, c Connection) bool {
	if c.Protocol != TCP {
		return false
	}
	own := netip.AddrPortFrom(c.Own, c.Port)
	peer := netip.AddrPortFrom(c.Peer, c.Port)
	switch l {
	case Ingress:
		return c.Port == Kubelet && slices.Contains(Hosts(k.Servers), c.Peer) || slices.Contains(k.Own, own) && slices.Contains(k.Nodes, c.Peer)
	case Egress:
		return slices.Contains(k.Servers, peer) || c.Port == Kubelet && slices.Contains(Hosts(k.Own), c.Own) && slices.Contains(k.Nodes, c.Peer)
	}
	return false
}

// lockouts are the items of which a rule would deny what steers this node, were it
// not overruled there.
func (p *Plan) lockouts(l List, found []candidate) (problems []Problem) {
	said := make(map[int]bool)
	look := func(peer netip.Addr, port uint16, what string) {
		i := p.first(l, Connection{Peer: peer, Protocol: TCP, Port: port})
		if i < 0 || said[i] || !p.Rules(l)[i].Overruled() {
			return
		}
		said[i] = true
		r := found[i]
		problems = append(problems, Problem{r.item.Scope, r.item.Key, fmt.Errorf(
			"rule %d would cut the node off: %s are let through in spite of it; annotation weir.dev/allow-lockout: \"true\" denies them", r.wire.GetIndex(), what)})
	}
	for _, s := range p.Control.Servers {
		if l == Egress {
			look(s.Addr(), s.Port(), "its own connections to "+s.String())
		} else {
			look(s.Addr(), Kubelet, fmt.Sprintf("connections of %s to its kubelet", s.Addr()))
		}
	}
	for _, s := range p.Control.Own {
		for _, a := range p.Control.Nodes {
			if l == Ingress {
				look(a, s.Port(), fmt.Sprintf("other nodes' connections to %s on it", s))
			} else {
				look(a, Kubelet, "connections of the API server or policy service on it to other nodes' kubelets")
			}
		}
	}
	return problems
}

// first is the rule that would decide on a connection, were none overruled, of
// those that are enforced; below zero: none would.
func (p *Plan) first(l List, c Connection) int {
	passed := false
	rules := p.Rules(l)
	for i := range rules {
		r := &rules[i]
		switch {
		case r.Staged, passed && !r.Baseline, !r.covers(c):
		case r.Action == policyv1.Action_ACTION_PASS:
			passed = true
		default:
			return i
		}
	}
	return -1
}

func denies(a policyv1.Action) bool {
	return a == policyv1.Action_ACTION_DROP || a == policyv1.Action_ACTION_REJECT
}
