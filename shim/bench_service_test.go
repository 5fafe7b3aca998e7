package shim

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
)

const (
	vipPort, endpointPort = 80, 8080
	roundConnections      = 2000
)

// benchVIP is the ClusterIP of the i-th Service.
func benchVIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}) }

// benchEndpoint is the address of the k-th endpoint, on another node.
func benchEndpoint(k int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(220 + k>>16), byte(k >> 8), byte(k)})
}

// benchService is a Service of UDP with so many ports, from vipPort on, before
// the endpoints first to first+n-1.
func benchService(i, ports, first, n int) (*api.Service, *api.EndpointSlice) {
	svc := &api.Service{Namespace: "x", Name: fmt.Sprint("service-", i), Type: "ClusterIP", ClusterIPs: []netip.Addr{benchVIP(i)}}
	slice := &api.EndpointSlice{Namespace: "x", Name: svc.Name, Service: svc.Name}
	for p := range ports {
		name := fmt.Sprint("port-", p)
		svc.Ports = append(svc.Ports, api.ServicePort{Name: name, Protocol: api.ProtocolUDP, Port: uint16(vipPort + p)})
		slice.Ports = append(slice.Ports, api.ServicePort{Name: name, Protocol: api.ProtocolUDP, Port: uint16(endpointPort + p)})
	}
	for k := range n {
		slice.Endpoints = append(slice.Endpoints, api.SliceEndpoint{Addresses: []netip.Addr{benchEndpoint(first + k)}, Node: fmt.Sprint("node-", 2+k%50), Ready: true, Serving: true})
	}
	return svc, slice
}

// caller is a Pod that asks others, all of whom are beyond LOCAL and answer at once.
type caller struct {
	n     *benchNode
	local [6]byte
	pod   *wire

	mu   sync.Mutex         // Guards what follows, while answers come.
	used map[netip.Addr]int // How often an endpoint was asked.
	from map[netip.AddrPort]int
	err  error
	sent int
	next uint16 // Port of the next connection.
}

func (n *benchNode) newCaller() *caller {
	n.t.Helper()
	local, err := n.sw.Local(context.Background())
	must(n.t, err)
	c := &caller{n: n, local: local.MAC, used: map[netip.Addr]int{}, from: map[netip.AddrPort]int{}, next: 1024}
	var out *wire
	begun := make(chan struct{})
	out = n.newWire(benchBridge, endpointPort, func(f []byte) {
		<-begun
		var to [4]byte
		copy(to[:], f[30:])
		answer := frame([6]byte{2, 0xaa}, local.MAC, to, benchAddr(0).As4(), endpointPort, binary.BigEndian.Uint16(f[34:]))
		err := out.send(answer)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.used[netip.AddrFrom4(to)]++; err != nil {
			c.err = err
		}
	})
	close(begun)
	c.pod = n.newWire("eth0", 0, func(f []byte) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.from[netip.AddrPortFrom(netip.AddrFrom4([4]byte(f[26:30])), binary.BigEndian.Uint16(f[34:]))]++
	})
	return c
}

// ask makes so many connections to an address, each from a port of its own and
// answered, and says how long that took, and how often
// the datapath did not know what to do.
func (c *caller) ask(to netip.AddrPort, number int) (took, cpu time.Duration, met int) {
	t := c.n.t
	t.Helper()
	c.mu.Lock()
	clear(c.from)
	c.mu.Unlock()
	met = -c.n.upcalls()
	before, start := c.n.switchCPU(), time.Now()
	for range number {
		must(t, c.pod.await(int64(c.sent-32))) // So many may be under way.
		must(t, c.pod.send(frame(benchMAC(0), c.local, benchAddr(0).As4(), to.Addr().As4(), c.next, to.Port())))
		c.sent, c.next = c.sent+1, c.next+1
	}
	must(t, c.pod.await(int64(c.sent)))
	took, cpu = time.Since(start), c.n.switchCPU()-before
	met += c.n.upcalls()
	c.mu.Lock()
	defer c.mu.Unlock()
	must(t, c.err)
	if got := c.from[to]; got != number || len(c.from) != 1 {
		t.Fatalf("%d of %d connections to %s were answered by it, and others by %v", got, number, to, c.from)
	}
	return took, cpu, met
}

// forget has conntrack and the datapath forget all connections, so that ports can
// be used again.
func (c *caller) forget() {
	_, err := c.n.in.Appctl(context.Background(), "dpctl/flush-conntrack")
	must(c.n.t, err)
	must(c.n.t, c.n.sw.Settle(context.Background(), new(pipeline.Compiler).Touch()))
	c.next = 1024
}

