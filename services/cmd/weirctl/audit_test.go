package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit"
	"github.com/weirnet/weir/services/identity"
)

// startCollector runs a collector until the test ends.
func startCollector(t *testing.T, cfg audit.Config) *audit.Service {
	t.Helper()
	cfg.Dir, cfg.Listen, cfg.MinFree, cfg.Logger = t.TempDir(), "127.0.0.1:0", 1, hclog.NewNullLogger()
	s, err := audit.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestAuditOfRealCollector: tail and stats of the collector itself.
func TestAuditOfRealCollector(t *testing.T) {
	ctx := t.Context()
	s := startCollector(t, audit.Config{JSONFile: t.TempDir() + "/audit.json"})
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := auditv1.NewCollectorServiceClient(conn).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	at := timestamppb.New(time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC))
	port := uint32(443)
	batch := &auditv1.EventBatch{FirstSequence: 2, Events: []*auditv1.Event{
		{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{First: at, Count: 4, Direction: policyv1.Direction_DIRECTION_INGRESS, Action: policyv1.Action_ACTION_DROP, Isolation: true,
			Policies: []*policyv1.PolicyRef{shopWeb}, AppliedTo: "shop/web", SourceIp: []byte{203, 0, 113, 7}, DestinationIp: []byte{10, 0, 0, 1}, Protocol: 6, SourcePort: &port, DestinationPort: &port, Length: 60}}},
		{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{First: at, Direction: policyv1.Direction_DIRECTION_EGRESS, Action: policyv1.Action_ACTION_ALLOW,
			AppliedTo: "shop/db", SourceIp: []byte{10, 0, 0, 2}, DestinationIp: []byte{10, 0, 0, 1}, Protocol: 1, Length: 84}}},
	}}
	for _, r := range []*auditv1.ReportRequest{
		{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "n1", Boot: "b1"}}},
		{Message: &auditv1.ReportRequest_Batch{Batch: batch}},
	} {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	await := func(stream auditv1.CollectorService_ReportClient, sequence uint64) {
		t.Helper()
		for {
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if r.GetAckedSequence() == sequence {
				return
			}
		}
	}
	await(stream, 3)

	for _, test := range []struct {
		args []string
		want []string // Parts of the output.
		not  string
	}{
		{[]string{"tail"}, []string{"CURSOR", "lost   -      -", "at transport", "203.0.113.7:443", "K8sNetworkPolicy:shop/web", "allow  ICMP   10.0.0.2 "}, ""},
		{[]string{"tail", "--pod", "shop/web", "--action", "drop", "--losses=false", "--since", "2026-01-01T00:00:00Z", "--prefix", "203.0.113.0/24", "--port", "443"}, []string{"203.0.113.7:443"}, "10.0.0.2"},
		{[]string{"tail", "--after", "2"}, []string{"10.0.0.2"}, "203.0.113.7"},
		{[]string{"tail", "-n", "1"}, []string{"at transport"}, "203.0.113.7"},
		{[]string{"tail", "--from-end", "--since", "1h"}, nil, "203.0.113.7"},
		{[]string{"stats"}, []string{"received 2, kept 2, repeated 0; cursors 1 to 3", "n1     2", "n1     transport   1", "json "}, ""},
	} {
		out, errs, code := run(t, append(append([]string{"audit"}, test.args...), "--server", s.Addr())...)
		for _, part := range test.want {
			if code != 0 || !strings.Contains(out, part) {
				t.Errorf("%v: status %d %s: %q is missing in\n%s", test.args, code, errs, part, out)
			}
		}
		if code != 0 || test.not != "" && strings.Contains(out, test.not) {
			t.Errorf("%v: status %d %s\n%s", test.args, code, errs, out)
		}
	}
	out, _, _ := run(t, "audit", "tail", "-o", "json", "--after", "1", "-n", "1", "--server", s.Addr())
	var rec struct {
		Cursor, Sequence uint64
		Packet           struct {
			Count    uint64
			Policies []string
		}
	}
	if err := json.Unmarshal([]byte(out), &rec); err != nil || rec.Cursor != 2 || rec.Sequence != 2 || rec.Packet.Count != 4 || len(rec.Packet.Policies) != 1 {
		t.Errorf("%v %+v\n%s", err, rec, out)
	}
	// A change of the policy, before and after the packets.
	changes, err := auditv1.NewCollectorServiceClient(conn).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	change := func(hours int64, generation int64, manifest string) *auditv1.Event {
		return &auditv1.Event{Kind: &auditv1.Event_Change{Change: &auditv1.ChangeEvent{Time: &timestamppb.Timestamp{Seconds: at.Seconds + hours*3600}, Kind: auditv1.ChangeKind_CHANGE_KIND_UPDATED,
			Fields: []string{"spec.ingress"}, Object: &policyv1.ObjectVersion{ApiVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "shop", Name: "web", Uid: "u1", Generation: generation,
				Manager: "kubectl-edit", User: "eve", Manifest: []byte(manifest)}}}}
	}
	for _, r := range []*auditv1.ReportRequest{
		{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "policyd.weir.dev", Boot: "b1"}}},
		{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: 1, Events: []*auditv1.Event{
			change(-1, 7, `{"spec":{"ingress":[],"podSelector":{}}}`), change(1, 8, `{"spec":{"podSelector":{}}}`)}}}},
	} {
		if err := changes.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	await(changes, 2)
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"explain", "2"}, []string{"203.0.113.7:443", "applied to   shop/web", "K8sNetworkPolicy:shop/web\n  generation 7, updated 2026-05-06T06:08:09Z by eve with kubectl-edit\n",
			"  updated since, 2026-05-06T08:08:09Z by eve with kubectl-edit: spec.ingress\n    spec:\n      ingress: []\n      podSelector: {}\n"}},
		{[]string{"explain", "3", "-o", "json"}, []string{`"policies": []`, `"cursor": "3"`}},
		{[]string{"report"}, []string{"5 packets in 2 records, 2026-05-06T07:08:09Z to 2026-05-06T07:08:09Z", "SOURCE", "203.0.113.7   shop/web      -         TCP/443   ingress     drop      -        4"}},
		{[]string{"report", "--action", "allow", "-o", "dot"}, []string{"digraph flows {", `"shop/db" -> "10.0.0.1" [label="ICMP allow, 1", color=darkgreen, style=solid];`}},
		{[]string{"report", "--since", "1h", "-o", "json"}, []string{`"flows": []`, `"counters"`}},
		{[]string{"stats"}, []string{"K8sNetworkPolicy:shop/web   -      ingress     -        4         0", "policyd.weir.dev"}},
	} {
		out, errs, code := run(t, append(append([]string{"audit"}, test.args...), "--server", s.Addr())...)
		for _, part := range test.want {
			if code != 0 || !strings.Contains(out, part) {
				t.Errorf("%v: status %d %s: %q is missing in\n%s", test.args, code, errs, part, out)
			}
		}
	}
	for _, wrong := range []string{"x", "0", "99"} {
		if _, errs, code := run(t, "audit", "explain", wrong, "--server", s.Addr()); code != 1 || errs == "" {
			t.Errorf("explain %s: status %d, %s", wrong, code, errs)
		}
	}
	if _, errs, code := run(t, "audit", "tail", "--prefix", "x", "--server", s.Addr()); code != 1 || !strings.Contains(errs, "filter: prefix") {
		t.Errorf("status %d, %s", code, errs)
	}
}

