package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
)

// receiver is a socket of a Pod that has joined a group.
type receiver struct {
	net.PacketConn
	group netip.Addr
}

// join has a Pod join a group by its own stack, in a version of IGMP; zero is the
// stack's own choice.
func join(t *testing.T, h *harness.Host, group string, version int) *receiver {
	t.Helper()
	r := &receiver{group: ip(group)}
	err := h.NS.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/force_igmp_version", fmt.Append(nil, version), 0o644); err != nil {
			return err
		}
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		r.PacketConn, err = net.ListenMulticastUDP("udp4", link, &net.UDPAddr{IP: net.IP(r.group.AsSlice()), Port: 5000})
		return err
	})
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

// sender is a socket of a Pod that sends to groups.
func sender(t *testing.T, h *harness.Host) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	err := h.NS.Do(func() error {
		var err error
		if conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(h.Addr(false), 0).String()); err != nil {
			return err
		}
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var set error
		if err := raw.Control(func(fd uintptr) {
			set = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Index)})
		}); err != nil {
			return err
		}
		return set
	})
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// receives holds a receiver to getting what is sent to its group, or not. A datagram
// that is to arrive is sent again for some time.
func receives(t *testing.T, from net.PacketConn, r *receiver, want bool) {
	t.Helper()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.group, 5000))
	try := func(wait time.Duration) bool {
		text := fmt.Sprintf("%s %d", t.Name(), time.Now().UnixNano())
		if _, err := from.WriteTo([]byte(text), to); err != nil {
			t.Fatal(err)
		}
		must(t, r.SetReadDeadline(time.Now().Add(wait)))
		buf := make([]byte, 1500)
		for {
			n, _, err := r.ReadFrom(buf)
			if err != nil {
				return false
			}
			if string(buf[:n]) == text {
				return true
			}
		}
	}
	if !want {
		if try(500 * time.Millisecond) {
			t.Fatalf("what is sent to %s arrives", r.group)
		}
		return
	}
	eventually(t, func() error {
		if !try(200 * time.Millisecond) {
			return fmt.Errorf("what is sent to %s does not arrive", r.group)
		}
		return nil
	})
}

// silent waits until a receiver gets nothing any more.
func silent(t *testing.T, from net.PacketConn, r *receiver) {
	t.Helper()
	eventually(t, func() error {
		drained := make([]byte, 1500)
		must(t, r.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		for {
			if _, _, err := r.ReadFrom(drained); err != nil {
				break
			}
		}
		if _, err := from.WriteTo([]byte("anybody?"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.group, 5000))); err != nil {
			return err
		}
		must(t, r.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
		if _, _, err := r.ReadFrom(drained); err == nil {
			return fmt.Errorf("what is sent to %s still arrives", r.group)
		}
		return nil
	})
}

// multicastCluster is smallCluster with a Pod of the reference's label more on node 1.
func multicastCluster(t *testing.T) (c *harness.Cluster, objects string) {
	t.Helper()
	c = smallCluster(t)
	pods := append(smallPodConfigs(), harness.PodConfig{Namespace: "default", Name: "mcjoin6", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.6")}})
	must(t, c.SetPods(t.Context(), pods))
	return c, smallObjects(false) + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: mcjoin6, namespace: default, labels: {app: mcjoin6}}\nspec: {nodeName: node-1, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.9.1.6}]}\n"
}

// igmpMetric is a counter of a node's shim, by outcome.
func igmpMetric(t *testing.T, n *harness.Node, name, outcome string) (count int) {
	t.Helper()
	text, err := n.Metrics()
	must(t, err)
	for line := range strings.Lines(text) {
		if rest, is := strings.CutPrefix(line, fmt.Sprintf("%s{outcome=%q} ", name, outcome)); is {
			if _, err := fmt.Sscan(rest, &count); err != nil {
				t.Fatal(err)
			}
		}
	}
	return count
}

// groupsOf are the groups of a node's switch that are for members.
func groupsOf(ctx context.Context, n *harness.Node) (string, error) {
	text, err := n.OVS.Ofctl(ctx, "dump-groups", harness.Bridge)
	var out []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, "type=all") {
			out = append(out, line)
		}
	}
	return strings.Join(out, ""), err
}

// A group's packets go to the Pods of the node that joined it, by their own stacks,
// and to no others; with the last that leaves they go nowhere. They survive a restart
// of the shim, which asks who is there.
func TestMulticastBetweenPods(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c, objects := multicastCluster(t)
	set(t, c, objects)
	from := sender(t, c.Pod("default/client"))
	one := join(t, c.Pod("default/nginx"), "239.1.2.3", 0)
	receives(t, from, one, true)
	// It is in its own stack's table, but on another node, and did not join there.
	remote := join(t, c.Pod("default/remote"), "239.1.2.3", 0)
	receives(t, from, remote, false)
	two := join(t, c.Pod("default/mcjoin6"), "239.1.2.3", 2)
	other := join(t, c.Pod("default/mcjoin6"), "239.1.2.4", 0)
	receives(t, from, two, true)
	receives(t, from, one, true)
	receives(t, from, other, true)
	receives(t, sender(t, c.Pod("default/mcjoin6")), one, true)
	must(t, two.Close())
	must(t, other.Close())

	node := c.Nodes["node-1"]
	node.Shim.Terminate()
	if code, out := checkBridge(t, node); code != 0 {
		t.Errorf("without the shim, the bridge is not as the checkpoint says: %s", out)
	}
	receives(t, from, one, true) // Who is a member stays one.
	must(t, node.Shim.Start())
	must(t, c.Settled(t.Context()))
	receives(t, from, one, true)
	if code, out := checkBridge(t, node); code != 0 {
		t.Errorf("with another shim, the bridge is not as it ought to be: %s", out)
	}
	must(t, one.Close())
	eventually(t, func() error {
		if text, err := groupsOf(t.Context(), node); err != nil || text != "" {
			return fmt.Errorf("groups are left: %s, %v", text, err)
		}
		return nil
	})
}

