package bridge_test

import (
	"net/netip"

	of "github.com/weirnet/weir/shim/bridge/openflow"
)

var (
	macA = [6]byte{2, 0, 0, 0, 0, 0xa}
	macB = [6]byte{2, 0, 0, 0, 0, 0xb}
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// everyMatch has each kind of condition at least once.
var everyMatch = map[string]of.Match{
	"any":           of.NewMatch(),
	"in_port":       of.NewMatch(of.InPort(1)),
	"local":         of.NewMatch(of.InPort(of.PortLocal)),
	"eth":           of.NewMatch(of.EthSrc(macA), of.EthDst(macB)),
	"multicast":     of.NewMatch(of.EthDstMasked([6]byte{1}, [6]byte{1})),
	"eth_type":      of.NewMatch(of.EthType(0x88cc)),
	"ip":            of.NewMatch(of.IPv4()),
	"ipv6":          of.NewMatch(of.IPv6()),
	"arp":           of.NewMatch(of.ARP()),
	"proto":         of.NewMatch(of.IPv4(), of.IPProto(47)),
	"icmp proto":    of.NewMatch(of.IPv4(), of.IPProto(of.ProtoICMP)),
	"prefix4":       of.NewMatch(of.IPSrc(pfx("10.1.2.0/24")), of.IPDst(pfx("10.9.0.7/32"))),
	"prefix4 none":  of.NewMatch(of.IPSrc(pfx("0.0.0.0/0"))),
	"prefix6":       of.NewMatch(of.IPSrc(pfx("fd00:1::/64")), of.IPDst(pfx("fd00:2::7/128"))),
	"arp fields":    of.NewMatch(of.ARPOp(1), of.ARPSpa(pfx("10.0.0.1/32")), of.ARPTpa(pfx("10.0.0.0/24")), of.ARPSha(macA)),
	"ns":            of.NewMatch(of.NDTarget(pfx("fd00::1/128")), of.NDSll(macA)),
	"na":            of.NewMatch(of.NDTarget(pfx("fd00::1/128")), of.NDTll(macB)),
	"tcp":           of.NewMatch(of.IPv4(), of.L4Src(of.ProtoTCP, 1000, 0xffff), of.L4Dst(of.ProtoTCP, 80, 0xffff)),
	"tcp range":     of.NewMatch(of.IPv6(), of.L4Dst(of.ProtoTCP, 0x1000, 0xf000)),
	"tcp any":       of.NewMatch(of.IPv4(), of.L4Dst(of.ProtoTCP, 0, 0)),
	"tcp flags":     of.NewMatch(of.IPv4(), of.TCPFlags(0x02, 0x12)),
	"udp":           of.NewMatch(of.IPv4(), of.L4Src(of.ProtoUDP, 53, 0xffff), of.L4Dst(of.ProtoUDP, 53, 0xffff)),
	"sctp":          of.NewMatch(of.IPv6(), of.L4Src(of.ProtoSCTP, 7, 0xffff), of.L4Dst(of.ProtoSCTP, 9, 0xfff9)),
	"icmp":          of.NewMatch(of.ICMPType(8), of.ICMPCode(0)),
	"icmp6":         of.NewMatch(of.ICMPv6Type(128), of.ICMPv6Code(0)),
	"reg0":          of.NewMatch(of.Reg(0, 0x15, 0xff)),
	"reg1":          of.NewMatch(of.Reg(1, 7, 0xffffffff)),
	"reg pair":      of.NewMatch(of.Reg(4, 0x10, 0xf0), of.Reg(5, 0xffffffff, 0xffffffff)),
	"xxreg":         of.NewMatch(of.Exactly(of.FieldXXReg(2), of.Addr(netip.MustParseAddr("fd00::1")))),
	"xxreg part":    of.NewMatch(of.Masked(of.FieldXXReg(1), of.Ones(30, 5), of.Ones(28, 70))),
	"reg15":         of.NewMatch(of.Reg(15, 0, 1)),
	"ct_state":      of.NewMatch(of.IPv4(), of.CtState(of.CtTrk|of.CtNew, of.CtTrk|of.CtNew|of.CtInv)),
	"ct_state nat":  of.NewMatch(of.CtState(of.CtTrk|of.CtEst|of.CtDNAT, of.CtTrk|of.CtEst|of.CtRpl|of.CtRel|of.CtDNAT|of.CtSNAT)),
	"ct_zone":       of.NewMatch(of.CtZone(7)),
	"ct_mark":       of.NewMatch(of.CtMark(1, 3)),
	"ct_label":      of.NewMatch(of.CtLabel([16]byte{15: 9, 7: 1}, [16]byte{12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff, 7: 1})),
	"conj_id":       of.NewMatch(of.ConjID(77), of.IPv4()),
	"pkt_mark":      of.NewMatch(of.PktMark(0x10, 0x30)),
	"tun_id":        of.NewMatch(of.TunID(5000)),
	"metadata":      of.NewMatch(of.Masked(of.FieldMetadata, of.Uint(0x1200), of.Uint(0xff00))),
	"vlan":          of.NewMatch(of.Exactly(of.FieldVLANVID, of.Uint(0x1005))),
	"fragment":      of.NewMatch(of.IPv4(), of.Masked(of.FieldIPFrag, of.Uint(3), of.Uint(3))),
	"ttl":           of.NewMatch(of.IPv4(), of.Exactly(of.FieldIPTTL, of.Uint(64))),
	"dscp":          of.NewMatch(of.IPv4(), of.Exactly(of.FieldIPDSCP, of.Uint(11))),
	"ct tuple":      of.NewMatch(of.IPv4(), of.CtState(of.CtTrk, of.CtTrk|of.CtInv), of.Exactly(of.FieldCTProto, of.Uint(6)), of.Exactly(of.FieldCTIPv4Dst, of.Addr(netip.MustParseAddr("10.0.0.1"))), of.Exactly(of.FieldCTTPDst, of.Uint(80))),
	"odd mask":      of.NewMatch(of.IPv4(), of.Masked(of.FieldIPv4Src, of.Uint(0x0a000001), of.Uint(0xff0000ff))),
	"gathered":      of.NewMatch(of.InPort(3), of.IPSrc(pfx("10.0.0.0/8")), of.L4Dst(of.ProtoTCP, 443, 0xffff), of.Reg(3, 1, 1), of.CtMark(0, 1)),
	"gathered ipv6": of.NewMatch(of.InPort(3), of.IPDst(pfx("fd00::/8")), of.L4Dst(of.ProtoUDP, 443, 0xffff), of.Reg(2, 1, 1), of.CtState(0, of.CtEst)),
}

// everyAction has each kind of step at least once, where group 5, meter 6 and
// table 20 and later exist. The flows that need a match have one.
var everyAction = map[string]struct {
	match   of.Match
	actions of.Actions
}{
	"drop":         {actions: of.Drop()},
	"output":       {actions: of.NewActions(of.OutputPort(1), of.OutputPort(of.PortLocal))},
	"in_port":      {actions: of.NewActions(of.InPortOutput())},
	"normal":       {actions: of.NewActions(of.OutputPort(of.PortNormal))},
	"output reg":   {actions: of.NewActions(of.OutputRegister(1))},
	"output bits":  {actions: of.NewActions(of.OutputReg{From: of.RegBits(2, 0, 16)})},
	"goto":         {actions: of.NewActions(of.GotoTable(20))},
	"set reg":      {actions: of.NewActions(of.SetReg(0, 1, 0xf), of.SetReg(1, 2, 0xffffffff), of.GotoTable(21))},
	"load":         {actions: of.NewActions(of.Load(of.RegBits(3, 4, 4), 0xa), of.GotoTable(21))},
	"set xxreg":    {actions: of.NewActions(of.Set(of.FieldXXReg(2), of.Addr(netip.MustParseAddr("fd00::1"))), of.SetMasked(of.FieldXXReg(3), of.Ones(60, 9), of.Ones(40, 80)), of.GotoTable(21))},
	"move xxreg":   {of.NewMatch(of.IPv6()), of.NewActions(of.MoveBits(of.WholeField(of.FieldIPv6Dst), of.WholeField(of.FieldXXReg(0))), of.MoveBits(of.WholeField(of.FieldXXReg(0)), of.WholeField(of.FieldXXReg(1))), of.GotoTable(21))},
	"move label":   {actions: of.NewActions(of.MoveBits(of.Bits{Field: of.FieldCTLabel, Offset: 64, Len: 32}, of.Bits{Field: of.FieldMetadata, Offset: 0, Len: 32}), of.GotoTable(21))},
	"learn":        {of.NewMatch(of.IPv4(), of.IPProto(of.ProtoTCP)), of.NewActions(affinity4)},
	"learn limit":  {of.NewMatch(of.IPv6(), of.L4Dst(of.ProtoUDP, 53, 0xffff)), of.NewActions(affinity6, of.GotoTable(21))},
	"learn sctp":   {of.NewMatch(of.IPv4(), of.L4Dst(of.ProtoSCTP, 53, 0xffff)), of.NewActions(of.Learn{Table: 63, Specs: []of.LearnSpec{of.LearnMatchValue(of.FieldEthType, of.Uint(of.EtherIPv4)), of.LearnMatchValue(of.FieldIPProto, of.Uint(of.ProtoSCTP)), {From: of.WholeField(of.FieldSCTPSrc), To: of.WholeField(of.FieldSCTPDst)}, {Value: of.Uint(3), To: of.RegBits(0, 4, 4)}, {From: of.RegBits(8, 0, 32), To: of.WholeField(of.FieldIPv4Src), Load: true}, of.LearnLoadValue(of.Uint(53), of.WholeField(of.FieldSCTPSrc)), of.LearnMatchValue(of.FieldInPort, of.Uint(2)), of.LearnMatchValue(of.FieldMetadata, of.Uint(7))}})},
	"holes":        {actions: of.NewActions(of.SetReg(7, 0x81, 0x81), of.GotoTable(21))},
	"eth":          {actions: of.NewActions(of.SetEthSrc(macA), of.SetEthDst(macB), of.OutputPort(2))},
	"set ip":       {of.NewMatch(of.IPv4()), of.NewActions(of.Set(of.FieldIPv4Dst, of.Addr(netip.MustParseAddr("10.0.0.9"))), of.OutputPort(2))},
	"move":         {actions: of.NewActions(of.MoveBits(of.RegBits(5, 0, 16), of.RegBits(6, 16, 16)), of.GotoTable(21))},
	"move mac":     {of.NewMatch(of.ARP()), of.NewActions(of.MoveBits(of.WholeField(of.FieldEthSrc), of.WholeField(of.FieldEthDst)), of.InPortOutput())},
	"ct":           {of.NewMatch(of.IPv4()), of.NewActions(of.CT{Zone: 1, Recirc: true, Table: 25, NAT: of.NAT{Kind: of.NATApply}})},
	"ct plain":     {of.NewMatch(of.IPv6()), of.NewActions(of.CT{Recirc: true, Table: 0})},
	"ct zone reg":  {of.NewMatch(of.IPv6()), of.NewActions(of.CT{ZoneFrom: of.RegBits(4, 0, 16), Recirc: true, Table: 30})},
	"ct commit":    {of.NewMatch(of.IPv4()), of.NewActions(of.CT{Commit: true, Zone: 1, Recirc: true, Table: 25, Exec: []of.Action{of.SetCtMark(1, 1), of.SetCtLabel([16]byte{15: 7}, [16]byte{12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}), of.MoveBits(of.RegBits(5, 0, 32), of.Bits{Field: of.FieldCTLabel, Offset: 32, Len: 32})}})},
	"ct force":     {of.NewMatch(of.IPv4()), of.NewActions(of.CT{Commit: true, Force: true, Zone: 2})},
	"ct snat":      {of.NewMatch(of.IPv4()), of.NewActions(of.CT{Commit: true, Zone: 2, NAT: of.NAT{Kind: of.NATSrc, MinAddr: netip.MustParseAddr("10.0.0.1"), MaxAddr: netip.MustParseAddr("10.0.0.9"), MinPort: 1024, MaxPort: 2048}})},
	"ct dnat":      {of.NewMatch(of.IPv4()), of.NewActions(of.CT{Commit: true, Zone: 2, NAT: of.NAT{Kind: of.NATDst, MinAddr: netip.MustParseAddr("10.0.0.1"), MinPort: 80}})},
	"ct dnat6":     {of.NewMatch(of.IPv6()), of.NewActions(of.CT{Commit: true, Zone: 2, NAT: of.NAT{Kind: of.NATDst, MinAddr: netip.MustParseAddr("fd00::1"), MinPort: 80}})},
	"ct snat auto": {of.NewMatch(of.IPv4()), of.NewActions(of.CT{Commit: true, Zone: 2, NAT: of.NAT{Kind: of.NATSrcAuto}})},
	"conjunction":  {of.NewMatch(of.IPSrc(pfx("10.0.0.1/32"))), of.NewActions(of.Conjunction{ID: 1, Clause: 0, Clauses: 3}, of.Conjunction{ID: 2, Clause: 1, Clauses: 2})},
	"controller":   {actions: of.NewActions(of.Controller{ControllerID: 9, MaxLen: 128, MeterID: 6, UserData: "\x01\x02weir"}, of.GotoTable(22))},
	"pause":        {actions: of.NewActions(of.Controller{ControllerID: 9, Pause: true}, of.OutputPort(1))},
	"plain ctrl":   {actions: of.NewActions(of.Controller{})},
	"group":        {of.NewMatch(of.IPv4()), of.NewActions(of.ToGroup(5))},
	"meter":        {actions: of.NewActions(of.MeterBy(6), of.OutputPort(1))},
	"resubmit":     {actions: of.NewActions(of.SetReg(0, 1, 1), of.Resubmit(30), of.Resubmit(2))},
	"much":         {of.NewMatch(of.IPv4()), of.NewActions(of.SetReg(0, 1, 1), of.Controller{ControllerID: 1, MeterID: 6}, of.CT{Commit: true, Zone: 1, Exec: []of.Action{of.SetCtMark(1, 1)}}, of.OutputPort(1), of.GotoTable(40))},
}

// affinity4 and affinity6 are as a Service's session affinity learns.
var (
	affinity4 = of.Learn{Table: 60, Priority: 100, IdleTimeout: 10800, Cookie: ours | 0x1234, Specs: []of.LearnSpec{
		of.LearnMatchValue(of.FieldEthType, of.Uint(of.EtherIPv4)), of.LearnMatchValue(of.FieldIPProto, of.Uint(of.ProtoTCP)),
		of.LearnMatch(of.FieldIPv4Src), of.LearnMatch(of.FieldIPv4Dst), of.LearnMatch(of.FieldTCPDst),
		of.LearnLoad(of.RegBits(8, 0, 32), of.RegBits(8, 0, 32)), of.LearnLoadValue(of.Uint(1), of.RegBits(0, 20, 1)),
	}}
	affinity6 = of.Learn{Table: 60, Priority: 0x8000, HardTimeout: 9, Cookie: ours | 0x1234, Limit: 1000, Specs: []of.LearnSpec{
		of.LearnMatchValue(of.FieldEthType, of.Uint(of.EtherIPv6)), of.LearnMatchValue(of.FieldIPProto, of.Uint(of.ProtoUDP)),
		of.LearnMatch(of.FieldIPv6Src), of.LearnMatchValue(of.FieldIPv6Dst, of.Addr(netip.MustParseAddr("fd00::9"))), of.LearnMatchValue(of.FieldUDPDst, of.Uint(53)),
		of.LearnLoad(of.WholeField(of.FieldXXReg(2)), of.WholeField(of.FieldXXReg(2))),
	}}
)

// group5 and meter6 are what everyAction refers to.
var (
	group5 = of.Group{ID: 5, Type: of.GroupSelect, Buckets: []of.Bucket{
		{Weight: 100, Actions: of.NewActions(of.SetReg(3, 1, 0xff), of.CT{Commit: true, Zone: 1, Recirc: true, Table: 50, NAT: of.NAT{Kind: of.NATDst, MinAddr: netip.MustParseAddr("10.0.0.1"), MinPort: 80}})},
		{Weight: 50, Actions: of.NewActions(of.OutputPort(2))},
	}}
	meter6 = of.Meter{ID: 6, Rate: 500, Burst: 1000}
)
