package sink

import (
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/services/audit/record"
)

func listing(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	text := "123456789\n"
	out := &Files{Path: func(string) string { return filepath.Join(dir, "np.log") }, Format: Format{Append: func(b []byte, _ *record.Line) []byte { return append(b, text...) }},
		Rotation: Rotation{MaxBytes: 20, Keep: 2, Gzip: true}, Logger: hclog.NewNullLogger(), Now: func() time.Time { return now }}
	if err := out.Open(t.Context(), Link{Keep: func([]byte) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	for range 7 { // Two lines a file: three files are set aside.
		if _, err := out.Write(t.Context(), &record.Line{}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
	}
	if err := out.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := listing(t, dir); len(got) != 4 {
		t.Errorf("before the cursor is stored, what was set aside is tidied: %v", got)
	}
	out.State()
	out.Stored()
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, dir), []string{"np-2026-01-02T03-04-09.000.log.gz", "np-2026-01-02T03-04-11.000.log.gz", "np.log"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	f, err := os.Open(filepath.Join(dir, "np-2026-01-02T03-04-11.000.log.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); string(b) != text+text || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "np.log")); string(b) != text {
		t.Errorf("np.log: %q", b)
	}
}

func TestRotationByAge(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	path := filepath.Join(dir, "a.json")
	for name := range map[string]bool{"a-2025-01-01T00-00-00.000.json": true, "a-2026-01-02T00-00-00.000.json": true, "a-x.json": true} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := Rotation{Every: time.Hour, KeepAge: 24 * time.Hour}
	f, err := openFile(path, r, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, false, true} {
		if f.full(2) != want {
			t.Errorf("line %d: full is not %v", i, want)
		} else if want {
			if err := f.rotate(func(string) {}); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.write([]byte("x\n")); err != nil {
			t.Fatal(err)
		}
		now = now.Add(45 * time.Minute)
	}
	if err := f.sync(); err != nil {
		t.Fatal(err)
	}
	f.close()
	if err := sweep(path, r, now, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	want := []string{"a-2026-01-02T00-00-00.000.json", "a-2026-01-02T04-34-05.000.json", "a-x.json", "a.json"}
	if got := listing(t, dir); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestRotationOverClockSteps: the clock is set back an hour, and forward again. The
// files that are kept are the newest that were written, in order.
func TestRotationOverClockSteps(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	line := 0
	out := &Files{Path: func(string) string { return filepath.Join(dir, "np.log") }, Format: Format{Append: func(b []byte, _ *record.Line) []byte {
		line++
		return append(b, "line "+string(rune('a'+line-1))+"\n"...)
	}}, Rotation: Rotation{MaxBytes: 7, Keep: 3}, Logger: hclog.NewNullLogger(), Now: func() time.Time { return now }}
	if err := out.Open(t.Context(), Link{Keep: func([]byte) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []time.Duration{0, time.Second, -time.Hour, time.Second, 2 * time.Hour, -time.Hour, 0} {
		now = now.Add(step)
		if _, err := out.Write(t.Context(), &record.Line{}); err != nil {
			t.Fatal(err)
		}
		if err := out.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		out.State()
		out.Stored()
		out.sweeps.Wait()
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	var got string
	for _, name := range listing(t, dir) { // By name, as people read them.
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got += string(b)
	}
	if want := "line d\nline e\nline f\nline g\n"; got != want {
		t.Errorf("%q, want %q: %v", got, want, listing(t, dir))
	}
}

// TestAgesOverClockSteps: what was begun in the future is set aside, not waited for;
// what was set aside under a stamp of the future is as old as it is.
func TestAgesOverClockSteps(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	if err := os.WriteFile(path, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Rotation{Every: 2 * time.Hour, KeepAge: 24 * time.Hour}
	for step, want := range map[time.Duration]bool{-time.Hour: true, -time.Second: false, 0: false, time.Hour: false, 3 * time.Hour: true} {
		f, err := openFile(path, r, func() time.Time { return time.Now().Add(step) })
		if err != nil {
			t.Fatal(err)
		}
		if f.full(2) != want {
			t.Errorf("after a step of %s and a restart, full is not %v", step, want)
		}
		f.close()
	}
	aside := rotatedName(path, time.Now().AddDate(50, 0, 0))
	if err := os.WriteFile(aside, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		after time.Duration
		files []string
	}{{23 * time.Hour, []string{filepath.Base(aside), "a.json"}}, {25 * time.Hour, []string{"a.json"}}} {
		if err := sweep(path, r, time.Now().Add(want.after), func(string) bool { return false }); err != nil {
			t.Fatal(err)
		}
		if got := listing(t, dir); !slices.Equal(got, want.files) {
			t.Errorf("%s later: %v", want.after, got)
		}
	}
}

// TestCompressOnFullDisk: what there is no room for leaves nothing behind, and the file as
// it is.
func TestCompressOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("weir", dir, "tmpfs", 0, "size=300k"); err != nil {
		t.Fatalf("mount a small file system; this test needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	text := make([]byte, 200<<10)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(text) // It does not compress.
	path := filepath.Join(dir, "np-2026-01-02T03-04-09.000.log")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := compress(path); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	if got := listing(t, dir); !slices.Equal(got, []string{filepath.Base(path)}) {
		t.Errorf("%v", got)
	}
}

// TestHalfLines: what a crash left of a line is cut off.
func TestHalfLines(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	for before, want := range map[string]string{"": "", "a\nb\n": "a\nb\n", "a\nb": "a\n", "half": "", "a\n" + long: "a\n", long: ""} {
		path := filepath.Join(t.TempDir(), "np.log")
		if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := openFile(path, Rotation{}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.write([]byte("new\n")); err != nil {
			t.Fatal(err)
		}
		if err := f.sync(); err != nil {
			t.Fatal(err)
		}
		f.close()
		if b, _ := os.ReadFile(path); string(b) != want+"new\n" {
			t.Errorf("%.10q: %.20q", before, b)
		}
	}
}

// TestMovedAway: logrotate and people may move a file; we go on in a new one.
func TestMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "np.log")
	f, err := openFile(path, Rotation{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { f.close() }()
	for _, line := range []string{"a\n", "b\n"} {
		if err := f.write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		if err := f.sync(); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path + ".1"); string(b) != line {
			t.Errorf("%q", b)
		}
	}
}
