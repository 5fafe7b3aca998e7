package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// exactEvent is the event of a sequence: of ten, three are drops of five kinds.
func exactEvent(sequence int) *auditv1.PacketEvent {
	p := &auditv1.PacketEvent{First: timestamppb.New(time.Unix(1_700_000_000, 0).Add(time.Duration(sequence) * time.Millisecond)), Direction: policyv1.Direction_DIRECTION_INGRESS,
		Action: policyv1.Action_ACTION_ALLOW, Table: "IngressRule", Policies: []*policyv1.PolicyRef{{Kind: 1, Namespace: "shop", Name: "p"}}, AppliedTo: "shop/db",
		SourceIp: netip.AddrFrom4([4]byte{10, 1, byte(sequence >> 8), byte(sequence)}).AsSlice(), DestinationIp: []byte{10, 0, 0, 1}, Protocol: 17,
		SourcePort: proto.Uint32(uint32(sequence>>16) + 1), DestinationPort: proto.Uint32(53), Length: 40}
	if sequence%10 < 3 {
		p.Action, p.SourceIp, p.SourcePort = policyv1.Action_ACTION_DROP, []byte{10, 9, 9, byte(sequence % 5)}, proto.Uint32(9)
		p.Count = uint64(1 + sequence%3)
	}
	return p
}

// reportExact reports the first n events of a node, however often the collector
// goes away meanwhile.
func reportExact(ctx context.Context, addr, node string, n int, sent *atomic.Int64) {
	for ctx.Err() == nil {
		if reportSome(ctx, addr, node, n, sent) == nil {
			return
		}
		time.Sleep(10 * time.Millisecond) // Before the next try to connect.
	}
}

func reportSome(ctx context.Context, addr, node string, n int, sent *atomic.Int64) error {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	call, err := auditv1.NewCollectorServiceClient(conn).Report(ctx)
	if err != nil {
		return err
	}
	hello := &auditv1.ReportHello{Node: node, Boot: "b1"}
	if err := call.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	ack, err := call.Recv()
	if err != nil {
		return err
	}
	for next := int(ack.GetAckedSequence()) + 1; next <= n; {
		batch := &auditv1.EventBatch{FirstSequence: uint64(next)}
		for ; next <= n && len(batch.Events) < 100; next++ {
			batch.Events = append(batch.Events, &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: exactEvent(next)}})
		}
		if err := call.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: batch}}); err != nil {
			return err
		}
		for want := uint64(next - 1); ack.GetAckedSequence() < want; {
			if ack, err = call.Recv(); err != nil {
				return err
			}
		}
		sent.Store(int64(next - 1))
		time.Sleep(100 * time.Millisecond) // As the nodes' load is.
	}
	return call.CloseSend()
}

// TestFilesAreExact kills the collector at random points, while nodes report and
// files are set aside and compressed all the time. At the end the files hold each
// packet once: the lines of allowed packets are what they would be without any
// kill, and drops add up.
func TestFilesAreExact(t *testing.T) {
	t.Parallel()
	const perNode, rounds = 12_000, 6
	nodes := []string{"n1", "n2", "n3"}
	a := buildAuditd(t)
	sinks := filepath.Join(a.dir, "sinks.yaml")
	text := fmt.Sprintf("sinks:\n- name: all\n  type: file\n  format: json\n  path: %s\n  maxSize: 200k\n", filepath.Join(a.dir, "all", "all.json"))
	if err := os.WriteFile(sinks, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.args = []string{"--sinks", sinks, "--rotate-size", "40k", "--rotate-keep", "0"}
	a.start()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent := make([]atomic.Int64, len(nodes))
	done := make(chan struct{}, len(nodes))
	for i, node := range nodes {
		go func() { reportExact(ctx, a.addr, node, perNode, &sent[i]); done <- struct{}{} }()
	}
	total := func() (n int64) {
		for i := range sent {
			n += sent[i].Load()
		}
		return n
	}
	for round := range int64(rounds) {
		eventually(t, "a part to be reported", func() bool { return total() >= (round+1)*perNode*3/(rounds+1) })
		time.Sleep(time.Second + rand.N(time.Second)) // The cursor is stored each second; at whatever point that is.
		a.kill()
		a.start()
	}
	for range nodes {
		<-done
	}
	a.written(len(nodes) * perNode)
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	a.cmd = nil

	whole := concatenated(t, filepath.Join(a.dir, "all"), "all", ".json")
	for _, node := range nodes {
		exactJSON(t, whole, node, perNode)
		exactNPLog(t, concatenated(t, filepath.Join(a.dir, "np", node), "np", ".log"), perNode)
	}
}

// written waits until all sinks have written all records.
func (a *auditd) written(records int) {
	a.Helper()
	conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.Fatal(err)
	}
	defer conn.Close()
	eventually(a.T, "all sinks to have written all", func() bool {
		st, err := auditv1.NewAuditServiceClient(conn).Stats(a.Context(), &auditv1.StatsRequest{})
		return err == nil && st.GetKept() == uint64(records) && !slices.ContainsFunc(st.GetSinks(), func(s *auditv1.SinkStats) bool { return s.GetCursor() < st.GetNewestCursor() })
	})
}

