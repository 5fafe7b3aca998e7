package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/veth"
)

// Names in external_ids. Those that name the Pod, its MAC and addresses are what
// the shim reads; the rest is how CHECK and GC know a port.
const (
	idNamespace = "pod-namespace"
	idName      = "pod-name"
	idUID       = "pod-uid"
	idMAC       = "attached-mac"
	idAddresses = "ip-addresses"
	idContainer = "container-id"
	idDevice    = "container-iface"
	idNetNS     = "container-netns"
	idNetwork   = "cni-network"
)

// HostName is the name of the host's end of a container's link: the same for
// each call about it, and no longer than the kernel takes.
func HostName(containerID, device string) string {
	sum := sha256.Sum256([]byte(containerID + "\x00" + device))
	return "weir" + hex.EncodeToString(sum[:])[:11]
}

// macOf makes the MAC of a Pod from its first address: of an IPv4 address, its
// bytes; of an IPv6 address, a hash.
func macOf(ip netip.Addr) net.HardwareAddr {
	tail := ip.AsSlice()
	if ip.Is6() {
		sum := sha256.Sum256(tail)
		tail = sum[:4]
	}
	return append(net.HardwareAddr{0x0a, 0x58}, tail...)
}

// addresses are those of a result, and the gateways, each as the Pod has them:
// it is alone on its link.
func addresses(r *current.Result) ([]veth.Address, error) {
	var out []veth.Address
	for _, c := range r.IPs {
		ip, ok := netip.AddrFromSlice(c.Address.IP)
		if !ok {
			return nil, fmt.Errorf("address %s is none", c.Address.IP)
		}
		a := veth.Address{IP: ip.Unmap()}
		if gw, ok := netip.AddrFromSlice(c.Gateway); ok && !gw.IsUnspecified() {
			a.Gateway = gw.Unmap()
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no address")
	}
	return out, nil
}

// attachment is one interface of one container, as it is to be.
type attachment struct {
	network     string // Name of the network.
	containerID string
	pod         pod
	link        veth.Config
}

// ips are the Pod's addresses.
func (a *attachment) ips() (list []netip.Addr) {
	for _, addr := range a.link.Addresses {
		list = append(list, addr.IP)
	}
	return list
}

// portAddresses are those that a port's external_ids name; none where ADD did not
// write them.
func portAddresses(p bridge.Port) (list []netip.Addr) {
	for text := range strings.SplitSeq(p.ExternalIDs[idAddresses], ",") {
		if ip, err := netip.ParseAddr(text); err == nil {
			list = append(list, ip)
		}
	}
	return list
}

func (a *attachment) externalIDs() map[string]string {
	var ips []string
	for _, ip := range a.ips() {
		ips = append(ips, ip.String())
	}
	ids := map[string]string{idNamespace: a.pod.namespace, idName: a.pod.name, idMAC: a.link.MAC.String(), idAddresses: strings.Join(ips, ","),
		idContainer: a.containerID, idDevice: a.link.Pod, idNetNS: a.link.NetNS, idNetwork: a.network}
	if a.pod.uid != "" {
		ids[idUID] = a.pod.uid
	}
	return ids
}

// onBridge says how the attachment's port differs from what ADD makes; nil where
// it does not.
func (a *attachment) onBridge(ports []bridge.Port, name string) error {
	p := find(ports, a.link.Host)
	if p == nil {
		return fmt.Errorf("port %s is not on bridge %s", a.link.Host, name)
	}
	for id, want := range a.externalIDs() {
		if has := p.ExternalIDs[id]; has != want {
			return fmt.Errorf("port %s has external_ids:%s=%q and not %q", p.Name, id, has, want)
		}
	}
	if p.Number == 0 {
		return fmt.Errorf("port %s has no OpenFlow port: %s", p.Name, p.Error)
	}
	return nil
}

func find(ports []bridge.Port, name string) *bridge.Port {
	for i := range ports {
		if ports[i].Name == name {
			return &ports[i]
		}
	}
	return nil
}

// result is what ADD answers.
func (a *attachment) result(cfg *Config, r *current.Result, hostMAC net.HardwareAddr) *current.Result {
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: r.DNS, Interfaces: []*current.Interface{
		{Name: a.link.Host, Mac: hostMAC.String(), Mtu: a.link.MTU},
		{Name: a.link.Pod, Mac: a.link.MAC.String(), Mtu: a.link.MTU, Sandbox: a.link.NetNS},
	}}
	if !cfg.DNS.IsEmpty() {
		out.DNS = cfg.DNS
	}
	for _, addr := range a.link.Addresses {
		ip := &current.IPConfig{Interface: current.Int(1), Address: net.IPNet{IP: addr.IP.AsSlice(), Mask: net.CIDRMask(addr.IP.BitLen(), addr.IP.BitLen())}}
		if addr.Gateway.IsValid() {
			ip.Gateway = addr.Gateway.AsSlice()
			out.Routes = append(out.Routes, defaultRoute(addr))
		}
		out.IPs = append(out.IPs, ip)
	}
	return out
}
