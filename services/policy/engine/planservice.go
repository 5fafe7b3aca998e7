package engine

import (
	"github.com/weirnet/weir/services/policy/api"
)

func (e *Engine) lookService(pl *plan, name api.NamespacedName) *api.Service {
	svc, _ := e.look(pl, api.Ref{Kind: api.KindService, Namespace: name.Namespace, Name: name.Name}).(*api.Service)
	return svc
}

// planService adds an entry of toServices. It is matched by ClusterIP, protocol
// and port, so that a Service without a ClusterIP never matches, and neither
// does what is sent to a backend itself.
func (e *Engine) planService(pl *plan, r *planRule, name api.NamespacedName, rule string, widens bool) {
	switch svc := e.lookService(pl, name); {
	case svc == nil:
		pl.fault(ReasonServiceNotFound, widens, "%s: Service %s is not there; it matches nothing", rule, name)
	case svc.Headless:
		pl.fault(ReasonUnsupportedService, widens, "%s: Service %s is headless, and never matches", rule, name)
	case svc.Type == api.ServiceExternalName:
		pl.fault(ReasonUnsupportedService, widens, "%s: Service %s is a name for another host, and never matches", rule, name)
	default:
		r.toServices = append(r.toServices, name)
	}
}

// nodePorts are the ports that a Service has on nodes.
func (e *Engine) nodePorts(pl *plan, name api.NamespacedName) (ports []service) {
	svc := e.lookService(pl, name)
	if svc == nil {
		pl.fault(ReasonServiceNotFound, true, "appliedTo: Service %s is not there; it adds nothing", name)
		return nil
	}
	for i := range svc.Ports {
		if p := &svc.Ports[i]; p.NodePort != 0 {
			ports = append(ports, service{protocol: wireProtocol(p.Protocol), port: uint32(p.NodePort)})
		}
	}
	if len(ports) == 0 {
		pl.fault(ReasonUnsupportedService, true, "appliedTo: Service %s has no port on nodes, and adds nothing", name)
	}
	return ports
}

// onNodePorts is the rule for what clients send to ports of nodes. Every node
// has it, and clients are known by their addresses alone.
func (r planRule) onNodePorts(ports []service) planRule {
	written, anything := r.services, r.anything
	r.targets, r.nodePorts = []selection{{hosts: true}}, true
	r.peers, r.related, r.named, r.names, r.services, r.anything = nil, nil, nil, nil, nil, false
	for _, p := range ports {
		if anything {
			r.services = append(r.services, p)
			continue
		}
		for i := range written {
			if t := &written[i]; t.hasPort(p.protocol, p.port) {
				r.services = append(r.services, service{protocol: p.protocol, port: p.port, sourcePort: t.sourcePort, sourceEndPort: t.sourceEndPort})
			}
		}
	}
	return r
}
