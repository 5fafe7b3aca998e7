// Package hostfw is what Weir has in the host's own firewall: an nftables table
// named weir in each family that it needs, and nothing outside of it.
//
// HideFromHost keeps the host's own network stack away from the ports of a
// userspace datapath, which gets a copy of what they receive and leaves the
// original to the host: without it a Pod could be answered and forwarded by the
// host, past the bridge.
//
// MarkOwn sets the mark by which the bridge tells what the host itself sends
// to its Pods (probes, which are always allowed) from what it forwards and
// masquerades (which is judged): packets that leave the host's own sockets for
// the bridge get a source MAC of their own. Packets without it are judged, so
// that a host without the rule fails closed.
//
// Masquerade has what Pods send out of the cluster bear the node's own address.
//
// Policies are what policies say of the host itself.
//
// Each call is one nftables transaction that makes the table what it must be.
//
// Read hostfw_test.go first, and packets_test.go for policies.
package hostfw

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"
)

// table is the name of our tables.
const table = "weir"

// ownMark is the bit of the packet mark that says "from this host's sockets",
// between the output hook and the device.
const ownMark = "0x00100000"

// MarkOwn makes packets that the host itself sends out of the device carry the
// source MAC.
func MarkOwn(ctx context.Context, device string, mac [6]byte) error {
	inet, err := knftables.New(knftables.InetFamily, table)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := inet.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("what the host sends to its Pods")})
	tx.Add(&knftables.Chain{Name: "own-output", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.OutputHook), Priority: knftables.PtrTo(knftables.ManglePriority)})
	tx.Flush(&knftables.Chain{Name: "own-output"})
	tx.Add(&knftables.Rule{Chain: "own-output", Rule: fmt.Sprintf("oifname %q meta mark set meta mark or %s", device, ownMark)})
	if err := inet.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: mark the host's own packets: %w", err)
	}
	netdev, err := knftables.New(knftables.NetDevFamily, table)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx = netdev.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: "own-egress", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.EgressHook), Priority: knftables.PtrTo(knftables.FilterPriority), Device: knftables.PtrTo(device)})
	tx.Flush(&knftables.Chain{Name: "own-egress"})
	tx.Add(&knftables.Rule{Chain: "own-egress", Rule: fmt.Sprintf("meta mark and %s != 0 ether saddr set %s", ownMark, net.HardwareAddr(mac[:]))})
	if err := netdev.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: address the host's own packets: %w", err)
	}
	return nil
}

// HideFromHost makes the host ignore what it receives on the devices.
func HideFromHost(ctx context.Context, devices []string) error {
	nft, err := knftables.New(knftables.NetDevFamily, table)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	for _, d := range devices {
		chain := "port-" + d
		tx.Add(&knftables.Chain{Name: chain, Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.IngressHook),
			Priority: knftables.PtrTo(knftables.RawPriority), Device: knftables.PtrTo(d)})
		tx.Flush(&knftables.Chain{Name: chain})
		tx.Add(&knftables.Rule{Chain: chain, Rule: "drop"})
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: hide ports from the host: %w", err)
	}
	return nil
}

// Masquerade makes exactly this be masqueraded: what comes from the pods'
// prefixes and goes to none of the cluster's prefixes, to none of its nodes'
// addresses, and not out of the bridge. Of no pods, nothing.
func Masquerade(ctx context.Context, bridge string, pods, cluster []netip.Prefix, nodes []netip.Addr) error {
	nft, err := knftables.New(knftables.InetFamily, table)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := nft.NewTransaction()
	chain := &knftables.Chain{Name: "pods-out", Type: knftables.PtrTo(knftables.NATType), Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority)}
	tx.Add(&knftables.Table{})
	tx.Add(chain)
	tx.Flush(&knftables.Chain{Name: chain.Name})
	for _, f := range []struct {
		name string
		v6   bool
		kind string
	}{{"ip", false, "ipv4_addr"}, {"ip6", true, "ipv6_addr"}} {
		of := func(list []netip.Prefix) (out []string) {
			for _, p := range list {
				if p.Addr().Is6() == f.v6 {
					out = append(out, p.String())
				}
			}
			slices.Sort(out)
			return slices.Compact(out)
		}
		var hosts []string
		for _, a := range nodes {
			if a.Is6() == f.v6 {
				hosts = append(hosts, a.String())
			}
		}
		slices.Sort(hosts)
		put := func(name string, flags []knftables.SetFlag, elements []string) string {
			set := &knftables.Set{Name: name + "-" + f.name, Type: f.kind, Flags: flags}
			tx.Add(set)
			tx.Flush(&knftables.Set{Name: set.Name})
			for _, e := range elements {
				tx.Add(&knftables.Element{Set: set.Name, Key: []string{e}})
			}
			return "@" + set.Name
		}
		prefixes := []knftables.SetFlag{knftables.IntervalFlag}
		tx.Add(&knftables.Rule{Chain: chain.Name, Rule: knftables.Concat(f.name, "saddr", put("pods", prefixes, of(pods)),
			f.name, "daddr !=", put("cluster", prefixes, of(cluster)), f.name, "daddr !=", put("nodes", nil, slices.Compact(hosts)),
			fmt.Sprintf("oifname != %q", bridge), "masquerade")})
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: masquerade: %w", err)
	}
	return nil
}

// Remove takes our tables away.
func Remove(ctx context.Context) error {
	for _, family := range []knftables.Family{knftables.InetFamily, knftables.NetDevFamily} {
		nft, err := knftables.New(family, table)
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{}) // Or there might be none to delete.
		tx.Delete(&knftables.Table{})
		if err := nft.Run(ctx, tx); err != nil {
			return fmt.Errorf("nftables: remove table %s %s: %w", family, table, err)
		}
	}
	return nil
}
