package bridge_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// api is what both bridges offer.
type api interface {
	Apply(context.Context, bridge.Change) error
	Read(context.Context) (bridge.State, error)
	ReadBut(ctx context.Context, except func(of.Flow) bool) (bridge.State, error)
	Counters(context.Context, of.FlowFilter, func(of.Flow)) error
	MeterCounters(context.Context) ([]of.MeterStats, error)
	MeterLimit(context.Context) (uint32, error)
	FlowCounts(context.Context) (map[uint8]int, error)
	PacketIns(id uint16) <-chan of.PacketIn
	Deliver(id uint16, take func(of.PacketIn))
	PacketInStats(id uint16) bridge.PacketInStats
	PacketOut(context.Context, of.PacketOut) error
	Ports(context.Context) ([]bridge.Port, error)
	PortsChanged() <-chan struct{}
	Local(context.Context) (bridge.Port, error)
	AddPort(ctx context.Context, name string, externalIDs map[string]string) error
	RemovePort(ctx context.Context, name string) error
	Reconnected() <-chan struct{}
	Connected() (bool, uint64)
	FlushConntrack(ctx context.Context, c bridge.Connections) error
}

// Both are what consumers will declare interfaces for.
var (
	_ api = (*bridge.Bridge)(nil)
	_ api = (*bridge.Fake)(nil)
)

// subject is a bridge under test with ports 1 to 4.
type subject struct {
	api
	t   *testing.T
	ctx context.Context
	// restart restarts the switch.
	restart func()
	// outputs tells by which ports a packet leaves, given what the connection
	// tracker will say of it.
	outputs func(p bridge.Packet, ctNext ...uint32) []string
	// account tells in detail what became of a packet, for people.
	account func(p bridge.Packet, ctNext ...uint32) string
	// attach makes an interface that AddPort can take.
	attach func(name string)
	// pass has time pass for flows, and waits until done.
	pass func(d time.Duration, done func() bool)
}

const (
	ours      = 0x5745000000000000
	oursMask  = 0xffff000000000000
	logID     = 9
	otherID   = 10
	queueSize = 8
)

func config(name string) bridge.Config {
	return bridge.Config{
		Name:        name,
		Mark:        bridge.Mark{Value: ours, Mask: oursMask},
		Controllers: []bridge.Controller{{ID: logID, Queue: queueSize}, {ID: otherID, Queue: queueSize}},
		MinBackoff:  5 * time.Millisecond,
		MaxBackoff:  50 * time.Millisecond,
	}
}

