package shim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
)

// world is an engine, its store and what one node holds of it. It is the
// loop's Holder, as the client is.
type world struct {
	t      testing.TB
	engine *engine.Engine
	store  *storage.Store
	sub    *storage.Subscriber

	mu      sync.Mutex // Guards replica while it changes.
	replica *storage.Replica
}

func newWorld(t testing.TB) *world {
	s := storage.New("epoch")
	return &world{t: t, engine: engine.New(), store: s, sub: s.Subscribe("node-1"), replica: &storage.Replica{}}
}

func (w *world) View(fn func(*storage.Replica)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn(w.replica)
	return true
}

func (w *world) Snapshot() *policyv1.Cut {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.replica.Revision() == 0 {
		return nil
	}
	return w.replica.Snapshot()
}

// cut brings the objects to the node's state, and says what that touched.
func (w *world) cut(objects ...api.Object) storage.Touched {
	w.t.Helper()
	return w.receive(w.frames(objects...))
}

// frames is the cut that brings the objects, as it is sent.
func (w *world) frames(objects ...api.Object) [][]byte {
	for _, o := range objects {
		w.engine.Apply(api.Event{Ref: o.Ref(), Object: o})
	}
	return w.commit()
}

// without is the cut that takes the objects away.
func (w *world) without(objects ...api.Object) [][]byte {
	for _, o := range objects {
		w.engine.Apply(api.Event{Ref: o.Ref()})
	}
	return w.commit()
}

func (w *world) commit() [][]byte {
	w.t.Helper()
	w.store.Commit(w.engine.Flush(), nil)
	cut := w.sub.Next()
	if cut == nil {
		w.t.Fatal("the objects change nothing for the node")
	}
	return cut.Frames(1 << 20)
}

// receive brings a cut to the node's state, as the client does.
func (w *world) receive(frames [][]byte) (touched storage.Touched) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range frames {
		frame := &policyv1.Cut{}
		if err := proto.Unmarshal(b, frame); err != nil {
			w.t.Fatal(err)
		}
		var err error
		if touched, _, err = w.replica.Apply(frame); err != nil {
			w.t.Fatal(err)
		}
	}
	return touched
}

// tap is a Fake that can be looked at and disturbed.
type tap struct {
	*bridge.Fake
	activity chan struct{} // One slot: the loop did something.

	mu      sync.Mutex // Guards what follows.
	changes []bridge.Change
	applies int   // Calls, those that failed too.
	reads   int   // Calls of Read that came back.
	fail    error // Of Apply.
	failed  []bridge.Change
	mac     *[6]byte
	meters  []openflow.MeterStats
	older   time.Duration       // By how much more meters have aged.
	metered func()              // What comes to pass once meters are read, with the lock. Nil: nothing.
	settle  chan struct{}       // Settle waits for it to close. Nil: it does not.
	settles int                 // Calls begun.
	noCount error               // Of Counters.
	applied func(bridge.Change) // What others do when a change is applied, with the lock. Nil: nothing.
	beside  func()              // What others do while Read is under way. Nil: nothing.
	counted int                 // Calls of it that came back.
	noFlush error               // Of FlushConntrack.
	flushes int                 // Calls of it.
	flushed map[netip.Addr]int  // Those that succeeded.
}

func newTap() *tap {
	return &tap{activity: make(chan struct{}, 1), flushed: make(map[netip.Addr]int), Fake: bridge.NewFake(bridge.Config{Name: "br-weir",
		Mark:        bridge.Mark{Value: pipeline.CookieMark, Mask: pipeline.CookieMask},
		Controllers: []bridge.Controller{{ID: pipeline.LogController}, {ID: pipeline.RejectController}, {ID: pipeline.SpoofController}, {ID: pipeline.WatchController}, {ID: pipeline.ObserveController}, {ID: pipeline.RecoveryController}}})}
}

func (b *tap) signal() {
	select {
	case b.activity <- struct{}{}:
	default:
	}
}

