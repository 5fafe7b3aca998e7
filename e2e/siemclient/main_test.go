package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
)

// site is the real collector with certificates, and a node that reports.
type site struct {
	*testing.T
	dir, addr string
	report    grpc.BidiStreamingClient[auditv1.ReportRequest, auditv1.ReportResponse]
	sequence  uint64
}

func build(t *testing.T, dir, name, pkg string) string {
	t.Helper()
	binary := filepath.Join(dir, name)
	if out, err := exec.Command("go", "build", "-o", binary, pkg).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return binary
}

func begin(t *testing.T) *site {
	t.Helper()
	s := &site{T: t, dir: t.TempDir()}
	pki := filepath.Join(s.dir, "pki")
	if _, err := identity.Init(identity.InitConfig{Dir: pki, Nodes: []string{"node-1"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.IssueReader(identity.ReaderConfig{Dir: pki, Name: "shop-team", Namespaces: []string{"shop"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	l.Close()
	auditd := exec.Command(build(t, s.dir, "weir-auditd", "github.com/weirnet/weir/services/cmd/weir-auditd"), "--dir", filepath.Join(s.dir, "log"), "--listen", s.addr, "--metrics-listen", "", "--min-free", "1",
		"--np-log-dir", "", "--log-level", "warn", "--ca", filepath.Join(pki, "ca.crt"), "--cert", filepath.Join(pki, "auditd.crt"), "--key", filepath.Join(pki, "auditd.key"))
	s.run(auditd)
	config, err := identity.ClientTLS(identity.Files{CA: filepath.Join(pki, "ca.crt"), Cert: filepath.Join(pki, "node-node-1.crt"), Key: filepath.Join(pki, "node-node-1.key")})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	if s.report, err = auditv1.NewCollectorServiceClient(conn).Report(ctx, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	s.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "node-1", Boot: "b1"}}})
	return s
}

// run starts a process that ends with the test, if it does not before.
func (s *site) run(cmd *exec.Cmd) (kill func()) {
	s.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	done := false
	kill = func() {
		if !done {
			done = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	s.Cleanup(kill)
	return kill
}

func (s *site) send(r *auditv1.ReportRequest) {
	s.Helper()
	if err := s.report.Send(r); err != nil {
		s.Fatal(err)
	}
}

// drops stores so many dropped packets from a peer to shop/db, whose source ports
// are their sequence.
func (s *site) drops(count int, peer string) {
	s.Helper()
	b := &auditv1.EventBatch{FirstSequence: s.sequence + 1}
	for range count {
		s.sequence++
		source, port := uint32(s.sequence), uint32(5432)
		b.Events = append(b.Events, &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{First: timestamppb.Now(), Count: 1, Direction: policyv1.Direction_DIRECTION_INGRESS,
			Action: policyv1.Action_ACTION_DROP, Table: "IngressDefaultRule", Isolation: true, Reason: "isolation", AppliedTo: "shop/db", Peer: peer,
			Policies: []*policyv1.PolicyRef{{Kind: 1, Namespace: "shop", Name: "default-deny"}}, SourceIp: []byte{10, 0, 1, 5}, DestinationIp: []byte{10, 0, 2, 6}, Protocol: 6,
			SourcePort: &source, DestinationPort: &port, Length: 60}}})
	}
	s.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: b}})
	for {
		r, err := s.report.Recv()
		if err != nil {
			s.Fatal(err)
		}
		if r.GetAckedSequence() == s.sequence {
			return
		}
	}
}

// TestClientResumes: it is killed, events come, and it is started again: it prints
// the exact next record, none twice, none left out.
func TestClientResumes(t *testing.T) {
	s := begin(t)
	client := build(t, s.dir, "siemclient", ".")
	out, err := os.Create(filepath.Join(s.dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	begin := func() (kill func()) {
		cmd := exec.Command(client, "--server", s.addr)
		cmd.Dir, cmd.Stdout = s.dir, out
		return s.run(cmd)
	}
	until := func(cursor string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if got, _ := os.ReadFile(filepath.Join(s.dir, "cursor")); string(got) == cursor {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the cursor is never %s", cursor)
			}
		}
	}
	kill := begin()
	s.drops(40, "shop/web")
	until("40")
	kill()
	s.drops(30, "shop/web")
	kill = begin()
	until("70")
	s.drops(10, "shop/web")
	until("80")
	kill()
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) != 80 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, line := range lines {
		var r struct{ Cursor, Node string }
		if err := json.Unmarshal(line, &r); err != nil || r.Cursor != fmt.Sprint(i+1) || r.Node != "node-1" {
			t.Fatalf("line %d: %v %s", i+1, err, line)
		}
	}
	if source, err := os.ReadFile("main.go"); err != nil || bytes.Count(source, []byte("\n")) > 70 {
		t.Errorf("README.md calls it short: %d lines", bytes.Count(source, []byte("\n")))
	}
}

// TestReadme runs the commands of README.md's SIEM section that call grpcurl, as they
// are but for the address.
func TestReadme(t *testing.T) {
	tools, err := filepath.Abs("../../.tools/bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(tools, "grpcurl")); err != nil {
		if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
			t.Fatal("grpcurl is not installed: make e2e installs it")
		}
		t.Skip("grpcurl is not installed: make e2e installs it")
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Integrate a SIEM\n")
	section, _, _ = strings.Cut(section, "\n## ")
	s := begin(t)
	s.drops(2, "shop/web")
	s.drops(1, "bank/teller")
	var settings []string
	want := [][]string{
		{`"cursor": "1"`, `"appliedTo": "shop/db"`, `"peer": "shop/web"`, `"name": "default-deny"`, `"cursor": "2"`},
		{`"cursor": "3"`, `"peer": "bank/teller"`},
		{`"cursor": "3"`, `"redacted": true`, `"appliedTo": "shop/db"`},
	}
	ran := 0
	for line := range strings.SplitSeq(strings.ReplaceAll(section, "\\\n", " "), "\n") {
		command, ok := strings.CutPrefix(line, "    ")
		if !ok || !strings.HasPrefix(command, "grpcurl") {
			if ok && (strings.HasPrefix(command, "A=") || strings.HasPrefix(command, "R=")) {
				settings = append(settings, command)
			}
			continue
		}
		if ran == len(want) {
			t.Fatalf("one command more: %s", command)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "sh", "-c", strings.Join(append(settings, strings.ReplaceAll(command, "audit.example.net:9741", s.addr)), "\n"))
		cmd.Dir, cmd.Env = s.dir, append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		for _, part := range want[ran] {
			if !bytes.Contains(out, []byte(part)) {
				t.Errorf("%s: %s is missing in\n%s", command, part, out)
			}
		}
		if strings.Contains(command, "$R") && bytes.Contains(out, []byte("bank")) {
			t.Errorf("%s: tells who is foreign:\n%s", command, out)
		}
		ran++
	}
	if ran != len(want) {
		t.Errorf("%d commands, want %d", ran, len(want))
	}
}
