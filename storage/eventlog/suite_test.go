package eventlog

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// site is where a log is, over all its lives.
type site struct {
	*testing.T
	local bool
	cfg   func(Config) Config
}

// open opens the log.
func (p *site) open(cfg Config) *Log {
	p.Helper()
	l, err := Open(p.cfg(cfg))
	if err != nil {
		p.Fatal(err)
	}
	return l
}

// start opens and runs it.
func (p *site) start(cfg Config) (l *Log, stop func()) {
	p.Helper()
	l = p.open(cfg)
	return l, run(p.T, l)
}

// suite runs a test on every kind of log.
func suite(t *testing.T, test func(*site)) {
	t.Run("pebble", func(t *testing.T) {
		dir := t.TempDir()
		test(&site{t, true, func(c Config) Config {
			c.Dir, c.MinFree, c.MemTableBytes = dir, 1, 4<<20
			return c
		}})
	})
	t.Run("nats", func(t *testing.T) {
		url := natsServer(t)
		test(&site{t, false, func(c Config) Config {
			c.NATS = &NATSConfig{Servers: []string{url}, Stream: "weir-audit", Replicas: 1, Collector: "c1"}
			return c
		}})
	})
}

// natsServer is one server, in this process.
func natsServer(t *testing.T) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{ServerName: "s1", Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	return s.ClientURL()
}

// entries are what comes after a cursor. Their data are theirs.
func entries(t *testing.T, l *Log, after uint64) []Entry {
	t.Helper()
	r := l.NewReader(after)
	var out []Entry
	for {
		e, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out
		}
		if e.Cursor <= after || r.After() != e.Cursor {
			t.Fatalf("cursor %d follows %d; after is %d", e.Cursor, after, r.After())
		}
		after = e.Cursor
		e.Data = []byte(string(e.Data))
		out = append(out, e)
	}
}

// dump is what comes after a cursor: "node/boot#sequence data".
func dump(t *testing.T, l *Log, after uint64) []string {
	t.Helper()
	var out []string
	for _, e := range entries(t, l, after) {
		data := string(e.Data)
		if e.Sequence == 0 {
			var event auditv1.Event
			if err := proto.Unmarshal(e.Data, &event); err != nil {
				t.Fatal(err)
			}
			data = fmt.Sprintf("%s %d", event.GetLoss().GetStage(), event.GetLoss().GetCount())
		}
		out = append(out, fmt.Sprintf("%s/%s#%d %s", e.Node, e.Boot, e.Sequence, data))
	}
	return out
}