func (b *tap) Apply(ctx context.Context, c bridge.Change) error {
	defer b.signal()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applies++
	c.Upsert, c.More = slices.Collect(c.EachUpsert), nil // What it would list later may be otherwise.
	if b.fail != nil {
		b.failed = append(b.failed, c)
		return b.fail
	}
	err := b.Fake.Apply(ctx, c)
	if err == nil {
		b.changes = append(b.changes, c)
		if b.applied != nil {
			b.applied(c)
		}
	}
	return err
}

func (b *tap) Read(ctx context.Context) (bridge.State, error) {
	return b.ReadBut(ctx, func(openflow.Flow) bool { return false })
}

func (b *tap) ReadBut(ctx context.Context, except func(openflow.Flow) bool) (bridge.State, error) {
	defer b.signal()
	state, err := b.Fake.ReadBut(ctx, except)
	b.mu.Lock()
	defer b.mu.Unlock()
	if beside := b.beside; beside != nil {
		b.mu.Unlock()
		beside()
		b.mu.Lock()
	}
	b.reads++
	return state, err
}

func (b *tap) Ports(ctx context.Context) ([]bridge.Port, error) {
	defer b.signal()
	ports, err := b.Fake.Ports(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range ports {
		if ports[i].Local() && b.mac != nil {
			ports[i].MAC = *b.mac
		}
	}
	return ports, err
}

func (b *tap) Counters(ctx context.Context, filter openflow.FlowFilter, read func(openflow.Flow)) error {
	defer b.signal()
	err := b.Fake.Counters(ctx, filter, read)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counted++
	return errors.Join(err, b.noCount)
}

func (b *tap) MeterCounters(ctx context.Context) ([]openflow.MeterStats, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.meters != nil {
		return b.meters, nil
	}
	out, err := b.Fake.MeterCounters(ctx)
	for i := range out {
		out[i].Age += b.older
	}
	if b.metered != nil {
		b.metered()
	}
	return out, err
}

func (b *tap) Settle(ctx context.Context, touch openflow.Flow) error {
	b.mu.Lock()
	b.settles++
	gate := b.settle
	b.mu.Unlock()
	b.signal()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return b.Fake.Settle(ctx, touch)
}

// look runs fn with what the tap counted.
func (b *tap) look(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
}

func (b *tap) bundles() (out []bridge.Change) {
	b.look(func() { out = slices.Clone(b.changes) })
	return out
}

func (b *tap) flows(t testing.TB) map[openflow.FlowKey]openflow.Flow {
	t.Helper()
	state, err := b.Fake.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(state.Flows, state.Foreign)
	return state.Flows
}

// until waits for what the loop does to the bridge to make the condition true.
func (b *tap) until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !condition() {
		select {
		case <-b.activity:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// told is a Switch with the signals that a Shim takes from it.
type told interface {
	Switch
	PortsChanged() <-chan struct{}
	Reconnected() <-chan struct{}
	PacketIns(id uint16) <-chan openflow.PacketIn
	Deliver(id uint16, take func(openflow.PacketIn))
}

// newShim is a Shim without its network sides, with what is in the folder.
func newShim(t testing.TB, sw told, w *world, dir string) *Shim {
	t.Helper()
	cfg := Defaults()
	cfg.Node, cfg.StateDir, cfg.MarkOwnTraffic, cfg.Reconcile, cfg.Logger = "node-1", dir, false, time.Hour, hclog.NewNullLogger()
	r := restore(&cfg)
	if r.complete {
		w.mu.Lock()
		w.replica = r.replica
		w.mu.Unlock()
	}
	s := &Shim{cfg: cfg, logger: cfg.Logger, log: packetlog.NewLog(0), metrics: newMetrics(), applies: make(chan applyRequest), holds: make(chan holdRequest), checks: make(chan checkRequest), turns: make(chan func(context.Context)), probes: newProbes(), node: newNode(),
		portsChanged: sw.PortsChanged(), reconnected: sw.Reconnected(), reports: packetlog.NewIntake[logReport](cfg.LogRate, cfg.logBurst()), spoofIns: sw.PacketIns(pipeline.SpoofController), recoveryIns: sw.PacketIns(pipeline.RecoveryController)}
	s.samples = packetlog.NewIntake[logReport](sampleRate, sampleRate)
	sw.Deliver(pipeline.LogController, s.takeReport)
	sw.Deliver(pipeline.ObserveController, s.takeSample)
	s.counts = openCounting(dir, cfg.Node, cfg.Logger)
	s.host = newHostPolicies(s)
	s.host.fw = &fakeFirewall{}
	s.loop = newLoop(s, sw, w)
	s.loop.former, s.loop.complete, s.loop.addresses, s.loop.config, s.loop.cache = r.assignment, r.complete, r.addresses, cfg.compiler(), restoreNames(&cfg)
	s.names, s.multicast = newNames(s), newMulticast(s)
	return s
}

// begin runs the loop until stop is called or the test ends.
func begin(t testing.TB, s *Shim) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.loop.run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func apply(t testing.TB, s *Shim, w *world, touched storage.Touched) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	problems, err := s.Apply(ctx, w.replica, touched)
	var refused *pipeline.Refused
	if errors.As(err, &refused) != (len(problems) > 0) {
		t.Errorf("problems: %v, beside %v", problems, err)
	}
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func labels(app string) api.Labels { return api.Labels{{Key: "app", Value: app}} }

func pod(name, ip string) *api.Pod {
	return &api.Pod{Namespace: "x", Name: name, Node: "node-1", Labels: labels(name), IPs: []netip.Addr{netip.MustParseAddr(ip)}}
}

// deny isolates a Pod, for ingress.
func deny(name, app string) *api.NetworkPolicy {
	return &api.NetworkPolicy{Namespace: "x", Name: name, PodSelector: api.Selector{MatchLabels: labels(app)}, PolicyTypes: []api.PolicyType{api.PolicyTypeIngress}}
}

func mac(n byte) [6]byte { return [6]byte{2, 0, 0, 0, 1, n} }

func (b *tap) addPod(t testing.TB, name string, n byte) {
	t.Helper()
	must(t, b.AddPort(context.Background(), "if-"+name, map[string]string{"pod-namespace": "x", "pod-name": name, "attached-mac": macText(mac(n))}))
}

func macText(m [6]byte) string {
	var parts []string
	for _, b := range m {
		parts = append(parts, string("0123456789abcdef"[b>>4])+string("0123456789abcdef"[b&15]))
	}
	return strings.Join(parts, ":")
}

// twoPods is a bridge with the ports of client (1) and web (2), and a world
// with these Pods in a Namespace whose policies are logged.
func twoPods(t testing.TB) (*tap, *world, []api.Object) {
	sw := newTap()
	sw.addPod(t, "client", 1)
	sw.addPod(t, "web", 2)
	return sw, newWorld(t), []api.Object{&api.Namespace{Name: "x", LogPolicies: true}, pod("client", "10.0.0.1"), pod("web", "10.0.0.2")}
}

func syn(from, to byte) bridge.Packet {
	return bridge.Packet{InPort: uint32(from), EthSrc: mac(from), EthDst: [6]byte{2, 0xee}, EthType: openflow.EtherIPv4,
		IPSrc: netip.AddrFrom4([4]byte{10, 0, 0, from}), IPDst: netip.AddrFrom4([4]byte{10, 0, 0, to}),
		IPProto: 6, TTL: 64, SrcPort: 40000, DstPort: 80, TCPFlags: bridge.TCPSyn}
}

func delivered(sw *tap, from, to byte) bool {
	return slices.Contains(sw.Walk(syn(from, to), bridge.WalkOptions{}).Ports(), uint32(to))
}

// A cut comes to the bridge as one bundle, and is not in force before the
// bridge has settled.
func TestCutIsOneBundleAndInForceWhenSettled(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(objects...)))
	if !delivered(sw, 1, 2) {
		t.Fatal("the Pods cannot talk")
	}

	before := len(sw.bundles())
	gate := make(chan struct{})
	settled := 0
	sw.look(func() { sw.settle = gate; settled = sw.settles })
	result := make(chan error, 1)
	touched := w.cut(deny("deny", "web"))
	go func() { result <- apply(t, s, w, touched) }()
	sw.until(t, "settling begins", func() (yes bool) {
		sw.look(func() { yes = sw.settles > settled })
		return yes
	})
	if delivered(sw, 1, 2) {
		t.Error("settling began before the flows were in")
	}
	select {
	case err := <-result:
		t.Errorf("Apply returned %v before the bridge had settled", err)
	default:
	}
	close(gate)
	must(t, <-result)
	if n := len(sw.bundles()) - before; n != 1 {
		t.Errorf("one cut took %d bundles", n)
	}
}

// A cut that the bridge refuses is refused, tried again, and in force at last.
func TestRefusedCutIsTriedAgain(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(objects...)))

	refusal := errors.New("no room")
	applies := 0
	sw.look(func() { sw.fail = refusal; applies = sw.applies })
	if err := apply(t, s, w, w.cut(deny("deny", "web"))); !errors.Is(err, refusal) {
		t.Fatalf("Apply: %v, want the bridge's own error", err)
	}
	if !delivered(sw, 1, 2) {
		t.Error("a refused bundle changed something")
	}
	sw.until(t, "a second try", func() (yes bool) {
		sw.look(func() { yes = sw.applies >= applies+2 })
		return yes
	})
	sw.look(func() { sw.fail = nil })
	sw.until(t, "the cut is in force", func() bool { return !delivered(sw, 1, 2) })
	must(t, apply(t, s, w, nil)) // As the client asks again.
}

