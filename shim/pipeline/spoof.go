package pipeline

import (
	"net/netip"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// SpoofController is the controller id of the connection that reports of forged
// packets go to, and SpoofMeter the meter that limits them: a flood of forged
// packets takes nothing of what the log may report.
const (
	SpoofController = 4
	SpoofMeter      = 3
)

// spoofRate is how many forged packets a second are reported. All are counted.
const spoofRate = 100

// Priorities of SpoofGuard, beside prioNormal and prioHigh of what may pass.
const (
	prioSpoof     = prioMiss + 1   // What nothing else of its port's takes.
	prioQuiet     = prioMiss + 2   // Dropped without being a forgery.
	prioForgedND  = prioNormal + 1 // It must not pass as plain IPv6.
	prioQuietND   = prioNormal + 2
	prioForgedAny = prioTop
)

var (
	linkLocal    = netip.MustParsePrefix("fe80::/10")
	unspecified4 = host(netip.IPv4Unspecified())
	unspecified6 = host(netip.IPv6Unspecified())
)

var reportSpoof = actions(openflow.Controller{ControllerID: SpoofController, MaxLen: logBytes, MeterID: SpoofMeter})

// spoofFlows drop what an open port sends in another's name. What is forged is
// counted and reported; what a Pod's own stack says before it has an address, or
// on its link, is not: none of it leaves the port, and no rule is about it.
//
//	a router's message; neighbour discovery for another's address      forged
//	own MAC, from a link-local or no address, claiming none but those  quiet
//	all else that may not pass                                         forged
func (c *Compiler) spoofFlows(ep *endpoint) {
	port, mac := openflow.InPort(ep.port.OFPort), openflow.EthSrc(ep.port.MAC)
	put := func(kind CookieKind, priority uint16, acts openflow.Actions, match ...openflow.Field) {
		f := openflow.Flow{Table: TableSpoofGuard, Priority: priority, Match: openflow.NewMatch(append(match, port)...),
			Cookie: cookie(kind, ep.port.OFPort), Actions: acts}
		c.flows.set(ep.owner, f)
		ep.flows = append(ep.flows, f.Key())
	}
	forged := func(priority uint16, match ...openflow.Field) { put(KindSpoof, priority, reportSpoof, match...) }
	quiet := func(priority uint16, match ...openflow.Field) {
		put(KindPort, priority, openflow.Drop(), append(match, mac)...)
	}

	for _, t := range routerMessages {
		forged(prioForgedAny, openflow.ICMPv6Type(t))
	}
	for _, t := range []uint8{openflow.NDSolicit, openflow.NDAdvert} {
		forged(prioForgedND, openflow.ICMPv6Type(t))
	}
	for _, ll := range [][6]byte{ep.port.MAC, {}} { // Zero: the option is left out.
		quiet(prioQuietND, openflow.IPSrc(linkLocal), openflow.ICMPv6Type(openflow.NDSolicit), openflow.NDSll(ll))
		quiet(prioQuietND, openflow.IPSrc(linkLocal), openflow.ICMPv6Type(openflow.NDAdvert), openflow.NDTarget(linkLocal), openflow.NDTll(ll))
	}
	for _, own := range append([]netip.Prefix{linkLocal}, ep.hosts(1)...) { // Is the address free?
		quiet(prioQuietND, openflow.IPSrc(unspecified6), openflow.ICMPv6Type(openflow.NDSolicit), openflow.NDTarget(own), openflow.NDSll([6]byte{}))
	}
	for _, own := range ep.hosts(0) {
		quiet(prioQuiet, openflow.ARPSpa(unspecified4), openflow.ARPTpa(own), openflow.ARPSha(ep.port.MAC))
	}
	for _, from := range []netip.Prefix{linkLocal, unspecified6, unspecified4} {
		quiet(prioQuiet, openflow.IPSrc(from))
	}
	forged(prioSpoof)
}

// hosts are the endpoint's addresses of a family.
func (ep *endpoint) hosts(f int) (out []netip.Prefix) {
	for _, ip := range ep.ips {
		if family(ip) == f {
			out = append(out, host(ip))
		}
	}
	return out
}

// SpoofFilter is by what the flows that count forged packets are read.
func SpoofFilter() openflow.FlowFilter {
	return openflow.FlowFilter{Table: TableSpoofGuard, Cookie: cookie(KindSpoof, 0), CookieMask: ^uint64(0xffffffff)}
}

// StrangerFilter is by what the flow is read that counts what came from a port
// that is unknown or not open. There is none while a bridge is shared.
func StrangerFilter() openflow.FlowFilter {
	return openflow.FlowFilter{Table: TableClassifier, Cookie: cookie(KindStatic, 0), CookieMask: ^uint64(0)}
}

// SpoofedPort is the port whose forged packets a flow counts; false for another
// flow.
func SpoofedPort(f openflow.Flow) (ofport uint32, ok bool) {
	kind, id, ours := ParseCookie(f.Cookie)
	return id, ours && kind == KindSpoof
}

// Pod names a Pod.
type Pod struct{ Namespace, Name string }

// Owners are the Pods of the open ports.
func (c *Compiler) Owners() map[uint32]Pod {
	out := make(map[uint32]Pod, len(c.ports))
	for ofport, ep := range c.ports {
		out[ofport] = Pod{ep.wire.GetNamespace(), ep.wire.GetName()}
	}
	return out
}
