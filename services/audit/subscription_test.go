package audit

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage/eventlog"
)

// fill stores so many drops, with their sequence for source port; every twentieth is
// an allow.
func (c *collector) fill(s *stream, sequence *uint64, count int) {
	c.Helper()
	for count > 0 {
		n := min(count, 5000)
		events := make([]*auditv1.Event, n)
		for i := range events {
			*sequence++
			if events[i] = drop(uint32(*sequence % 60_000)); *sequence%20 == 0 {
				events[i] = allow(uint32(*sequence % 60_000))
			}
		}
		s.batch(*sequence-uint64(n)+1, events...)
		s.acked(*sequence)
		count -= n
	}
}

func (c *collector) subscribe(req *auditv1.TailRequest) (grpc.ServerStreamingClient[auditv1.TailResponse], context.CancelFunc) {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	call, err := auditv1.NewAuditServiceClient(c.dial(nil)).Tail(ctx, req)
	if err != nil {
		c.Fatal(err)
	}
	return call, cancel
}

// TestStuckSubscriber: of fifty who follow, one reads nothing for the whole time. The
// others have everything meanwhile, and it then has every record, in order, once.
func TestStuckSubscriber(t *testing.T) {
	const others, records = 49, 4_000 // More than the ring holds here, and than windows take.
	c := start(t, func(c *Config) { c.NPLogDir, c.JSONFile = "", "" })
	c.feed.ring = 1024
	s, sequence := c.report("n1", "b1"), uint64(0)
	stuck, cancel := c.subscribe(&auditv1.TailRequest{Follow: true})
	defer cancel()
	inOrder := func(call grpc.ServerStreamingClient[auditv1.TailResponse], step uint64) error {
		for next := step; next <= records; {
			r, err := call.Recv()
			if err != nil {
				return err
			}
			if r.GetSkipped() > 0 || r.GetRecord() != nil && r.GetCursor() != next {
				return fmt.Errorf("record %d before %d: %v", r.GetCursor(), next, r)
			}
			if r.GetRecord() != nil {
				next += step
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	for i := range others {
		req, step := &auditv1.TailRequest{Follow: true}, uint64(1)
		if i >= 5 { // Most are selective.
			req.Filter, step = &auditv1.RecordFilter{Action: policyv1.Action_ACTION_ALLOW}, 20
		}
		call, cancel := c.subscribe(req)
		defer cancel()
		wg.Go(func() {
			if err := inOrder(call, step); err != nil {
				t.Errorf("subscriber %d: %v", i, err)
			}
		})
	}
	c.fill(s, &sequence, records)
	wg.Wait()
	if err := inOrder(stuck, 1); err != nil {
		t.Errorf("the stuck one: %v", err)
	}
	c.fill(s, &sequence, 10) // It follows as all do.
	for range 10 {
		if r, err := stuck.Recv(); err != nil || r.GetRecord() == nil {
			t.Fatal(r, err)
		}
	}
}

// TestTellsCursor: who is sent little is told how far the log was read: after many
// records that do not match, and behind the newest; and resumes there.
func TestTellsCursor(t *testing.T) {
	t.Parallel()
	c := start(t, func(c *Config) { c.NPLogDir, c.JSONFile = "", "" })
	s, sequence := c.report("n1", "b1"), uint64(0)
	c.fill(s, &sequence, 80_000)
	none := &auditv1.RecordFilter{Node: "n2"}
	call, cancel := c.subscribe(&auditv1.TailRequest{Follow: true, Filter: none})
	first, err := call.Recv()
	if err != nil || first.GetRecord() != nil || first.GetCursor() < tellRecords || first.GetCursor() > 2*tellRecords {
		t.Fatalf("after %d records: %v %v", tellRecords, first, err)
	}
	for told := first.GetCursor(); told < 80_000; {
		r, err := call.Recv()
		if err != nil || r.GetRecord() != nil || r.GetCursor() <= told {
			t.Fatalf("behind %d: %v %v", told, r, err)
		}
		told = r.GetCursor()
	}
	cancel()

	call, cancel = c.subscribe(&auditv1.TailRequest{After: 80_000, Follow: true, Filter: none})
	defer cancel()
	begun := time.Now()
	c.fill(s, &sequence, 1)
	told := uint64(80_000)
	for i := 0; told < 80_003; i++ {
		r, err := call.Recv()
		if err != nil || r.GetRecord() != nil || r.GetCursor() <= told {
			t.Fatalf("behind %d: %v %v", told, r, err)
		}
		if told = r.GetCursor(); i == 0 {
			begun = time.Now()
			c.fill(s, &sequence, 2)
		}
	}
	// The first was not later than we saw it, by whatever it took to come.
	if d := time.Since(begun); d < tellInterval/2 {
		t.Errorf("told again after %v", d)
	}
	if got := c.tailRaw(&auditv1.TailRequest{Filter: none}); len(got) == 0 || got[len(got)-1].GetCursor() != 80_003 {
		t.Errorf("without follow: %v", got)
	}
}

// tailRaw is every response to a request that does not follow.
func (c *collector) tailRaw(req *auditv1.TailRequest) (out []*auditv1.TailResponse) {
	c.Helper()
	call, cancel := c.subscribe(req)
	defer cancel()
	for {
		r, err := call.Recv()
		if err == io.EOF {
			return out
		}
		if err != nil {
			c.Fatal(err)
		}
		out = append(out, r)
	}
}

// TestResume: from every cursor the next record is exactly the one behind it, from
// the ring and from the log.
func TestResume(t *testing.T) {
	c := start(t, func(c *Config) { c.NPLogDir, c.JSONFile = "", "" })
	s, sequence := c.report("n1", "b1"), uint64(0)
	c.fill(s, &sequence, 20_000)
	for _, follow := range []bool{false, true} {
		for _, after := range []uint64{0, 1, 127, 128, 129, 999, 1000, 3_616, 3_617, 10_000, 19_871, 19_872, 19_999} {
			call, cancel := c.subscribe(&auditv1.TailRequest{After: after, Follow: follow, Limit: 300})
			for want := after + 1; want <= min(after+300, 20_000); want++ {
				r, err := call.Recv()
				if err != nil || r.GetCursor() != want || r.GetRecord().GetCursor() != want || r.GetRecord().GetSequence() != want || r.GetRecord().GetNode() != "n1" ||
					r.GetRecord().GetReceived() == nil || r.GetRecord().GetEvent().GetPacket().GetSourcePort() != uint32(want%60_000) {
					t.Fatalf("after %d, follow %v: %v %v, want %d", after, follow, r, err, want)
				}
			}
			cancel()
		}
	}
}

// TestTellsSkipped: what retention took from under a subscriber is stated.
func TestTellsSkipped(t *testing.T) {
	c := start(t, func(c *Config) { c.NPLogDir, c.JSONFile, c.RetentionAge = "", "", time.Hour })
	c.now = func() time.Time { return time.Now().Add(-2 * time.Hour) }
	s, sequence := c.report("n1", "b1"), uint64(0)
	c.fill(s, &sequence, 10)
	c.stop()
	c = start(t, func(cfg *Config) {
		cfg.Dir, cfg.NPLogDir, cfg.JSONFile, cfg.RetentionAge = filepath.Join(c.dir, "log"), "", "", time.Hour
	}) // Retention runs when the log begins to.
	s = c.report("n1", "b1")
	c.fill(s, &sequence, 2)
	got := c.tailRaw(&auditv1.TailRequest{After: 4})
	if len(got) != 3 || got[0].GetSkipped() != 6 || got[0].GetCursor() != 4 || got[0].GetRecord() != nil || got[1].GetCursor() != 11 || got[2].GetCursor() != 12 {
		t.Errorf("%v", got)
	}
	if got := c.tailRaw(&auditv1.TailRequest{}); len(got) != 2 {
		t.Errorf("from the beginning: %v", got)
	}
}

// TestSince: not before the first record that arrived within the slack, though the
// log be long; and late events are found.
func TestSince(t *testing.T) {
	c := start(t, func(c *Config) { c.NPLogDir, c.JSONFile = "", "" })
	now := day
	// A batch an hour: the hours 0 to 99.
	for h := range 100 {
		result := make(chan error, 1)
		e := drop(uint32(h))
		e.GetPacket().First = timestamppb.New(now)
		if h == 80 {
			e.GetPacket().First = timestamppb.New(now.Add(-70 * time.Hour)) // Waited in a spool.
		}
		data, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.log.Submit(t.Context(), eventlog.Batch{Node: "n1", Boot: "b", First: uint64(h + 1), Events: []eventlog.Event{{Data: data}}, Received: now},
			func(_ eventlog.Result, err error) { result <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
	}
	for hour, want := range map[int]uint64{-5: 0, 0: 0, 1: 0, 2: 1, 50: 49, 99: 98, 200: 100} {
		if got, err := c.feed.since(day.Add(time.Duration(hour) * time.Hour)); err != nil || got != want {
			t.Errorf("since hour %d: behind cursor %d (%v), want %d", hour, got, err, want)
		}
	}
	ports := func(since time.Duration) (out []uint32) {
		for _, r := range c.tailRaw(&auditv1.TailRequest{Filter: &auditv1.RecordFilter{Since: timestamppb.New(day.Add(since))}}) {
			if r.GetRecord() != nil {
				out = append(out, r.GetRecord().GetEvent().GetPacket().GetSourcePort())
			}
		}
		return out
	}
	if got := ports(97 * time.Hour); !slices.Equal(got, []uint32{97, 98, 99}) {
		t.Errorf("%v", got)
	}
	if got := ports(10 * time.Hour); len(got) != 90 || !slices.Contains(got, 80) {
		t.Errorf("%v", got)
	}
}

// TestTooManySubscribers: who comes beyond is told so, and let in when another leaves.
func TestTooManySubscribers(t *testing.T) {
	c := start(t, func(c *Config) { c.MaxSubscribers = 4 })
	report, sequence := c.report("n1", "b1"), uint64(0)
	c.fill(report, &sequence, 1)
	var leave context.CancelFunc
	for range 2 {
		call, cancel := c.subscribe(&auditv1.TailRequest{Follow: true})
		defer cancel()
		if _, err := call.Recv(); err != nil {
			t.Fatal(err)
		}
		leave = cancel
	}
	call, cancel := c.subscribe(&auditv1.TailRequest{Follow: true})
	defer cancel()
	if _, err := call.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("beyond the limit: %v", err)
	}
	leave()
	eventually(t, "a seat", func() bool {
		call, cancel := c.subscribe(&auditv1.TailRequest{Follow: true})
		defer cancel()
		_, err := call.Recv()
		return err == nil
	})
}
