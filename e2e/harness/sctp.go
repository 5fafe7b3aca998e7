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
	fd, err := p.socket(unix.SOCK_RAW, unix.IPPROTO_SCTP, src, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	port := p.SourcePort
	return converse(fd, sctpPacket(port, p.Port, 0, sctpInit), deadline, func(b []byte) string {
		b = payload(b, p.To)
		if len(b) <= sctpHeader || binary.BigEndian.Uint16(b) != p.Port || binary.BigEndian.Uint16(b[2:]) != port {
			return ""
		}
		switch b[sctpHeader] {
		case sctpInitAck:
			return Allow
		case sctpAbort:
			return Reject
		}
		return ""
	})
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
