package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/storage/eventlog"
)

// TestBatches: records that come together are those that come one by one, whatever is
// asked for, and their responses tell where to resume.
func TestBatches(t *testing.T) {
	for _, ring := range []uint64{ringRecords, 100} { // Of the ring, and of the log.
		testBatches(t, ring)
	}
}

func testBatches(t *testing.T, ring uint64) {
	c := start(t, nil)
	c.feed.ring = ring
	s := c.report("n1", "b1")
	s.acked(0)
	const n = 1200
	for i := range uint64(n / 10) {
		var events []*auditv1.Event
		for j := range uint32(10) {
			if e := drop(uint32(i)*10 + j); j%3 > 0 {
				events = append(events, e)
			} else {
				events = append(events, allow(uint32(i)*10+j))
			}
		}
		s.batch(i*10+1, events...)
	}
	s.acked(n)
	client := auditv1.NewAuditServiceClient(c.dial(nil))
	tail := func(req *auditv1.TailRequest) (all []*auditv1.Record, cursor uint64, responses int) {
		t.Helper()
		stream, err := client.Tail(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return all, cursor, responses
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.GetRecord() != nil && req.GetBatch() > 0 || len(r.GetRecords()) > int(req.GetBatch()) {
				t.Fatalf("a response with %d records, and one apart: %v", len(r.GetRecords()), r.GetRecord() != nil)
			}
			if r.GetRecord() != nil {
				all = append(all, r.GetRecord())
			}
			all = append(all, r.GetRecords()...)
			responses++
			if cursor = r.GetCursor(); len(all) > 0 && cursor < all[len(all)-1].GetCursor() {
				t.Fatalf("cursor %d behind the record %d", cursor, all[len(all)-1].GetCursor())
			}
		}
	}
	for name, req := range map[string]*auditv1.TailRequest{
		"all":      {},
		"limit":    {Limit: 377},
		"from":     {After: 434},
		"filtered": {Filter: &auditv1.RecordFilter{Policy: "allow-web"}},
	} {
		one, _, _ := tail(req)
		for _, size := range []uint32{1, 7, 500, 1 << 30} {
			req := proto.CloneOf(req)
			req.Batch = size
			got, cursor, responses := tail(req)
			if !slices.EqualFunc(got, one, func(a, b *auditv1.Record) bool { return proto.Equal(a, b) }) {
				t.Fatalf("%s by %d: %d records, want %d", name, size, len(got), len(one))
			}
			if size == 7 && responses < len(one)/7 || size == 500 && responses > len(one)/8 {
				t.Errorf("%s by %d: %d responses of %d records", name, size, responses, len(one))
			}
			if last := one[len(one)-1].GetCursor(); cursor < last {
				t.Errorf("%s by %d: the cursor is %d, the last record %d", name, size, cursor, last)
			}
		}
	}
}

// BenchmarkReplay is a new subscriber that is sent a log of a million records, by
// batches, over TCP; an operation is a record, decoded by the generated code.
func BenchmarkReplay(b *testing.B) {
	s, events, stop := startBench(b, 1000)
	var batch eventlog.Batch
	for _, e := range events {
		batch.Events = append(batch.Events, eventlog.Event{Data: e})
	}
	const records = 1_000_000
	for i := range records / len(events) {
		batch.Node, batch.Boot, batch.First, batch.Received = fmt.Sprint("n", i%8), "b", uint64(i/8*len(events)+1), time.Now()
		if _, err := s.log.Append(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
	}
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(8<<20))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	rounds := 0
	for b.Loop() {
		rounds++
		stream, err := auditv1.NewAuditServiceClient(conn).Tail(b.Context(), &auditv1.TailRequest{Batch: 1000})
		if err != nil {
			b.Fatal(err)
		}
		got := 0
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			got += len(r.GetRecords())
		}
		if got != records {
			b.Fatalf("%d records of %d", got, records)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(records*rounds)/b.Elapsed().Seconds(), "records/s")
	stop()
}

// TestEncodeResponse: what is written by hand is what the generated code would.
func TestEncodeResponse(t *testing.T) {
	data, err := proto.Marshal(drop(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []eventlog.Entry{
		{Cursor: 1, Node: "n1", Boot: "b", Sequence: 1 << 40, Received: day.Add(123), Data: data},
		{Cursor: 1 << 60, Received: time.Unix(0, 0), Data: data},
		{Cursor: 300, Node: "n1", Received: time.Unix(-5, 7), Data: data},
	} {
		var got auditv1.TailResponse
		if err := proto.Unmarshal(encodeResponse(&e), &got); err != nil {
			t.Fatal(err)
		}
		r, err := recordOf(&e)
		if err != nil {
			t.Fatal(err)
		}
		if want := (&auditv1.TailResponse{Cursor: e.Cursor, Record: r}); !proto.Equal(&got, want) {
			t.Errorf("%v, want %v", &got, want)
		}
	}
}
