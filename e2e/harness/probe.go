package harness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/services/policy/api"
)

// Probe is one connection to be tried.
type Probe struct {
	From       *Host
	To         netip.Addr
	Protocol   api.Protocol
	Port       uint16
	SourcePort uint16 // Zero: any.
	chosen     bool   // The source port is ours.
	// Answered says what is expected: an answer, be it a refusal, is waited for
	// longer than its absence.
	Answered bool
}

// Outcomes of probes.
const (
	Allow  = "allow"
	Drop   = "drop"
	Reject = "reject"
)

// An answer is given time enough for a slow machine; its absence is believed
// after a first transmission and one repeat.
const (
	answerTimeout  = 6 * time.Second
	silenceTimeout = 1300 * time.Millisecond
	repeatEvery    = 400 * time.Millisecond
	parallel       = 256
)

// serials gives every probe a source port or identifier that no other had
// lately, so that none is taken for the continuation of an earlier one.
var serials atomic.Uint32

// ephemeral is the source port of a probe that asks for none, of the range from
// which Linux chooses them (32768 to 60999): rules may name it.
func ephemeral(serial int) uint16 { return uint16(32768 + serial%28000) }

// Run tries all probes, many at a time, and returns their outcomes in order.
func Run(ctx context.Context, probes []Probe) ([]string, error) {
	out := make([]string, len(probes))
	errs := make([]error, len(probes))
	slots := make(chan struct{}, parallel)
	var wait sync.WaitGroup
	for i := range probes {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() == nil {
				out[i], errs[i] = probes[i].try(int(serials.Add(1)))
			}
		})
	}
	wait.Wait()
	return out, errors.Join(append(errs, ctx.Err())...)
}

func (p *Probe) try(serial int) (string, error) {
	src := p.From.Addr(p.To.Is6())
	if !src.IsValid() {
		return "", fmt.Errorf("probe to %s: the source has no address of that family", p.To)
	}
	if p.chosen = p.SourcePort == 0; p.chosen {
		p.SourcePort = ephemeral(serial)
	}
	limit := silenceTimeout
	if p.Answered {
		limit = answerTimeout
	}
	deadline := time.Now().Add(limit)
	switch p.Protocol {
	case api.ProtocolTCP:
		return p.stream(src, deadline)
	case api.ProtocolUDP:
		return p.datagram(src, deadline)
	case api.ProtocolSCTP:
		return p.sctp(src, deadline)
	case api.ProtocolICMP:
		return p.echo(src, deadline, serial)
	}
	return "", fmt.Errorf("probe of protocol %v", p.Protocol)
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// socket makes a connected, non-blocking socket in the source's namespace.
func (p *Probe) socket(kind, proto int, src netip.Addr, port uint16) (fd int, err error) {
	fd = -1
	local := p.SourcePort
	if kind == unix.SOCK_RAW {
		local = 0
	}
	err = p.From.NS.Do(func() error {
		if fd, err = unix.Socket(domain(p.To), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto); err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		err = unix.Bind(fd, sockaddr(src, local))
		for tries := 0; tries < 100 && p.chosen && local != 0 && errors.Is(err, unix.EADDRINUSE); tries++ {
			// The kernel has given it to somebody else.
			p.SourcePort = ephemeral(int(serials.Add(1)))
			local = p.SourcePort
			err = unix.Bind(fd, sockaddr(src, local))
		}
		if err != nil {
			return fmt.Errorf("bind to %s: %w", src, err)
		}
		err = unix.Connect(fd, sockaddr(p.To, port))
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		return nil
	})
	if err != nil && fd >= 0 {
		unix.Close(fd)
	}
	return fd, err
}

// wait waits for events on sockets and returns those that have some; none when
// the deadline passes.
func wait(events int16, deadline time.Time, sockets ...int) (ready []int) {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil
		}
		var fds []unix.PollFd
		for _, fd := range sockets {
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: events})
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil
		}
		if err != nil || n == 0 {
			continue
		}
		for i := range fds {
			if fds[i].Revents != 0 {
				ready = append(ready, sockets[i])
			}
		}
		return ready
	}
}

// refused says whether an error is how a rejection shows.
func refused(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) ||
		errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ECONNRESET)
}

func (p *Probe) stream(src netip.Addr, deadline time.Time) (string, error) {
	fd, err := p.socket(unix.SOCK_STREAM, 0, src, p.Port)
	if err != nil {
		if refused(err) {
			return Reject, nil
		}
		return "", err
	}
	defer unix.Close(fd)
	// A probe must not leave a connection behind that a later one could use.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if len(wait(unix.POLLOUT, deadline, fd)) == 0 {
		return Drop, nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return "", err
	}
	if code == 0 {
		return Allow, nil
	}
	if refused(unix.Errno(code)) {
		return Reject, nil
	}
	return Drop, nil
}

func (p *Probe) datagram(src netip.Addr, deadline time.Time) (string, error) {
	fd, err := p.socket(unix.SOCK_DGRAM, 0, src, p.Port)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return p.converse(func() error { _, err := unix.Write(fd, []byte("weir")); return err }, deadline,
		map[int]func([]byte) string{fd: func([]byte) string { return Allow }})
}

