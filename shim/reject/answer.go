package reject

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
)

// FrameBytes is how much of a frame an answer needs at the most.
const FrameBytes = ethernetHeader + quoteIPv6

// How much of a packet an ICMP message may quote: answers are of at most 576
// bytes in IPv4 and 1280 in IPv6.
const (
	quoteIPv4 = 576 - 20 - 8
	quoteIPv6 = 1280 - 40 - 8
)

// Why a packet is not answered.
var (
	errOther    = errors.New("of another protocol")
	errNotIP    = errors.New("not an IP packet")
	errShort    = errors.New("cut short, or its lengths contradict each other")
	errGroup    = errors.New("from or to a group")
	errSource   = errors.New("its source is nobody who could be answered")
	errFragment = errors.New("a later fragment")
	errReset    = errors.New("a TCP reset, or the abort of an SCTP association")
	errControl  = errors.New("an ICMP error, or of neighbour discovery")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	ethernetHeader                                        = 14
	etherIPv4, etherIPv6                                  = 0x0800, 0x86dd
	protoICMP, protoTCP, protoUDP, protoICMPv6            = 1, 6, 17, 58
	protoSCTP                                             = 132
	extHopByHop, extRouting, extFragment, extDestinations = 0, 43, 44, 60
	finFlag, synFlag, rstFlag, ackFlag                    = 1, 2, 4, 16
	hopLimit                                              = 64
)

// packet is a rejected packet, as far as an answer depends on it.
type packet struct {
	src, dst netip.Addr
	proto    uint8
	ip       []byte // From the IP header on, as far as it is there.
	at       int    // Of the header above IP, in ip.
	length   int    // From that header on, by what the IP header says.
}

// Answer is the frame that answers a rejected one, of which the end may be
// missing; an error says why there is none. Where asked is valid, the packet was
// sent to that address and port, and translated since.
func Answer(frame []byte, asked netip.AddrPort) ([]byte, error) {
	return answer(frame, asked, prohibited)
}

// Refuse is Answer to what nobody listens to: nothing forbids it.
func Refuse(frame []byte) ([]byte, error) {
	return answer(frame, netip.AddrPort{}, portUnreachable)
}

// Abort is the frame that ends the association of a rejected SCTP packet, beside
// the Answer to it: where another node translates, an ICMP message would quote
// what its client does not know.
func Abort(frame []byte) ([]byte, error) {
	p, err := rejected(frame)
	if err != nil {
		return nil, err
	}
	if p.proto != protoSCTP {
		return nil, errOther
	}
	body, err := p.abort()
	if err != nil {
		return nil, err
	}
	return p.reply(frame, protoSCTP, body), nil
}

// cause is the code of an ICMP message that says that a destination cannot be
// reached, of IPv4 (RFC 1812, 5.2.7.1) and IPv6 (RFC 4443, 3.1).
type cause [2]byte

var (
	prohibited      = cause{10, 1} // Administratively prohibited; of IPv4 the host.
	portUnreachable = cause{3, 4}
)

func answer(frame []byte, asked netip.AddrPort, why cause) ([]byte, error) {
	p, err := rejected(frame)
	if err != nil {
		return nil, err
	}
	if asked.IsValid() && asked.Addr().Is4() == p.dst.Is4() {
		p.untranslate(asked)
	}
	body, proto := []byte(nil), uint8(protoTCP)
	if p.proto != protoTCP {
		body, proto = p.unreachable(why)
	} else if body, err = p.reset(); err != nil {
		return nil, err
	}
	return p.reply(frame, proto, body), nil
}

// rejected reads a frame that may be answered.
func rejected(frame []byte) (packet, error) {
	if len(frame) < ethernetHeader {
		return packet{}, errShort
	}
	if (frame[0]|frame[6])&1 != 0 {
		return packet{}, errGroup
	}
	p, err := parse(binary.BigEndian.Uint16(frame[12:]), frame[ethernetHeader:])
	if err != nil {
		return packet{}, err
	}
	return p, p.answerable()
}

// reply is the frame back to the sender with a body.
func (p *packet) reply(frame []byte, proto uint8, body []byte) []byte {
	b := make([]byte, 0, ethernetHeader+40+len(body))
	b = append(append(append(b, frame[6:12]...), frame[:6]...), frame[12:14]...)
	return p.appendReply(b, proto, body)
}

