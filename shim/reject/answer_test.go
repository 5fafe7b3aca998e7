package reject

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// raw reads bytes that are written in hexadecimal, with spaces.
func raw(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	ether4  = "02000000000a 02000000000b 0800"
	ether6  = "02000000000a 02000000000b 86dd"
	back4   = "02000000000b 02000000000a 0800"
	back6   = "02000000000b 02000000000a 86dd"
	client6 = "fd000000000000000000000000000001"
	server6 = "fd000000000000000000000000000002"
)

// The expected bytes were worked out by hand: sequence numbers by RFC 9293,
// 3.10.7, checksums as sums of 16-bit words.
func TestAnswers(t *testing.T) {
	for _, tc := range []struct{ name, packet, answer string }{
		{
			// 10.0.0.1:40000 to 10.0.0.2:80, sequence 0x11223344, SYN, with an option of four bytes.
			"SYN", ether4 + "4500002c 00004000 40060000 0a000001 0a000002" + "9c400050 11223344 00000000 6002ffff 00000000 020405b4",
			back4 + "45000028 00004000 400626ce 0a000002 0a000001" + "00509c40 00000000 11223345 50140000 bad60000",
		},
		{
			"FIN without ACK, and two bytes", ether4 + "4500002a 00004000 40060000 0a000001 0a000002" + "9c400050 fffffffe 00000000 5001ffff 00000000 6869",
			back4 + "45000028 00004000 400626ce 0a000002 0a000001" + "00509c40 00000000 00000001 50140000 ff3c0000",
		},
		{
			// What it acknowledges is where the RST stands; its data count for nothing.
			"ACK with data", ether4 + "4500002d 00004000 40060000 0a000001 0a000002" + "9c400050 11223344 55667788 5018ffff 00000000 68656c6c6f",
			back4 + "45000028 00004000 400626ce 0a000002 0a000001" + "00509c40 55667788 00000000 50040000 325f0000",
		},
		{
			"SYN of IPv6", ether6 + "60000000 0014 06 40" + client6 + server6 + "9c400050 11223344 00000000 5002ffff 00000000",
			back6 + "60000000 0014 06 40" + server6 + client6 + "00509c40 00000000 11223345 50140000 d4d40000",
		},
		{
			"UDP", ether4 + "45000020 00000000 40110000 0a000001 0a000002" + "14e90035 000c0000 77656972" + "00000000", // Padded by Ethernet.
			back4 + "4500003c 00004000 400126bf 0a000002 0a000001" + "030a6dbf 00000000" +
				"45000020 00000000 40110000 0a000001 0a000002" + "14e90035 000c0000 77656972",
		},
		{
			"echo request of IPv6", ether6 + "60000000 000a 3a 40" + client6 + server6 + "80000000 00070001 7765",
			back6 + "60000000 003a 3a 40" + server6 + client6 + "0101 78c8 00000000" +
				"60000000 000a 3a 40" + client6 + server6 + "80000000 00070001 7765",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Answer(raw(t, tc.packet), netip.AddrPort{})
			if err != nil {
				t.Fatal(err)
			}
			if want := raw(t, tc.answer); !bytes.Equal(got, want) {
				t.Errorf("answer\n%x, want\n%x", got, want)
			}
			check(t, got)
		})
	}
}

