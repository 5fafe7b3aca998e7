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

// toService has a flow for each endpoint of a Service.
func (s *State) toService(base *flow, from []netip.Addr, svc *api.Service, name string, c Connection) ([]*flow, error) {
	var port *api.ServicePort
	for i := range svc.Ports {
		if p := &svc.Ports[i]; p.Port == c.Port && p.Protocol == c.Protocol {
			port = p
		}
	}
	if port == nil && !svc.Headless {
		return nil, fmt.Errorf("%s has no port %d of %s", svc.Ref(), c.Port, c.Protocol)
	}
	var flows []*flow
	for _, pod := range s.backends(svc) {
		f := *base
		f.to = party{pod: pod, name: name}
		if !svc.Headless {
			f.via = svc
			f.port = targetPort(port, pod)
		}
		if f.via != nil && f.port == 0 {
			continue // The Pod has no port of the name.
		}
		if done, err := s.between(&f, from, pod.IPs, c); err == nil {
			flows = append(flows, done)
		}
	}
	if len(flows) == 0 {
		return nil, fmt.Errorf("%s has no endpoint that the source could reach", svc.Ref())
	}
	return flows, nil
}

// backends are the Pods behind a Service, by name.
func (s *State) backends(svc *api.Service) []*api.Pod {
	var pods []*api.Pod
	for _, pod := range s.pods {
		if networked(pod) && backs(pod, svc) {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *api.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods
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
