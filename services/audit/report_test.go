package audit

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
)

// collector is a running service with its folders.
type collector struct {
	*testing.T
	*Service
	dir  string
	stop func()
}

// start runs a service over real TCP.
func start(t *testing.T, change func(*Config)) *collector {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Dir: filepath.Join(dir, "log"), Listen: "127.0.0.1:0", MinFree: 1, NPLogDir: filepath.Join(dir, "np"), JSONFile: filepath.Join(dir, "audit.json"),
		LogZone: time.UTC, Logger: hclog.NewNullLogger()}
	if change != nil {
		change(&cfg)
	}
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-ran; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return &collector{t, s, dir, stop}
}

func (c *collector) dial(creds credentials.TransportCredentials) *grpc.ClientConn {
	c.Helper()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(c.Addr(), grpc.WithTransportCredentials(creds))
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { conn.Close() })
	return conn
}

type stream struct {
	*testing.T
	grpc.BidiStreamingClient[auditv1.ReportRequest, auditv1.ReportResponse]
}

// report opens a stream and says hello.
func (c *collector) report(node, boot string) *stream {
	c.Helper()
	s, err := auditv1.NewCollectorServiceClient(c.dial(nil)).Report(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	st := &stream{c.T, s}
	st.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: node, Boot: boot}}})
	return st
}

func (s *stream) send(r *auditv1.ReportRequest) {
	s.Helper()
	if err := s.Send(r); err != nil {
		s.Fatal(err)
	}
}

func (s *stream) batch(first uint64, events ...*auditv1.Event) {
	s.Helper()
	s.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: first, Events: events}}})
}

// acked waits for an acknowledgement.
func (s *stream) acked(want uint64) {
	s.Helper()
	for {
		r, err := s.Recv()
		if err != nil {
			s.Fatal(err)
		}
		if r.GetAckedSequence() == want {
			return
		}
		if r.GetAckedSequence() > want {
			s.Fatalf("acknowledged %d, want %d", r.GetAckedSequence(), want)
		}
	}
}

// ends waits for the stream's end.
func (s *stream) ends(want codes.Code, message string) {
	s.Helper()
	for {
		_, err := s.Recv()
		if err == nil {
			continue
		}
		if status.Code(err) != want || !strings.Contains(err.Error(), message) {
			s.Fatalf("ended with %v, want %s %s", err, want, message)
		}
		return
	}
}

var day = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)

// drop is a dropped SYN of an isolated Pod.
func drop(port uint32) *auditv1.Event {
	return &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{
		First: timestamppb.New(day.Add(time.Duration(port) * time.Microsecond)), Count: 1, Direction: policyv1.Direction_DIRECTION_INGRESS, Action: policyv1.Action_ACTION_DROP,
		Table: "IngressDefaultRule", Isolation: true, Reason: "isolation", AppliedTo: "shop/db", Peer: "shop/web",
		Policies: []*policyv1.PolicyRef{{Kind: 1, Namespace: "shop", Name: "default-deny"}, {Kind: 1, Namespace: "shop", Name: "only-api"}},
		SourceIp: netip.MustParseAddr("10.0.1.5").AsSlice(), DestinationIp: netip.MustParseAddr("10.0.2.6").AsSlice(), Protocol: 6,
		SourcePort: proto.Uint32(port), DestinationPort: proto.Uint32(5432), Length: 60, TcpFlags: 2}}}
}

func allow(port uint32) *auditv1.Event {
	e := drop(port)
	p := e.GetPacket()
	p.Action, p.Isolation, p.Reason, p.Table, p.OpenflowPriority = policyv1.Action_ACTION_ALLOW, false, "rule", "IngressRule", proto.Uint32(190)
	p.Policies = []*policyv1.PolicyRef{{Kind: 1, Namespace: "shop", Name: "allow-web"}}
	return e
}

func lossEvent(count uint64) *auditv1.Event {
	return &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: &auditv1.LossEvent{From: timestamppb.New(day), To: timestamppb.New(day.Add(time.Second)), Count: count, Stage: auditv1.LossStage_LOSS_STAGE_METER}}}
}

// tail returns the records that a request yields: "cursor node#sequence what".
func (c *collector) tail(req *auditv1.TailRequest) []string {
	c.Helper()
	call, err := auditv1.NewAuditServiceClient(c.dial(nil)).Tail(c.Context(), req)
	if err != nil {
		c.Fatal(err)
	}
	var out []string
	for {
		r, err := call.Recv()
		if err != nil {
			if err.Error() != "EOF" {
				c.Fatal(err)
			}
			return out
		}
		if r.GetRecord() != nil { // Otherwise it says how far the log was read.
			out = append(out, show(r.GetRecord()))
		}
	}
}

