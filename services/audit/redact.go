package audit

import (
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// reasonSpoof is the reason of packets that a Pod sent in another's name.
const reasonSpoof = "spoof"

// redact takes out of a record that the caller sees what it may not know, and says
// whether there was any. What is not known to be the caller's own, or to be of
// nobody in the cluster, is foreign, and goes: name, address, port, hardware
// address, workload, node and Service of a foreign end; policies of foreign
// Namespaces with their rules; and the node that reported, unless it is the one
// of the caller's own Pod. Names of cluster-scoped policies stay.
func (v *view) redact(r *auditv1.Record) bool {
	if v.All {
		return false
	}
	e := r.GetEvent()
	redacted := false
	// A record is reported by the node of the Pod that the policies apply to.
	if p := e.GetPacket(); p != nil {
		redacted = v.redactPacket(p, e)
		if v.owns(p.GetAppliedTo()) {
			return redacted
		}
	} else if l := e.GetLoss(); l != nil {
		if ref := l.GetPolicy(); ref != nil && !v.knows(ref) {
			l.Policy, l.Rule, l.Direction = nil, "", 0
		}
	} else {
		return false // Of an object in a Namespace of the caller's.
	}
	r.Node, r.Boot, r.Sequence = "", "", 0
	return true
}

// end is one end of a packet, as it is judged.
type end struct {
	names   []string           // "NAMESPACE/POD", … that the node gave it; without those it did not.
	context *auditv1.PacketEnd // Nil: not known.
}

// own says whether all that is known of an end is the caller's.
func (v *view) own(e *end) bool {
	for _, name := range e.names {
		if !v.owns(name) {
			return false
		}
	}
	if e.context != nil {
		return v.Sees(e.context.GetNamespace())
	}
	return len(e.names) > 0
}

// outside says whether an end is of nobody in the cluster, as far as the
// collector knew: it knew the other end, which is the caller's, and had nobody
// for this one's address.
func (v *view) outside(e, other *end, known bool) bool {
	return known && len(e.names) == 0 && e.context == nil && other.context != nil && v.own(other)
}

func (v *view) redactPacket(p *auditv1.PacketEvent, e *auditv1.Event) bool {
	c := e.GetContext()
	source, destination := endsOf(p, c)
	foreignService := p.GetService() != "" && !v.owns(p.GetService()) || c.GetService() != "" && !v.owns(c.GetService())
	keepSource := v.own(&source) || v.outside(&source, &destination, c != nil)
	// An address that nobody has may be a Service's.
	keepDestination := v.own(&destination) || !foreignService && v.outside(&destination, &source, c != nil)
	if p.GetReason() == reasonSpoof {
		// That a Pod sent it says nothing of the addresses that it claims.
		keepSource = keepSource && c.GetSource() != nil
		keepDestination = keepDestination && c.GetDestination() != nil
	}
	h := hider{}
	if !keepSource {
		p.SourceIp, p.SourcePort = hide(&h, p.SourceIp), hidePointer(&h, p.SourcePort)
		if c != nil {
			c.Source = hidePointer(&h, c.Source)
		}
	}
	if !keepDestination {
		p.DestinationIp, p.DestinationPort = hide(&h, p.DestinationIp), hidePointer(&h, p.DestinationPort)
		if c != nil {
			c.Destination = hidePointer(&h, c.Destination)
		}
	}
	p.SourceMac, p.ClaimedMac, p.TargetIp = hide(&h, p.SourceMac), hide(&h, p.ClaimedMac), hide(&h, p.TargetIp)
	for _, name := range []*string{&p.AppliedTo, &p.Peer, &p.Service} {
		v.hideName(&h, name)
	}
	if c != nil {
		v.hideName(&h, &c.Service)
	}
	v.redactPolicies(&h, p, c)
	return h.hid
}

// endsOf tells which of the names is which end's. Without a direction it may be
// either's.
func endsOf(p *auditv1.PacketEvent, c *auditv1.PacketContext) (source, destination end) {
	source.context, destination.context = c.GetSource(), c.GetDestination()
	give := func(e *end, name string) {
		if name != "" {
			e.names = append(e.names, name)
		}
	}
	if p.GetDirection() != policyv1.Direction_DIRECTION_INGRESS {
		give(&source, p.GetAppliedTo())
		give(&destination, p.GetPeer())
	}
	if p.GetDirection() != policyv1.Direction_DIRECTION_EGRESS {
		give(&destination, p.GetAppliedTo())
		give(&source, p.GetPeer())
	}
	return source, destination
}

// redactPolicies takes foreign policies out, and then what their rules are called:
// it cannot be told whose rule it was.
func (v *view) redactPolicies(h *hider, p *auditv1.PacketEvent, c *auditv1.PacketContext) {
	foreign := false
	policies, versions := p.GetPolicies(), c.GetPolicies()
	p.Policies = nil
	if c != nil {
		c.Policies = nil
	}
	for i, ref := range policies {
		if !v.knows(ref) {
			foreign = true
			continue
		}
		p.Policies = append(p.Policies, ref)
		if len(versions) == len(policies) {
			c.Policies = append(c.Policies, versions[i])
		}
	}
	if foreign {
		h.hid = true
		p.Rule, p.LogLabel, p.OpenflowPriority = "", "", nil
	}
	s := p.GetStaged()
	if s == nil {
		return
	}
	if ref := s.GetPolicy(); ref != nil && !v.knows(ref) {
		h.hid = true
		s.Policy, s.Rule = nil, ""
	}
	staged := s.GetPolicies()
	s.Policies = nil
	for _, ref := range staged {
		if !v.knows(ref) {
			h.hid = true
			continue
		}
		s.Policies = append(s.Policies, ref)
	}
}

// knows says whether the caller may know of a policy: of its own Namespaces, and
// cluster-scoped.
func (v *view) knows(ref *policyv1.PolicyRef) bool {
	return ref.GetNamespace() == "" || v.Sees(ref.GetNamespace())
}

func (v *view) hideName(h *hider, name *string) {
	if *name != "" && !v.owns(*name) {
		*name, h.hid = "", true
	}
}

// hider notes whether there was anything to hide.
type hider struct{ hid bool }

func hide(h *hider, b []byte) []byte {
	h.hid = h.hid || len(b) > 0
	return nil
}

func hidePointer[T any](h *hider, p *T) *T {
	h.hid = h.hid || p != nil
	return nil
}
