package pipeline

import (
	"encoding/binary"
	"maps"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// What is counted. A packet counts once in each direction that is judged: for
// the rule that decided it, or where its connection was allowed before, for the
// rule that allowed it. Of rules that are alike one counts: the owner of their
// body. The flows that count are in tables of their own and say nothing but the
// rule's id. So they stay as they are when rules move to other priorities or are
// put in anew, and they decide nothing.
//
//	Allow:      reg5=N or reg6=N, and ct_label=N of allowed connections, in EgressMetric or IngressMetric
//	            connections begun: the same registers in EgressSession or IngressSession, on the way to be marked as allowed
//	Drop, Reject, Pass, isolation: reg4=N in RuleMetric
//
// A rule that goes leaves its flows behind, retired: what they counted last can
// be read once no packet meets the rule any more. Drop then takes them out.

// Subject is what packets are counted for: a rule of a policy, or the isolation
// of Pods by a policy in a direction.
type Subject struct {
	Kind            policyv1.PolicyKind
	Namespace, Name string
	UID             string // Of the policy's object. Empty: the source has none.
	Direction       policyv1.Direction
	Rule            string // Name of the rule. Empty: the kind has none; Index says which.
	Index           uint32 // Position of the rule among the policy's of its direction. Zero where Rule says which.
	Isolation       bool   // Neither Rule nor Index says anything.
}

// Count is what one counting flow counts. Flows of one id count for the same
// subjects.
type Count struct {
	ID       uint32
	Packets  bool // What the flow matched are packets of the subjects, with their bytes.
	Sessions bool // And sessions: connections begun, or of what denies or passes on, packets.
	Carried  bool // Connections carry the id: the flow may count on after its rule has gone.
}

// CountFilter is by what the counting flows of a bridge are read.
func CountFilter() openflow.FlowFilter {
	return openflow.FlowFilter{Table: openflow.AllTables, Cookie: cookie(KindCount, 0), CookieMask: ^uint64(0xffffffff)}
}

// CountOf says what a flow counts; false for a flow that does not.
func CountOf(f openflow.Flow) (Count, bool) {
	kind, id, ok := ParseCookie(f.Cookie)
	if !ok || kind != KindCount {
		return Count{}, false
	}
	switch f.Table {
	case TableEgressMetric, TableIngressMetric:
		return Count{ID: id, Packets: true, Carried: true}, true
	case TableEgressSession, TableIngressSession:
		return Count{ID: id, Sessions: true, Carried: true}, true
	case TableRuleMetric:
		return Count{ID: id, Packets: true, Sessions: true}, true
	}
	return Count{}, false
}

// Subjects are those that the flows of an id count for: of a rule one, of an
// isolation each policy that isolates. They are known until the id is dropped.
// That they are others than before, Change.Recounted says.
func (c *Compiler) Subjects(id uint32) []Subject {
	if n := c.counts.of[id]; n != nil {
		return n.subjects()
	}
	return nil
}

// Retired are the ids whose rules are not in force any more, or not by this id,
// ascending. Their flows are kept so that what they counted last can be read.
func (c *Compiler) Retired() []uint32 {
	out := make([]uint32, 0, len(c.counts.retired))
	for id := range c.counts.retired {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Counting are the ids that flows of Desired count for, in no order.
func (c *Compiler) Counting() (ids []uint32) {
	for id, n := range c.counts.of {
		if len(n.flows) > 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// Drop takes the counting flows of retired ids out.
func (c *Compiler) Drop(ids []uint32) Change {
	for _, id := range ids {
		c.counts.drop(&c.flows, id)
	}
	up, more, del := c.flows.take()
	return Change{Upsert: up, More: more, Delete: del}
}

// policyID tells policies apart, also those that come again by one name.
type policyID struct {
	kind                 policyv1.PolicyKind
	namespace, name, uid string
}

func (p *policy) identity() policyID {
	ref := p.wire.GetRef()
	return policyID{ref.GetKind(), ref.GetNamespace(), ref.GetName(), p.wire.GetUid()}
}

// Holds says whether the state has a subject's policy.
func (c *Compiler) Holds(s Subject) bool {
	return c.policiesHeld[policyID{s.Kind, s.Namespace, s.Name, s.UID}] > 0
}

func (p *policy) subject(dir policyv1.Direction) Subject {
	id := p.identity()
	return Subject{Kind: id.kind, Namespace: id.namespace, Name: id.name, UID: id.uid, Direction: dir}
}

func (r *rule) subject() Subject {
	s := r.policy.subject(r.direction)
	if s.Rule = r.wire.GetName(); s.Rule == "" {
		s.Index = r.wire.GetIndex()
	}
	return s
}

// counts are the ids that flows count for.
type counts struct {
	of        map[uint32]*counted
	retired   map[uint32]struct{}
	recounted map[uint32]struct{} // That may count for others since the last Update.
}

type counted struct {
	subjects func() []Subject // As they are now.
	flows    []openflow.FlowKey
	part     *part     // Of a rule that is retired: as it was.
	policies []*policy // Of an isolation: all, in no order.
}

func newCounts() counts {
	return counts{of: make(map[uint32]*counted), retired: make(map[uint32]struct{}), recounted: make(map[uint32]struct{})}
}

// live says whether an id stands for something in force.
func (n *counts) live(id uint32) bool {
	_, retired := n.retired[id]
	return n.of[id] != nil && !retired
}

// begin has flows count for an id, or go on to if it is retired.
func (n *counts) begin(flows *flowSet, id uint32, subjects func() []Subject, list []openflow.Flow) {
	delete(n.retired, id)
	if at := n.of[id]; at != nil {
		at.subjects = subjects
		n.recounted[id] = struct{}{}
		return
	}
	at := &counted{subjects: subjects}
	for _, f := range list {
		flows.set("", f)
		at.flows = append(at.flows, f.Key())
	}
	n.of[id] = at
}

func (n *counts) end(id uint32) { n.retired[id] = struct{}{} }

// recount says that a body's owner is another.
func (n *counts) recount(b *body) {
	for _, pt := range b.parts {
		n.recounted[pt.place.Conj] = struct{}{}
	}
}

// takeRecounted are the ids of which recount was told, ascending.
func (n *counts) takeRecounted() []uint32 {
	out := slices.Sorted(maps.Keys(n.recounted))
	clear(n.recounted)
	return out
}

// drop takes the flows of an id out, if it is retired.
func (n *counts) drop(flows *flowSet, id uint32) {
	if _, retired := n.retired[id]; !retired {
		return
	}
	for _, key := range n.of[id].flows {
		flows.unset("", key)
	}
	delete(n.retired, id)
	delete(n.of, id)
}

// countPart has a part's packets counted, where it is a rule's to count them,
// for the owner of its body.
func (c *Compiler) countPart(pt *part) {
	id, s := pt.place.Conj, pt.body.steps()
	var flows []openflow.Flow
	switch {
	case pt.body.world == staged && !pt.body.own:
	case pt.body.world == staged || pt.body.action != policyv1.Action_ACTION_ALLOW:
		flows = decided(id)
	default:
		flows = s.allowing(id)
	}
	c.counts.begin(&c.flows, id, func() []Subject { return []Subject{pt.body.owner.subject()} }, flows)
}

// uncountPart undoes countPart; its flows are retired.
func (c *Compiler) uncountPart(pt *part) {
	last, was := []Subject{pt.body.owner.subject()}, *pt
	n := c.counts.of[pt.place.Conj]
	n.subjects, n.part = func() []Subject { return last }, &was
	c.counts.end(pt.place.Conj)
}

// decided are the flows that count what is decided by an id in RuleMetric.
func decided(id uint32) []openflow.Flow {
	return []openflow.Flow{{Table: TableRuleMetric, Priority: prioDefault, Match: openflow.NewMatch(openflow.Reg(regDecision, id, 0xffffffff)), Cookie: cookie(KindCount, id)}}
}

// countBy counts a packet for an id and comes back.
func countBy(id uint32) []openflow.Action {
	return []openflow.Action{openflow.SetReg(regDecision, id, 0xffffffff), openflow.Resubmit(TableRuleMetric)}
}

// dropBy drops a packet and counts it for an id. Nothing in RuleMetric lets a
// packet go on.
func dropBy(id uint32) []openflow.Action {
	return []openflow.Action{openflow.SetReg(regDecision, id, 0xffffffff), openflow.GotoTable(TableRuleMetric)}
}

// allowing are the flows that count what a rule of an id allows: packets that it
// judged, packets of connections that it allowed, and connections.
func (s steps) allowing(id uint32) []openflow.Flow {
	onward := actions(openflow.GotoTable(s.metric + 1))
	end := openflow.Actions{}
	if s.session == TableEgressSession {
		end = actions(openflow.GotoTable(TableIngressSession))
	}
	by := openflow.Reg(s.allowed, id, 0xffffffff)
	return []openflow.Flow{
		{Table: s.metric, Priority: prioDefault, Match: openflow.NewMatch(by), Cookie: cookie(KindCount, id), Actions: onward},
		{Table: s.metric, Priority: prioNormal, Match: openflow.NewMatch(openflow.Reg(0, bitBypass, bitBypass), labelField(s.label, id)),
			Cookie: cookie(KindCount, id), Actions: onward},
		{Table: s.session, Priority: prioDefault, Match: openflow.NewMatch(by), Cookie: cookie(KindCount, id), Actions: end},
	}
}

// labelField matches connections that were allowed by the rule of an id.
func labelField(offset int, id uint32) openflow.Field {
	var value, mask [16]byte // Big endian: the lowest bits are the last.
	binary.BigEndian.PutUint32(value[12-offset/8:], id)
	binary.BigEndian.PutUint32(mask[12-offset/8:], 0xffffffff)
	return openflow.CtLabel(value, mask)
}
