package podnet

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func node(name, cidrs, addresses string) Node {
	n := Node{Name: name}
	for _, c := range strings.Fields(cidrs) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	for _, a := range strings.Fields(addresses) {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	return n
}

// onLink reaches what begins with 192.0.2. or 2001:db8: on link 5, what begins
// with 203. through a router, and nothing else.
func onLink(a netip.Addr) (Path, error) {
	switch text := a.String(); {
	case strings.HasPrefix(text, "192.0.2."), strings.HasPrefix(text, "2001:db8:"):
		return Path{Link: 5, Device: "eth0", MTU: 1500, Direct: true}, nil
	case strings.HasPrefix(text, "203."):
		return Path{Link: 5, Device: "eth0", MTU: 1500}, nil
	}
	return Path{}, errors.New("it cannot be reached")
}

// lines are a plan's, to be read.
func (p *plan) lines() []string {
	var out []string
	for _, g := range p.gateways {
		out = append(out, "gateway "+g.String())
	}
	for _, r := range p.routes {
		line := r.to.String() + " via " + r.via.String()
		if r.link == 0 {
			line += " by vxlan"
		}
		if r.source.IsValid() {
			line += " from " + r.source.String()
		}
		out = append(out, line)
	}
	if p.vxlan != nil {
		for _, x := range p.vxlan.peers {
			line := "peer " + x.outer.String()
			for _, g := range x.gateways {
				line += " " + g.String()
			}
			out = append(out, line)
		}
	}
	return out
}

func TestPlan(t *testing.T) {
	const own, pods = "192.0.2.1 2001:db8::1", "10.0.1.0/24 fd00:1::/64"
	for _, tc := range []struct {
		name     string
		mode     Mode
		cluster  Cluster
		want     []string
		problems []string
		mtu      int
	}{
		{"routed", Routed, Cluster{Own: "a", Nodes: []Node{node("a", pods, own), node("b", "10.0.2.0/24 fd00:2::/64", "192.0.2.2 2001:db8::2")}},
			[]string{"gateway 10.0.1.1/24", "gateway fd00:1::1/64", "10.0.2.0/24 via 192.0.2.2", "fd00:2::/64 via 2001:db8::2"}, nil, 1500},
		{"routed, what cannot be", Routed, Cluster{Own: "a", Nodes: []Node{node("a", pods, own), node("b", "10.0.2.0/24 fd00:2::/64", "203.0.113.2"), node("c", "10.0.3.0/24", "198.51.100.3")}},
			[]string{"gateway 10.0.1.1/24", "gateway fd00:1::1/64"}, []string{
				"Pods of node b in 10.0.2.0/24: 203.0.113.2 is not on a link of this node: use --pod-network vxlan, or have your routers know of the Pods",
				"Pods of node b in fd00:2::/64: the node has no address of their family", "Pods of node c in 10.0.3.0/24: it cannot be reached"}, 1500},
		{"vxlan, IPv6 inside of IPv4, behind a router", VXLAN, Cluster{Own: "a", Nodes: []Node{node("a", pods, own), node("b", "10.0.2.0/24 fd00:2::/64", "203.0.113.2")}},
			[]string{"gateway 10.0.1.1/24", "gateway fd00:1::1/64", "10.0.2.0/24 via 10.0.2.0 by vxlan from 10.0.1.1", "fd00:2::/64 via fd00:2:: by vxlan from fd00:1::1",
				"peer 203.0.113.2 10.0.2.0 fd00:2::"}, nil, 1450},
		{"vxlan over IPv6", VXLAN, Cluster{Own: "a", Nodes: []Node{node("a", pods, "2001:db8::1"), node("b", "10.0.2.0/24", "2001:db8::2"), node("c", "10.0.3.0/24", "192.0.2.3")}},
			[]string{"gateway 10.0.1.1/24", "gateway fd00:1::1/64", "10.0.2.0/24 via 10.0.2.0 by vxlan from 10.0.1.1", "peer 2001:db8::2 10.0.2.0"},
			[]string{"Pods of node c: it has no address of the family of 2001:db8::1"}, 1430},
		{"a gateway of its own choice", VXLAN, Cluster{Own: "a", Gateways: []netip.Addr{netip.MustParseAddr("10.0.1.254")}, Nodes: []Node{node("a", pods, own)}},
			[]string{"gateway 10.0.1.254/24", "gateway fd00:1::1/64"}, nil, 1450},
		{"a node that is not known", VXLAN, Cluster{Own: "x", Nodes: []Node{node("a", pods, own)}}, nil, nil, 0},
		{"a node without prefixes", VXLAN, Cluster{Own: "x", Nodes: []Node{node("x", "", own)}}, nil, nil, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, problems := makePlan(&Config{Mode: tc.mode, VXLANID: 1, VXLANPort: 4789}, tc.cluster, onLink)
			if p == nil {
				if tc.want != nil {
					t.Fatal("no plan")
				}
				return
			}
			if d := cmp.Diff(tc.want, p.lines()); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tc.problems, problems); d != "" {
				t.Errorf("problems (-want +got):\n%s", d)
			}
			if p.mtu != tc.mtu {
				t.Errorf("MTU %d, want %d", p.mtu, tc.mtu)
			}
		})
	}
}

// A node's device has the same address on every node that works it out, and no
// other node's.
func TestMACsAreOfTheNames(t *testing.T) {
	a, b := macOf("a"), macOf("b")
	if a.String() == b.String() || a.String() != macOf("a").String() || a[0]&3 != 2 {
		t.Errorf("%s, %s", a, b)
	}
}
