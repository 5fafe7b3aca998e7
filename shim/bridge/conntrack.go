package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Connections are those that an address takes part in: as the original source,
// as the original destination, or, where that is translated, as the reply's
// source.
type Connections struct {
	Addr    netip.Addr
	Zone    uint16
	AnyZone bool  // Zone counts for nothing.
	Proto   uint8 // IP protocol; zero is any.
}

func (c Connections) String() string {
	text := "connections of " + c.Addr.String()
	if c.Proto != 0 {
		text += fmt.Sprintf(" by protocol %d", c.Proto)
	}
	if !c.AnyZone {
		text += fmt.Sprintf(" in zone %d", c.Zone)
	}
	return text
}

// FlushConntrack forgets connections.
func (b *Bridge) FlushConntrack(ctx context.Context, c Connections) error {
	s := b.session(roleChange)
	if s == nil {
		return ErrDisconnected
	}
	filters := [3]openflow.ConntrackFilter{{OrigSrc: c.Addr}, {OrigDst: c.Addr}, {ReplySrc: c.Addr}}
	for i := range filters {
		filters[i].Zone, filters[i].AnyZone, filters[i].Proto = c.Zone, c.AnyZone, c.Proto
	}
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
