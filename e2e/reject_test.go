package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/pipeline"
)

// ordered is a ClusterNetworkPolicy for the Pods of an app.
func ordered(name, app, rules string) string {
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec: {priority: 1, appliedTo: [{podSelector: {matchLabels: {app: %s}}}], %s}\n", name, app, rules)
}

const (
	rejectIn  = "ingress: [{name: refuse-in, action: Reject}]"
	rejectOut = "egress: [{name: refuse-out, action: Reject}]"
)

// rejections are the node's counts of rejected packets, by what became of the
// answer.
func rejections(t *testing.T, n *harness.Node) map[string]uint64 {
	t.Helper()
	text, err := n.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]uint64)
	for _, m := range regexp.MustCompile(`weir_shim_rejected_packets_total\{answer="([a-z-]+)"\} (\S+)`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		out[m[1]] = uint64(v)
	}
	return out
}

// counted waits until a node has so many more rejected packets than before, by
// what became of the answer, and no others.
func counted(t *testing.T, n *harness.Node, before, more map[string]uint64) {
	t.Helper()
	err := harness.Eventually(t.Context(), 10*time.Second, func() error {
		now := rejections(t, n)
		for _, outcome := range []string{"sent", "none", "over-rate", "lost"} {
			if got := now[outcome] - before[outcome]; got != more[outcome] {
				return fmt.Errorf("%d packets came out %q, want %d; all: %v, before %v", got, outcome, more[outcome], now, before)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// datagrams sends UDP packets of a size from one connected socket, whatever
// comes back.
func datagrams(t *testing.T, from *harness.Host, to string, number, size int) {
	t.Helper()
	var conn net.Conn
	err := from.NS.Do(func() (err error) { conn, err = net.Dial("udp", to); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range number {
		// An answer to the last ends a write, which then did not send.
		for tries := 0; ; tries++ {
			if _, err = conn.Write(make([]byte, size)); err == nil {
				break
			}
			if tries == 3 {
				t.Fatal(err)
			}
		}
	}
}

// Whatever is rejected, on its way out or in, its sender hears of it at once,
// wherever that is: a Pod of the node or of another, a node, or one outside.
func TestRejectIsHeardByEverySender(t *testing.T) {
	c := smallCluster(t)
	client, nginx, remote := c.Pod("default/client"), c.Pod("default/nginx"), c.Pod("default/remote")
	node2 := c.Nodes["node-2"].Host()
	outside := make(map[bool]*harness.Host)
	for _, a := range []string{"198.51.100.7", "2001:db8:77::7"} {
		h, err := c.Outside(t.Context(), ip(a))
		if err != nil {
			t.Fatal(err)
		}
		outside[ip(a).Is6()] = h
	}
	protocols := []api.Protocol{api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP, api.ProtocolICMP}
	try := func(t *testing.T, want string, pairs ...func(v6 bool) (from *harness.Host, to netip.Addr)) {
		t.Helper()
		var probes []harness.Probe
		var expected []string
		for _, v6 := range []bool{false, true} {
			for _, pair := range pairs {
				for _, p := range protocols {
					from, to := pair(v6)
					probes, expected = append(probes, harness.Probe{From: from, To: to, Protocol: p, Port: 80}), append(expected, want)
				}
			}
		}
		outcomes(t, probes, expected...)
	}
	pair := func(from, to *harness.Host) func(bool) (*harness.Host, netip.Addr) {
		return func(v6 bool) (*harness.Host, netip.Addr) { return from, to.Addr(v6) }
	}
	fromOutside := func(v6 bool) (*harness.Host, netip.Addr) { return outside[v6], nginx.Addr(v6) }
	toOutside := func(v6 bool) (*harness.Host, netip.Addr) { return client, outside[v6].Addr(v6) }

	set(t, c, smallObjects(false), ordered("in", "nginx", rejectIn))
	try(t, harness.Reject, pair(client, nginx), pair(remote, nginx), pair(node2, nginx), fromOutside)
	try(t, harness.Allow, pair(client, remote))

	set(t, c, smallObjects(false), ordered("out", "client", rejectOut))
	try(t, harness.Reject, pair(client, nginx), pair(client, remote), pair(client, node2), pair(client, c.Nodes["node-1"].Host()), toOutside)
	try(t, harness.Allow, pair(remote, nginx))

	// Isolation of the sender's Pod keeps no answer from it.
	shut := policy("shut", "{podSelector: {matchLabels: {app: remote}}, ingress: []}")
	set(t, c, smallObjects(false), ordered("in", "nginx", rejectIn), shut)
	try(t, harness.Reject, pair(remote, nginx))

	// A staged Reject does nothing, and in the baselines it is what is left.
	staged := strings.Replace(ordered("in", "nginx", rejectIn), "name: in}", "name: in, annotations: {weir.dev/enforcement: staged}}", 1)
	set(t, c, smallObjects(false), staged)
	try(t, harness.Allow, pair(remote, nginx))
	baseline := strings.Replace(ordered("in", "nginx", rejectIn), "priority: 1", "tier: baseline, priority: 1", 1)
	set(t, c, smallObjects(false), baseline)
	try(t, harness.Reject, pair(remote, nginx), pair(client, nginx))
}

// Two Pods that reject whatever comes from the other get one answer for each
// packet, and none for an answer; nor is there one for what must not have any.
func TestRejectAnswersOnceAndNotEverything(t *testing.T) {
	c := smallCluster(t)
	client, nginx, remote := c.Pod("default/client"), c.Pod("default/nginx"), c.Pod("default/remote")
	one, two := c.Nodes["node-1"], c.Nodes["node-2"]
	begin := func(parts ...string) (map[string]uint64, map[string]uint64) {
		t.Helper()
		set(t, c, append([]string{smallObjects(false)}, parts...)...)
		return rejections(t, one), rejections(t, two)
	}

	at1, at2 := begin(ordered("a", "client", rejectIn+", "+rejectOut), ordered("b", "nginx", rejectIn+", "+rejectOut), ordered("c", "remote", rejectIn+", "+rejectOut))
	datagrams(t, client, "10.9.1.2:80", 1, 4)
	datagrams(t, nginx, "[fd09:1::1]:80", 1, 4)
	datagrams(t, remote, "10.9.1.2:80", 1, 4)
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.2")}, harness.Reject)
	counted(t, one, at1, map[string]uint64{"sent": 3})
	counted(t, two, at2, map[string]uint64{"sent": 1})

	// On ingress alone, to a Pod here and one elsewhere: the answers come back to
	// Pods that reject too.
	at1, at2 = begin(ordered("a", "client", rejectIn), ordered("b", "nginx", rejectIn), ordered("c", "remote", rejectIn))
	datagrams(t, client, "10.9.1.2:81", 1, 4)
	datagrams(t, client, "10.9.2.1:81", 1, 4)
	datagrams(t, remote, "[fd09:1::2]:81", 1, 4)
	counted(t, one, at1, map[string]uint64{"sent": 2})
	counted(t, two, at2, map[string]uint64{"sent": 1})

	// Of three fragments one is answered; what is for many is not.
	at1, _ = begin(ordered("a", "client", rejectOut))
	datagrams(t, client, "10.9.1.2:80", 1, 4000)
	counted(t, one, at1, map[string]uint64{"sent": 1, "none": 2})
	datagrams(t, client, "[fd09:1::2]:80", 1, 4000)
	counted(t, one, at1, map[string]uint64{"sent": 2, "none": 4})
	multicast(t, client)
	counted(t, one, at1, map[string]uint64{"sent": 2, "none": 6})
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.2")}, harness.Reject)
	counted(t, one, at1, map[string]uint64{"sent": 3, "none": 6})
}

// multicast sends a packet to a group and one to everybody.
func multicast(t *testing.T, from *harness.Host) {
	t.Helper()
	for _, to := range []string{"224.0.0.251", "255.255.255.255"} {
		var conn net.PacketConn
		err := from.NS.Do(func() (err error) {
			conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(from.Addr(false), 0).String()) // Go lets it broadcast.
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.WriteTo([]byte("to all"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip(to), 5353))); err != nil {
			t.Fatal(err)
		}
	}
}

// A flood of log events and one of rejected packets leave each other's budget
// alone, and every rejected packet is counted.
func TestFloodsLeaveEachOtherAlone(t *testing.T) {
	c := smallCluster(t, "--log-rate", "100", "--reject-rate", "100")
	client, one := c.Pod("default/client"), c.Nodes["node-1"]
	set(t, c, smallObjects(false), ordered("drop", "nginx", "ingress: [{name: noted, action: Drop, enableLogging: true, ports: [{protocol: UDP, port: 9}]}, {name: refused, action: Reject, ports: [{protocol: UDP, port: 10}, {protocol: TCP, port: 10}]}]"))
	before := rejections(t, one)

	// Far more log events than there may be, while connections are refused.
	stop := flood(t, client, "10.9.1.2:9")
	const connections = 40
	for i := range connections {
		outcomes(t, []harness.Probe{{From: client, To: ip("10.9.1.2"), Protocol: api.ProtocolTCP, Port: 10, SourcePort: uint16(20000 + i)}}, harness.Reject)
	}
	stop()
	counted(t, one, before, map[string]uint64{"sent": connections})
	noted := logMeter(t, one)
	kept, lost := recorded(t, c, noted)
	if lost == 0 || kept+lost < 1000 {
		t.Fatalf("%d log events are kept and %d lost", kept, lost)
	}

	// Far more rejected packets than are answered, while log events come.
	set(t, c, smallObjects(false), ordered("drop", "nginx", "ingress: [{name: noted, action: Drop, enableLogging: true, ports: [{protocol: UDP, port: 11}]}, {name: refused, action: Reject, ports: [{protocol: UDP, port: 10}]}]"))
	if now := logMeter(t, one); now != noted { // It is the same rule, for another port.
		t.Fatalf("the rule's meter was %d and is %d", noted, now)
	}
	before = rejections(t, one)
	stop = flood(t, client, "10.9.1.2:10")
	err := harness.Eventually(t.Context(), 20*time.Second, func() error { // Fewer a second than there may be.
		datagrams(t, client, "10.9.1.2:11", 1, 4)
		if came := metered(t, one, noted) - kept - lost; came < 30 { // Some get lost before the bridge.
			return fmt.Errorf("only %d log events came", came)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stop()
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.2")}, harness.Allow) // Behind all of it.
	came := metered(t, one, noted)
	if now, nowLost := recorded(t, c, noted); nowLost != lost {
		t.Fatalf("%d of %d events are recorded, and %d lost", now-kept, came-kept-lost, nowLost-lost)
	}
	err = harness.Eventually(t.Context(), 10*time.Second, func() error {
		now, came := rejections(t, one), metered(t, one, 2)
		if all := now["sent"] + now["over-rate"] + now["none"] + now["lost"]; all != came || now["over-rate"] < 500 || now["sent"] <= before["sent"] {
			return fmt.Errorf("%v are %d of %d packets that came to the meter", now, all, came)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

var namedMeter = regexp.MustCompile(`controller\([^)]*\bid=2,[^)]*meter_id=([0-9]+)`)

// logMeter is the meter of the rule that logs on a node.
func logMeter(t *testing.T, n *harness.Node) (meter int) {
	t.Helper()
	out, err := n.OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, fmt.Sprintf("table=%d", pipeline.TableAntreaPolicyIngressRule))
	must(t, err)
	found := namedMeter.FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("no rule logs:\n%s", out)
	}
	meter, err = strconv.Atoi(found[1])
	must(t, err)
	return meter
}

// metered is how many packets came to a meter of a node.
func metered(t *testing.T, n *harness.Node, meter int) (packets uint64) {
	t.Helper()
	out, err := n.OVS.Ofctl(t.Context(), "meter-stats", harness.Bridge, fmt.Sprintf("meter=%d", meter))
	if err != nil {
		t.Fatal(err)
	}
	if _, count, ok := strings.Cut(out, "packet_in_count:"); !ok {
		t.Fatalf("no count of meter %d in %s", meter, out)
	} else if _, err := fmt.Sscan(count, &packets); err != nil {
		t.Fatal(err)
	}
	return packets
}

// recorded waits until the record of node-1 has all that came to a meter of its log,
// kept or stated as lost.
func recorded(t *testing.T, c *harness.Cluster, meter int) (kept, lost uint64) {
	t.Helper()
	err := harness.Eventually(t.Context(), 10*time.Second, func() (err error) {
		if kept, lost, err = tally(t, c); err != nil {
			return err
		}
		if came := metered(t, c.Nodes["node-1"], meter); kept+lost != came {
			return fmt.Errorf("%d kept and %d lost of %d log events", kept, lost, came)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return kept, lost
}

// flood sends UDP packets, from a socket that hears no answer, as fast as it can
// until it is stopped, and at least 5,000.
func flood(t *testing.T, from *harness.Host, to string) (stop func()) {
	t.Helper()
	var conn net.PacketConn
	err := from.NS.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", netip.AddrPortFrom(from.Addr(false), 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	done, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		for sent := 0; ; {
			select {
			case <-end:
				if sent >= 5000 {
					return
				}
			default:
			}
			if _, err := conn.WriteTo([]byte("flood"), addr); err == nil {
				sent++
			}
		}
	}()
	return func() { close(end); <-done }
}