// converse sends a request, again and again, until what a socket reads from the
// destination means an outcome.
func (p *Probe) converse(request func() error, deadline time.Time, read map[int]func([]byte) string) (string, error) {
	buf := make([]byte, 2048)
	for time.Now().Before(deadline) {
		if err := request(); err != nil {
			if refused(err) {
				return Reject, nil
			}
			// A host that drops what it sends itself says so.
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EPERM) {
				return "", err
			}
		}
		again := time.Now().Add(repeatEvery)
		if again.After(deadline) {
			again = deadline
		}
		for ready := wait(unix.POLLIN, again, slices.Collect(maps.Keys(read))...); len(ready) > 0; {
			for _, fd := range ready {
				n, from, err := unix.Recvfrom(fd, buf, 0)
				switch {
				case err != nil && refused(err):
					return Reject, nil
				case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EPERM):
					return "", err
				case err != nil || address(from) != p.To:
				case read[fd](buf[:n]) != "":
					return read[fd](buf[:n]), nil
				}
			}
			ready = wait(unix.POLLIN, again, slices.Collect(maps.Keys(read))...)
		}
	}
	return Drop, nil
}

// address is that of a socket address; not valid where there is none.
func address(s unix.Sockaddr) netip.Addr {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(s.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(s.Addr)
	}
	return netip.Addr{}
}

// prohibited is the packet that an ICMP message says was refused by a policy:
// its protocol and what it has above IP. A raw socket gets the messages about
// packets of others too.
func prohibited(message []byte, to netip.Addr) (proto byte, quoted []byte) {
	if len(message) < 8 {
		return 0, nil
	}
	typ, code, quoted := message[0], message[1], message[8:]
	switch {
	case to.Is4() && typ == 3 && code == 10 && len(quoted) >= 20 && len(quoted) >= int(quoted[0]&0xf)*4:
		return quoted[9], quoted[int(quoted[0]&0xf)*4:]
	case to.Is6() && typ == 1 && code == 1 && len(quoted) >= 40:
		return quoted[6], quoted[40:]
	}
	return 0, nil
}

func (p *Probe) echo(src netip.Addr, deadline time.Time, serial int) (string, error) {
	proto, request, reply := unix.IPPROTO_ICMP, byte(8), byte(0)
	if p.To.Is6() {
		proto, request, reply = unix.IPPROTO_ICMPV6, 128, 129
	}
	fd, err := p.socket(unix.SOCK_RAW, proto, src, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	id := uint16(serial + 1)
	msg := []byte{request, 0, 0, 0, byte(id >> 8), byte(id), 0, 1, 'w', 'e', 'i', 'r'}
	if p.To.Is4() {
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	} // Of ICMPv6 the kernel makes the checksum.
	return p.converse(func() error { _, err := unix.Write(fd, msg); return err }, deadline, map[int]func([]byte) string{fd: func(b []byte) string {
		b = payload(b, p.To)
		ours := func(b []byte) bool { return len(b) >= 8 && binary.BigEndian.Uint16(b[4:]) == id }
		if ours(b) && b[0] == reply {
			return Allow
		}
		if of, quoted := prohibited(b, p.To); int(of) == proto && ours(quoted) && quoted[0] == request {
			return Reject
		}
		return ""
	}})
}

// payload is what a raw socket of a family received, without the IPv4 header.
func payload(b []byte, peer netip.Addr) []byte {
	if peer.Is4() && len(b) >= 20 {
		return b[min(len(b), int(b[0]&0xf)*4):]
	}
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Serve answers on the given ports, on all of the host's addresses. Those that
// it answered on before stay.
func (h *Host) Serve(services ...Service) error {
	sctp := make(map[uint16]bool)
	for _, s := range services {
		if s.Protocol == api.ProtocolSCTP {
			sctp[s.Port] = true
		}
	}
	for _, ip := range h.IPs {
		if len(sctp) > 0 {
			s, err := serveSCTP(h.NS, ip, sctp)
			if err != nil {
				return err
			}
			h.served = append(h.served, s)
		}
		for _, s := range services {
			c, err := h.serve(ip, s)
			if err != nil {
				return fmt.Errorf("serve %v/%d on %s: %w", s.Protocol, s.Port, ip, err)
			}
			if c != nil {
				h.served = append(h.served, c)
			}
		}
	}
	return nil
}

func (h *Host) serve(ip netip.Addr, s Service) (c closer, err error) {
	address := netip.AddrPortFrom(ip, s.Port).String()
	err = h.NS.Do(func() error {
		switch s.Protocol {
		case api.ProtocolTCP:
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			c = l
			go accept(l)
		case api.ProtocolUDP:
			l, err := net.ListenPacket("udp", address)
			if err != nil {
				return err
			}
			c = l
			go answer(l)
		}
		return nil
	})
	return c, err
}

// accept takes connections and answers what they say, until they end.
func accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

func answer(l net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			return
		}
		l.WriteTo(buf[:n], from)
	}
}

// Metrics is the text that the node's shim serves.
func (n *Node) Metrics() (text string, err error) { return n.Get("/metrics") }

// Get is the answer of the node's shim to a request, with its header.
func (n *Node) Get(path string) (string, error) {
	text, err := get(n.NS, "127.0.0.1:9752", path)
	if err != nil {
		return "", fmt.Errorf("node %s: %w", n.Name, err)
	}
	return text, nil
}

// get asks a process in a namespace by HTTP.
func get(ns *NetNS, address, path string) (string, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) { conn, err = net.DialTimeout("tcp", address, 2*time.Second); return err })
	if err != nil {
		return "", fmt.Errorf("get %s: %w", path, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
	b, err := io.ReadAll(conn)
	return string(b), err
}