// Checksums were worked out bit by bit.
func TestAborts(t *testing.T) {
	const from, to = "45000000 00000000 40840000 0a000001 0a000002", "45000024 00004000 40842654 0a000002 0a000001"
	const ports = "9c400050"
	for _, tc := range []struct{ name, body, abort string }{
		{"INIT: by the tag that it asks for", "00000000 00000000" + "01000014 a1b2c3d4 00010000 00010001 00000001", "00509c40 a1b2c3d4 7e6dc1ab 06000004"},
		{"DATA: by its own", "01020304 00000000" + "00030014 00000001 00000000 00000000 77656972", "00509c40 01020304 a03fc0b1 06010004"},
	} {
		frame := raw(t, ether4+from+ports+tc.body)
		binary.BigEndian.PutUint16(frame[16:], uint16(len(frame)-14))
		got, err := Abort(frame)
		if want := raw(t, back4+to+tc.abort); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: abort\n%x, want\n%x; %v", tc.name, got, want, err)
		}
	}
	for name, frame := range map[string][]byte{
		"an ABORT":              ipv4(t, protoSCTP, 0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 6, 0, 0, 4),
		"the end of a shutdown": ipv6(t, protoSCTP, 0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 14, 0, 0, 4),
		"half an INIT":          ipv4(t, protoSCTP, 0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 1, 2),
		"half a header":         ipv4(t, protoSCTP, 0x9c, 0x40, 0, 80, 0, 0, 0, 0),
		"TCP":                   ipv4(t, protoTCP, syn...),
	} {
		if b, err := Abort(frame); err == nil {
			t.Errorf("%s is answered by %x", name, b)
		}
	}
}

// check holds an answer's checksums to the rule that they make all words add up
// to ones, and its lengths to its size; it returns protocol and what is above IP.
func check(t testing.TB, frame []byte) (proto uint8, body []byte) {
	t.Helper()
	ip := frame[14:]
	total := func(parts ...[]byte) (s uint16) {
		var n uint64
		for _, p := range parts {
			if len(p)%2 == 1 {
				p = append(bytes.Clone(p), 0)
			}
			for i := 0; i < len(p); i += 2 {
				n += uint64(binary.BigEndian.Uint16(p[i:]))
			}
		}
		for n>>16 != 0 {
			n = n>>16 + n&0xffff
		}
		return uint16(n)
	}
	if binary.BigEndian.Uint16(frame[12:]) == 0x86dd {
		proto, body = ip[6], ip[40:]
		if int(binary.BigEndian.Uint16(ip[4:])) != len(body) || len(ip) > 1280 {
			t.Errorf("an IPv6 packet of %d bytes: %x", len(ip), ip)
		}
		if s := total(ip[8:40], []byte{0, proto, byte(len(body) >> 8), byte(len(body))}, body); s != 0xffff {
			t.Errorf("checksum of protocol %d adds up to %#x", proto, s)
		}
		return proto, body
	}
	proto, body = ip[9], ip[20:]
	if int(binary.BigEndian.Uint16(ip[2:])) != len(ip) || len(ip) > 576 {
		t.Errorf("an IPv4 packet of %d bytes: %x", len(ip), ip)
	}
	if s := total(ip[:20]); s != 0xffff {
		t.Errorf("header's checksum adds up to %#x", s)
	}
	pseudo := append(bytes.Clone(ip[12:20]), 0, proto, byte(len(body)>>8), byte(len(body)))
	if proto == 1 {
		pseudo = nil
	}
	if s := total(pseudo, body); s != 0xffff {
		t.Errorf("checksum of protocol %d adds up to %#x", proto, s)
	}
	return proto, body
}

// ipv4 and ipv6 are frames of a protocol between two that could be answered.
func ipv4(t testing.TB, proto byte, body ...byte) []byte {
	b := raw(t, ether4+"45000000 00000000 40000000 0a000001 0a000002")
	b[23] = proto
	binary.BigEndian.PutUint16(b[16:], uint16(20+len(body)))
	return append(b, body...)
}

func ipv6(t testing.TB, proto byte, body ...byte) []byte {
	b := raw(t, ether6+"60000000 0000 00 40"+client6+server6)
	b[20] = proto
	binary.BigEndian.PutUint16(b[18:], uint16(len(body)))
	return append(b, body...)
}

var syn = []byte{0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0}