func show(r *auditv1.Record) string {
	what := fmt.Sprintf("%s %d", strings.TrimPrefix(r.GetEvent().GetPacket().GetAction().String(), "ACTION_"), r.GetEvent().GetPacket().GetSourcePort())
	if l := r.GetEvent().GetLoss(); l != nil {
		what = fmt.Sprintf("%s %d", strings.TrimPrefix(l.GetStage().String(), "LOSS_STAGE_"), l.GetCount())
	}
	return fmt.Sprintf("%d %s#%d %s", r.GetCursor(), r.GetNode(), r.GetSequence(), what)
}

func (c *collector) wantTail(req *auditv1.TailRequest, want ...string) {
	c.Helper()
	if got := c.tail(req); !slices.Equal(got, want) {
		c.Fatalf("%v:\n%s\nwant:\n%s", req, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestSequenceDiscipline: acknowledged when durable; repeats are acknowledged
// and not stored; gaps are losses.
func TestSequenceDiscipline(t *testing.T) {
	c := start(t, nil)
	s := c.report("n1", "b1")
	s.acked(0)
	s.batch(1, drop(1), drop(2))
	s.acked(2)
	s.batch(1, drop(1), drop(2), drop(3))
	s.acked(3)
	s.batch(6, lossEvent(9))
	s.acked(6)
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	s.ends(codes.Unknown, "EOF")

	// The same boot goes on; another boot begins with one, or says what it lacks.
	s = c.report("n1", "b1")
	s.acked(6)
	s.batch(7, drop(7))
	s.acked(7)
	s = c.report("n1", "b2")
	s.acked(0)
	s.batch(3, drop(8))
	s.acked(3)
	c.wantTail(&auditv1.TailRequest{}, "1 n1#1 DROP 1", "2 n1#2 DROP 2", "3 n1#3 DROP 3", "4 n1#0 TRANSPORT 2", "5 n1#6 METER 9", "6 n1#7 DROP 7", "7 n1#0 TRANSPORT 2", "8 n1#3 DROP 8")

	st, err := auditv1.NewAuditServiceClient(c.dial(nil)).Stats(t.Context(), &auditv1.StatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.Received != 8 || st.Kept != 6 || st.Duplicates != 2 || st.NewestCursor != 8 || st.OldestCursor != 1 || len(st.Nodes) != 1 || st.Nodes[0].Kept != 6 {
		t.Errorf("%v", st)
	}
	if len(st.Lost) != 2 || st.Lost[0].Count != 9 || st.Lost[1].Count != 4 || st.Lost[1].Stage != auditv1.LossStage_LOSS_STAGE_TRANSPORT {
		t.Errorf("%v", st.Lost)
	}
}

// TestCleanEndAcknowledges: what was sent before the stream was closed is
// acknowledged on it.
func TestCleanEndAcknowledges(t *testing.T) {
	c := start(t, nil)
	s := c.report("n1", "b1")
	for i := range 50 {
		s.batch(uint64(i+1), drop(1))
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	s.acked(50)
	s.ends(codes.Unknown, "EOF")
}

func TestNewerStreamReplacesOlder(t *testing.T) {
	c := start(t, nil)
	older := c.report("n1", "b1")
	older.acked(0)
	other := c.report("n1", "b2")
	other.acked(0)
	newer := c.report("n1", "b1")
	newer.acked(0)
	older.ends(codes.Aborted, "newer stream")
	newer.batch(1, drop(1))
	newer.acked(1)
	other.batch(1, drop(1))
	other.acked(1)
}

// What a stream is told first is all that is stored of those before it, also of one
// that was cut off while it sent: whoever asks may state the rest as lost.
func TestFirstAnswerIsFinal(t *testing.T) {
	c := start(t, nil)
	events := make([]*auditv1.Event, 500)
	for i := range events {
		events[i] = drop(1)
	}
	cut := 0
	for round := range 8 {
		boot := fmt.Sprint("b", round)
		conn := c.dial(nil)
		call, err := auditv1.NewCollectorServiceClient(conn).Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		older := &stream{t, call}
		older.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "n1", Boot: boot}}})
		older.acked(0)
		const batches = 12
		for i := range batches {
			older.batch(uint64(i*len(events)+1), events...)
		}
		if round%2 == 0 {
			conn.Close()
		}
		r, err := c.report("n1", boot).Recv()
		if err != nil {
			t.Fatal(err)
		}
		first := r.GetAckedSequence()
		if first < uint64(batches*len(events)) {
			cut++
		}
		for range 3 { // Each looks again a moment later.
			if r, err = c.report("n1", boot).Recv(); err != nil {
				t.Fatal(err)
			}
			if r.GetAckedSequence() != first {
				t.Fatalf("round %d: first %d, and later %d", round, first, r.GetAckedSequence())
			}
		}
	}
	if cut == 0 {
		t.Error("no stream was cut off while it sent")
	}
}

// TestMalformed: a stream that sends what it may not ends, nothing of the batch
// is stored, and others go on.
func TestMalformed(t *testing.T) {
	c := start(t, nil)
	good := c.report("good", "b1")
	good.acked(0)
	spoilt := func(f func(p *auditv1.PacketEvent)) *auditv1.Event { e := drop(1); f(e.GetPacket()); return e }
	batch := func(first uint64, events ...*auditv1.Event) *auditv1.ReportRequest {
		return &auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: first, Events: events}}}
	}
	transport := lossEvent(1)
	transport.GetLoss().Stage = auditv1.LossStage_LOSS_STAGE_TRANSPORT
	for name, tt := range map[string]struct {
		req  *auditv1.ReportRequest
		want string
	}{
		"address":      {batch(1, drop(1), spoilt(func(p *auditv1.PacketEvent) { p.SourceIp = []byte{1, 2, 3} })), "events[1]: packet: source_ip"},
		"no kind":      {batch(1, &auditv1.Event{}), "neither a packet, a loss, a change nor a test"},
		"empty":        {batch(1), "no events"},
		"zero":         {batch(0, drop(1)), "first_sequence"},
		"wrap":         {batch(^uint64(0), drop(1), drop(2)), "first_sequence"},
		"count":        {batch(1, spoilt(func(p *auditv1.PacketEvent) { p.Count = ^uint64(0) })), "count"},
		"long":         {batch(1, spoilt(func(p *auditv1.PacketEvent) { p.Peer = strings.Repeat("x", 5000) })), "peer: too long"},
		"second hello": {&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "bad", Boot: "b"}}}, "second hello"},
		"nothing":      {&auditv1.ReportRequest{}, "neither a hello nor a batch"},
		"transport":    {batch(1, transport), "stated by the collector"},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.report("bad", "b1")
			s.acked(0)
			s.send(tt.req)
			s.ends(codes.InvalidArgument, tt.want)
		})
	}
	for name, hello := range map[string]*auditv1.ReportHello{"no node": {Boot: "b"}, "path": {Node: "../../etc", Boot: "b"}, "no boot": {Node: "n"}, "long boot": {Node: "n", Boot: strings.Repeat("b", 200)}} {
		t.Run(name, func(t *testing.T) { c.report(hello.GetNode(), hello.GetBoot()).ends(codes.InvalidArgument, "hello") })
	}
	t.Run("no hello", func(t *testing.T) {
		s, err := auditv1.NewCollectorServiceClient(c.dial(nil)).Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st := &stream{t, s}
		st.batch(1, drop(1))
		st.ends(codes.InvalidArgument, "first request must be a hello")
	})
	t.Run("oversized", func(t *testing.T) {
		s := c.report("bad", "b1")
		s.acked(0)
		e := drop(1)
		e.GetPacket().Rule = strings.Repeat("x", 5<<20)
		_ = s.Send(batch(1, e)) // The server may end the stream while we send.
		s.ends(codes.ResourceExhausted, "")
	})
	good.batch(1, drop(1))
	good.acked(1)
	c.wantTail(&auditv1.TailRequest{}, "1 good#1 DROP 1")
}

