package pipeline

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/order"
)

// world is one of the two sets of policies by which a packet is judged. The
// enforced world decides what becomes of it. The staged world has the staged
// policies beside the enforced ones; its tables only mark the packet with what
// they would have decided, and come back to the enforced ones. Both are
// compiled by the same code, to tables of their own.
//
//	AntreaPolicyEgressRule ── gate, of ports under staged policies ─► resubmit ─► Staged… tables: verdict and rule to registers
//	          │◄──────────────────────────────────────────────────── comes back ──┘
//	          ▼
//	rule, isolation or default decides ── another verdict was marked ─► reported, beside what is done
//
// The staged world has what is needed to judge the traffic of endpoints that a
// staged policy applies to, a direction at a time: see stage.go.
type world uint8

const (
	enforced world = iota
	staged
)

const (
	ingressDirection = policyv1.Direction_DIRECTION_INGRESS
	egressDirection  = policyv1.Direction_DIRECTION_EGRESS
	// directions is the length of what is indexed by direction, which has no zero.
	directions = 3
)

var bothDirections = [...]policyv1.Direction{ingressDirection, egressDirection}

// steps are the rule tables of a world and direction, in order, and where its
// marks are.
type steps struct {
	policy, k8s, last uint8
	metric, session   uint8
	allowed           int    // Register of the rule that allowed.
	label             int    // Where in ct_label it is kept.
	shift             uint32 // Of the verdict in register 0.
}

var stepsOf = [...][directions]steps{
	enforced: {
		ingressDirection: {TableAntreaPolicyIngressRule, TableIngressRule, TableIngressDefaultRule, TableIngressMetric, TableIngressSession, regIngressRule, labelIngress, 20},
		egressDirection:  {TableAntreaPolicyEgressRule, TableEgressRule, TableEgressDefaultRule, TableEgressMetric, TableEgressSession, regEgressRule, labelEgress, 16},
	},
	staged: {
		ingressDirection: {policy: TableStagedAntreaPolicyIngressRule, k8s: TableStagedIngressRule, last: TableStagedIngressDefaultRule, shift: 20},
		egressDirection:  {policy: TableStagedAntreaPolicyEgressRule, k8s: TableStagedEgressRule, last: TableStagedEgressDefaultRule, shift: 16},
	},
}

// of is the table of rules of a rank.
func (s steps) of(rank uint32) uint8 {
	switch {
	case rank < order.RankK8s:
		return s.policy
	case rank == order.RankK8s:
		return s.k8s
	}
	return s.last
}

// verdict is what the staged world decided: one bit, beside the bit that says
// that it was asked. So one masked match finds what differs from a verdict.
type verdict uint32

const (
	verdictAllow  verdict = 1
	verdictDrop   verdict = 2
	verdictReject verdict = 4
	verdictAsked  verdict = 8
	verdictMask   verdict = 15
)

func verdictOf(a policyv1.Action) verdict {
	switch a {
	case policyv1.Action_ACTION_ALLOW:
		return verdictAllow
	case policyv1.Action_ACTION_DROP:
		return verdictDrop
	case policyv1.Action_ACTION_REJECT:
		return verdictReject
	}
	return 0
}

// action is that of a verdict; unspecified where the staged world was not asked.
func (v verdict) action() policyv1.Action {
	switch v &^ verdictAsked {
	case verdictAllow:
		return policyv1.Action_ACTION_ALLOW
	case verdictDrop:
		return policyv1.Action_ACTION_DROP
	case verdictReject:
		return policyv1.Action_ACTION_REJECT
	}
	return policyv1.Action_ACTION_UNSPECIFIED
}

// decide marks a packet with a verdict, and the rule or isolation that decides.
func (s steps) decide(v verdict, id uint32) []openflow.Action {
	return []openflow.Action{openflow.SetReg(0, uint32(v)<<s.shift, uint32(verdictMask&^verdictAsked)<<s.shift), openflow.SetReg(regStagedRule, id, 0xffffffff)}
}

// differs matches packets that the staged world was asked about and for which
// it decided otherwise.
func (s steps) differs(v verdict) openflow.Field {
	return openflow.Reg(0, uint32(verdictAsked)<<s.shift, uint32(verdictAsked|v)<<s.shift)
}

// unasked matches packets that the staged world was not asked about yet.
func (s steps) unasked() openflow.Field {
	return openflow.Reg(0, 0, uint32(verdictAsked)<<s.shift)
}

// ask sends a packet through the staged world's tables and then through the
// enforced ones again. Unless something decides, it is allowed.
func ask(dir policyv1.Direction) openflow.Actions {
	s := stepsOf[enforced][dir]
	return actions(
		openflow.SetReg(0, uint32(verdictAsked|verdictAllow)<<s.shift, uint32(verdictMask)<<s.shift),
		openflow.SetReg(regStagedRule, 0, 0xffffffff), openflow.SetReg(regStagedPass, 0, 0xffffffff),
		openflow.Resubmit(stepsOf[staged][dir].policy), openflow.Resubmit(s.policy))
}
