package client

import (
	"context"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// relay stands between a client and a policy service and may change what the
// service sends.
type relay struct {
	policyv1.UnimplementedPolicyServiceServer
	to     policyv1.PolicyServiceClient
	change func(*policyv1.SubscribeResponse)
}

func (r *relay) Subscribe(down grpc.BidiStreamingServer[policyv1.SubscribeRequest, policyv1.SubscribeResponse]) error {
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	up, err := r.to.Subscribe(ctx)
	if err != nil {
		return err
	}
	go func() {
		defer cancel()
		for {
			m, err := down.Recv()
			if err != nil || up.Send(m) != nil {
				return
			}
		}
	}()
	for {
		m, err := up.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		r.change(m)
		if err := down.Send(m); err != nil {
			return err
		}
	}
}

func newRelay(t *testing.T, address string, change func(*policyv1.SubscribeResponse)) string {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &relay{to: policyv1.NewPolicyServiceClient(conn), change: change}
	return serve(t, func(g *grpc.Server) { policyv1.RegisterPolicyServiceServer(g, r) })
}

// One item that went wrong on its way is found out by the digest and repaired:
// the wrong state is never applied, and nothing that was right is touched.
func TestACorruptedItemIsRepaired(t *testing.T) {
	store := storage.New("epoch")
	for _, name := range []string{"a", "b", "c"} {
		put(store, groupID, name)
		put(store, otherID, name)
	}
	s, h := realServer(t, store), newHandler()
	address := newRelay(t, s.address, func(m *policyv1.SubscribeResponse) {
		for _, sd := range m.GetCut().GetScopes() {
			for _, item := range sd.GetUpserts() {
				if pod := item.GetMember().GetPod(); pod.GetName() == "d" && !m.GetCut().GetSnapshot() && len(sd.GetUpserts()) == 1 {
					item.GetMember().Ips = [][]byte{{10, 9, 9, 9}}
				}
			}
		}
	})
	c := start(t, Config{Addresses: []string{address}}, h)
	h.next(t).answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetInSync() })

	put(store, groupID, "d")
	repaired := h.next(t)
	if len(repaired.touched) != 1 || !repaired.touched[storage.PodKey("ns", "d")] {
		t.Errorf("the repair touches %v, want the corrupted item alone", repaired.touched)
	}
	if c.Mismatches() != 1 || c.Repairs() != 1 {
		t.Errorf("%d mismatches, %d repairs; want one each", c.Mismatches(), c.Repairs())
	}
	repaired.answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetInSync() && n.GetLag() == 0 })
	put(store, otherID, "e")
	if next := h.next(t); len(next.touched) != 1 {
		t.Errorf("the cut after the repair touches %v", next.touched)
	} else {
		next.answer <- nil
	}
}

// A client that comes with an old state gets what differs, and not all of it.
func TestAnOldStateIsBroughtForward(t *testing.T) {
	store := storage.New("epoch")
	for _, name := range []string{"a", "b"} {
		put(store, groupID, name)
	}
	s, h := realServer(t, store), newHandler()
	old := &storage.Replica{}
	first := start(t, Config{Addresses: []string{s.address}}, h)
	h.next(t).answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetInSync() })
	if _, _, err := old.Apply(first.Snapshot()); err != nil {
		t.Fatal(err)
	}
	put(store, groupID, "c")
	h.next(t).answer <- nil
	s.until(t, "acknowledged", func(n *policyv1.NodeSummary) bool { return n.GetInSync() && n.GetLag() == 0 })

	again := newHandler()
	c := start(t, Config{Addresses: []string{s.address}, Replica: old}, again)
	forward := again.next(t)
	if len(forward.touched) != 1 || !forward.touched[storage.PodKey("ns", "c")] || len(forward.members) != 3 {
		t.Errorf("touches %v and holds %v", forward.touched, forward.members)
	}
	forward.answer <- nil
	if c.Repairs() != 1 || c.Mismatches() != 0 {
		t.Errorf("%d repairs, %d mismatches", c.Repairs(), c.Mismatches())
	}
}

