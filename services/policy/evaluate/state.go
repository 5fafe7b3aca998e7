package evaluate

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// State is a set of objects. The zero State is not ready: use New. It is not
// safe for concurrent use while it changes.
type State struct {
	namespaces map[string]*api.Namespace
	nodes      map[string]*api.Node
	pods       map[api.Ref]*api.Pod
	services   map[api.Ref]*api.Service
	policies   map[api.Ref]*api.NetworkPolicy
	admin      map[api.Ref]*api.AdminPolicy
}

// New returns a State of some objects.
func New(objects ...api.Object) *State {
	s := &State{
		namespaces: map[string]*api.Namespace{},
		nodes:      map[string]*api.Node{},
		pods:       map[api.Ref]*api.Pod{},
		services:   map[api.Ref]*api.Service{},
		policies:   map[api.Ref]*api.NetworkPolicy{},
		admin:      map[api.Ref]*api.AdminPolicy{},
	}
	for _, o := range objects {
		s.Set(o)
	}
	return s
}

// Set adds an object, or replaces the one of the same Ref. Kinds that do not
// bear on verdicts are left out.
func (s *State) Set(o api.Object) {
	switch o := o.(type) {
	case *api.Namespace:
		s.namespaces[o.Name] = o
	case *api.Node:
		s.nodes[o.Name] = o
	case *api.Pod:
		s.pods[o.Ref()] = o
	case *api.Service:
		s.services[o.Ref()] = o
	case *api.NetworkPolicy:
		s.policies[o.Ref()] = o
	case *api.AdminPolicy:
		s.admin[o.Ref()] = o
	}
}

// Remove removes an object. One that is not there is no error.
func (s *State) Remove(ref api.Ref) {
	switch ref.Kind {
	case api.KindNamespace:
		delete(s.namespaces, ref.Name)
	case api.KindNode:
		delete(s.nodes, ref.Name)
	case api.KindPod:
		delete(s.pods, ref)
	case api.KindService:
		delete(s.services, ref)
	case api.KindNetworkPolicy:
		delete(s.policies, ref)
	case api.KindAdminNetworkPolicy, api.KindBaselineAdminNetworkPolicy:
		delete(s.admin, ref)
	}
}

// Apply sets or removes what an event says.
func (s *State) Apply(e api.Event) {
	if e.Object == nil {
		s.Remove(e.Ref)
		return
	}
	s.Set(e.Object)
}

// labelsOf is a label list as a map.
func labelsOf(list api.Labels) map[string]string {
	m := make(map[string]string, len(list))
	for _, l := range list {
		m[l.Key] = l.Value
	}
	return m
}

// namespaceLabels are the labels of a Namespace, known or not.
func (s *State) namespaceLabels(name string) map[string]string {
	m := map[string]string{}
	if ns := s.namespaces[name]; ns != nil {
		m = labelsOf(ns.Labels)
	}
	m[api.LabelNamespaceName] = name
	m[api.LabelAntreaNamespaceName] = name
	return m
}

// networked reports whether a Pod has a place in the Pod network: an address of
// its own, for as long as it runs.
func networked(p *api.Pod) bool {
	return !p.HostNetwork && !p.Finished && len(p.IPs) > 0
}

// podsAt are the Pods that have an address, by name. Two can only be told of
// while one hands the address to the other.
func (s *State) podsAt(addr netip.Addr) []*api.Pod {
	var found []*api.Pod
	for _, p := range s.pods {
		if networked(p) && slices.Contains(p.IPs, addr) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b *api.Pod) int { return strings.Compare(a.Ref().String(), b.Ref().String()) })
	return found
}

// nodeAt is the Node whose host has an address.
func (s *State) nodeAt(addr netip.Addr) string {
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		if slices.Contains(hostAddresses(s.nodes[name]), addr) {
			return name
		}
	}
	return ""
}

// hostAddresses are all addresses from which a Node's host itself may speak.
func hostAddresses(n *api.Node) []netip.Addr {
	return slices.Concat(n.Addresses, n.Gateways, n.Transport)
}

// policiesIn are the enforced policies of a Namespace, by name.
func (s *State) policiesIn(namespace string) []*api.NetworkPolicy {
	var found []*api.NetworkPolicy
	for _, p := range s.policies {
		if p.Namespace == namespace && !p.Staged {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b *api.NetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
	return found
}
