package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage/faultpoint"
)

// ErrDisconnected says that the switch cannot be reached now; nothing was done.
var ErrDisconnected = errors.New("bridge is disconnected")

// ErrOutcomeUnknown says that the connection broke while a change was
// committed: it was applied as a whole or not at all.
var ErrOutcomeUnknown = errors.New("outcome of the change is unknown")

// ChangeError says which part of a change the switch refused; nothing of the
// bundle that it belongs to was applied.
type ChangeError struct {
	Item string // the flow, group or meter, as text
	Err  error  // an *openflow.Error where the switch refused it
}

// Error names the part and what is wrong with it.
func (e *ChangeError) Error() string { return fmt.Sprintf("apply %s: %v", e.Item, e.Err) }

// Unwrap is what is wrong with the part.
func (e *ChangeError) Unwrap() error { return e.Err }

var errTooLarge = errors.New("does not fit into one message")

// check finds what the switch could not even be told.
func (c *Change) check() error {
	deleted := make(map[openflow.FlowKey]struct{}, len(c.Delete))
	for _, key := range c.Delete {
		deleted[key] = struct{}{}
	}
	for f := range c.EachUpsert {
		if !f.Fits() {
			return &ChangeError{shorten(f.String()), errTooLarge}
		}
		if _, ok := deleted[f.Key()]; ok {
			return &ChangeError{"delete of flow " + f.Key().String(), errors.New("the same change puts the flow")}
		}
	}
	for i := range c.PutGroups {
		if !c.PutGroups[i].Fits() {
			return &ChangeError{shorten(c.PutGroups[i].String()), errTooLarge}
		}
	}
	return nil
}

func shorten(s string) string {
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}