// positioned is a snapshot of one member, of a position.
func positioned(t *testing.T, revision, at uint64, name string) *policyv1.Cut {
	t.Helper()
	cut := stateOf(t, cutOf(revision, scopeOf(groupID, name)))
	cut.Position = &policyv1.Position{Sources: map[string]uint64{"pods": at}}
	return cut
}

// The state of a service that stands behind is taken, and counted, but only once
// it was asked again: at the same address there may be another replica.
func TestAServiceThatStandsBehindIsAskedAgain(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	c := start(t, Config{Addresses: []string{address}}, h)
	p, _ := s.next(t)
	p.cut(t, positioned(t, 1, 7, "new"))
	h.next(t).answer <- nil
	p.request(t)
	p.end <- nil

	p, hello := s.next(t)
	if hello.GetPosition().GetSources()["pods"] != 7 {
		t.Errorf("the hello says %v", hello.GetPosition())
	}
	p.cut(t, positioned(t, 2, 6, "old"))
	p.ended(t) // And the handler was not called: it would take what comes.
	if c.Rollbacks() != 0 || c.Snapshot().GetPosition().GetSources()["pods"] != 7 {
		t.Errorf("%d rollbacks, the position is %v", c.Rollbacks(), c.Snapshot().GetPosition())
	}
	p, _ = s.next(t)
	p.cut(t, positioned(t, 2, 6, "old"))
	if got := h.next(t); len(got.members) != 1 || got.members[0] != "old" {
		t.Errorf("members %v are held", got.members)
	} else {
		got.answer <- nil
	}
	p.request(t)
	if c.Rollbacks() != 1 {
		t.Errorf("%d rollbacks", c.Rollbacks())
	}
}

// Of several services, one that is not behind is found before the state of one
// that is is taken over, as often as streams end.
func TestTheServiceThatIsNotBehindIsFound(t *testing.T) {
	fresh, freshAddress := newScript(t)
	old, oldAddress := newScript(t)
	h := newHandler()
	c := start(t, Config{Addresses: []string{oldAddress, freshAddress}, Replica: heldFrom(t, positioned(t, 1, 7, "new"))}, h)
	met := 0 // Streams of the old one.
	for served := 0; served < 3; {
		select {
		case p := <-old.streams:
			met++
			p.cut(t, positioned(t, 9, 6, "old"))
			p.ended(t)
		case p := <-fresh.streams:
			served++
			p.cut(t, positioned(t, uint64(served), 7, "new"))
			got := h.next(t)
			if len(got.members) != 1 || got.members[0] != "new" {
				t.Fatalf("members %v are held", got.members)
			}
			got.answer <- nil
			for p.request(t).GetAck() == nil {
			}
			p.end <- nil
		case <-time.After(10 * time.Second):
			t.Fatal("no stream")
		}
	}
	if met == 0 || c.Rollbacks() != 0 {
		t.Errorf("%d streams of the old service, %d rollbacks", met, c.Rollbacks())
	}
}

func heldFrom(t *testing.T, cut *policyv1.Cut) *storage.Replica {
	t.Helper()
	r := &storage.Replica{}
	if _, _, err := r.Apply(cut); err != nil {
		t.Fatal(err)
	}
	return r
}

// A service that owes an answer, the first or a repair, is left.
func TestAServiceThatOwesAnAnswerIsLeft(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	start(t, Config{Addresses: []string{address}, AnswerTimeout: 100 * time.Millisecond}, h)
	p, _ := s.next(t)
	p.ended(t)

	p, _ = s.next(t)
	p.cut(t, stateOf(t, cutOf(1, scopeOf(groupID, "a"))))
	h.next(t).answer <- nil
	p.request(t)
	p.cut(t, &policyv1.Cut{Epoch: "epoch", Revision: 2, Digest: make([]byte, 16)})
	p.ended(t)
	if _, hello := s.next(t); len(hello.GetDigest()) != 16 {
		t.Errorf("the hello says %v", hello)
	}
}

