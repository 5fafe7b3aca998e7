package eventlog

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
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
	return l, run(t, l)
}

// run runs a log until stop.
func run(t *testing.T, l *Log) (stop func()) {
	t.Helper()
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
	return stop
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
	if l.store.(*local).blocks >= snapshotBlocks {
		t.Errorf("%d blocks were read on opening", l.store.(*local).blocks)
	}
	if s := l.Stats(); s.Newest != snapshotBlocks+11 || s.Kept != snapshotBlocks+11 || len(dump(t, l, 0)) != snapshotBlocks+11 {
		t.Errorf("%+v", s)
	}
}

// TestDiskFull: refused before anything breaks, and no need to open anew.
func TestDiskFull(t *testing.T) {
	fs := &fullFS{FS: vfs.Default}
	l, _ := start(t, Config{Dir: t.TempDir(), MinFree: 1000, fs: fs})
	mustAppend(t, l, batch("n1", 1, "a"))
	fs.full.Store(true)
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
			wantDump(t, l, 0, "n1/b1#1 a", "n1/b1#2 b", "n1/b1#3 c")
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