// TestAuditTailOfReader: a reader's certificate shows its Namespace's part; errors
// name what is needed.
func TestAuditTailOfReader(t *testing.T) {
	pki := t.TempDir()
	file := func(name string) string { return filepath.Join(pki, name) }
	if _, errs, code := run(t, "pki", "init", "--dir", filepath.Join(pki, "."), "--node", "n1"); code != 0 {
		t.Fatal(errs)
	}
	out, errs, code := run(t, "pki", "reader", "--dir", pki, "--name", "shop-team", "--namespace", "shop", "--namespace", "cart")
	if code != 0 || out != file("reader-shop-team.crt")+"\n"+file("reader-shop-team.key")+"\n" {
		t.Fatalf("status %d, %s\n%s", code, errs, out)
	}
	if _, errs, code := run(t, "pki", "reader", "--dir", pki, "--name", "x", "--namespace", "*"); code != 1 || !strings.Contains(errs, `Namespace "*"`) {
		t.Errorf("status %d, %s", code, errs)
	}
	ctx := t.Context()
	s := startCollector(t, audit.Config{TLS: identity.Files{CA: file("ca.crt"), Cert: file("auditd.crt"), Key: file("auditd.key")}})
	config, err := identity.ClientTLS(identity.Files{CA: file("ca.crt"), Cert: file("node-n1.crt"), Key: file("node-n1.key")})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := auditv1.NewCollectorServiceClient(conn).Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	packet := func(appliedTo, peer string) *auditv1.Event {
		return &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{First: timestamppb.Now(), Direction: policyv1.Direction_DIRECTION_INGRESS, Action: policyv1.Action_ACTION_DROP,
			AppliedTo: appliedTo, Peer: peer, SourceIp: []byte{10, 9, 8, 7}, DestinationIp: []byte{10, 0, 0, 1}, Protocol: 6, Length: 60}}}
	}
	for _, r := range []*auditv1.ReportRequest{
		{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "n1", Boot: "b1"}}},
		{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: 1, Events: []*auditv1.Event{packet("shop/web", "bank/teller"), packet("bank/vault", "bank/teller")}}}},
	} {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	for acked := uint64(0); acked < 2; {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		acked = r.GetAckedSequence()
	}
	as := func(name string, args ...string) (string, string, int) {
		return run(t, append(append([]string{"audit"}, args...), "--server", s.Addr(), "--ca", file("ca.crt"), "--cert", file(name+".crt"), "--key", file(name+".key"))...)
	}
	for _, format := range []string{"table", "json"} {
		args := []string{"tail"}
		if format == "json" {
			args = append(args, "-o", "json")
		}
		out, errs, code := as("reader-shop-team", args...)
		if code != 0 || !strings.Contains(out, "10.0.0.1") || strings.Contains(out, "10.9.8.7") || strings.Contains(out, "bank") {
			t.Errorf("%s: status %d %s\n%s", format, code, errs, out)
		}
	}
	if _, errs, code := as("node-n1", "tail"); code != 1 || !strings.Contains(errs, "weir://role/reader, with weir://namespace/NAME") {
		t.Errorf("a node: status %d %s", code, errs)
	}
	if _, errs, code := as("reader-shop-team", "stats"); code != 1 || !strings.Contains(errs, "an operator's certificate (weir://role/operator) is needed") {
		t.Errorf("stats: status %d %s", code, errs)
	}
}
