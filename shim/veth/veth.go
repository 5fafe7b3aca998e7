// Package veth makes, reads and removes the links of Pods: a pair of devices,
// one end in the Pod's network namespace and one on the host, for the bridge.
//
// Make moves one end into the namespace before anything is up; what it made it
// takes back when it fails. Peer reads the Pod's end, also of links that others
// made. Everything is netlink and sockets; no command is run.
//
// The CNI plugin makes links, in the host's namespace as its own; the shim only
// reads. Read veth_test.go first.
package veth

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Address of a Pod, and the gateway that its family's default route goes
// through. Gateway may be the zero Addr: no route.
type Address struct {
	IP, Gateway netip.Addr
}

// Config of a link.
type Config struct {
	Host      string // Name of the host's end.
	Pod       string // Name of the Pod's end.
	NetNS     string // Path of the Pod's network namespace.
	MAC       net.HardwareAddr
	MTU       int // Of both ends.
	Addresses []Address
	// NoChecksumOffload has the Pod's kernel work out checksums itself, since a
	// userspace datapath hands packets on as they come.
	NoChecksumOffload bool
}

// Made is what a link came to be.
type Made struct {
	HostMAC net.HardwareAddr
}

// Make makes a link. That the Pod has an interface of that name is an error; if
// it has none, a device of the host end's name is one that a former try left,
// and goes.
func Make(cfg Config) (made Made, err error) {
	pod, err := ns.GetNS(cfg.NetNS)
	if err != nil {
		return made, fmt.Errorf("network namespace of the Pod: %w", err)
	}
	defer pod.Close()
	err = pod.Do(func(ns.NetNS) error {
		if _, err := netlink.LinkByName(cfg.Pod); err == nil {
			return fmt.Errorf("the Pod has an interface %s already", cfg.Pod)
		}
		return nil
	})
	if err != nil {
		return made, err
	}
	if err := Remove(cfg.Host); err != nil {
		return made, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = cfg.Host, cfg.MTU
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: cfg.Pod, PeerHardwareAddr: cfg.MAC, PeerNamespace: netlink.NsFd(pod.Fd()), PeerMTU: uint32(cfg.MTU)}
	if err := netlink.LinkAdd(link); err != nil {
		return made, fmt.Errorf("make link %s to %s: %w", cfg.Host, cfg.Pod, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Remove(cfg.Host))
		}
	}()
	// The host itself says nothing on the link.
	if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", cfg.Host, "disable_ipv6"), []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return made, fmt.Errorf("keep IPv6 off %s: %w", cfg.Host, err)
	}
	host, err := netlink.LinkByName(cfg.Host)
	if err != nil {
		return made, fmt.Errorf("find link %s: %w", cfg.Host, err)
	}
	made.HostMAC = host.Attrs().HardwareAddr
	if err := netlink.LinkSetUp(host); err != nil {
		return made, fmt.Errorf("set link %s up: %w", cfg.Host, err)
	}
	return made, pod.Do(func(ns.NetNS) error { return cfg.setUpPod() })
}

// setUpPod is what is done inside of the Pod's namespace.
func (cfg *Config) setUpPod() error {
	if cfg.NoChecksumOffload {
		if err := stopChecksumOffload(cfg.Pod); err != nil {
			return err
		}
	}
	for _, a := range cfg.Addresses {
		if a.IP.Is6() { // Container runtimes switch it off where they know of no address.
			for _, file := range []string{cfg.Pod + "/disable_ipv6", cfg.Pod + "/accept_ra"} {
				if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", file), []byte("0"), 0o644); err != nil {
					return fmt.Errorf("set up IPv6 of %s: %w", cfg.Pod, err)
				}
			}
			break
		}
	}
	link, err := netlink.LinkByName(cfg.Pod)
	if err != nil {
		return fmt.Errorf("find link %s: %w", cfg.Pod, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", cfg.Pod, err)
	}
	for _, a := range cfg.Addresses {
		addr := &netlink.Addr{IPNet: hostNet(a.IP)}
		if a.IP.Is6() {
			addr.Flags = unix.IFA_F_NODAD // Nobody else can have it: the bridge sees to that.
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give %s the address %s: %w", cfg.Pod, a.IP, err)
		}
	}
	for _, a := range cfg.Addresses {
		if !a.Gateway.IsValid() {
			continue
		}
		for _, r := range routes(link.Attrs().Index, a) {
			if err := netlink.RouteReplace(r); err != nil {
				return fmt.Errorf("add route %s: %w", r, err)
			}
		}
	}
	return nil
}

