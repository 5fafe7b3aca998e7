package eventlog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFullFilesystem fills a real file system of a few megabytes. Nothing that was
// acknowledged is lost, health says why, and appending goes on once there is
// room. With MinFree as large as what is in memory, readers go on meanwhile.
func TestFullFilesystem(t *testing.T) {
	for name, minFree := range map[string]uint64{"refused in time": 10 << 20, "to the last byte": 1} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := syscall.Mount("weir", dir, "tmpfs", 0, "size=40m"); err != nil {
				t.Fatalf("mount a small file system; this test needs root: %v", err)
			}
			t.Cleanup(func() {
				// A database that failed is never closed, so it may be busy.
				if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			ballast := filepath.Join(dir, "ballast") // Another's file.
			if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			l, stop := start(t, Config{Dir: filepath.Join(dir, "log"), MinFree: minFree, MemTableBytes: 1 << 20})
			reader := l.NewReader(0)
			acked, rounds, state := uint64(0), 0, uint64(1)
			appendOne := func() error {
				data := make([]byte, 64<<10)
				for i := range data { // Does not compress.
					state = state*6364136223846793005 + 1442695040888963407
					data[i] = byte(state >> 56)
				}
				r, err := l.Append(t.Context(), batch("n1", acked+1, fmt.Sprintf("%d %s", acked+1, data)))
				if err == nil {
					acked = r.High
				}
				return err
			}
			var err error
			for err = appendOne(); err == nil; err = appendOne() {
				if rounds++; rounds > 1000 {
					t.Fatal("it is never full")
				}
			}
			if l.Health() == nil || !strings.Contains(err.Error(), "append to event log") {
				t.Errorf("%v; health %v", err, l.Health())
			}
			if minFree > 1 && !strings.Contains(err.Error(), "disk nearly full") {
				t.Errorf("%v", err)
			}
			for i := range 5 { // Full, it stays readable.
				if err := appendOne(); err == nil && minFree > 1 {
					t.Error("appended to a full disk")
				}
				if i == 0 && minFree > 1 { // Otherwise the database failed, and waits for room too.
					readUpTo(t, reader, acked)
				}
			}
			full := acked
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(20 * time.Second); acked < full+20; {
				if err := appendOne(); err != nil && time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
			if l.Health() != nil {
				t.Error(l.Health())
			}
			readUpTo(t, reader, acked)
			t.Logf("full after %d records, %v", full, err)
			stop()
			l, stop = start(t, Config{Dir: filepath.Join(dir, "log"), MinFree: minFree, MemTableBytes: 1 << 20})
			readUpTo(t, l.NewReader(0), acked)
			stop()
		})
	}
}

// readUpTo reads on, and wants every record to a number, once.
func readUpTo(t *testing.T, r *Reader, last uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); r.After() < last; {
		e, ok, err := r.Next()
		if err != nil || !ok { // The database may be opened again just now.
			if time.Now().After(deadline) {
				t.Fatalf("after record %d of %d: %v", r.After(), last, err)
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if e.Cursor != e.Sequence || !strings.HasPrefix(string(e.Data), fmt.Sprintf("%d ", e.Sequence)) {
			t.Fatalf("record %d at %d: %.20q", e.Sequence, e.Cursor, e.Data)
		}
	}
	if r.Skipped() > 0 {
		t.Fatalf("%d skipped", r.Skipped())
	}
}
