package shim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// found is a bridge that was there before: it forwards by itself, and its ports
// are those of client (1), web (2) and lone (3), of whom the state knows two.
type found struct {
	*tap
	t       *testing.T
	left    int // Bundles until it can be written no more; below zero: no end.
	looked  func()
	closed  time.Time // What Close was given.
	closes  int
	closing bool // In Close.
	talks   bool // Client and web talk on while connections are forgotten.
}

var errGone = errors.New("gone")

func newFound(t *testing.T, theirs ...openflow.Flow) (*found, *world, []api.Object) {
	sw, w, objects := twoPods(t)
	sw.addPod(t, "lone", 3)
	if len(theirs) == 0 {
		theirs = []openflow.Flow{plain}
	}
	must(t, sw.Fake.Apply(context.Background(), bridge.Change{Upsert: theirs}))
	return &found{tap: sw, t: t, left: -1}, w, append(objects, deny("deny", "web"))
}

func (f *found) Apply(ctx context.Context, c bridge.Change) error {
	if f.left == 0 {
		return errGone
	}
	f.left--
	err := f.tap.Apply(ctx, c)
	if f.looked != nil && err == nil {
		f.looked()
	}
	return err
}

func (f *found) FlushConntrack(ctx context.Context, c bridge.Connections) error {
	err := f.tap.FlushConntrack(ctx, c)
	if f.talks {
		f.talk()
	}
	return err
}

// talk is what client and web say to each other: web answers.
func (f *found) talk() {
	answer := direct(2, 1)
	answer.SrcPort, answer.DstPort, answer.TCPFlags = 80, 40000, bridge.TCPSyn|0x10
	f.passes(direct(1, 2), 2)
	f.passes(answer, 1)
}

// Close refuses to empty tables that hold more than what Settle puts in.
func (f *found) Close(ctx context.Context, until time.Time, empty func(context.Context) error) error {
	if f.left == 0 {
		return errGone
	}
	f.closing = true
	defer func() { f.closing = false }()
	if err := empty(ctx); err != nil {
		return err
	}
	if n := len(f.flows(f.t)); n > 1 {
		f.t.Errorf("%d flows would go one by one", n)
	}
	f.closes, f.closed = f.closes+1, until
	return f.Fake.Apply(ctx, bridge.Change{Delete: slices.Collect(maps.Keys(f.flows(f.t)))})
}

// adopting is a shim that is to adopt the bridge.
func (f *found) adopting(w *world, dir string) *Shim {
	s := newShim(f.t, f.tap, w, dir)
	s.loop.sw = f
	if f.closes == 0 { // Or the bridge's row says that it is ours.
		s.loop.adopting = &adoption{bridge: f, begun: s.loop.complete}
	}
	return s
}

// direct is a segment between Pods of one link.
func direct(from, to byte) bridge.Packet {
	p := syn(from, to)
	p.EthDst = mac(to)
	return p
}

func (f *found) passes(p bridge.Packet, to byte) bool {
	return slices.Contains(f.Walk(p, bridge.WalkOptions{}).Ports(), uint32(to))
}

func (f *found) takes(port uint32) bool {
	for _, flow := range f.flows(f.t) {
		if n, ok := pipeline.DividesPort(flow); ok && n == port {
			return true
		}
	}
	return false
}

// denied is what holds as soon as web is ours, whatever was before.
func (f *found) denied() {
	f.t.Helper()
	f.talk()
	disguised := direct(1, 2)
	disguised.IPDst = syn(1, 9).IPDst // To web's MAC, but to nobody's address.
	host := direct(1, 2)
	host.InPort, host.EthSrc = openflow.PortLocal, [6]byte{2, 0xee}
	lone := direct(3, 2)
	if f.takes(2) {
		for what, p := range map[string]bridge.Packet{"directly": direct(1, 2), "by the gateway": syn(1, 2), "in disguise": disguised, "from the host": host, "from a port of theirs": lone} {
			if f.passes(p, 2) {
				f.t.Errorf("web is ours, and a denied packet reaches it %s", what)
			}
		}
	}
}

