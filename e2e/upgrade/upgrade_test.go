package upgrade

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

var update = flag.Bool("update", false, "record the present version's streams in testdata")

// TestRecord writes testdata, where it is asked to.
func TestRecord(t *testing.T) {
	if !*update {
		t.Skip("streams are recorded with -update")
	}
	dir := filepath.Join("testdata", recorded)
	must(t, os.RemoveAll(dir))
	must(t, os.MkdirAll(dir, 0o755))
	policyd, collector, verdicts, state := live(t)
	policyd.save(t, dir)
	collector.save(t, dir)
	saveDescriptors(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "verdicts"), []byte(joined(verdicts)), 0o644))
	must(t, os.CopyFS(filepath.Join(dir, "state"), os.DirFS(state)))
}

// recordedVerdicts is where packets went.
func recordedVerdicts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", recorded, "verdicts"))
	must(t, err)
	return string(b)
}

// inherit is a node whose shim of the version before left its files.
func inherit(t *testing.T) *node {
	t.Helper()
	n := newNode(t, "")
	n.cfg.StateDir = filepath.Join(n.cfg.StateDir, "state")
	must(t, os.CopyFS(n.cfg.StateDir, os.DirFS(filepath.Join("testdata", recorded, "state"))))
	return n
}

const nobody = "127.0.0.1:1" // No service is there.

// What the shim of the version before left on disk is in force when the present one
// begins without a policy service, and what rules matched goes on from there.
func TestRecordedFilesAreTakenUp(t *testing.T) {
	n := inherit(t)
	s, _ := n.start(t, nobody)
	opened(t, s)
	if got, want := joined(n.verdicts()), recordedVerdicts(t); got != want {
		t.Errorf("packets go otherwise:\n%s\nand went:\n%s", got, want)
	}
	packets := uint64(0)
	stats, _ := s.Counters(0)
	for _, m := range stats {
		for _, r := range m.GetRules() {
			packets += r.GetPackets()
		}
	}
	if packets < 20 {
		t.Errorf("rules have matched %d packets, of 20", packets)
	}
}

// Files of a version that is not known are refused: the shim begins without them,
// and keeps ports closed.
func TestFilesOfAnotherVersionAreRefused(t *testing.T) {
	n := inherit(t)
	for _, name := range []string{"checkpoint", "counters"} {
		path := filepath.Join(n.cfg.StateDir, name)
		b, err := os.ReadFile(path)
		must(t, err)
		b[11]++ // The last byte of the version, behind the magic.
		must(t, os.WriteFile(path, b, 0o600))
	}
	s, _ := n.start(t, nobody)
	eventually(t, func() error {
		ports := s.Stats().GetPorts()
		for _, p := range ports {
			if p.GetOpen() || p.GetReason() == "" {
				return fmt.Errorf("port %v is not closed", p)
			}
		}
		if len(ports) != len(localPods) {
			return fmt.Errorf("%d ports are told of", len(ports))
		}
		return nil
	})
	if got := joined(n.verdicts()); got == recordedVerdicts(t) || regexp.MustCompile(`\[\d`).MatchString(got) {
		t.Errorf("packets pass:\n%s", got)
	}
	if stats, _ := s.Counters(0); slices.ContainsFunc(stats, func(m *policyv1.NodeStats) bool { return len(m.GetRules()) > 0 }) {
		t.Errorf("accounts of another version are told: %v", stats)
	}
}

func joined(lines []string) string {
	var b bytes.Buffer
	for _, l := range lines {
		fmt.Fprintln(&b, l)
	}
	return b.String()
}

// request reads what a shim said.
func request(t testing.TB, body []byte) *policyv1.SubscribeRequest {
	t.Helper()
	m := &policyv1.SubscribeRequest{}
	must(t, proto.Unmarshal(body, m))
	return m
}

func response(t testing.TB, body []byte) *policyv1.SubscribeResponse {
	t.Helper()
	m := &policyv1.SubscribeResponse{}
	must(t, proto.Unmarshal(body, m))
	return m
}

