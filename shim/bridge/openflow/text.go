package openflow

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String is the match in the text form of ovs-ofctl, without spaces; the empty
// string takes every packet.
func (m Match) String() string {
	var parts []string
	l3 := map[FieldID]Field{}
	m.walk(func(f Field, known bool) {
		if known && (f.ID == FieldEthType || f.ID == FieldIPProto) {
			l3[f.ID] = f
		}
	})
	word, protoSaid := protocolWord(l3)
	if word != "" {
		parts = append(parts, word)
	}
	m.walk(func(f Field, known bool) {
		switch {
		case !known:
			parts = append(parts, "foreign")
		case f.ID == FieldEthType && word != "":
		case f.ID == FieldIPProto && protoSaid:
		default:
			parts = append(parts, f.String())
		}
	})
	return strings.Join(parts, ",")
}

// protocolWord is ovs-ofctl's word for the packet's kind, and whether it says
// the IP protocol too.
func protocolWord(l3 map[FieldID]Field) (string, bool) {
	eth, ok := l3[FieldEthType]
	if !ok {
		return "", false
	}
	suffix, base, icmp := "", "", uint64(ProtoICMP)
	switch eth.Value.Uint64() {
	case EtherIPv4:
		base = "ip"
	case EtherIPv6:
		suffix, base, icmp = "6", "ipv6", ProtoICMPv6
	case EtherARP:
		return "arp", false
	default:
		return "", false
	}
	proto, ok := l3[FieldIPProto]
	if !ok {
		return base, false
	}
	switch proto.Value.Uint64() {
	case ProtoTCP:
		return "tcp" + suffix, true
	case ProtoUDP:
		return "udp" + suffix, true
	case ProtoSCTP:
		return "sctp" + suffix, true
	case icmp:
		return "icmp" + suffix, true
	}
	return base, false
}

// String is the condition in the text form of ovs-ofctl.
func (f Field) String() string {
	name, value := f.ID.String(), f.valueText()
	if f.ID == FieldCTState {
		return name + "=" + ctStateText(f)
	}
	return name + "=" + value
}

func (f Field) valueText() string {
	if isAddress(f.ID) {
		addr := f.addr(f.Value)
		if f.Exact() {
			return addr.String()
		}
		if bits, ok := f.prefixLen(); ok {
			return addr.String() + "/" + strconv.Itoa(bits)
		}
		return addr.String() + "/" + f.addr(f.Mask).String()
	}
	switch f.ID {
	case FieldEthSrc, FieldEthDst, FieldARPSHA, FieldARPTHA, FieldNDSLL, FieldNDTLL:
		if f.Exact() {
			return macText(f.Value)
		}
		return macText(f.Value) + "/" + macText(f.Mask)
	case FieldInPort:
		return portText(uint32(f.Value.Uint64()))
	case FieldEthType:
		return fmt.Sprintf("0x%04x", f.Value.Uint64())
	case FieldCTZone, FieldIPProto, FieldIPTTL, FieldIPDSCP, FieldIPECN, FieldARPOp, FieldICMPType, FieldICMPCode,
		FieldICMPv6Type, FieldICMPv6Code, FieldConjID, FieldCTProto:
		return strconv.FormatUint(f.Value.Uint64(), 10)
	case FieldIPFrag:
		return fragText(f)
	case FieldTCPSrc, FieldTCPDst, FieldUDPSrc, FieldUDPDst, FieldSCTPSrc, FieldSCTPDst, FieldCTTPSrc, FieldCTTPDst:
		if f.Exact() {
			return strconv.FormatUint(f.Value.Uint64(), 10)
		}
	case FieldTCPFlags:
		// The plain number means "exactly these", also to a masked reader.
		return fmt.Sprintf("0x%x/0x%x", f.Value.Uint64(), f.Mask.Uint64())
	}
	if f.Exact() {
		return hexText(f.Value)
	}
	return hexText(f.Value) + "/" + hexText(f.Mask)
}

