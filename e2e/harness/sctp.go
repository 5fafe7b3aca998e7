package harness

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// SCTP as far as a probe needs it (RFC 9260): an INIT is answered with an
// INIT ACK by who listens, and with an ABORT by who does not.
const (
	sctpInit, sctpInitAck, sctpAbort = 1, 2, 6
	sctpHeader                       = 12
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sctpPacket(src, dst uint16, tag uint32, chunk byte) []byte {
	b := make([]byte, sctpHeader, sctpHeader+20)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint32(b[4:], tag)
	switch chunk {
	case sctpAbort:
		b = append(b, sctpAbort, 0, 0, 4)
	default: // Initiate tag, receiver window, one stream each way, first TSN.
		b = append(b, chunk, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

func (p *Probe) sctp(src netip.Addr, deadline time.Time) (string, error) {
	fd, err := p.rawSCTP(src)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	control := unix.IPPROTO_ICMP
	if p.To.Is6() {
		control = unix.IPPROTO_ICMPV6
	}
	errs, err := p.socket(unix.SOCK_RAW, control, src, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(errs)
	port := p.SourcePort
	ports := func(b []byte, src, dst uint16) bool {
		return len(b) >= 8 && binary.BigEndian.Uint16(b) == src && binary.BigEndian.Uint16(b[2:]) == dst
	}
	request := sctpPacket(port, p.Port, 0, sctpInit)
	send := func() error { return unix.Sendto(fd, request, 0, sockaddr(p.To, 0)) }
	return p.converse(send, deadline, map[int]func([]byte) string{errs: func(b []byte) string {
		if of, quoted := prohibited(payload(b, p.To), p.To); of == unix.IPPROTO_SCTP && ports(quoted, port, p.Port) {
			return Reject
		}
		return ""
	}, fd: func(b []byte) string {
		b = payload(b, p.To)
		if len(b) <= sctpHeader || !ports(b, p.Port, port) {
			return ""
		}
		switch b[sctpHeader] {
		case sctpInitAck:
			return Allow
		case sctpAbort:
			return Reject
		}
		return ""
	}})
}

// rawSCTP is a socket for SCTP packets. It is not connected: an ICMP error would
// end all that are, whatever port it is about.
func (p *Probe) rawSCTP(src netip.Addr) (fd int, err error) {
	fd = -1
	err = p.From.NS.Do(func() error {
		if fd, err = unix.Socket(domain(p.To), unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		return unix.Bind(fd, sockaddr(src, 0))
	})
	if err != nil && fd >= 0 {
		unix.Close(fd)
	}
	return fd, err
}

// sctpServer answers INITs to an address.
type sctpServer struct{ file *os.File }

func (s *sctpServer) Close() error { return s.file.Close() }

func serveSCTP(ns *NetNS, ip netip.Addr, ports map[uint16]bool) (*sctpServer, error) {
	var s sctpServer
	err := ns.Do(func() error {
		fd, err := unix.Socket(domain(ip), unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		s.file = os.NewFile(uintptr(fd), "sctp")
		return unix.Bind(fd, sockaddr(ip, 0))
	})
	if err != nil {
		return nil, fmt.Errorf("serve SCTP on %s: %w", ip, err)
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			var n int
			var from unix.Sockaddr
			var rerr error
			err := raw.Read(func(fd uintptr) bool {
				n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
				return rerr != unix.EAGAIN
			})
			if err != nil {
				return
			}
			if rerr != nil {
				continue
			}
			b := payload(buf[:n], ip)
			if len(b) <= sctpHeader || b[sctpHeader] != sctpInit {
				continue
			}
			src, dst := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
			chunk := byte(sctpAbort)
			if ports[dst] {
				chunk = sctpInitAck
			}
			reply := sctpPacket(dst, src, 1, chunk)
			if a, v6 := from.(*unix.SockaddrInet6); v6 {
				a.Port = 0
			}
			raw.Write(func(fd uintptr) bool { unix.Sendto(int(fd), reply, 0, from); return true })
		}
	}()
	return &s, nil
}
