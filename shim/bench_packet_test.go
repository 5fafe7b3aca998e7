package shim

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// wire is a device of a node's namespace, to send and receive whole frames by.
type wire struct {
	fd       int
	received atomic.Int64
	seen     chan struct{} // One slot: received went up.
	done     sync.WaitGroup
}

// newWire opens a device. Of what comes by it, take is called for UDP packets
// with the destination port, or of any where that is zero, in one goroutine.
func (n *benchNode) newWire(device string, port uint16, take func(frame []byte)) *wire {
	n.t.Helper()
	w := &wire{fd: -1, seen: make(chan struct{}, 1)}
	must(n.t, ns.WithNetNSPath("/run/netns/"+n.in.NetNS, func(ns.NetNS) (err error) {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		for option, value := range map[[2]int]int{{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE}: 1 << 26, {unix.SOL_SOCKET, unix.SO_SNDBUFFORCE}: 1 << 22, {unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING}: 1} {
			if err := unix.SetsockoptInt(w.fd, option[0], option[1], value); err != nil {
				return err
			}
		}
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}))
	ctx, stop := context.WithCancel(context.Background())
	w.done.Go(func() {
		for buf := make([]byte, 2048); ctx.Err() == nil; {
			got, _, err := unix.Recvfrom(w.fd, buf, 0)
			if err != nil || got < 42 || buf[23] != unix.IPPROTO_UDP || port != 0 && binary.BigEndian.Uint16(buf[36:]) != port {
				continue
			}
			take(buf[:got])
			w.received.Add(1)
			select {
			case w.seen <- struct{}{}:
			default:
			}
		}
	})
	n.t.Cleanup(func() { stop(); w.done.Wait(); unix.Close(w.fd) })
	return w
}

func (w *wire) send(frame []byte) error {
	_, err := unix.Write(w.fd, frame)
	return err
}

// await waits until so many have been received, for ten seconds.
func (w *wire) await(want int64) error {
	for limit := time.After(10 * time.Second); w.received.Load() < want; {
		select {
		case <-w.seen:
		case <-limit:
			return fmt.Errorf("received %d packets of %d", w.received.Load(), want)
		}
	}
	return nil
}

// frame is an Ethernet frame with a UDP packet of eight bytes, which begin at
// byte 42.
func frame(src, dst [6]byte, from, to [4]byte, sport, dport uint16) []byte {
	b := append(dst[:], src[:]...)
	b = append(b, 0x08, 0x00, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(append(b, from[:]...), to[:]...)
	sumHeader(b)
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	return append(b, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) // No checksum, which UDP over IPv4 may do without.
}

// sumHeader puts the checksum into the IPv4 header of a frame.
func sumHeader(b []byte) {
	b[24], b[25] = 0, 0
	sum := uint32(0)
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[24:], ^uint16(sum))
}

// switchCPU is the CPU time of all threads of ovs-vswitchd: packets, upcalls,
// OpenFlow, and the revalidators that look after the flows of the datapath.
func (n *benchNode) switchCPU() (total time.Duration) {
	n.t.Helper()
	pid, err := os.ReadFile(filepath.Join(n.in.Dir, "ovs-vswitchd.pid"))
	must(n.t, err)
	files, err := filepath.Glob("/proc/" + strings.TrimSpace(string(pid)) + "/task/*/schedstat")
	must(n.t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(n.t, err)
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		must(n.t, err)
		total += time.Duration(ns)
	}
	return total
}

// upcalls is how many packets the datapath did not know what to do with.
func (n *benchNode) upcalls() (total int) {
	n.t.Helper()
	out, err := n.in.Appctl(context.Background(), "dpif-netdev/pmd-stats-show")
	must(n.t, err)
	for line := range strings.Lines(out) {
		if text, is := strings.CutPrefix(strings.TrimSpace(line), "miss with success upcall: "); is {
			count, err := strconv.Atoi(text)
			must(n.t, err)
			total += count
		}
	}
	return total
}

// forget empties the datapath's cache, and returns when it may be filled again:
// when its limit is what it was, after two passes over it.
func (n *benchNode) forget() {
	n.t.Helper()
	ctx := context.Background()
	must(n.t, n.sw.Settle(ctx, new(pipeline.Compiler).Touch()))
	for lifted, end := 0, time.Now().Add(10*time.Second); lifted < 2; {
		if time.Now().After(end) {
			n.t.Fatal("the cache is not open again")
		}
		_, err := n.in.Appctl(ctx, "revalidator/wait")
		must(n.t, err)
		out, err := n.in.Appctl(ctx, "upcall/show")
		must(n.t, err)
		if lifted++; !strings.Contains(out, "(limit 10000)") {
			lifted = 0
		}
	}
}

