// Package fwtest gives tests a host of their own in a network namespace, with
// clients that reach it over a link and a backend behind it, to send real packets
// through its firewall. It needs root.
package fwtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// Addresses of the namespaces' ends. The host has several.
var (
	Host     = []string{"192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8:1::1", "2001:db8:2::1"}
	Client   = []string{"192.0.2.10", "2001:db8:1::10"}
	Stranger = []string{"192.0.2.20", "2001:db8:1::20"}
	Backend  = []string{"10.1.1.2", "fd00:1::2"}
)

// Network is a host, a client and a backend. The calling test is the host: its
// thread is in the host's namespace, and ends with the test.
type Network struct {
	t       *testing.T
	host    space
	clients space
	backend space
}

// New makes the network. Without the rights or nftables it skips the test, or fails it where
// WEIR_REQUIRE_DATAPLANE is 1.
func New(t *testing.T) *Network {
	t.Helper()
	missing := t.Skipf
	if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
		missing = t.Fatalf
	}
	if os.Geteuid() != 0 {
		missing("needs root")
	}
	if _, err := knftables.New(knftables.InetFamily, "weir"); err != nil {
		missing("needs nftables: %v", err)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		missing("needs a network namespace: %v", err)
	}
	own, err := thisSpace()
	must(t, err)
	t.Cleanup(func() { unix.Close(int(own)) })
	n := &Network{t: t, host: own, clients: newSpace(t), backend: newSpace(t)}
	for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		must(t, os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0o644))
	}
	n.link("clients", n.clients, Host[:2], Host[3:4], append(append([]string{}, Client...), Stranger...))
	n.link("backend", n.backend, []string{"10.1.1.1"}, []string{"fd00:1::1"}, Backend)
	must(t, configure("lo", Host[2], Host[4])) // As addresses of no link are.
	return n
}

// link connects a namespace with the host, which is its gateway.
func (n *Network) link(name string, s space, host4, host6, theirs []string) {
	must(n.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0"}))
	peer, err := netlink.LinkByName("eth0")
	must(n.t, err)
	must(n.t, netlink.LinkSetNsFd(peer, int(s)))
	must(n.t, configure(name, append(append([]string{}, host4...), host6...)...))
	must(n.t, s.do(func() error {
		err := errors.Join(up("lo"), configure("eth0", theirs...))
		for _, gw := range []string{host4[0], host6[0]} {
			err = errors.Join(err, netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}))
		}
		return err
	}))
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// configure gives a device addresses, IPv6 ones without asking whether they are free.
func configure(name string, addresses ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		addr, bits := netip.MustParseAddr(a), 24
		var flags int
		if addr.Is6() {
			bits, flags = 64, unix.IFA_F_NODAD
		}
		ipnet := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipnet, Flags: flags}); err != nil {
			return fmt.Errorf("%s on %s: %w", a, name, err)
		}
	}
	return netlink.LinkSetUp(l)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// space is a namespace, by its file.
type space int

func newSpace(t *testing.T) (s space) {
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // Never given back: the thread ends.
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s, err = thisSpace()
		}
		made <- err
	}()
	must(t, <-made)
	t.Cleanup(func() { unix.Close(int(s)) })
	return s
}

// thisSpace is that of the calling thread.
func thisSpace() (space, error) {
	s, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return space(s), err
}

// do calls fn in the namespace.
func (s space) do(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // As above.
		err := unix.Setns(int(s), unix.CLONE_NEWNET)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// ServeHost serves what is sent to a port of the host itself, by TCP and UDP, by
// sending it back.
func (n *Network) ServeHost(port uint16) {
	for _, address := range Host { // UDP answers from that to which it was sent.
		must(n.t, n.serve(address, port))
	}
}

// ServeBackend does so at the backend.
func (n *Network) ServeBackend(port uint16) {
	must(n.t, n.backend.do(func() error { return n.serve("::", port) }))
}

// ServeClients serves what is sent to a port of the clients' addresses.
func (n *Network) ServeClients(port uint16) {
	for _, address := range append(append([]string{}, Client...), Stranger...) {
		must(n.t, n.clients.do(func() error { return n.serve(address, port) }))
	}
}

func (n *Network) serve(address string, port uint16) error {
	address = net.JoinHostPort(address, fmt.Sprint(port))
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	n.t.Cleanup(func() { l.Close() })
	p, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	n.t.Cleanup(func() { p.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	go func() {
		for b := make([]byte, 1500); ; {
			k, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(b[:k], from)
		}
	}()
	return nil
}

// How long an answer may take: where none is expected, and where one is.
const (
	silence  = time.Second
	patience = 10 * time.Second
	resend   = time.Second // Of datagrams, which nobody else sends again.
)

// What became of a connection.
const (
	Open    = "open"
	Refused = "refused" // By RST, or an ICMP error that says so.
	Silence = "silence"
)

// Try connects from an address of the clients, by "tcp" or "udp", and says what
// became of it. Only where it is to be Silence is a second of that enough. It may
// be called from any goroutine.
func (n *Network) Try(network, from, to string, port uint16, expected string) string {
	return try(n.clients, network, from, to, port, expected)
}

// TryFromHost is Try from the host, from the address that its routes say.
func (n *Network) TryFromHost(network, to string, port uint16, expected string) string {
	return try(n.host, network, "", to, port, expected)
}

func try(s space, network, from, to string, port uint16, expected string) string {
	wait := patience
	if expected == Silence {
		wait = silence
	}
	c, err := s.dial(network, from, to, port, wait)
	if err == nil {
		defer c.Close()
		err = echo(c, wait)
	}
	return outcome(err)
}

// outcome is what became of a connection that ended with an error, or without.
func outcome(err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return Open
	case errors.As(err, &timeout) && timeout.Timeout():
		return Silence
	case errors.Is(err, syscall.EPERM): // As who sends is told that its own host dropped it.
		return Silence
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES):
		return Refused
	}
	return err.Error()
}

// Dial connects from an address of the clients.
func (n *Network) Dial(network, from, to string, port uint16) (net.Conn, error) {
	return n.clients.dial(network, from, to, port, patience)
}

// DialFromHost connects from the host.
func (n *Network) DialFromHost(network, to string, port uint16) (net.Conn, error) {
	return n.host.dial(network, "", to, port, patience)
}

func (s space) dial(network, from, to string, port uint16, wait time.Duration) (c net.Conn, err error) {
	err = s.do(func() (err error) {
		d := net.Dialer{Timeout: wait}
		if from == "" {
			c, err = d.Dial(network, net.JoinHostPort(to, fmt.Sprint(port)))
			return err
		}
		if d.LocalAddr = (&net.TCPAddr{IP: net.ParseIP(from)}); network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
		c, err = d.Dial(network, net.JoinHostPort(to, fmt.Sprint(port)))
		return err
	})
	return c, err
}

// Echo sends something over a connection and awaits that it comes back.
func Echo(c net.Conn) error { return echo(c, patience) }

func echo(c net.Conn, wait time.Duration) error {
	_, datagrams := c.(*net.UDPConn)
	end := time.Now().Add(wait)
	if _, err := c.Write([]byte("weir")); err != nil {
		return err
	}
	for {
		deadline := end
		if again := time.Now().Add(resend); datagrams && again.Before(end) {
			deadline = again
		}
		_ = c.SetReadDeadline(deadline)
		_, err := io.ReadFull(c, make([]byte, 4))
		if !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(end) {
			return err
		}
		if _, err := c.Write([]byte("weir")); err != nil {
			return err
		}
	}
}