// TestDiskFull: nothing is acknowledged, health says so, and all goes on later.
func TestDiskFull(t *testing.T) {
	c := start(t, func(c *Config) { c.MinFree = 1 << 62 })
	health := healthv1.NewHealthClient(c.dial(nil))
	is := func(want healthv1.HealthCheckResponse_ServingStatus) func() bool {
		return func() bool {
			for _, service := range []string{"", "weir.audit.v1.CollectorService"} {
				r, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
				if err != nil || r.Status != want {
					return false
				}
			}
			return true
		}
	}
	s := c.report("n1", "b1")
	s.acked(0)
	s.batch(1, drop(1))
	s.ends(codes.Unavailable, "disk nearly full")
	eventually(t, "NOT_SERVING", is(healthv1.HealthCheckResponse_NOT_SERVING))
	c.wantTail(&auditv1.TailRequest{})
	c.stop()

	c = start(t, func(cfg *Config) { cfg.Dir = filepath.Join(c.dir, "log") })
	health = healthv1.NewHealthClient(c.dial(nil))
	eventually(t, "SERVING", is(healthv1.HealthCheckResponse_SERVING))
	s = c.report("n1", "b1")
	s.acked(0)
	s.batch(1, drop(1))
	s.acked(1)
}

// TestMutualTLS: a node reports for itself alone, and reads nothing.
func TestMutualTLS(t *testing.T) {
	pki := t.TempDir()
	if _, err := identity.Init(identity.InitConfig{Dir: pki, Nodes: []string{"n1", "n2"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	files := func(name string) identity.Files {
		return identity.Files{CA: filepath.Join(pki, "ca.crt"), Cert: filepath.Join(pki, name+".crt"), Key: filepath.Join(pki, name+".key")}
	}
	c := start(t, func(c *Config) { c.TLS = files("auditd") })
	as := func(name string) *grpc.ClientConn {
		config, err := identity.ClientTLS(files(name))
		if err != nil {
			t.Fatal(err)
		}
		return c.dial(credentials.NewTLS(config))
	}
	hello := func(conn *grpc.ClientConn, node string) *stream {
		s, err := auditv1.NewCollectorServiceClient(conn).Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st := &stream{t, s}
		st.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: node, Boot: "b"}}})
		return st
	}
	s := hello(as("node-n1"), "n1")
	s.acked(0)
	s.batch(1, drop(1))
	s.acked(1)
	hello(as("node-n1"), "n2").ends(codes.PermissionDenied, "node/n1 may not report for node n2")
	hello(as("operator"), "n1").ends(codes.PermissionDenied, "role/operator")
	plain, err := auditv1.NewCollectorServiceClient(c.dial(nil)).Report(t.Context())
	if err == nil {
		_, err = plain.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("without TLS: %v", err)
	}

	for name, want := range map[string]codes.Code{"node-n1": codes.PermissionDenied, "operator": codes.OK} {
		client := auditv1.NewAuditServiceClient(as(name))
		if _, err := client.Stats(t.Context(), &auditv1.StatsRequest{}); status.Code(err) != want {
			t.Errorf("stats as %s: %v", name, err)
		}
		call, err := client.Tail(t.Context(), &auditv1.TailRequest{})
		if err == nil {
			_, err = call.Recv()
		}
		if status.Code(err) != want {
			t.Errorf("tail as %s: %v", name, err)
		}
	}
}