func parse(etherType uint16, b []byte) (packet, error) {
	switch {
	case etherType == etherIPv4 && len(b) >= 20 && b[0]>>4 == 4:
		return parseIPv4(b)
	case etherType == etherIPv6 && len(b) >= 40 && b[0]>>4 == 6:
		return parseIPv6(b)
	}
	return packet{}, errNotIP
}

func parseIPv4(b []byte) (packet, error) {
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || len(b) < header {
		return packet{}, errShort
	}
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return packet{}, errFragment
	}
	return packet{src: netip.AddrFrom4([4]byte(b[12:])), dst: netip.AddrFrom4([4]byte(b[16:])), proto: b[9],
		ip: b[:min(len(b), total)], at: header, length: total - header}, nil
}

func parseIPv6(b []byte) (packet, error) {
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	p := packet{src: netip.AddrFrom16([16]byte(b[8:])), dst: netip.AddrFrom16([16]byte(b[24:])), proto: b[6], ip: b[:min(len(b), total)], at: 40}
	for {
		rest := p.ip[p.at:]
		size := 8
		switch p.proto {
		case extHopByHop, extRouting, extDestinations:
			if len(rest) >= 2 {
				size += int(rest[1]) * 8
			}
		case extFragment:
			if len(rest) >= 4 && binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
				return packet{}, errFragment
			}
		default:
			p.length = total - p.at
			return p, nil
		}
		if len(rest) < size {
			return packet{}, errShort // Behind it may be what gets no answer.
		}
		p.proto, p.at = rest[0], p.at+size
	}
}

var (
	broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	thisNet   = netip.PrefixFrom(netip.AddrFrom4([4]byte{}), 8)
)

// answerable says why a packet gets no answer, whatever it is above IP; nil
// where it may.
func (p *packet) answerable() error {
	for _, a := range []netip.Addr{p.src, p.dst} {
		if a.IsMulticast() || a == broadcast {
			return errGroup
		}
		if a.IsUnspecified() || a.IsLoopback() || thisNet.Contains(a) {
			return errSource
		}
	}
	rest := p.ip[p.at:]
	switch p.proto {
	case protoICMP, protoICMPv6:
		if len(rest) == 0 {
			return errShort
		}
		if !asks(p.proto, rest[0]) {
			return errControl
		}
	case protoSCTP:
		if chunk := p.chunk(); chunk == chunkAbort || chunk == chunkShutdownComplete {
			return errReset
		}
	}
	return nil
}

// asks says whether an ICMP message is one that may be answered by an error. One
// of an unknown type may be an error itself.
func asks(proto, typ uint8) bool {
	if proto == protoICMPv6 {
		return typ >= 128 && (typ < 133 || typ > 137)
	}
	switch typ {
	case 0, 8, 13, 14, 15, 16, 17, 18, 42, 43: // Echo, timestamp, information, mask, extended echo.
		return true
	}
	return false
}

// untranslate gives the packet the destination back that it was sent to.
func (p *packet) untranslate(asked netip.AddrPort) {
	p.ip = append([]byte(nil), p.ip...)
	before, now := p.dst.AsSlice(), asked.Addr().AsSlice()
	if p.dst.Is4() {
		copy(p.ip[16:], now)
		replace(p.ip[10:12], before, now)
	} else {
		copy(p.ip[24:], now)
	}
	p.dst = asked.Addr()
	rest := p.ip[p.at:]
	if p.proto != protoTCP && p.proto != protoUDP && p.proto != protoSCTP || len(rest) < 4 {
		return
	}
	before, now = append(before, rest[2], rest[3]), binary.BigEndian.AppendUint16(now, asked.Port())
	binary.BigEndian.PutUint16(rest[2:], asked.Port())
	switch { // SCTP's is over all of the packet, which is not here.
	case p.proto == protoTCP && len(rest) >= 18:
		replace(rest[16:18], before, now)
	case p.proto == protoUDP && len(rest) >= 8 && (rest[6] != 0 || rest[7] != 0):
		replace(rest[6:8], before, now)
	}
}

