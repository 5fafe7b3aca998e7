package eventlog

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// dayRecords is a day at 1,000 a second; WEIR_EVENTLOG_DAY_RECORDS makes it shorter
// or whole (86400000).
const dayRecords = 2_000_000

// BenchmarkDay writes a day of records, in a faster clock: of eight nodes, in
// batches of what each has in 100 ms of 125 records a second and more. It is
// replayed to a new reader, found again by time, and trimmed to the last quarter by
// age. An operation is a day; bytes are all that is in the folder.
func BenchmarkDay(b *testing.B) {
	records := uint64(dayRecords)
	if text := os.Getenv("WEIR_EVENTLOG_DAY_RECORDS"); text != "" {
		var err error
		if records, err = strconv.ParseUint(text, 10, 64); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		day(b, records)
	}
}

func day(b *testing.B, records uint64) {
	const nodes, perBatch = 8, 100
	records -= records % (nodes * perBatch)
	dir := b.TempDir()
	l, stop := startDay(b, Config{Dir: dir})
	begin := time.Now().Add(-24 * time.Hour)
	begun := time.Now()
	var failed atomic.Value
	for n := uint64(0); n < records; n += perBatch {
		batch := Batch{Node: fmt.Sprint("n", n/perBatch%nodes), Boot: "b1", First: n/perBatch/nodes*perBatch + 1,
			Received: begin.Add(time.Duration(float64(n) / float64(records) * float64(24*time.Hour)))}
		for i := range uint64(perBatch) { // As a drop is encoded: about 110 bytes, most of them like the last ones.
			batch.Events = append(batch.Events, Event{Data: fmt.Appendf(nil,
				"drop ingress K8sNetworkPolicy shop/deny-all rule deny 10.%d.%d.%d:%d 10.0.7.9:443 tcp shop/db web/client %016x", n>>16&255, n>>8&255, n&255, 1024+i*7, n+i)})
		}
		if err := l.Submit(b.Context(), batch, func(r Result, err error) {
			if err == nil && r.Stored != perBatch {
				err = fmt.Errorf("%+v", r)
			}
			if err != nil {
				failed.CompareAndSwap(nil, err)
			}
		}); err != nil {
			b.Fatal(err)
		}
	}
	stop() // What waits is written.
	wrote := time.Since(begun)
	if err, _ := failed.Load().(error); err != nil {
		b.Fatal(err)
	}
	bytes := diskUse(b, dir)

	l, stop = startDay(b, Config{Dir: dir})
	begun = time.Now()
	if n := replay(b, l, 0); n != records {
		b.Fatalf("%d of %d records replayed", n, records)
	}
	replayed := time.Since(begun)
	cursor, err := l.AfterTime(begin.Add(12 * time.Hour))
	if slack := uint64(float64(records) * timeSlack.Hours() / 24); err != nil || cursor+slack+nodes*perBatch < records/2 || cursor > records/2 {
		b.Fatalf("the middle of the day is behind %d of %d, %v", cursor, records, err)
	}
	stop()

	begun = time.Now()
	l, stop = startDay(b, Config{Dir: dir, RetentionAge: time.Since(begin.Add(18 * time.Hour))})
	waitTrimmed(b, l, records*3/4-nodes*perBatch, records)
	trimmed := time.Since(begun)
	if n, err := l.Behind(0); err != nil || n > records/4+nodes*perBatch || n < records/4-records/100-nodes*perBatch {
		b.Fatalf("%d of %d records are left, %v", n, records, err)
	}
	stop()
	b.ReportMetric(float64(records), "records")
	b.ReportMetric(float64(records)/wrote.Seconds(), "written/s")
	b.ReportMetric(float64(records)/replayed.Seconds(), "replayed/s")
	b.ReportMetric(float64(bytes)/float64(records), "B/record")
	b.ReportMetric(trimmed.Seconds()*1000, "trim-ms")
	if rate := float64(records) / replayed.Seconds(); rate < 500_000 {
		b.Errorf("%.0f records a second are replayed", rate)
	}
}

func startDay(b *testing.B, cfg Config) (*Log, func()) {
	l, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); l.Run(ctx) }()
	return l, func() {
		cancel()
		<-ran
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// replay reads to the end, and wants every record of every node once.
func replay(b *testing.B, l *Log, after uint64) (n uint64) {
	next := make(map[string]uint64)
	r := l.NewReader(after)
	for {
		e, ok, err := r.Next()
		if err != nil {
			b.Fatal(err)
		}
		if !ok {
			return n
		}
		if next[e.Node]++; e.Sequence != next[e.Node] {
			b.Fatalf("node %s: %d, want %d", e.Node, e.Sequence, next[e.Node])
		}
		n++
	}
}

func waitTrimmed(b *testing.B, l *Log, least, records uint64) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if oldest, newest := l.Range(); oldest >= least && newest == records {
			return
		} else if time.Now().After(deadline) {
			b.Fatalf("oldest %d after a minute", oldest)
		}
	}
}

func diskUse(b *testing.B, dir string) (n int64) {
	if err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				n += info.Size()
			}
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return n
}
