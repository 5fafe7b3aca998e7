package hostfw

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw/fwtest"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/storage"
)

const (
	benchRules     = 1000
	benchAddresses = 100_000
	benchPort      = 9000
)

// guarded is a host with rules that name groups, one after the other. What comes
// to benchPort is asked of all of them, and allowed by the last but one, by a
// member of the first group; the last drops it.
type guarded struct {
	state  hostpolicy.State
	groups map[string]map[netip.Addr]*policyv1.Member
	plan   *hostpolicy.Plan
}

func guard(groups int) *guarded {
	g := &guarded{groups: make(map[string]map[netip.Addr]*policyv1.Member)}
	name := func(i int) string { return fmt.Sprintf("group-%d", i%groups) }
	for i := range benchAddresses {
		if g.groups[name(i)] == nil {
			g.groups[name(i)] = make(map[netip.Addr]*policyv1.Member)
		}
		g.toggle(name(i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	g.toggle(name(0), netip.MustParseAddr(fwtest.Client[0]))
	g.state = hostpolicy.State{Facts: &policyv1.NodeFacts{Groups: [][]byte{nodeGroup}}, Known: &hostpolicy.Known{},
		Members: func(group []byte, fn func(*policyv1.Member)) {
			for _, m := range g.groups[string(group)] {
				fn(m)
			}
		}}
	for i := range benchRules {
		r := memberRule(in, drop, nil, name(i))
		port := uint32(20_000 + i)
		switch i {
		case benchRules - 2:
			r, port = memberRule(in, allow, nil, name(0)), benchPort
		case benchRules - 1:
			r, port = hostRule(in, drop, true), benchPort
		}
		for _, s := range r.Services.Services {
			s.Port = port
		}
		p := of(100, r)
		p.Priority = float64(i)
		p.Ref, p.AppliedTo = &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: fmt.Sprint(i)}, [][]byte{nodeGroup}
		g.state.Items = append(g.state.Items, hostpolicy.Item{Key: storage.PolicyKey(p), Policy: p})
	}
	return g
}

// toggle has a member of a group come, or go where it is there.
func (g *guarded) toggle(group string, a netip.Addr) {
	if members := g.groups[group]; members[a] == nil {
		members[a] = &policyv1.Member{Ips: [][]byte{a.AsSlice()}}
	} else {
		delete(members, a)
	}
}

// apply makes the plan anew, and has it in force.
func (g *guarded) apply(b *testing.B, p *Policies) {
	g.plan, _ = hostpolicy.New(g.state)
	if err := p.Apply(context.Background(), g.plan); err != nil {
		b.Fatal(err)
	}
}

// stream sends the host a thousand datagrams a second, of which none is answered,
// so that each comes to the rules. Stop waits for the last, and says how many were
// sent and did not come.
func stream(b *testing.B, n *fwtest.Network) (stop func() (sent, lost int64)) {
	to, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(fwtest.Host[0]), Port: benchPort})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { to.Close() })
	if err := to.SetReadBuffer(1 << 22); err != nil {
		b.Fatal(err)
	}
	from, err := n.Dial("udp", fwtest.Client[0], fwtest.Host[0], benchPort)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { from.Close() })
	var came, end atomic.Int64 // End is how many there will be; below zero: not known yet.
	end.Store(-1)
	all, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(all)
		for buf := make([]byte, 64); ; {
			_ = to.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := to.Read(buf); err == nil {
				came.Add(1)
			}
			if e := end.Load(); e >= 0 && came.Load() >= e {
				return
			}
		}
	}()
	ended := make(chan int64)
	go func() {
		begin, tick := time.Now(), time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for sent := int64(0); ; {
			select {
			case <-over:
				ended <- sent
				return
			case <-tick.C:
				for ; sent < time.Since(begin).Milliseconds(); sent++ {
					if _, err := from.Write([]byte("weir")); err != nil {
						b.Error(err)
					}
				}
			}
		}
	}()
	return func() (sent, lost int64) {
		close(over)
		sent = <-ended
		end.Store(sent)
		select {
		case <-all:
		case <-time.After(5 * time.Second):
		}
		return sent, sent - came.Load()
	}
}

// streamed says what became of a stream. None of it may be lost.
func streamed(b *testing.B, stop func() (sent, lost int64)) {
	b.StopTimer()
	sent, lost := stop()
	b.ReportMetric(float64(lost), "lost")
	if sent == 0 || lost != 0 {
		b.Errorf("%d of %d packets were lost", lost, sent)
	}
}

// BenchmarkHostPolicies has 1,000 rules and 100,000 addresses, in a hundred groups
// or one, put in force as after a start of the shim, and has one member come or go:
// from the state to the kernel.
func BenchmarkHostPolicies(b *testing.B) {
	for _, groups := range []int{100, 1} {
		b.Run(fmt.Sprintf("whole/groups=%d", groups), func(b *testing.B) {
			isolate(b) // Says what is missing.
			n := fwtest.New(b)
			g := guard(groups)
			g.apply(b, NewPolicies())
			stop := stream(b, n)
			b.ReportAllocs()
			for b.Loop() {
				g.state.Known = &hostpolicy.Known{}
				g.apply(b, NewPolicies())
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/op")
			streamed(b, stop)
		})
		b.Run(fmt.Sprintf("member/groups=%d", groups), func(b *testing.B) {
			isolate(b)
			n := fwtest.New(b)
			g := guard(groups)
			p, nft := writing(b)
			g.apply(b, p)
			stop := stream(b, n)
			var took, devised []time.Duration
			elements, member := 0, netip.MustParseAddr("172.16.0.1")
			b.ReportAllocs()
			for b.Loop() {
				g.toggle("group-0", member)
				begin := time.Now()
				g.state.Known.Forget([]byte("group-0"))
				g.plan, _ = hostpolicy.New(g.state)
				devised = append(devised, time.Since(begin))
				if err := p.Apply(context.Background(), g.plan); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
				for line := range strings.Lines(nft.last) {
					if !strings.Contains(line, " element ") {
						b.Fatalf("written: %s", line)
					}
					elements += 1 + strings.Count(line, ",")
				}
			}
			slices.Sort(took)
			slices.Sort(devised)
			ms := func(list []time.Duration, percent int) float64 {
				return float64(list[(len(list)-1)*percent/100].Microseconds()) / 1000
			}
			b.ReportMetric(ms(devised, 50), "plan-ms")
			b.ReportMetric(ms(took, 50), "p50-ms")
			b.ReportMetric(ms(took, 99), "p99-ms")
			b.ReportMetric(float64(elements)/float64(b.N), "elements/op")
			streamed(b, stop)
		})
	}
}