func isAddress(id FieldID) bool {
	switch id {
	case FieldIPv4Src, FieldIPv4Dst, FieldIPv6Src, FieldIPv6Dst, FieldARPSPA, FieldARPTPA, FieldNDTarget,
		FieldCTIPv4Src, FieldCTIPv4Dst, FieldCTIPv6Src, FieldCTIPv6Dst:
		return true
	}
	return false
}

func (f Field) addr(v Value) netip.Addr {
	if f.ID.Bits() == 32 {
		return v.IPv4()
	}
	return v.IPv6()
}

// prefixLen is the length of the mask as a prefix; false where it has holes.
func (f Field) prefixLen() (int, bool) {
	width := f.ID.Bits()
	n := 0
	for n < width && !f.Mask.And(Ones(width-1-n, 1)).IsZero() {
		n++
	}
	return n, f.Mask == Ones(width-n, n)
}

// Prefix is the condition on an address as a prefix; false where the field is
// no address or the mask has holes.
func (f Field) Prefix() (netip.Prefix, bool) {
	if !isAddress(f.ID) {
		return netip.Prefix{}, false
	}
	bits, ok := f.prefixLen()
	return netip.PrefixFrom(f.addr(f.Value), bits), ok
}

func fragText(f Field) string {
	names := map[[2]uint64]string{{0, 3}: "no", {1, 3}: "first", {3, 3}: "later", {1, 1}: "yes", {0, 2}: "not_later"}
	if s, ok := names[[2]uint64{f.Value.Uint64(), f.Mask.Uint64()}]; ok {
		return s
	}
	return fmt.Sprintf("0x%x/0x%x", f.Value.Uint64(), f.Mask.Uint64())
}

var ctStateNames = []string{"new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"}

func ctStateText(f Field) string {
	var b strings.Builder
	for i, name := range ctStateNames {
		if f.Mask.Uint64()>>i&1 == 0 {
			continue
		}
		sign := byte('-')
		if f.Value.Uint64()>>i&1 == 1 {
			sign = '+'
		}
		b.WriteByte(sign)
		b.WriteString(name)
	}
	return b.String()
}

