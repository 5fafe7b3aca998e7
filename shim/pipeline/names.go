package pipeline

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// Egress rules may name hosts. The addresses that a name stands for are a group
// like others, which SetNamed fills: whoever calls it has them from DNS. For that
// the packets of endpoints that such rules guard are watched:
//
//	Conntrack    from the port, to a resolver    a copy to the controller, and on
//	Output       from a resolver, to the port    to NameAnswer
//	NameAnswer   the lease                       to the controller, and nowhere else
//	             otherwise                       output
//
// So an answer waits at the controller until what it says is in force, and
// whoever holds it puts it back by Deliver. The lease is a flow of some seconds,
// to be put in again and again: with nobody there answers pass as ever.

// NameController is the id of the connection that DNS packets go to.
const NameController = 6

// LeaseTime is how long answers go on to be held once nobody renews the lease.
const LeaseTime = leaseSeconds * time.Second

const leaseSeconds = 3

// wholePacket is to send all of a packet to the controller.
const wholePacket = math.MaxUint16

// queryData marks DNS packets that are copies, on their way to a resolver.
const queryData = "\x03"

// Queries says whether a DNS packet is a copy of a query.
func Queries(userData []byte) bool { return string(userData) == queryData }

// NamespacedName names an object of a Namespace.
type NamespacedName struct{ Namespace, Name string }

// Named is an address that a name as a rule writes it, with wildcards, stands for
// from now on, or stands for no more.
type Named struct {
	Name string
	Addr netip.Addr
	Gone bool
}

// naming is what is known of the names that rules have.
type naming struct {
	rules    map[string]int             // Policies that have a name, by name.
	policies map[*policy]struct{}       // That name hosts.
	told     []Named                    // Since the last Update.
	full     []string                   // Names that stand for more hosts than are kept.
	vips     map[netip.Addr]serviceName // ClusterIPs. Nil: they are to be looked up anew.
	watched  map[uint32][]openflow.FlowKey
	from     []resolver // Whose flows are there.
	stale    bool       // Ports, or policies that name hosts, are others than those that are watched.
}

// resolver is a DNS server's address, as packets to it or from it have it.
type resolver struct {
	netip.AddrPort
	proto uint8
}

func newNaming() naming {
	return naming{rules: make(map[string]int), policies: make(map[*policy]struct{}), watched: make(map[uint32][]openflow.FlowKey)}
}

// groupOfName is the group of the addresses that a name stands for.
func groupOfName(name string) storage.ScopeID {
	return xxh3.HashString128("name/" + name).Bytes()
}

// setNaming counts the names of a policy in or out.
func (c *Compiler) setNaming(p *policy, is bool) {
	delta := 1
	if !is {
		delta = -1
	}
	for _, r := range p.rules {
		for _, name := range r.names {
			if c.naming.rules[name] += delta; c.naming.rules[name] == 0 {
				delete(c.naming.rules, name)
			}
			c.naming.stale = true
			if is {
				c.naming.policies[p] = struct{}{}
			} else {
				delete(c.naming.policies, p)
			}
		}
	}
}

// Names are those that rules have, in order.
func (c *Compiler) Names() []string { return slices.Sorted(maps.Keys(c.naming.rules)) }

// SetNamed is what names stand for, for the next Update.
func (c *Compiler) SetNamed(list []Named) { c.naming.told = append(c.naming.told, list...) }

// SetFull says which names stand for more hosts than are kept. Rules that have them
// are problems.
func (c *Compiler) SetFull(names []string) { c.naming.full = names }

// full are the names of a rule of which SetFull said so.
func (c *Compiler) full(r *rule) (out []string) {
	for _, name := range r.names {
		if slices.Contains(c.naming.full, name) {
			out = append(out, name)
		}
	}
	return out
}

// ClusterIP is the Service that an address is the ClusterIP of, NAMESPACE/NAME; empty
// where it is none. What is sent to one is judged by the endpoint that it reaches.
func (c *Compiler) ClusterIP(a netip.Addr) string {
	if c.naming.vips == nil {
		c.naming.vips = make(map[netip.Addr]serviceName)
		for name, s := range c.services {
			if s.wire == nil {
				continue
			}
			for _, vip := range s.vips() {
				c.naming.vips[vip] = name
			}
		}
	}
	name, is := c.naming.vips[a]
	if !is || !a.IsValid() {
		return ""
	}
	return name.namespace + "/" + name.name
}

