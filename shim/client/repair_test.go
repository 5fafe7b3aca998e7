package client

import (
	"context"
	"io"
	"testing"

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

// The state of a service that stands behind is taken, and counted.
func TestAServiceThatStandsBehindIsSaid(t *testing.T) {
	s, address := newScript(t)
	h := newHandler()
	c := start(t, Config{Addresses: []string{address}}, h)
	for revision, at := range []uint64{7, 6} {
		p, hello := s.next(t)
		if revision == 1 && hello.GetPosition().GetSources()["pods"] != 7 {
			t.Errorf("the hello says %v", hello.GetPosition())
		}
		cut := stateOf(t, cutOf(uint64(revision)+1, scopeOf(groupID, "a")))
		cut.Position = &policyv1.Position{Sources: map[string]uint64{"pods": at}}
		p.cut(t, cut)
		h.next(t).answer <- nil
		p.request(t)
		p.end <- nil
	}
	if c.Rollbacks() != 1 {
		t.Errorf("%d rollbacks", c.Rollbacks())
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