// firstSources is how many sources BenchmarkFirstPacket's packets have.
const firstSources = 10000

// BenchmarkFirstPacket is about the first packet of a connection to a Pod that
// so many rules guard. The packets come from 10,000 sources of other nodes, in
// turn; each rule lets in its share of them, to one port. So with rules every
// packet makes the switch look through the tables: its datapath knows nothing
// of the source. After each round the datapath forgets what it learnt. Without
// rules no table looks at sources, and first packets are none to the datapath.
//
// cpu-us/op is the CPU time of ovs-vswitchd a packet, of all its threads, from
// the first packet sent to the last received: with forwarding, conntrack and
// the revalidators' part.
func BenchmarkFirstPacket(b *testing.B) {
	for _, rules := range []int{0, 100, 1000, 10000} {
		b.Run(fmt.Sprint(rules), func(b *testing.B) { firstPacket(b, rules, false) })
		if rules > 0 {
			b.Run(fmt.Sprint(rules, "-priorities"), func(b *testing.B) { firstPacket(b, rules, true) })
		}
	}
}

func firstPacket(b *testing.B, rules int, priorities bool) {
	const port = 80
	n := newBenchNode(b, 1)
	if rules > 0 {
		objects := make([]api.Object, 0, firstSources+rules)
		for i := range rules {
			objects = append(objects, peers(fmt.Sprint("app-", i), i*firstSources/rules, firstSources/rules)...)
			if priorities {
				objects = append(objects, tiered(fmt.Sprint("policy-", i), float64(i+1), "pod-0", fmt.Sprint("app-", i), port))
			} else {
				objects = append(objects, lets(fmt.Sprint("policy-", i), "pod-0", fmt.Sprint("app-", i), port))
			}
		}
		if priorities {
			objects = append(objects, deny("isolation", "pod-0"))
		}
		n.bring(n.frames(objects...))
		if got := n.flowCount(); got < firstSources { // Each source has one, in either form.
			b.Fatalf("%d flows on the bridge, want %d and more", got, firstSources)
		}
	}
	local, err := n.sw.Local(context.Background())
	must(b, err)
	out := n.newWire(benchBridge, port, func([]byte) {})
	in := n.newWire("eth0", port, func([]byte) {})

	n.forget()
	var cpu, begun time.Duration
	known, sent, forgotten := n.upcalls(), 0, 0
	// round ends what was sent since the datapath knew nothing.
	round := func() {
		must(b, in.await(int64(sent)))
		cpu += n.switchCPU() - begun
		n.forget()
		forgotten++
		begun = n.switchCPU()
	}
	begun = n.switchCPU()
	for b.Loop() {
		if sent > 0 && sent%firstSources == 0 {
			b.StopTimer()
			round()
			b.StartTimer()
		}
		must(b, in.await(int64(sent-32))) // So many may be under way.
		must(b, out.send(frame([6]byte{2, 0xaa}, local.MAC, peerAddr(sent%firstSources).As4(), benchAddr(0).As4(), uint16(20000+forgotten%40000), port)))
		sent++
	}
	b.StopTimer()
	round()
	met := float64(n.upcalls()-known) / float64(sent)
	if rules > 0 && met < 1 {
		b.Errorf("%d first packets made the switch look through the tables %.2f times each", sent, met)
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/float64(sent), "cpu-us/op")
	b.ReportMetric(met, "upcalls/op")
}

// streamEvery is the pace of BenchmarkStall's stream.
const streamEvery = 500 * time.Microsecond

// BenchmarkStall is about other traffic while so many flows come in one bundle,
// or go: a stream between two Pods that no policy guards, 2,000 packets a
// second. max-gap-ms is the longest time between two arrivals, over all
// installs and removals, p50-gap-ms the median of the longest of each; lost must
// be none.
func BenchmarkStall(b *testing.B) {
	for _, flows := range []int{1000, 100000} {
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			const pods, port = 10, 7
			n := newBenchNode(b, pods+2)
			policies := n.thousands(flows, pods)
			s := n.newStream(pods, pods+1, port)
			must(b, s.in.await(1000))
			var gaps []time.Duration
			during := func(frames [][]byte) {
				s.gap.Store(0)
				b.StartTimer()
				n.bring(frames)
				b.StopTimer()
				gaps = append(gaps, time.Duration(s.gap.Load()))
			}
			for b.Loop() {
				b.StopTimer()
				base := n.flowCount()
				during(n.frames(policies...))
				if got := n.flowCount() - base; got < flows {
					b.Fatalf("%d flows came, want %d", got, flows)
				}
				during(n.without(policies...))
				if got := n.flowCount(); got != base {
					b.Fatalf("%d flows are left, want %d", got, base)
				}
				b.StartTimer()
			}
			b.StopTimer()
			sent := s.end()
			must(b, s.in.await(sent))
			b.ReportMetric(float64(sent-s.in.received.Load()), "lost")
			b.ReportMetric(ms(quantile(1, gaps)), "max-gap-ms")
			b.ReportMetric(ms(quantile(0.5, gaps)), "p50-gap-ms")
		})
	}
}

