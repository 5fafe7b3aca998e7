package pipeline

import (
	"github.com/weirnet/weir/shim/bridge/openflow"
	answer "github.com/weirnet/weir/shim/reject"
)

// Tables, in the order in which a packet passes them. The names of the rule
// tables stand in audit lines.
const (
	TableClassifier              = 0 // Where the packet came from.
	TableSpoofGuard              = 1 // A Pod sends from its own addresses only.
	TableResolution              = 2 // ARP and ND go to the owner of the address alone.
	TableConntrack               = 4
	TableConntrackState          = 5 // Allowed connections skip the rules.
	TableSCTPState               = 6 // The same as ConntrackState, for SCTP.
	TableServiceLB               = 7 // What is for a Service: see balance.go.
	TableServiceEndpoint         = 8 // Translates to one of its endpoints, or has a group choose.
	TableRevision                = 9 // Notes which revision of the rules judges: see past.go.
	TableAntreaPolicyEgressRule  = 10
	TableEgressRule              = 11
	TableEgressDefaultRule       = 12
	TableEgressMetric            = 13
	TableForwarding              = 14
	TableAntreaPolicyIngressRule = 20
	TableIngressRule             = 21
	TableIngressDefaultRule      = 22
	TableIngressMetric           = 23
	TableConntrackCommit         = 24
	TableSCTPCommit              = 25 // The same, for SCTP.
	TableOutput                  = 26
	TableRuleMetric              = 27 // Counts what rules decided, and lets nothing go on.
	TableEgressSession           = 28 // Counts connections begun, and comes back.
	TableIngressSession          = 29

	// The staged world's rules: see world.go.
	TableStagedAntreaPolicyEgressRule  = 30
	TableStagedEgressRule              = 31
	TableStagedEgressDefaultRule       = 32
	TableStagedAntreaPolicyIngressRule = 33
	TableStagedIngressRule             = 34
	TableStagedIngressDefaultRule      = 35

	TableHairpinOutput   = 36 // What a Pod says to itself, with the source translated.
	TableServiceReply    = 37 // Gives SCTP's replies the Service's address, learned; comes back.
	TableServiceAffinity = 38 // Endpoints that clients are held to, learned; comes back.
	TableNameAnswer      = 39 // Holds DNS answers until what they say is in force: see names.go.
	TableMulticast       = 40 // One copy for each member of a group: see multicast.go.
)

var tableNames = map[uint8]string{
	TableClassifier:              "Classifier",
	TableSpoofGuard:              "SpoofGuard",
	TableResolution:              "Resolution",
	TableConntrack:               "Conntrack",
	TableConntrackState:          "ConntrackState",
	TableServiceLB:               "ServiceLB",
	TableServiceEndpoint:         "ServiceEndpoint",
	TableRevision:                "Revision",
	TableSCTPState:               "SCTPState",
	TableAntreaPolicyEgressRule:  "AntreaPolicyEgressRule",
	TableEgressRule:              "EgressRule",
	TableEgressDefaultRule:       "EgressDefaultRule",
	TableEgressMetric:            "EgressMetric",
	TableForwarding:              "Forwarding",
	TableAntreaPolicyIngressRule: "AntreaPolicyIngressRule",
	TableIngressRule:             "IngressRule",
	TableIngressDefaultRule:      "IngressDefaultRule",
	TableIngressMetric:           "IngressMetric",
	TableConntrackCommit:         "ConntrackCommit",
	TableSCTPCommit:              "SCTPCommit",
	TableOutput:                  "Output",
	TableRuleMetric:              "RuleMetric",
	TableEgressSession:           "EgressSession",
	TableIngressSession:          "IngressSession",

	TableStagedAntreaPolicyEgressRule:  "StagedAntreaPolicyEgressRule",
	TableStagedEgressRule:              "StagedEgressRule",
	TableStagedEgressDefaultRule:       "StagedEgressDefaultRule",
	TableStagedAntreaPolicyIngressRule: "StagedAntreaPolicyIngressRule",
	TableStagedIngressRule:             "StagedIngressRule",
	TableStagedIngressDefaultRule:      "StagedIngressDefaultRule",

	TableHairpinOutput:   "HairpinOutput",
	TableServiceReply:    "ServiceReply",
	TableServiceAffinity: "ServiceAffinity",
	TableNameAnswer:      "NameAnswer",
	TableMulticast:       "Multicast",
}