// answerOf is the kind of an answer, and of which revision; empty for what a shim
// tells by itself.
func answerOf(body []byte) string {
	m := &policyv1.SubscribeRequest{}
	if err := proto.Unmarshal(body, m); err != nil {
		return err.Error()
	}
	switch m := m.GetMessage().(type) {
	case *policyv1.SubscribeRequest_Hello:
		return "hello"
	case *policyv1.SubscribeRequest_Inventory:
		return fmt.Sprintf("inventory of %d scopes", len(m.Inventory.GetScopes()))
	case *policyv1.SubscribeRequest_Ack:
		return fmt.Sprint("ack of ", m.Ack.GetRevision())
	case *policyv1.SubscribeRequest_Nack:
		return fmt.Sprint("nack of ", m.Nack.GetRevision())
	}
	return ""
}

// The recordings hold what they are there for.
func TestRecordingsAreOfTheirSessions(t *testing.T) {
	for session, want := range map[string][]string{
		sessionStart: {"hello", "cut", "ack", "stats"}, sessionInSync: {"hello", "in sync", "ack"},
		sessionInventory: {"hello", "inventory request", "inventory", "cut", "ack"}, sessionNack: {"hello", "in sync", "cut", "nack", "inventory request", "inventory", "ack"},
	} {
		said := make(map[string]bool)
		for _, m := range recording(t, session+".Subscribe") {
			if !m.fromService {
				r := request(t, m.body)
				said["hello"], said["ack"] = said["hello"] || r.GetHello() != nil, said["ack"] || r.GetAck() != nil
				said["nack"], said["inventory"] = said["nack"] || r.GetNack() != nil, said["inventory"] || r.GetInventory() != nil
				said["stats"] = said["stats"] || len(r.GetStats().GetRules()) > 0
				continue
			}
			r := response(t, m.body)
			said["in sync"], said["cut"] = said["in sync"] || r.GetInSync() != nil, said["cut"] || r.GetCut() != nil
			said["inventory request"] = said["inventory request"] || r.GetInventoryRequest() != nil
		}
		for _, what := range want {
			if !said[what] {
				t.Errorf("session %s has no %s", session, what)
			}
		}
	}
}

