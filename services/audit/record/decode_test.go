package record

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leodido/go-syslog/v4/rfc5424"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

func wirePacket() *auditv1.PacketEvent {
	return &auditv1.PacketEvent{
		First: timestamppb.New(time.Unix(1_700_000_000, 123)), Last: timestamppb.New(time.Unix(1_700_000_000, 999)), Count: 3,
		Direction: out, Action: drop, Table: "EgressDefaultRule", Isolation: true,
		Policies: []*policyv1.PolicyRef{{Kind: k8s, Namespace: "shop", Name: "deny"}, {Kind: k8s, Namespace: "shop", Name: "web"}},
		Rule:     "r", LogLabel: "l", OpenflowPriority: proto.Uint32(7), AppliedTo: "shop/db", Peer: "node:n2",
		SourceIp: netip.MustParseAddr("10.0.0.1").AsSlice(), DestinationIp: netip.MustParseAddr("10.0.0.2").AsSlice(), Protocol: 17,
		SourcePort: proto.Uint32(0), DestinationPort: proto.Uint32(53), Length: 90, TcpFlags: 2, IcmpType: proto.Uint32(8), IcmpCode: proto.Uint32(0),
		Reason: "isolation", Redirected: true, Staged: &auditv1.StagedOutcome{Action: allow, Policy: &policyv1.PolicyRef{Kind: k8s, Name: "st"}, Rule: "sr",
			Policies: []*policyv1.PolicyRef{{Kind: k8s, Name: "st"}, {Kind: k8s, Namespace: "shop", Name: "web"}}},
		Service: "shop/db",
	}
}

func wireContext() *auditv1.PacketContext {
	return &auditv1.PacketContext{Source: &auditv1.PacketEnd{Namespace: "shop", Pod: "web-1", Node: "n1", Workload: "Deployment/web"},
		Destination: &auditv1.PacketEnd{Node: "n2"}, Service: "shop/db", Policies: []*auditv1.PolicyVersion{{Uid: "u-1", Generation: 3}, {}}}
}

func wireLoss() *auditv1.LossEvent {
	return &auditv1.LossEvent{From: timestamppb.New(time.Unix(1_700_000_000, 0)), To: timestamppb.New(time.Unix(1_700_000_001, 0)), Count: 4, Stage: 7, Reason: "isolation",
		Policy: &policyv1.PolicyRef{Kind: k8s, Namespace: "shop", Name: "deny"}, Rule: "r", Direction: in}
}

// stated are events that collectors state.
func stated() []*auditv1.Event {
	at := timestamppb.New(time.Unix(1_700_000_000, 5))
	object := &policyv1.ObjectVersion{ApiVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "shop", Name: "deny", Uid: "u-1", Generation: 4, Manager: "kubectl",
		User: "eve", Manifest: []byte(`{"spec":{}}`)}
	return []*auditv1.Event{
		{Kind: &auditv1.Event_Change{Change: &auditv1.ChangeEvent{Time: at, Kind: auditv1.ChangeKind_CHANGE_KIND_UPDATED, Object: object, Fields: []string{"spec.ingress"}, PodsBefore: 2, PodsAfter: 3}}},
		{Kind: &auditv1.Event_Test{Test: &auditv1.TestEvent{Sink: "siem", Id: "4711", Time: at}}},
	}
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func packetEvent(p *auditv1.PacketEvent) *auditv1.Event {
	return &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: p}}
}