func TestWhatGetsNoAnswer(t *testing.T) {
	with := func(frame []byte, at int, b ...byte) []byte { copy(frame[at:], b); return frame }
	echo := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	cases := map[string]struct {
		frame []byte
		why   error
	}{
		"nothing":                       {nil, errShort},
		"ARP":                           {append(raw(t, "02000000000a 02000000000b 0806"), make([]byte, 28)...), errNotIP},
		"IPv6 by the name of IPv4":      {with(ipv6(t, 17, make([]byte, 8)...), 12, 0x08, 0x00), errNotIP},
		"to a multicast MAC":            {with(ipv4(t, 6, syn...), 0, 1), errGroup},
		"to the broadcast MAC":          {with(ipv4(t, 6, syn...), 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), errGroup},
		"from a multicast MAC":          {with(ipv4(t, 6, syn...), 6, 3), errGroup},
		"to a multicast address":        {with(ipv4(t, 6, syn...), 30, 224), errGroup},
		"from a multicast address":      {with(ipv4(t, 6, syn...), 26, 224), errGroup},
		"to the broadcast address":      {with(ipv4(t, 6, syn...), 30, 255, 255, 255, 255), errGroup},
		"from the broadcast address":    {with(ipv4(t, 6, syn...), 26, 255, 255, 255, 255), errGroup},
		"from nobody":                   {with(ipv4(t, 6, syn...), 26, 0, 0, 0, 0), errSource},
		"from this net":                 {with(ipv4(t, 6, syn...), 26, 0, 0, 0, 7), errSource},
		"from loopback":                 {with(ipv4(t, 6, syn...), 26, 127, 0, 0, 5), errSource},
		"to loopback":                   {with(ipv4(t, 6, syn...), 30, 127, 0, 0, 5), errSource},
		"IPv6 from nobody":              {with(ipv6(t, 6, syn...), 22, make([]byte, 16)...), errSource},
		"IPv6 from loopback":            {with(ipv6(t, 6, syn...), 22, append(make([]byte, 15), 1)...), errSource},
		"IPv6 to a multicast address":   {with(ipv6(t, 6, syn...), 38, 0xff, 2), errGroup},
		"IPv6 from a multicast address": {with(ipv6(t, 6, syn...), 22, 0xff, 2), errGroup},
		"an RST":                        {with(ipv4(t, 6, syn...), 47, 4), errReset},
		"an RST with ACK":               {with(ipv6(t, 6, syn...), 67, 0x14), errReset},
		"half a TCP header":             {ipv4(t, 6, syn[:12]...), errShort},
		"a TCP header past the packet":  {with(ipv4(t, 6, syn...), 46, 15<<4), errShort},
		"a TCP header of 16 bytes":      {with(ipv4(t, 6, syn...), 46, 4<<4), errShort},
		"an IPv4 header past its end":   {with(ipv4(t, 6), 14, 0x4f), errShort},
		"a length within the header":    {with(ipv4(t, 6, syn...), 16, 0, 19), errShort},
		"a later fragment":              {with(ipv4(t, 6, syn...), 20, 0x00, 0x01), errFragment},
		"a later fragment of IPv6":      {ipv6(t, 44, append([]byte{6, 0, 0, 8, 0, 0, 0, 9}, syn...)...), errFragment},
		"unreachable":                   {ipv4(t, 1, 3, 10, 0, 0, 0, 0, 0, 0), errControl},
		"redirect":                      {ipv4(t, 1, 5, 0, 0, 0, 0, 0, 0, 0), errControl},
		"time exceeded":                 {ipv4(t, 1, 11, 0, 0, 0, 0, 0, 0, 0), errControl},
		"ICMP of an unknown type":       {ipv4(t, 1, 200, 0, 0, 0, 0, 0, 0, 0), errControl},
		"ICMP without a type":           {ipv4(t, 1), errShort},
		"packet too big":                {ipv6(t, 58, 2, 0, 0, 0, 0, 0, 0, 0), errControl},
		"unreachable of IPv6":           {ipv6(t, 58, 1, 1, 0, 0, 0, 0, 0, 0), errControl},
		"neighbour solicitation":        {ipv6(t, 58, 135, 0, 0, 0, 0, 0, 0, 0), errControl},
		"redirect of IPv6":              {ipv6(t, 58, 137, 0, 0, 0, 0, 0, 0, 0), errControl},
		"an error behind options":       {ipv6(t, 0, 58, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0), errControl},
		"options that are cut short":    {with(ipv6(t, 60, append([]byte{58, 9}, make([]byte, 6)...)...), 18, 0, 200), errShort},
		"a fragment that is cut short":  {with(ipv6(t, 44, 6, 0, 0), 18, 0, 200), errShort},
		"an error in IPv4 of ICMPv6":    {ipv4(t, 58, 1, 1, 0, 0, 0, 0, 0, 0), errControl},
		"IPv6 that is cut short":        {ipv6(t, 6, syn...)[:14+39], errNotIP},
	}
	for name, tc := range cases {
		if b, err := Answer(tc.frame, netip.AddrPort{}); !errors.Is(err, tc.why) || b != nil {
			t.Errorf("%s: answer %x, %v; want none, since it is %v", name, b, err, tc.why)
		}
	}
	for name, frame := range map[string][]byte{ // Beside what is refused.
		"an echo request": ipv4(t, 1, echo...), "an echo reply": ipv6(t, 58, 129, 0, 0, 0, 0, 1, 0, 1), "SCTP": ipv4(t, 132, make([]byte, 12)...),
		"a first fragment": with(ipv4(t, 6, syn...), 20, 0x20, 0), "a first fragment of IPv6": ipv6(t, 44, append([]byte{17, 0, 0, 1, 0, 0, 0, 9}, syn...)...),
		"a protocol that nobody knows": ipv6(t, 200), "IPv4 without a payload": ipv4(t, 17),
	} {
		if b, err := Answer(frame, netip.AddrPort{}); err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			check(t, b)
		}
	}
}

