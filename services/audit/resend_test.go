package audit

import (
	"math/rand/v2"
	"testing"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// A node that sends again, skips, goes back and begins another stream while the one
// before sends: each number is stored once, in order, with the event that was sent under
// it, and what was skipped is stated.
func TestResends(t *testing.T) {
	c := start(t, nil)
	r := rand.New(rand.NewPCG(3, 4))
	var high, stored uint64
	st := c.report("n1", "b1")
	st.acked(0)
	skipped := uint64(0)
	for range 150 {
		if r.IntN(5) == 0 { // The older one has a batch on its way, which is stored or not.
			older := st
			first := high + 1
			older.batch(first, drop(uint32(first)), drop(uint32(first+1)))
			st = c.report("n1", "b1")
			resp, err := st.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.GetAckedSequence(); got != high && got != high+2 {
				t.Fatalf("a stream is told %d, want %d or %d", got, high, high+2)
			}
			stored += resp.GetAckedSequence() - high
			high = resp.GetAckedSequence()
		}
		first := uint64(max(1, int64(high)+1-int64(r.IntN(12))))
		if r.IntN(4) == 0 {
			first = high + 1 + uint64(r.IntN(4))
		}
		events := make([]*auditv1.Event, 1+r.IntN(6))
		for i := range events {
			events[i] = drop(uint32(first) + uint32(i))
		}
		st.batch(first, events...)
		if last := first + uint64(len(events)) - 1; last > high {
			if first > high+1 {
				skipped += first - high - 1
			}
			stored += last - max(first, high+1) + 1
			high = last
			st.acked(high)
		}
	}
	next, got, missing := uint64(1), uint64(0), uint64(0)
	call, err := auditv1.NewAuditServiceClient(c.dial(nil)).Tail(t.Context(), &auditv1.TailRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := call.Recv()
		if err != nil {
			break
		}
		rec := resp.GetRecord()
		if l := rec.GetEvent().GetLoss(); rec.GetSequence() == 0 {
			missing += l.GetCount()
			next += l.GetCount()
			continue
		}
		if rec.GetSequence() != next || rec.GetEvent().GetPacket().GetSourcePort() != uint32(next) {
			t.Fatalf("record %d of sequence %d, want %d: %v", rec.GetCursor(), rec.GetSequence(), next, rec)
		}
		next++
		got++
	}
	if got != stored || missing != skipped || skipped == 0 {
		t.Errorf("%d stored and %d stated as missing, want %d and %d", got, missing, stored, skipped)
	}
}