// Flows that the loop does not know stay until its state is complete.
func TestOrphansAreSweptOnlyAfterACompleteState(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	orphan := openflow.Flow{Table: 3, Priority: 7, Cookie: pipeline.CookieMark | 0x99}
	foreign := openflow.Flow{Table: 40, Priority: 7, Cookie: 0x1234}
	must(t, sw.Fake.Apply(context.Background(), bridge.Change{Upsert: []openflow.Flow{orphan, foreign}}))
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	sw.until(t, "the flows of every node are in", func() bool { return len(sw.bundles()) > 0 })
	there := sw.flows(t)
	for _, f := range []openflow.Flow{orphan, foreign} {
		if _, ok := there[f.Key()]; !ok {
			t.Errorf("%s is gone before a state was there", f)
		}
	}
	if delivered(sw, 1, 2) {
		t.Error("unknown Pods are open")
	}
	before := len(sw.bundles())
	must(t, apply(t, s, w, w.cut(objects...)))
	there = sw.flows(t)
	for _, f := range []openflow.Flow{orphan, foreign} {
		if _, ok := there[f.Key()]; ok {
			t.Errorf("%s is there still", f)
		}
	}
	if n := len(sw.bundles()) - before; n != 1 {
		t.Errorf("the first state and the sweep took %d bundles", n)
	}
}