// BenchmarkStallByRepair is about the same traffic while a bridge that holds
// 100,000 flows is repaired: where somebody took them all out, or half of them, or
// changed half. A repair of the state's digest is a cut of what differs: see
// BenchmarkStall.
func BenchmarkStallByRepair(b *testing.B) {
	const pods, port, flows = 10, 7, 100_000
	n := newBenchNode(b, pods+2)
	policies := n.thousands(flows, pods)
	n.bring(n.frames(policies...))
	var all []openflow.Flow
	for _, c := range n.sw.take() {
		all = append(all, c.Upsert...)
	}
	all = slices.DeleteFunc(all, func(f openflow.Flow) bool { return f.Table != pipeline.TableIngressRule })
	if len(all) < flows {
		b.Fatalf("%d flows of rules, want %d", len(all), flows)
	}
	spoil := func(list []openflow.Flow, do func(*bridge.Change, openflow.Flow)) func() {
		return func() {
			var c bridge.Change
			for _, f := range list {
				do(&c, f)
			}
			must(b, n.sw.Bridge.Apply(context.Background(), c))
		}
	}
	remove := func(c *bridge.Change, f openflow.Flow) { c.Delete = append(c.Delete, f.Key()) }
	alter := func(c *bridge.Change, f openflow.Flow) { f.Actions = openflow.Drop(); c.Upsert = append(c.Upsert, f) }
	for _, way := range []struct {
		name  string
		spoil func()
	}{{"gone", spoil(all, remove)}, {"half-gone", spoil(all[:flows/2], remove)}, {"half-changed", spoil(all[:flows/2], alter)}} {
		b.Run(way.name, func(b *testing.B) {
			s := n.newStream(pods, pods+1, port)
			must(b, s.in.await(1000))
			var gaps []time.Duration
			for b.Loop() {
				b.StopTimer()
				way.spoil()
				s.gap.Store(0)
				done := make(chan error)
				b.StartTimer()
				n.shim.turns <- func(ctx context.Context) { n.shim.loop.stale = true; done <- n.shim.loop.reconcile(ctx) }
				must(b, <-done)
				b.StopTimer()
				gaps = append(gaps, time.Duration(s.gap.Load()))
				b.StartTimer()
			}
			b.StopTimer()
			sent := s.end()
			_ = s.in.await(sent) // What is lost is reported.
			if got := n.flowCount(); got < flows {
				b.Fatalf("%d flows after the repair, want %d", got, flows)
			}
			b.ReportMetric(float64(sent-s.in.received.Load()), "lost")
			b.ReportMetric(ms(quantile(1, gaps)), "max-gap-ms")
			b.ReportMetric(ms(quantile(0.5, gaps)), "p50-gap-ms")
		})
	}
}

// stream is packets from one Pod to another, at a pace.
type stream struct {
	in   *wire
	gap  atomic.Int64 // Nanoseconds: longest time between two arrivals since it was last zero.
	stop context.CancelFunc
	sent chan int64
}

func (n *benchNode) newStream(from, to int, port uint16) *stream {
	n.t.Helper()
	local, err := n.sw.Local(context.Background())
	must(n.t, err)
	ctx, stop := context.WithCancel(context.Background())
	n.t.Cleanup(stop)
	s := &stream{stop: stop, sent: make(chan int64, 1)}
	last := time.Now()
	s.in = n.newWire(fmt.Sprint("eth", to), port, func([]byte) {
		now := time.Now()
		s.gap.Store(max(s.gap.Load(), int64(now.Sub(last))))
		last = now
	})
	out := n.newWire(fmt.Sprint("eth", from), port, func([]byte) {})
	packet := frame(benchMAC(from), local.MAC, benchAddr(from).As4(), benchAddr(to).As4(), 7, port)
	go func() {
		sent := int64(0)
		defer func() { s.sent <- sent }()
		for tick := time.Tick(streamEvery); ctx.Err() == nil; sent++ {
			<-tick
			if err := out.send(packet); err != nil {
				n.t.Errorf("send: %v", err)
				return
			}
		}
	}()
	return s
}

// end stops the stream and says how many packets it had.
func (s *stream) end() int64 {
	s.stop()
	return <-s.sent
}
