package pipeline

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// backendsMost is how many backends of one port and family a node balances to: a
// group that lists more cannot be said in one message. Of more, each node takes
// others.
const backendsMost = 1000

// serviceName names a Service.
type serviceName struct{ namespace, name string }

func nameOfRef(r *policyv1.ServiceRef) serviceName {
	return serviceName{r.GetNamespace(), r.GetName()}
}

// service is a Service with ClusterIPs, or the backends of one that is not there
// yet.
type service struct {
	name     serviceName
	wire     *policyv1.ClusterService // Nil: only backends are known.
	backends map[netip.Addr]*policyv1.Backend
	ports    map[string]*servicePort // By their keys in the assignment.
}

// serving is what serves a port at a backend.
type serving struct {
	netip.AddrPort
	wire *policyv1.Backend
}

// Served is an endpoint that does not serve a port of a Service any more: what
// connections without an end of their own have to it is to be forgotten.
type Served struct {
	Proto    uint8
	VIP      netip.AddrPort
	Endpoint netip.Addr // Not valid: the port itself is gone, with whatever served it.
}

// setServices takes over what was touched in the scope of Services. It returns
// those whose flows may be others now.
func (c *Compiler) setServices(state *storage.Replica, touched storage.Touched) map[serviceName]struct{} {
	changed := make(map[serviceName]struct{})
	for id, ts := range touched {
		switch kind := c.kind(state, id); {
		case kind == storage.ScopeNode:
			if _, is := ts.Keys["node"]; (is || ts.All) && c.setFacts(state.Item(id, "node").GetNode()) {
				for name := range c.services {
					changed[name] = struct{}{}
				}
			}
		case kind == storage.ScopeServices:
			c.serviceScope = id
			for _, key := range c.touchedKeys(state, id, ts) {
				if s := c.setServiceItem(key, state.Item(id, key)); s != nil {
					changed[s.name] = struct{}{}
				}
			}
		}
	}
	return changed
}

// setFacts takes over what the node is, and says whether that bears on which
// backends it takes.
func (c *Compiler) setFacts(n *policyv1.NodeFacts) bool {
	node, zone := n.GetName(), n.GetZone()
	if c.node == node && c.zone == zone {
		return false
	}
	c.node, c.zone = node, zone
	return true
}

// setServiceItem puts an item of a Service in the place of the former of its key;
// one without a body takes that out.
func (c *Compiler) setServiceItem(key string, item *policyv1.Item) *service {
	parts := strings.SplitN(key, "/", 4)
	if len(parts) < 3 {
		return nil // Refused with the frame that brought it.
	}
	name := serviceName{parts[1], parts[2]}
	s := c.services[name]
	if s == nil {
		s = &service{name: name, backends: make(map[netip.Addr]*policyv1.Backend), ports: make(map[string]*servicePort)}
		c.services[name] = s
	}
	switch {
	case len(parts) == 3:
		s.wire = item.GetService()
	default:
		ip, err := netip.ParseAddr(parts[3])
		if err != nil {
			return nil
		}
		if b := item.GetBackend(); b != nil {
			s.backends[ip] = b
		} else {
			delete(s.backends, ip)
		}
	}
	return s
}

// itemKeys adds the keys of the Service's items.
func (s *service) itemKeys(keys map[string]struct{}) {
	if s.wire != nil {
		keys[storage.ServiceKey(s.name.namespace, s.name.name)] = struct{}{}
	}
	for ip := range s.backends {
		keys[storage.BackendKey(s.name.namespace, s.name.name, ip)] = struct{}{}
	}
}

// key names a port of the Service in the assignment.
func (s *service) key(p *policyv1.ServicePort) string {
	return fmt.Sprintf("%s/%s/%d/%d", s.name.namespace, s.name.name, protoNumber(p.GetProtocol(), 0), p.GetPort())
}

// ServicePort names a Service's port, "NAMESPACE/NAME:PORT/PROTOCOL", by its id;
// empty where there is none.
func (c *Compiler) ServicePort(id uint32) string {
	sp := c.servicePorts[id]
	if sp == nil {
		return ""
	}
	name := sp.service.name
	return fmt.Sprintf("%s/%s:%d/%s", name.namespace, name.name, sp.wire.GetPort(), strings.TrimPrefix(sp.wire.GetProtocol().String(), "PROTOCOL_"))
}

