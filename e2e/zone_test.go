package e2e

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weirnet/weir/e2e/harness"
)

// zone is a DNS server's, by UDP and TCP.
type zone struct {
	mu      sync.Mutex // Guards what follows.
	addrs   map[string][]netip.Addr
	aliases map[string]string
	ttl     uint32 // Seconds.
	cut     bool   // Answers by UDP are truncated, so that they are asked for by TCP.
}

func newZone() *zone {
	return &zone{addrs: make(map[string][]netip.Addr), aliases: make(map[string]string), ttl: 60}
}

// set gives a name addresses, in the place of others.
func (z *zone) set(name string, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addrs[name] = nil
	for _, a := range addrs {
		z.addrs[name] = append(z.addrs[name], ip(a))
	}
}

// answer answers a query; nil for what is none.
func (z *zone) answer(query []byte, datagram bool) []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals, m.Truncated = true, true, nil, datagram && z.cut
	name := strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")
	add := func(owner string, body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(owner + "."), Class: dnsmessage.ClassINET, TTL: z.ttl}, Body: body})
	}
	for to := z.aliases[name]; to != "" && !m.Truncated; name, to = to, z.aliases[to] {
		add(name, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to + ".")})
	}
	for _, a := range z.addrs[name] {
		switch {
		case m.Truncated:
		case a.Is4() && q.Type == dnsmessage.TypeA:
			add(name, &dnsmessage.AResource{A: a.As4()})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			add(name, &dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	if z.addrs[name] == nil {
		m.RCode = dnsmessage.RCodeNameError
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// serve answers at port 53 of a host's addresses, until the test ends.
func (z *zone) serve(t *testing.T, h *harness.Host) {
	t.Helper()
	for _, addr := range h.IPs {
		at := netip.AddrPortFrom(addr, 53).String()
		var datagrams net.PacketConn
		var l net.Listener
		must(t, h.NS.Do(func() (err error) {
			if datagrams, err = net.ListenPacket("udp", at); err == nil {
				l, err = net.Listen("tcp", at)
			}
			return err
		}))
		t.Cleanup(func() { datagrams.Close(); l.Close() })
		go z.answerAll(datagrams)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer conn.Close(); z.converse(conn) }()
			}
		}()
	}
}

// answerAll answers datagrams until the socket is closed.
func (z *zone) answerAll(conn net.PacketConn) {
	for buf := make([]byte, 4096); ; {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if b := z.answer(buf[:n], true); b != nil {
			_, _ = conn.WriteTo(b, from)
		}
	}
}

// converse answers queries over a connection, each answer in two pieces.
func (z *zone) converse(conn net.Conn) {
	for {
		size := make([]byte, 2)
		if _, err := io.ReadFull(conn, size); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		b := z.answer(query, false)
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
		for _, part := range [][]byte{b[:len(b)/2], b[len(b)/2:]} {
			if _, err := conn.Write(part); err != nil {
				return
			}
		}
	}
}

// lookup asks a server for a name's addresses, as a program of a Pod does.
func lookup(ctx context.Context, from *harness.Host, server netip.AddrPort, name string) ([]netip.Addr, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		err = from.NS.Do(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network[:3], server.String())
			return err
		})
		return conn, err
	}}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return r.LookupNetIP(ctx, "ip", name+".")
}