// BenchmarkServiceConnections is about connections of a Pod to a Service before
// so many endpoints on other nodes, against connections to one of these itself:
// a packet of UDP and an answer each, 32 under way. One operation is a pair of
// rounds of 2,000 connections, in turns; 5,000-services has 5,000 others beside.
// conns/s and cpu-us/conn are medians of those through the Service, ratio and
// cpu-ratio of the pairs; cpu is that of all of ovs-vswitchd's threads.
func BenchmarkServiceConnections(b *testing.B) {
	for _, endpoints := range []int{1, 100, 300, 1000} {
		b.Run(fmt.Sprint(endpoints), func(b *testing.B) { serviceConnections(b, endpoints, 0) })
	}
	b.Run("100-5000-services", func(b *testing.B) { serviceConnections(b, 100, 5000) })
}

func serviceConnections(b *testing.B, endpoints, others int) {
	n := newBenchNode(b, 1)
	svc, slice := benchService(0, 1, 0, endpoints)
	n.bring(n.frames(append(manyServices(1, others), svc, slice)...))
	c := n.newCaller()
	through, direct := netip.AddrPortFrom(benchVIP(0), vipPort), netip.AddrPortFrom(benchEndpoint(0), endpointPort)
	var rates, ratios, cpus, cpuRatios, upcalls []float64
	pair := func() {
		var took, cpu [2]time.Duration
		var met [2]int
		for i := range 2 {
			which := (i + len(rates)) % 2
			took[which], cpu[which], met[which] = c.ask([]netip.AddrPort{direct, through}[which], roundConnections)
		}
		rates = append(rates, roundConnections/took[1].Seconds())
		ratios = append(ratios, took[0].Seconds()/took[1].Seconds())
		cpus = append(cpus, cpu[1].Seconds()*1e6/roundConnections)
		cpuRatios = append(cpuRatios, cpu[1].Seconds()/cpu[0].Seconds())
		upcalls = append(upcalls, float64(met[1])/roundConnections)
		if int(c.next)+2*roundConnections > 1<<16 {
			b.StopTimer()
			c.forget()
			b.StartTimer()
		}
	}
	pair() // What the datapath learns of all that is the same for each connection.
	rates, ratios, cpus, cpuRatios, upcalls = nil, nil, nil, nil, nil
	clear(c.used)
	for b.Loop() {
		pair()
	}
	for len(rates) < fewest {
		pair()
	}
	b.StopTimer()
	most := 0
	for k := range endpoints {
		times := c.used[benchEndpoint(k)]
		if k == 0 {
			times -= roundConnections * len(rates) // Those without the Service.
		}
		if times == 0 {
			b.Errorf("none of %d connections went to endpoint %d of %d", roundConnections*len(rates), k, endpoints)
		}
		most = max(most, times)
	}
	if len(c.used) != endpoints {
		b.Errorf("%d endpoints were used of %d", len(c.used), endpoints)
	}
	b.ReportMetric(quantile(0.5, rates), "conns/s")
	b.ReportMetric(quantile(0.5, ratios), "ratio")
	b.ReportMetric(quantile(0.5, cpus), "cpu-us/conn")
	b.ReportMetric(quantile(0.5, cpuRatios), "cpu-ratio")
	b.ReportMetric(quantile(0.5, upcalls), "upcalls/conn")
	b.ReportMetric(float64(most*endpoints)/float64(roundConnections*len(rates)), "most/mean")
}

const servicePorts, serviceEndpoints = 2, 4

// manyServices are Services of two ports before four endpoints.
func manyServices(from, number int) (objects []api.Object) {
	for i := from; i < from+number; i++ {
		svc, slice := benchService(i, servicePorts, 2000+serviceEndpoints*i, serviceEndpoints)
		objects = append(objects, svc, slice)
	}
	return objects
}

// resident is the memory that a process of the kernel's /proc has.
func resident(t testing.TB, proc string) (mib float64) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(proc, "status"))
	must(t, err)
	_, after, found := strings.Cut(string(text), "VmRSS:")
	if _, err := fmt.Sscan(after, &mib); !found || err != nil {
		t.Fatalf("%s says nothing of memory: %v", proc, err)
	}
	return mib / 1024
}

func (n *benchNode) switchProc() string {
	n.t.Helper()
	pid, err := os.ReadFile(filepath.Join(n.in.Dir, "ovs-vswitchd.pid"))
	must(n.t, err)
	return "/proc/" + strings.TrimSpace(string(pid))
}

// groups is how many groups the bridge has.
func (n *benchNode) groups() int {
	n.t.Helper()
	state, err := n.sw.Read(context.Background())
	must(n.t, err)
	return len(state.Groups)
}