// A state with which a deny would be past the limit of its table is refused, and
// the bridge keeps what it has, orphans too, until there is one that is taken.
func TestRefusedStateSweepsNothing(t *testing.T) {
	t.Parallel()
	t.Run("by a loop that runs", func(t *testing.T) { refusedState(t, true) })
	t.Run("by a loop that starts with it", func(t *testing.T) { refusedState(t, false) })
}

func refusedState(t *testing.T, runs bool) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	orphan := openflow.Flow{Table: 3, Priority: 7, Cookie: pipeline.CookieMark | 0x99}
	must(t, sw.Fake.Apply(context.Background(), bridge.Change{Upsert: []openflow.Flow{orphan}}))
	s := newShim(t, sw, w, t.TempDir())
	if runs {
		begin(t, s)
		sw.until(t, "the flows of every node are in", func() bool { return len(sw.bundles()) > 0 })
	}
	scope := storage.NewScopeID(storage.ScopePolicies, "many")
	commit := func(op storage.Op, i int) {
		item := storage.Encode(&policyv1.Item{Body: &policyv1.Item_Policy{Policy: &policyv1.Policy{Rank: 253, Priority: float64(i),
			Ref:   &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: fmt.Sprint("policy-", i)},
			Rules: []*policyv1.Rule{{Direction: policyv1.Direction_DIRECTION_INGRESS, Action: policyv1.Action_ACTION_DROP}}}}})
		w.store.Commit([]storage.Change{{Op: op, Scope: scope, Kind: storage.ScopePolicies, Item: item}}, nil)
	}
	w.store.Commit([]storage.Change{{Op: storage.OpJoin, Scope: scope, Kind: storage.ScopePolicies, Node: "node-1"}}, nil)
	for i := range 151 {
		commit(storage.OpUpsert, i)
	}
	cut := w.cut(objects...)
	if !runs {
		begin(t, s)
	}
	var refused *pipeline.Refused
	if err := apply(t, s, w, cut); !errors.As(err, &refused) {
		t.Fatalf("Apply: %v, want a refusal", err)
	}
	if _, there := sw.flows(t)[orphan.Key()]; !there || delivered(sw, 1, 2) {
		t.Error("a state that is refused changed the bridge")
	}
	commit(storage.OpRemove, 7)
	must(t, apply(t, s, w, w.cut()))
	if _, there := sw.flows(t)[orphan.Key()]; there || !delivered(sw, 1, 2) {
		t.Error("the state that is taken is not in force")
	}
}

