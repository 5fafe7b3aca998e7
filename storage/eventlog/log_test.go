package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// start opens a log and runs it; stop ends both.
func start(t *testing.T, cfg Config) (l *Log, stop func()) {
	t.Helper()
	if cfg.MinFree == 0 {
		cfg.MinFree = 1
	}
	if cfg.MemTableBytes == 0 {
		cfg.MemTableBytes = 4 << 20
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); l.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			<-ran
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return l, stop
}

func batch(node string, first uint64, data ...string) Batch {
	b := Batch{Node: node, Boot: "b1", First: first, Received: time.Unix(1_700_000_000, 5)}
	for _, d := range data {
		b.Events = append(b.Events, Event{Data: []byte(d)})
	}
	return b
}

func mustAppend(t *testing.T, l *Log, b Batch) Result {
	t.Helper()
	r, err := l.Append(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// dump reads what comes after a cursor: "cursor node#sequence data".
func dump(t *testing.T, l *Log, after uint64) []string {
	t.Helper()
	r := l.NewReader(after)
	var out []string
	for {
		e, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out
		}
		data := string(e.Data)
		if e.Sequence == 0 {
			var event auditv1.Event
			if err := proto.Unmarshal(e.Data, &event); err != nil {
				t.Fatal(err)
			}
			data = fmt.Sprintf("%s %d", event.GetLoss().GetStage(), event.GetLoss().GetCount())
		}
		out = append(out, fmt.Sprintf("%d %s/%s#%d %s", e.Cursor, e.Node, e.Boot, e.Sequence, data))
	}
}

func wantDump(t *testing.T, l *Log, after uint64, want ...string) {
	t.Helper()
	if got := dump(t, l, after); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("after %d:\n%s\nwant:\n%s", after, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRecordsAreNumberedAndRead(t *testing.T) {
	l, _ := start(t, Config{Dir: t.TempDir()})
	wantDump(t, l, 0)
	mustAppend(t, l, batch("n1", 1, "a", "b", "c"))
	mustAppend(t, l, batch("n2", 1, "x"))
	mustAppend(t, l, batch("n1", 4, "d"))
	wantDump(t, l, 0, "1 n1/b1#1 a", "2 n1/b1#2 b", "3 n1/b1#3 c", "4 n2/b1#1 x", "5 n1/b1#4 d")
	wantDump(t, l, 1, "2 n1/b1#2 b", "3 n1/b1#3 c", "4 n2/b1#1 x", "5 n1/b1#4 d")
	wantDump(t, l, 3, "4 n2/b1#1 x", "5 n1/b1#4 d")
	wantDump(t, l, 5)
	wantDump(t, l, 99)
	if oldest, newest := l.Range(); oldest != 1 || newest != 5 {
		t.Errorf("range %d to %d", oldest, newest)
	}
}

func TestReaderGoesOnAndIsWoken(t *testing.T) {
	l, _ := start(t, Config{Dir: t.TempDir()})
	wake, stop := l.Follow()
	defer stop()
	r := l.NewReader(0)
	for i := range 3 {
		if _, ok, _ := r.Next(); ok {
			t.Fatal("a record from nowhere")
		}
		mustAppend(t, l, batch("n1", uint64(i+1), "a"))
		select {
		case <-wake:
		case <-time.After(10 * time.Second):
			t.Fatal("not woken")
		}
		if e, ok, err := r.Next(); !ok || err != nil || e.Cursor != uint64(i+1) {
			t.Fatalf("%v %v %v", e, ok, err)
		}
	}
}

func TestSequences(t *testing.T) {
	type step struct {
		b    Batch
		want Result
	}
	l, stop := start(t, Config{Dir: t.TempDir()})
	for i, s := range []step{
		{batch("n1", 1, "a", "b"), Result{High: 2, Stored: 2}},
		{batch("n1", 1, "a", "b"), Result{High: 2, Repeated: 2}},
		{batch("n1", 2, "b", "c"), Result{High: 3, Stored: 1, Repeated: 1}},
		{batch("n1", 7, "g"), Result{High: 7, Stored: 1, Missing: 3}},
		{batch("n1", 4, "d"), Result{High: 7, Repeated: 1}},
		{batch("n2", 3, "z"), Result{High: 3, Stored: 1, Missing: 2}},
	} {
		if got := mustAppend(t, l, s.b); got != s.want {
			t.Errorf("step %d: %+v, want %+v", i, got, s.want)
		}
	}
	want := []string{"1 n1/b1#1 a", "2 n1/b1#2 b", "3 n1/b1#3 c", "4 n1/b1#0 LOSS_STAGE_TRANSPORT 3", "5 n1/b1#7 g",
		"6 n2/b1#0 LOSS_STAGE_TRANSPORT 2", "7 n2/b1#3 z"}
	wantDump(t, l, 0, want...)
	before := fmt.Sprint(l.Stats())
	dir := l.cfg.Dir
	stop()

	// After a restart repeats are still repeats, and counts still count.
	l, _ = start(t, Config{Dir: dir})
	wantDump(t, l, 0, want...)
	if after := fmt.Sprint(l.Stats()); strings.Replace(before, " 4 [", " 0 [", 1) != after {
		t.Errorf("stats %s, were %s", after, before)
	}
	if got := mustAppend(t, l, batch("n1", 7, "g", "h")); got != (Result{High: 8, Stored: 1, Repeated: 1}) {
		t.Errorf("%+v", got)
	}
	if l.High("n1", "b1") != 8 || l.High("n1", "b2") != 0 {
		t.Error("highest sequences are wrong")
	}
	for _, first := range []uint64{0, ^uint64(0)} {
		if _, err := l.Append(t.Context(), batch("n1", first, "a")); !errors.Is(err, ErrSequence) {
			t.Errorf("first %d: %v", first, err)
		}
	}
}

func TestRepeatsWithinOneCommit(t *testing.T) {
	l, err := Open(Config{Dir: t.TempDir(), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Queued before the writer runs, they are one group.
	results := make(chan Result, 3)
	for _, b := range []Batch{batch("n1", 1, "a", "b"), batch("n1", 2, "b", "c"), batch("n1", 5, "e")} {
		if err := l.Submit(t.Context(), b, func(r Result, err error) { results <- r }); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { defer close(ran); l.Run(ctx) }()
	for _, want := range []Result{{High: 2, Stored: 2}, {High: 3, Stored: 1, Repeated: 1}, {High: 5, Stored: 1, Missing: 1}} {
		if got := <-results; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	wantDump(t, l, 0, "1 n1/b1#1 a", "2 n1/b1#2 b", "3 n1/b1#3 c", "4 n1/b1#0 LOSS_STAGE_TRANSPORT 1", "5 n1/b1#5 e")
	cancel()
	<-ran
}

func TestSnapshotsBoundRecovery(t *testing.T) {
	l, stop := start(t, Config{Dir: t.TempDir()})
	for i := range snapshotBlocks + 10 {
		n := uint64(i) + 1
		if err := l.Submit(t.Context(), batch("n1", n, "a"), func(Result, error) {}); err != nil {
			t.Fatal(err)
		}
	}
	mustAppend(t, l, batch("n1", snapshotBlocks+11, "z"))
	stop()
	l, _ = start(t, Config{Dir: l.cfg.Dir})
	if l.blocks >= snapshotBlocks {
		t.Errorf("%d blocks were read on opening", l.blocks)
	}
	if s := l.Stats(); s.Newest != snapshotBlocks+11 || s.Kept != snapshotBlocks+11 || len(dump(t, l, 0)) != snapshotBlocks+11 {
		t.Errorf("%+v", s)
	}
}

func TestBootsAreBounded(t *testing.T) {
	l, _ := start(t, Config{Dir: t.TempDir()})
	for i := range maxBoots + 3 {
		b := batch("n1", 1, "a")
		b.Boot, b.Received = fmt.Sprint("boot", i), time.Unix(int64(i+1), 0)
		mustAppend(t, l, b)
	}
	if l.High("n1", "boot2") != 0 || l.High("n1", "boot3") != 1 || len(l.positions.nodes["n1"].boots) != maxBoots {
		t.Errorf("%d boots", len(l.positions.nodes["n1"].boots))
	}
}

func TestRetentionByAge(t *testing.T) {
	dir := t.TempDir()
	l, stop := start(t, Config{Dir: dir})
	now := time.Now()
	for i := range 10 {
		b := batch("n1", uint64(2*i+1), "a", "b")
		b.Received = now.Add(time.Duration(i-10) * time.Hour)
		mustAppend(t, l, b)
	}
	slow := l.NewReader(4)
	stop()
	l, stop = start(t, Config{Dir: dir, RetentionAge: 3*time.Hour + time.Minute})
	mustAppend(t, l, batch("n2", 1, "x")) // Run has begun, and removed what is old.
	if oldest, newest := l.Range(); oldest != 15 || newest != 21 {
		t.Errorf("range %d to %d", oldest, newest)
	}
	if got := dump(t, l, 0); len(got) != 7 || got[0] != "15 n1/b1#15 a" {
		t.Errorf("%v", got)
	}
	slow.log = l
	if e, ok, err := slow.Next(); err != nil || !ok || e.Cursor != 15 || slow.Skipped() != 10 {
		t.Errorf("cursor %d, skipped %d, %v", e.Cursor, slow.Skipped(), err)
	}
	stop()

	// All is old: the log is empty, and remembers.
	l, stop = start(t, Config{Dir: dir, RetentionAge: time.Nanosecond})
	if got := mustAppend(t, l, batch("n1", 20, "b")); got.Repeated != 1 {
		t.Errorf("%+v", got)
	}
	if s := l.Stats(); s.Oldest != 0 || s.Newest != 0 || s.Kept != 21 {
		t.Errorf("%+v", s)
	}
	wantDump(t, l, 0)
	stop()
	l, _ = start(t, Config{Dir: dir})
	mustAppend(t, l, batch("n1", 21, "c"))
	wantDump(t, l, 0, "22 n1/b1#21 c")
}

func TestRetentionBySize(t *testing.T) {
	dir := t.TempDir()
	l, stop := start(t, Config{Dir: dir, MemTableBytes: 1 << 20})
	random := make([]byte, 64<<10)
	state := uint64(1)
	for i := range 256 {
		for j := range random { // Does not compress.
			state = state*6364136223846793005 + 1442695040888963407
			random[j] = byte(state >> 56)
		}
		b := batch("n1", uint64(i+1), string(random))
		mustAppend(t, l, b)
	}
	stop()
	l, _ = start(t, Config{Dir: dir, RetentionBytes: 4 << 20})
	mustAppend(t, l, batch("n1", 257, "end"))
	oldest, _ := l.Range()
	if kept := 257 - oldest; kept < 32 || kept > 80 {
		t.Errorf("%d records of 64 KiB are kept, from %d", kept, oldest)
	}
}

// TestDiskFull: refused before anything breaks, and no need to open anew.
func TestDiskFull(t *testing.T) {
	fs := &fullFS{FS: vfs.Default}
	l, _ := start(t, Config{Dir: t.TempDir(), MinFree: 1000, fs: fs})
	mustAppend(t, l, batch("n1", 1, "a"))
	fs.full.Store(true)
	l.mu.Lock()
	l.freeChecked = time.Time{}
	l.mu.Unlock()
	var err error
	for n := uint64(2); err == nil; n++ { // The room is looked at from time to time.
		_, err = l.Append(t.Context(), batch("n1", n, "b"))
	}
	if !strings.Contains(err.Error(), "append to event log") || !strings.Contains(err.Error(), "disk nearly full") {
		t.Errorf("%v", err)
	}
	if l.Health() == nil {
		t.Error("healthy")
	}
	high := l.High("n1", "b1")
	fs.full.Store(false)
	if got := mustAppend(t, l, batch("n1", high+1, "c")); got.Stored != 1 || l.Health() != nil {
		t.Errorf("%+v, health %v", got, l.Health())
	}
}

type fullFS struct {
	vfs.FS
	full atomic.Bool
}

func (f *fullFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	if f.full.Load() {
		return vfs.DiskUsage{AvailBytes: 999}, nil
	}
	return f.FS.GetDiskUsage(path)
}

// TestFailingDisk: a write or sync fails in the middle. Nobody is told that
// their events are durable; later everything works, and nothing is there twice.
func TestFailingDisk(t *testing.T) {
	for name, kind := range map[string]errorfs.OpKind{"write": errorfs.OpFileWrite, "sync": errorfs.OpFileSyncData} {
		t.Run(name, func(t *testing.T) {
			var broken atomic.Bool
			var hits atomic.Int64
			fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if broken.Load() && (op.Kind == kind || kind == errorfs.OpFileSyncData && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncTo)) {
					hits.Add(1)
					return syscall.EIO
				}
				return nil
			}))
			l, _ := start(t, Config{Dir: t.TempDir(), fs: fs})
			mustAppend(t, l, batch("n1", 1, "a", "b"))
			broken.Store(true)
			for range 3 {
				if _, err := l.Append(t.Context(), batch("n1", 3, "c")); err == nil || !strings.Contains(err.Error(), "append to event log") {
					t.Fatalf("appended on a broken disk: %v", err)
				}
			}
			if hits.Load() == 0 || l.Health() == nil {
				t.Fatalf("%d failures, health %v", hits.Load(), l.Health())
			}
			broken.Store(false)
			for deadline := time.Now().Add(20 * time.Second); l.Health() != nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal(l.Health())
				}
			}
			r := mustAppend(t, l, batch("n1", 3, "c"))
			if r.Stored+r.Repeated != 1 || r.High != 3 {
				t.Errorf("%+v", r)
			}
			if l.Health() != nil {
				t.Error(l.Health())
			}
			wantDump(t, l, 0, "1 n1/b1#1 a", "2 n1/b1#2 b", "3 n1/b1#3 c")
		})
	}
}

func TestHealthComesBackByItself(t *testing.T) {
	fs := &fullFS{FS: vfs.Default}
	fs.full.Store(true)
	l, _ := start(t, Config{Dir: t.TempDir(), MinFree: 1000, fs: fs})
	if _, err := l.Append(t.Context(), batch("n1", 1, "a")); err == nil {
		t.Fatal("appended to a full disk")
	}
	fs.full.Store(false)
	for deadline := time.Now().Add(10 * time.Second); l.Health() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(l.Health())
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	l, _ := start(t, Config{Dir: t.TempDir()})
	if _, err := Open(Config{Dir: l.cfg.Dir}); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("opened without a folder")
	}
}

