package pipeline

import (
	"maps"
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// endpoint is a Pod that the state places on this node. Its traffic flows once
// it has a port.
type endpoint struct {
	wire     *policyv1.Endpoint
	ips      []netip.Addr
	families [2]bool
	groups   map[storage.ScopeID]struct{}
	port     *Port  // Nil: closed.
	owner    string // Of its flows: of two Pods of one address, the one with a port has it.
	flows    []openflow.FlowKey
	verdicts []openflow.FlowKey // Isolation, and what goes with the staged world.
	isolated []*isolation       // By which it is.
	judged   [directions]bool   // By the staged world.
}

// either is the family of what is of both; families is the length of what is
// indexed by family.
const (
	either   = 2
	families = 3
)

// family is 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func addrs(list [][]byte) []netip.Addr {
	var out []netip.Addr
	for _, b := range list {
		if a, ok := netip.AddrFromSlice(b); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// setEndpoint puts an endpoint in the place of its former content; nil takes it
// out. Its port stays where the Pod does.
func (c *Compiler) setEndpoint(id storage.ScopeID, key string, w *policyv1.Endpoint) {
	var port *Port
	if former := c.endpoints[key]; former != nil {
		port = former.port
		c.detach(former)
		c.named(key, former.ips, -1)
		c.giveUp(key, former.ips)
		delete(c.endpoints, key)
		delete(c.nodeScope, key)
		if uid := former.wire.GetUid(); c.byUID[uid] == key {
			delete(c.byUID, uid)
		}
	}
	if w == nil {
		return
	}
	ep := &endpoint{wire: w, ips: addrs(w.GetIps()), groups: make(map[storage.ScopeID]struct{})}
	for _, a := range ep.ips {
		ep.families[family(a)] = true
	}
	if ids, err := scopeIDs(w.GetGroups()); err == nil {
		for _, g := range ids {
			ep.groups[g] = struct{}{}
		}
	}
	c.endpoints[key], c.nodeScope[key] = ep, id
	if w.GetUid() != "" {
		c.byUID[w.GetUid()] = key
	}
	c.named(key, ep.ips, 1)
	c.attach(ep, port)
}

// attach makes the flows of an endpoint and brings it under the rules that
// guard it. With no port it stays closed: what is sent to it is dropped.
func (c *Compiler) attach(ep *endpoint, port *Port) {
	name := ep.wire.GetNamespace() + "/" + ep.wire.GetName()
	ep.owner = "2 closed " + name
	if port != nil {
		ep.owner = "1 open " + name
		p := *port
		ep.port = &p
		c.setPort(p.OFPort, ep)
	}
	c.portFlows(ep)
	for g := range ep.groups {
		link(c.inGroup, g, ep)
	}
	if ep.port == nil {
		return
	}
	for p := range c.guarding(ep) {
		for _, r := range p.rules {
			if r.world == enforced && r.appliesTo(ep) {
				c.guard(r.body, ep)
			}
		}
	}
	c.reassess[ep] = struct{}{}
}

// detach undoes attach.
func (c *Compiler) detach(ep *endpoint) {
	if ep.port != nil {
		c.setJudged(ep, [directions]bool{})
		for p := range c.guarding(ep) {
			for _, r := range p.rules {
				if r.world == enforced {
					c.unguard(r.body, ep)
				}
			}
		}
		c.setPort(ep.port.OFPort, nil)
	}
	for g := range ep.groups {
		unlink(c.inGroup, g, ep)
	}
	for _, key := range slices.Concat(ep.flows, ep.verdicts) {
		c.flows.unset(ep.owner, key)
	}
	c.release(ep.isolated)
	ep.flows, ep.verdicts, ep.isolated, ep.port = nil, nil, nil, nil
	delete(c.reassess, ep)
}

// setPort takes over which endpoint a port is; nil for none.
func (c *Compiler) setPort(ofport uint32, ep *endpoint) {
	remember(c, c.history.ports, ofport, c.ports[ofport])
	c.naming.stale = true
	if ep == nil {
		delete(c.ports, ofport)
	} else {
		c.ports[ofport] = ep
	}
}

// guarding are the policies that have a group of the endpoint among those that
// they apply to; none for nil.
func (c *Compiler) guarding(ep *endpoint) map[*policy]struct{} {
	out := make(map[*policy]struct{})
	if ep == nil {
		return out
	}
	for g := range ep.groups {
		maps.Copy(out, c.guards[g])
	}
	return out
}

// targetField matches the traffic of a local port in a direction.
func targetField(dir policyv1.Direction, port uint32) openflow.Field {
	if dir == policyv1.Direction_DIRECTION_EGRESS {
		return openflow.InPort(port)
	}
	return openflow.Reg(regOutput, port, 0xffffffff)
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// portFlows are the flows of one endpoint that no policy has a part in.
func (c *Compiler) portFlows(ep *endpoint) {
	put := func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field) {
		var id uint32
		if ep.port != nil {
			id = ep.port.OFPort
		}
		f := openflow.Flow{Table: table, Priority: priority, Match: openflow.NewMatch(match...), Cookie: cookie(KindPort, id), Actions: acts}
		c.flows.set(ep.owner, f)
		ep.flows = append(ep.flows, f.Key())
	}
	if c.cfg.Uplink != 0 && c.sharing == nil {
		for _, ip := range ep.ips { // Else it is for the uplink.
			put(TableResolution, prioNormal, actions(openflow.GotoTable(TableConntrack)), openflow.IPDst(host(ip)))
		}
	}
	if ep.port == nil {
		if c.sharing != nil {
			return // Others' flows may serve it.
		}
		for _, ip := range ep.ips {
			put(TableForwarding, prioNormal, openflow.Drop(), openflow.IPDst(host(ip)))
		}
		return
	}
	port, mac := ep.port.OFPort, ep.port.MAC
	fromPort := actions(openflow.SetReg(regSource, sourcePod, maskSource), openflow.GotoTable(TableSpoofGuard))
	if c.sharing == nil {
		put(TableClassifier, prioNormal, fromPort, classify(port, false).Fields()...)
	} else {
		put(TableClassifier, prioSharedTop, fromPort, classify(port, true).Fields()...)
		c.sharedPortFlows(ep.port, put)
	}
	c.observeFlows(ep)
	if ep.port.Doubt {
		judge := actions(openflow.GotoTable(TableServiceLB))
		for _, table := range []uint8{TableConntrackState, TableSCTPState} {
			put(table, prioNormal+1, judge, openflow.InPort(port))
			for _, ip := range ep.ips {
				put(table, prioNormal+1, judge, openflow.IPDst(host(ip)))
			}
		}
	}
	from := []openflow.Field{openflow.InPort(port), openflow.EthSrc(mac)}
	with := func(more ...openflow.Field) []openflow.Field { return append(slices.Clone(from), more...) }
	resolve := actions(openflow.GotoTable(TableResolution))
	deliver := actions(openflow.OutputPort(port))
	for _, ip := range ep.ips {
		h := host(ip)
		put(TableSpoofGuard, prioNormal, actions(openflow.GotoTable(TableConntrack)), with(openflow.IPSrc(h))...)
		put(TableForwarding, prioNormal, actions(
			openflow.SetEthSrc(c.cfg.LocalMAC), openflow.SetEthDst(mac), openflow.SetReg(regOutput, port, 0xffffffff),
			openflow.GotoTable(TableAntreaPolicyIngressRule)), openflow.IPDst(h))
		if ip.Is4() {
			put(TableSpoofGuard, prioNormal, resolve, with(openflow.ARP(), openflow.ARPSpa(h), openflow.ARPSha(mac))...)
			put(TableResolution, prioHigh, deliver, openflow.ARP(), openflow.ARPTpa(h))
			continue
		}
		// An option that is left out, as a unicast probe and its answer leave
		// it out, reads as zero.
		for _, ll := range [][6]byte{mac, {}} {
			put(TableSpoofGuard, prioHigh, resolve, with(openflow.IPSrc(h), openflow.ICMPv6Type(openflow.NDSolicit), openflow.NDSll(ll))...)
			put(TableSpoofGuard, prioHigh, resolve, with(openflow.IPSrc(h), openflow.ICMPv6Type(openflow.NDAdvert), openflow.NDTarget(h), openflow.NDTll(ll))...)
		}
		put(TableResolution, prioHigh, deliver, openflow.ICMPv6Type(openflow.NDSolicit), openflow.NDTarget(h))
		put(TableResolution, prioHigh, deliver, openflow.ICMPv6Type(openflow.NDAdvert), openflow.IPDst(h))
	}
	c.hairpinFlows(ep, put)
	c.spoofFlows(ep)
}