func wantDump(t *testing.T, l *Log, after uint64, want ...string) {
	t.Helper()
	if got := dump(t, l, after); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("after %d:\n%s\nwant:\n%s", after, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRecordsAreNumberedAndRead(t *testing.T) {
	suite(t, func(p *site) {
		l, stop := p.start(Config{})
		wantDump(p.T, l, 0)
		if oldest, newest := l.Range(); oldest != 0 || newest != 0 {
			p.Errorf("range %d to %d of an empty log", oldest, newest)
		}
		mustAppend(p.T, l, batch("n1", 1, "a", "b", "c"))
		mustAppend(p.T, l, batch("n2.example", 1, "x"))
		mustAppend(p.T, l, batch("n1", 4, "d"))
		want := []string{"n1/b1#1 a", "n1/b1#2 b", "n1/b1#3 c", "n2.example/b1#1 x", "n1/b1#4 d"}
		for range 2 {
			all := entries(p.T, l, 0)
			wantDump(p.T, l, 0, want...)
			for i, e := range all {
				wantDump(p.T, l, e.Cursor, want[i+1:]...)
				if p.local && e.Cursor != uint64(i+1) {
					p.Errorf("cursor %d of record %d", e.Cursor, i+1)
				}
			}
			wantDump(p.T, l, all[4].Cursor+99<<20)
			if oldest, newest := l.Range(); oldest != all[0].Cursor || newest != all[4].Cursor {
				p.Errorf("range %d to %d, want %d to %d", oldest, newest, all[0].Cursor, all[4].Cursor)
			}
			stop()
			l, stop = p.start(Config{})
		}
	})
}

func TestReaderGoesOnAndIsWoken(t *testing.T) {
	suite(t, func(p *site) {
		l, _ := p.start(Config{})
		wake, stop := l.Follow()
		defer stop()
		r := l.NewReader(0)
		for i := range 3 {
			if _, ok, _ := r.Next(); ok {
				p.Fatal("a record from nowhere")
			}
			mustAppend(p.T, l, batch("n1", uint64(i+1), "a"))
			select {
			case <-wake:
			case <-time.After(10 * time.Second):
				p.Fatal("not woken")
			}
			if e, ok, err := r.Next(); !ok || err != nil || e.Sequence != uint64(i+1) {
				p.Fatalf("%v %v %v", e, ok, err)
			}
		}
	})
}

func TestSequences(t *testing.T) {
	type step struct {
		b    Batch
		want Result
	}
	suite(t, func(p *site) {
		l, stop := p.start(Config{})
		for i, s := range []step{
			{batch("n1", 1, "a", "b"), Result{High: 2, Stored: 2}},
			{batch("n1", 1, "a", "b"), Result{High: 2, Repeated: 2}},
			{batch("n1", 2, "b", "c"), Result{High: 3, Stored: 1, Repeated: 1}},
			{batch("n1", 7, "g"), Result{High: 7, Stored: 1, Missing: 3}},
			{batch("n1", 4, "d"), Result{High: 7, Repeated: 1}},
			{batch("n2", 3, "z"), Result{High: 3, Stored: 1, Missing: 2}},
		} {
			if got := mustAppend(p.T, l, s.b); got != s.want {
				p.Errorf("step %d: %+v, want %+v", i, got, s.want)
			}
		}
		want := []string{"n1/b1#1 a", "n1/b1#2 b", "n1/b1#3 c", "n1/b1#0 LOSS_STAGE_TRANSPORT 3", "n1/b1#7 g",
			"n2/b1#0 LOSS_STAGE_TRANSPORT 2", "n2/b1#3 z"}
		wantDump(p.T, l, 0, want...)
		before := l.Stats()
		if before.Duplicates != 4 || before.Kept != 5 {
			p.Errorf("%+v", before)
		}
		stop()

		// After a restart repeats are still repeats, and counts still count.
		l, _ = p.start(Config{})
		wantDump(p.T, l, 0, want...)
		if !p.local {
			before.Duplicates = 0 // What each collector counts; after a clean stop the local log knows.
		}
		if after := l.Stats(); fmt.Sprint(after) != fmt.Sprint(before) {
			p.Errorf("stats %+v, were %+v", after, before)
		}
		if got := mustAppend(p.T, l, batch("n1", 7, "g", "h")); got != (Result{High: 8, Stored: 1, Repeated: 1}) {
			p.Errorf("%+v", got)
		}
		if l.High("n1", "b1") != 8 || l.High("n1", "b2") != 0 {
			p.Error("highest sequences are wrong")
		}
		for _, first := range []uint64{0, ^uint64(0)} {
			if _, err := l.Append(p.Context(), batch("n1", first, "a")); !errors.Is(err, ErrSequence) {
				p.Errorf("first %d: %v", first, err)
			}
		}
	})
}

func TestRepeatsWithinOneCommit(t *testing.T) {
	suite(t, func(p *site) {
		l := p.open(Config{})
		// Queued before the writer runs, they are one group.
		results := make(chan Result, 3)
		for _, b := range []Batch{batch("n1", 1, "a", "b"), batch("n1", 2, "b", "c"), batch("n1", 5, "e")} {
			if err := l.Submit(p.Context(), b, func(r Result, err error) { results <- r }); err != nil {
				p.Fatal(err)
			}
		}
		run(p.T, l)
		for _, want := range []Result{{High: 2, Stored: 2}, {High: 3, Stored: 1, Repeated: 1}, {High: 5, Stored: 1, Missing: 1}} {
			if got := <-results; got != want {
				p.Errorf("%+v, want %+v", got, want)
			}
		}
		wantDump(p.T, l, 0, "n1/b1#1 a", "n1/b1#2 b", "n1/b1#3 c", "n1/b1#0 LOSS_STAGE_TRANSPORT 1", "n1/b1#5 e")
	})
}

func TestBootsAreBounded(t *testing.T) {
	suite(t, func(p *site) {
		l, _ := p.start(Config{})
		for i := range maxBoots + 3 {
			b := batch("n1", 1, "a")
			b.Boot, b.Received = fmt.Sprint("boot", i), time.Unix(int64(i+1), 0)
			mustAppend(p.T, l, b)
		}
		if l.High("n1", "boot2") != 0 || l.High("n1", "boot3") != 1 || len(l.positions.nodes["n1"].boots) != maxBoots {
			p.Errorf("%d boots", len(l.positions.nodes["n1"].boots))
		}
	})
}

func TestRetentionByAge(t *testing.T) {
	suite(t, func(p *site) {
		l, stop := p.start(Config{})
		now := time.Now()
		for i := range 10 {
			b := batch("n1", uint64(2*i+1), "a", "b")
			b.Received = now.Add(time.Duration(i-10) * time.Hour)
			mustAppend(p.T, l, b)
		}
		all := entries(p.T, l, 0)
		slow := l.NewReader(0)
		for range 4 {
			if _, ok, err := slow.Next(); !ok || err != nil {
				p.Fatal(err)
			}
		}
		if err := l.Cursors().Store("slow", slow.After()); err != nil {
			p.Fatal(err)
		}
		stop()
		l, stop = p.start(Config{RetentionAge: 3*time.Hour + time.Minute})
		mustAppend(p.T, l, batch("n2", 1, "x")) // Run has begun, and removed what is old.
		if oldest, _ := l.Range(); oldest != all[14].Cursor {
			p.Errorf("oldest %d, want %d", oldest, all[14].Cursor)
		}
		if got := dump(p.T, l, 0); len(got) != 7 || got[0] != "n1/b1#15 a" {
			p.Errorf("%v", got)
		}
		after, err := l.Cursors().Load("slow")
		if err != nil || after != all[3].Cursor {
			p.Fatalf("cursor %d, want %d, %v", after, all[3].Cursor, err)
		}
		for from, skipped := range map[uint64]uint64{0: 14, after: 10, all[13].Cursor: 0} {
			r := l.NewReader(from)
			if e, ok, err := r.Next(); err != nil || !ok || e.Cursor != all[14].Cursor || r.Skipped() != skipped {
				p.Errorf("from %d: cursor %d, skipped %d, want %d, %v", from, e.Cursor, r.Skipped(), skipped, err)
			}
			if n, err := l.Behind(from); n != 7 || err != nil {
				p.Errorf("%d are behind %d, %v", n, from, err)
			}
		}
		stop()

		// All is old: the log is empty, and remembers.
		l, stop = p.start(Config{RetentionAge: time.Nanosecond})
		if got := mustAppend(p.T, l, batch("n1", 20, "b")); got.Repeated != 1 {
			p.Errorf("%+v", got)
		}
		if s := l.Stats(); s.Oldest != 0 || s.Newest != 0 || s.Kept != 21 {
			p.Errorf("%+v", s)
		}
		wantDump(p.T, l, 0)
		stop()
		l, _ = p.start(Config{})
		mustAppend(p.T, l, batch("n1", 21, "c"))
		wantDump(p.T, l, 0, "n1/b1#21 c")
		r := l.NewReader(all[3].Cursor)
		if _, ok, err := r.Next(); !ok || err != nil || r.Skipped() != 17 && p.local {
			p.Errorf("skipped %d, %v", r.Skipped(), err)
		}
	})
}

func TestRetentionBySize(t *testing.T) {
	suite(t, func(p *site) {
		l, stop := p.start(Config{})
		random := make([]byte, 64<<10)
		state := uint64(1)
		for i := range 256 {
			for j := range random { // Does not compress.
				state = state*6364136223846793005 + 1442695040888963407
				random[j] = byte(state >> 56)
			}
			mustAppend(p.T, l, batch("n1", uint64(i+1), string(random)))
		}
		stop()
		l, _ = p.start(Config{RetentionBytes: 4 << 20})
		mustAppend(p.T, l, batch("n1", 257, "end"))
		if kept := len(entries(p.T, l, 0)); kept < 32 || kept > 82 {
			p.Errorf("%d records of 64 KiB are kept", kept)
		}
	})
}

func TestBehindAndAfterTime(t *testing.T) {
	suite(t, func(p *site) {
		l, _ := p.start(Config{})
		begin := time.Now().Add(-10 * time.Hour).Truncate(time.Second)
		for i := range 10 {
			b := batch("n1", uint64(3*i+1), "a", "b", "c")
			b.Received = begin.Add(time.Duration(i) * time.Hour)
			mustAppend(p.T, l, b)
		}
		for after, want := range map[time.Duration]int{-time.Hour: 30, 0: 30, time.Hour: 27, 90 * time.Minute: 24, 9 * time.Hour: 3, 10 * time.Hour: 0} {
			cursor, err := l.AfterTime(begin.Add(after))
			if got := dump(p.T, l, cursor); err != nil || len(got) != want {
				p.Errorf("%s after the first: cursor %d, %d records, want %d, %v", after, cursor, len(got), want, err)
			}
			if n, err := l.Behind(cursor); n != uint64(want) || err != nil {
				p.Errorf("%d are behind %d, want %d, %v", n, cursor, want, err)
			}
		}
		all := entries(p.T, l, 0)
		for i, e := range all {
			if n, err := l.Behind(e.Cursor); n != uint64(len(all)-i-1) || err != nil {
				p.Fatalf("%d are behind %d, want %d, %v", n, e.Cursor, len(all)-i-1, err)
			}
		}
	})
}

// TestReadOnly: blocks of other nodes are left out, and still read past.
func TestReadOnly(t *testing.T) {
	suite(t, func(p *site) {
		l, _ := p.start(Config{})
		for i := range 6 {
			mustAppend(p.T, l, batch(fmt.Sprint("n", i%3), uint64(i/3*2+1), "a", "b"))
		}
		r := l.NewReader(0).Only("n1")
		var got []uint64
		for {
			e, ok, err := r.Next()
			if err != nil {
				p.Fatal(err)
			}
			if !ok {
				break
			}
			if e.Node != "n1" {
				p.Errorf("a record of %s", e.Node)
			}
			got = append(got, e.Sequence)
		}
		if _, newest := l.Range(); !slices.Equal(got, []uint64{1, 2, 3, 4}) || r.After() != newest || r.Skipped() != 0 {
			p.Errorf("sequences %v; read up to %d of %d, skipped %d", got, r.After(), newest, r.Skipped())
		}
	})
}

func TestCursors(t *testing.T) {
	suite(t, func(p *site) {
		const name = "syslog udp://[::1]:514/"
		l, _ := p.start(Config{})
		c := l.Cursors()
		if v, err := c.Load(name); v != 0 || err != nil {
			p.Error(v, err)
		}
		for _, v := range []uint64{7, 1 << 60} {
			if err := c.Store(name, v); err != nil {
				p.Fatal(err)
			}
			if got, err := c.Load(name); got != v || err != nil {
				p.Error(got, err)
			}
		}
		if v, _ := c.Load("other"); v != 0 {
			p.Error("cursors are mixed up")
		}
		if err := c.StoreState("other", 9, []byte("what belongs to it")); err != nil {
			p.Fatal(err)
		}
		if v, state, err := c.LoadState("other"); v != 9 || string(state) != "what belongs to it" || err != nil {
			p.Error(v, string(state), err)
		}
	})
}

// TestDamagedCursors: any byte of a cursor's file may change, and the cursor is
// still known; where both of its copies are damaged, it is said.
func TestDamagedCursors(t *testing.T) {
	l, _ := start(t, Config{Dir: t.TempDir()})
	c := l.Cursors()
	if err := c.StoreState("s", 9, []byte("state")); err != nil {
		t.Fatal(err)
	}
	path := c.in.(cursorFiles).path("s")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(whole) {
		b := slices.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if v, state, err := c.LoadState("s"); v != 9 || string(state) != "state" || err != nil {
			t.Fatalf("bit %d: %d %q %v", i, v, state, err)
		}
	}
	if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil { // Of an older version.
		t.Fatal(err)
	}
	if v, state, err := c.LoadState("s"); v != 9 || string(state) != "state" || err != nil {
		t.Fatalf("an older file: %d %q %v", v, state, err)
	}
	whole[3] ^= 1
	whole[len(whole)-3] ^= 1
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.LoadState("s"); err == nil || !strings.Contains(err.Error(), "cursor of s") || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged cursor: %v", err)
	}
}

// TestLargeBatches are cut where a message cannot hold them.
func TestLargeBatches(t *testing.T) {
	suite(t, func(p *site) {
		l, _ := p.start(Config{})
		small, large := make([]string, 70_000), make([]string, 24)
		for i := range small {
			small[i] = "s"
		}
		for i := range large {
			large[i] = strings.Repeat("l", 100<<10)
		}
		if got := mustAppend(p.T, l, batch("n1", 2, small...)); got != (Result{High: 70_001, Stored: 70_000, Missing: 1}) {
			p.Errorf("%+v", got)
		}
		if got := mustAppend(p.T, l, batch("n1", 70_001, large...)); got != (Result{High: 70_024, Stored: 23, Repeated: 1}) {
			p.Errorf("%+v", got)
		}
		all := entries(p.T, l, 0)
		if len(all) != 70_024 || all[len(all)-1].Sequence != 70_024 {
			p.Errorf("%d records", len(all))
		}
		if n, err := l.Behind(all[69_000].Cursor); n != 1023 || err != nil {
			p.Errorf("%d are behind, %v", n, err)
		}
	})
}
