package shim

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/storage"
)

// latePod is a bridge with two Pods whose ports are open, and the port of a
// third that the state does not have yet.
func latePod(t *testing.T, barrier time.Duration) (*tap, *world, *Shim) {
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	s.cfg.PeerBarrier = barrier
	begin(t, s)
	must(t, apply(t, s, w, w.cut(objects...)))
	sw.addPod(t, "late", 3)
	return sw, w, s
}

func late() string { return storage.PodKey("x", "late") }

func TestAHeldPortOpensByRelease(t *testing.T) {
	t.Parallel()
	sw, w, s := latePod(t, time.Hour)
	s.Hold(t.Context(), []string{late()})
	must(t, apply(t, s, w, w.cut(pod("late", "10.0.0.3"))))
	if delivered(sw, 3, 1) || delivered(sw, 1, 3) {
		t.Fatal("a held port carries traffic")
	}
	if !delivered(sw, 1, 2) {
		t.Error("another port is held too")
	}
	s.Release(t.Context(), []string{late(), storage.PodKey("x", "gone")})
	sw.until(t, "the port opens", func() bool { return delivered(sw, 3, 1) && delivered(sw, 1, 3) })
	if n := timeouts(t, s); n != 0 {
		t.Errorf("%v timeouts are counted", n)
	}
}

func TestAHeldPortOpensInTheEnd(t *testing.T) {
	t.Parallel()
	sw, w, s := latePod(t, 30*time.Millisecond)
	s.Hold(t.Context(), []string{late(), storage.PodKey("x", "elsewhere")})
	must(t, apply(t, s, w, w.cut(pod("late", "10.0.0.3"))))
	sw.until(t, "the port opens", func() bool { return delivered(sw, 3, 1) })
	if n := timeouts(t, s); n != 1 {
		t.Errorf("%v timeouts are counted", n)
	}
}

func TestNothingIsHeldWithoutABarrier(t *testing.T) {
	t.Parallel()
	sw, w, s := latePod(t, 0)
	s.Hold(t.Context(), []string{late()})
	must(t, apply(t, s, w, w.cut(pod("late", "10.0.0.3"))))
	if !delivered(sw, 3, 1) {
		t.Error("the port is held")
	}
}

// What is open with the same addresses stays open; new addresses are waited for.
func TestAnOpenPortIsHeldForNewAddressesOnly(t *testing.T) {
	t.Parallel()
	sw, w, s := latePod(t, time.Hour)
	client := storage.PodKey("x", "client")
	s.Hold(t.Context(), []string{client})
	relabelled := pod("client", "10.0.0.1")
	relabelled.Labels = labels("other")
	must(t, apply(t, s, w, w.cut(relabelled, deny("web", "web"), pod("late", "10.0.0.3"))))
	if !delivered(sw, 1, 3) {
		t.Fatal("an open port closed, with the address that it had")
	}
	s.Hold(t.Context(), []string{client})
	must(t, apply(t, s, w, w.cut(pod("client", "10.0.0.9"))))
	moved := syn(1, 3)
	moved.IPSrc = netip.MustParseAddr("10.0.0.9")
	open := func() bool { return len(sw.Walk(moved, bridge.WalkOptions{}).Ports()) > 0 }
	if open() {
		t.Fatal("the port sends with an address that others may not know")
	}
	s.Release(t.Context(), []string{client})
	sw.until(t, "the port opens", open)
}

// A port whose address may have a former owner's connections stays closed
// until they are forgotten.
func TestAPortStaysClosedUntilConnectionsAreForgotten(t *testing.T) {
	t.Parallel()
	sw, w, s := latePod(t, time.Hour)
	sw.look(func() { sw.noFlush = errors.New("out of memory") })
	must(t, apply(t, s, w, w.cut(pod("late", "10.0.0.3"))))
	if delivered(sw, 3, 1) {
		t.Fatal("the port is open")
	}
	if !delivered(sw, 1, 2) {
		t.Error("another port closed")
	}
	var before int
	sw.look(func() { before = sw.flushes })
	sw.until(t, "it is tried again", func() (again bool) { sw.look(func() { again = sw.flushes > before }); return again })
	if delivered(sw, 3, 1) {
		t.Fatal("the port is open, and nothing was forgotten")
	}
	sw.look(func() { sw.noFlush = nil })
	sw.until(t, "the port opens", func() bool { return delivered(sw, 3, 1) })
}

func (b *tap) FlushConntrack(ctx context.Context, c bridge.Connections) error {
	defer b.signal()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flushes++
	if b.noFlush == nil {
		b.flushed[c.Addr]++
	}
	if b.noFlush != nil {
		return b.noFlush
	}
	return b.Fake.FlushConntrack(ctx, c)
}

// timeouts are those of the barrier, as the metrics have them.
func timeouts(t *testing.T, s *Shim) float64 {
	t.Helper()
	families, err := s.metrics.registry.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == "weir_shim_peer_barrier_timeouts_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("no such metric")
	return 0
}

// What a Pod elsewhere was allowed does not carry the next owner of its
// address, and what nobody owns any more is forgotten too.
func TestConnectionsOfAnAddressThatPassesOnAreForgotten(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	remote := func(name string) *api.Pod {
		p := pod(name, "10.0.9.9")
		p.Node = "node-2"
		return p
	}
	gone := func(name string) {
		w.engine.Apply(api.Event{Ref: remote(name).Ref()})
	}
	allow := deny("web", "web")
	allow.Ingress = []api.NetworkPolicyRule{{Peers: []api.NetworkPolicyPeer{{PodSelector: &api.Selector{MatchLabels: labels("friend")}}}}}
	must(t, apply(t, s, w, w.cut(append(objects, remote("friend"), allow)...)))
	flushed := func(addr string) (n int) {
		sw.look(func() { n = sw.flushed[netip.MustParseAddr(addr)] })
		return n
	}
	if n := flushed("10.0.9.9"); n != 0 {
		t.Fatalf("%d flushes before anything moved", n)
	}
	stranger := remote("stranger")
	friends := remote("friend2") // Another member of the group, by which the node hears of the new owner.
	friends.Labels = labels("friend")
	gone("friend")
	must(t, apply(t, s, w, w.cut(stranger, friends)))
	if flushed("10.0.9.9") == 0 {
		t.Error("the address has another owner, and its connections are there yet")
	}
	before := flushed("10.0.9.9")
	gone("friend2")
	must(t, apply(t, s, w, w.cut()))
	sw.until(t, "connections of nobody's address are forgotten", func() bool { return flushed("10.0.9.9") > before })
}
