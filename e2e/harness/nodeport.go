package harness

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// Proxied is a port of the node's addresses, or of one address that nobody has,
// and what serves it.
type Proxied struct {
	Protocol  api.Protocol
	Port      uint16
	VIP       netip.Addr // The zero Addr: a port on nodes.
	Endpoints []netip.AddrPort
}

// proxyTable is the table of SetProxied.
const proxyTable = "inet weir-e2e-proxy"

// SetProxied has the node's host do what kube-proxy does in its nftables mode: it
// translates what comes for the ports, from anywhere, to one of their endpoints of
// the same family, with an address of its own as the source, and what it sends
// itself to VIPs. It replaces what was set before.
func (n *Node) SetProxied(ctx context.Context, ports []Proxied) error {
	if len(ports) == 0 && !n.proxies {
		return nil
	}
	n.proxies = true
	var node, own strings.Builder
	for _, p := range ports {
		for _, family := range []string{"ipv4", "ipv6"} {
			if p.VIP.IsValid() && p.VIP.Is6() != (family == "ipv6") {
				continue
			}
			if to := translation(p.Endpoints, family); to != "" {
				at := fmt.Sprintf("meta nfproto %s %s dport %d", family, strings.ToLower(p.Protocol.String()), p.Port)
				if p.VIP.IsValid() {
					fmt.Fprintf(&own, "%s %s daddr %s %s\n", at, header[family], p.VIP, to)
				} else {
					fmt.Fprintf(&node, "fib daddr type local %s meta mark set 0x4000 %s\n", at, to)
				}
			}
		}
	}
	text := fmt.Sprintf("table %[1]s\ndelete table %[1]s\n", proxyTable)
	if len(ports) > 0 {
		text += fmt.Sprintf(`table %s {
chain prerouting { type nat hook prerouting priority dstnat
%[2]s}
chain output { type nat hook output priority -100
%[2]s%[3]s}
chain postrouting { type nat hook postrouting priority srcnat
meta mark 0x4000 masquerade
}
}
`, proxyTable, node.String(), own.String())
	}
	nft := n.NS.Command(ctx, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(text)
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("node %s: nft: %w: %s\n%s", n.Name, err, out, text)
	}
	return nil
}

// header is how nft names a family's header.
var header = map[string]string{"ipv4": "ip", "ipv6": "ip6"}

// translation sends to one of the endpoints of a family; empty where there is none.
func translation(endpoints []netip.AddrPort, family string) string {
	var choice []string
	for _, e := range endpoints {
		if e.Addr().Is6() == (family == "ipv6") {
			choice = append(choice, fmt.Sprintf("%d : %s . %d", len(choice), e.Addr(), e.Port()))
		}
	}
	if len(choice) == 0 {
		return ""
	}
	return fmt.Sprintf("dnat %s to numgen random mod %d map { %s }", header[family], len(choice), strings.Join(choice, ", "))
}