// Ingress rules and isolation of who receives hold for each copy.
func TestMulticastIsJudgedForEachReceiver(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c, objects := multicastCluster(t)
	set(t, c, objects)
	from, others := sender(t, c.Pod("default/client")), sender(t, c.Pod("default/mcjoin6"))
	one, two := join(t, c.Pod("default/nginx"), "239.1.2.3", 0), join(t, c.Pod("default/mcjoin6"), "239.1.2.3", 0)
	receives(t, from, one, true)
	receives(t, from, two, true)
	set(t, c, objects, policy("only-mcjoin6", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: mcjoin6}}}]}]}"))
	silent(t, from, one)
	receives(t, from, two, true)
	receives(t, others, one, true)
}

// igmpDrop and multicastDrop are the reference's examples, igmpLogged one that is
// recorded.
const (
	igmpDrop = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: acnp-with-igmp-drop}
spec:
  priority: 5
  tier: securityops
  appliedTo: [{podSelector: {matchLabels: {app: mcjoin6}}}]
  ingress: [{action: Drop, name: dropIGMPQuery, protocols: [{igmp: {igmpType: 0x11, groupAddress: 224.0.0.1}}]}]
  egress: [{action: Drop, name: dropIGMPReport, protocols: [{igmp: {igmpType: 0x16, groupAddress: 225.1.2.3}}]}]
`
	igmpLogged = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: logged}
spec:
  priority: 6
  tier: securityops
  appliedTo: [{podSelector: {matchLabels: {app: nginx}}}]
  egress: [{action: Drop, name: noted, enableLogging: true, protocols: [{igmp: {groupAddress: 225.1.2.5}}]}]
`
	multicastDrop = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: acnp-with-multicast-traffic-drop}
spec:
  priority: 5
  tier: securityops
  appliedTo: [{podSelector: {matchLabels: {app: mcjoin6}}}]
  egress: [{action: Drop, name: dropMcastUDPTraffic, to: [{ipBlock: {cidr: 225.1.2.3/32}}]}]
