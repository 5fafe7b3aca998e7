package record

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// scenario feeds a Dedup and notes its lines: "cursor xPACKETS in WINDOW".
type scenario struct {
	*Dedup
	lines  []string
	cursor uint64
	wall   time.Time
}

func newScenario(cfg DedupConfig) *scenario {
	s := &scenario{wall: time.Unix(2_000_000_000, 0)}
	cfg.Emit = func(l *Line) {
		text := fmt.Sprintf("%d x%d in %s", l.Cursor, l.Packets, l.Window)
		if l.Overflow {
			text += " overflow"
		}
		if l.Kind == KindLoss {
			text = fmt.Sprintf("%d lost %d", l.Cursor, l.Loss.Count)
		}
		s.lines = append(s.lines, text)
	}
	s.Dedup = NewDedup(cfg)
	return s
}

// packet adds one, so many milliseconds after the beginning.
func (s *scenario) packet(ms int, change ...func(*Record)) {
	s.cursor++
	p := isolation()
	p.First = time.Unix(1_700_000_000, 0).Add(time.Duration(ms) * time.Millisecond)
	p.Last = p.First
	r := Record{Cursor: s.cursor, Node: "n1", Event: Event{Packet: p}}
	for _, c := range change {
		c(&r)
	}
	s.Add(&r, s.wall)
}

func (s *scenario) want(t *testing.T, lines ...string) {
	t.Helper()
	if !slices.Equal(s.lines, lines) {
		t.Fatalf("lines:\n%s\nwant:\n%s", strings.Join(s.lines, "\n"), strings.Join(lines, "\n"))
	}
}

func port(n uint32) func(*Record) { return func(r *Record) { r.Packet.SourcePort = num(n) } }

func TestOneLineAWindow(t *testing.T) {
	s := newScenario(DedupConfig{})
	s.packet(0)
	s.packet(999)
	s.want(t)
	s.packet(1000) // Ends the first window, and begins another.
	s.want(t, "1 x2 in 1s")
	s.packet(2500, port(9)) // The node's time has passed it.
	s.want(t, "1 x2 in 1s", "3 x1 in 1s")
	if c, ok := s.Oldest(); !ok || c != 4 {
		t.Errorf("oldest %d", c)
	}
	s.Flush()
	s.want(t, "1 x2 in 1s", "3 x1 in 1s", "4 x1 in 1s")
	if _, ok := s.Oldest(); ok || s.Open() != 0 || s.Merged() != 1 {
		t.Errorf("%d open, %d merged", s.Open(), s.Merged())
	}
}

func TestAllowsAndLossesAreNotMerged(t *testing.T) {
	s := newScenario(DedupConfig{})
	isAllow := func(r *Record) { r.Packet.Action = allow }
	s.packet(0, isAllow)
	s.packet(1, isAllow)
	s.packet(2, isAllow, func(r *Record) { r.Packet.Count = 3 })
	s.packet(3, func(r *Record) { r.Kind, r.Loss = KindLoss, Loss{Count: 8, Stage: auditv1.LossStage_LOSS_STAGE_METER} })
	s.packet(4, isAllow, func(r *Record) { r.Packet.Redirected = true })
	s.want(t, "1 x1 in 0s", "2 x1 in 0s", "3 x3 in 0s", "4 lost 8")
	s.Flush()
	s.want(t, "1 x1 in 0s", "2 x1 in 0s", "3 x3 in 0s", "4 lost 8", "5 x1 in 1s")
}

func TestCountsCount(t *testing.T) {
	s := newScenario(DedupConfig{})
	s.packet(0, func(r *Record) { r.Packet.Count = 5 })
	s.packet(950, func(r *Record) { r.Packet.Count = 2; r.Packet.Last = r.Packet.First.Add(90 * time.Millisecond) })
	s.Flush()
	s.want(t, "1 x7 in 1.04s") // The last packets of an event may lie beyond the window.
}