// As much is quoted as fits, and of a packet of which the end is missing what
// there is; the sequence number counts what the packet had, not what is there.
func TestQuotes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		frame  []byte
		quoted int
	}{
		{"IPv4, small", ipv4(t, 17, make([]byte, 30)...), 50},
		{"IPv4, large", ipv4(t, 17, make([]byte, 1400)...), 548},
		{"IPv4, cut", ipv4(t, 17, make([]byte, 1400)...)[:14+100], 100},
		{"IPv6, large", ipv6(t, 17, make([]byte, 1400)...), 1232},
		{"IPv6, as much as is asked for", ipv6(t, 17, make([]byte, 1400)...)[:FrameBytes], 1232},
	} {
		b, err := Answer(tc.frame, netip.AddrPort{})
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if _, body := check(t, b); len(body) != 8+tc.quoted || !bytes.Equal(body[8:], tc.frame[14:14+tc.quoted]) {
			t.Errorf("%s: %d bytes are quoted, want %d", tc.name, len(body)-8, tc.quoted)
		}
	}
	b, err := Answer(ipv4(t, 6, append(bytes.Clone(syn), make([]byte, 1000)...)...)[:14+60], netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	if _, body := check(t, b); binary.BigEndian.Uint32(body[8:]) != 0x01020304+1000+1 {
		t.Errorf("a SYN with 1000 bytes is acknowledged by %#x", body[8:12])
	}
}

// What nobody listens to is refused as by a host whose port nobody has.
func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name  string
		frame []byte
		want  [2]byte // Type and code.
	}{
		{"UDP", ipv4(t, 17, make([]byte, 30)...), [2]byte{3, 3}},
		{"UDP of IPv6", ipv6(t, 17, make([]byte, 30)...), [2]byte{1, 4}},
		{"SCTP", ipv4(t, 132, make([]byte, 30)...), [2]byte{3, 3}},
	} {
		b, err := Refuse(tc.frame)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if _, body := check(t, b); [2]byte(body) != tc.want {
			t.Errorf("%s: ICMP %v answers, want %v", tc.name, body[:2], tc.want)
		}
	}
	b, err := Refuse(ipv4(t, 6, syn...))
	if err != nil {
		t.Fatal(err)
	}
	if _, body := check(t, b); body[13] != rstFlag|ackFlag {
		t.Errorf("a SYN is answered with flags %#x", body[13])
	}
}

