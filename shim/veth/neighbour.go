package veth

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetNeighbours tells the host's kernel the MAC of addresses behind a device, so
// that it never asks for it. While it asks it keeps the packets, for seconds, and
// what it kept before goes out at once.
func SetNeighbours(device string, mac net.HardwareAddr, addrs []netip.Addr) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find link %s: %w", device, err)
	}
	for _, a := range addrs {
		n := neighbour(link, a)
		n.State, n.HardwareAddr = netlink.NUD_PERMANENT, mac
		err := netlink.NeighSet(n)
		if a.Is6() && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)) {
			continue // IPv6 is off on the device, or in the kernel: nothing goes there.
		}
		if err != nil {
			return fmt.Errorf("tell the kernel of %s on %s: %w", a, device, err)
		}
	}
	return nil
}

// RemoveNeighbours takes back what SetNeighbours did; that there is nothing to
// take back is no error.
func RemoveNeighbours(device string, addrs []netip.Addr) error {
	link, err := netlink.LinkByName(device)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", device, err)
	}
	for _, a := range addrs {
		if err := netlink.NeighDel(neighbour(link, a)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("have the kernel forget %s on %s: %w", a, device, err)
		}
	}
	return nil
}

func neighbour(link netlink.Link, a netip.Addr) *netlink.Neigh {
	n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: a.AsSlice(), Family: unix.AF_INET}
	if a.Is6() {
		n.Family = unix.AF_INET6
	}
	return n
}