// What the service of the version before said is taken by the present shim, with
// the answers that the shim of then gave: digests come out, and in the end packets
// go where they went.
func TestRecordedServiceIsFollowed(t *testing.T) {
	n := newNode(t, "")
	for _, session := range sessions {
		messages := recording(t, session+".Subscribe")
		p := &player{messages: messages, kind: answerOf, said: make(chan []byte, len(messages)), ended: make(chan error, 1)}
		s, stop := n.start(t, serveRaw(t, p.play))
		select {
		case err := <-p.ended:
			if err != nil {
				t.Fatalf("session %s: %v", session, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("session %s: the shim does not answer as it did", session)
		}
		hello := request(t, <-p.said).GetHello()
		if then := request(t, messages[0].body).GetHello(); !bytes.Equal(hello.GetDigest(), then.GetDigest()) || !proto.Equal(hello.GetPosition(), then.GetPosition()) {
			t.Errorf("session %s: the hello is %v, and was %v", session, hello, then)
		}
		if session == sessions[len(sessions)-1] {
			opened(t, s)
		}
		stop()
	}
	if got, want := joined(n.verdicts()), recordedVerdicts(t); got != want {
		t.Errorf("packets go otherwise:\n%s\nand went:\n%s", got, want)
	}
}

// What the shim of the version before said is served by the present service: it is
// in sync, by the digest that it has or by what it says that it holds.
func TestRecordedShimIsServed(t *testing.T) {
	held := &storage.Replica{} // The shim's state of then.
	for i, session := range sessions {
		step := max(i, 1) // Whose objects there are at the session's end.
		s := newServices(t, objects(step))
		eventually(t, func() error { return s.read(t, step) })
		serve(t, s, recording(t, session+".Subscribe"), held)
		for _, m := range recording(t, session+".Subscribe") { // On to the next session.
			if !m.fromService {
				continue
			}
			switch m := response(t, m.body).GetMessage().(type) {
			case *policyv1.SubscribeResponse_Cut:
				_, _, err := held.Apply(m.Cut)
				must(t, err)
			case *policyv1.SubscribeResponse_InSync:
				held.InSync(m.InSync)
			}
		}
	}
}

// serve says to the service what was recorded, answers with the revisions that the
// service tells now, and returns once the service says that the node is in sync.
func serve(t *testing.T, s *services, messages []message, held *storage.Replica) {
	t.Helper()
	state := &storage.Replica{}
	if held.Revision() > 0 {
		_, _, err := state.Apply(held.Snapshot())
		must(t, err)
	}
	conn, err := grpc.NewClient(s.policyd, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := policyv1.NewPolicyServiceClient(conn).Subscribe(ctx)
	must(t, err)
	var inventories []*policyv1.Inventory
	for _, m := range messages {
		if m.fromService {
			continue
		}
		r := request(t, m.body)
		if inv := r.GetInventory(); inv != nil {
			inventories = append(inventories, inv)
		}
		if r.GetHello() != nil || r.GetStats() != nil {
			must(t, stream.Send(r))
		}
	}
	for {
		m, err := stream.Recv()
		must(t, err)
		revision := uint64(0)
		switch m := m.GetMessage().(type) {
		case *policyv1.SubscribeResponse_InSync:
			revision = m.InSync.GetRevision()
			state.InSync(m.InSync)
		case *policyv1.SubscribeResponse_InventoryRequest:
			answer, err := state.Inventory(m.InventoryRequest)
			must(t, err)
			if len(m.InventoryRequest.GetScopes()) == 0 && len(inventories) > 0 { // As it was given.
				answer, inventories = inventories[0], inventories[1:]
			}
			must(t, stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Inventory{Inventory: answer}}))
			continue
		case *policyv1.SubscribeResponse_Cut:
			_, done, err := state.Apply(m.Cut)
			must(t, err)
			if !done {
				continue
			}
			if !bytes.Equal(state.Digest().Bytes(), m.Cut.GetDigest()) {
				t.Fatalf("revision %d: the digest is %s", m.Cut.GetRevision(), state.Digest())
			}
			revision = m.Cut.GetRevision()
		default:
			t.Fatalf("the service says %v", m)
		}
		must(t, stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: &policyv1.Ack{Revision: revision}}}))
		eventually(t, func() error {
			resp, err := s.inspection.ListNodes(ctx, &policyv1.ListNodesRequest{})
			if err == nil && !slices.ContainsFunc(resp.GetNodes(), func(n *policyv1.NodeSummary) bool { return n.GetName() == "n1" && n.GetInSync() }) {
				err = fmt.Errorf("n1 is not in sync: %v", resp.GetNodes())
			}
			return err
		})
		return
	}
}

// What the shim of the version before reported is taken by the present collector,
// and what the collector of then told is understood.
func TestRecordedReportIsTaken(t *testing.T) {
	s := newServices(t, objects(0))
	conn, err := grpc.NewClient(s.collector, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	stream, err := auditv1.NewCollectorServiceClient(conn).Report(t.Context())
	must(t, err)
	events, last := 0, uint64(0)
	for _, m := range recording(t, sessionStart+".Report") {
		if m.fromService {
			continue
		}
		r := &auditv1.ReportRequest{}
		must(t, proto.Unmarshal(m.body, r))
		must(t, stream.Send(r))
		if n := len(r.GetBatch().GetEvents()); n > 0 {
			events, last = events+n, r.GetBatch().GetFirstSequence()+uint64(n)-1
		}
	}
	for acked := uint64(0); acked < last; {
		r, err := stream.Recv()
		must(t, err)
		acked = r.GetAckedSequence()
	}
	records := tail(t, s.collector)
	if events == 0 || len(records) != events {
		t.Errorf("%d events were reported, and %d records are told", events, len(records))
	}
	told := 0
	for _, m := range recording(t, sessionStart+".Tail") {
		r := &auditv1.TailResponse{}
		if !m.fromService {
			continue
		}
		must(t, proto.Unmarshal(m.body, r))
		if p := r.GetRecord().GetEvent().GetPacket(); p != nil && len(p.GetPolicies()) > 0 {
			told++
		}
	}
	if told == 0 {
		t.Error("nothing of what the collector told names a policy")
	}
}