// A connection that was translated is answered as the sender knows it, and the
// quote is of what was sent, with right checksums.
func TestAnswersInTheNameThatWasAsked(t *testing.T) {
	asked4, asked6 := netip.MustParseAddrPort("10.96.0.1:443"), netip.MustParseAddrPort("[fd96::1]:443")
	b, err := Answer(ipv4(t, 6, syn...), asked4)
	if err != nil {
		t.Fatal(err)
	}
	if _, body := check(t, b); !bytes.Equal(b[26:30], asked4.Addr().AsSlice()) || binary.BigEndian.Uint16(body) != 443 {
		t.Errorf("the RST is from %v:%d", b[26:30], binary.BigEndian.Uint16(body))
	}
	// UDP as it arrives, with the checksum that it has by then.
	frame := ipv6(t, 17, 0x14, 0xe9, 0, 53, 0, 12, 0, 0, 'w', 'e', 'i', 'r')
	datagram := frame[54:]
	binary.BigEndian.PutUint16(datagram[6:], ^fold(sum(frame[22:54])+17+12+sum(datagram)))
	before := bytes.Clone(frame)
	if b, err = Answer(frame, asked6); err != nil {
		t.Fatal(err)
	}
	_, body := check(t, b)
	quote := body[8:]
	if !bytes.Equal(b[22:38], asked6.Addr().AsSlice()) || !bytes.Equal(quote[24:40], asked6.Addr().AsSlice()) || binary.BigEndian.Uint16(quote[42:]) != 443 {
		t.Errorf("from %x, quoting %x", b[22:38], quote)
	}
	if s := fold(sum(quote[8:40]) + 17 + 12 + sum(quote[40:])); s != 0xffff {
		t.Errorf("the quoted datagram's checksum adds up to %#x", s)
	}
	if !bytes.Equal(frame, before) {
		t.Error("the packet itself was changed")
	}
	if b, err = Answer(ipv4(t, 17, make([]byte, 8)...), asked4); err != nil { // Without a checksum, it stays without.
		t.Fatal(err)
	}
	if _, body := check(t, b); body[8+20+6] != 0 || body[8+20+7] != 0 || binary.BigEndian.Uint16(body[8+20+2:]) != 443 {
		t.Errorf("the quoted datagram is %x", body[28:])
	}
}

// No input makes it fail but by an error; what it answers is well formed, and
// never answered itself.
func FuzzAnswer(f *testing.F) {
	for _, s := range [][]byte{ipv4(f, 6, syn...), ipv6(f, 6, syn...), ipv4(f, 17, make([]byte, 700)...), ipv6(f, 17, make([]byte, 1300)...),
		ipv4(f, 1, 8, 0, 0, 0, 0, 1, 0, 1), ipv6(f, 0, 58, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0), ipv6(f, 44, 17, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4),
		ipv4(f, protoSCTP, 0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)} {
		f.Add(s, uint16(0))
		f.Add(s, uint16(80))
	}
	f.Fuzz(func(t *testing.T, frame []byte, port uint16) {
		var asked netip.AddrPort
		if port != 0 {
			asked = netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), port)
			if len(frame) > 12 && frame[12] == 0x86 {
				asked = netip.AddrPortFrom(netip.MustParseAddr("fd96::1"), port)
			}
		}
		if b, err := Abort(frame); err == nil {
			if again, err := Answer(b, netip.AddrPort{}); err == nil {
				t.Errorf("the abort %x is answered by %x", b, again)
			}
			if again, err := Abort(b); err == nil {
				t.Errorf("the abort %x is answered by %x", b, again)
			}
		}
		b, err := Answer(frame, asked)
		if err != nil {
			return
		}
		proto, body := check(t, b)
		switch {
		case proto == 6 && body[13]&4 != 0:
		case proto == 1 && body[0] == 3 && body[1] == 10, proto == 58 && body[0] == 1 && body[1] == 1:
		default:
			t.Errorf("the answer is %x", b)
		}
		if !bytes.Equal(b[:6], frame[6:12]) || !bytes.Equal(b[6:12], frame[:6]) {
			t.Errorf("the answer goes from %x to %x", b[6:12], b[:6])
		}
		if again, err := Answer(b, netip.AddrPort{}); err == nil {
			t.Errorf("the answer %x is answered by %x", b, again)
		}
	})
}
