package server

import (
	"slices"
	"strconv"
	"testing"
	"time"
)

// What one change costs that concerns every node: from its commit until the
// server has taken the acknowledgement of the last node (p50-ms, p99-ms and
// p999-ms, over the changes), and of each (node-…, over changes and nodes). The
// nodes' own CPU time is in the way of the server's only because they share a
// machine here.
func BenchmarkFanout(b *testing.B) {
	for _, nodes := range []int{1, 1000, 5000} {
		b.Run(strconv.Itoa(nodes), func(b *testing.B) {
			l := newLoaded(b, nodes)
			l.commit(l.wideChange(), nodes) // The first makes what the streams keep.
			before := l.report()
			var all, each []time.Duration
			began := cpu()
			for b.Loop() {
				took := l.commit(l.wideChange(), nodes)
				all, each = append(all, slices.Max(took)), append(each, took...)
				b.StopTimer() // This is about one change: the server is let come to rest after each.
				time.Sleep(slices.Max(took) + 4*longestWave)
				b.StartTimer()
			}
			spent := cpu() - began
			payload, nodesCPU := l.verify(before, func(int) int { return len(all) }, 0)
			b.ReportMetric(ms(quantile(all, 0.5)), "p50-ms")
			b.ReportMetric(ms(quantile(all, 0.99)), "p99-ms")
			b.ReportMetric(ms(quantile(all, 0.999)), "p999-ms")
			b.ReportMetric(ms(quantile(each, 0.5)), "node-p50-ms")
			b.ReportMetric(ms(quantile(each, 0.99)), "node-p99-ms")
			b.ReportMetric(ms(quantile(each, 0.999)), "node-p999-ms")
			b.ReportMetric(float64(payload)/float64(nodes*len(all)), "payload-B/node")
			b.ReportMetric(ms(spent)/float64(len(all)), "cpu-ms/op")
			b.ReportMetric(ms(nodesCPU)/float64(len(all)), "nodes-cpu-ms/op")
			b.ReportMetric(float64(rss(b)-l.idleRSS)/1024/float64(nodes), "rss-KB/stream")
		})
	}
}

// What one change costs the server that concerns one node of those that are
// connected: CPU time, and the time until it is acknowledged. The same node
// always, which compares what the others cost by being there; and each node in
// its turn, whose stream then has left the processor's caches.
func BenchmarkFanoutOne(b *testing.B) {
	for _, tc := range []struct {
		name   string
		nodes  int
		choose func(op int) (node int)
	}{
		{"1", 1, func(int) int { return 0 }},
		{"5000", 5000, func(int) int { return 2500 }},
		{"5000inTurn", 5000, func(op int) int { return op % 5000 }},
	} {
		b.Run(tc.name, func(b *testing.B) {
			l := newLoaded(b, tc.nodes)
			before := l.report()
			var took []time.Duration
			began := cpu()
			for b.Loop() {
				took = append(took, l.commit(l.narrowChange(tc.choose(len(took))), 1)[0])
			}
			spent := cpu() - began
			want := make([]int, tc.nodes)
			for op := range took {
				want[tc.choose(op)]++
			}
			payload, _ := l.verify(before, func(node int) int { return want[node] }, 0)
			b.ReportMetric(float64(spent.Microseconds())/float64(len(took)), "cpu-us/op")
			b.ReportMetric(ms(quantile(took, 0.5)), "p50-ms")
			b.ReportMetric(ms(quantile(took, 0.99)), "p99-ms")
			b.ReportMetric(float64(payload)/float64(len(took)), "payload-B/node")
		})
	}
}
