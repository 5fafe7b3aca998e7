package bridge_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// benchFlows are n flows as a pipeline has them: an address or a port of a
// rule, conjunctions, registers.
func benchFlows(n int, cookie uint64) []of.Flow {
	out := make([]of.Flow, 0, n)
	for i := range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0a000000+uint32(i))
		m := of.NewMatch(of.IPSrc(netip.PrefixFrom(netip.AddrFrom4(a), 32)), of.Reg(0, 1, 0xf))
		f := flow(uint8(10+i%3), uint16(1000+i%500), m, of.Conjunction{ID: uint32(i % 5000), Clause: 0, Clauses: 3}, of.Conjunction{ID: uint32(i%5000 + 7), Clause: 0, Clauses: 2})
		f.Cookie |= cookie
		out = append(out, f)
	}
	return out
}

func benchBridge(b *testing.B) (*bridge.Bridge, *ovstest.Instance, context.Context) {
	in := ovstest.New(b)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	b.Cleanup(cancel)
	br, err := bridge.New(bridge.Config{Name: "br0", RunDir: in.Dir, DatapathType: "netdev"})
	if err != nil {
		b.Fatal(err)
	}
	if err := br.SetUp(ctx); err != nil {
		b.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { br.Run(run); close(done) }()
	b.Cleanup(func() { stop(); <-done })
	if err := br.WaitConnected(ctx); err != nil {
		b.Fatal(err)
	}
	return br, in, ctx
}

// clear empties the bridge and checks how much there was.
func clear(b *testing.B, br *bridge.Bridge, ctx context.Context, want int) {
	state, err := br.Read(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if len(state.Flows) != want {
		b.Fatalf("%d flows are installed, want %d", len(state.Flows), want)
	}
	if err := br.Apply(ctx, bridge.Diff(bridge.NewContent(), state)); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkApply installs flows in one bundle and compares with ovs-ofctl
// --bundle, which is given the same flows as text.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			br, in, ctx := benchBridge(b)
			flows := benchFlows(n, 0)
			var text strings.Builder
			for _, f := range flows {
				text.WriteString(f.String() + "\n")
			}
			file := filepath.Join(in.Dir, "flows")
			if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
				b.Fatal(err)
			}
			var ours, theirs time.Duration
			for b.Loop() {
				start := time.Now()
				if err := br.Apply(ctx, bridge.Change{Upsert: flows}); err != nil {
					b.Fatal(err)
				}
				ours += time.Since(start)
				clear(b, br, ctx, n)
				start = time.Now()
				if _, err := in.Ofctl(ctx, "--bundle", "add-flows", filepath.Join(in.Dir, "br0.mgmt"), file); err != nil {
					b.Fatal(err)
				}
				theirs += time.Since(start)
				clear(b, br, ctx, n)
			}
			b.ReportMetric(ours.Seconds()/float64(b.N), "s/apply")
			b.ReportMetric(theirs.Seconds()/float64(b.N), "s/ovs-ofctl")
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
		})
	}
}

// BenchmarkApplyOne changes one flow on a bridge that holds ten thousand.
func BenchmarkApplyOne(b *testing.B) {
	br, _, ctx := benchBridge(b)
	if err := br.Apply(ctx, bridge.Change{Upsert: benchFlows(10000, 0)}); err != nil {
		b.Fatal(err)
	}
	one := benchFlows(1, 0)
	for i := 0; b.Loop(); i++ {
		one[0].Cookie = ours | uint64(i)
		if err := br.Apply(ctx, bridge.Change{Upsert: one}); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	clear(b, br, ctx, 10000)
}

// BenchmarkRead reads ten thousand flows back.
func BenchmarkRead(b *testing.B) {
	br, _, ctx := benchBridge(b)
	if err := br.Apply(ctx, bridge.Change{Upsert: benchFlows(10000, 0)}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		state, err := br.Read(ctx)
		if err != nil || len(state.Flows) != 10000 {
			b.Fatalf("%d flows, %v", len(state.Flows), err)
		}
	}
}

// BenchmarkCounters reads the counters of forty thousand flows among a hundred
// thousand: those of ten thousand rules.
func BenchmarkCounters(b *testing.B) {
	br, _, ctx := benchBridge(b)
	counting := make([]of.Flow, 0, 40000)
	for i := range cap(counting) {
		m := of.NewMatch(of.Masked(of.FieldCTLabel, of.Uint(uint64(i)), of.Ones(0, 32)), of.IPv4())
		f := flow(uint8(13+i%2*10), 100, m, of.Goto(40))
		f.Cookie |= 1 << 40
		counting = append(counting, f)
	}
	if err := br.Apply(ctx, bridge.Change{Upsert: append(benchFlows(60000, 0), counting...)}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		flows := 0
		err := br.Counters(ctx, of.FlowFilter{Table: of.AllTables, Cookie: 1 << 40, CookieMask: 1 << 40}, func(of.Flow) { flows++ })
		if err != nil || flows != len(counting) {
			b.Fatalf("%d flows, %v", flows, err)
		}
	}
}

// BenchmarkSettle changes one flow on a bridge that holds ten thousand and
// waits until the datapath's cache has followed.
func BenchmarkSettle(b *testing.B) {
	br, _, ctx := benchBridge(b)
	if err := br.Apply(ctx, bridge.Change{Upsert: benchFlows(10000, 0)}); err != nil {
		b.Fatal(err)
	}
	one := benchFlows(1, 0)
	for i := 0; b.Loop(); i++ {
		one[0].Cookie = ours | uint64(i)
		if err := br.Apply(ctx, bridge.Change{Upsert: one}); err != nil {
			b.Fatal(err)
		}
		if err := br.Settle(ctx, one[0]); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	clear(b, br, ctx, 10000)
}