// vips are the ClusterIPs by family; the zero Addr where there is none.
func (s *service) vips() (vips [2]netip.Addr) {
	for _, ip := range addrs(s.wire.GetIps()) {
		if !vips[family(ip)].IsValid() {
			vips[family(ip)] = ip
		}
	}
	return vips
}

// serves is what serves a port in a family, of all backends, or of those that
// are about to go.
func (s *service) serves(p *policyv1.ServicePort, f int, terminating bool) (out []serving) {
	for ip, b := range s.backends {
		if family(ip) != f || b.GetTerminating() != terminating {
			continue
		}
		for _, bp := range b.GetPorts() {
			if bp.GetName() == p.GetName() && bp.GetProtocol() == p.GetProtocol() {
				out = append(out, serving{netip.AddrPortFrom(ip, uint16(bp.GetPort())), b})
				break
			}
		}
	}
	return out
}

// choose is what this node sends a port's connections to, in order: as kube-proxy
// does (pkg/proxy/topology.go), backends that are ready, or else those that are
// about to go; of a Service whose internal traffic stays on the node those of
// the node alone; and where topology hints tell, those that are for it.
func (c *Compiler) choose(s *service, p *policyv1.ServicePort, f int) []serving {
	local := func(list []serving) []serving {
		if !s.wire.GetLocal() {
			return list
		}
		return slices.DeleteFunc(list, func(e serving) bool { return e.wire.GetNode() != c.node })
	}
	out := local(s.serves(p, f, false))
	switch {
	case len(out) == 0:
		out = local(s.serves(p, f, true))
	case !s.wire.GetLocal():
		out = c.hinted(out)
	}
	slices.SortFunc(out, func(a, b serving) int { return a.Compare(b.AddrPort) })
	if len(out) <= backendsMost {
		return out
	}
	rank := func(e serving) uint64 { return xxh3.HashString(c.node + " " + e.String()) }
	slices.SortFunc(out, func(a, b serving) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b.AddrPort)) })
	out = out[:backendsMost]
	slices.SortFunc(out, func(a, b serving) int { return a.Compare(b.AddrPort) })
	return out
}

// hinted are those whose hints name this node, or else its zone, where all have
// such hints and one at least names it; else all.
func (c *Compiler) hinted(list []serving) []serving {
	for _, by := range []struct {
		name  string
		hints func(*policyv1.Backend) []string
	}{{c.node, (*policyv1.Backend).GetNodes}, {c.zone, (*policyv1.Backend).GetZones}} {
		var near []serving
		all := true
		for _, e := range list {
			hints := by.hints(e.wire)
			all = all && len(hints) > 0
			if by.name != "" && slices.Contains(hints, by.name) {
				near = append(near, e)
			}
		}
		if all && len(near) > 0 {
			return near
		}
	}
	return list
}

// balance brings the flows of Services that have changed up to date.
func (c *Compiler) balance(changed map[serviceName]struct{}) {
	names := slices.SortedFunc(maps.Keys(changed), func(a, b serviceName) int {
		return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.name, b.name))
	})
	for _, name := range names {
		s := c.services[name]
		now := make(map[string]*policyv1.ServicePort)
		if c.cfg.BalanceServices {
			for _, p := range s.wire.GetPorts() {
				if protoNumber(p.GetProtocol(), 0) != 0 && p.GetPort() != 0 {
					now[s.key(p)] = p
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(s.ports)) {
			if now[key] == nil {
				c.endPort(s, s.ports[key])
			}
		}
		for _, key := range slices.Sorted(maps.Keys(now)) {
			sp := s.ports[key]
			if sp == nil {
				sp = c.beginPort(s, key)
			}
			c.balancePort(s, sp, now[key])
		}
		if s.wire == nil && len(s.backends) == 0 {
			delete(c.services, name)
		}
	}
}

// forgetServices drops ids of ports that the first state does not have.
func (c *Compiler) forgetServices() {
	if c.claimed {
		return
	}
	c.claimed = true
	maps.DeleteFunc(c.assignment.Services, func(_ string, id uint32) bool { return c.servicePorts[id] == nil })
}