func TestKeys(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(*Record)
		printed int // Windows that the packet and another make.
		named   int
		all     int
	}{
		"nothing":     {func(*Record) {}, 1, 1, 1},
		"node":        {func(r *Record) { r.Node = "n2" }, 2, 2, 2},
		"source":      {func(r *Record) { r.Packet.Source = netip.MustParseAddr("10.0.0.9") }, 2, 2, 2},
		"port":        {func(r *Record) { r.Packet.DestPort = Number{} }, 2, 2, 2},
		"length":      {func(r *Record) { r.Packet.Length++ }, 2, 2, 2},
		"rule":        {func(r *Record) { r.Packet.Rule = "x" }, 2, 2, 2},
		"label":       {func(r *Record) { r.Packet.LogLabel = "x" }, 2, 2, 2},
		"applied to":  {func(r *Record) { r.Packet.AppliedTo = "default/nettoox" }, 2, 2, 2},
		"action":      {func(r *Record) { r.Packet.Action = reject }, 2, 2, 2},
		"policies":    {func(r *Record) { r.Packet.Policies = r.Packet.Policies[:1] }, 1, 2, 2},
		"equal names": {func(r *Record) { r.Packet.Policies = slices.Clone(r.Packet.Policies) }, 1, 1, 1},
		"peer":        {func(r *Record) { r.Packet.Peer = "x/y" }, 1, 1, 2},
		"staged":      {func(r *Record) { r.Packet.Staged = &Staged{Action: allow} }, 1, 1, 2},
		"reason":      {func(r *Record) { r.Packet.Reason = reasonStaged }, 2, 2, 2}, // Which np.log leaves out.
		"flags":       {func(r *Record) { r.Packet.TCPFlags = 16 }, 1, 1, 2},
	} {
		for key, want := range map[Key]int{KeyPrinted: tt.printed, KeyNamed: tt.named, KeyAll: tt.all} {
			s := newScenario(DedupConfig{Key: key})
			s.packet(0)
			s.packet(1, tt.change)
			if s.Open() != want {
				t.Errorf("%s, key %d: %d windows, want %d", name, key, s.Open(), want)
			}
		}
	}
}

// Outcomes are compared by what they say. What is folded keeps them, and stays
// out of np.log.
func TestStagedOutcomesStayApart(t *testing.T) {
	shut, open := Policy{k8s, "x", "shut"}, Policy{k8s, "x", "open"}
	would := func(action policyv1.Action, policy Policy, rule string, all ...Policy) func(*Record) {
		return func(r *Record) { r.Packet.Staged = &Staged{Action: action, Policy: policy, Rule: rule, Policies: all} }
	}
	outcomes := []func(*Record){would(allow, open, "", open), would(allow, open, "r", open), would(reject, open, "", open), would(allow, shut, "", open), would(allow, open, "", open, shut)}
	s := newScenario(DedupConfig{})
	for range 2 {
		for _, o := range outcomes {
			s.packet(0, o)
		}
	}
	if s.Open() != len(outcomes) {
		t.Errorf("%d windows, want %d", s.Open(), len(outcomes))
	}
	var lines []Line
	d := NewDedup(DedupConfig{MaxWindows: 1, Emit: func(l *Line) { lines = append(lines, *l) }})
	for i := range 4 {
		r := Record{Node: "n1", Event: Event{Packet: isolation()}}
		r.Packet.SourcePort, r.Packet.Reason = num(uint32(i)), reasonStaged
		outcomes[0](&r)
		d.Add(&r, time.Time{})
	}
	d.Flush()
	if len(lines) != 2 || !lines[1].Overflow || lines[1].Packets != 3 || lines[1].Packet.Staged.Policy != open || len((NPLog{}).Append(nil, &lines[1])) > 0 {
		t.Errorf("lines %+v", lines)
	}
}

func TestNodesHaveTheirOwnTime(t *testing.T) {
	s := newScenario(DedupConfig{})
	s.packet(0)
	s.packet(5000, func(r *Record) { r.Node = "n2" })
	s.want(t) // The clock of n2 says nothing of n1.
	s.packet(500)
	s.packet(1000, port(9))
	s.want(t, "1 x2 in 1s")
}

func TestClockSetBack(t *testing.T) {
	s := newScenario(DedupConfig{})
	s.packet(100_000)
	s.packet(0) // Below a window: merged into what is open.
	s.packet(50, port(9))
	s.packet(99, port(9))
	s.packet(1500, port(8))
	s.Flush()
	if len(s.lines) != 3 || s.Merged() != 2 {
		t.Errorf("%v", s.lines)
	}
}