`
)

// A report of a type that a rule drops makes no member, and takes one out; one of
// another type or group does. A Pod that may not be asked is not.
func TestIGMPRules(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c, objects := multicastCluster(t)
	node := c.Nodes["node-1"]
	set(t, c, objects)
	from := sender(t, c.Pod("default/client"))
	before := join(t, c.Pod("default/mcjoin6"), "225.1.2.3", 2)
	receives(t, from, before, true)
	queries := watchQueries(t, c.Pod("default/mcjoin6"))
	set(t, c, objects, reference(t, "09-acnp-with-igmp-drop.yaml", igmpDrop))
	silent(t, from, before)
	must(t, before.Close())

	denied := igmpMetric(t, node, "weir_shim_igmp_messages_total", "denied")
	v2 := join(t, c.Pod("default/mcjoin6"), "225.1.2.3", 2)
	eventually(t, func() error {
		if igmpMetric(t, node, "weir_shim_igmp_messages_total", "denied") == denied {
			return fmt.Errorf("no report was denied")
		}
		return nil
	})
	receives(t, from, v2, false)
	receives(t, from, join(t, c.Pod("default/mcjoin6"), "225.1.2.4", 2), true)
	receives(t, from, join(t, c.Pod("default/nginx"), "225.1.2.3", 2), true)
	must(t, v2.Close())
	receives(t, from, join(t, c.Pod("default/mcjoin6"), "225.1.2.3", 3), true)

	// A new shim asks at once whom it may ask.
	for len(queries) > 0 {
		<-queries
	}
	set(t, c, objects, reference(t, "09-acnp-with-igmp-drop.yaml", igmpDrop), igmpLogged)
	join(t, c.Pod("default/nginx"), "225.1.2.5", 2)
	eventually(t, func() error {
		for _, r := range records(t, c) {
			if p := r.Packet; p.Protocol == "IGMP" && p.SourceIP == "10.9.1.2" && p.DestinationIP == "225.1.2.5" && p.AppliedTo == "default/nginx" && p.Action == "drop" && p.Direction == "egress" && p.Reason == "rule" {
				return nil
			}
		}
		return fmt.Errorf("no record of a report that was denied")
	})
	there := watchQueries(t, c.Pod("default/nginx"))
	node.Shim.Kill()
	must(t, node.Shim.Start())
	must(t, c.Settled(t.Context()))
	select {
	case <-there:
	case <-time.After(10 * time.Second):
		t.Error("who may be asked is not")
	}
	eventually(t, func() error {
		if igmpMetric(t, node, "weir_shim_igmp_queries_total", "denied") == 0 {
			return fmt.Errorf("no query was denied")
		}
		return nil
	})
	if len(queries) > 0 {
		t.Error("who may not be asked is")
	}
}

// watchQueries are the queries of IGMP that come to a Pod.
func watchQueries(t *testing.T, h *harness.Host) <-chan []byte {
	t.Helper()
	w := openWire(t, h)
	fd := -1
	must(t, h.NS.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(0x0008)) // IPv4, in network order.
		return err
	}))
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: w.to.Ifindex}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}))
	out, stop, done := make(chan []byte, 64), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == nil && n >= 50 && buf[23] == 2 && buf[38] == 0x11 {
				select {
				case out <- slices.Clone(buf[:n]):
				default:
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done; unix.Close(fd) })
	return out
}

// What a Pod may not send to a group arrives nowhere, and what others send there does.
func TestMulticastEgressRules(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c, objects := multicastCluster(t)
	set(t, c, objects)
	shut, from := sender(t, c.Pod("default/mcjoin6")), sender(t, c.Pod("default/client"))
	one, other := join(t, c.Pod("default/nginx"), "225.1.2.3", 0), join(t, c.Pod("default/nginx"), "225.1.2.4", 0)
	receives(t, shut, one, true)
	set(t, c, objects, reference(t, "10-acnp-with-multicast-traffic-drop.yaml", multicastDrop))
	silent(t, shut, one)
	receives(t, shut, other, true)
	receives(t, from, one, true)
}

// What no stack says, and what another would have said, joins nothing.
func TestForgedIGMP(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c, objects := multicastCluster(t)
	set(t, c, objects)
	client, node := c.Pod("default/client"), c.Nodes["node-1"]
	w := openWire(t, client)
	report := func(src string, msg ...byte) []byte {
		b := append([]byte{1, 0, 0x5e, 0, 0, 0x16}, w.mac[:]...)
		from := ip(src).As4()
		header := append([]byte{0x45, 0, 0, byte(20 + len(msg)), 0, 0, 0, 0, 1, 2, 0, 0}, append(from[:], 224, 0, 0, 22)...)
		header[10], header[11] = internetSum(header)
		return append(append(append(b, 8, 0), header...), msg...)
	}
	summed := func(msg ...byte) []byte { msg[2], msg[3] = internetSum(msg); return msg }
	taken, unread := igmpMetric(t, node, "weir_shim_igmp_messages_total", "taken"), igmpMetric(t, node, "weir_shim_igmp_messages_total", "unread")
	w.send(t, report("10.9.1.2", summed(0x16, 0, 0, 0, 239, 5, 5, 5)...)) // In nginx's name.
	w.send(t, report("10.9.1.1", 0x16, 0, 9, 9, 239, 5, 5, 5))
	w.send(t, report("10.9.1.1", summed(0x22, 0, 0, 0, 0, 0, 0, 9, 4, 0, 0, 0, 239, 5, 5, 5)...))
	w.send(t, report("10.9.1.1", summed(0x11, 0, 0, 0, 0, 0, 0, 0)...))
	w.send(t, report("10.9.1.1", summed(0x16, 0, 0, 0, 224, 0, 0, 251)...)) // Taken, and no group that is forwarded.
	eventually(t, func() error {
		gotTaken, gotUnread := igmpMetric(t, node, "weir_shim_igmp_messages_total", "taken")-taken, igmpMetric(t, node, "weir_shim_igmp_messages_total", "unread")-unread
		if gotTaken < 1 || gotUnread < 3 {
			return fmt.Errorf("%d messages taken, %d unread", gotTaken, gotUnread)
		}
		return nil
	})
	if text, err := groupsOf(t.Context(), node); err != nil || text != "" {
		t.Errorf("groups %s, %v", text, err)
	}
	w.send(t, report("10.9.1.1", summed(0x16, 0, 0, 0, 239, 5, 5, 5)...))
	eventually(t, func() error {
		if text, err := groupsOf(t.Context(), node); err != nil || !strings.Contains(text, fmt.Sprint(0xef050505)) {
			return fmt.Errorf("groups %q, %v", text, err)
		}
		return nil
	})
	for range 500 {
		w.send(t, report("10.9.1.1", summed(0x16, 0, 0, 0, 239, 5, 5, 6)...))
	}
	eventually(t, func() error {
		if igmpMetric(t, node, "weir_shim_igmp_messages_total", "over-budget") == 0 {
			return fmt.Errorf("a flood is read to its end")
		}
		return nil
	})
}

// internetSum is the checksum of what has none yet.
func internetSum(b []byte) (hi, lo byte) {
	var n uint32
	for i := 0; i+1 < len(b); i += 2 {
		n += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return byte(^n >> 8), byte(^n)
}
