package evaluate

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// backend is an address behind a Service.
type backend struct {
	addr         netip.Addr
	pod          *api.Pod          // Nil: an EndpointSlice says it.
	ports        map[string]uint16 // Where the Service's ports lead, by their names. A port that is not there is not served.
	node         string
	terminating  bool // It is for clients that find no other.
	zones, nodes []string
}

// backends are what a Service has behind it, by address: what its EndpointSlices
// say, or, where it has none, the Pods that its selector selects. Of several
// slices with one address those count that say it is ready; where these differ,
// the first by name.
func (s *State) backends(svc *api.Service) []backend {
	var ready, terminating []backend
	sliced := false
	for _, slice := range s.slicesOf(svc) {
		sliced = true
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if len(e.Addresses) == 0 || slices.ContainsFunc(slice.Endpoints[:i], func(other api.SliceEndpoint) bool {
				return len(other.Addresses) > 0 && other.Addresses[0] == e.Addresses[0]
			}) {
				continue
			}
			b := backend{addr: e.Addresses[0], ports: slicePorts(svc, slice), node: e.Node, zones: e.Zones, nodes: e.Nodes}
			switch {
			case e.Ready:
				ready = unite(ready, b)
			case e.Serving && e.Terminating:
				b.terminating = true
				terminating = unite(terminating, b)
			}
		}
	}
	if !sliced {
		for _, pod := range s.podsBehind(svc) {
			for _, addr := range pod.IPs {
				b := backend{addr: addr, pod: pod, ports: map[string]uint16{}, node: pod.Node}
				for i := range svc.Ports {
					if port := targetPort(&svc.Ports[i], pod); port != 0 {
						b.ports[svc.Ports[i].Name] = port
					}
				}
				ready = unite(ready, b)
			}
		}
	}
	for _, b := range terminating {
		if !slices.ContainsFunc(ready, func(other backend) bool { return other.addr == b.addr }) {
			ready = append(ready, b)
		}
	}
	slices.SortFunc(ready, func(a, b backend) int { return a.addr.Compare(b.addr) })
	return ready
}

// unite adds a backend, or its ports to those of the one that has its address.
func unite(list []backend, b backend) []backend {
	for i := range list {
		if list[i].addr != b.addr {
			continue
		}
		for name, port := range b.ports {
			if list[i].ports[name] == 0 {
				list[i].ports[name] = port
			}
		}
		return list
	}
	return append(list, b)
}

func (s *State) slicesOf(svc *api.Service) []*api.EndpointSlice {
	var list []*api.EndpointSlice
	for _, slice := range s.slices {
		if slice.Service != "" && slice.Service == svc.Name && slice.Namespace == svc.Namespace {
			list = append(list, slice)
		}
	}
	slices.SortFunc(list, func(a, b *api.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func slicePorts(svc *api.Service, slice *api.EndpointSlice) map[string]uint16 {
	ports := map[string]uint16{}
	for _, p := range svc.Ports {
		for _, own := range slice.Ports {
			if own.Name == p.Name && own.Protocol == p.Protocol {
				ports[p.Name] = own.Port
			}
		}
	}
	return ports
}

// podsBehind are the Pods that a Service's selector selects, by name.
func (s *State) podsBehind(svc *api.Service) []*api.Pod {
	var pods []*api.Pod
	for _, pod := range s.pods {
		if networked(pod) && backs(pod, svc) {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *api.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods
}

// chosen are the backends to one of which a client's connection goes, of those
// that serve the port. For a Pod, which its node serves, these depend on where
// it is; nobody else's node is known.
func (s *State) chosen(svc *api.Service, list []backend, client *api.Pod) ([]backend, error) {
	if client != nil && svc.InternalLocal && len(list) > 0 {
		list = only(list, func(b *backend) bool { return b.node == client.Node })
		if len(list) == 0 {
			return nil, &NoEndpoint{Service: svc.Ref(), Local: client.Node}
		}
	}
	ready := only(list, func(b *backend) bool { return !b.terminating })
	if len(ready) == 0 {
		return list, nil
	}
	if client == nil || svc.InternalLocal {
		return ready, nil
	}
	zone := ""
	if n := s.nodes[client.Node]; n != nil {
		zone = n.Zone
	}
	for _, hints := range []struct {
		of func(*backend) []string
		to string
	}{{func(b *backend) []string { return b.nodes }, client.Node}, {func(b *backend) []string { return b.zones }, zone}} {
		all := !slices.ContainsFunc(ready, func(b backend) bool { return len(hints.of(&b)) == 0 })
		near := only(ready, func(b *backend) bool { return slices.Contains(hints.of(b), hints.to) })
		if all && len(near) > 0 {
			return near, nil
		}
	}
	return ready, nil
}

func only(list []backend, is func(*backend) bool) []backend {
	return slices.DeleteFunc(slices.Clone(list), func(b backend) bool { return !is(&b) })
}