func TestTickEndsWindowsOfSilentNodes(t *testing.T) {
	s := newScenario(DedupConfig{})
	s.packet(0)
	s.wall = s.wall.Add(600 * time.Millisecond)
	s.packet(600, port(9))
	s.Tick(s.wall.Add(399 * time.Millisecond))
	s.want(t)
	s.Tick(s.wall.Add(400 * time.Millisecond))
	s.want(t, "1 x1 in 1s")
	s.Tick(s.wall.Add(time.Second))
	s.want(t, "1 x1 in 1s", "2 x1 in 1s")
}

// TestOverflow: of what belongs together, as many windows are opened as are free;
// beyond, packets are counted by rule and Pod, and none goes missing.
func TestOverflow(t *testing.T) {
	s := newScenario(DedupConfig{MaxWindows: 4})
	for i := range 20 {
		s.packet(i, port(uint32(i)))
	}
	s.packet(30, port(1000), func(r *Record) { r.Packet.Rule = "other" })
	s.packet(31, port(1)) // Has a window.
	s.packet(32, port(1000), func(r *Record) { r.Packet.AppliedTo = "default/other" })
	s.Flush()
	s.want(t, "1 x1 in 1s", "2 x2 in 1s", "3 x18 in 1s overflow", "21 x1 in 1s", "23 x1 in 1s")
	l := lineOf(isolation(), 16, time.Second)
	l.Record = FoldFlow.fold(&l.Record)
	l.Overflow = true
	l.Packet.First = time.Unix(0, 0)
	if got := string(NPLog{}.Append(nil, l)); got != "1970/01/01 00:00:01.000000 IngressDefaultRule K8sNetworkPolicy <nil> Ingress Drop <nil> default/nettool <nil> <nil> <nil> <nil> <nil> 0 <nil> [16 packets in 1s]\n" {
		t.Error(got)
	}
}

// TestScan: 1,000,000 distinct flows to one Pod in ten seconds leave a bounded number
// of lines, which state their true count, and another Pod's first denial in the
// middle of it has its own line within two seconds.
func TestScan(t *testing.T) {
	t.Parallel()
	const flows = 1_000_000
	var lines int
	var packets uint64
	var seen time.Time
	now := time.Unix(1_700_000_000, 0)
	begin := now
	d := NewDedup(DedupConfig{Key: KeyPrinted, Emit: func(l *Line) {
		lines++
		packets += l.Packets
		if l.Packet.AppliedTo == "shop/victim" {
			seen = now
			if l.Overflow || l.Packets != 1 || l.Packet.SourcePort.Value != 7 {
				t.Errorf("the other Pod's line is %+v", l)
			}
		}
	}})
	p := isolation()
	for i := range flows {
		now = begin.Add(time.Duration(i) * 10 * time.Microsecond)
		p.First, p.Last = now, now
		p.SourcePort, p.DestPort = num(uint32(i&0xffff)), num(uint32(i>>16))
		d.Add(&Record{Cursor: uint64(i + 1), Node: "n1", Event: Event{Packet: p}}, now)
		if i == flows/2 {
			other := p
			other.AppliedTo, other.SourcePort = "shop/victim", num(7)
			d.Add(&Record{Cursor: uint64(i + 1), Node: "n1", Event: Event{Packet: other}}, now)
		}
	}
	d.Flush()
	if most := 11 * (DefaultMaxWindows/2 + 1); lines > most || packets != flows+1 {
		t.Errorf("%d lines of %d packets", lines, packets)
	}
	if delay := seen.Sub(begin.Add(5 * time.Second)); delay <= 0 || delay > 2*time.Second {
		t.Errorf("the other Pod's denial is seen after %s", delay)
	}
}