// A state whose digest did not come out is not put in force later either, when
// cuts that were refused are tried again.
func TestAWrongStateIsNotTriedAgain(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	start(t, Config{Addresses: []string{address}, AnswerTimeout: 2 * retryInterval}, h)
	p, _ := s.next(t)
	p.cut(t, stateOf(t, cutOf(1, scopeOf(groupID, "a"), scopeOf(otherID, "b"))))
	h.next(t).answer <- nil
	p.request(t)
	p.cut(t, &policyv1.Cut{Epoch: "epoch", Revision: 2, Digest: make([]byte, 16), Scopes: []*policyv1.ScopeDelta{{Id: otherID[:], Gone: true}}})
	if nack := p.request(t).GetNack(); nack.GetRevision() != 2 {
		t.Fatalf("want a nack of 2, got %v", nack)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range p.requests {
		}
	}()
	select {
	case c := <-h.calls:
		t.Errorf("a state known to be wrong is applied: %v is held", c.members)
		c.answer <- nil
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the client waits for the repair for ever")
	}
}

// An in-sync that answers no digest says nothing that could be relied on.
func TestAnInSyncOutOfPlaceIsRefused(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	c := start(t, Config{Addresses: []string{address}}, h)
	say := func(p *played, epoch string, revision uint64) {
		t.Helper()
		m := &policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InSync{InSync: &policyv1.InSync{Epoch: epoch, Revision: revision}}}
		if err := p.stream.Send(m); err != nil {
			t.Fatal(err)
		}
		p.ended(t)
	}
	p, _ := s.next(t)
	say(p, "epoch", 1) // Nothing is held.

	p, _ = s.next(t)
	p.cut(t, stateOf(t, cutOf(1, scopeOf(groupID, "a"))))
	h.next(t).answer <- nil
	p.request(t)
	p.cut(t, &policyv1.Cut{Epoch: "epoch", Revision: 2, Digest: make([]byte, 16)})
	p.request(t)
	say(p, "epoch", 2) // What is held is wrong, and nobody asked.

	p, _ = s.next(t)
	say(p, "", 3)
	p, _ = s.next(t)
	say(p, "epoch", 0)
	if c.Snapshot() != nil {
		t.Error("the wrong state was taken for right")
	}
}

// A service that answers, but never with a state that can be used, is tried less
// and less often.
func TestAServiceThatServesNothingIsTriedLessOften(t *testing.T) {
	s, address := newScript(t)
	start(t, Config{Addresses: []string{address}, MinBackoff: 20 * time.Millisecond, MaxBackoff: time.Hour}, newHandler())
	begin := time.Now()
	for range 5 {
		p, _ := s.next(t)
		p.cut(t, cutOf(0))
		p.ended(t)
	}
	if took := time.Since(begin); took < (20+40+80+160)/2*time.Millisecond {
		t.Errorf("five attempts took %s: the pause does not grow", took)
	}
}

// A service that stands behind, and whose state is the same, takes nothing
// back; nor may the next one.
func TestBeingInSyncWithAServiceThatStandsBehindIsNoRollback(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	c := start(t, Config{Addresses: []string{address}}, h)
	p, _ := s.next(t)
	cut := stateOf(t, cutOf(2, scopeOf(groupID, "a")))
	cut.Position = &policyv1.Position{Sources: map[string]uint64{"pods": 7, "nodes": 3}}
	p.cut(t, cut)
	h.next(t).answer <- nil
	p.request(t)
	p.end <- nil

	p, _ = s.next(t)
	behind := &policyv1.InSync{Epoch: "another", Revision: 5, Position: &policyv1.Position{Sources: map[string]uint64{"pods": 6, "nodes": 4}}}
	if err := p.stream.Send(&policyv1.SubscribeResponse{Message: &policyv1.SubscribeResponse_InSync{InSync: behind}}); err != nil {
		t.Fatal(err)
	}
	h.next(t).answer <- nil
	p.request(t)
	p.end <- nil

	_, hello := s.next(t)
	if got := hello.GetPosition().GetSources(); got["pods"] != 7 || got["nodes"] != 4 {
		t.Errorf("the hello says %v", got)
	}
	if c.Rollbacks() != 0 {
		t.Errorf("%d rollbacks", c.Rollbacks())
	}
}
