package record

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Record is one stored event with where it came from. What it points to is
// immutable.
type Record struct {
	Cursor   uint64
	Node     string
	Boot     string
	Sequence uint64 // Zero: stated by the collector.
	Received time.Time
	Event
}

// Kind is what an event tells of.
type Kind uint8

// The kinds. Nodes report packets and losses; the others are the collector's.
const (
	KindPacket Kind = iota
	KindLoss
	KindChange
	KindTest
)

// Event is one thing that the log tells. Of Packet, Loss, Change and Test the
// one of its kind counts.
type Event struct {
	Kind    Kind
	Packet  Packet
	Loss    Loss
	Change  *Change
	Test    *Test
	Context *Context // Of a packet. Nil: nothing was known, or it was only checked.

	HasContext bool
}

// Time is when it was: of packets the first, of losses the end of their
// interval.
func (e *Event) Time() time.Time {
	switch e.Kind {
	case KindLoss:
		return e.Loss.To
	case KindChange:
		return e.Change.Time
	case KindTest:
		return e.Test.Time
	default:
		return e.Packet.First
	}
}

// Packet is one packet, or several alike, that met a logged rule or an
// isolation. See PacketEvent in audit.proto.
type Packet struct {
	First, Last time.Time
	Count       uint64 // At least one.
	Direction   policyv1.Direction
	Action      policyv1.Action
	Table       string
	Policies    []Policy
	Isolation   bool
	Rule        string
	LogLabel    string
	Priority    Number
	AppliedTo   string
	Peer        string
	Source      netip.Addr // Not valid: of an overflow record, or a frame that has none.
	Destination netip.Addr
	Protocol    uint8
	SourcePort  Number
	DestPort    Number
	Length      uint32
	TCPFlags    uint32
	ICMPType    Number
	ICMPCode    Number
	Reason      string
	Redirected  bool
	Service     string // "NAMESPACE/NAME" that was asked for, where the node says so.
	Staged      *Staged
	Forged      *Forged // Of reason "spoof" alone.
}

// Forged is what is told of a packet that is not from who it says. What the
// frame does not have is zero. See PacketEvent in audit.proto.
type Forged struct {
	SourceMAC, ClaimedMAC [6]byte
	EtherType             uint16 // Zero: IP.
	Target                netip.Addr
}

// Context is what the collector knew of a packet's ends and policies. It is
// shared, and immutable. See PacketContext in audit.proto.
type Context struct {
	Source, Destination End
	Service             string
	Policies            []Version // Of Packet.Policies, in their order; or none.
}

// End is whose an address was: a Pod's, or a Node's alone. Zero: not known.
type End struct {
	Namespace, Pod, Node, Workload string
}

// Version tells one version of a policy from others.
type Version struct {
	UID        string
	Generation int64
}

// Change is a change of a policy, tier or group. See ChangeEvent in audit.proto.
type Change struct {
	Time                  time.Time
	Kind                  auditv1.ChangeKind
	Object                *policyv1.ObjectVersion
	Fields                []string
	PodsBefore, PodsAfter uint32
}

// Test is an event for one sink alone. See TestEvent in audit.proto.
type Test struct {
	Sink, ID string
	Time     time.Time
}

// Number is a number that may be absent.
type Number struct {
	Value uint32
	Set   bool
}

// Policy names one policy object.
type Policy struct {
	Kind      policyv1.PolicyKind
	Namespace string
	Name      string
}

// Staged is what would have been decided with the staged policies. See
// StagedOutcome in audit.proto.
type Staged struct {
	Action   policyv1.Action
	Policy   Policy
	Rule     string
	Policies []Policy
}

// reasonStaged is the reason of packets that are on record only because their
// verdict would be another with the staged policies.
const reasonStaged = "staged"

// reasonSpoof is the reason of packets that a Pod sent in another's name.
const reasonSpoof = "spoof"

// forStaged says whether nothing asks for the record but that.
func (p *Packet) forStaged() bool { return p.Reason == reasonStaged }

