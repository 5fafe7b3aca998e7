package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/evaluate/conformance"
)

// What conformance cases say of Services. Pods send to ClusterIPs, which the
// nodes balance. What else there is to Services is kube-proxy's: the harness
// stands for it on each node, by the endpoints that the fixture's Pods make.

// proxied are what kube-proxy would have of the fixture's Services.
func (run *stepRun) proxied() (out []harness.Proxied) {
	for _, s := range run.fixture.Services {
		for _, p := range s.Ports {
			one := harness.Proxied{Protocol: conformance.ProtocolOf(p.Protocol), Endpoints: run.endpointsOf(s, p)}
			if p.NodePort != 0 {
				one.Port = p.NodePort
				out = append(out, one)
			}
			for _, vip := range vipsOf(s) {
				one.Port, one.VIP = p.Port, vip
				out = append(out, one)
			}
		}
	}
	return out
}

func vipsOf(s conformance.Service) (out []netip.Addr) {
	texts := s.ClusterIPs
	if len(texts) == 0 {
		texts = []string{s.ClusterIP}
	}
	for _, text := range texts {
		if ip, err := netip.ParseAddr(text); err == nil { // "None" is none.
			out = append(out, ip)
		}
	}
	return out
}

// endpointsOf are what serves a port of a Service.
func (run *stepRun) endpointsOf(s conformance.Service, p conformance.ServicePort) (out []netip.AddrPort) {
	if len(s.Selector) == 0 {
		return nil
	}
	for _, pod := range run.fixture.Pods {
		port := targetOf(p, pod)
		if pod.Namespace != s.Namespace || port == 0 || pod.Phase == "Succeeded" || pod.Phase == "Failed" || !selects(s.Selector, pod.Labels) {
			continue
		}
		for _, ip := range pod.IPs {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(ip), port))
		}
	}
	return out
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if has, is := labels[k]; !is || has != v {
			return false
		}
	}
	return true
}

// targetOf is where a port of a Service leads on a Pod; zero: nowhere.
func targetOf(p conformance.ServicePort, pod conformance.Pod) uint16 {
	var number uint16
	var name string
	switch {
	case len(p.TargetPort) == 0 || json.Unmarshal(p.TargetPort, &number) == nil && number == 0:
		return p.Port
	case json.Unmarshal(p.TargetPort, &name) != nil:
		return number
	}
	for _, own := range pod.Ports {
		if own.Name == name && conformance.ProtocolOf(own.Protocol) == conformance.ProtocolOf(p.Protocol) {
			return own.Port
		}
	}
	return 0
}

// setProxied has each node stand for kube-proxy.
func (run *stepRun) setProxied() error {
	ports := run.proxied()
	for _, n := range run.cluster.Nodes {
		if err := n.SetProxied(run.ctx, ports); err != nil {
			return err
		}
	}
	return nil
}

// atService says whether a Service is at a destination, so that nobody else
// answers there.
func (run *stepRun) atService(to netip.Addr, p conformance.Probe) bool {
	isNode := slices.ContainsFunc(run.fixture.Nodes, func(n conformance.Node) bool { return slices.Contains(n.Addresses(), to.String()) })
	return slices.ContainsFunc(run.proxied(), func(s harness.Proxied) bool {
		if s.VIP.IsValid() {
			return s.VIP == to
		}
		return isNode && s.Port == p.Port && s.Protocol == conformance.ProtocolOf(p.Protocol)
	})
}

// serviceAddress is the ClusterIP to which a probe goes: of a family that its
// source has.
func (run *stepRun) serviceAddress(p conformance.Probe) (netip.Addr, error) {
	from, err := run.source(p)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, s := range run.fixture.Services {
		if s.Namespace+"/"+s.Name != p.ToService {
			continue
		}
		for _, vip := range vipsOf(s) {
			if from.Addr(vip.Is6()).IsValid() {
				return vip, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("no Service %s with a ClusterIP of the source's family", p.ToService)
}

// throughServices says whether probes of a case go to Services or ports of them
// on nodes, whose addresses an API server chooses itself.
func throughServices(c *conformance.Case) bool {
	return slices.ContainsFunc(c.Steps, func(s conformance.Step) bool {
		return slices.ContainsFunc(append(s.Checks(), s.Traffic...), func(p conformance.Probe) bool { return p.ToService != "" })
	})
}