// Apply makes the change: meters first, then groups and flows as one atomic
// bundle, then the removal of meters. When it returns nil, packets meet the new
// flows. A context that ends first closes the connection, so that the switch
// discards what was not committed; bound it, since a switch may hang.
func (b *Bridge) Apply(ctx context.Context, c Change) error {
	if err := c.check(); err != nil {
		return err
	}
	s := b.session(roleChange)
	if s == nil {
		return ErrDisconnected
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := s.putMetersLocked(ctx, c.PutMeters); err != nil {
		return err
	}
	if len(c.PutMeters) > 0 {
		faultpoint.Reach("shim.bundle.metered")
	}
	if err := s.applyBundleLocked(ctx, &c); err != nil {
		return err
	}
	return s.deleteMetersLocked(ctx, c.DeleteMeters)
}

// putMetersLocked adds the meters and changes those that exist.
func (s *session) putMetersLocked(ctx context.Context, meters []openflow.Meter) error {
	if len(meters) == 0 {
		return nil
	}
	refused, err := s.requestLocked(ctx, len(meters), func(b []byte, xid uint32, i int) []byte {
		return openflow.AppendMeterPut(b, xid, meters[i], false)
	})
	if err != nil {
		return err
	}
	var again []openflow.Meter
	for i, err := range refused {
		if !errors.Is(err, openflow.ErrMeterExists) {
			return &ChangeError{"meter " + meters[i].String(), err}
		}
		again = append(again, meters[i])
	}
	if len(again) == 0 {
		return nil
	}
	refused, err = s.requestLocked(ctx, len(again), func(b []byte, xid uint32, i int) []byte {
		return openflow.AppendMeterPut(b, xid, again[i], true)
	})
	if err != nil {
		return err
	}
	for i, err := range refused {
		return &ChangeError{"meter " + again[i].String(), err}
	}
	return nil
}

func (s *session) deleteMetersLocked(ctx context.Context, ids []uint32) error {
	if len(ids) == 0 {
		return nil
	}
	refused, err := s.requestLocked(ctx, len(ids), func(b []byte, xid uint32, i int) []byte {
		return openflow.AppendMeterDelete(b, xid, ids[i])
	})
	if err != nil {
		return err
	}
	for i, err := range refused {
		if !errors.Is(err, openflow.ErrUnknownMeter) {
			return &ChangeError{fmt.Sprintf("delete of meter %d", ids[i]), err}
		}
	}
	return nil
}

// requestLocked sends n messages and a barrier, and returns what was refused, by the
// message's index.
func (s *session) requestLocked(ctx context.Context, n int, write func(b []byte, xid uint32, i int) []byte) (map[int]error, error) {
	var refused map[int]error
	var first uint32
	err := s.exchangeLocked(ctx, 0, n+1, func(xid uint32, w io.Writer) error {
		first = xid
		return writeMessages(w, n, func(b []byte, i int) []byte { return write(b, xid+uint32(i), i) },
			openflow.AppendBarrier(nil, xid+uint32(n)))
	}, func(m openflow.Message) bool {
		if m.Type == openflow.TypeError {
			if refused == nil {
				refused = map[int]error{}
			}
			if i := int(m.XID - first); refused[i] == nil {
				refused[i] = decodeError(m)
			}
			return false
		}
		return m.Type == openflow.TypeBarrierReply
	})
	return refused, err
}

// chunk is how much is gathered before it is written.
const chunk = 1 << 16

// writeMessages writes n messages in large pieces, then the last one.
func writeMessages(w io.Writer, n int, message func(b []byte, i int) []byte, last []byte) error {
	b := make([]byte, 0, min(2*chunk, n*256+len(last)))
	for i := range n {
		b = message(b, i)
		if len(b) >= chunk {
			if _, err := w.Write(b); err != nil {
				return err
			}
			b = b[:0]
			faultpoint.Reach("shim.bundle.begun")
		}
	}
	_, err := w.Write(append(b, last...))
	return err
}

// applyBundleLocked applies groups and flows at once.
func (s *session) applyBundleLocked(ctx context.Context, c *Change) error {
	n := c.bundled()
	if n == 0 {
		return nil
	}
	if n == 1 { // one message is atomic as it is
		refused, err := s.requestLocked(ctx, 1, func(b []byte, xid uint32, i int) []byte { return c.appendItem(b, xid, i) })
		if err != nil {
			return unknownOutcome(err)
		}
		return c.firstRefused(refused)
	}
	bundle := s.nextBundleLocked()
	open := func(b []byte, xid uint32) []byte {
		return openflow.AppendBundleControl(b, xid, bundle, openflow.BundleOpen)
	}
	// Message 0 opens the bundle; items are messages 1 to n.
	refused, err := s.requestLocked(ctx, n+1, func(b []byte, xid uint32, i int) []byte {
		if i == 0 {
			return open(b, xid)
		}
		return openflow.AppendBundled(b, xid, bundle, func(b []byte) []byte { return c.appendItem(b, xid, i-1) })
	})
	if err != nil {
		return err // the switch discards what was not committed
	}
	if len(refused) > 0 {
		_, err := s.requestLocked(ctx, 1, func(b []byte, xid uint32, _ int) []byte {
			return openflow.AppendBundleControl(b, xid, bundle, openflow.BundleDiscard)
		})
		return errors.Join(c.firstRefused(shift(refused)), err)
	}
	faultpoint.Reach("shim.bundle.filled")
	if err := s.commitLocked(ctx, c, bundle); err != nil {
		return err
	}
	faultpoint.Reach("shim.bundle.committed")
	return nil
}

// shift renumbers what was refused from messages to items.
func shift(refused map[int]error) map[int]error {
	out := make(map[int]error, len(refused))
	for i, err := range refused {
		out[i-1] = err
	}
	return out
}

// commitLocked ends the bundle. The switch reports a message that it refuses now with
// that message's transaction id, which belongs to the exchange before.
func (s *session) commitLocked(ctx context.Context, c *Change, bundle uint32) error {
	n := uint32(c.bundled())
	var refused map[int]error
	var failed error
	committed := false
	var first uint32
	// The items have the n ids before the barrier's, which is the last one used.
	err := s.exchangeLocked(ctx, n+1, 2, func(xid uint32, w io.Writer) error {
		first = xid - n - 1
		b := openflow.AppendBundleControl(nil, xid, bundle, openflow.BundleCommit)
		_, err := w.Write(openflow.AppendBarrier(b, xid+1))
		faultpoint.Reach("shim.bundle.asked")
		return err
	}, func(m openflow.Message) bool {
		switch m.Type {
		case openflow.TypeError:
			if i := m.XID - first; i < n {
				if refused == nil {
					refused = map[int]error{}
				}
				refused[int(i)] = decodeError(m)
			} else {
				failed = decodeError(m)
			}
		case openflow.TypeBundleControl:
			_, control, err := openflow.DecodeBundleControl(m.Body)
			committed = err == nil && control == openflow.BundleCommitReply
		case openflow.TypeBarrierReply:
			return true
		}
		return false
	})
	switch {
	case err != nil:
		return unknownOutcome(err)
	case len(refused) > 0:
		return c.firstRefused(refused)
	case failed != nil:
		return &ChangeError{"bundle", failed}
	case !committed:
		return fmt.Errorf("apply bundle: no reply to the commit: %w", ErrOutcomeUnknown)
	}
	return nil
}

func unknownOutcome(err error) error {
	if errors.Is(err, ErrDisconnected) {
		return fmt.Errorf("apply change: %w", ErrOutcomeUnknown)
	}
	return fmt.Errorf("apply change: %w: %w", ErrOutcomeUnknown, err)
}

// appendItem writes the i-th message of the bundle.
func (c *Change) appendItem(b []byte, xid uint32, i int) []byte {
	if i < len(c.PutGroups) {
		return openflow.AppendGroupPut(b, xid, &c.PutGroups[i])
	}
	if i -= len(c.PutGroups); i < c.Upserts() {
		f := c.upsert(i)
		return openflow.AppendFlowAdd(b, xid, &f)
	}
	if i -= c.Upserts(); i < len(c.Delete) {
		return openflow.AppendFlowDelete(b, xid, &c.Delete[i])
	}
	return openflow.AppendGroupDelete(b, xid, c.DeleteGroups[i-len(c.Delete)])
}

// itemText names the i-th message of the bundle.
func (c *Change) itemText(i int) string {
	if i < 0 {
		return "bundle"
	}
	if i < len(c.PutGroups) {
		return "group " + c.PutGroups[i].String()
	}
	if i -= len(c.PutGroups); i < c.Upserts() {
		return "flow " + c.upsert(i).String()
	}
	if i -= c.Upserts(); i < len(c.Delete) {
		return "delete of flow " + c.Delete[i].String()
	}
	return fmt.Sprintf("delete of group %d", c.DeleteGroups[i-len(c.Delete)])
}

func (c *Change) firstRefused(refused map[int]error) error {
	first := -2
	for i := range refused {
		if first == -2 || i < first {
			first = i
		}
	}
	if first == -2 {
		return nil
	}
	return &ChangeError{shorten(c.itemText(first)), refused[first]}
}