func TestCursors(t *testing.T) {
	l, _ := start(t, Config{Dir: t.TempDir()})
	c := l.Cursors()
	if v, err := c.Load("syslog udp://[::1]:514/"); v != 0 || err != nil {
		t.Error(v, err)
	}
	for _, v := range []uint64{7, 1 << 60} {
		if err := c.Store("syslog udp://[::1]:514/", v); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Load("syslog udp://[::1]:514/"); got != v || err != nil {
			t.Error(got, err)
		}
	}
	if v, _ := c.Load("other"); v != 0 {
		t.Error("cursors are mixed up")
	}
	if err := c.StoreState("other", 9, []byte("what belongs to it")); err != nil {
		t.Fatal(err)
	}
	if v, state, err := c.LoadState("other"); v != 9 || string(state) != "what belongs to it" || err != nil {
		t.Error(v, string(state), err)
	}
	b, err := os.ReadFile(c.path("other"))
	if err != nil {
		t.Fatal(err)
	}
	b[12] ^= 1
	if err := os.WriteFile(c.path("other"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.LoadState("other"); err == nil || !strings.Contains(err.Error(), "cursor of other") || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged state: %v", err)
	}
}

// TestReadOnly: blocks of other nodes are left out, and still read past.
func TestReadOnly(t *testing.T) {
	l, _ := start(t, Config{Dir: t.TempDir()})
	for i := range 6 {
		mustAppend(t, l, batch(fmt.Sprint("n", i%3), uint64(i/3*2+1), "a", "b"))
	}
	r := l.NewReader(0).Only("n1")
	var got []uint64
	for {
		e, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if e.Node != "n1" {
			t.Errorf("a record of %s", e.Node)
		}
		got = append(got, e.Cursor)
	}
	if want := []uint64{3, 4, 9, 10}; !slices.Equal(got, want) || r.After() != 12 || r.Skipped() != 0 {
		t.Errorf("%v, want %v; read up to %d, skipped %d", got, want, r.After(), r.Skipped())
	}
}
