package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
)

// Ports of what Pods send each other. A datagram has a source port that its
// addresses never had before, and so is a connection of its own; or it is steady,
// from the one port, and answered, and so part of a connection that goes on.
const (
	earPort    = 9000
	steadyPort = 9001
	firstPort  = 10000
)

// addressPair is what Pods have one after the other, and how many source ports
// were used with it.
type addressPair struct {
	v4, v6 netip.Addr
	used   uint32
}

// startingPod is a Pod that sends from the moment it has an interface.
type startingPod struct {
	run    *startRun
	serial uint32
	name   string
	space  string
	app    string
	node   string
	old    bool // It was there before, and stays.
	addr   *addressPair
	host   *harness.Host
	call   harness.CNICall
	born   int // First set that has it. -1: none yet.
	begun  time.Duration
	opened atomic.Int64 // When ADD returned, in nanoseconds since the base; zero: not yet.
	closed time.Duration

	fd     int          // Of the packet socket in its namespace.
	ear    *net.UDPConn // The same.
	linked chan struct{}
	lived  chan struct{} // Closed after some rounds with an open port.
	stop   chan struct{}
	ended  chan struct{} // Closed when it sends no more.
	deaf   chan struct{} // Closed when it hears no more.

	transmitted atomic.Int64 // Length of sent.

	sent     []sentDatagram  // Its sender's, and the judge's afterwards.
	heard    []heardDatagram // Its ear's, and the judge's afterwards.
	overflow uint32          // Datagrams that found the ear's buffer full.
}

type sentDatagram struct {
	at         time.Duration
	to         *startingPod
	v6, steady bool
}

type heardDatagram struct {
	at          time.Duration
	from, index uint32
}

// Pace of the senders. Pods that begin send more, but while they wait no more
// than the switch's socket for their port holds if it does not run for a while.
const (
	beginPace = 2 * time.Millisecond
	waitPace  = 6 * time.Millisecond
	pace      = 12 * time.Millisecond
	beginTime = 40 * time.Millisecond // With a link, and again with an open port.
	lifeTime  = 60                    // Rounds, with an open port.
)

// prepare makes what a Pod sends and hears with, before its network is there.
func (p *startingPod) prepare() (err error) {
	p.linked, p.lived, p.stop, p.ended, p.deaf = make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	err = p.host.NS.Do(func() error {
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		if p.ear, err = net.ListenUDP("udp", &net.UDPAddr{Port: earPort}); err != nil {
			return err
		}
		// Answers have somewhere to go; nobody reads them.
		sink, err := net.ListenUDP("udp", &net.UDPAddr{Port: steadyPort})
		if err == nil {
			p.run.t.Cleanup(func() { sink.Close() })
		}
		return err
	})
	if err != nil {
		return err
	}
	raw, err := p.ear.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20))
	}), err)
}

// send sends rounds of datagrams until the Pod goes.
func (p *startingPod) send() {
	defer close(p.ended)
	defer unix.Close(p.fd)
	to := unix.SockaddrLinklayer{}
	rounds, linked := 0, time.Duration(0)
	for round := 0; ; round++ {
		select {
		case <-p.stop:
			return
		default:
		}
		if to.Ifindex == 0 {
			if to.Ifindex = p.link(); to.Ifindex == 0 {
				time.Sleep(beginPace / 4)
				continue
			}
			linked = p.run.now()
			close(p.linked)
		}
		for _, peer := range p.run.present() {
			if p.sendsTo(peer) {
				p.transmit(&to, sentDatagram{to: peer, v6: round%2 == 1, steady: round/2%4 == 3})
			}
		}
		wait, since, next := beginPace, linked, waitPace
		if opened := time.Duration(p.opened.Load()); opened > 0 {
			since, next = opened, pace
			if rounds++; rounds == lifeTime {
				close(p.lived)
			}
		}
		if p.run.now()-since > beginTime {
			wait = next
		}
		time.Sleep(wait)
	}
}

// link is the number of the Pod's interface; zero before there is one.
func (p *startingPod) link() int {
	req, err := unix.NewIfreq("eth0")
	if err != nil {
		return 0
	}
	if err := unix.IoctlIfreq(p.fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0
	}
	return int(req.Uint32())
}

// sendsTo says whom a Pod sends to: what begins and what is old to each other,
// and some of what begins among themselves.
func (p *startingPod) sendsTo(peer *startingPod) bool {
	return p.old != peer.old || !p.old && p != peer && (p.serial+peer.serial)%4 == 0
}

// transmit sends a datagram as the Pod's interface would. What the kernel does
// not take, since the interface is not up yet, was not sent.
func (p *startingPod) transmit(to *unix.SockaddrLinklayer, d sentDatagram) {
	source := uint16(steadyPort)
	if !d.steady {
		source = uint16(firstPort + p.addr.used%(65536-firstPort))
	}
	payload := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, p.serial), uint32(len(p.sent)))
	if d.steady {
		payload = append(payload, 1)
	}
	src, dst := p.addr.v4, d.to.addr.v4
	if d.v6 {
		src, dst = p.addr.v6, d.to.addr.v6
	}
	frame := datagram(p.mac(), p.run.macs[p.node], netip.AddrPortFrom(src, source), netip.AddrPortFrom(dst, earPort), payload)
	d.at = p.run.now()
	if unix.Sendto(p.fd, frame, 0, to) != nil {
		return
	}
	if !d.steady {
		p.addr.used++
	}
	p.sent = append(p.sent, d)
	p.transmitted.Store(int64(len(p.sent)))
}

// mac is what weir-cni gives a Pod.
func (p *startingPod) mac() net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x58}, p.addr.v4.AsSlice()...)
}

// listen notes what comes, until the ear is closed.
func (p *startingPod) listen() {
	defer close(p.deaf)
	buf, oob := make([]byte, 64), make([]byte, 64)
	for {
		n, control, _, from, err := p.ear.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		at := p.run.now()
		if messages, err := unix.ParseSocketControlMessage(oob[:control]); err == nil {
			for _, m := range messages {
				if m.Header.Type == unix.SO_RXQ_OVFL && len(m.Data) >= 4 {
					p.overflow = binary.NativeEndian.Uint32(m.Data)
				}
			}
		}
		if n < 8 {
			continue
		}
		if n > 8 {
			p.ear.WriteToUDPAddrPort(buf[:n], from) // Which makes an established connection of it.
		}
		p.heard = append(p.heard, heardDatagram{at, binary.BigEndian.Uint32(buf), binary.BigEndian.Uint32(buf[4:])})
	}
}

// datagram is an Ethernet frame with a UDP datagram.
func datagram(from, to net.HardwareAddr, src, dst netip.AddrPort, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	addresses := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo := append(bytes.Clone(addresses), 0, unix.IPPROTO_UDP, udp[4], udp[5])
	if sum := internetChecksum(append(pseudo, udp...)); sum != 0 {
		binary.BigEndian.PutUint16(udp[6:], sum)
	} else {
		binary.BigEndian.PutUint16(udp[6:], 0xffff)
	}
	frame := append(bytes.Clone(to), from...)
	if src.Addr().Is6() {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, udp[4], udp[5], unix.IPPROTO_UDP, 64)
		return append(append(frame, addresses...), udp...)
	}
	header := append([]byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}, addresses...)
	binary.BigEndian.PutUint16(header[10:], internetChecksum(header))
	return append(append(append(frame, 0x08, 0x00), header...), udp...)
}

func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
