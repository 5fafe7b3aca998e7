package engine

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// backer is who says that a Service has an address for backend: an endpoint of
// an EndpointSlice, or a Pod that the Service's selector selects.
type backer struct {
	name     string             // Of the slice, or the Pod's key, which is never a slice's name.
	slice    *api.EndpointSlice // Nil: it is the Pod.
	endpoint *api.SliceEndpoint
	pod      *api.Pod
}

// backers are found by the address that they speak of. There is no more than one
// of a name for an address.
type backers struct {
	at      map[netip.Addr][]backer // By name.
	pods    map[*pod]*api.Pod       // As they stand in at.
	touched map[netip.Addr]struct{} // Where a backend may be another than the store was told.
}

func (b *backers) touch(a netip.Addr) {
	if b.touched == nil {
		b.touched = make(map[netip.Addr]struct{})
	}
	b.touched[a] = struct{}{}
}

func (b *backers) find(a netip.Addr, name string) (at int, there bool) {
	return slices.BinarySearchFunc(b.at[a], name, func(x backer, name string) int { return cmp.Compare(x.name, name) })
}

func (b *backers) insert(a netip.Addr, i int, x backer) {
	if b.at == nil {
		b.at = make(map[netip.Addr][]backer)
	}
	b.at[a] = slices.Insert(b.at[a], i, x)
	b.touch(a)
}

func (b *backers) remove(a netip.Addr, i int) {
	if b.at[a] = slices.Delete(b.at[a], i, i+1); len(b.at[a]) == 0 {
		delete(b.at, a)
	}
	b.touch(a)
}

// address is the one of an endpoint that is used.
func address(e *api.SliceEndpoint) (a netip.Addr, has bool) {
	if len(e.Addresses) == 0 {
		return a, false
	}
	return e.Addresses[0], true
}

// replace puts a slice in the place of what it was; nil for none. What both say
// of an address is not touched.
func (b *backers) replace(former, now *api.EndpointSlice) {
	if now != nil {
		samePorts := former != nil && slices.Equal(former.Ports, now.Ports)
		for i := range now.Endpoints {
			x := backer{name: now.Name, slice: now, endpoint: &now.Endpoints[i]}
			a, has := address(x.endpoint)
			if !has {
				continue
			}
			switch at, there := b.find(a, now.Name); {
			case !there:
				b.insert(a, at, x)
			case b.at[a][at].slice != now: // Of two entries of one address the first counts.
				if !samePorts || !sameEndpoint(b.at[a][at].endpoint, x.endpoint) {
					b.touch(a)
				}
				b.at[a][at] = x
			}
		}
	}
	if former == nil {
		return
	}
	for i := range former.Endpoints {
		a, _ := address(&former.Endpoints[i])
		if at, there := b.find(a, former.Name); there && b.at[a][at].slice == former {
			b.remove(a, at)
		}
	}
}

func sameEndpoint(a, b *api.SliceEndpoint) bool {
	return a.Node == b.Node && a.Ready == b.Ready && a.Serving == b.Serving && a.Terminating == b.Terminating &&
		slices.Equal(a.Zones, b.Zones) && slices.Equal(a.Nodes, b.Nodes)
}

// follow takes over what a Pod is now, or takes it out.
func (b *backers) follow(p *pod, in bool) {
	if was := b.pods[p]; was != nil {
		for _, a := range was.IPs {
			if at, there := b.find(a, p.key); there {
				b.remove(a, at)
			}
		}
		delete(b.pods, p)
	}
	if !in {
		return
	}
	if b.pods == nil {
		b.pods = make(map[*pod]*api.Pod)
	}
	b.pods[p] = p.obj
	for _, a := range p.obj.IPs {
		if at, there := b.find(a, p.key); !there {
			b.insert(a, at, backer{name: p.key, pod: p.obj})
		}
	}
}

// ready and lingers say how far it serves: ready for all, or only where nobody
// else is.
func (x *backer) ready() bool   { return x.pod != nil || x.endpoint.Ready }
func (x *backer) lingers() bool { return x.pod == nil && x.endpoint.Serving && x.endpoint.Terminating }

// port is where a port of the Service leads; zero where it is not served.
func (x *backer) port(p *api.ServicePort) uint16 {
	if x.pod == nil {
		for i := range x.slice.Ports {
			if own := &x.slice.Ports[i]; own.Name == p.Name && own.Protocol == p.Protocol {
				return own.Port
			}
		}
		return 0
	}
	if p.TargetName == "" {
		return cmp.Or(p.TargetPort, p.Port)
	}
	for i := range x.pod.Ports {
		if own := &x.pod.Ports[i]; own.Name == p.TargetName && own.Protocol == p.Protocol {
			return own.Port
		}
	}
	return 0
}

// backend is what an item says of a backend.
type backend struct {
	namespace, service string
	ip                 netip.Addr
	ports              []api.ServicePort // Name, Protocol and Port alone.
	node               string
	terminating        bool
	zones, nodes       []string
}

// backend is what an address is to a Service; false where it serves nothing. Of
// several backers those count that are ready, or, where none is, that linger: they
// share out the ports among them, and where they differ the first by name is right.
func (s *clusterService) backend(a netip.Addr) (d backend, serves bool) {
	list := s.backers.at[a]
	counts := (*backer).ready
	if !slices.ContainsFunc(list, func(x backer) bool { return x.ready() }) {
		counts, d.terminating = (*backer).lingers, true
	}
	if !s.balanced() || !slices.ContainsFunc(s.obj.ClusterIPs, func(ip netip.Addr) bool { return ip.Is4() == a.Is4() }) {
		return d, false
	}
	var first *backer
	for i := range s.obj.Ports {
		p := &s.obj.Ports[i]
		for j := range list {
			x := &list[j]
			if !counts(x) {
				continue
			}
			if first == nil {
				first = x
			}
			if port := x.port(p); port != 0 {
				d.ports = append(d.ports, api.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: port})
				break
			}
		}
	}
	if len(d.ports) == 0 {
		return d, false
	}
	d.namespace, d.service, d.ip = s.name.Namespace, s.name.Name, a
	if first.pod != nil {
		d.node = first.pod.Node
	} else {
		d.node, d.zones, d.nodes = first.endpoint.Node, first.endpoint.Zones, first.endpoint.Nodes
	}
	return d, true
}

func (e *Engine) flushBackend(out *changes, s *clusterService, a netip.Addr) {
	key := storage.BackendKey(s.name.Namespace, s.name.Name, a)
	if d, serves := s.backend(a); serves {
		out.upsert(e.services.id, storage.ScopeServices, storage.Encoded{Key: key, Body: string(e.encoder.backend(&d))})
	} else if s.told {
		out.remove(e.services.id, storage.ScopeServices, key)
	}
}