func TestDecode(t *testing.T) {
	b := encode(t, packetEvent(wirePacket()))
	d := NewDecoder()
	e, err := d.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, &e, packetEvent(wirePacket()))
	again, _ := d.Decode(b)
	if &again.Packet.Policies[0] != &e.Packet.Policies[0] {
		t.Error("the policies are not shared")
	}
	if n := testing.AllocsPerRun(100, func() { _ = d.DecodeInto(b, &again) }); n > 1 { // The staged outcome.
		t.Errorf("%v allocations an event", n)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(p *auditv1.PacketEvent)
		want  string
	}{
		"source of 5 bytes":   {func(p *auditv1.PacketEvent) { p.SourceIp = make([]byte, 5) }, "packet: source_ip: not of 4 or 16 bytes"},
		"no destination":      {func(p *auditv1.PacketEvent) { p.DestinationIp = nil }, "packet: destination_ip: missing"},
		"families":            {func(p *auditv1.PacketEvent) { p.DestinationIp = make([]byte, 16) }, "packet: destination_ip: of another family than the source"},
		"port":                {func(p *auditv1.PacketEvent) { p.DestinationPort = proto.Uint32(65536) }, "packet: destination_port: out of range"},
		"protocol":            {func(p *auditv1.PacketEvent) { p.Protocol = 256 }, "packet: protocol: out of range"},
		"count":               {func(p *auditv1.PacketEvent) { p.Count = 1 << 63 }, "packet: count: out of range"},
		"no time":             {func(p *auditv1.PacketEvent) { p.First = nil }, "packet: first: missing"},
		"time":                {func(p *auditv1.PacketEvent) { p.First.Seconds = 1 << 60 }, "packet: first: out of range"},
		"nanoseconds":         {func(p *auditv1.PacketEvent) { p.First.Nanos = -1 }, "packet: first: out of range"},
		"long string":         {func(p *auditv1.PacketEvent) { p.Rule = strings.Repeat("x", MaxString+1) }, "packet: rule: too long"},
		"direction":           {func(p *auditv1.PacketEvent) { p.Direction = 0 }, "packet: direction: missing"},
		"action":              {func(p *auditv1.PacketEvent) { p.Action = 77 }, "packet: action: out of range"},
		"policy without name": {func(p *auditv1.PacketEvent) { p.Policies[0].Name = "" }, "packet: policies: kind, name: missing"},
		"policy of no kind":   {func(p *auditv1.PacketEvent) { p.Policies[0].Kind = 99 }, "packet: policies: out of range"},
		"too many policies":   {func(p *auditv1.PacketEvent) { p.Policies = make([]*policyv1.PolicyRef, MaxPolicies+1) }, "packet: policies: too long"},
		"ICMP type":           {func(p *auditv1.PacketEvent) { p.IcmpType = proto.Uint32(256) }, "packet: icmp_type: out of range"},
		"too many staged": {func(p *auditv1.PacketEvent) {
			for range MaxPolicies {
				p.Staged.Policies = append(p.Staged.Policies, p.Policies[0])
			}
		}, "packet: staged: too long"},
		"staged of no kind":     {func(p *auditv1.PacketEvent) { p.Staged.Policies[1] = &policyv1.PolicyRef{Name: "p"} }, "packet: staged: kind, name: missing"},
		"staged without action": {func(p *auditv1.PacketEvent) { p.Staged.Action = 0 }, "packet: staged: action: missing"},
	} {
		t.Run(name, func(t *testing.T) {
			p := wirePacket()
			tt.spoil(p)
			for i := range p.Policies {
				if p.Policies[i] == nil {
					p.Policies[i] = &policyv1.PolicyRef{Kind: k8s, Name: "p"}
				}
			}
			b := encode(t, packetEvent(p))
			for _, d := range []*Decoder{{}, NewDecoder()} {
				if _, err := d.Decode(b); err == nil || err.Error() != tt.want {
					t.Errorf("%v, want %s", err, tt.want)
				}
			}
		})
	}
	for name, b := range map[string][]byte{
		"neither": {}, "cut": encode(t, packetEvent(wirePacket()))[:20], "no UTF-8": append(append([]byte{}, encode(t, packetEvent(&auditv1.PacketEvent{}))...), 0x0a, 3, 0x32, 1, 0xff),
		"no stage": encode(t, &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: &auditv1.LossEvent{From: timestamppb.Now(), To: timestamppb.Now()}}}),
		"no times": encode(t, &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: &auditv1.LossEvent{Stage: 1}}}),
	} {
		if _, err := NewDecoder().Decode(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestDecodeStated: what collectors state is read, and what it must have is asked for.
func TestDecodeStated(t *testing.T) {
	for _, want := range stated() {
		e, err := NewDecoder().Decode(encode(t, want))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, &e, want)
	}
	withContext := packetEvent(wirePacket())
	withContext.Context = wireContext()
	b := encode(t, withContext)
	d := NewDecoder()
	e, err := d.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, &e, withContext)
	again, _ := d.Decode(b)
	if again.Context != e.Context {
		t.Error("the context is not shared")
	}
	if checked, err := (&Decoder{}).Decode(b); err != nil || !checked.HasContext || checked.Context != nil {
		t.Errorf("checked: %+v, %v", checked.Context, err)
	}
	for name, spoil := range map[string]func(c *auditv1.Event){
		"time: out of range":             func(e *auditv1.Event) { e.GetChange().Time = nil },
		"kind: out of range":             func(e *auditv1.Event) { e.GetChange().Kind = 9 },
		"fields: too long":               func(e *auditv1.Event) { e.GetChange().Fields = make([]string, 65) },
		"object: kind, name: missing":    func(e *auditv1.Event) { e.GetChange().Object.Name = "" },
		"object: too long":               func(e *auditv1.Event) { e.GetChange().Object.User = strings.Repeat("x", MaxString+1) },
		"object.manifest: not UTF-8":     func(e *auditv1.Event) { e.GetChange().Object.Manifest = []byte{0xff} },
		"context: only packets have one": func(e *auditv1.Event) { e.Context = wireContext() },
		"context: source: neither of a Pod nor of": func(e *auditv1.Event) {
			e.Context = wireContext()
			e.Context.Source = &auditv1.PacketEnd{Workload: "x/y"}
		},
	} {
		e := stated()[0]
		spoil(e)
		if _, err := NewDecoder().Decode(encode(t, e)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
}

// TestUnattributed: packets whose flow was gone have no direction and action.
func TestUnattributed(t *testing.T) {
	p := wirePacket()
	p.Direction, p.Action, p.Reason, p.Redirected = 0, 0, "unattributed", false
	e, err := (&Decoder{}).Decode(encode(t, packetEvent(p)))
	if err != nil {
		t.Fatal(err)
	}
	if !e.Packet.merges() || e.Packet.actionName() != "<nil>" || e.Packet.directionName() != "<nil>" {
		t.Errorf("%+v", e.Packet)
	}
}

// forgeries are events of packets that Pods sent in another's name: of neighbour
// discovery, of ARP, and of neither.
func forgeries() []*auditv1.PacketEvent {
	forged := func(p *auditv1.PacketEvent) *auditv1.PacketEvent {
		p.First, p.Count, p.Direction, p.Action, p.Table, p.Reason, p.AppliedTo = timestamppb.New(time.Unix(1_700_000_000, 0)), 2, out, drop, "SpoofGuard", "spoof", "shop/db"
		p.Last = p.First
		p.SourceMac = []byte{2, 0, 0, 0, 0, 9}
		return p
	}
	six := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	return []*auditv1.PacketEvent{
		forged(&auditv1.PacketEvent{SourceIp: six("fd00::1"), DestinationIp: six("ff02::1"), Protocol: 58, IcmpType: proto.Uint32(136), IcmpCode: proto.Uint32(0), Length: 72,
			ClaimedMac: []byte{2, 0, 0, 0, 0, 8}, TargetIp: six("fd00::7")}),
		forged(&auditv1.PacketEvent{SourceIp: []byte{10, 0, 0, 7}, DestinationIp: []byte{10, 0, 0, 1}, EtherType: 0x0806, ClaimedMac: []byte{2, 0, 0, 0, 0, 8}}),
		forged(&auditv1.PacketEvent{EtherType: 0x88cc}),
	}
}

// What is forged is read, and written by JSON and syslog with its addresses; np.log
// has no line for it.
func TestForgeries(t *testing.T) {
	rest := []string{
		`"sourceIP":"fd00::1","destinationIP":"ff02::1","protocol":"IPv6-ICMP","icmpType":136,"icmpCode":0,"length":72,"sourceMAC":"02:00:00:00:00:09","claimedMAC":"02:00:00:00:00:08","targetIP":"fd00::7"}}`,
		`"sourceIP":"10.0.0.7","destinationIP":"10.0.0.1","protocol":"ARP","length":0,"sourceMAC":"02:00:00:00:00:09","claimedMAC":"02:00:00:00:00:08"}}`,
		`"protocol":"0x88cc","length":0,"sourceMAC":"02:00:00:00:00:09"}}`,
	}
	message := []string{"IPv6-ICMP", "ARP", "0x88cc"}
	for i, p := range forgeries() {
		e, err := NewDecoder().Decode(encode(t, packetEvent(p)))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, &e, packetEvent(p))
		l := &Line{Record: Record{Cursor: 1, Node: "n", Event: e}, Packets: 2}
		if b := (NPLog{}).Append(nil, l); len(b) > 0 {
			t.Errorf("np.log has %s", b)
		}
		if got := strings.TrimSpace(string(AppendJSON(nil, l))); !strings.HasSuffix(got, `"reason":"spoof","table":"SpoofGuard","policies":[],"isolation":false,"appliedTo":"shop/db",`+rest[i]) {
			t.Errorf("JSON is %s", got)
		}
		text := string(DefaultSyslog().Append(nil, l))
		if _, err := rfc5424.NewParser().Parse([]byte(text)); err != nil || !strings.Contains(text, ` sourceMAC="02:00:00:00:00:09"`) || !strings.HasSuffix(text, "] forged "+message[i]+" from shop/db") {
			t.Errorf("syslog is %s: %v", text, err)
		}
		p.Reason = "rule"
		if _, err := (&Decoder{}).Decode(encode(t, packetEvent(p))); err == nil {
			t.Errorf("a rule's packet with a hardware address is taken: %v", p)
		}
	}
}

// FuzzDecode: what is accepted, protobuf accepts and reads the same.
func FuzzDecode(f *testing.F) {
	f.Add(encode(f, packetEvent(wirePacket())))
	f.Add(encode(f, &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: &auditv1.LossEvent{From: timestamppb.Now(), To: timestamppb.Now(), Count: 4, Stage: 2, Reason: "spoof"}}}))
	f.Add(encode(f, &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: wireLoss()}, Context: wireContext()}))
	f.Add(encode(f, &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: wireLoss()}}))
	f.Add(encode(f, &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: wirePacket()}, Context: wireContext()}))
	for _, e := range stated() {
		f.Add(encode(f, e))
	}
	for _, p := range forgeries() {
		f.Add(encode(f, packetEvent(p)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := NewDecoder().Decode(b)
		if _, check := (&Decoder{}).Decode(b); (err == nil) != (check == nil) {
			t.Fatalf("reading says %v, checking %v", err, check)
		}
		if err != nil {
			return
		}
		var want auditv1.Event
		if err := proto.Unmarshal(b, &want); err != nil {
			t.Fatalf("accepted what protobuf does not: %v", err)
		}
		compare(t, &e, &want)
		l := &Line{Record: Record{Event: e}, Packets: max(1, e.Packet.Count)}
		AppendJSON(nil, l)
		NPLog{}.Append(nil, l)
		DefaultSyslog().Append(nil, l)
	})
}

