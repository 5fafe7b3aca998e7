package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// icmpSocket sends and receives ICMP messages of a family from a host's address.
func icmpSocket(t *testing.T, h *harness.Host, v6 bool) net.PacketConn {
	t.Helper()
	network := "ip4:icmp"
	if v6 {
		network = "ip6:ipv6-icmp"
	}
	var conn net.PacketConn
	err := h.NS.Do(func() (err error) { conn, err = net.ListenPacket(network, h.Addr(v6).String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// icmpMessage is a message with its checksum, which of ICMPv6 the kernel makes.
func icmpMessage(typ, code byte, rest uint32, body []byte) []byte {
	b := append([]byte{typ, code, 0, 0}, binary.BigEndian.AppendUint32(nil, rest)...)
	b = append(b, body...)
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	return b
}

// quote is a packet from one address and port to another, as far as an ICMP
// error quotes it.
func quote(proto api.Protocol, from, to netip.AddrPort) []byte {
	transport := make([]byte, 20)
	binary.BigEndian.PutUint16(transport, from.Port())
	binary.BigEndian.PutUint16(transport[2:], to.Port())
	if proto == api.ProtocolUDP {
		transport[5] = 20
	}
	if from.Addr().Is4() {
		return slices.Concat([]byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 63, byte(proto), 0, 0}, from.Addr().AsSlice(), to.Addr().AsSlice(), transport)
	}
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, 20, byte(proto), 63}, from.Addr().AsSlice(), to.Addr().AsSlice(), transport)
}

// received are the marks of messages that arrive until so many did, in order.
func received(t *testing.T, conn net.PacketConn, number int) (marks []uint32) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 2048)
	for len(marks) < number {
		n, _, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("only %v arrived, want %d", marks, number)
		}
		if err != nil {
			t.Fatal(err)
		}
		if typ := buf[0]; n < 8 || typ != 3 && typ != 2 {
			continue
		}
		marks = append(marks, binary.BigEndian.Uint32(buf[4:]))
	}
	slices.Sort(marks)
	return marks
}

// ICMP errors about connections that were allowed reach a Pod that is isolated,
// "fragmentation needed" and "packet too big" among them; those about others do
// not, whoever sends them. Of SCTP, pairs of addresses are told apart, not ports.
func TestErrorsOfAllowedConnectionsPass(t *testing.T) {
	c := smallCluster(t)
	nginx := c.Pod("default/nginx")
	set(t, c, smallObjects(false), policy("shut", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}"))
	for _, f := range []struct {
		name, router, remote string
		typ, code            byte
	}{{"IPv4", "198.51.100.1", "10.9.2.1", 3, 4}, {"IPv6", "2001:db8:77::1", "fd09:2::1", 2, 0}} {
		t.Run(f.name, func(t *testing.T) {
			router, err := c.Outside(t.Context(), ip(f.router))
			if err != nil {
				t.Fatal(err)
			}
			v6 := ip(f.router).Is6()
			own, remote := nginx.Addr(v6), ip(f.remote)
			other := c.Pod("default/client").Addr(v6)
			for i, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP} {
				outcomes(t, []harness.Probe{{From: nginx, To: remote, Protocol: p, Port: 80, SourcePort: uint16(30001 + i)}}, harness.Allow)
			}
			out, in := icmpSocket(t, router, v6), icmpSocket(t, nginx, v6)
			mtu := uint32(1300)
			send := func(proto api.Protocol, sport uint16, to netip.Addr) uint32 {
				mtu++ // The message's mark.
				msg := icmpMessage(f.typ, f.code, mtu, quote(proto, netip.AddrPortFrom(own, sport), netip.AddrPortFrom(to, 80)))
				if _, err := out.WriteTo(msg, &net.IPAddr{IP: own.AsSlice()}); err != nil {
					t.Fatal(err)
				}
				return mtu
			}
			send(api.ProtocolTCP, 30009, remote)  // No connection has this port,
			send(api.ProtocolUDP, 30009, remote)  // nor this.
			send(api.ProtocolSCTP, 30003, other)  // Nothing was said to this address.
			send(api.ProtocolICMP, 30001, remote) // No echo was sent.
			want := []uint32{send(api.ProtocolTCP, 30001, remote), send(api.ProtocolUDP, 30002, remote), send(api.ProtocolSCTP, 30003, remote)}
			if got := received(t, in, 3); !slices.Equal(got, want) {
				t.Fatalf("errors %v arrive, want %v", got, want)
			}
			// The switch may change the order of what comes at once; this is behind all.
			last := send(api.ProtocolTCP, 30001, remote)
			if got := received(t, in, 1); got[0] != last {
				t.Errorf("error %d arrives, want %d", got[0], last)
			}
		})
	}
}

