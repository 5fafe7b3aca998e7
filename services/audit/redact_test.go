package audit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/storage/eventlog"
)

// shopReader sees the Namespace shop.
func shopReader() *view {
	return &view{holder: "a reader", Scope: identity.ScopeOf("shop")}
}

func podEnd(namespace, pod string) *auditv1.PacketEnd {
	return &auditv1.PacketEnd{Namespace: namespace, Pod: pod, Node: "node-of-" + pod, Workload: "Deployment/" + pod}
}

// TestRedaction: what a reader of shop is shown of drop, an ingress packet from a web
// to a db.
func TestRedaction(t *testing.T) {
	type packet = auditv1.PacketEvent
	for _, tt := range []struct {
		name          string
		change        func(*packet)
		context       *auditv1.PacketContext
		unseen        bool
		source        bool // Is shown.
		destination   bool
		node          bool
		redacted      bool
		left, without string // Words of the record's text, with spaces between.
	}{
		{name: "both its own", source: true, destination: true, node: true, left: "shop/db shop/web default-deny"},
		{name: "from a foreign Pod", change: func(p *packet) { p.Peer = "bank/teller" }, destination: true, node: true, redacted: true, left: "shop/db default-deny", without: "bank teller"},
		{name: "from a foreign Pod, by context", change: func(p *packet) { p.Peer = "" }, context: &auditv1.PacketContext{Source: podEnd("bank", "teller"), Destination: podEnd("shop", "db")},
			destination: true, node: true, redacted: true, left: "node-of-db", without: "bank teller"},
		{name: "to a foreign Pod, of whose policies nothing is known", change: func(p *packet) {
			p.AppliedTo, p.Rule, p.LogLabel = "bank/vault", "keep-out", "secret-label"
			p.Policies = []*policyv1.PolicyRef{{Kind: 1, Namespace: "bank", Name: "no-customers"}, {Kind: 2, Name: "cluster-wide"}}
		}, context: &auditv1.PacketContext{Policies: []*auditv1.PolicyVersion{{Uid: "uid-of-bank"}, {Uid: "uid-of-cluster"}}},
			source: true, redacted: true, left: "shop/web cluster-wide uid-of-cluster", without: "bank vault keep-out secret-label uid-of-bank"},
		{name: "neither its own", change: func(p *packet) { p.AppliedTo, p.Peer = "bank/vault", "bank/teller" }, unseen: true},
		{name: "from nobody known, without context", change: func(p *packet) { p.Peer = "" }, destination: true, node: true, redacted: true},
		{name: "from outside", change: func(p *packet) { p.Peer = "" }, context: &auditv1.PacketContext{Destination: podEnd("shop", "db")}, source: true, destination: true, node: true},
		{name: "from nobody known to nobody known", change: func(p *packet) { p.Peer = "" }, context: &auditv1.PacketContext{Service: "shop/db"}, destination: true, node: true, redacted: true},
		{name: "from a Node", change: func(p *packet) { p.Peer = "node:n7" }, context: &auditv1.PacketContext{Source: &auditv1.PacketEnd{Node: "n7"}, Destination: podEnd("shop", "db")},
			destination: true, node: true, redacted: true, without: "n7"},
		{name: "whose ends contradict", change: func(p *packet) { p.Peer = "shop/web" }, context: &auditv1.PacketContext{Source: podEnd("bank", "teller")}, destination: true, node: true, redacted: true, without: "bank teller"},
		{name: "to a foreign Service", change: func(p *packet) {
			p.Direction, p.AppliedTo, p.Peer, p.Service = policyv1.Direction_DIRECTION_EGRESS, "shop/web", "", "bank/counter"
		}, context: &auditv1.PacketContext{Source: podEnd("shop", "web"), Service: "bank/counter"}, source: true, node: true, redacted: true, without: "bank counter"},
		{name: "to its own Service from outside, at a node", change: func(p *packet) { p.AppliedTo, p.Peer = "service:shop/db", "" }, destination: true, node: true, redacted: true, left: "service:shop/db"},
		{name: "staged by a foreign policy", change: func(p *packet) {
			p.Peer = "bank/teller"
			p.Staged = &auditv1.StagedOutcome{Action: 1, Policy: &policyv1.PolicyRef{Kind: 1, Namespace: "bank", Name: "tried"}, Rule: "r-bank", Policies: []*policyv1.PolicyRef{{Kind: 1, Namespace: "bank", Name: "other"}}}
		}, destination: true, node: true, redacted: true, left: "default-deny", without: "bank tried r-bank other"},
		{name: "forged", change: func(p *packet) {
			p.Direction, p.AppliedTo, p.Peer, p.Reason, p.Policies = policyv1.Direction_DIRECTION_EGRESS, "shop/web", "", "spoof", nil
			p.SourceMac, p.ClaimedMac, p.TargetIp = []byte{2, 1, 1, 1, 1, 1}, []byte{2, 2, 2, 2, 2, 2}, netip.MustParseAddr("fd00::99").AsSlice()
		}, node: true, redacted: true, left: "shop/web"},
		{name: "unattributed", change: func(p *packet) {
			p.Direction, p.Action, p.Reason, p.AppliedTo, p.Peer = 0, 0, "unattributed", "shop/db", "bank/teller"
		}, node: true, redacted: true, left: "shop/db", without: "bank teller"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := drop(7)
			e.Context = tt.context
			if tt.change != nil {
				tt.change(e.GetPacket())
			}
			data, err := proto.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			event, err := record.NewDecoder().Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			v := shopReader()
			if v.sees(&event) == tt.unseen {
				t.Fatalf("sees it: %v", !tt.unseen)
			}
			if tt.unseen {
				return
			}
			r := &auditv1.Record{Cursor: 1, Node: "n1", Boot: "b1", Sequence: 5, Event: e}
			redacted := v.redact(r)
			p := r.GetEvent().GetPacket()
			if redacted != tt.redacted || (p.SourceIp != nil) != tt.source || (p.SourcePort != nil) != tt.source || (p.DestinationIp != nil) != tt.destination || (p.DestinationPort != nil) != tt.destination ||
				(r.Node != "") != tt.node || (r.Boot != "") != tt.node || (r.Sequence != 0) != tt.node || p.SourceMac != nil || p.ClaimedMac != nil || p.TargetIp != nil {
				t.Errorf("redacted %v: %v", redacted, r)
			}
			text := r.String()
			for _, word := range strings.Fields(tt.left) {
				if !strings.Contains(text, word) {
					t.Errorf("%s is gone: %s", word, text)
				}
			}
			for _, word := range strings.Fields(tt.without) {
				if strings.Contains(text, word) {
					t.Errorf("%s is shown: %s", word, text)
				}
			}
			if _, err := decoded(r); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNothingForeignIsSent: of random events nothing that is foreign is in the bytes
// that a reader is sent, and no filter that names something foreign, or not shown,
// matches.
func TestNothingForeignIsSent(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	seen := 0
	for range 20_000 {
		g := &foreignEvents{Rand: random}
		e := g.event()
		data, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		event, err := record.NewDecoder().Decode(data)
		if err != nil {
			t.Fatalf("%v: %v", err, e)
		}
		entry := eventlog.Entry{Cursor: 9, Node: g.node, Boot: "boot-of-" + g.node, Sequence: 77_777, Received: day, Data: data}
		c := subscription{view: shopReader()}
		wire, err := c.pick(&entry, &event, encodeResponse(&entry))
		if err != nil {
			t.Fatal(err)
		}
		if wire == nil {
			continue
		}
		seen++
		for _, secret := range g.secrets {
			if bytes.Contains(wire, secret) {
				t.Fatalf("%q is sent of\n%v\nin %q", secret, e, wire)
			}
		}
		for _, f := range g.probes {
			if c.match, err = newFilter(f); err != nil {
				t.Fatal(err)
			}
			if wire, err := c.pick(&entry, &event, nil); err != nil || wire != nil {
				t.Fatalf("%v matches (%v) what is hidden of\n%v", f, err, e)
			}
		}
	}
	if seen < 5000 {
		t.Errorf("only %d events were of the reader's", seen)
	}
}

// foreignEvents makes random packets of which one end at most is of shop, and notes
// what of them is foreign. Foreign names begin with "foreign", and so do addresses,
// with 0xfe 0xed: the markers must not occur by chance.
type foreignEvents struct {
	*rand.Rand
	node    string
	secrets [][]byte
	probes  []*auditv1.RecordFilter
}

func (g *foreignEvents) maybe() bool { return g.IntN(2) == 0 }

func (g *foreignEvents) event() *auditv1.Event {
	ours := g.IntN(3) // 0: the source, 1: the destination, 2: neither.
	ingress := g.maybe()
	e := &auditv1.Event{Context: &auditv1.PacketContext{}}
	p := &auditv1.PacketEvent{First: timestamppb.New(day), Count: 3, Action: policyv1.Action(1 + g.IntN(3)), Table: "T", Protocol: 6, Length: 60, Direction: policyv1.Direction_DIRECTION_EGRESS}
	names, ends := [2]string{}, [2]*auditv1.PacketEnd{}
	address, port := [2][]byte{}, [2]uint32{}
	for i := range 2 {
		if i == ours {
			address[i], port[i], names[i], ends[i] = netip.MustParseAddr("10.0.0.1").AsSlice(), 1234, "shop/own", podEnd("shop", "own")
			continue
		}
		address[i], port[i] = []byte{0xfe, 0xed, byte(1 + g.IntN(250)), byte(1 + g.IntN(250))}, 60_000+uint32(g.IntN(5000))
		switch g.IntN(4) {
		case 0:
			names[i], ends[i] = "foreign-ns/foreign-pod", podEnd("foreign-ns", "foreign-pod")
		case 1:
			names[i], ends[i] = "node:foreign-node", &auditv1.PacketEnd{Node: "foreign-node"}
		case 2:
			names[i] = "foreign-ns/foreign-pod" // Not known to the collector.
		default: // By the collector alone.
			ends[i] = podEnd("foreign-ns", "foreign-pod")
		}
		g.probes = append(g.probes, &auditv1.RecordFilter{Prefix: netip.AddrFrom4([4]byte(address[i])).String()}, &auditv1.RecordFilter{Namespace: "foreign-ns"}, &auditv1.RecordFilter{Pod: "foreign-ns/foreign-pod"})
	}
	if ours != 1 {
		g.probes = append(g.probes, &auditv1.RecordFilter{Port: port[1]})
	}
	if ours < 2 && g.maybe() {
		if g.maybe() {
			names[ours] = ""
		} else {
			ends[ours] = nil
		}
	}
	p.SourceIp, p.DestinationIp, p.SourcePort, p.DestinationPort = address[0], address[1], &port[0], &port[1]
	p.AppliedTo, p.Peer, g.node = names[0], names[1], "foreign-reporter"
	applied := 0
	if ingress {
		p.Direction, p.AppliedTo, p.Peer, applied = policyv1.Direction_DIRECTION_INGRESS, names[1], names[0], 1
	}
	if p.AppliedTo == "shop/own" {
		g.node = "own-node"
	}
	e.Context.Source, e.Context.Destination = ends[0], ends[1]
	g.policies(p, e.Context, applied == ours)
	if ours != 1 && g.maybe() {
		p.Service, e.Context.Service = "foreign-ns/foreign-service", "foreign-ns/foreign-service"
	}
	if g.IntN(8) == 0 { // A newer node says more.
		p.ProtoReflect().SetUnknown(append([]byte{0x82, 0x7d, byte(len("foreign-news"))}, "foreign-news"...))
	}
	if g.IntN(8) == 0 {
		p.Reason, p.SourceMac, p.ClaimedMac, p.TargetIp = "spoof", []byte{0xfe, 0xed, 1, 1, 1, 1}, []byte{0xfe, 0xed, 2, 2, 2, 2}, append([]byte{0xfe, 0xed}, bytes.Repeat([]byte{7}, 14)...)
	}
	g.secrets = append(g.secrets, []byte("foreign"), []byte{0xfe, 0xed})
	for i := range 2 {
		if i != ours {
			g.secrets = append(g.secrets, portField(16+1+i, port[i]))
		}
	}
	if g.node != "own-node" {
		g.probes = append(g.probes, &auditv1.RecordFilter{Node: g.node})
	}
	e.Kind = &auditv1.Event_Packet{Packet: p}
	return e
}

// policies gives a packet those that decided, and staged ones; of foreign Namespaces
// too, as they may be of an end that is not the reader's.
func (g *foreignEvents) policies(p *auditv1.PacketEvent, c *auditv1.PacketContext, ours bool) {
	ref := func() (*policyv1.PolicyRef, string) {
		switch g.IntN(3) {
		case 0:
			return &policyv1.PolicyRef{Kind: 2, Name: "cluster-wide"}, "uid"
		case 1:
			return &policyv1.PolicyRef{Kind: 1, Namespace: "foreign-ns", Name: "foreign-policy"}, "foreign-uid"
		default:
			return &policyv1.PolicyRef{Kind: 1, Namespace: "shop", Name: "own"}, "uid"
		}
	}
	p.Rule, p.LogLabel = "rule", "label"
	for range g.IntN(3) {
		r, uid := ref()
		p.Policies, c.Policies = append(p.Policies, r), append(c.Policies, &auditv1.PolicyVersion{Uid: uid, Generation: 3})
		if r.Namespace == "foreign-ns" {
			p.Rule, p.LogLabel = "foreign-rule", "foreign-label"
			g.probes = append(g.probes, &auditv1.RecordFilter{Policy: "foreign-ns/foreign-policy"}, &auditv1.RecordFilter{Policy: "foreign-policy"})
		}
	}
	if g.maybe() {
		p.Staged = &auditv1.StagedOutcome{Action: 1, Rule: "rule"}
		if p.Staged.Policy, _ = ref(); p.Staged.Policy.Namespace == "foreign-ns" {
			p.Staged.Rule = "foreign-rule"
		}
		for range g.IntN(3) {
			r, _ := ref()
			p.Staged.Policies = append(p.Staged.Policies, r)
		}
	}
}

// portField is a port as it is encoded, with its tag.
func portField(num int, port uint32) []byte {
	e := &auditv1.PacketEvent{SourcePort: &port}
	if num == 18 {
		e = &auditv1.PacketEvent{DestinationPort: &port}
	}
	b, _ := proto.Marshal(e) // Two numbers.
	return b
}

// TestRedactionKnowsEveryField fails when a message that is told to readers has a
// new field, until somebody has said here, and in redact, whether they may see it.
func TestRedactionKnowsEveryField(t *testing.T) {
	for _, tt := range []struct {
		message proto.Message
		fields  int
	}{
		{&auditv1.Record{}, 6}, {&auditv1.Event{}, 5}, {&auditv1.PacketEvent{}, 30}, {&auditv1.PacketContext{}, 4}, {&auditv1.PacketEnd{}, 4}, {&auditv1.PolicyVersion{}, 2},
		{&auditv1.StagedOutcome{}, 4}, {&auditv1.LossEvent{}, 8}, {&auditv1.ChangeEvent{}, 6}, {&policyv1.PolicyRef{}, 3}, {&policyv1.ObjectVersion{}, 9}, {&auditv1.TailResponse{}, 5},
	} {
		d := tt.message.ProtoReflect().Descriptor()
		if n := d.Fields().Len(); n != tt.fields {
			t.Errorf("%s has %d fields, of which %d were judged", d.FullName(), n, tt.fields)
		}
	}
}

// TestReader: by certificate, over TLS: what concerns its Namespaces, and losses as
// counts; nothing but Tail.
func TestReader(t *testing.T) {
	pki := t.TempDir()
	if _, err := identity.Init(identity.InitConfig{Dir: pki, Nodes: []string{"n1"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	for name, namespaces := range map[string][]string{"shop": {"shop"}, "both": {"shop", "bank"}, "else": {"else"}} {
		if _, err := identity.IssueReader(identity.ReaderConfig{Dir: pki, Name: name, Namespaces: namespaces, Now: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	files := func(name string) identity.Files {
		return identity.Files{CA: filepath.Join(pki, "ca.crt"), Cert: filepath.Join(pki, name+".crt"), Key: filepath.Join(pki, name+".key")}
	}
	c := start(t, func(c *Config) { c.TLS = files("auditd") })
	as := func(name string) auditv1.AuditServiceClient {
		config, err := identity.ClientTLS(files(name))
		if err != nil {
			t.Fatal(err)
		}
		return auditv1.NewAuditServiceClient(c.dial(credentials.NewTLS(config)))
	}
	config, err := identity.ClientTLS(files("auditd")) // A collector may state changes too.
	if err != nil {
		t.Fatal(err)
	}
	report, err := auditv1.NewCollectorServiceClient(c.dial(credentials.NewTLS(config))).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{t, report}
	s.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "n1", Boot: "b"}}})
	changed := func(namespace string) *auditv1.Event {
		return &auditv1.Event{Kind: &auditv1.Event_Change{Change: &auditv1.ChangeEvent{Time: timestamppb.New(day), Kind: auditv1.ChangeKind_CHANGE_KIND_CREATED,
			Object: &policyv1.ObjectVersion{Kind: "NetworkPolicy", Namespace: namespace, Name: "p", Manifest: []byte("{}")}}}}
	}
	half, foreign := drop(2), drop(3)
	half.GetPacket().Peer = "bank/teller"
	foreign.GetPacket().AppliedTo, foreign.GetPacket().Peer = "bank/vault", "bank/teller"
	s.batch(1, drop(1), half, foreign, lossEvent(5), changed("shop"), changed("bank"), changed(""),
		&auditv1.Event{Kind: &auditv1.Event_Test{Test: &auditv1.TestEvent{Sink: "s", Id: "1", Time: timestamppb.New(day)}}})
	s.acked(8)

	got := func(name string, f *auditv1.RecordFilter, batch uint32) string {
		call, err := as(name).Tail(t.Context(), &auditv1.TailRequest{Filter: f, Batch: batch})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for {
			r, err := call.Recv()
			if err != nil {
				if status.Code(err) != codes.Unknown { // EOF is.
					return err.Error()
				}
				return strings.Join(out, " ")
			}
			mark := ""
			if r.GetRedacted() {
				mark = "r"
			}
			if r.GetRecord() == nil {
				mark = "end"
			}
			if len(r.GetRecords()) > 0 {
				mark = fmt.Sprint(" of ", len(r.GetRecords()))
			}
			out = append(out, fmt.Sprint(r.GetCursor(), mark))
		}
	}
	for _, tt := range []struct {
		name   string
		filter *auditv1.RecordFilter
		want   string
	}{
		{"operator", nil, "1 2 3 4 5 6 7 8"},
		{"reader-shop", nil, "1 2r 4r 5 8end"},
		{"reader-both", nil, "1 2 3 4r 5 6 8end"},
		{"reader-else", nil, "4r 8end"},
		{"reader-shop", &auditv1.RecordFilter{Node: "n1", Losses: true, Changes: true}, "1 2r 5 8end"},
		{"reader-shop", &auditv1.RecordFilter{Prefix: "10.0.1.5"}, "1 8end"},
		{"reader-shop", &auditv1.RecordFilter{Prefix: "10.0.2.6"}, "1 2r 8end"},
		{"reader-shop", &auditv1.RecordFilter{Namespace: "bank"}, "8end"},
		{"reader-both", &auditv1.RecordFilter{Namespace: "bank"}, "2 3 8end"},
	} {
		batched := tt.want // Readers get no batches: what is hidden is told of each record.
		if tt.name == "operator" {
			batched = "8 of 8"
		}
		for batch, want := range map[uint32]string{0: tt.want, 100: batched} {
			if out := got(tt.name, tt.filter, batch); out != want {
				t.Errorf("%s %v by %d: %s, want %s", tt.name, tt.filter, batch, out, want)
			}
		}
	}
	if out := got("node-n1", nil, 0); !strings.Contains(out, "PermissionDenied") || !strings.Contains(out, "weir://role/reader, with weir://namespace/NAME") {
		t.Errorf("a node: %s", out)
	}
	_, err = as("reader-shop").Stats(t.Context(), &auditv1.StatsRequest{})
	if _, err2 := as("reader-shop").ObjectAt(t.Context(), &auditv1.ObjectAtRequest{}); status.Code(err) != codes.PermissionDenied || status.Code(err2) != codes.PermissionDenied || !strings.Contains(err.Error(), "weir://role/operator") {
		t.Errorf("more than Tail: %v, %v", err, err2)
	}
}

// TestSeats: there are so many, and one identity has half of them.
func TestSeats(t *testing.T) {
	s := seats{most: 4, by: make(map[string]int)}
	var leaves []func()
	take := func(holder string) string {
		leave, err := s.take(holder)
		if err != nil {
			return err.Error()
		}
		leaves = append(leaves, leave)
		return ""
	}
	got := []string{take("a"), take("a"), take("a"), take("b"), take("c"), take("d")}
	if want := []string{"", "", "a has 2 subscriptions already, half of what there may be (--max-subscribers 4)", "", "", "there are 4 subscribers already (--max-subscribers)"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for _, leave := range leaves {
		leave()
	}
	if s.count() != 0 || len(s.by) != 0 {
		t.Errorf("%d are left: %v", s.count(), s.by)
	}
}