// TableName is a table's name, as audit lines have it.
func TableName(table uint8) string { return tableNames[table] }

// Registers.
//
//	reg0[0..3]  source: 1 a local Pod, 2 the host
//	reg0[8]     the connection was allowed before: rules are skipped
//	reg0[9], reg0[10]
//	            judged as an answer, or as none: see recovery.go
//	reg0[12]    the host itself sends, and does not forward
//	reg0[16..19], reg0[20..23]
//	            the staged world's verdict, egress and ingress: see verdict
//	reg0[24]    handed over to others' flows, while a bridge is adopted
//	reg0[25]    a Pod's to itself, by way of a Service
//	reg0[26]    the answer to that
//	reg0[27]    denied, and not on record: see observe.go
//	reg0[28], reg0[29]
//	            observed, ingress and egress
//	reg1        output port
//	reg2, reg3  ids of the staged world's rule or isolation that decided, and of the rule that passed
//	reg4        id of the rule or isolation that decided, for RuleMetric
//	reg5, reg6  ids of the rules that allowed, egress and ingress
//	reg7[0..15] conntrack zone of an SCTP packet; while one for a Service is judged, the port that it was sent to
//	reg7[16..31] revision of the rules that judge
//	reg8..reg11 endpoint of a Service that was chosen; of IPv4 reg8 alone
//	reg12..reg15 address that an SCTP packet for a Service was sent to; of IPv4 reg12 alone
//	metadata[0..31]
//	            id of the Service's port that the packet was for; zero: none
const (
	regSource, maskSource     = 0, uint32(0xf)
	sourcePod, sourceHost     = uint32(1), uint32(2)
	bitBypass, bitOwnHost     = uint32(1 << 8), uint32(1 << 12)
	bitAnswer, bitNoAnswer    = uint32(1 << 9), uint32(1 << 10)
	bitHanded                 = uint32(1 << 24)
	bitHairpin, bitBack       = uint32(1 << 25), uint32(1 << 26)
	bitDenied                 = uint32(1 << 27)
	regOutput                 = 1
	regStagedRule             = 2
	regStagedPass             = 3
	regDecision               = 4
	regEgressRule             = 5
	regIngressRule            = 6
	regZone                   = 7
	regEndpoint               = 8
	regAsked                  = 12
	zone, hairpinZone         = 1, 2
	markAllowed               = uint32(1)
	markAllowedBack           = uint32(4)  // Of SCTP: from the side that was called first.
	markErrors                = uint32(8)  // Of SCTP: errors about the pair's packets are allowed.
	markRecovered             = uint32(16) // Picked up in its midst: no SYN of it skips the rules.
	labelEgress, labelIngress = 0, 32      // Offsets in ct_label.
	labelService              = 64
)

// bitSeen marks what was observed, by direction.
var bitSeen = [directions]uint32{ingressDirection: 1 << 28, egressDirection: 1 << 29}

// localOutput is LOCAL in the output register: a port that is read from a
// register has 16 bits, whatever the version of OpenFlow.
const localOutput = uint32(0xfffe)

// inPortOutput, in the output register, is back where the packet came from.
const inPortOutput = uint32(0xfff8)

// handedOutput, in the output register, is no port: others' flows are to find it.
const handedOutput = uint32(0x10000)

// Priorities within tables where order matters. K8s rules begin at 190, which
// their audit lines show; ladders give those of the other rules.
const (
	prioMiss      = 0
	prioDefault   = 100
	prioNormal    = 190
	prioHigh      = 200
	prioTop       = 210
	prioGate      = 65000 // To the staged world, ahead of every rule.
	prioSkip      = 65001 // Ahead of that, too.
	prioReport    = 65535 // With the id of a conjunction: its priority hides none.
	prioK8s       = 190
	prioIsolation = 10000 // Ahead of every baseline rule.
)

// Most precedences that rules of a direction may have on one node.
const (
	limitTiers    = 50000
	limitBaseline = 150
)

// lanesMax is how many lanes rules of one precedence may have. The last is
// filled past the cap of conjunctions a flow.
const lanesMax = 150

// Cookies: 0x57 in the top byte, then the layout's version, the kind of the
// flow and what it stands for.
const (
	CookieMark    = uint64(0x57) << 56
	CookieMask    = uint64(0xff) << 56
	LayoutVersion = uint64(4)
)

// CookieKind says what a flow stands for.
type CookieKind uint8

