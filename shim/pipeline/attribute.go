package pipeline

import (
	"net/netip"
	"slices"
	"strings"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// Hit is a packet that a flow reported.
type Hit struct {
	Table    uint8
	Cookie   uint64
	Priority uint16 // Zero where it is not known.
	InPort   uint32
	OutPort  uint32 // Register 1.
	Src, Dst netip.Addr
	Proto    uint8 // IANA number.
	SrcPort  uint16
	DstPort  uint16
	ICMPType uint8
	ICMPCode uint8
	Service  uint32 // Id of the Service's port that it was for: see ServiceOf. Zero: none.
	Decision uint32 // Id of the isolation that dropped it, or of what denied an observed one: see DecisionOf.
	Revision uint16 // That judged it: see RevisionOf. Zero: the present one.
	Mark     Mark
	Reported bool               // For nothing but that the staged world's verdict is another.
	Observed policyv1.Direction // It is a sample: see ObservedOf. Zero: it is not.
}

// Attribution is what a hit means.
type Attribution struct {
	Direction policyv1.Direction
	Action    policyv1.Action
	Table     string
	// Policies that decided, by name: all that allow, or all that isolate.
	Policies  []*policyv1.PolicyRef
	Isolation bool
	Rule      string
	LogLabel  string
	Priority  *uint32 // Of the deciding rule's flow; nil for isolation.
	AppliedTo string  // "NAMESPACE/POD".
	Peer      string  // "NAMESPACE/POD", or empty.
	// Staged is what the staged world decided, where it is another verdict.
	Staged *auditv1.StagedOutcome
	// Service that was asked for, "NAMESPACE/NAME", where it was translated here.
	Service string
	// Unlogged says that the packet is on record for Staged alone.
	Unlogged bool
	// Observed says that it is a sample, for which no policy asked.
	Observed bool
	// Spoof says that the packet is not from who it says; it is on record for
	// that alone, and no policy has a part in it.
	Spoof bool
}

// direction is that of the traffic that a table judges.
func direction(table uint8) policyv1.Direction {
	if table <= TableEgressMetric {
		return egressDirection
	}
	return ingressDirection
}

// Attribute says what a hit means by the state that judged it: see Forget. It is
// false where the flow stands for nothing that is known.
func (c *Compiler) Attribute(h Hit) (Attribution, bool) {
	kind, id, ok := ParseCookie(h.Cookie)
	if !ok {
		return Attribution{}, false
	}
	a := Attribution{Table: TableName(h.Table), Direction: direction(h.Table), Unlogged: h.Reported}
	if kind == KindSpoof {
		a.Action, a.Spoof = policyv1.Action_ACTION_DROP, true
		if ep := c.portAt(h.InPort, c.revisionOf(h)); ep != nil {
			a.AppliedTo = ep.wire.GetNamespace() + "/" + ep.wire.GetName()
		}
		return a, true
	}
	if kind == KindObserve {
		a.Direction, a.Observed, a.Table = h.Observed, true, TableName(stepsOf[enforced][h.Observed].metric)
	}
	a.Service = c.serviceAsked(h.Service)
	at := scene{dir: a.Direction, peer: h.Src, hit: h, revision: c.revisionOf(h)}
	port, own := h.OutPort, h.Dst
	if at.dir == egressDirection {
		port, own, at.peer = h.InPort, h.Src, h.Dst
	}
	if at.ep = c.portAt(port, at.revision); at.ep != nil {
		a.AppliedTo = at.ep.wire.GetNamespace() + "/" + at.ep.wire.GetName()
	} else { // The port has gone since.
		a.AppliedTo = c.nameOf(own, at.revision)
	}
	a.Peer = c.nameOf(at.peer, at.revision)
	switch kind {
	case KindIsolation:
		a.Action, a.Isolation = policyv1.Action_ACTION_DROP, true
		policies := c.isolatedBy(h.Decision)
		if len(policies) == 0 {
			policies = isolating(c.guardingAt(at.ep, at.revision), at.ep, at.dir, enforced)
		}
		a.Policies = refs(policies)
		ok = len(a.Policies) > 0
	case KindRule:
		pt := c.partOf(id)
		if pt == nil {
			return Attribution{}, false
		}
		prio := uint32(pt.priority)
		r, policies := c.deciders(pt, at)
		a.Policies = refs(policies)
		a.Action, a.Rule, a.LogLabel, a.Priority = r.wire.GetAction(), r.wire.GetName(), r.wire.GetLogLabel(), &prio
	case KindObserve:
		a.Action = c.observedVerdict(h)
		return a, true
	case KindDefault: // After the last step.
		a.Action, a.Table = policyv1.Action_ACTION_ALLOW, TableName(stepsOf[enforced][at.dir].last)
	default:
		return Attribution{}, false
	}
	a.Staged = c.outcome(a.Action, at)
	return a, ok
}

// partOf is the part of a rule that an id stands for, or stood for until a short
// while ago; nil where it does not.
func (c *Compiler) partOf(id uint32) *part {
	if pt := c.byConj[id]; pt != nil {
		return pt
	}
	if n := c.counts.of[id]; n != nil {
		return n.part
	}
	return nil
}

// isolatedBy are the policies of an isolation, by its id and by name; none where
// it is not known.
func (c *Compiler) isolatedBy(id uint32) []*policy {
	n := c.counts.of[id]
	if n == nil {
		return nil
	}
	return slices.SortedFunc(slices.Values(n.policies), comparePolicies)
}

// serviceAsked names the Service of a port, by its id; empty where there is none.
func (c *Compiler) serviceAsked(id uint32) string {
	if sp := c.servicePorts[id]; sp != nil {
		return sp.service.name.namespace + "/" + sp.service.name.name
	}
	return ""
}

// DecisionOf is the id of the isolation that dropped a packet which a flow of a
// cookie reported, or of what denied one that was observed; zero where none did.
func DecisionOf(c uint64, register func(n int) uint32) uint32 {
	if kind, _, ok := ParseCookie(c); ok && (kind == KindIsolation || kind == KindObserve) {
		return register(regDecision)
	}
	return 0
}

// nameOf is the Pod that had an address in a revision, as the state knew it: a
// local one, or a member of a group.
func (c *Compiler) nameOf(a netip.Addr, revision uint64) string {
	for _, n := range slices.Backward(c.namesAt(a, revision)) {
		if name, is := strings.CutPrefix(n.key, podKeys); is {
			return name
		}
	}
	return ""
}

// podKeys is what the keys of Pods begin with.
var podKeys = storage.PodKey("", "")[:len("pod/")]

// nameCount is how many items say that an address is a Pod's or Node's.
type nameCount struct {
	key   string // Of its items.
	count int
	since uint64 // The revision in which there came to be such.
}

// named counts a Pod's or Node's addresses in or out.
func (c *Compiler) named(key string, ips []netip.Addr, delta int) {
	for _, a := range ips {
		list := c.names[a]
		c.history.changed = true
		former := list
		list = slices.Clone(list)
		i := slices.IndexFunc(list, func(n nameCount) bool { return n.key == key })
		if i < 0 {
			list, i = append(list, nameCount{key: key, since: c.revision}), len(list)
		}
		if list[i].count += delta; list[i].count == 0 {
			remember(c, c.history.names, a, former)
			list = slices.Delete(list, i, i+1)
		}
		if len(list) == 0 {
			delete(c.names, a)
		} else {
			c.names[a] = list
		}
	}
}

// giveUp notes that a Pod may have these addresses no more.
func (c *Compiler) giveUp(key string, ips []netip.Addr) {
	for _, a := range ips {
		c.gaveUp[a] = key
	}
}