// A shim that starts again, from its checkpoint, changes no flow, and neither
// does the state that it resumes with.
func TestRestartChangesNoFlow(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	first := newShim(t, sw, w, dir)
	stop := begin(t, first)
	// Policies that came and went leave ids that a compiler from nothing would not choose.
	must(t, apply(t, first, w, w.cut(append(objects, deny("a", "web"), deny("b", "client"))...)))
	allow := deny("c", "web")
	allow.Ingress = []api.NetworkPolicyRule{{Ports: []api.NetworkPolicyPort{{Protocol: api.ProtocolTCP, Port: 80}}}}
	must(t, apply(t, first, w, w.cut(allow)))
	w.engine.Apply(api.Event{Ref: deny("b", "client").Ref()})
	must(t, apply(t, first, w, w.cut()))
	stop()

	before, bundles, reads := sw.flows(t), len(sw.bundles()), 0
	settles := 0
	sw.look(func() { reads, settles = sw.reads, sw.settles })
	second := newShim(t, sw, w, dir)
	if !second.loop.complete {
		t.Fatal("the checkpoint was not used")
	}
	sw.addPod(t, "web", 2) // As the bridge says at its start that there are ports.
	begin(t, second)
	sw.until(t, "the bridge is read back", func() (yes bool) {
		sw.look(func() { yes = sw.reads > reads })
		return yes
	})
	must(t, apply(t, second, w, nil))
	sw.look(func() {
		if sw.settles == settles {
			t.Error("what the first shim put last may not be met by packets yet, and the second does not wait for it")
		}
	})
	for _, c := range sw.bundles()[bundles:] {
		if len(c.Upsert)+len(c.Delete) > 0 {
			t.Errorf("the restart put %v and removed %v", c.Upsert, c.Delete)
		}
	}
	if !maps.EqualFunc(before, sw.flows(t), func(a, b openflow.Flow) bool { return a.Same(b) }) {
		t.Error("the flows differ after the restart")
	}
	if !delivered(sw, 1, 2) {
		t.Error("what the policy allows is closed")
	}
}

