package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// reader follows the collector's log, in however many lives of it.
type reader struct {
	mu   sync.Mutex // Guards seen.
	seen []invariant.Key
}

func (r *reader) run(ctx context.Context, w *World) {
	after := uint64(0)
	for ctx.Err() == nil {
		_ = tail(ctx, w, &auditv1.TailRequest{After: after, Follow: true, Batch: 512}, func(rec *auditv1.Record) {
			after = rec.GetCursor()
			r.mu.Lock()
			defer r.mu.Unlock()
			r.seen = append(r.seen, keyOf(rec))
		})
		select {
		case <-time.After(50 * time.Millisecond): // Before the next try.
		case <-ctx.Done():
		}
	}
}

func (r *reader) all() []invariant.Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]invariant.Key(nil), r.seen...)
}

func keyOf(r *auditv1.Record) invariant.Key {
	return invariant.Key{Cursor: r.GetCursor(), Node: r.GetNode(), Boot: r.GetBoot(), Sequence: r.GetSequence()}
}

// tail reads records until the stream ends.
func tail(ctx context.Context, w *World, req *auditv1.TailRequest, each func(*auditv1.Record)) error {
	call, err := w.Audit().Tail(ctx, req)
	if err != nil {
		return err
	}
	for {
		resp, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, r := range resp.GetRecords() {
			each(r)
		}
		if r := resp.GetRecord(); r != nil {
			each(r)
		}
	}
}

// records are what the collector holds.
func records(ctx context.Context, w *World) ([]invariant.Record, error) {
	var out []invariant.Record
	err := tail(ctx, w, &auditv1.TailRequest{Batch: 4096}, func(r *auditv1.Record) { out = append(out, recordOf(r)) })
	return out, err
}

func recordOf(r *auditv1.Record) invariant.Record {
	out := invariant.Record{Key: keyOf(r), Kind: "other"}
	switch e := r.GetEvent().GetKind().(type) {
	case *auditv1.Event_Packet:
		p := e.Packet
		out.Kind, out.Count, out.Table, out.AppliedTo, out.Reason = "packet", max(1, p.GetCount()), p.GetTable(), p.GetAppliedTo(), p.GetReason()
		out.At = p.GetFirst().AsTime()
		out.Direction = strings.ToLower(strings.TrimPrefix(p.GetDirection().String(), "DIRECTION_"))
		out.Action = strings.ToLower(strings.TrimPrefix(p.GetAction().String(), "ACTION_"))
		for _, ref := range p.GetPolicies() {
			out.Policies = append(out.Policies, ref.GetName())
		}
	case *auditv1.Event_Loss:
		l := e.Loss
		out.Kind, out.Count, out.Reason = "loss", l.GetCount(), l.GetReason()
		out.Stage = strings.TrimPrefix(l.GetStage().String(), "LOSS_STAGE_")
		out.Over = invariant.Interval{From: l.GetFrom().AsTime(), To: l.GetTo().AsTime()}
		out.At = out.Over.To
		if l.GetPolicy() != nil {
			out.Policies = []string{l.GetPolicy().GetName()}
		}
	}
	return out
}

// unwritten says what sinks have not written yet; empty if they have all.
func unwritten(ctx context.Context, w *World) string {
	st, err := w.Audit().Stats(ctx, &auditv1.StatsRequest{})
	if err != nil {
		return err.Error()
	}
	for _, s := range st.GetSinks() {
		if s.GetCursor() < st.GetNewestCursor() {
			return fmt.Sprintf("%s is at %d of %d: %s", s.GetName(), s.GetCursor(), st.GetNewestCursor(), s.GetLastError())
		}
	}
	return ""
}
