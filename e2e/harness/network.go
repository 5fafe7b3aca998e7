package harness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// Network is namespaces on one link, for what is no Cluster.
type Network struct {
	NS      *NetNS     // Of the link.
	Address netip.Addr // Of NS.

	prefix string
	hosts  []*NetNS
}

// NewNetwork makes a network with nobody but NS on it.
func NewNetwork(ctx context.Context) (n *Network, err error) {
	sweep(ctx)
	n = &Network{Address: fabric4, prefix: fmt.Sprintf("%s%d-%d-", namePrefix, os.Getpid(), serial.Add(1))}
	if n.NS, err = newNetNS(ctx, n.prefix+"fab"); err != nil {
		return nil, err
	}
	if err := n.NS.IP(ctx, "link add fab0 type bridge", "link set fab0 up", "addr add "+fabric4.String()+"/24 dev fab0"); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

// Host adds a namespace that forwards, as the nodes of a cluster do.
func (n *Network) Host(ctx context.Context) (*NetNS, netip.Addr, error) {
	i := len(n.hosts) + 1
	address := netip.MustParseAddr(fmt.Sprintf("198.18.0.%d", 9+i))
	ns, err := newNetNS(ctx, fmt.Sprintf("%sh%d", n.prefix, i))
	if err != nil {
		return nil, address, err
	}
	n.hosts = append(n.hosts, ns)
	link := fmt.Sprintf("h%d", i)
	if err := n.NS.IP(ctx, fmt.Sprintf("link add %s type veth peer name uplink netns %s", link, ns.Name), fmt.Sprintf("link set %s master fab0 up", link)); err != nil {
		return nil, address, err
	}
	if err := ns.IP(ctx, "link set uplink up", fmt.Sprintf("addr add %s/24 dev uplink", address), fmt.Sprintf("route add default via %s", fabric4)); err != nil {
		return nil, address, err
	}
	return ns, address, ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
}

// Stop removes the namespaces.
func (n *Network) Stop() error {
	var errs []error
	for _, ns := range append(n.hosts, n.NS) {
		errs = append(errs, ns.remove())
	}
	return errors.Join(errs...)
}
