package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Connections are those that an address takes part in: as the original source or
// destination, or, where these are translated, as the reply's.
type Connections struct {
	Addr    netip.Addr
	Zone    uint16
	AnyZone bool  // Zone counts for nothing.
	Proto   uint8 // IP protocol; zero is any.
	// Peer, where it is valid, makes it the one connection that Addr began with it,
	// by Proto and from and to these ports. Of ICMP SrcPort is the identifier; of
	// SCTP, which is tracked without ports, and where Proto is zero, it is all that
	// Addr began with Peer.
	Peer             netip.Addr
	SrcPort, DstPort uint16
	// Endpoint, where it is valid, makes it the connections that were begun to
	// Addr, a Service's, at DstPort, by Proto, TCP or UDP, and that were translated
	// to this address. Peer and SrcPort count for nothing.
	Endpoint netip.Addr
}

func (c Connections) String() string {
	text := "connections of " + c.Addr.String()
	switch {
	case c.Endpoint.IsValid():
		text = fmt.Sprintf("connections to %s that %s answers", netip.AddrPortFrom(c.Addr, c.DstPort), c.Endpoint)
	case c.Peer.IsValid():
		text = fmt.Sprintf("connection from %s to %s", netip.AddrPortFrom(c.Addr, c.SrcPort), netip.AddrPortFrom(c.Peer, c.DstPort))
	}
	if c.Proto != 0 {
		text += fmt.Sprintf(" by protocol %d", c.Proto)
	}
	if !c.AnyZone {
		text += fmt.Sprintf(" in zone %d", c.Zone)
	}
	return text
}

// FlushConntrack forgets connections, but for those by ICMPv6 of a userspace
// datapath: Open vSwitch 3.1.0 aborts at one that it is to forget by its addresses
// (it looks for the answer's type among those of ICMP). They end by themselves half
// a minute after their last packet. Of IPv6 it forgets there those by TCP, UDP and SCTP.
func (b *Bridge) FlushConntrack(ctx context.Context, c Connections) error {
	s := b.session(roleChange)
	if s == nil {
		return ErrDisconnected
	}
	filters := []openflow.ConntrackFilter{{OrigSrc: c.Addr}, {OrigDst: c.Addr}, {ReplySrc: c.Addr}, {ReplyDst: c.Addr}}
	switch {
	case c.Endpoint.IsValid():
		filters = []openflow.ConntrackFilter{{OrigDst: c.Addr, ReplySrc: c.Endpoint, WithPorts: true, DstPort: c.DstPort}}
	case c.Peer.IsValid():
		filters = []openflow.ConntrackFilter{{OrigSrc: c.Addr, OrigDst: c.Peer, WithPorts: true, SrcPort: c.SrcPort, DstPort: c.DstPort}}
	}
	protocols := []uint8{c.Proto}
	if b.cfg.DatapathType == "netdev" && c.Addr.Is6() && c.Proto == 0 {
		protocols = []uint8{openflow.ProtoTCP, openflow.ProtoUDP, openflow.ProtoSCTP}
	} else if b.cfg.DatapathType == "netdev" && c.Proto == openflow.ProtoICMPv6 {
		return nil
	}
	var each []openflow.ConntrackFilter
	for _, f := range filters {
		f.Zone, f.AnyZone = c.Zone, c.AnyZone
		for _, f.Proto = range protocols {
			f.WithPorts = f.WithPorts && c.Proto != 0
			each = append(each, f)
		}
	}
	filters = each
	s.turn.Lock()
	defer s.turn.Unlock()
	refused, err := s.requestLocked(ctx, len(filters), func(b []byte, xid uint32, i int) []byte {
		return openflow.AppendConntrackFlush(b, xid, filters[i])
	})
	if err == nil {
		for _, e := range refused {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("flush %s: %w", c, err)
	}
	return nil
}
