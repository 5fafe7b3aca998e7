package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// deviceName is the VXLAN device's.
	deviceName = "weir-vx0"
	// protocol is the number by which the routes are known as ours.
	protocol = 87
)

// kernel brings the kernel's state to a plan's.
type kernel struct {
	cfg  *Config
	base bool // What the node's own Pods need is there.
}

func (k *kernel) apply(p *plan) error {
	err := k.host(p)
	k.base = err == nil
	vx, failed := k.device(p)
	err = errors.Join(err, failed)
	if failed == nil {
		err = errors.Join(err, k.routes(p, vx))
	}
	return err
}

// host gives the host its gateway addresses, and has it forward.
func (k *kernel) host(p *plan) error {
	link, err := netlink.LinkByName(k.cfg.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", k.cfg.Bridge, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", k.cfg.Bridge, err)
		}
	}
	for _, g := range p.gateways {
		if err := k.forward(g.Addr().Is6()); err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: ipNet(g)}
		if g.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s the address %s: %w", k.cfg.Bridge, g, err)
		}
	}
	return k.removeFormer(link, p)
}

// removeFormer takes addresses away that the host had of former prefixes: ours
// are the first of their prefix.
func (k *kernel) removeFormer(link netlink.Link, p *plan) error {
	has, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", k.cfg.Bridge, err)
	}
	for _, a := range has {
		is, ok := prefix(a.IPNet)
		wanted := false
		for _, g := range p.gateways {
			wanted = wanted || g == is
		}
		if !ok || wanted || is.IsSingleIP() || is.Addr() != is.Masked().Addr().Next() || is.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("take address %s from %s: %w", is, k.cfg.Bridge, err)
		}
		k.cfg.Logger.Info("address of a former Pod prefix removed", "address", is)
	}
	return nil
}

// forward has the host forward packets of a family.
func (k *kernel) forward(v6 bool) error {
	root := "/proc/sys/net"
	file := filepath.Join(root, "ipv4/ip_forward")
	if v6 {
		file = filepath.Join(root, "ipv6/conf/all/forwarding")
	}
	has, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read whether the host forwards: %w", err)
	}
	if strings.TrimSpace(string(has)) != "0" {
		return nil
	}
	if v6 { // A host that forwards takes no more routes from routers, unless told to.
		found, _ := filepath.Glob(filepath.Join(root, "ipv6/conf/*/accept_ra"))
		for _, ra := range found {
			if value, err := os.ReadFile(ra); err == nil && strings.TrimSpace(string(value)) == "1" && filepath.Base(filepath.Dir(ra)) != k.cfg.Bridge {
				_ = os.WriteFile(ra, []byte("2"), 0o644)
			}
		}
	}
	if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("have the host forward: %w", err)
	}
	k.cfg.Logger.Info("the host forwards from now on", "file", file)
	return nil
}

// device makes the VXLAN device as it is to be, or takes it away. It is nil
// where there is none.
func (k *kernel) device(p *plan) (netlink.Link, error) {
	has, err := netlink.LinkByName(deviceName)
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("find %s: %w", deviceName, err)
	}
	if has != nil && err == nil && (p.vxlan == nil || !p.vxlan.is(has)) {
		if err := netlink.LinkDel(has); err != nil {
			return nil, fmt.Errorf("remove %s: %w", deviceName, err)
		}
		has, err = nil, unix.ENODEV
	}
	if p.vxlan == nil {
		return nil, nil
	}
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = deviceName, p.vxlan.mtu, p.vxlan.mac
		has = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: p.vxlan.id, Port: p.vxlan.port, SrcAddr: p.vxlan.local.AsSlice(), VtepDevIndex: p.vxlan.link, Learning: false}
		if err := netlink.LinkAdd(has); err != nil {
			return nil, fmt.Errorf("make %s: %w", deviceName, err)
		}
		if has, err = netlink.LinkByName(deviceName); err != nil {
			return nil, fmt.Errorf("find %s: %w", deviceName, err)
		}
		// Nodes are told where each other are; the device needs no address of its own.
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", deviceName, "accept_ra"), []byte("0"), 0o644)
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", deviceName, "addr_gen_mode"), []byte("1"), 0o644)
	}
	if has.Attrs().MTU != p.vxlan.mtu {
		if err := netlink.LinkSetMTU(has, p.vxlan.mtu); err != nil {
			return nil, fmt.Errorf("set MTU of %s: %w", deviceName, err)
		}
	}
	if has.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(has); err != nil {
			return nil, fmt.Errorf("set %s up: %w", deviceName, err)
		}
	}
	return has, k.peers(p.vxlan, has.Attrs().Index)
}

// is says whether a link is the device.
func (d *device) is(link netlink.Link) bool {
	vx, ok := link.(*netlink.Vxlan)
	return ok && vx.VxlanId == d.id && vx.Port == d.port && vx.VtepDevIndex == d.link && !vx.Learning &&
		bytes.Equal(vx.HardwareAddr, d.mac) && vx.SrcAddr.Equal(d.local.AsSlice())
}

// neighbour is an entry of the neighbour or forwarding table, as it compares.
type neighbour struct {
	family int
	ip     netip.Addr
	mac    string
}

