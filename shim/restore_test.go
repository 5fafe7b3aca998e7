package shim

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// begun waits until a shim has read the bridge back and is done with it.
func (s *Shim) begun(t *testing.T, sw *tap) {
	t.Helper()
	reads := 0
	sw.look(func() { reads = sw.reads })
	sw.addPod(t, "web", 2) // As the bridge says at its start that there are ports.
	sw.until(t, "the bridge is read back", func() (yes bool) {
		sw.look(func() { yes = sw.reads > reads })
		return yes
	})
}

// A checkpoint that is older than what is in force, because the shim died before
// it was written or because somebody put it back, undoes nothing: what is in
// force stays until there is a state, and that is no other than it was.
func TestOlderCheckpointUndoesNothing(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	first := newShim(t, sw, w, dir)
	stop := begin(t, first)
	must(t, apply(t, first, w, w.cut(objects...)))
	stop()
	older, err := os.ReadFile(first.cfg.checkpoint())
	must(t, err)
	second := newShim(t, sw, w, dir)
	stop = begin(t, second)
	must(t, apply(t, second, w, w.cut(deny("deny", "web"))))
	stop()
	if delivered(sw, 1, 2) || !delivered(sw, 2, 1) {
		t.Fatal("the policy is not in force")
	}
	must(t, os.WriteFile(first.cfg.checkpoint(), older, 0o600))

	third := newShim(t, sw, newWorld(t), dir)
	if third.loop.complete {
		t.Error("the older checkpoint was used")
	}
	stop = begin(t, third)
	third.begun(t, sw)
	if delivered(sw, 1, 2) || !delivered(sw, 2, 1) {
		t.Error("what was in force is not any more")
	}
	stop()
	if third.loop.holder.(*world).replica.Revision() != 0 {
		t.Error("the older state would be told to be held")
	}
	fourth := newShim(t, sw, w, dir)
	begin(t, fourth)
	must(t, apply(t, fourth, w, nil))
	if delivered(sw, 1, 2) || !delivered(sw, 2, 1) {
		t.Error("the state is not in force")
	}
}

// A shim that begins forgets the connections of an address that got another owner
// while there was no shim, before that one's port opens, and leaves others' alone.
func TestConnectionsOfFormerOwnersAreForgottenByTheNextShim(t *testing.T) {
	t.Parallel()
	for _, restored := range []bool{true, false} {
		sw, w, objects := twoPods(t)
		dir := t.TempDir()
		first := newShim(t, sw, w, dir)
		stop := begin(t, first)
		must(t, apply(t, first, w, w.cut(objects...)))
		stop()
		if !restored {
			must(t, os.Remove(first.cfg.checkpoint()))
		}
		must(t, sw.RemovePort(t.Context(), "if-web"))
		sw.addPod(t, "heir", 2)
		w.engine.Apply(api.Event{Ref: pod("web", "10.0.0.2").Ref()})
		touched := w.cut(pod("heir", "10.0.0.2"))
		sw.look(func() { clear(sw.flushed) })
		second := newShim(t, sw, w, dir)
		begin(t, second)
		must(t, apply(t, second, w, touched))
		sw.look(func() {
			if n := sw.flushed[netip.MustParseAddr("10.0.0.2")]; n == 0 {
				t.Errorf("restored %t: the heir has what connections the address had", restored)
			}
			if n := sw.flushed[netip.MustParseAddr("10.0.0.1")]; n != 0 {
				t.Errorf("restored %t: the connections of a Pod that stayed were forgotten", restored)
			}
		})
	}
}

// So are those of Pods of other nodes that went while there was no shim, but not of
// one of which only no rule tells any more.
func TestConnectionsOfDepartedPeersAreForgottenByTheNextShim(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	first := newShim(t, sw, w, dir)
	stop := begin(t, first)
	peer := func(name, addr, app string) *api.Pod {
		p := pod(name, addr)
		p.Node, p.Labels = "node-2", labels(app)
		return p
	}
	must(t, apply(t, first, w, w.cut(append(objects, peer("goes", "10.0.9.1", "friend"), peer("stays", "10.0.9.2", "friend"), peer("unnamed", "10.0.9.3", "other"),
		lets("friends", "web", "friend", 80), lets("others", "web", "other", 80))...)))
	stop()
	second := newShim(t, sw, w, dir)
	touched := w.receive(w.without(peer("goes", "10.0.9.1", "friend"), lets("others", "web", "other", 80))) // Before the loop has looked at the checkpoint's.
	begin(t, second)
	must(t, apply(t, second, w, touched))
	sw.until(t, "the connections of who went are forgotten", func() (yes bool) {
		sw.look(func() { yes = sw.flushed[netip.MustParseAddr("10.0.9.1")] > 0 })
		return yes
	})
	sw.look(func() {
		if len(sw.flushed) > 1 {
			t.Errorf("forgotten were %v", sw.flushed)
		}
	})
}

// What a shim had still to forget when it ended, the next forgets.
func TestWhatIsToBeForgottenOutlivesTheShim(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	first := newShim(t, sw, w, dir)
	stop := begin(t, first)
	must(t, apply(t, first, w, w.cut(objects...)))
	sw.look(func() { sw.noFlush = errors.New("out of memory") })
	must(t, apply(t, first, w, w.receive(w.without(objects[len(objects)-1]))))
	stop()
	gone := netip.MustParseAddr("10.0.0.2")
	sw.look(func() { sw.noFlush = nil; clear(sw.flushed) })
	second := newShim(t, sw, w, dir)
	begin(t, second)
	sw.addPod(t, "client", 1)
	sw.until(t, "the connections are forgotten", func() (yes bool) {
		sw.look(func() { yes = sw.flushed[gone] > 0 })
		return yes
	})
}
