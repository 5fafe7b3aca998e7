package evaluate

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/weirnet/weir/services/policy/api"
)

// State is a set of objects. The zero State is not ready: use New. It is not
// safe for concurrent use while it changes.
type State struct {
	namespaces map[string]*api.Namespace
	nodes      map[string]*api.Node
	pods       map[api.Ref]*api.Pod
	services   map[api.Ref]*api.Service
	slices     map[api.Ref]*api.EndpointSlice
	policies   map[api.Ref]*api.NetworkPolicy
	ordered    map[api.Ref]*api.OrderedPolicy
	tiers      map[string]*api.Tier
	groups     map[api.Ref]*api.Group

	staged int // Policies that are.
	// The rules of ordered, in order; nil until somebody asks. Several may ask
	// at once, and find the same.
	rules atomic.Pointer[map[Direction][]*orderedRule]
}

// New returns a State of some objects.
func New(objects ...api.Object) *State {
	s := &State{
		namespaces: map[string]*api.Namespace{},
		nodes:      map[string]*api.Node{},
		pods:       map[api.Ref]*api.Pod{},
		services:   map[api.Ref]*api.Service{},
		slices:     map[api.Ref]*api.EndpointSlice{},
		policies:   map[api.Ref]*api.NetworkPolicy{},
		ordered:    map[api.Ref]*api.OrderedPolicy{},
		tiers:      map[string]*api.Tier{},
		groups:     map[api.Ref]*api.Group{},
	}
	for _, o := range objects {
		s.Set(o)
	}
	return s
}

// Set adds an object, or replaces the one of the same Ref. Kinds that do not
// bear on verdicts are left out.
func (s *State) Set(o api.Object) {
	s.Remove(o.Ref())
	switch o := o.(type) {
	case *api.Namespace:
		s.namespaces[o.Name] = o
	case *api.Node:
		s.nodes[o.Name] = o
	case *api.Pod:
		s.pods[o.Ref()] = o
	case *api.Service:
		s.services[o.Ref()] = o
	case *api.EndpointSlice:
		s.slices[o.Ref()] = o
	case *api.NetworkPolicy:
		s.policies[o.Ref()] = o
	case *api.OrderedPolicy:
		s.ordered[o.Ref()] = o
	case *api.Tier:
		s.tiers[o.Name] = o
	case *api.Group:
		s.groups[o.Ref()] = o
	}
	s.count(o, 1)
}

// count keeps what is worked out of policies and tiers.
func (s *State) count(o api.Object, n int) {
	switch o := o.(type) {
	case *api.NetworkPolicy:
		if o != nil && o.Staged {
			s.staged += n
		}
	case *api.OrderedPolicy:
		if o != nil && o.Staged {
			s.staged += n
		}
		s.rules.Store(nil)
	case *api.Tier:
		s.rules.Store(nil)
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
	case api.KindEndpointSlice:
		delete(s.slices, ref)
	case api.KindNetworkPolicy:
		s.count(s.policies[ref], -1)
		delete(s.policies, ref)
	case api.KindTier:
		s.count(s.tiers[ref.Name], -1)
		delete(s.tiers, ref.Name)
	case api.KindClusterGroup, api.KindGroup:
		delete(s.groups, ref)
	default:
		if p := s.ordered[ref]; p != nil {
			s.count(p, -1)
			delete(s.ordered, ref)
		}
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

// Namespaces are the names of the Namespaces that there are, sorted.
func (s *State) Namespaces() []string { return slices.Sorted(maps.Keys(s.namespaces)) }

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

// policiesIn are the NetworkPolicies of a Namespace, by name.
func (s *State) policiesIn(namespace string) []*api.NetworkPolicy {
	var found []*api.NetworkPolicy
	for _, p := range s.policies {
		if p.Namespace == namespace {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b *api.NetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
	return found
}