// The kinds of flows.
const (
	KindStatic    CookieKind = 1
	KindPort      CookieKind = 2  // Id: OpenFlow port.
	KindClause    CookieKind = 3  // Id: of its match, so that they are read by cookie in parts; clause flows are shared.
	KindRule      CookieKind = 4  // Id: conjunction id.
	KindIsolation CookieKind = 5  // Id: OpenFlow port.
	KindStaged    CookieKind = 6  // Of the staged world. Id: conjunction id, or OpenFlow port.
	KindDefault   CookieKind = 7  // Allowed since nothing else holds. Id: 0.
	KindCount     CookieKind = 8  // Counts, and decides nothing. Id: of a rule, or of an isolation.
	KindSpoof     CookieKind = 9  // Drops what is forged, and counts it. Id: OpenFlow port.
	KindWatch     CookieKind = 10 // Watches a probe, for some seconds. Id: of the probe.
	KindService   CookieKind = 11 // Balances. Id: of a Service's port.
	KindLearned   CookieKind = 12 // Learned from a client's packet, for some time. Id: of a Service's port.
	KindNames     CookieKind = 13 // Watches DNS. Id: OpenFlow port.
	KindLease     CookieKind = 14 // Has DNS answers held, as long as somebody sees to it. Id: 0.
	KindMulticast CookieKind = 15 // Forwards to the members of a group. Id: the group.
	KindObserve   CookieKind = 16 // Samples connections. Id: OpenFlow port.
	KindRecovery  CookieKind = 17 // Has connections recovered, as long as somebody sees to it. Id: 0.
)

func cookie(kind CookieKind, id uint32) uint64 {
	return CookieMark | LayoutVersion<<48 | uint64(kind)<<40 | uint64(id)
}

// clauseCookie is that of a clause flow. The ids are few: a change of the number of
// parts in which flows are read needs none of theirs.
func clauseCookie(m openflow.Match) uint64 { return cookie(KindClause, m.Hash()%256) }

// ParseCookie reads a cookie; ok is false for one that is not of this layout.
func ParseCookie(c uint64) (kind CookieKind, id uint32, ok bool) {
	if c&CookieMask != CookieMark || c>>48&0xff != LayoutVersion {
		return 0, 0, false
	}
	return CookieKind(c >> 40), uint32(c), true
}

// CarriedID is the id of a flow of a rule, a counting one or one of a Service,
// of this layout or an earlier one: connections may carry it. It is zero for
// other flows.
func CarriedID(c uint64) uint32 {
	if kind := CookieKind(c >> 40); c&CookieMask != CookieMark || (kind != KindRule && kind != KindCount && kind != KindService && kind != KindLearned) {
		return 0
	}
	return uint32(c)
}

// The controller ids of the connections that log events and rejected packets go
// to.
const (
	LogController    = 2
	RejectController = 3
)

// Zone is the conntrack zone of all traffic but SCTP, and HairpinZone that in which
// a Pod that reaches itself by way of a Service is given another source.
const (
	Zone        = zone
	HairpinZone = hairpinZone
)

// RejectMeter limits rejected packets that are to be answered. What limits log
// events stands in logmeters.go.
const RejectMeter = 2

// logBytes of a packet go into a log event: headers, and no more of the user's data than that.
const logBytes = 128

// rejectAction asks for an answer to the packet, beside whatever becomes of it.
func rejectAction() openflow.Action {
	return openflow.Controller{ControllerID: RejectController, MaxLen: answer.FrameBytes, MeterID: RejectMeter}
}

// Answers are the actions that bring an answer to a rejected packet to its
// sender, a Pod here or whoever the host reaches: it is forwarded as what a Pod
// sends, and the rules do not judge it. It comes from no port, and is not tracked.
func Answers() openflow.Actions {
	return actions(openflow.SetReg(regSource, sourcePod|bitBypass, maskSource|bitBypass), openflow.Resubmit(TableForwarding))
}

// refusedData marks rejected packets that no policy denies: nobody serves what
// they ask for.
const refusedData = "\x02"

func refuseAction() openflow.Action {
	return openflow.Controller{ControllerID: RejectController, MaxLen: answer.FrameBytes, MeterID: RejectMeter, UserData: refusedData}
}

// Unserviced says whether a rejected packet is to be answered as if nobody listened.
func Unserviced(userData []byte) bool { return string(userData) == refusedData }

func actions(list ...openflow.Action) openflow.Actions { return openflow.NewActions(list...) }
