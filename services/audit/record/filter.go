package record

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Filter picks records. Each field that is set must match; of a list, one
// element. Of losses it judges node and time; the other fields say nothing about
// them, and losses asked for are shown. Of changes it judges node, Namespaces,
// Policies and time. A nil Filter picks everything; any other no tests.
type Filter struct {
	Nodes      []string
	Namespaces []string // Of one of the Pods that a packet concerns; of a change, its object's.
	Pods       []string // "NAMESPACE/NAME" of one of the Pods that a packet concerns.
	Policies   []string // "NAMESPACE/NAME" or "NAME" of a policy of the record, or of its staged outcome.
	Actions    []policyv1.Action
	Directions []policyv1.Direction
	Prefixes   []netip.Prefix // That hold source or destination.
	Ports      []uint32       // Destination ports.
	Since      time.Time      // Inclusive. Zero: open.
	Until      time.Time      // Exclusive. Zero: open.
	Staged     bool           // Packets alone whose verdict staged policies would change.
	Losses     bool           // Losses too.
	Changes    bool           // Changes too.
}

// Matches says whether a node's event is picked.
func (f *Filter) Matches(node string, e *Event) bool {
	if f == nil {
		return true
	}
	if !oneOf(f.Nodes, node) {
		return false
	}
	if !f.within(e.Time()) {
		return false
	}
	switch e.Kind {
	case KindPacket:
		return f.packet(e)
	case KindLoss:
		return f.Losses && !f.Staged
	case KindChange:
		return f.Changes && !f.Staged && f.change(e.Change)
	default:
		return false
	}
}

func (f *Filter) packet(e *Event) bool {
	p, c := &e.Packet, e.Context
	if c == nil {
		c = &Context{}
	}
	return oneOf(f.Actions, p.Action) &&
		oneOf(f.Directions, p.Direction) &&
		some(f.Namespaces, func(ns string) bool {
			return inNamespace(p.AppliedTo, ns) || inNamespace(p.Peer, ns) || c.Source.Namespace == ns || c.Destination.Namespace == ns
		}) &&
		some(f.Pods, func(pod string) bool {
			return p.AppliedTo == pod || p.Peer == pod || c.Source.is(pod) || c.Destination.is(pod)
		}) &&
		some(f.Prefixes, func(x netip.Prefix) bool { return x.Contains(p.Source) || x.Contains(p.Destination) }) &&
		(len(f.Ports) == 0 || p.DestPort.Set && slices.Contains(f.Ports, p.DestPort.Value)) &&
		(!f.Staged || p.Staged != nil) &&
		some(f.Policies, func(want string) bool { return refers(p.Policies, want) || p.Staged.refers(want) })
}

// change judges the object of a change.
func (f *Filter) change(c *Change) bool {
	o := c.Object
	return oneOf(f.Namespaces, o.GetNamespace()) &&
		some(f.Policies, func(want string) bool {
			return refers([]Policy{{Namespace: o.GetNamespace(), Name: o.GetName()}}, want)
		})
}

// is says whether an end is "NAMESPACE/POD".
func (e *End) is(pod string) bool {
	ns, name, ok := strings.Cut(pod, "/")
	return ok && e.Pod == name && e.Namespace == ns
}

func (f *Filter) within(t time.Time) bool {
	return (f.Since.IsZero() || !t.Before(f.Since)) && (f.Until.IsZero() || t.Before(f.Until))
}

// oneOf holds for an empty list too.
func oneOf[T comparable](list []T, v T) bool { return len(list) == 0 || slices.Contains(list, v) }

// some holds for an empty list too.
func some[T any](list []T, f func(T) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, f)
}

// inNamespace reads "NAMESPACE/POD".
func inNamespace(pod, namespace string) bool {
	ns, _, ok := strings.Cut(pod, "/")
	return ok && ns == namespace
}

// refers says whether a staged outcome names a policy.
func (s *Staged) refers(want string) bool {
	return s != nil && (refers([]Policy{s.Policy}, want) || refers(s.Policies, want))
}

// refers reads "NAMESPACE/NAME", or "NAME" of any Namespace or none.
func refers(refs []Policy, want string) bool {
	ns, name, namespaced := strings.Cut(want, "/")
	for _, r := range refs {
		if namespaced && r.Namespace == ns && r.Name == name || !namespaced && r.Name == want {
			return true
		}
	}
	return false
}

// ParsePrefix reads a CIDR or an address.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}