// invariants hold after each bundle of an adoption, until the last.
func (f *found) invariants() {
	f.t.Helper()
	f.denied()
	ask := bridge.Packet{InPort: 1, EthSrc: mac(1), EthDst: mac(2), EthType: openflow.EtherARP, ARPOp: 1,
		ARPSPA: syn(1, 3).IPSrc, ARPTPA: syn(1, 9).IPDst, ARPSHA: mac(1)}
	if f.takes(1) && f.takes(2) && f.passes(ask, 2) {
		f.t.Error("web is asked for another's address")
	}
	for _, flow := range f.flows(f.t) {
		if pipeline.Closes(flow) {
			return
		}
	}
	if f.closes > 0 || f.closing {
		return
	}
	for what, p := range map[[2]byte]bridge.Packet{{1, 3}: direct(1, 3), {3, 1}: direct(3, 1), {2, 3}: direct(2, 3), {2, 1}: direct(2, 1)} {
		if !f.passes(p, what[1]) {
			f.t.Errorf("traffic of %d to %d is lost; taken: 1 %v, 2 %v", what[0], what[1], f.takes(1), f.takes(2))
		}
	}
	ask.EthDst, ask.ARPTPA = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, syn(1, 3).IPDst
	if !f.passes(ask, 3) {
		f.t.Errorf("nobody can ask for a port of theirs")
	}
}

// Ports are adopted one by one, so that at no time a denied packet reaches one
// that is ours, or what is theirs is lost; wherever it ends, the next goes on.
func TestAdoption(t *testing.T) {
	t.Parallel()
	var whole map[openflow.FlowKey]openflow.Flow
	for n, ended := -1, false; !ended; n++ {
		for _, kept := range []bool{false, true} {
			f, w, objects := newFound(t)
			f.looked, f.left = f.invariants, n
			before := f.flows(t)
			dir := t.TempDir()
			s := f.adopting(w, dir)
			stop := begin(t, s)
			f.until(t, "it reads its ports", func() (yes bool) {
				ports := s.node.ports()
				return len(ports) == 3 && !ports[0].GetOpen()
			})
			if !maps.EqualFunc(f.flows(t), before, openflow.Flow.Same) {
				t.Fatal("flows changed before there was a state")
			}
			err := apply(t, s, w, w.cut(objects...))
			if n >= 0 && err != nil {
				if !errors.Is(err, errGone) {
					t.Fatal(err)
				}
				stop() // It saves what it can.
				if !kept {
					dir = t.TempDir()
				}
				s = f.adopting(w, dir)
				f.left = -1
				begin(t, s)
				if err = apply(t, s, w, pipeline.Whole(w.replica)); err != nil {
					t.Fatalf("after %d bundles: %v", n, err)
				}
			} else if n >= 0 {
				ended = true
			}
			must(t, err)
			if f.closes != 1 {
				t.Errorf("after %d bundles: closed %d times", n, f.closes)
			}
			now := f.flows(t)
			if n < 0 {
				whole = now
			}
			if f.passes(direct(1, 2), 2) || !f.passes(direct(2, 1), 1) || f.passes(direct(3, 1), 1) || f.passes(direct(1, 3), 3) {
				t.Errorf("after %d bundles: the verdicts are wrong", n)
			}
			if len(now) != len(whole) {
				t.Errorf("after %d bundles: %d flows, and %d without a break", n, len(now), len(whole))
			}
		}
		if n > 100 {
			t.Fatal("it never ends")
		}
	}
}

// What does not leave our tables to us is not shared, and no port is ours before
// all are.
func TestAdoptionAtOnce(t *testing.T) {
	t.Parallel()
	for name, theirs := range map[string][]openflow.Flow{
		"tables":   {{Actions: openflow.NewActions(openflow.GotoTable(14))}, {Table: 14, Actions: plain.Actions}},
		"priority": {{Priority: 65535, Actions: plain.Actions}},
	} {
		t.Run(name, func(t *testing.T) {
			f, w, objects := newFound(t, theirs...)
			f.looked = func() {
				if f.takes(1) != f.takes(2) {
					t.Error("one port is ours, and the other is not")
				}
				f.invariants()
			}
			s := f.adopting(w, t.TempDir())
			begin(t, s)
			must(t, apply(t, s, w, w.cut(objects...)))
			if f.passes(direct(1, 2), 2) || !f.passes(direct(2, 1), 1) || f.closes != 1 {
				t.Error("the verdicts are wrong")
			}
		})
	}
}

