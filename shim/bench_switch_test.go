package shim

import (
	"context"
	"testing"
	"time"
)

// After the switch was killed and is back, its flows are there again: "ms/noticed" is from
// when it answers until the shim is connected, "ms/back" from then until the flows are in
// the tables, medians; neither may be above a second.
func BenchmarkSwitchRecovery(b *testing.B) {
	b.Run("10000", func(b *testing.B) {
		const peered = 9900
		n := newBenchNode(b, 2)
		n.bring(n.frames(append(peers("client", 0, peered), lets("lets", "pod-1", "client", 5000))...))
		want := n.flowCount()
		if want < 10000 {
			b.Fatalf("%d flows", want)
		}
		held := n.tables()
		ctx := context.Background()
		var noticed, back []time.Duration
		for b.Loop() {
			_, connects := n.sw.Connected()
			n.in.KillSwitch()
			must(b, n.in.StartSwitch(ctx)) // Configured, and answering.
			start := time.Now()
			var met time.Time
			for tick := time.Tick(2 * time.Millisecond); ; <-tick {
				is, now := n.sw.Connected()
				if met.IsZero() && is && now > connects {
					met = time.Now()
				}
				if !met.IsZero() && n.tables() >= held {
					break
				}
				if time.Since(start) > 10*time.Second {
					b.Fatal("the flows are not back after 10 s")
				}
			}
			noticed, back = append(noticed, met.Sub(start)), append(back, time.Since(met))
			if got := n.flowCount(); got < want {
				b.Fatalf("%d flows are back, of %d", got, want)
			}
		}
		for name, took := range map[string][]time.Duration{"noticed": noticed, "back": back} {
			middle := quantile(0.5, took)
			b.ReportMetric(ms(middle), "ms/"+name)
			b.ReportMetric(ms(quantile(0.99, took)), "p99-ms/"+name)
			if middle > time.Second {
				b.Errorf("%s after %s", name, middle)
			}
		}
		b.ReportMetric(0, "ns/op")
	})
}

// tables is how many flows the bridge has in all, as it counts them; none while it is away.
func (n *benchNode) tables() (sum int) {
	counts, err := n.sw.FlowCounts(context.Background())
	if err != nil {
		return 0
	}
	for _, count := range counts {
		sum += count
	}
	return sum
}
