package server

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// A node is as the replica says that it is connected to, whoever is asked.
func TestNodesAreMerged(t *testing.T) {
	type node = policyv1.NodeSummary
	for name, tc := range map[string]struct{ a, b, want *node }{
		"connected to one": {
			&node{AckedRevision: 9}, &node{Connected: true, AckedRevision: 3, Lag: 2, Replica: "b"}, &node{Connected: true, AckedRevision: 3, Lag: 2, Replica: "b"}},
		"connected to two, one of which is in sync": {
			&node{Connected: true, Lag: 0, Replica: "a"}, &node{Connected: true, InSync: true, Replica: "b"}, &node{Connected: true, InSync: true, Replica: "b"}},
		"connected to two, one of which is closer": {
			&node{Connected: true, Lag: 7, Replica: "a"}, &node{Connected: true, Lag: 2, Replica: "b"}, &node{Connected: true, Lag: 2, Replica: "b"}},
		"connected to two that say the same": {
			&node{Connected: true, InSync: true, Replica: "a"}, &node{Connected: true, InSync: true, Replica: "b"}, &node{Connected: true, InSync: true, Replica: "a"}},
		"connected to none": {
			&node{BehindSeconds: 900}, &node{BehindSeconds: 4, AckedRevision: 5}, &node{BehindSeconds: 4, AckedRevision: 5}},
		"known to one":   {&node{Connected: true}, nil, &node{Connected: true}},
		"known to other": {nil, &node{Connected: true}, &node{Connected: true}},
	} {
		list := func(n *node) (out []*node) {
			if n == nil {
				return nil
			}
			n = proto.Clone(n).(*node)
			n.Name = "n"
			return []*node{n}
		}
		for _, order := range [][2]*node{{tc.a, tc.b}, {tc.b, tc.a}} {
			got := mergeNodes(list(order[0]), []*policyv1.ListNodesResponse{{Nodes: list(order[1])}})
			if want := list(tc.want); len(got) != 1 || !proto.Equal(got[0], want[0]) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
	}
}

// How long a node lacks something is counted from the commit of the oldest
// change that it has not acknowledged; one that keeps up is never behind.
func TestANodeIsBehindSinceTheOldestUnacknowledgedChange(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	cut := func(revision uint64, s int) sentCut { return sentCut{revision: revision, since: at(s), changes: true} }
	se := &session{node: "n"}
	st := &stream{replaced: make(chan struct{}), acks: make(chan struct{}, 1)}
	se.begin(st, &policyv1.Hello{Version: "v"})
	se.behind = at(0)
	want := func(when string, since time.Time) {
		t.Helper()
		if !se.behind.Equal(since) {
			t.Errorf("%s: behind since %v, want %v", when, se.behind, since)
		}
	}
	ack := func(revision uint64) time.Time {
		_, _, committed := se.answered(st, nodeAnswer{revision: revision, inForce: true})
		return committed
	}
	se.told(st, cut(1, 1))
	want("connected", at(0))
	ack(1)
	want("in sync", time.Time{})
	se.told(st, cut(2, 2))
	se.told(st, cut(3, 3))
	want("two are under way", at(2))
	if committed := ack(2); !committed.Equal(at(2)) {
		t.Errorf("what was acknowledged was committed at %v", committed)
	}
	want("one is under way", at(3))
	se.answered(st, nodeAnswer{revision: 3, err: "no room"})
	want("refused", at(3))
	se.told(st, cut(4, 9))
	want("still refused", at(3))
	wrong, _ := storage.DigestFromBytes(slices.Repeat([]byte{1}, 16))
	se.answered(st, nodeAnswer{revision: 4, inForce: true, held: &wrong})
	want("it differs", at(3))
	se.mayCut(st)
	se.told(st, cut(5, 12))
	ack(5)
	want("repaired", time.Time{})
	se.end(st, nil)
	if se.behind.IsZero() {
		t.Error("a node that has gone is not behind")
	}
}

func TestCommitsAreRemembered(t *testing.T) {
	var c commits
	if _, known := c.at(1); known {
		t.Error("a revision of nobody is known")
	}
	at := func(i int) time.Time { return time.Unix(int64(i), 0) }
	for i := range 2000 {
		c.add(uint64(2*i+2), at(i)) // Some revisions are not ours.
		c.add(uint64(2*i+2), at(i+1))
	}
	for revision, want := range map[uint64]time.Time{4000: at(1999), 3999: at(1998), 3000: at(1499), 1: at(976)} {
		if got, known := c.at(revision); !known || !got.Equal(want) {
			t.Errorf("revision %d: %v, want %v", revision, got, want)
		}
	}
	for _, revision := range []uint64{0, 4001} {
		if _, known := c.at(revision); known {
			t.Errorf("revision %d is known", revision)
		}
	}
}

// A series of its own has only a node that is connected and behind.
func TestNodeMetrics(t *testing.T) {
	f := newFixture(t)
	registry := prometheus.NewRegistry()
	registry.MustRegister(nodeMetrics{f.server})
	metrics := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := make(map[string]float64)
		for _, family := range families {
			for _, m := range family.GetMetric() {
				name := strings.TrimPrefix(family.GetName(), "weir_policy_")
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				out[name] = m.GetGauge().GetValue()
			}
		}
		return out
	}
	f.nodes("node-1", "node-2", "node-3")
	for _, name := range []string{"node-1", "node-2"} {
		c := f.subscribe(hello(name))
		c.settle(f, name)
	}
	waitFor(t, func() bool { // Nothing tells that an ack was taken.
		m := metrics()
		taken := f.server.nodeSummary("node-1", time.Now()).GetInSync() && f.server.nodeSummary("node-2", time.Now()).GetInSync()
		return taken && m["nodes_connected"] == 2 && m["nodes_disconnected"] == 1 && len(m) == 2
	})
	se := f.server.sessions.find("node-2")
	se.mu.Lock()
	se.behind = time.Now().Add(-time.Minute)
	se.mu.Unlock()
	if behind := metrics()["node_behind_seconds node-2"]; behind < 60 || behind > 70 || len(metrics()) != 3 {
		t.Errorf("%v", metrics())
	}
	for absent := range 2 { // A node that never came is absent since that was seen first.
		f.server.absences.look(f.store.Nodes(), &f.server.sessions, time.Now().Add(time.Duration(absent-1)*time.Minute))
	}
	list, err := policyv1.NewInspectionServiceClient(f.conn).ListNodes(context.Background(), &policyv1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range list.GetNodes() {
		got = append(got, n.GetName()+" "+n.GetReplica())
		if behind := n.GetBehindSeconds(); n.GetName() == "node-3" && (behind < 60 || behind > 70) {
			t.Errorf("%v", n)
		}
	}
	if !slices.Equal(got, []string{"node-1 epoch", "node-2 epoch", "node-3 "}) {
		t.Errorf("%q", got)
	}
}

// A replica whose sources are several watches may have read one of them less far
// than the position says. A node that comes meanwhile is in sync a moment later,
// and is sent nothing.
func TestANodeInSyncWithALateReplicaIsLeftAlone(t *testing.T) {
	f := newFixture(t)
	f.server.cfg.Settle = 20 * time.Second // The commit ends it.
	f.member("a")
	f.member("b")
	whole := f.subscribe(hello("node-1")).cut()
	f.store.Commit([]storage.Change{{Op: storage.OpRemove, Scope: groupID, Item: storage.Encoded{Key: storage.PodKey("ns", "b")}}}, storage.Position{"manifests": 1})
	c := f.subscribe(&policyv1.Hello{Node: "node-1", Digest: whole.GetDigest(), Position: whole.GetPosition()})
	timer := time.AfterFunc(50*time.Millisecond, func() { f.member("b") })
	defer timer.Stop()
	resp, err := c.stream.Recv()
	if err != nil || resp.GetInSync() == nil {
		t.Fatalf("got %v, %v; want to be in sync", resp, err)
	}
	c.ack(resp.GetInSync().GetRevision(), whole.GetDigest())
	if _, _, err := c.replica.Apply(whole); err != nil {
		t.Fatal(err)
	}
	f.member("c")
	if cut := c.cut(); len(cut.GetScopes()) != 1 || len(cut.GetScopes()[0].GetUpserts()) != 1 {
		t.Errorf("the next cut is %v, want the one member that is new", cut)
	}
}

func TestANodeThatDiffersIsRepairedAfterSettling(t *testing.T) {
	f := newFixture(t)
	f.server.cfg.Settle = 100 * time.Millisecond
	f.member("a")
	first := f.subscribe(hello("node-1")).cut()
	f.member("b")
	began := time.Now()
	c := f.subscribe(&policyv1.Hello{Node: "node-1", Digest: first.GetDigest(), Position: first.GetPosition()})
	if _, _, err := c.replica.Apply(first); err != nil {
		t.Fatal(err)
	}
	c.tell()
	if took := time.Since(began); took < f.server.cfg.Settle {
		t.Errorf("repaired after %v", took)
	}
	if cut := c.cut(); cut.GetSnapshot() || !slices.Equal(c.replica.Digest().Bytes(), cut.GetDigest()) {
		t.Errorf("got %v", cut)
	}
}