// Echo replies come back to an isolated Pod that may ask, and a Pod that may not
// be asked hears no request; neighbour discovery goes on under isolation both ways.
func TestEchoAndNeighboursUnderIsolation(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	client, nginx := c.Pod("default/client"), c.Pod("default/nginx")
	set(t, c, smallObjects(false), policy("shut", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}"))
	echo := func(from *harness.Host, to string) harness.Probe {
		return harness.Probe{From: from, To: ip(to), Protocol: api.ProtocolICMP}
	}
	outcomes(t, []harness.Probe{echo(nginx, "10.9.2.1"), echo(nginx, "fd09:2::1"), echo(client, "10.9.1.2"), echo(client, "fd09:1::2")},
		harness.Allow, harness.Allow, harness.Drop, harness.Drop)

	// Nobody has the other's address any more: the gateway and the Pod resolve
	// each other although rules let nothing in or out.
	set(t, c, smallObjects(false), policy("shut", "{podSelector: {matchLabels: {app: nginx}}, policyTypes: [Ingress, Egress]}"))
	for _, h := range []*harness.Host{nginx, c.Nodes["node-1"].Host()} {
		if err := h.NS.IP(t.Context(), "neigh flush all"); err != nil {
			t.Fatal(err)
		}
	}
	own := c.Nodes["node-1"].Host()
	outcomes(t, []harness.Probe{echo(own, "10.9.1.2"), echo(own, "fd09:1::2"), echo(nginx, "10.9.2.1"), echo(nginx, "fd09:2::1")},
		harness.Allow, harness.Allow, harness.Drop, harness.Drop)
}

// Rules for a type and code hold for messages of that type and code and for
// none besides, of either family.
func TestICMPByTypeAndCode(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	client, nginx := c.Pod("default/client"), c.Pod("default/nginx")
	id := uint32(700)
	answered := func(v6 bool, request, reply byte) bool {
		t.Helper()
		conn := icmpSocket(t, client, v6)
		defer conn.Close()
		id++ // Or it would belong to a connection that was allowed.
		msg := icmpMessage(request, 0, id<<16|1, make([]byte, 12))
		buf := make([]byte, 2048)
		for range 3 {
			if _, err := conn.WriteTo(msg, &net.IPAddr{IP: nginx.Addr(v6).AsSlice()}); err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			for {
				n, _, err := conn.ReadFrom(buf)
				if err != nil {
					break
				}
				if n >= 8 && buf[0] == reply && bytes.Equal(buf[4:8], msg[4:8]) {
					return true
				}
			}
		}
		return false
	}
	kinds := []struct {
		name           string
		v6             bool
		request, reply byte
	}{{"echo", false, 8, 0}, {"timestamp", false, 13, 14}, {"echo of IPv6", true, 128, 129}}
	for _, tc := range []struct {
		rule string
		want []bool
	}{
		{"{icmpType: 8}", []bool{false, true, true}},
		{"{icmpType: 8, icmpCode: 0}", []bool{false, true, true}},
		{"{icmpType: 8, icmpCode: 1}", []bool{true, true, true}},
		{"{icmpType: 13, icmpCode: 0}", []bool{true, false, true}},
		{"{icmpType: 128, icmpCode: 0}", []bool{true, true, false}},
		{"{}", []bool{false, false, false}},
	} {
		set(t, c, smallObjects(false), ordered("drop", "nginx", "ingress: [{action: Drop, protocols: [{icmp: "+tc.rule+"}]}]"))
		for i, k := range kinds {
			if got := answered(k.v6, k.request, k.reply); got != tc.want[i] {
				t.Errorf("with a drop of %s, %s is answered: %v", tc.rule, k.name, got)
			}
		}
	}
}