// replace brings a checksum up to date with other content, of an even length.
func replace(sum, before, now []byte) {
	s := uint32(^binary.BigEndian.Uint16(sum))
	for i := 0; i < len(now); i += 2 {
		s += uint32(^binary.BigEndian.Uint16(before[i:])) + uint32(binary.BigEndian.Uint16(now[i:]))
	}
	binary.BigEndian.PutUint16(sum, ^fold(s))
}

// reset is the RST that ends the sender's connection.
func (p *packet) reset() ([]byte, error) {
	rest := p.ip[p.at:]
	if len(rest) < 20 {
		return nil, errShort
	}
	header, flags := int(rest[12]>>4)*4, rest[13]
	switch {
	case header < 20 || p.length < header:
		return nil, errShort
	case flags&rstFlag != 0:
		return nil, errReset
	}
	b := make([]byte, 20)
	copy(b, rest[2:4])
	copy(b[2:], rest[:2])
	b[12] = 5 << 4
	if flags&ackFlag != 0 {
		copy(b[4:8], rest[8:12])
		b[13] = rstFlag
		return b, nil
	}
	end := binary.BigEndian.Uint32(rest[4:]) + uint32(p.length-header) + uint32(flags&synFlag)>>1 + uint32(flags&finFlag)
	binary.BigEndian.PutUint32(b[8:], end)
	b[13] = rstFlag | ackFlag
	return b, nil
}

// Chunks of SCTP (RFC 9260, 3.2).
const (
	sctpHeader                                         = 12
	chunkInit, chunkAbort, chunkShutdownComplete       = 1, 6, 14
	chunkNone                                    uint8 = 255 // None is there.
)

// chunk is the type of an SCTP packet's first chunk.
func (p *packet) chunk() uint8 {
	if rest := p.ip[p.at:]; len(rest) > sctpHeader {
		return rest[sctpHeader]
	}
	return chunkNone
}

// abort is the ABORT that ends the sender's association. It bears the tag by which
// the sender knows its own, if that is known, or else the packet's, which is said
// to be so (RFC 9260, 8.4).
func (p *packet) abort() ([]byte, error) {
	rest := p.ip[p.at:]
	if len(rest) < sctpHeader {
		return nil, errShort
	}
	b := append(append(make([]byte, 0, sctpHeader+4), rest[2:4]...), rest[:2]...)
	tag, reflected := rest[4:8], byte(1)
	if p.chunk() == chunkInit {
		if len(rest) < sctpHeader+8 {
			return nil, errShort
		}
		tag, reflected = rest[sctpHeader+4:sctpHeader+8], 0
	}
	return append(append(append(b, tag...), 0, 0, 0, 0), chunkAbort, reflected, 0, 4), nil
}

// unreachable is the ICMP message that quotes the packet.
func (p *packet) unreachable(why cause) (body []byte, proto uint8) {
	head, most, proto := []byte{3, why[0], 0, 0, 0, 0, 0, 0}, quoteIPv4, uint8(protoICMP)
	if p.dst.Is6() {
		head, most, proto = []byte{1, why[1], 0, 0, 0, 0, 0, 0}, quoteIPv6, protoICMPv6
	}
	return append(head, p.ip[:min(len(p.ip), most)]...), proto
}

// appendReply puts the IP header for the packet's sender before a body, and the
// checksums in.
func (p *packet) appendReply(b []byte, proto uint8, body []byte) []byte {
	src, dst := p.dst.AsSlice(), p.src.AsSlice()
	pseudo := sum(src) + sum(dst) + uint32(proto) + uint32(len(body))
	at := 2
	switch proto {
	case protoTCP:
		at = 16
	case protoICMP:
		pseudo = 0
	}
	if proto == protoSCTP {
		binary.LittleEndian.PutUint32(body[8:], crc32.Checksum(body, castagnoli))
	} else {
		binary.BigEndian.PutUint16(body[at:], ^fold(pseudo+sum(body)))
	}
	if p.dst.Is6() {
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
		b = append(b, proto, hopLimit)
		return append(append(append(b, src...), dst...), body...)
	}
	h := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, hopLimit, proto, 0, 0} // Never fragmented, so it needs no number.
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	h = append(append(h, src...), dst...)
	binary.BigEndian.PutUint16(h[10:], ^fold(sum(h)))
	return append(append(b, h...), body...)
}

// sum adds up 16-bit words.
func sum(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
