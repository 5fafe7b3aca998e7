package shim

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/dns"
	"github.com/weirnet/weir/shim/pipeline"
)

// benchResolver is the DNS server that the bench's Pod asks.
var benchResolver = netip.MustParseAddrPort("192.0.2.53:53")

// namesBench is a Pod that may reach *.example and nothing else.
type namesBench struct {
	*benchNode
	pod, host *wire   // What the Pod, and the host, hear on the query's port.
	first     *wire   // What comes to the host for hosts.
	mac       [6]byte // Of the host.
	next      int     // Host.
}

const (
	benchQueryPort = 40000
	benchHostPort  = 8080
)

// hostAddr is the address of the i-th host.
func hostAddr(i int) [4]byte { return [4]byte{198, 18, byte(i >> 8), byte(i)} }

func newNamesBench(b *testing.B, known int) *namesBench {
	n := &namesBench{}
	n.benchNode = newBenchNode(b, 1, func(s *Shim) { s.loop.config.Resolvers = []netip.AddrPort{benchResolver} })
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.shim.names.run(ctx, n.sw.PacketIns(pipeline.NameController)) }()
	b.Cleanup(func() { stop(); <-done })
	policy := tiered("hosts", 1, "pod-0", "nobody", benchHostPort)
	policy.Ingress, policy.Egress = nil, []api.OrderedRule{
		{Name: "dns", Action: api.ActionAllow, Peers: []api.Peer{{IPBlock: &api.IPBlock{CIDR: netip.PrefixFrom(benchResolver.Addr(), 32)}}}},
		{Name: "hosts", Action: api.ActionAllow, Peers: []api.Peer{{FQDN: "*.example"}, {FQDN: "*.known0"}, {FQDN: "*.known1"}, {FQDN: "*.known2"}, {FQDN: "*.known3"}, {FQDN: "*.known4"},
			{FQDN: "*.known5"}, {FQDN: "*.known6"}, {FQDN: "*.known7"}, {FQDN: "*.known8"}, {FQDN: "*.known9"}}},
		{Name: "rest", Action: api.ActionDrop}}
	n.bring(n.frames(policy))
	turn := make(chan struct{})
	n.shim.turns <- func(ctx context.Context) {
		defer close(turn)
		var changes []dns.Change
		for i := range known {
			more, err := n.shim.loop.cache.Learn(time.Now(), dns.Heard{Name: fmt.Sprintf("h%d.known%d", i, i%10), Records: []dns.Record{{Addr: netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), TTL: time.Hour}}})
			must(b, err)
			changes = append(changes, more...)
		}
		n.shim.loop.bringNames(ctx, changes)
	}
	<-turn
	if got := len(n.shim.loop.cache.Entries()); got != known {
		b.Fatalf("%d hosts are known, want %d", got, known)
	}
	local, err := n.sw.Local(context.Background())
	must(b, err)
	n.mac = local.MAC
	n.pod, n.host = n.newWire("eth0", benchQueryPort, func([]byte) {}), n.newWire(benchBridge, 53, func([]byte) {})
	n.first = n.newWire(benchBridge, benchHostPort, func([]byte) {})
	return n
}

// payload puts a payload into a frame of UDP.
func payload(b, data []byte) []byte {
	b = append(b[:42:42], data...)
	binary.BigEndian.PutUint16(b[16:], uint16(28+len(data)))
	binary.BigEndian.PutUint16(b[38:], uint16(8+len(data)))
	sumHeader(b)
	return b
}

// question and reply are the frames about the i-th host.
func (n *namesBench) question(i int) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(i)}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(fmt.Sprintf("h%d.example.", i)), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	data, err := m.Pack()
	must(n.t, err)
	return payload(frame(benchMAC(0), n.mac, benchAddr(0).As4(), benchResolver.Addr().As4(), benchQueryPort, 53), data)
}

func (n *namesBench) reply(i int) []byte {
	name := dnsmessage.MustNewName(fmt.Sprintf("h%d.example.", i))
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(i), Response: true}, Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Answers: []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 5}, Body: &dnsmessage.AResource{A: hostAddr(i)}}}}
	data, err := m.Pack()
	must(n.t, err)
	return payload(frame(n.mac, n.mac, benchResolver.Addr().As4(), benchAddr(0).As4(), 53, benchQueryPort), data)
}

// BenchmarkDNSAnswer is about a Pod that asks for a host that its policy names, gets
// the answer and at once sends to the host, beside so many hosts that are known.
// answer-p50-ms and answer-p99-ms are from the answer's arrival at the node to its
// arrival at the Pod; p50-ms and p99-ms to the arrival of the Pod's first packet
// for the host, which must be the first that it sent. An answer that the Pod had
// before it was in force is late; none may be.
func BenchmarkDNSAnswer(b *testing.B) {
	for _, known := range []int{0, 9000} {
		b.Run(fmt.Sprint(known), func(b *testing.B) {
			n := newNamesBench(b, known)
			var answers, firsts []time.Duration
			for b.Loop() {
				i := n.next % 1000
				n.next++
				must(b, n.pod.send(n.question(i)))
				must(b, n.host.await(int64(n.next)))
				start := time.Now()
				must(b, n.host.send(n.reply(i)))
				must(b, n.pod.await(int64(n.next)))
				answers = append(answers, time.Since(start))
				must(b, n.pod.send(frame(benchMAC(0), n.mac, benchAddr(0).As4(), hostAddr(i), uint16(20000+n.next%40000), benchHostPort)))
				must(b, n.first.await(int64(n.next)))
				firsts = append(firsts, time.Since(start))
			}
			b.StopTimer()
			n.late(b)
			for name, list := range map[string][]time.Duration{"answer-": answers, "": firsts} {
				slices.Sort(list)
				b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"p50-ms")
				b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, name+"p99-ms")
			}
		})
	}
}

// late fails where an answer was not in force in time.
func (n *namesBench) late(b *testing.B) {
	for _, outcome := range []string{nameLate, nameUnheld, nameLost, nameRoomless} {
		if count := testutil.ToFloat64(n.shim.metrics.names.WithLabelValues(outcome)); count > 0 {
			b.Errorf("%.0f answers were %s", count, outcome)
		}
	}
}

// BenchmarkDNSAnswers is about a thousand answers a second, each for another host:
// op is an answer, cpu-us/op the CPU time of ovs-vswitchd. All arrive, in force.
func BenchmarkDNSAnswers(b *testing.B) {
	n := newNamesBench(b, 0)
	begun := n.switchCPU()
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for b.Loop() {
		<-pace.C
		must(b, n.pod.send(n.question(n.next%1000)))
		n.next++
		must(b, n.host.await(int64(n.next)))
		must(b, n.host.send(n.reply((n.next-1)%1000)))
	}
	must(b, n.pod.await(int64(n.next)))
	b.StopTimer()
	b.ReportMetric(float64((n.switchCPU()-begun).Microseconds())/float64(n.next), "cpu-us/op")
	n.late(b)
}