// TestManyScans: however many rules and nodes overflow, windows and lines are bounded
// while their windows last, and every packet is in one.
func TestManyScans(t *testing.T) {
	var lines int
	var packets uint64
	d := NewDedup(DedupConfig{MaxWindows: 1000, Emit: func(l *Line) { lines++; packets += l.Packets }})
	p := isolation()
	p.First = time.Unix(1_700_000_000, 0)
	p.Last = p.First
	const most = 1000 + maxOverflows + maxRests
	for i := range 200_000 {
		p.SourcePort, p.Rule = num(uint32(i&0xffff)), fmt.Sprint(i%7000)
		d.Add(&Record{Cursor: uint64(i + 1), Node: fmt.Sprint("n", i%5), Event: Event{Packet: p}}, time.Time{})
		if d.Open() > most || lines > 0 {
			t.Fatalf("%d windows, %d lines", d.Open(), lines)
		}
	}
	d.Flush()
	if lines > most || packets != 200_000 || len(d.shares) != 0 {
		t.Errorf("%d lines of %d packets, %d shares", lines, packets, len(d.shares))
	}
}

// TestPlaces: a table of windows against a map, with few hashes, so that they collide.
func TestPlaces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	table, model, hashes := newPlaces(20), make(map[int32]bool), make([]uint64, 20)
	for range 100_000 {
		w := int32(r.IntN(20))
		if model[w] {
			table.remove(hashes[w], w, func(w int32) uint64 { return hashes[w] })
			delete(model, w)
		} else {
			hashes[w] = uint64(r.IntN(3))<<60 | uint64(r.IntN(2))
			table.add(hashes[w], w)
			model[w] = true
		}
		for w := range int32(20) {
			if _, ok := table.find(hashes[w], func(i int32) bool { return i == w }); ok != model[w] {
				t.Fatalf("window %d is found: %v", w, ok)
			}
		}
	}
}

// TestTickOverClockSteps: the clock is set back an hour. Windows do not stay open for as
// long.
func TestTickOverClockSteps(t *testing.T) {
	s := newScenario(DedupConfig{})
	s.packet(0)
	s.wall = s.wall.Add(-time.Hour)
	s.packet(100, port(9))
	s.Tick(s.wall.Add(100 * time.Millisecond))
	s.want(t, "1 x1 in 1s")
	s.Tick(s.wall.Add(time.Second))
	s.want(t, "1 x1 in 1s", "2 x1 in 1s")
}

// TestNothingIsLost adds many packets in many windows: each is in one line.
func TestNothingIsLost(t *testing.T) {
	var total uint64
	d := NewDedup(DedupConfig{MaxWindows: 100, Emit: func(l *Line) { total += l.Packets }})
	state, want := uint64(1), uint64(0)
	for i := range 50_000 {
		state = state*6364136223846793005 + 1442695040888963407
		p := isolation()
		p.First = time.Unix(1_700_000_000, 0).Add(time.Duration(i)*time.Millisecond - time.Duration(state>>40%1500)*time.Millisecond)
		p.Last, p.Count, p.SourcePort = p.First, 1+state>>62, num(uint32(state>>50%300))
		want += p.Count
		d.Add(&Record{Cursor: uint64(i + 1), Node: fmt.Sprint("n", state>>33%3), Event: Event{Packet: p}}, time.Unix(int64(i), 0))
		if i%5000 == 0 {
			d.Tick(time.Unix(int64(i), 0))
		}
	}
	d.Flush()
	if total != want || d.Open() != 0 {
		t.Errorf("%d packets in lines, %d went in", total, want)
	}
}

// BenchmarkDedup is without decoding; DedupScan in services/audit has both.
func BenchmarkDedup(b *testing.B) {
	p := isolation()
	for _, distinct := range []bool{false, true} {
		b.Run(map[bool]string{false: "repeated", true: "distinct"}[distinct], func(b *testing.B) {
			d := NewDedup(DedupConfig{Emit: func(*Line) {}})
			r := Record{Node: "n1", Event: Event{Packet: p}}
			var addr [4]byte
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if distinct {
					binary.BigEndian.PutUint32(addr[:], uint32(i))
					r.Packet.Source = netip.AddrFrom4(addr)
				}
				r.Cursor, r.Packet.First = uint64(i), time.Unix(1_700_000_000, int64(i)*10_000)
				d.Add(&r, r.Packet.First)
			}
		})
	}
}