// routes are those of an address: to the gateway on the link, and to the rest
// through it.
func routes(link int, a Address) []*netlink.Route {
	all := &net.IPNet{IP: make(net.IP, a.IP.BitLen()/8), Mask: net.CIDRMask(0, a.IP.BitLen())}
	return []*netlink.Route{
		{LinkIndex: link, Dst: hostNet(a.Gateway), Scope: netlink.SCOPE_LINK},
		{LinkIndex: link, Dst: all, Gw: a.Gateway.AsSlice()},
	}
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// Remove removes a link by its host end, and with that the Pod's; that it is
// not there is no error.
func Remove(host string) error {
	link, err := netlink.LinkByName(host)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", host, err)
	}
	return nil
}

// MTU is that of a device of the host.
func MTU(device string) (int, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", device, err)
	}
	return link.Attrs().MTU, nil
}

// Peer is the address of a device in the network namespace at the path.
func Peer(netns, device string) (mac net.HardwareAddr, err error) {
	err = ns.WithNetNSPath(netns, func(ns.NetNS) error {
		link, err := netlink.LinkByName(device)
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read address of %s in %s: %w", device, netns, err)
	}
	return mac, nil
}

// Check says how a link differs from what Make makes of the configuration; nil
// where it does not.
func Check(cfg Config) error {
	host, err := netlink.LinkByName(cfg.Host)
	if err != nil {
		return fmt.Errorf("link %s of the host: %w", cfg.Host, err)
	}
	if host.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("link %s of the host is down", cfg.Host)
	}
	return ns.WithNetNSPath(cfg.NetNS, func(ns.NetNS) error {
		link, err := netlink.LinkByName(cfg.Pod)
		if err != nil {
			return fmt.Errorf("link %s of the Pod: %w", cfg.Pod, err)
		}
		if host.Attrs().ParentIndex != link.Attrs().Index {
			return fmt.Errorf("link %s of the Pod is not the other end of %s", cfg.Pod, cfg.Host)
		}
		return cfg.checkPod(link)
	})
}

func (cfg *Config) checkPod(link netlink.Link) error {
	attrs := link.Attrs()
	if attrs.Flags&net.FlagUp == 0 {
		return fmt.Errorf("link %s of the Pod is down", cfg.Pod)
	}
	if cfg.MAC != nil && attrs.HardwareAddr.String() != cfg.MAC.String() {
		return fmt.Errorf("link %s of the Pod has the address %s and not %s", cfg.Pod, attrs.HardwareAddr, cfg.MAC)
	}
	if cfg.MTU != 0 && attrs.MTU != cfg.MTU {
		return fmt.Errorf("link %s of the Pod has an MTU of %d and not %d", cfg.Pod, attrs.MTU, cfg.MTU)
	}
	has, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", cfg.Pod, err)
	}
	known := make(map[netip.Addr]bool)
	for _, a := range has {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			known[ip.Unmap()] = true
		}
	}
	for _, a := range cfg.Addresses {
		if !known[a.IP] {
			return fmt.Errorf("link %s of the Pod has lost the address %s", cfg.Pod, a.IP)
		}
		if !a.Gateway.IsValid() {
			continue
		}
		for _, want := range routes(attrs.Index, a) {
			if err := routed(want); err != nil {
				return err
			}
		}
	}
	return nil
}

// routed says whether a route is there.
func routed(want *netlink.Route) error {
	family := netlink.FAMILY_V4
	if len(want.Dst.IP) == net.IPv6len {
		family = netlink.FAMILY_V6
	}
	has, err := netlink.RouteListFiltered(family, want, netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range has {
		ones, _ := want.Dst.Mask.Size()
		if (ones == 0 && isDefault(r) || r.Dst != nil && r.Dst.String() == want.Dst.String()) && (want.Gw == nil || r.Gw.Equal(want.Gw)) {
			return nil
		}
	}
	return fmt.Errorf("route %s of the Pod is gone", want.Dst)
}

// isDefault tells a default route, whose destination may be left out.
func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}