// compile is how long a compiler of no state takes for all of it.
func (n *benchNode) compile() time.Duration {
	n.t.Helper()
	c := pipeline.New(n.shim.cfg.compiler(), pipeline.Assignment{})
	start := time.Now()
	_, err := c.Update(n.replica, pipeline.Whole(n.replica), nil)
	must(n.t, err)
	return time.Since(start)
}

// BenchmarkServiceInstall brings 5,000 Services of two ports and four endpoints
// to a node at once: from a cut's frames to where it would be acknowledged, and of
// that what compiling takes alone, by a compiler of no state. heap
// is what the shim needs for them, vswitchd what the switch does.
func BenchmarkServiceInstall(b *testing.B) {
	const services = 5000
	n := newBenchNode(b, 1)
	objects := manyServices(0, services)
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	base, shim, vswitchd := n.flowCount(), heap(), resident(b, n.switchProc())
	var took, compiled []time.Duration
	shimTook, vswitchdTook := 0.0, 0.0
	for b.Loop() {
		b.StopTimer()
		frames := n.frames(objects...)
		b.StartTimer()
		took = append(took, n.bring(frames))
		b.StopTimer()
		// A port has a flow to find it, one to the group, and one for each endpoint.
		if got, want := n.flowCount()-base, services*servicePorts*(2+serviceEndpoints); got != want {
			b.Fatalf("%d flows, want %d", got, want)
		}
		if got, want := n.groups(), services*servicePorts; got != want {
			b.Fatalf("%d groups, want %d", got, want)
		}
		if n.sw.take(); shimTook == 0 { // Later the switch has what it needs.
			shimTook, vswitchdTook = heap()-shim, resident(b, n.switchProc())-vswitchd
		}
		compiled = append(compiled, n.compile())
		n.bring(n.without(objects...))
		n.sw.take()
		if got := n.groups(); got != 0 || n.flowCount() != base {
			b.Fatalf("%d groups and %d flows are left", got, n.flowCount()-base)
		}
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(quantile(0.5, took).Seconds(), "p50-s")
	b.ReportMetric(ms(quantile(0.5, compiled)), "compile-ms")
	b.ReportMetric(shimTook, "heap-MiB")
	b.ReportMetric(vswitchdTook, "vswitchd-MiB")
	b.ReportMetric(float64(services*servicePorts*(2+serviceEndpoints)), "flows")
	b.ReportMetric(float64(services*servicePorts), "groups")
}

// BenchmarkEndpointChange is about an endpoint that comes to a Service, or goes,
// that has so many others, beside 5,000 Services: from a cut's frames to where it
// would be acknowledged.
func BenchmarkEndpointChange(b *testing.B) {
	for _, endpoints := range []int{4, 1000} {
		b.Run(fmt.Sprint(endpoints), func(b *testing.B) { endpointChange(b, endpoints) })
	}
}

func endpointChange(b *testing.B, endpoints int) {
	n := newBenchNode(b, 1)
	// One less, for no group has more than a thousand.
	svc, slice := benchService(0, 1, 0, endpoints-1)
	_, more := benchService(0, 1, 0, endpoints)
	n.bring(n.frames(append(manyServices(1, 5000), svc, slice)...))
	n.sw.take()
	had := n.flowCount()
	var took []time.Duration
	flows, groups := 0, 0
	for b.Loop() {
		b.StopTimer()
		now := more
		if len(took)%2 == 1 {
			now = slice
		}
		frames := n.frames(now)
		b.StartTimer()
		took = append(took, n.bring(frames))
		b.StopTimer()
		var c bridge.Change
		for _, one := range n.sw.take() {
			c.Upsert, c.Delete = append(c.Upsert, one.Upsert...), append(c.Delete, one.Delete...)
			c.PutGroups, c.DeleteGroups = append(c.PutGroups, one.PutGroups...), append(c.DeleteGroups, one.DeleteGroups...)
		}
		if len(c.Upsert)+len(c.Delete) != 1 || len(c.PutGroups) != 1 || len(c.DeleteGroups) != 0 {
			b.Fatalf("an endpoint touched %d flows and %d groups", len(c.Upsert)+len(c.Delete), len(c.PutGroups)+len(c.DeleteGroups))
		}
		flows, groups = flows+len(c.Upsert)+len(c.Delete), groups+len(c.PutGroups)
		b.StartTimer()
	}
	b.StopTimer()
	if got := n.flowCount() - had; got != len(took)%2 {
		b.Fatalf("%d flows more after %d changes", got, len(took))
	}
	b.ReportMetric(ms(quantile(0.5, took)), "p50-ms")
	b.ReportMetric(ms(quantile(0.99, took)), "p99-ms")
	b.ReportMetric(float64(flows)/float64(len(took)), "flows/op")
	b.ReportMetric(float64(groups)/float64(len(took)), "groups/op")
}
