package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// FlushConntrack forgets the connections of a zone that an address takes part
// in: as the original source, as the original destination, or, where that is
// translated, as the reply's source.
func (b *Bridge) FlushConntrack(ctx context.Context, zone uint16, addr netip.Addr) error {
	s := b.session(roleChange)
	if s == nil {
		return ErrDisconnected
	}
	filters := []openflow.ConntrackFilter{
		{Zone: zone, OrigSrc: addr},
		{Zone: zone, OrigDst: addr},
		{Zone: zone, ReplySrc: addr},
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
		return fmt.Errorf("flush connections of %s in zone %d: %w", addr, zone, err)
	}
	return nil
}