func TestTornCheckpointStartsWithout(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	s := newShim(t, sw, w, dir)
	stop := begin(t, s)
	must(t, apply(t, s, w, w.cut(objects...)))
	stop()
	path := s.cfg.checkpoint()
	content, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, content[:len(content)-7], 0o600))

	again := newShim(t, sw, newWorld(t), dir)
	if again.loop.complete || again.loop.former.Next != 0 {
		t.Error("half a checkpoint was used")
	}
	begin(t, again)
	reads := 0
	sw.look(func() { reads = sw.reads })
	sw.addPod(t, "web", 2)
	sw.until(t, "the bridge is read back", func() (yes bool) {
		sw.look(func() { yes = sw.reads > reads })
		return yes
	})
	if !delivered(sw, 1, 2) {
		t.Error("what was in force is gone")
	}
}

// The flows say the bridge's own MAC: with another they are others.
func TestBridgeGetsAnotherMAC(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, deny("deny", "web"))...)))
	next := [6]byte{2, 0xab, 0xcd}
	has := func(text string) bool {
		for _, f := range sw.flows(t) {
			if strings.Contains(f.String(), text) {
				return true
			}
		}
		return false
	}
	if !has("02:ee:00:00:00:00") {
		t.Fatal("no flow says the bridge's MAC")
	}
	sw.look(func() { sw.mac = &next })
	sw.addPod(t, "web", 2)
	sw.until(t, "the flows say the new MAC", func() bool { return has("02:ab:cd:00:00:00") && !has("02:ee:00:00:00:00") })
	if delivered(sw, 1, 2) || !delivered(sw, 2, 1) {
		t.Error("the policies are not those of before")
	}
}

// What the host itself sends is judged until it could be marked, and is allowed then.
func TestHostsOwnPacketsAreMarkedLater(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	s.cfg.MarkOwnTraffic = true
	var tries, works atomic.Int32
	s.markOwn = func(context.Context, string, [6]byte) error {
		tries.Add(1)
		if works.Load() == 0 {
			return errors.New("the machine is busy")
		}
		return nil
	}
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, deny("deny", "web"))...)))
	own := func() bool {
		for _, f := range sw.flows(t) {
			if strings.Contains(f.String(), "dl_src="+net.HardwareAddr{2, 0xb9, 0, 0, 0, 0}.String()) {
				return true
			}
		}
		return false
	}
	if tries.Load() == 0 || own() {
		t.Fatalf("%d tries to mark the host's own packets; flows for them: %t", tries.Load(), own())
	}
	works.Store(1)
	sw.until(t, "flows for the host's own packets", own)
	if delivered(sw, 1, 2) || !delivered(sw, 2, 1) {
		t.Error("the policies are not those of before")
	}
	marked := tries.Load()
	sw.addPod(t, "web", 2)
	sw.until(t, "the port is taken over", func() bool { return delivered(sw, 2, 1) })
	if got := tries.Load(); got != marked {
		t.Errorf("the host's own packets were marked %d times more", got-marked)
	}
}

// Meters that others took out are back within seconds, though no switch tells of that.
func TestMetersAreMissed(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir()) // It reads the bridge back each hour.
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, deny("deny", "web"))...)))
	meters := func() []uint32 {
		state, err := sw.Fake.Read(context.Background())
		must(t, err)
		return slices.Sorted(maps.Keys(state.Meters))
	}
	want := meters()
	if len(want) < 2 {
		t.Fatalf("meters %v", want)
	}
	must(t, sw.Fake.Apply(context.Background(), bridge.Change{DeleteMeters: want[1:]}))
	sw.until(t, "the meters are back", func() bool { return slices.Equal(meters(), want) })
}

// A repair of which nothing can go in steps is one, however much it puts beside them.
func TestRepairOfMetersAlone(t *testing.T) {
	t.Parallel()
	c := pipeline.New(pipeline.Config{RuleLogRate: 1}, pipeline.Assignment{})
	by := c.Compare()
	repair := bridge.Change{Upsert: make([]openflow.Flow, 2*mendedAtOnce), More: by.Rest(), PutMeters: c.Meters()}
	if steps := inSteps(repair, by); len(steps) != 1 || len(steps[0].Upsert) != len(repair.Upsert) || len(steps[0].PutMeters) != len(repair.PutMeters) {
		t.Errorf("%d steps", len(steps))
	}
}

