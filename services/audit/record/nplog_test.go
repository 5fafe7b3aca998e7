package record

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
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

// fluentBit is the expression of the parser that deploy has for Fluent Bit.
func fluentBit(t testing.TB) *regexp.Regexp {
	t.Helper()
	text, err := os.ReadFile("../../../deploy/monitoring/fluent-bit/parsers.conf")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^    Regex +(.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(found) != 1 {
		t.Fatalf("%d expressions in parsers.conf", len(found))
	}
	return regexp.MustCompile(found[0][1])
}

// readsBack says whether a reader gets from a line of np.log what it was made
// of. It takes words apart at spaces, and so knows nothing of how they were put
// together.
func readsBack(fluent *regexp.Regexp, line []byte, l *Line) error {
	text := strings.TrimSuffix(string(line), "\n")
	words, tail, merged := strings.Cut(text, " [")
	w := strings.Split(words, " ")
	if len(w) != 16 {
		return fmt.Errorf("%d words", len(w))
	}
	m := fluent.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("Fluent Bit does not match")
	}
	group := func(name string) string { return m[fluent.SubexpIndex(name)] }
	for i, name := range []string{"table", "policy", "rule", "direction", "action", "priority", "applied_to", "source_ip", "source_port", "destination_ip", "destination_port", "protocol", "length", "log_label"} {
		if group(name) != w[i+2] {
			return fmt.Errorf("Fluent Bit reads %q as %s", group(name), name)
		}
	}
	when, err := time.Parse("2006/01/02 15:04:05.000000", w[0]+" "+w[1])
	if err != nil || !when.Equal(l.Printed().Truncate(time.Microsecond)) {
		return fmt.Errorf("time %s %s: %v", w[0], w[1], err)
	}
	p := &l.Packet
	for i, want := range map[int]string{2: p.Table, 4: p.Rule, 8: p.AppliedTo, 15: p.LogLabel} {
		if got, err := unescaped(w[i]); err != nil || got != want && want != "<nil>" {
			return fmt.Errorf("word %d is %q (%v), want %q", i, got, err, want)
		}
	}
	if l.Overflow {
		if strings.Join(w[9:14], " ") != "<nil> <nil> <nil> <nil> <nil>" {
			return fmt.Errorf("an overflow with ends")
		}
	} else if w[9] != "<nil>" && w[9] != p.Source.String() || p.Source.IsValid() != (w[9] != "<nil>") || w[11] != p.Destination.String() {
		return fmt.Errorf("addresses")
	}
	if merged != (l.Packets > 1) || merged != (group("packets") != "") {
		return fmt.Errorf("merged: %t", merged)
	}
	if merged {
		n, d, ok := strings.Cut(strings.TrimSuffix(tail, "]"), " packets in ")
		if _, err := time.ParseDuration(d); !ok || err != nil || n != strconv.FormatUint(l.Packets, 10) || n != group("packets") || d != group("window") {
			return fmt.Errorf("tail %q", tail)
		}
	}
	return nil
}

func unescaped(word string) (string, error) {
	if word == "<nil>" {
		return "", nil
	}
	return strconv.Unquote(`"` + strings.ReplaceAll(word, `"`, `\"`) + `"`)
}

// TestNPLogExamples has the example lines of Antrea's documentation, word for
// word, and lines of the forms that it describes without an example.
func TestNPLogExamples(t *testing.T) {
	icmp := Packet{First: at(t, "2023/07/03 23:24:36.4231685"), Direction: out, Action: reject, Table: "AntreaPolicyEgressRule",
		Policies: []Policy{{annp, "default", "reject-icmp-policy"}}, Rule: "RejectICMPRequest", Priority: num(14500), AppliedTo: "default/nettool",
		Source: netip.MustParseAddr("10.10.1.7"), Destination: netip.MustParseAddr("10.10.2.3"), Protocol: 1, Length: 84, LogLabel: "icmp-log-label"}
	first := icmp
	first.First = at(t, "2023/07/03 23:24:35.422233")
	fluent := fluentBit(t)
	k8sDrop := isolation()
	k8sDrop.First, k8sDrop.Protocol, k8sDrop.SourcePort, k8sDrop.DestPort, k8sDrop.Length = at(t, "2023/07/04 12:33:25.221413"), 1, Number{}, Number{}, 84
	denyAll := isolation()
	denyAll.First, denyAll.AppliedTo, denyAll.Policies = k8sDrop.First, "default/nginx", []Policy{{k8s, "default", "access-nginx"}}
	layer7 := isolation()
	layer7.First, layer7.Isolation, layer7.Action, layer7.Redirected, layer7.Table = k8sDrop.First, false, allow, true, "AntreaPolicyIngressRule"
	layer7.Policies, layer7.Rule, layer7.Priority = []Policy{{annp, "default", "ingress-allow-http-request-to-api-v2"}}, "allow-http", num(14000)
	node := layer7
	node.Redirected, node.AppliedTo, node.Policies, node.LogLabel = false, "node:n1", []Policy{{acnp, "", "nodes"}}, "web"
	node.Source, node.Destination = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	service := node
	service.Action, service.Table, service.AppliedTo, service.Rule, service.LogLabel, service.DestPort = drop, "NodePort", "service:default/web", "drop-outside", "", num(30080)
	service.Source, service.Destination = netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("192.0.2.1")
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
		"Kubernetes default drop, merged": {lineOf(k8sDrop, 4, 1500*time.Millisecond),
			"2023/07/04 12:33:26.721413 IngressDefaultRule K8sNetworkPolicy <nil> Ingress Drop <nil> default/nettool 10.10.1.13 <nil> 10.10.1.7 <nil> ICMP 84 <nil> [4 packets in 1.5s]"},
		"deny-all": {lineOf(denyAll, 1, time.Second),
			"2023/07/04 12:33:26.221413 IngressDefaultRule K8sNetworkPolicy <nil> Ingress Drop <nil> default/nginx 10.10.1.13 57050 10.10.1.7 80 TCP 60 <nil>"},
		"layer 7": {lineOf(layer7, 1, time.Second),
			"2023/07/04 12:33:26.221413 AntreaPolicyIngressRule AntreaNetworkPolicy:default/ingress-allow-http-request-to-api-v2 allow-http Ingress Redirect 14000 default/nettool 10.10.1.13 57050 10.10.1.7 80 TCP 60 <nil>"},
		"node": {lineOf(node, 1, 0),
			"2023/07/04 12:33:25.221413 AntreaPolicyIngressRule AntreaClusterNetworkPolicy:nodes allow-http Ingress Allow 14000 node:n1 fd00::1 57050 fd00::2 80 TCP 60 web"},
		"NodePort Service": {lineOf(service, 1, time.Second),
			"2023/07/04 12:33:26.221413 NodePort AntreaClusterNetworkPolicy:nodes drop-outside Ingress Drop 14000 service:default/web 203.0.113.7 57050 192.0.2.1 30080 TCP 60 <nil>"},
	} {
		t.Run(name, func(t *testing.T) {
			got := NPLog{}.Append(nil, tt.line)
			if string(got) != tt.want+"\n" {
				t.Errorf("got  %swant %s", got, tt.want)
			}
			if err := readsBack(fluent, got, tt.line); err != nil {
				t.Errorf("%v: %s", err, got)
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