// concatenated reads a file and all that were set aside of it, oldest first.
func concatenated(t *testing.T, dir, name, ext string) string {
	t.Helper()
	aside, err := filepath.Glob(filepath.Join(dir, name+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(aside)
	if len(aside) < 3 {
		t.Errorf("%s: only %d files were set aside", dir, len(aside))
	}
	var out strings.Builder
	for _, path := range append(aside, filepath.Join(dir, name+ext)) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if b, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		out.Write(b)
	}
	return out.String()
}

func exactJSON(t *testing.T, text, node string, n int) {
	t.Helper()
	packets, cursors, allowed := make(map[string]uint64), make(map[uint64]bool), 0
	for line := range strings.Lines(text) {
		var r struct {
			Cursor, Sequence uint64
			Node             string
			Packet           struct {
				Count            uint64
				Action, SourceIP string
			}
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if r.Node != node {
			continue
		}
		if cursors[r.Cursor] {
			t.Errorf("two lines of record %d: %s", r.Cursor, line)
		}
		cursors[r.Cursor] = true
		if r.Packet.Action == "drop" {
			packets[r.Packet.SourceIP] += r.Packet.Count
			continue
		}
		for allowed++; allowed%10 < 3; allowed++ { // The sequence of the next that was allowed.
		}
		if int(r.Sequence) != allowed {
			t.Fatalf("%s: line of sequence %d, want %d", node, r.Sequence, allowed)
		}
	}
	for allowed++; allowed%10 < 3; allowed++ {
	}
	if allowed <= n {
		t.Errorf("%s: the lines from sequence %d on are missing", node, allowed)
	}
	for seq := range n {
		if p := exactEvent(seq + 1); p.Action == policyv1.Action_ACTION_DROP {
			packets[netip.AddrFrom4([4]byte(p.SourceIp)).String()] -= p.Count
		}
	}
	for source, left := range packets {
		if left != 0 {
			t.Errorf("%s: %d packets from %s too many", node, int64(left), source)
		}
	}
}

// exactNPLog compares the lines of allowed packets with what the encoder makes of
// them, byte by byte.
func exactNPLog(t *testing.T, text string, n int) {
	t.Helper()
	var got, want strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, " Allow ") {
			got.WriteString(line)
		}
	}
	for seq := range n {
		p := exactEvent(seq + 1)
		if p.Action != policyv1.Action_ACTION_ALLOW {
			continue
		}
		data, err := proto.Marshal(&auditv1.Event{Kind: &auditv1.Event_Packet{Packet: p}})
		if err != nil {
			t.Fatal(err)
		}
		event, err := record.NewDecoder().Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		want.Write(record.NPLog{}.Append(nil, &record.Line{Record: record.Record{Event: event}, Packets: 1}))
	}
	if got.String() != want.String() {
		t.Errorf("np.log has %d bytes of allowed packets, want %d, or they differ", got.Len(), want.Len())
	}
}
