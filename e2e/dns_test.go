package e2e

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/shim/pipeline"
)

var dnsFor = flag.Duration("dns.for", 3*time.Second, "how long TestDNSUnderLogging queries at each of its rates")

// letDNS lets everybody ask DNS of every Pod, and logs who does.
const letDNS = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: let-dns}
spec:
  tier: securityops
  priority: 5
  appliedTo: [{podSelector: {}}]
  ingress: [{name: dns, action: Allow, enableLogging: true, ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]
`

// A rule that logs what it allows costs no query, whatever the rate: what is
// over the log's is left out of the record and stated. 20,000 queries a second
// go to a Pod that nothing but the rule lets in, and each is answered, none
// repeated. The record and the losses that it states are what the rule's flows
// counted.
func TestDNSUnderLogging(t *testing.T) {
	policies := map[string]string{"own": letDNS}
	if dir := os.Getenv("WEIR_EXAMPLES_DIR"); dir != "" {
		text, err := os.ReadFile(filepath.Join(dir, "40-allow-core-dns-access.yaml"))
		must(t, err)
		policies = map[string]string{"reference": "---\n" + string(text)}
	}
	for name, text := range policies {
		t.Run(name, func(t *testing.T) { dnsUnderLogging(t, text) })
	}
}

func dnsUnderLogging(t *testing.T, logged string) {
	c := smallCluster(t)
	set(t, c, smallObjects(false), policy("shut", "{podSelector: {}, policyTypes: [Ingress]}"), logged)
	must(t, c.Nodes["node-1"].RoomySwitch())
	server := serveDNS(t, c.Pod("default/nginx"))
	for _, load := range []struct {
		name    string
		rate    int // Queries a second.
		sockets int // At a time, and so many new ones a second.
	}{
		{"a thousand source ports a second", 20000, 1000},
		{"a source port for each query", 20000, 20000},
	} {
		reached := false
		for try := 0; try < 3 && !reached; try++ { // On a busy machine it may be the test that is too slow.
			q := &querier{t: t, from: c.Pod("default/client"), server: server.addr, rate: load.rate, sockets: load.sockets}
			q.run(*dnsFor)
			rate := float64(q.sent.Load()) / q.took.Seconds()
			reached = rate > 0.95*float64(load.rate)
			t.Logf("%s: %d queries in %.2f s (%.0f/s) from %d ports: %d came to the server, %d answers, %d unanswered", load.name,
				q.sent.Load(), q.took.Seconds(), rate, q.ports, server.asked.Swap(0), q.answered.Load(), q.sent.Load()-q.answered.Load())
			if lost := q.sent.Load() - q.answered.Load(); lost != 0 {
				t.Errorf("%s: %d queries of %d were not answered", load.name, lost, q.sent.Load())
			}
		}
		if !reached {
			t.Errorf("%s: %d queries a second could not be sent", load.name, load.rate)
		}
	}
	filter := fmt.Sprintf("table=%d,cookie=%#x/%#x", pipeline.TableAntreaPolicyIngressRule,
		pipeline.CookieMark|pipeline.LayoutVersion<<48|uint64(pipeline.KindRule)<<40, uint64(0xffffff)<<40)
	eventually(t, func() error {
		kept, lost, err := tally(t, c)
		if err != nil {
			return err
		}
		out, err := c.Nodes["node-1"].OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, filter)
		if err != nil {
			return err
		}
		if matched := countPackets(out); kept+lost != matched || kept == 0 || lost == 0 {
			return fmt.Errorf("the record holds %d packets and states %d as lost; the rule's flows counted %d", kept, lost, matched)
		}
		return nil
	})
	kept, lost, err := tally(t, c)
	must(t, err)
	t.Logf("the record holds %d packets and states %d as lost", kept, lost)
}

// nameserver answers every query, and counts them.
type nameserver struct {
	addr  netip.AddrPort
	asked atomic.Int64
}

// roomy gives a socket buffers that hold some seconds of queries, so that it is
// not the test that loses any.
func roomy(conn *net.UDPConn, size int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size))
	})
	return errors.Join(err, failed)
}

func serveDNS(t *testing.T, h *harness.Host) *nameserver {
	t.Helper()
	s := &nameserver{addr: netip.AddrPortFrom(h.Addr(false), 53)}
	var conn *net.UDPConn
	must(t, h.NS.Do(func() (err error) {
		if conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(s.addr)); err != nil {
			return err
		}
		return roomy(conn, 64<<20)
	}))
	t.Cleanup(func() { conn.Close() })
	go func() {
		for buf := make([]byte, 512); ; {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			s.asked.Add(1)
			if n < 12 {
				continue
			}
			if _, err := conn.WriteToUDPAddrPort(answerDNS(buf[:n]), from); err != nil {
				t.Errorf("answer %s: %v", from, err)
				return
			}
		}
	}()
	return s
}

// queryDNS asks for the address of a name of the cluster.
func queryDNS(id uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0) // One question, recursion desired.
	for _, label := range []string{fmt.Sprintf("svc-%d", id), "default", "svc", "cluster", "local"} {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1) // A, of the internet.
}

// answerDNS is a query's answer: one address.
func answerDNS(query []byte) []byte {
	b := append([]byte{}, query...)
	b[2], b[7] = b[2]|0x80, 1
	return append(b, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 10)
}

// querier asks, at a rate, from so many sockets in turn, and opens as many anew
// each second.
type querier struct {
	t              *testing.T
	from           *harness.Host
	server         netip.AddrPort
	rate, sockets  int
	ports          int // Source ports used.
	sent, answered atomic.Int64
	took           time.Duration // Of sending.
	reading        sync.WaitGroup
}

// querying is a socket that asks so many queries.
type querying struct {
	conn       *net.UDPConn
	sent, asks int
}

// run asks for so long, and waits for the answers.
func (q *querier) run(duration time.Duration) {
	q.t.Helper()
	must(q.t, q.from.NS.Do(func() error {
		pace := time.NewTicker(2 * time.Millisecond)
		defer pace.Stop()
		turn := make([]*querying, q.sockets)
		start, deadline := time.Now(), time.Now().Add(duration+10*time.Second)
		for total, want := 0, int(float64(q.rate)*duration.Seconds()); total < want; <-pace.C {
			for due := min(want, int(float64(q.rate)*time.Since(start).Seconds())); total < due; total++ {
				i := total % q.sockets
				if turn[i] == nil {
					asks := q.rate / q.sockets
					if total == i { // The first of each end one after another.
						asks -= i * asks / q.sockets
					}
					var err error
					if turn[i], err = q.open(asks, deadline); err != nil {
						return err
					}
				}
				if _, err := turn[i].conn.Write(queryDNS(uint16(turn[i].sent))); err != nil {
					return fmt.Errorf("query %d: %w", total, err)
				}
				q.sent.Add(1)
				if turn[i].sent++; turn[i].sent == turn[i].asks {
					turn[i] = nil
				}
			}
		}
		q.took = time.Since(start)
		return nil
	}))
	q.reading.Wait()
}

// open makes a socket and takes its answers, each query's once, until all are
// there or the deadline is past.
func (q *querier) open(asks int, deadline time.Time) (*querying, error) {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(q.server))
	if err != nil {
		return nil, err
	}
	q.ports++
	s := &querying{conn: conn, asks: asks}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	q.reading.Go(func() {
		defer conn.Close()
		answered, buf := make([]bool, asks), make([]byte, 512)
		for left := asks; left > 0; {
			n, err := conn.Read(buf)
			if err != nil {
				return // The deadline.
			}
			if id := int(binary.BigEndian.Uint16(buf)); n > 12 && buf[2]&0x80 != 0 && id < asks && !answered[id] {
				answered[id] = true
				q.answered.Add(1)
				left--
			}
		}
	})
	return s, nil
}
