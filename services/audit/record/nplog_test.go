package record

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

const (
	k8s    = policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY
	annp   = policyv1.PolicyKind_POLICY_KIND_ANTREA_NETWORK_POLICY
	allow  = policyv1.Action_ACTION_ALLOW
	drop   = policyv1.Action_ACTION_DROP
	reject = policyv1.Action_ACTION_REJECT
	in     = policyv1.Direction_DIRECTION_INGRESS
	out    = policyv1.Direction_DIRECTION_EGRESS
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse("2006/01/02 15:04:05.999999999", s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func num(v uint32) Number { return Number{v, true} }

// isolation is a SYN that was dropped since deny-all isolates the Pod.
func isolation() Packet {
	return Packet{Count: 1, Direction: in, Action: drop, Table: "IngressDefaultRule", Isolation: true, Reason: "isolation",
		Policies: []Policy{{k8s, "default", "a-deny-all"}, {k8s, "default", "web"}}, AppliedTo: "default/nettool", Peer: "default/client",
		Source: netip.MustParseAddr("10.10.1.13"), Destination: netip.MustParseAddr("10.10.1.7"), Protocol: 6,
		SourcePort: num(57050), DestPort: num(80), Length: 60, TCPFlags: 2}
}

func lineOf(p Packet, packets uint64, window time.Duration) *Line {
	return &Line{Record: Record{Cursor: 7, Node: "n1", Boot: "b1", Sequence: 3, Event: Event{Packet: p}}, Packets: packets, Window: window}
}

// TestNPLogExamples has the example lines of Antrea's documentation, word for
// word.
func TestNPLogExamples(t *testing.T) {
	icmp := Packet{First: at(t, "2023/07/03 23:24:36.4231685"), Direction: out, Action: reject, Table: "AntreaPolicyEgressRule",
		Policies: []Policy{{annp, "default", "reject-icmp-policy"}}, Rule: "RejectICMPRequest", Priority: num(14500), AppliedTo: "default/nettool",
		Source: netip.MustParseAddr("10.10.1.7"), Destination: netip.MustParseAddr("10.10.2.3"), Protocol: 1, Length: 84, LogLabel: "icmp-log-label"}
	first := icmp
	first.First = at(t, "2023/07/03 23:24:35.422233")
	k8sDrop := isolation()
	k8sDrop.First, k8sDrop.Protocol, k8sDrop.SourcePort, k8sDrop.DestPort, k8sDrop.Length = at(t, "2023/07/04 12:33:25.221413"), 1, Number{}, Number{}, 84
	for name, tt := range map[string]struct {
		line *Line
		want string
	}{
		"reject TCP": {lineOf(Packet{First: at(t, "2023/07/04 12:45:20.804416"), Direction: in, Action: reject, Table: "IngressDefaultRule",
			Policies: []Policy{{annp, "default", "reject-tcp-policy"}}, Rule: "RejectTCPRequest", Priority: num(16), AppliedTo: "default/nettoolv3",
			Source: netip.MustParseAddr("10.10.1.7"), SourcePort: num(53646), Destination: netip.MustParseAddr("10.10.1.14"), DestPort: num(80),
			Protocol: 6, Length: 60, LogLabel: "tcp-log-label"}, 1, time.Second),
			"2023/07/04 12:45:21.804416 IngressDefaultRule AntreaNetworkPolicy:default/reject-tcp-policy RejectTCPRequest Ingress Reject 16 default/nettoolv3 10.10.1.7 53646 10.10.1.14 80 TCP 60 tcp-log-label"},
		"reject ICMP": {lineOf(first, 1, time.Second),
			"2023/07/03 23:24:36.422233 AntreaPolicyEgressRule AntreaNetworkPolicy:default/reject-icmp-policy RejectICMPRequest Egress Reject 14500 default/nettool 10.10.1.7 <nil> 10.10.2.3 <nil> ICMP 84 icmp-log-label"},
		"reject ICMP, merged": {lineOf(icmp, 2, 1000855539*time.Nanosecond),
			"2023/07/03 23:24:37.424024 AntreaPolicyEgressRule AntreaNetworkPolicy:default/reject-icmp-policy RejectICMPRequest Egress Reject 14500 default/nettool 10.10.1.7 <nil> 10.10.2.3 <nil> ICMP 84 icmp-log-label [2 packets in 1.000855539s]"},
		"Kubernetes allow": {lineOf(Packet{First: at(t, "2023/07/04 12:31:02.801442"), Direction: in, Action: allow, Table: "IngressRule",
			Policies: []Policy{{k8s, "default", "allow-tcp-80"}, {k8s, "default", "other"}}, Priority: num(190), AppliedTo: "default/nettool",
			Source: netip.MustParseAddr("10.10.1.13"), SourcePort: num(57050), Destination: netip.MustParseAddr("10.10.1.7"), DestPort: num(80), Protocol: 6, Length: 60}, 1, 0),
			"2023/07/04 12:31:02.801442 IngressRule K8sNetworkPolicy:default/allow-tcp-80 <nil> Ingress Allow 190 default/nettool 10.10.1.13 57050 10.10.1.7 80 TCP 60 <nil>"},
		"Kubernetes default drop": {lineOf(k8sDrop, 1, time.Second),
			"2023/07/04 12:33:26.221413 IngressDefaultRule K8sNetworkPolicy <nil> Ingress Drop <nil> default/nettool 10.10.1.13 <nil> 10.10.1.7 <nil> ICMP 84 <nil>"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(NPLog{}.Append(nil, tt.line)); got != tt.want+"\n" {
				t.Errorf("got  %swant %s", got, tt.want)
			}
		})
	}
}

func TestNPLogVariants(t *testing.T) {
	zone := time.FixedZone("CEST", 2*3600)
	p := isolation()
	p.First = at(t, "2023/07/04 12:33:25.221413")
	const head, tail = "2023/07/04 12:33:26.221413 IngressDefaultRule ", " <nil> Ingress Drop <nil> default/nettool 10.10.1.13 57050 10.10.1.7 80 TCP 60 <nil>\n"
	got := string(NPLog{Named: true}.Append(nil, lineOf(p, 1, time.Second)))
	if want := head + "K8sNetworkPolicy:default/a-deny-all,default/web" + tail; got != want {
		t.Errorf("named: %s", got)
	}
	if got := string(NPLog{Zone: zone}.Append(nil, lineOf(p, 1, time.Second))); !strings.HasPrefix(got, "2023/07/04 14:33:26.221413 ") {
		t.Errorf("zone: %s", got)
	}
	v6 := p
	v6.Source, v6.Destination, v6.Protocol, v6.SourcePort, v6.DestPort, v6.Redirected = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), 58, Number{}, Number{}, true
	if got := string(NPLog{}.Append(nil, lineOf(v6, 9, time.Second))); !strings.HasSuffix(got, " Ingress Redirect <nil> default/nettool fd00::1 <nil> fd00::2 <nil> IPv6-ICMP 60 <nil> [9 packets in 1s]\n") {
		t.Errorf("v6: %s", got)
	}
	for n, want := range map[uint8]string{1: "ICMP", 6: "TCP", 17: "UDP", 58: "IPv6-ICMP", 132: "SCTP", 47: "47"} {
		if got := ProtocolName(n); got != want {
			t.Errorf("protocol %d: %s", n, got)
		}
	}
	loss := &Line{Record: Record{Event: Event{Kind: KindLoss, Loss: Loss{Count: 4, Stage: auditv1.LossStage_LOSS_STAGE_METER}}}}
	if got := (NPLog{}).Append(nil, loss); len(got) != 0 {
		t.Errorf("a loss in np.log: %s", got)
	}
	would := p
	would.Staged = &Staged{Action: allow, Policy: Policy{k8s, "default", "open"}}
	if got, want := string(NPLog{}.Append(nil, lineOf(would, 1, time.Second))), string(NPLog{}.Append(nil, lineOf(p, 1, time.Second))); got != want {
		t.Errorf("with a staged outcome: %s", got)
	}
	would.Reason = reasonStaged
	if got := (NPLog{}).Append(nil, lineOf(would, 1, time.Second)); len(got) != 0 {
		t.Errorf("what no policy asked for, in np.log: %s", got)
	}
	for kind, want := range map[policyv1.PolicyKind]string{
		policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY: "AntreaClusterNetworkPolicy:p",
		policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY:          "AdminNetworkPolicy:p",
		policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY: "BaselineAdminNetworkPolicy:p",
		policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY:        "ClusterNetworkPolicy:p",
	} {
		if got := (Policy{Kind: kind, Name: "p"}).String(); got != want {
			t.Error(got)
		}
	}
}
