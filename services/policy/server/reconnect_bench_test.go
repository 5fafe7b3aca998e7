package server

import (
	"strconv"
	"testing"
)

// What it costs the server that all nodes come back at once, each holding what
// it must: with new connections, and with new streams on those that are there.
func BenchmarkReconnect(b *testing.B) {
	for _, nodes := range []int{1000} {
		b.Run(strconv.Itoa(nodes), func(b *testing.B) { comeBack(b, nodes, orderReconnect) })
	}
}

// BenchmarkResubscribe is BenchmarkReconnect without the TLS handshakes.
func BenchmarkResubscribe(b *testing.B) {
	for _, nodes := range []int{1000} {
		b.Run(strconv.Itoa(nodes), func(b *testing.B) { comeBack(b, nodes, orderResubscribe) })
	}
}

func comeBack(b *testing.B, nodes int, how string) {
	l := newLoaded(b, nodes)
	before := l.report()
	revision, _ := l.store.Revision()
	began, rounds := cpu(), 0
	for b.Loop() {
		l.acks.await(revision, nodes)
		l.fleet.do(order{Do: how})
		l.wait()
		rounds++
	}
	spent := cpu() - began
	payload, _ := l.verify(before, func(int) int { return 0 }, rounds)
	b.ReportMetric(spent.Seconds()/float64(rounds), "cpu-s/op")
	b.ReportMetric(float64(payload)/float64(nodes*rounds), "payload-B/node")
}
