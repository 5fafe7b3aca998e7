package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

const (
	ethernetHeader                                        = 14
	etherIPv4, etherIPv6                                  = 0x0800, 0x86dd
	protoTCP, protoUDP                                    = 6, 17
	extHopByHop, extRouting, extFragment, extDestinations = 0, 43, 44, 60
	flagFin, flagSyn, flagRst                             = 1, 2, 4
)

var errFrame = errors.New("not a whole packet of TCP or UDP")

// segment is what a frame has of a conversation.
type segment struct {
	src, dst netip.AddrPort
	tcp      bool
	seq      uint32
	flags    uint8
	payload  []byte
}

// Ends are the two ends of what a frame is a part of; tcp is false for what is not
// of TCP, and what cannot be read.
func Ends(frame []byte) (from, to netip.AddrPort, tcp bool) {
	s, err := readFrame(frame)
	return s.src, s.dst, err == nil && s.tcp
}

// readFrame reads an Ethernet frame that is whole. Fragments are refused: nothing
// is put together here.
func readFrame(b []byte) (segment, error) {
	if len(b) < ethernetHeader {
		return segment{}, errFrame
	}
	etherType, b := binary.BigEndian.Uint16(b[12:]), b[ethernetHeader:]
	var src, dst netip.Addr
	var proto uint8
	switch {
	case etherType == etherIPv4 && len(b) >= 20 && b[0]>>4 == 4:
		header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
		if header < 20 || total < header || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return segment{}, errFrame
		}
		src, dst, proto, b = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9], b[header:total]
	case etherType == etherIPv6 && len(b) >= 40 && b[0]>>4 == 6:
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return segment{}, errFrame
		}
		src, dst, proto, b = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6], b[40:total]
		for proto == extHopByHop || proto == extRouting || proto == extDestinations {
			if len(b) < 8 || len(b) < 8+int(b[1])*8 {
				return segment{}, errFrame
			}
			proto, b = b[0], b[8+int(b[1])*8:]
		}
	default:
		return segment{}, errFrame
	}
	s := segment{tcp: proto == protoTCP}
	switch {
	case proto == protoUDP && len(b) >= 8:
		length := int(binary.BigEndian.Uint16(b[4:]))
		if length < 8 || length > len(b) {
			return segment{}, errFrame
		}
		s.payload = b[8:length]
	case s.tcp && len(b) >= 20:
		header := int(b[12]>>4) * 4
		if header < 20 || header > len(b) {
			return segment{}, errFrame
		}
		s.seq, s.flags, s.payload = binary.BigEndian.Uint32(b[4:]), b[13], b[header:]
	default:
		return segment{}, errFrame
	}
	s.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	s.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	return s, nil
}