// each runs a specification on the Fake and on Open vSwitch.
func each(t *testing.T, spec func(t *testing.T, s *subject)) {
	t.Run("fake", func(t *testing.T) { spec(t, newFake(t)) })
	t.Run("ovs", func(t *testing.T) { spec(t, newReal(t)) })
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newFake(t *testing.T) *subject {
	f := bridge.NewFake(config("br0"))
	f.LimitMeters(time.Now)
	s := &subject{api: f, t: t, ctx: deadline(t), restart: f.Restart, attach: func(string) {}}
	s.pass = func(d time.Duration, done func() bool) {
		t.Helper()
		if f.PassTime(d); !done() {
			t.Errorf("not done after %v", d)
		}
	}
	for i := 1; i <= 4; i++ {
		s.must(f.AddPort(s.ctx, fmt.Sprintf("p%d", i), nil))
	}
	s.outputs = func(p bridge.Packet, ctNext ...uint32) []string {
		w := f.Walk(p, bridge.WalkOptions{CtNext: append([]uint32{}, ctNext...)})
		if len(w.Ambiguous) > 0 {
			t.Errorf("ambiguous: %v", w.Ambiguous)
		}
		out := []string{}
		for _, port := range w.Ports() {
			if port == of.PortLocal {
				out = append(out, "LOCAL")
			} else {
				out = append(out, strconv.Itoa(int(port)))
			}
		}
		slices.Sort(out)
		return out
	}
	s.account = func(p bridge.Packet, ctNext ...uint32) string {
		text := ""
		for _, h := range f.Walk(p, bridge.WalkOptions{CtNext: append([]uint32{}, ctNext...)}).Trail {
			text += h.Flow.String() + "\n"
		}
		return text
	}
	return s
}

// shared is the one Open vSwitch of this test binary; each test has a bridge of
// its own on it.
var shared struct {
	sync.Mutex
	instance *ovstest.Instance
	bridges  int
}

func newReal(t *testing.T) *subject {
	ovstest.Require(t)
	shared.Lock()
	if shared.instance == nil {
		in, err := ovstest.Start(deadline(t), ovstest.Config{})
		if err != nil {
			shared.Unlock()
			t.Fatal(err)
		}
		shared.instance = in
	}
	in := shared.instance
	shared.bridges++
	name := fmt.Sprintf("br%d", shared.bridges)
	shared.Unlock()
	return onInstance(t, in, name)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.instance != nil {
		if err := shared.instance.Stop(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}

func onInstance(t *testing.T, in *ovstest.Instance, name string) *subject {
	cfg := config(name)
	cfg.RunDir, cfg.DatapathType = in.Dir, "netdev"
	b, err := bridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &subject{api: b, t: t, ctx: deadline(t)}
	s.must(b.SetUp(s.ctx))
	args := []string{}
	for i := 1; i <= 4; i++ {
		port := fmt.Sprintf("%sp%d", name, i)
		args = append(args, "--", "add-port", name, port, "--", "set", "interface", port, "type=internal", fmt.Sprintf("ofport_request=%d", i))
	}
	_, err = in.Vsctl(s.ctx, args[1:]...)
	s.must(err)

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		remove, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err := b.Remove(remove); err != nil {
			t.Error(err)
		}
	})
	s.must(b.WaitConnected(s.ctx))
	s.restart = func() {
		in.KillSwitch()
		s.must(in.StartSwitch(s.ctx))
	}
	s.pass = func(d time.Duration, done func() bool) {
		t.Helper()
		for !done() {
			if s.ctx.Err() != nil {
				t.Fatalf("not done long after %v", d)
			}
		}
	}
	s.attach = func(port string) {
		_, err := in.Run(s.ctx, "ip", "link", "add", port, "type", "veth", "peer", "name", port+"x")
		s.must(err)
		t.Cleanup(func() { _, _ = in.Run(context.Background(), "ip", "link", "del", port) })
	}
	s.account = func(p bridge.Packet, ctNext ...uint32) string {
		t.Helper()
		var options []string
		for _, state := range ctNext {
			options = append(options, "--ct-next", stateWords(state))
		}
		text, err := b.Trace(s.ctx, p.String(), options...)
		s.must(err)
		return text
	}
	s.outputs = func(p bridge.Packet, ctNext ...uint32) []string {
		t.Helper()
		o, err := bridge.ParseTrace(s.account(p, ctNext...))
		s.must(err)
		if o.Outputs == nil {
			return []string{}
		}
		for i, port := range o.Outputs {
			if port == "IN_PORT" {
				o.Outputs[i] = strconv.Itoa(int(p.InPort))
			}
		}
		return o.Outputs
	}
	return s
}

func stateWords(state uint32) string {
	var words []string
	for i, word := range []string{"new", "est", "rel", "rpl", "inv", "trk"} {
		if state>>i&1 == 1 {
			words = append(words, word)
		}
	}
	return strings.Join(words, ",")
}

func (s *subject) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// put applies flows.
func (s *subject) put(flows ...of.Flow) {
	s.t.Helper()
	s.must(s.Apply(s.ctx, bridge.Change{Upsert: flows}))
}

func (s *subject) read() bridge.State {
	s.t.Helper()
	state, err := s.Read(s.ctx)
	s.must(err)
	return state
}

// send lets a packet in, as a controller can.
func (s *subject) send(p bridge.Packet) {
	s.t.Helper()
	s.must(s.PacketOut(s.ctx, of.PacketOut{InPort: p.InPort, Actions: of.NewActions(of.OutputPort(of.PortTable)), Packet: p.Frame()}))
}

func (s *subject) next(id uint16) of.PacketIn {
	s.t.Helper()
	select {
	case p := <-s.PacketIns(id):
		return p
	case <-s.ctx.Done():
		s.t.Fatalf("no packet-in for controller %d", id)
		return of.PacketIn{}
	}
}

func flow(table uint8, priority uint16, m of.Match, steps ...of.Action) of.Flow {
	return of.Flow{Table: table, Priority: priority, Match: m, Cookie: ours, Actions: of.NewActions(steps...)}
}

func addrOf(s string) netip.Addr { return netip.MustParseAddr(s) }

func tcp(in uint32, src, dst string, sport, dport uint16, flags uint16) bridge.Packet {
	return bridge.Packet{InPort: in, EthSrc: macA, EthDst: macB, EthType: etherOf(src), IPSrc: addrOf(src), IPDst: addrOf(dst), IPProto: of.ProtoTCP, TTL: 64, SrcPort: sport, DstPort: dport, TCPFlags: flags}
}

func udp(in uint32, src, dst string, sport, dport uint16) bridge.Packet {
	return bridge.Packet{InPort: in, EthSrc: macA, EthDst: macB, EthType: etherOf(src), IPSrc: addrOf(src), IPDst: addrOf(dst), IPProto: of.ProtoUDP, TTL: 64, SrcPort: sport, DstPort: dport}
}

func etherOf(a string) uint16 {
	if addrOf(a).Is4() {
		return of.EtherIPv4
	}
	return of.EtherIPv6
}
