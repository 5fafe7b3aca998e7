package podnet

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Mode says how Pods of other nodes are reached.
type Mode string

const (
	Off    Mode = "off"
	Routed Mode = "routed"
	VXLAN  Mode = "vxlan"
)

// Node is where the Pods of a node are.
type Node struct {
	Name      string
	PodCIDRs  []netip.Prefix
	Addresses []netip.Addr // Where the node is reached, at most one of each family.
}

func (n Node) address(v6 bool) netip.Addr { return ofFamily(n.Addresses, v6) }

func ofFamily(list []netip.Addr, v6 bool) netip.Addr {
	for _, a := range list {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// Cluster is what the stream says.
type Cluster struct {
	Own      string       // The name of this node.
	Gateways []netip.Addr // That the host has on the bridge, if not the first addresses.
	Nodes    []Node
}

// Sort puts the nodes into the order of their names.
func (c Cluster) Sort() {
	slices.SortFunc(c.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
}

// OwnNode is this node; not ok while the stream does not have it, or its prefixes.
func (c Cluster) OwnNode() (Node, bool) {
	for _, n := range c.Nodes {
		if n.Name == c.Own && len(n.PodCIDRs) > 0 {
			return n, true
		}
	}
	return Node{}, false
}

// Gateway is the address that the host has of a prefix of its own Pods.
func (c Cluster) Gateway(p netip.Prefix) netip.Addr {
	for _, g := range c.Gateways {
		if p.Contains(g) {
			return g
		}
	}
	return p.Masked().Addr().Next()
}

// Path is how the kernel reaches an address.
type Path struct {
	Link   int
	Device string
	MTU    int
	Direct bool // The address is on the link itself.
}

// Finder tells how an address is reached; an error where it is not.
type Finder func(netip.Addr) (Path, error)

// plan is what the kernel is to hold.
type plan struct {
	gateways []netip.Prefix // Addresses of the bridge's device, with the prefixes' lengths.
	routes   []route
	vxlan    *device        // Nil: none.
	mtu      int            // Of Pods' links; zero: the bridge's.
	pods     []netip.Prefix // This node's.
	cluster  []netip.Prefix // All Pods'.
	nodes    []netip.Addr
}

// route to the Pods of another node.
type route struct {
	to     netip.Prefix
	via    netip.Addr
	link   int        // Zero: the VXLAN device.
	source netip.Addr // Of what the host itself sends. The zero Addr: as the kernel likes.
}

// device is the VXLAN device.
type device struct {
	id    int
	port  int
	mac   net.HardwareAddr
	local netip.Addr
	link  int
	mtu   int
	peers []peer
}

// peer is another node behind the device.
type peer struct {
	mac      net.HardwareAddr
	outer    netip.Addr
	gateways []netip.Addr // What its routes go through.
}

// Bytes that VXLAN adds to a packet: of Ethernet, VXLAN and UDP, and the outer
// header of either family.
const (
	overhead4 = 14 + 8 + 8 + 20
	overhead6 = 14 + 8 + 8 + 40
)

// macOf is the address of a node's VXLAN device.
func macOf(node string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("weir " + node))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// makePlan is what the kernel is to hold, and what cannot be made. It is nil as
// long as the stream does not say where the node's own Pods are.
func makePlan(cfg *Config, c Cluster, find Finder) (*plan, []string) {
	own, ok := c.OwnNode()
	if !ok {
		return nil, nil
	}
	p := &plan{pods: own.PodCIDRs}
	var problems []string
	for _, cidr := range own.PodCIDRs {
		p.gateways = append(p.gateways, netip.PrefixFrom(c.Gateway(cidr), cidr.Bits()))
	}
	for _, n := range c.Nodes {
		p.cluster = append(p.cluster, n.PodCIDRs...)
		p.nodes = append(p.nodes, n.Addresses...)
	}
	var failed []string
	switch cfg.Mode {
	case Routed:
		failed = p.route(own, c, find)
	case VXLAN:
		failed = p.tunnel(cfg, own, c, find)
	}
	return p, append(problems, failed...)
}

// route is the mode Routed.
func (p *plan) route(own Node, c Cluster, find Finder) (problems []string) {
	for _, a := range own.Addresses {
		if path, err := find(a); err == nil && path.MTU > 0 && (p.mtu == 0 || path.MTU < p.mtu) {
			p.mtu = path.MTU
		}
	}
	for _, n := range c.Nodes {
		if n.Name == c.Own {
			continue
		}
		for _, cidr := range n.PodCIDRs {
			via := n.address(cidr.Addr().Is6())
			if !via.IsValid() {
				problems = append(problems, fmt.Sprintf("Pods of node %s in %s: the node has no address of their family", n.Name, cidr))
				continue
			}
			path, err := find(via)
			switch {
			case err != nil:
				problems = append(problems, fmt.Sprintf("Pods of node %s in %s: %v", n.Name, cidr, err))
			case !path.Direct:
				problems = append(problems, fmt.Sprintf("Pods of node %s in %s: %s is not on a link of this node: use --pod-network vxlan, or have your routers know of the Pods", n.Name, cidr, via))
			default:
				p.routes = append(p.routes, route{to: cidr, via: via, link: path.Link})
			}
		}
	}
	return problems
}

// tunnel is the mode VXLAN. The device speaks the family that the node has, IPv4
// where it has both.
func (p *plan) tunnel(cfg *Config, own Node, c Cluster, find Finder) (problems []string) {
	local := own.address(false)
	overhead := overhead4
	if !local.IsValid() {
		local, overhead = own.address(true), overhead6
	}
	if !local.IsValid() {
		return []string{"this node has no address to send VXLAN from"}
	}
	path, err := find(local)
	if err != nil {
		return []string{fmt.Sprintf("this node's address %s: %v", local, err)}
	}
	p.mtu = path.MTU - overhead
	p.vxlan = &device{id: cfg.VXLANID, port: cfg.VXLANPort, mac: macOf(c.Own), local: local, link: path.Link, mtu: p.mtu}
	for _, n := range c.Nodes {
		if n.Name == c.Own {
			continue
		}
		outer := n.address(local.Is6())
		if !outer.IsValid() {
			problems = append(problems, fmt.Sprintf("Pods of node %s: it has no address of the family of %s", n.Name, local))
			continue
		}
		to := peer{mac: macOf(n.Name), outer: outer}
		for _, cidr := range n.PodCIDRs {
			via := cidr.Masked().Addr() // Nobody has it, and no other node's.
			to.gateways = append(to.gateways, via)
			r := route{to: cidr, via: via}
			for _, g := range p.gateways {
				if g.Addr().Is6() == via.Is6() {
					r.source = g.Addr()
				}
			}
			p.routes = append(p.routes, r)
		}
		p.vxlan.peers = append(p.vxlan.peers, to)
	}
	slices.SortFunc(p.vxlan.peers, func(a, b peer) int { return a.outer.Compare(b.outer) })
	return problems
}