// peers makes the neighbours and forwarding entries of the device be those of
// the plan.
func (k *kernel) peers(d *device, link int) error {
	want := make(map[neighbour]bool)
	for _, p := range d.peers {
		want[neighbour{unix.AF_BRIDGE, p.outer, p.mac.String()}] = true
		for _, g := range p.gateways {
			family := netlink.FAMILY_V4
			if g.Is6() {
				family = netlink.FAMILY_V6
			}
			want[neighbour{family, g, p.mac.String()}] = true
		}
	}
	var errs []error
	for _, family := range []int{unix.AF_BRIDGE, netlink.FAMILY_V4, netlink.FAMILY_V6} {
		has, err := netlink.NeighList(link, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", deviceName, err)
		}
		for _, e := range has {
			ip, _ := netip.AddrFromSlice(e.IP)
			is := neighbour{family, ip.Unmap(), e.HardwareAddr.String()}
			permanent := e.State&netlink.NUD_PERMANENT != 0
			switch {
			case want[is] && permanent:
				delete(want, is)
			case permanent: // The rest are the kernel's own.
				if err := netlink.NeighDel(&e); err != nil && !errors.Is(err, unix.ENOENT) {
					errs = append(errs, fmt.Errorf("remove neighbour %s: %w", e.IP, err))
				}
			}
		}
	}
	for n := range want {
		mac, err := net.ParseMAC(n.mac)
		if err != nil {
			return err
		}
		e := &netlink.Neigh{LinkIndex: link, Family: n.family, State: netlink.NUD_PERMANENT, IP: n.ip.AsSlice(), HardwareAddr: mac}
		if n.family == unix.AF_BRIDGE {
			e.Flags = netlink.NTF_SELF
		}
		if err := netlink.NeighSet(e); err != nil {
			errs = append(errs, fmt.Errorf("add neighbour %s: %w", n.ip, err))
		}
	}
	return errors.Join(errs...)
}

// entry is a route as it compares.
type entry struct {
	to          netip.Prefix
	via, source netip.Addr
	link        int
}

// routes makes our routes be those of the plan.
func (k *kernel) routes(p *plan, vx netlink.Link) error {
	want := make(map[entry]bool)
	for _, r := range p.routes {
		e := entry{to: r.to, via: r.via, source: r.source, link: r.link}
		if e.link == 0 {
			e.link = vx.Attrs().Index
		}
		want[e] = true
	}
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		has, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: protocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range has {
			is := entry{link: r.LinkIndex}
			is.to, _ = prefix(r.Dst)
			if gw, ok := netip.AddrFromSlice(r.Gw); ok {
				is.via = gw.Unmap()
			}
			if src, ok := netip.AddrFromSlice(r.Src); ok {
				is.source = src.Unmap()
			}
			if want[is] {
				delete(want, is)
				continue
			}
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route %s: %w", is.to, err))
			}
		}
	}
	for e := range want {
		r := &netlink.Route{Dst: ipNet(e.to), Gw: e.via.AsSlice(), LinkIndex: e.link, Protocol: protocol, Table: unix.RT_TABLE_MAIN, Flags: int(netlink.FLAG_ONLINK)}
		if e.source.IsValid() {
			r.Src = e.source.AsSlice()
		}
		err := netlink.RouteAdd(r)
		switch {
		case errors.Is(err, unix.EEXIST):
			errs = append(errs, fmt.Errorf("add route %s: there is a route of somebody else's", e.to))
		case err != nil:
			errs = append(errs, fmt.Errorf("add route %s via %s: %w", e.to, e.via, err))
		}
	}
	return errors.Join(errs...)
}

// findPath asks the kernel how it reaches an address; of an address of the
// host's own, on which device it is.
func findPath(a netip.Addr) (Path, error) {
	found, err := netlink.RouteGet(a.AsSlice())
	if err != nil {
		return Path{}, fmt.Errorf("%s cannot be reached: %w", a, err)
	}
	if len(found) == 0 {
		return Path{}, fmt.Errorf("%s cannot be reached", a)
	}
	if found[0].Type == unix.RTN_LOCAL {
		return ownPath(a)
	}
	link, err := netlink.LinkByIndex(found[0].LinkIndex)
	if err != nil {
		return Path{}, fmt.Errorf("device on the way to %s: %w", a, err)
	}
	return Path{Link: link.Attrs().Index, Device: link.Attrs().Name, MTU: link.Attrs().MTU, Direct: found[0].Gw == nil && found[0].Via == nil}, nil
}

// ownPath finds the device that has an address.
func ownPath(a netip.Addr) (Path, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return Path{}, fmt.Errorf("list devices: %w", err)
	}
	for _, link := range links {
		has, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return Path{}, fmt.Errorf("list addresses: %w", err)
		}
		for _, x := range has {
			if x.IP.Equal(a.AsSlice()) {
				return Path{Link: link.Attrs().Index, Device: link.Attrs().Name, MTU: link.Attrs().MTU, Direct: true}, nil
			}
		}
	}
	return Path{}, fmt.Errorf("no device has the address %s", a)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones), true
}