func (c *Compiler) takeNamed() {
	for _, n := range c.naming.told {
		id, key := groupOfName(n.Name), "name/"+n.Addr.String()
		var m *memberFacts
		if !n.Gone {
			m = &memberFacts{ips: []netip.Addr{n.Addr.Unmap()}, since: c.revision}
		}
		if (c.groups[id][key] == nil) == (m == nil) {
			continue
		}
		if c.groups[id] == nil {
			c.groups[id] = make(map[string]*memberFacts)
		}
		if c.setMember(id, key, m); len(c.groups[id]) == 0 {
			delete(c.groups, id)
		}
	}
	c.naming.told = nil
}

// resolvers are the DNS servers, in order: those that were given, and the Services
// that were, with what serves them.
func (c *Compiler) resolvers() []resolver {
	all := make(map[resolver]struct{})
	for _, at := range c.cfg.Resolvers {
		for _, proto := range []uint8{openflow.ProtoUDP, openflow.ProtoTCP} {
			all[resolver{at, proto}] = struct{}{}
		}
	}
	for _, name := range c.cfg.ResolverServices {
		s := c.services[serviceName{name.Namespace, name.Name}]
		if s == nil || s.wire == nil {
			continue
		}
		for _, p := range s.wire.GetPorts() {
			proto := protoNumber(p.GetProtocol(), 0)
			if proto != openflow.ProtoUDP && proto != openflow.ProtoTCP {
				continue
			}
			for _, vip := range s.vips() {
				if vip.IsValid() {
					all[resolver{netip.AddrPortFrom(vip, uint16(p.GetPort())), proto}] = struct{}{}
				}
			}
			for addr, b := range s.backends {
				for _, at := range b.GetPorts() {
					if at.GetName() == p.GetName() {
						all[resolver{netip.AddrPortFrom(addr, uint16(at.GetPort())), proto}] = struct{}{}
					}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b resolver) int { return cmp.Or(a.Compare(b.AddrPort), cmp.Compare(a.proto, b.proto)) })
}

// watchNames brings the flows up to date that watch DNS, where something bears on
// that.
func (c *Compiler) watchNames(services bool) {
	n := &c.naming
	if services {
		n.vips = nil
	}
	if !n.stale && !services || len(n.policies) == 0 && len(n.watched) == 0 {
		return
	}
	n.stale = false
	from := c.resolvers()
	anew := !slices.Equal(from, n.from)
	n.from = from
	guarded := make(map[uint32]bool)
	for p := range n.policies {
		for _, r := range p.rules {
			if len(r.names) > 0 {
				for _, ep := range c.targets(r.applied) {
					guarded[ep.port.OFPort] = true
				}
			}
		}
	}
	for port, keys := range n.watched {
		if anew || !guarded[port] {
			for _, key := range keys {
				c.flows.unset("names", key)
			}
			delete(n.watched, port)
		}
	}
	for port := range guarded {
		if _, is := n.watched[port]; is {
			continue
		}
		keys := []openflow.FlowKey{}
		for _, f := range watchDNS(port, from) {
			c.flows.set("names", f)
			keys = append(keys, f.Key())
		}
		n.watched[port] = keys
	}
}

// watchDNS are the flows that watch what a port says to resolvers and hears of them.
func watchDNS(port uint32, from []resolver) (out []openflow.Flow) {
	put := func(table uint8, priority uint16, acts openflow.Actions, match ...openflow.Field) {
		out = append(out, openflow.Flow{Table: table, Priority: priority, Match: openflow.NewMatch(match...), Cookie: cookie(KindNames, port), Actions: acts})
	}
	for _, r := range from {
		at := host(r.Addr())
		put(TableConntrack, prioTop, actions(openflow.Controller{ControllerID: NameController, MaxLen: wholePacket, UserData: queryData}, track),
			openflow.InPort(port), openflow.IPDst(at), openflow.L4Dst(r.proto, r.Port(), math.MaxUint16))
		put(TableOutput, prioTop, actions(openflow.GotoTable(TableNameAnswer)),
			openflow.Reg(regOutput, port, math.MaxUint32), openflow.IPSrc(at), openflow.L4Src(r.proto, r.Port(), math.MaxUint16))
	}
	return out
}

// Lease is the flow that has DNS answers held.
func Lease() openflow.Flow {
	return openflow.Flow{Table: TableNameAnswer, Priority: prioDefault, Cookie: cookie(KindLease, 0), HardTimeout: leaseSeconds,
		Actions: actions(openflow.Controller{ControllerID: NameController, MaxLen: wholePacket})}
}

// WatchesNames says whether DNS is watched for any port.
func (c *Compiler) WatchesNames() bool { return len(c.naming.watched) > 0 }

// Deliver are the actions that bring a held answer to its port.
func Deliver(m openflow.Metadata) openflow.Actions {
	return actions(openflow.OutputPort(m.Reg(regOutput)))
}
