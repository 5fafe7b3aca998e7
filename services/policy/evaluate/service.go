package evaluate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// serviceOf is the Service that a destination means: by its name, by one of its
// ClusterIPs, or by a domain name of the cluster's DNS. The name is what
// policies see of it: that of a headless Service leads to its Pods, and that of
// another to a ClusterIP, which is no longer the destination where policies act.
func (s *State) serviceOf(e Endpoint) (svc *api.Service, name string, err error) {
	switch {
	case e.Service != "":
		svc = s.services[api.Ref{Kind: api.KindService, Namespace: e.Namespace, Name: e.Service}]
		if svc == nil {
			return nil, "", fmt.Errorf("there is no Service %s/%s", e.Namespace, e.Service)
		}
	case e.Domain != "":
		if svc = s.serviceNamed(e.Domain); svc != nil && svc.Headless {
			name = e.Domain
		}
	case e.Pod == "" && e.Node == "":
		for _, other := range s.services {
			if slices.Contains(other.ClusterIPs, e.Addr.Unmap()) {
				svc = other
			}
		}
	}
	return svc, name, nil
}

// serviceNamed is the Service of a name such as web.shop.svc.cluster.local.
func (s *State) serviceNamed(domain string) *api.Service {
	labels := strings.Split(strings.ToLower(domain), ".")
	if len(labels) < 3 || labels[2] != "svc" {
		return nil
	}
	return s.services[api.Ref{Kind: api.KindService, Namespace: labels[1], Name: labels[0]}]
}

// toService has a flow for each endpoint of a Service to which it may go.
func (s *State) toService(base *flow, from []netip.Addr, svc *api.Service, name string, c Connection) ([]*flow, error) {
	if svc.Type == api.ServiceExternalName {
		return nil, fmt.Errorf("%s is a name for another host; ask for that", svc.Ref())
	}
	var port *api.ServicePort
	for i := range svc.Ports {
		if p := &svc.Ports[i]; p.Port == c.Port && p.Protocol == c.Protocol {
			port = p
		}
	}
	if port == nil && !svc.Headless {
		return nil, fmt.Errorf("%s has no port %d of %s", svc.Ref(), c.Port, c.Protocol)
	}
	backends := s.backends(svc)
	if !svc.Headless {
		from = sameFamily(from, svc, c.To.Addr)
		backends = slices.DeleteFunc(backends, func(b backend) bool { return b.ports[port.Name] == 0 || !hasFamily(from, b.addr) })
		var err error
		if backends, err = s.chosen(svc, backends, base.from.pod); err != nil {
			return nil, err
		}
	}
	var flows []*flow
	for _, b := range backends {
		f := *base
		f.to = party{pod: b.pod, name: name}
		if !svc.Headless {
			f.via, f.port = svc, b.ports[port.Name]
		}
		if done, err := s.between(&f, from, []netip.Addr{b.addr}, c); err == nil {
			flows = append(flows, done)
		}
	}
	if len(flows) == 0 {
		return nil, &NoEndpoint{Service: svc.Ref()}
	}
	return flows, nil
}

// NoEndpoint says that a connection to a Service has nowhere to go. Nodes refuse
// one that is to a ClusterIP, as a host does whose port is closed, but where there
// are endpoints on other nodes alone and the Service keeps to the client's they
// drop it.
type NoEndpoint struct {
	Service api.Ref
	Local   string // The node on which there is none, though there are on others. Empty: there is none.
}

func (e *NoEndpoint) Error() string {
	if e.Local != "" {
		return fmt.Sprintf("%s has no endpoint on node %s, and its internalTrafficPolicy is Local", e.Service, e.Local)
	}
	return e.Service.String() + " has no endpoint that the source could reach"
}

// sameFamily are the addresses of a source that are of the family of the
// ClusterIP that it sends to: the given one, or else the first that it could.
func sameFamily(from []netip.Addr, svc *api.Service, to netip.Addr) []netip.Addr {
	ips := svc.ClusterIPs
	if to.IsValid() {
		ips = []netip.Addr{to.Unmap()}
	}
	if len(ips) == 0 { // None was given to the Service yet.
		return from
	}
	_, ip, _ := pair(from, ips)
	return slices.DeleteFunc(slices.Clone(from), func(a netip.Addr) bool { return a.Is4() != ip.Is4() })
}

func hasFamily(list []netip.Addr, of netip.Addr) bool {
	return slices.ContainsFunc(list, func(a netip.Addr) bool { return a.Is4() == of.Is4() })
}

// targetPort is where a Service's port leads on a Pod; zero where the Pod has
// no port of that name.
func targetPort(p *api.ServicePort, pod *api.Pod) uint16 {
	if p.TargetName == "" {
		if p.TargetPort != 0 {
			return p.TargetPort
		}
		return p.Port
	}
	for _, c := range pod.Ports {
		if c.Name == p.TargetName && c.Protocol == p.Protocol {
			return c.Port
		}
	}
	return 0
}

// serviceAtNodePort is the Service that has a port on every node.
func (s *State) serviceAtNodePort(protocol api.Protocol, port uint16) *api.Service {
	for _, svc := range s.services {
		for _, p := range svc.Ports {
			if p.NodePort != 0 && p.NodePort == port && p.Protocol == protocol {
				return svc
			}
		}
	}
	return nil
}
