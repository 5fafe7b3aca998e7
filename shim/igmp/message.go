package igmp

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Types of messages: RFC 1112, RFC 2236, RFC 3376.
const (
	Query    = 0x11
	ReportV1 = 0x12
	ReportV2 = 0x16
	Leave    = 0x17
	ReportV3 = 0x22
)

// Protocol is IGMP's number in IPv4.
const Protocol = 2

// AllHosts is where queries are sent.
var AllHosts = netip.AddrFrom4([4]byte{224, 0, 0, 1})

// Message is what a host says of groups.
type Message struct {
	Type    uint8
	Source  netip.Addr
	Length  uint16 // Of the IP packet.
	Records []Record
}

// Record is what it says of one group. One of neither kind changes nothing.
type Record struct {
	Group  netip.Addr
	Joins  bool // It is, or becomes, a member; of which sources counts for nothing.
	Leaves bool
}

// recordsMost is how many records of a report are read.
const recordsMost = 128

// Errors of messages that cannot be read.
var (
	errFrame    = errors.New("not a whole packet of IGMP over IPv4")
	errChecksum = errors.New("IGMP message with a wrong checksum")
	errType     = errors.New("IGMP message that is no report")
	errGroup    = errors.New("IGMP report for an address that is no group")
	errRecords  = errors.New("IGMP report with fewer records than it says, or with too many")
)

const (
	ethernetHeader = 14
	etherIPv4      = 0x0800
)

// Parse reads a report or a leave message in an Ethernet frame that is whole.
func Parse(frame []byte) (Message, error) {
	if len(frame) < ethernetHeader+20 || binary.BigEndian.Uint16(frame[12:]) != etherIPv4 {
		return Message{}, errFrame
	}
	b := frame[ethernetHeader:]
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
	const moreOrLater = 0x3fff
	if b[0]>>4 != 4 || header < 20 || total < header+8 || total > len(b) || b[9] != Protocol || binary.BigEndian.Uint16(b[6:])&moreOrLater != 0 {
		return Message{}, errFrame
	}
	m := Message{Source: netip.AddrFrom4([4]byte(b[12:])), Length: uint16(total)}
	b = b[header:total]
	if sum(b) != 0 {
		return m, errChecksum
	}
	m.Type = b[0]
	switch m.Type {
	case ReportV1, ReportV2, Leave:
		r := Record{Group: netip.AddrFrom4([4]byte(b[4:])), Joins: m.Type != Leave, Leaves: m.Type == Leave}
		if !r.Group.IsMulticast() {
			return m, errGroup
		}
		m.Records = []Record{r}
		return m, nil
	case ReportV3:
		var err error
		m.Records, err = records(int(binary.BigEndian.Uint16(b[6:])), b[8:])
		return m, err
	}
	return m, errType
}

// Types of records in reports of version 3.
const (
	isInclude = 1 + iota
	isExclude
	toInclude
	toExclude
	allowNew
	blockOld
)

// records reads the group records of a report of version 3.
func records(n int, b []byte) ([]Record, error) {
	if n > recordsMost {
		return nil, errRecords
	}
	var out []Record
	for range n {
		if len(b) < 8 {
			return nil, errRecords
		}
		sources := int(binary.BigEndian.Uint16(b[2:]))
		size := 8 + 4*sources + 4*int(b[1]) // Auxiliary data are counted in words.
		if len(b) < size {
			return nil, errRecords
		}
		r := Record{Group: netip.AddrFrom4([4]byte(b[4:]))}
		if !r.Group.IsMulticast() {
			return nil, errGroup
		}
		switch b[0] {
		case isExclude, toExclude:
			r.Joins = true
		case isInclude, toInclude: // Of no source is to be no member.
			r.Joins, r.Leaves = sources > 0, sources == 0
		case allowNew:
			r.Joins = sources > 0
		case blockOld:
		}
		out, b = append(out, r), b[size:]
	}
	return out, nil
}

// responseTime is how long hosts may wait before they answer a query, in tenths
// of a second.
const responseTime = 10

// QueryLength is that of the IP packet of a query, in bytes.
const QueryLength = 36

// AppendQuery adds the frame of a general query of version 3, which hosts of every
// version answer. It has no source, as one of a switch that is no router has none.
func AppendQuery(frame []byte, from [6]byte, interval uint8) []byte {
	frame = append(frame, 1, 0, 0x5e, 0, 0, 1)
	frame = append(frame, from[:]...)
	frame = binary.BigEndian.AppendUint16(frame, etherIPv4)
	all := AllHosts.As4()
	const precedence = 0xc0 // RFC 3376, section 4.
	ip := []byte{0x46, precedence, 0, QueryLength, 0, 0, 0, 0, 1, Protocol, 0, 0, 0, 0, 0, 0, all[0], all[1], all[2], all[3], 0x94, 4, 0, 0}
	binary.BigEndian.PutUint16(ip[10:], sum(ip))
	const robustness = 2
	msg := []byte{Query, responseTime, 0, 0, 0, 0, 0, 0, robustness, interval, 0, 0}
	binary.BigEndian.PutUint16(msg[2:], sum(msg))
	return append(append(frame, ip...), msg...)
}

// sum is the Internet checksum, which over what has a right one is zero.
func sum(b []byte) uint16 {
	var n uint32
	for ; len(b) > 1; b = b[2:] {
		n += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		n += uint32(b[0]) << 8
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}
