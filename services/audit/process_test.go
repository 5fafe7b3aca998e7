package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/packetlog"
)

// auditd is the real binary, which can be killed and started again.
type auditd struct {
	*testing.T
	binary, dir, addr string
	args              []string // Further ones.
	cmd               *exec.Cmd
	says              io.Writer // Gets what it says. Nil: the test's own output.
}

func buildAuditd(t *testing.T) *auditd {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "weir-auditd")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/weirnet/weir/services/cmd/weir-auditd").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return newAuditd(t, binary)
}

// newAuditd has a folder and an address of its own.
func newAuditd(t *testing.T, binary string, args ...string) *auditd {
	t.Helper()
	a := &auditd{T: t, binary: binary, dir: t.TempDir(), args: args}
	// Of an address that no client takes a port of while the process is away.
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(200), rand.IntN(256), 1+rand.IntN(250)))
	if err != nil {
		t.Fatal(err)
	}
	a.addr = l.Addr().String()
	l.Close()
	t.Cleanup(a.kill)
	return a
}

func (a *auditd) start() {
	a.Helper()
	a.cmd = exec.Command(a.binary, append([]string{"--dir", filepath.Join(a.dir, "log"), "--listen", a.addr, "--metrics-listen", "", "--min-free", "1",
		"--np-log-dir", filepath.Join(a.dir, "np"), "--json-file", filepath.Join(a.dir, "audit.json"), "--log-timezone", "UTC", "--log-level", "warn"}, a.args...)...)
	a.cmd.Stderr = os.Stderr
	if a.says != nil {
		a.cmd.Stderr = a.says
	}
	if err := a.cmd.Start(); err != nil {
		a.Fatal(err)
	}
}

// kill is kill -9.
func (a *auditd) kill() {
	if a.cmd != nil {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
		a.cmd = nil
	}
}

// TestKill kills the collector again and again while a shim's reporter sends.
// What was acknowledged is in the log, once; at the end everything is, and
// the files have a line for each packet that was allowed.
func TestKill(t *testing.T) {
	t.Parallel()
	a := buildAuditd(t)
	a.start()
	log := packetlog.NewLog(1 << 20)
	reporter, err := packetlog.NewReporter(packetlog.ReporterConfig{Addresses: []string{a.addr}, Node: "n1", Log: log,
		MinBackoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = reporter.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })

	const rounds, perRound = 4, 5000
	sent := 0
	feed := func(n int) { feedAllows(log, &sent, n) }
	for range rounds {
		before := reporter.Acked()
		feed(perRound)
		eventually(t, "some acknowledgements", func() bool { return reporter.Acked() > before })
		a.kill()
		acked := reporter.Acked()
		feed(10)
		a.start()
		conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		have := uint64(0)
		eventually(t, "the collector to answer", func() bool {
			st, err := auditv1.NewAuditServiceClient(conn).Stats(ctx, &auditv1.StatsRequest{})
			have = st.GetKept()
			return err == nil
		})
		if have < acked {
			t.Fatalf("%d acknowledged, %d kept after a kill", acked, have)
		}
		conn.Close()
	}
	eventually(t, "everything to be acknowledged", func() bool { return reporter.Acked() == uint64(sent) })

	conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call, err := auditv1.NewAuditServiceClient(conn).Tail(ctx, &auditv1.TailRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); ; want++ {
		r, err := call.Recv()
		if err != nil {
			if want != uint64(sent)+1 {
				t.Fatalf("%d records, sent %d events: %v", want-1, sent, err)
			}
			break
		}
		if r.GetRecord().GetCursor() != want || r.GetRecord().GetSequence() != want {
			t.Fatalf("record %d follows %d: %v", r.GetRecord().GetSequence(), want-1, r)
		}
	}
	eventually(t, "a line for each in both files", func() bool {
		return distinctLines(t, filepath.Join(a.dir, "np/n1/np.log"), func(line string) string { return strings.Join(strings.Fields(line)[9:11], " ") }) == sent &&
			distinctLines(t, filepath.Join(a.dir, "audit.json"), func(line string) string {
				var r struct{ Cursor uint64 }
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				return fmt.Sprint(r.Cursor)
			}) == sent
	})
}