// reasonObserved is the reason of packets that are a sample of what goes on.
const reasonObserved = "observed"

// Observed says whether the record is a sample of what goes on, which no policy
// asked for.
func (p *Packet) Observed() bool { return p.Reason == reasonObserved }

// printed says whether a packet is for np.log: a policy asked for its record.
func (p *Packet) printed() bool {
	return p.Reason != reasonStaged && p.Reason != reasonSpoof && !p.Observed()
}

// ProtocolName is the name of what the packet's frame carries.
func (p *Packet) ProtocolName() string {
	switch f := p.Forged; {
	case f == nil || f.EtherType == 0:
		return ProtocolName(p.Protocol)
	case f.EtherType == etherARP:
		return "ARP"
	default:
		return fmt.Sprintf("0x%04x", f.EtherType)
	}
}

const etherARP = 0x0806

// hardwareText is an address as it is written; empty where it is zero.
func hardwareText(mac [6]byte) string {
	if mac == [6]byte{} {
		return ""
	}
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5])
}

// addressText is an address as it is written; empty where there is none.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// Loss says that packets which should have been recorded were not.
type Loss struct {
	From, To time.Time
	Count    uint64 // Zero: not known.
	Stage    auditv1.LossStage
	Reason   string // Of the packets, such as "spoof". Empty: any, or not known.
	// Of the rule whose packets they are:
	Policy    Policy             // Without a name: of several, or not known.
	Rule      string             // Empty: as Policy, or it has none.
	Direction policyv1.Direction // Zero: of several, or not known.
}

// Line is what an output writes once: a record, or several merged.
type Line struct {
	Record
	// Of merged records: the packets of all, and for how long they were gathered.
	// Window is zero for a line that was never to be merged.
	Packets  uint64
	Window   time.Duration
	Overflow bool // Packets of one rule that had no place in the table.
}

// Printed is the time that np.log shows: of an allowed packet its own, of
// others the end of the window.
func (l *Line) Printed() time.Time { return l.Packet.First.Add(l.Window) }

var policyPrefixes = map[policyv1.PolicyKind]string{
	policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY:            "K8sNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY: "AntreaClusterNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ANTREA_NETWORK_POLICY:         "AntreaNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY:          "AdminNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY: "BaselineAdminNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY:        "ClusterNetworkPolicy",
}

// Path is "NAMESPACE/NAME", or "NAME".
func (p Policy) Path() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// String is "KIND:NAMESPACE/NAME", as np.log refers to policies.
func (p Policy) String() string {
	return policyPrefixes[p.Kind] + ":" + p.Path()
}

// ProtocolName is the name of an IP protocol, or its number.
func ProtocolName(n uint8) string {
	switch n {
	case 1:
		return "ICMP"
	case 2:
		return "IGMP"
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 58:
		return "IPv6-ICMP"
	case 132:
		return "SCTP"
	}
	return strconv.Itoa(int(n))
}

// actionName is "Allow", "Drop", "Reject" or "Pass"; "Redirect" for packets
// that went to a layer 7 engine.
func (p *Packet) actionName() string {
	if p.Redirected {
		return "Redirect"
	}
	switch p.Action {
	case policyv1.Action_ACTION_ALLOW:
		return "Allow"
	case policyv1.Action_ACTION_DROP:
		return "Drop"
	case policyv1.Action_ACTION_REJECT:
		return "Reject"
	case policyv1.Action_ACTION_PASS:
		return "Pass"
	}
	return "<nil>"
}

func (p *Packet) directionName() string {
	switch p.Direction {
	case policyv1.Direction_DIRECTION_EGRESS:
		return "Egress"
	case policyv1.Direction_DIRECTION_INGRESS:
		return "Ingress"
	}
	return "<nil>"
}

// merges reports whether packets of the kind are merged: allowed ones never are.
func (p *Packet) merges() bool {
	return p.Redirected || p.Action != policyv1.Action_ACTION_ALLOW
}