// Many flows of others go in steps, and a cut that comes with them as one bundle.
func TestManyAreMendedInSteps(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	s.cfg.Reconcile = 20 * time.Millisecond
	stop := begin(t, s)
	must(t, apply(t, s, w, w.cut(objects...)))
	settled := sw.flows(t)
	spoil := func() {
		var others bridge.Change
		for i := range 2*mendedAtOnce + 1 {
			others.Upsert = append(others.Upsert, openflow.Flow{Table: pipeline.TableOutput, Priority: uint16(i), Match: openflow.NewMatch(openflow.InPort(99)), Actions: openflow.Drop()})
		}
		must(t, sw.Fake.Apply(context.Background(), others))
	}
	sw.look(func() { sw.changes = nil })
	spoil()
	sw.until(t, "the flows of others are gone", func() bool { return maps.EqualFunc(sw.flows(t), settled, openflow.Flow.Same) })
	for _, c := range sw.bundles() {
		if n := c.Upserts() + len(c.Delete); n > mendedAtOnce {
			t.Errorf("%d flows went at once", n)
		}
	}
	if n := len(sw.bundles()); n < 3 {
		t.Errorf("%d changes, want 3", n)
	}
	stop()
	s.loop.stale = true // It is known that something is wrong, and then a cut comes.
	sw.look(func() { sw.changes = nil })
	spoil()
	must(t, s.loop.apply(context.Background(), w.replica, w.cut(append(objects, deny("deny", "web"))...)).err)
	if n := len(sw.bundles()); n != 1 {
		t.Errorf("%d bundles with a cut, want one", n)
	}
}

// A bridge that takes long to read is read when the number of its flows says that
// somebody was there, and else now and then.
func TestLargeBridgeIsReadWhenItIsDue(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	stop := begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, deny("deny", "web"))...)))
	stop()
	ctx, l := context.Background(), s.loop
	due := func(after time.Duration) bool { return l.due(ctx, l.readAt.Add(after)) }
	must(t, l.reconcile(ctx))
	if l.readTook = time.Microsecond; !due(time.Second) {
		t.Error("what takes no time is put off")
	}
	l.readTook = time.Second
	if due(49*time.Second) || !due(50*time.Second) {
		t.Error("a second's reading is not put off for 50")
	}
	for name, c := range map[string]bridge.Change{
		"one flow less": {Delete: []openflow.FlowKey{l.compiler.Desired()[0].Key()}},
		"a meter less":  {DeleteMeters: []uint32{pipeline.SpoofMeter}},
		"another's":     {Upsert: []openflow.Flow{{Table: 5, Priority: 9, Match: openflow.NewMatch(openflow.InPort(77))}}},
	} {
		must(t, sw.Fake.Apply(ctx, c))
		if !due(time.Second) {
			t.Errorf("%s: put off", name)
		}
		must(t, l.reconcile(ctx))
		if l.readTook = time.Second; due(time.Second) {
			t.Errorf("%s, mended: due at once", name)
		}
	}
}

func TestPortComesAndGoes(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, pod("late", "10.0.0.3"))...)))
	if delivered(sw, 1, 3) {
		t.Error("a Pod without port gets packets")
	}
	sw.addPod(t, "late", 3)
	sw.until(t, "the port opens", func() bool { return delivered(sw, 1, 3) && delivered(sw, 3, 1) })
	untilOpen(t, s, 3)
	must(t, sw.RemovePort(context.Background(), "if-late"))
	sw.until(t, "the port closes", func() bool { return !delivered(sw, 1, 3) && !delivered(sw, 3, 1) })
	if !delivered(sw, 1, 2) {
		t.Error("another Pod lost its port with it")
	}
}