// feedAllows has a shim see so many more packets that are allowed, no two alike.
func feedAllows(log *packetlog.Log, sent *int, n int) {
	now := time.Now()
	for range n {
		*sent++
		log.Add(now, packetlog.Key{Table: 1}, packetlog.Packet{Src: netip.AddrFrom4([4]byte{10, 0, byte(*sent >> 8), byte(*sent)}), Dst: netip.MustParseAddr("10.0.0.1"),
			Proto: 17, Length: 40, HasPorts: true, SrcPort: uint16(*sent >> 16), DstPort: 53}, func() (packetlog.Meaning, bool) {
			return packetlog.Meaning{Direction: policyv1.Direction_DIRECTION_INGRESS, Action: policyv1.Action_ACTION_ALLOW, Table: "IngressRule",
				Policies: []*policyv1.PolicyRef{{Kind: 1, Namespace: "shop", Name: "p"}}, AppliedTo: "shop/db"}, true
		})
	}
	log.Flush(now.Add(packetlog.Window))
}

// distinctLines counts the lines of a file by what tells them apart. Its last
// line may be under way.
func distinctLines(t *testing.T, path string, id func(string) string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	seen := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		seen[id(line)] = true
	}
	return len(seen)
}

// TestFlags: what the command line refuses, and says.
func TestFlags(t *testing.T) {
	t.Parallel()
	a := buildAuditd(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--listen", "0.0.0.0:0"}, "beyond loopback"},
		{[]string{"--log-timezone", "Nowhere/X"}, "--log-timezone"},
		{[]string{"--retention-size", "many"}, "--retention-size"},
		{[]string{"--rotate-size", "-1"}, "--rotate-size"},
		{[]string{"--syslog", "x"}, "syslog target"},
		{[]string{"--sinks", "/nothing"}, "--sinks: read sinks: open /nothing"},
		{[]string{"--sinks", sinksFile(t, "sinks: [{name: siem, type: syslog, targt: tcp://h}]")}, `sink siem: unknown field "targt"`},
		{[]string{"--json-file", "/x/a.json", "--sinks", sinksFile(t, "sinks: [{name: a, type: file, path: /x/a.json}]")}, "sink a: path: /x/a.json is --json-file's already"},
		{[]string{"--sinks", sinksFile(t, "sinks: [{name: forward, type: file, path: /x/a.json}]")}, "sink forward: name: a flag's sink has it"},
		{[]string{"--node", "n1"}, "--np-log"},
		{[]string{"--forward", "192.0.2.1:9741"}, "--forward: 192.0.2.1:9741 is beyond loopback"},
		{[]string{"--forward-ca", "ca.crt"}, "--forward HOST:PORT"},
		{[]string{"--forward", "x:1", "--forward-token-file", "t", "--forward-cert", "c"}, "leave --forward-cert and --forward-key out"},
		{[]string{"--forward", "x:1", "--forward-token-file", "t"}, "--policy-server"},
		{[]string{"--np-log-isolation", "all"}, "--np-log-isolation"},
		{[]string{"--nats", "nats://192.0.2.1:4222"}, "--nats: 192.0.2.1:4222 is beyond loopback"},
		{[]string{"--nats", "127.0.0.1:4222"}, "write nats://HOST:PORT"},
		{[]string{"--nats", "nats://127.0.0.1:1", "--nats-stream", "a.b"}, "no name of a stream"},
		{[]string{"--nats", "nats://127.0.0.1:1", "--nats-cert", "c"}, "belong together"},
		{[]string{"--nats", "nats://127.0.0.1:1"}, "open event log weir-audit in NATS"},
	} {
		out, err := exec.Command(a.binary, append(slices.Clone(tt.args), "--dir", filepath.Join(a.dir, "log"))...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%v: %v %s", tt.args, err, out)
		}
	}
}