func TestTail(t *testing.T) {
	c := start(t, nil)
	s := c.report("n1", "b1")
	s.batch(1, drop(1), allow(2), lossEvent(5), drop(4))
	s.acked(4)
	v6 := drop(9)
	p := v6.GetPacket()
	p.SourceIp, p.DestinationIp, p.Direction = netip.MustParseAddr("fd00::5").AsSlice(), netip.MustParseAddr("fd00:1::6").AsSlice(), policyv1.Direction_DIRECTION_EGRESS
	p.AppliedTo, p.Peer, p.DestinationPort, p.First = "other/x", "node:n9", proto.Uint32(80), timestamppb.New(day.Add(time.Hour))
	p.Policies = []*policyv1.PolicyRef{{Kind: 2, Name: "cluster-wide"}}
	p.Staged = &auditv1.StagedOutcome{Action: policyv1.Action_ACTION_ALLOW, Policy: &policyv1.PolicyRef{Kind: 1, Namespace: "shop", Name: "tried"}}
	s2 := c.report("n2", "b1")
	s2.batch(1, v6)
	s2.acked(1)
	const d1, a2, l3, d4, d5 = "1 n1#1 DROP 1", "2 n1#2 ALLOW 2", "3 n1#3 METER 5", "4 n1#4 DROP 4", "5 n2#1 DROP 9"
	filter := func(f *auditv1.RecordFilter) *auditv1.TailRequest { return &auditv1.TailRequest{Filter: f} }

	c.wantTail(&auditv1.TailRequest{}, d1, a2, l3, d4, d5)
	c.wantTail(&auditv1.TailRequest{After: 3}, d4, d5)
	c.wantTail(&auditv1.TailRequest{Limit: 2}, d1, a2)
	c.wantTail(&auditv1.TailRequest{FromEnd: true})
	for _, tt := range []struct {
		f    *auditv1.RecordFilter
		want []string
	}{
		{&auditv1.RecordFilter{}, []string{d1, a2, d4, d5}},
		{&auditv1.RecordFilter{Losses: true}, []string{d1, a2, l3, d4, d5}},
		{&auditv1.RecordFilter{Node: "n2", Losses: true}, []string{d5}},
		{&auditv1.RecordFilter{Action: policyv1.Action_ACTION_ALLOW}, []string{a2}},
		{&auditv1.RecordFilter{Direction: policyv1.Direction_DIRECTION_EGRESS}, []string{d5}},
		{&auditv1.RecordFilter{Namespace: "shop"}, []string{d1, a2, d4}},
		{&auditv1.RecordFilter{Namespace: "sho"}, nil},
		{&auditv1.RecordFilter{Pod: "shop/web"}, []string{d1, a2, d4}},
		{&auditv1.RecordFilter{Pod: "other/x"}, []string{d5}},
		{&auditv1.RecordFilter{Policy: "shop/only-api"}, []string{d1, d4}},
		{&auditv1.RecordFilter{Policy: "allow-web"}, []string{a2}},
		{&auditv1.RecordFilter{Policy: "cluster-wide"}, []string{d5}},
		{&auditv1.RecordFilter{Policy: "shop/tried"}, []string{d5}},
		{&auditv1.RecordFilter{Staged: true, Losses: true}, []string{d5}},
		{&auditv1.RecordFilter{Prefix: "10.0.2.0/24"}, []string{d1, a2, d4}},
		{&auditv1.RecordFilter{Prefix: "fd00::5"}, []string{d5}},
		{&auditv1.RecordFilter{Port: 5432}, []string{d1, a2, d4}},
		{&auditv1.RecordFilter{Since: timestamppb.New(day.Add(time.Minute)), Losses: true}, []string{d5}},
		{&auditv1.RecordFilter{Until: timestamppb.New(day.Add(3 * time.Microsecond)), Losses: true}, []string{d1, a2}},
	} {
		c.wantTail(filter(tt.f), tt.want...)
	}
	for _, bad := range []*auditv1.TailRequest{{After: 1, FromEnd: true}, filter(&auditv1.RecordFilter{Prefix: "x"}), filter(&auditv1.RecordFilter{Port: 65536}), filter(&auditv1.RecordFilter{Pod: "x"}),
		filter(&auditv1.RecordFilter{Action: 99}), filter(&auditv1.RecordFilter{Since: &timestamppb.Timestamp{Nanos: -1}})} {
		call, err := auditv1.NewAuditServiceClient(c.dial(nil)).Tail(t.Context(), bad)
		if err == nil {
			_, err = call.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestTailFollows(t *testing.T) {
	c := start(t, nil)
	s := c.report("n1", "b1")
	s.batch(1, drop(1))
	s.acked(1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	call, err := auditv1.NewAuditServiceClient(c.dial(nil)).Tail(ctx, &auditv1.TailRequest{After: 1, Follow: true, Limit: 20})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		s.batch(uint64(i+2), drop(uint32(i)))
		r, err := call.Recv()
		if err != nil || r.GetRecord().GetCursor() != uint64(i+2) {
			t.Fatalf("%v %v", r, err)
		}
	}
	if _, err := call.Recv(); err == nil || err.Error() != "EOF" {
		t.Errorf("after the limit: %v", err)
	}
	follow, err := auditv1.NewAuditServiceClient(c.dial(nil)).Tail(ctx, &auditv1.TailRequest{FromEnd: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := follow.Recv(); err != nil || r.GetRecord() != nil || r.GetCursor() != 21 {
		t.Errorf("where the end is: %v %v", r, err)
	}
	c.stop() // Streams end at once, and say why.
	if _, err := follow.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("when the collector stops: %v", err)
	}
}

// TestFiles: what the files say of one report.
func TestFiles(t *testing.T) {
	c := start(t, func(c *Config) { c.NPLogIsolation = IsolationNamed })
	s := c.report("n1", "b1")
	s.batch(1, allow(2), drop(7), drop(7), lossEvent(5))
	s.acked(4)
	c.stop()
	np, err := os.ReadFile(filepath.Join(c.dir, "np/n1/np.log"))
	if err != nil {
		t.Fatal(err)
	}
	want := "2026/05/06 07:08:09.000002 IngressRule K8sNetworkPolicy:shop/allow-web <nil> Ingress Allow 190 shop/db 10.0.1.5 2 10.0.2.6 5432 TCP 60 <nil>\n" +
		"2026/05/06 07:08:10.000007 IngressDefaultRule K8sNetworkPolicy:shop/default-deny,shop/only-api <nil> Ingress Drop <nil> shop/db 10.0.1.5 7 10.0.2.6 5432 TCP 60 <nil> [2 packets in 1s]\n"
	if string(np) != want {
		t.Errorf("np.log:\n%swant:\n%s", np, want)
	}
	js, err := os.ReadFile(filepath.Join(c.dir, "audit.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"policies":["K8sNetworkPolicy:shop/default-deny","K8sNetworkPolicy:shop/only-api"],"isolation":true`, `"count":2`, `"peer":"shop/web"`, `"loss":{`, `"stage":"meter"`} {
		if !strings.Contains(string(js), part) {
			t.Errorf("audit.json lacks %s:\n%s", part, js)
		}
	}
	if n := strings.Count(string(js), "\n"); n != 3 {
		t.Errorf("audit.json has %d lines", n)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no folder":     func(c *Config) { c.Dir = "" },
		"beyond":        func(c *Config) { c.Listen = "0.0.0.0:0" },
		"syslog":        func(c *Config) { c.Syslog = []string{"http://x"} },
		"isolation":     func(c *Config) { c.NPLogIsolation = "x" },
		"node alone":    func(c *Config) { c.Node = "n1" },
		"no such files": func(c *Config) { c.TLS = identity.Files{CA: "a", Cert: "b", Key: "c"} },
	} {
		cfg := Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: hclog.NewNullLogger()}
		change(&cfg)
		if _, err := New(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzParseRequest: what is taken for a request, protobuf takes for one too,
// with the same events.
func FuzzParseRequest(f *testing.F) {
	for _, r := range []*auditv1.ReportRequest{
		{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "n1", Boot: "b"}}},
		{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: 3, Events: []*auditv1.Event{drop(1), allow(2), lossEvent(3)}}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := (&parser{fromCollector: true, decoder: &record.Decoder{}}).parse(b)
		if err != nil {
			return
		}
		var want auditv1.ReportRequest
		if err := proto.Unmarshal(b, &want); err != nil {
			t.Fatalf("accepted what protobuf does not: %v", err)
		}
		if r.hello != nil {
			if !proto.Equal(r.hello, want.GetHello()) {
				t.Fatalf("%v, want %v", r.hello, want.GetHello())
			}
			return
		}
		if w := want.GetBatch(); r.first != w.GetFirstSequence() || len(r.events) != len(w.GetEvents()) {
			t.Fatalf("%d events from %d, want %d from %d", len(r.events), r.first, len(w.GetEvents()), w.GetFirstSequence())
		}
		for i, e := range r.events {
			if _, _, n := protowire.ConsumeTag(e.Data); n < 0 {
				t.Fatalf("event %d is no event", i)
			}
		}
	})
}

// TestStatedByCollectorsAlone: a node may not say what was changed, what a packet's
// ends are, or that something was damaged.
func TestStatedByCollectorsAlone(t *testing.T) {
	at := timestamppb.Now()
	withContext := drop(1)
	withContext.Context = &auditv1.PacketContext{Service: "shop/db"}
	damaged := lossEvent(3)
	damaged.GetLoss().Stage = auditv1.LossStage_LOSS_STAGE_DAMAGED
	for name, c := range map[string]struct {
		event *auditv1.Event
		taken bool // From collectors.
	}{
		"packet":  {drop(1), true},
		"context": {withContext, true},
		"test":    {&auditv1.Event{Kind: &auditv1.Event_Test{Test: &auditv1.TestEvent{Sink: "s", Id: "1", Time: at}}}, true},
		"change": {&auditv1.Event{Kind: &auditv1.Event_Change{Change: &auditv1.ChangeEvent{Time: at, Kind: auditv1.ChangeKind_CHANGE_KIND_CREATED,
			Object: &policyv1.ObjectVersion{Kind: "Tier", Name: "t"}}}}, true},
		"damage": {damaged, false},
	} {
		b, err := proto.Marshal(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: 1, Events: []*auditv1.Event{c.event}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&parser{fromCollector: true, decoder: &record.Decoder{}}).parse(b); (err == nil) != c.taken {
			t.Errorf("%s from a collector: %v", name, err)
		}
		if _, err := (&parser{decoder: &record.Decoder{}}).parse(b); (err == nil) != (name == "packet") {
			t.Errorf("%s from a node: %v", name, err)
		}
	}
}