// What a connection was allowed before a port is ours does not carry it past the
// port's rules, at whatever moment its packets come.
func TestAdoptedPortsInheritNothing(t *testing.T) {
	t.Parallel()
	f, w, objects := newFound(t)
	f.looked, f.talks = f.denied, true
	isolated := deny("deny", "web")
	isolated.PolicyTypes = append(isolated.PolicyTypes, api.PolicyTypeEgress)
	s := f.adopting(w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, isolated)...)))
	f.talk()
	f.denied()
}

// A switch that restarts in the midst forwards what was denied: all is ours then
// at once.
func TestSwitchRestartsInAdoption(t *testing.T) {
	t.Parallel()
	f, w, objects := newFound(t)
	s := f.adopting(w, t.TempDir())
	f.left = 6
	begin(t, s)
	if err := apply(t, s, w, w.cut(objects...)); !errors.Is(err, errGone) {
		t.Fatal(err)
	}
	if !f.takes(1) {
		t.Fatal("no port is taken yet")
	}
	f.left = -1
	f.Restart()
	f.looked = func() {
		if f.takes(1) != f.takes(2) {
			t.Error("the switch is shared again")
		}
	}
	must(t, f.Fake.Apply(context.Background(), bridge.Change{Upsert: []openflow.Flow{plain}}))
	must(t, apply(t, s, w, pipeline.Whole(w.replica)))
	if f.passes(direct(1, 2), 2) || f.closes != 1 {
		t.Error("the verdicts are wrong")
	}
}

// Segments of older connections go on for their time, where that is asked for.
func TestEstablishedWindow(t *testing.T) {
	t.Parallel()
	f, w, objects := newFound(t)
	s := f.adopting(w, t.TempDir())
	s.cfg.Adopt, s.cfg.AdoptWindow = AdoptEstablished, 2*time.Second
	older := direct(1, 2)
	older.TCPFlags = 0x10
	begin(t, s)
	must(t, apply(t, s, w, w.cut(objects...)))
	if !f.passes(older, 2) || f.passes(direct(1, 2), 2) {
		t.Errorf("older %v, new %v", f.passes(older, 2), f.passes(direct(1, 2), 2))
	}
	if left := time.Until(f.closed); left <= 0 || left > 2*time.Second {
		t.Errorf("the window ends in %s", left)
	}
	silent := older // So far.
	f.until(t, "the window ends", func() bool {
		silent.SrcPort++ // Or it would be known by the last look.
		return !f.passes(silent, 2)
	})
	if !f.passes(older, 2) {
		t.Error("a connection that was let through does not live on")
	}
}

// Uninstalling leaves plain forwarding, but where others forward already.
func TestWithdrawal(t *testing.T) {
	t.Parallel()
	ours := openflow.Flow{Table: 3, Cookie: pipeline.CookieMark}
	drop := openflow.Flow{Cookie: pipeline.CookieMark}
	theirs := openflow.Flow{Priority: 5, Actions: plain.Actions}
	state := func(ours, theirs []openflow.Flow) bridge.State {
		s := bridge.State{Content: bridge.NewContent(), Foreign: make(map[openflow.FlowKey]openflow.Flow)}
		for _, f := range ours {
			s.Flows[f.Key()] = f
		}
		for _, f := range theirs {
			s.Foreign[f.Key()] = f
		}
		return s
	}
	for name, c := range map[string]struct {
		state          bridge.State
		upsert, remove int
	}{
		"ours":          {state([]openflow.Flow{ours, drop}, nil), 1, 1},
		"nothing":       {state(nil, nil), 0, 0},
		"theirs":        {state(nil, []openflow.Flow{theirs}), 0, 0},
		"in the midst":  {state([]openflow.Flow{ours}, []openflow.Flow{theirs}), 0, 1},
		"theirs beside": {state([]openflow.Flow{ours, drop}, []openflow.Flow{{Table: 9}}), 1, 1},
	} {
		got := withdrawal(c.state)
		if len(got.Upsert) != c.upsert || len(got.Delete) != c.remove {
			t.Errorf("%s: %v", name, fmt.Sprint(got))
		}
	}
}