// untilOpen waits until so many ports are said to be open: the shim says so after
// the bundle, so that packets may pass a moment before.
func untilOpen(t *testing.T, s *Shim, want int) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		_, changed := s.node.port("")
		open := 0
		for _, p := range s.Stats().GetPorts() {
			if p.GetOpen() {
				open++
			}
		}
		if open == want {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d ports are said to be open, not %d: %v", open, want, s.Stats().GetPorts())
		}
	}
}

// A denied packet of a Namespace that is logged becomes an event that names
// every policy that isolates the Pod.
func TestDeniedPacketBecomesAnEvent(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(append(objects, deny("first", "web"), deny("second", "web"), deny("other", "client"))...)))
	if walk := sw.Send(syn(1, 2)); len(walk.Outputs) != 0 || len(walk.PacketIns) != 1 {
		t.Fatalf("the packet went to %v with %d packet-ins", walk.Ports(), len(walk.PacketIns))
	}
	var events []*auditv1.Event
	deadline := time.After(10 * time.Second)
	for len(events) == 0 {
		select {
		case <-s.log.Wake():
			events = s.log.Take(10)
		case <-deadline:
			t.Fatal("no event")
		}
	}
	p := events[0].GetPacket()
	var policies []string
	for _, ref := range p.GetPolicies() {
		policies = append(policies, ref.GetNamespace()+"/"+ref.GetName())
	}
	if slices.Sort(policies); !slices.Equal(policies, []string{"x/first", "x/second"}) {
		t.Errorf("policies %v", policies)
	}
	if !p.GetIsolation() || p.GetReason() != "isolation" || p.GetAction() != policyv1.Action_ACTION_DROP || p.GetDirection() != policyv1.Direction_DIRECTION_INGRESS {
		t.Errorf("the event is %v", p)
	}
	if p.GetAppliedTo() != "x/web" || p.GetPeer() != "x/client" || p.GetCount() != 1 || p.GetDestinationPort() != 80 {
		t.Errorf("the event is %v", p)
	}
}

// What was reported before a cut is attributed to the policies of then, also
// where the cut comes first to the loop.
func TestReportsAreOfThePoliciesBeforeTheCut(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	ctx := context.Background()
	must(t, s.loop.apply(ctx, w.replica, w.cut(append(objects, deny("first", "web"))...)).err)
	if walk := sw.Send(syn(1, 2)); len(walk.PacketIns) != 1 {
		t.Fatalf("the packet made %d packet-ins", len(walk.PacketIns))
	}
	must(t, s.loop.apply(ctx, w.replica, w.cut(deny("second", "web"))).err)
	s.loop.hear()
	s.log.Flush(time.Now().Add(packetlog.Window))
	events := s.log.Take(10)
	if len(events) != 1 {
		t.Fatalf("events: %v", events)
	}
	if refs := events[0].GetPacket().GetPolicies(); len(refs) != 1 || refs[0].GetName() != "first" {
		t.Errorf("policies %v", refs)
	}
}

// What the meter held back is a loss, counted and stated.
func TestMeterCountersBecomeLosses(t *testing.T) {
	t.Parallel()
	sw, w, _ := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	ctx, now := context.Background(), time.Unix(1000, 0)
	sw.meters = []openflow.MeterStats{{ID: 9, Packets: 50, Dropped: 50}, {ID: pipeline.LogMeter, Packets: 10, Dropped: 4}}
	s.loop.countLosses(ctx, now)
	sw.meters = []openflow.MeterStats{{ID: 9, Packets: 500, Dropped: 500}, {ID: pipeline.LogMeter, Packets: 30, Dropped: 11}}
	s.loop.countLosses(ctx, now.Add(time.Second))
	events := s.log.Take(10)
	if len(events) != 1 || events[0].GetLoss().GetCount() != 7 || events[0].GetLoss().GetStage() != auditv1.LossStage_LOSS_STAGE_RULE_METER {
		t.Errorf("losses: %v", events)
	}
}