func macText(v Value) string {
	m := v.MAC()
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

func hexText(v Value) string {
	s := strings.TrimLeft(hex.EncodeToString(v[:]), "0")
	if s == "" {
		s = "0"
	}
	return "0x" + s
}

func portText(port uint32) string {
	switch port {
	case PortInPort:
		return "IN_PORT"
	case PortNormal:
		return "NORMAL"
	case PortController:
		return "CONTROLLER"
	case PortLocal:
		return "LOCAL"
	case PortAny:
		return "ANY"
	}
	return strconv.FormatUint(uint64(port), 10)
}

// String is the Actions in the text form of ovs-ofctl.
func (a Actions) String() string {
	if a.IsDrop() {
		return "drop"
	}
	return joinActions(a.List())
}

func joinActions(list []Action) string {
	parts := make([]string, len(list))
	for i, a := range list {
		parts[i] = a.String()
	}
	return strings.Join(parts, ",")
}

func (g Goto) String() string { return fmt.Sprintf("goto_table:%d", uint8(g)) }

func (a Output) String() string {
	switch a.Port {
	case PortController:
		return fmt.Sprintf("CONTROLLER:%d", a.MaxLen)
	case PortInPort, PortNormal, PortLocal:
		return portText(a.Port)
	}
	return "output:" + portText(a.Port)
}

// String is the range in the text form of ovs-ofctl.
func (r Bits) String() string {
	if int(r.Len) == r.Field.Bits() {
		return r.Field.actionName()
	}
	if r.Len == 1 {
		return fmt.Sprintf("%s[%d]", r.Field.actionName(), r.Offset)
	}
	return fmt.Sprintf("%s[%d..%d]", r.Field.actionName(), r.Offset, r.Offset+r.Len-1)
}

// actionName is the field's name where actions refer to it; ovs-ofctl takes
// other names there for some fields.
func (id FieldID) actionName() string {
	switch id {
	case FieldInPort:
		return "in_port_oxm" // "in_port" has 16 bits there
	case FieldEthSrc:
		return "eth_src"
	case FieldEthDst:
		return "eth_dst"
	case FieldEthType:
		return "eth_type"
	case FieldIPv4Src:
		return "ip_src"
	case FieldIPv4Dst:
		return "ip_dst"
	}
	return id.String()
}

func (a OutputReg) String() string { return "output:" + a.From.movable() }

// movable is the range with its bits always written out.
func (r Bits) movable() string {
	if int(r.Len) == r.Field.Bits() {
		return r.Field.actionName() + "[]"
	}
	return r.String()
}

func (a SetField) String() string {
	return fmt.Sprintf("set_field:%s->%s", Field(a).valueText(), a.ID.actionName())
}

func (a Move) String() string { return "move:" + a.From.movable() + "->" + a.To.movable() }

func (a CT) String() string {
	var parts []string
	if a.Commit {
		parts = append(parts, "commit")
	}
	if a.Force {
		parts = append(parts, "force")
	}
	if a.Recirc {
		parts = append(parts, fmt.Sprintf("table=%d", a.Table))
	}
	if a.ZoneFrom.Len != 0 {
		parts = append(parts, "zone="+a.ZoneFrom.movable())
	} else if a.Zone != 0 {
		parts = append(parts, fmt.Sprintf("zone=%d", a.Zone))
	}
	if a.NAT.Kind != NATNone {
		parts = append(parts, a.NAT.String())
	}
	if len(a.Exec) > 0 {
		parts = append(parts, "exec("+joinActions(a.Exec)+")")
	}
	return "ct(" + strings.Join(parts, ",") + ")"
}

// String is the translation in the text form of ovs-ofctl.
func (n NAT) String() string {
	if n.Kind == NATNone || n.Kind == NATApply {
		return "nat"
	}
	s := "nat(src"
	if n.Kind == NATDst {
		s = "nat(dst"
	}
	if n.MinAddr.IsValid() {
		s += "=" + n.addrText(n.MinAddr)
		if n.MaxAddr.IsValid() && n.MaxAddr != n.MinAddr {
			s += "-" + n.addrText(n.MaxAddr)
		}
		if n.MinPort != 0 {
			s += fmt.Sprintf(":%d", n.MinPort)
			if n.MaxPort != 0 && n.MaxPort != n.MinPort {
				s += fmt.Sprintf("-%d", n.MaxPort)
			}
		}
	}
	for i, word := range []string{"persistent", "hash", "random"} {
		if n.flags&(natPersistent<<i) != 0 {
			s += "," + word
		}
	}
	return s + ")"
}

func (n NAT) addrText(a netip.Addr) string {
	if a.Is6() && n.MinPort != 0 {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func (a Conjunction) String() string {
	return fmt.Sprintf("conjunction(%d,%d/%d)", a.ID, a.Clause+1, a.Clauses)
}

func (a Controller) String() string {
	var parts []string
	if a.Reason != 0 && a.Reason != ReasonAction {
		parts = append(parts, fmt.Sprintf("reason=%d", a.Reason))
	}
	if a.MaxLen != 0 && a.MaxLen != wholePacket {
		parts = append(parts, fmt.Sprintf("max_len=%d", a.MaxLen))
	}
	if a.ControllerID != 0 {
		parts = append(parts, fmt.Sprintf("id=%d", a.ControllerID))
	}
	if a.UserData != "" {
		bytes := make([]string, len(a.UserData))
		for i := range bytes {
			bytes[i] = fmt.Sprintf("%02x", a.UserData[i])
		}
		parts = append(parts, "userdata="+strings.Join(bytes, "."))
	}
	if a.Pause {
		parts = append(parts, "pause")
	}
	if a.MeterID != 0 {
		parts = append(parts, fmt.Sprintf("meter_id=%d", a.MeterID))
	}
	return "controller(" + strings.Join(parts, ",") + ")"
}

func (a ToGroup) String() string { return fmt.Sprintf("group:%d", uint32(a)) }

func (a MeterBy) String() string { return fmt.Sprintf("meter:%d", uint32(a)) }

func (a Resubmit) String() string { return fmt.Sprintf("resubmit(,%d)", uint8(a)) }

func (a Foreign) String() string { return "foreign:" + hex.EncodeToString([]byte(a)) }