func compare(t *testing.T, e *Event, want *auditv1.Event) {
	t.Helper()
	compareContext(t, e, want)
	if e.Kind == KindChange || e.Kind == KindTest {
		compareStated(t, e, want)
		return
	}
	if l := want.GetLoss(); l != nil {
		if ref := l.GetPolicy(); ref != nil && e.Loss.Policy != (Policy{ref.GetKind(), ref.GetNamespace(), ref.GetName()}) || ref == nil && e.Loss.Policy != (Policy{}) ||
			e.Loss.Rule != l.GetRule() || e.Loss.Direction != l.GetDirection() {
			t.Fatalf("%+v, want %v", e.Loss, l)
		}
		if e.Kind != KindLoss || e.Loss.Count != l.GetCount() || e.Loss.Stage != l.GetStage() || e.Loss.Reason != l.GetReason() || !e.Loss.From.Equal(l.GetFrom().AsTime()) || !e.Loss.To.Equal(l.GetTo().AsTime()) {
			t.Fatalf("%+v, want %v", e.Loss, l)
		}
		return
	}
	p, w := &e.Packet, want.GetPacket()
	opt := func(n Number) *uint32 {
		if !n.Set {
			return nil
		}
		return &n.Value
	}
	ref := func(r Policy) *policyv1.PolicyRef {
		return &policyv1.PolicyRef{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
	}
	got := &auditv1.PacketEvent{First: timestamppb.New(p.First), Last: timestamppb.New(p.Last), Count: p.Count, Direction: p.Direction, Action: p.Action,
		Table: p.Table, Isolation: p.Isolation, Rule: p.Rule, LogLabel: p.LogLabel, OpenflowPriority: opt(p.Priority), AppliedTo: p.AppliedTo, Peer: p.Peer,
		SourceIp: p.Source.AsSlice(), DestinationIp: p.Destination.AsSlice(), Protocol: uint32(p.Protocol), SourcePort: opt(p.SourcePort), DestinationPort: opt(p.DestPort),
		Length: p.Length, TcpFlags: p.TCPFlags, IcmpType: opt(p.ICMPType), IcmpCode: opt(p.ICMPCode), Reason: p.Reason, Redirected: p.Redirected, Service: p.Service}
	if f := p.Forged; f != nil {
		got.EtherType, got.TargetIp = uint32(f.EtherType), f.Target.AsSlice()
		for _, mac := range []struct {
			of [6]byte
			to *[]byte
		}{{f.SourceMAC, &got.SourceMac}, {f.ClaimedMAC, &got.ClaimedMac}} {
			if mac.of != [6]byte{} {
				*mac.to = mac.of[:]
			}
		}
	}
	for _, r := range p.Policies {
		got.Policies = append(got.Policies, ref(r))
	}
	if s := p.Staged; s != nil {
		got.Staged = &auditv1.StagedOutcome{Action: s.Action, Rule: s.Rule}
		if w.GetStaged().GetPolicy() != nil {
			got.Staged.Policy = ref(s.Policy)
		}
		for _, r := range s.Policies {
			got.Staged.Policies = append(got.Staged.Policies, ref(r))
		}
	}
	w = proto.Clone(w).(*auditv1.PacketEvent)
	w.ProtoReflect().SetUnknown(nil)
	w.Count = max(1, w.Count)
	if w.Last == nil || w.Last.AsTime().Before(w.First.AsTime()) {
		w.Last = w.First
	}
	g, err1 := proto.MarshalOptions{Deterministic: true}.Marshal(got)
	x, err2 := proto.MarshalOptions{Deterministic: true}.Marshal(discardUnknown(w))
	if err1 != nil || err2 != nil || string(g) != string(x) {
		t.Fatalf("got  %v\nwant %v", got, w)
	}
}

func compareStated(t *testing.T, e *Event, want *auditv1.Event) {
	t.Helper()
	if w := want.GetTest(); e.Kind == KindTest && *e.Test == (Test{w.GetSink(), w.GetId(), w.GetTime().AsTime()}) {
		return
	}
	c, w := e.Change, want.GetChange()
	if c == nil || w == nil || !c.Time.Equal(w.GetTime().AsTime()) || c.Kind != w.GetKind() || !proto.Equal(c.Object, w.GetObject()) || !slices.Equal(c.Fields, w.GetFields()) ||
		c.PodsBefore != w.GetPodsBefore() || c.PodsAfter != w.GetPodsAfter() {
		t.Fatalf("%+v, want %v", c, want)
	}
}

func compareContext(t *testing.T, e *Event, want *auditv1.Event) {
	t.Helper()
	w := want.GetContext()
	if (e.Context == nil) != (w == nil) || e.HasContext != (w != nil) {
		t.Fatalf("context %+v, want %v", e.Context, w)
	}
	if w == nil {
		return
	}
	end := func(e *auditv1.PacketEnd) End {
		return End{e.GetNamespace(), e.GetPod(), e.GetNode(), e.GetWorkload()}
	}
	var versions []Version
	for _, v := range w.GetPolicies() {
		versions = append(versions, Version{v.GetUid(), v.GetGeneration()})
	}
	if c := e.Context; c.Source != end(w.GetSource()) || c.Destination != end(w.GetDestination()) || c.Service != w.GetService() || !slices.Equal(c.Policies, versions) {
		t.Fatalf("context %+v, want %v", c, w)
	}
}

func discardUnknown(m *auditv1.PacketEvent) *auditv1.PacketEvent {
	for _, sub := range []proto.Message{m.First, m.Last, m.Staged, m.Staged.GetPolicy()} {
		if sub.ProtoReflect().IsValid() {
			sub.ProtoReflect().SetUnknown(nil)
		}
	}
	for _, p := range append(m.GetStaged().GetPolicies(), m.Policies...) {
		p.ProtoReflect().SetUnknown(nil)
	}
	return m
}
