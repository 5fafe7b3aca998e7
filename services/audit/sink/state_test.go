package sink

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/services/audit/record"
)

func TestKept(t *testing.T) {
	k := kept{cursor: 7, read: 90, output: []byte("out"), windows: []record.Saved{
		{Cursor: 8, Packets: 3, First: begin.UTC(), Last: begin.Add(time.Millisecond).UTC()},
		{Cursor: 70, Packets: 1 << 40, First: begin.Add(-time.Hour).UTC(), Last: begin.Add(-time.Hour).UTC(), Fold: record.FoldRule}}}
	b := k.encode()
	if got, err := decodeKept(7, b); err != nil || !reflect.DeepEqual(got, k) {
		t.Errorf("%+v %v", got, err)
	}
	for n := 1; n < len(b)-len(k.output); n++ {
		if _, err := decodeKept(7, b[:n]); err == nil {
			t.Errorf("cut after %d bytes, it is read", n)
		}
	}
}

// disk is a Files with what is stored of it.
type disk struct {
	*testing.T
	*Files
	stored []byte
}

func newDisk(t *testing.T, dir string, stored []byte, r Rotation) *disk {
	d := &disk{t, &Files{Path: NodePath(filepath.Join(dir, "{node}.log")), Rotation: r, Logger: hclog.NewNullLogger(),
		Format: Format{Append: func(b []byte, l *record.Line) []byte { return fmt.Appendf(b, "%d", l.Cursor) }}}, stored}
	if err := d.Open(t.Context(), Link{State: stored, Keep: func(s []byte) error { d.stored = s; return nil }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func (d *disk) lines(node string, cursors ...uint64) {
	d.Helper()
	for _, c := range cursors {
		if _, err := d.Write(d.Context(), &record.Line{Record: record.Record{Node: node, Cursor: c}}); err != nil {
			d.Fatal(err)
		}
	}
	if err := d.Flush(d.Context()); err != nil {
		d.Fatal(err)
	}
}

func (d *disk) commit() {
	d.Helper()
	if err := d.Sync(d.Context()); err != nil {
		d.Fatal(err)
	}
	d.stored = d.State()
	d.Stored()
}

func (d *disk) text(dir string) string {
	paths, _ := filepath.Glob(filepath.Join(dir, "*"))
	var out bytes.Buffer
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			d.Fatal(err)
		}
		fmt.Fprintf(&out, "%s:%s ", filepath.Base(path), bytes.ReplaceAll(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"), []byte(",")))
	}
	return out.String()
}

// TestCutOff: what was written behind the cursor is gone when the files are
// opened again, whatever became of them.
func TestCutOff(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := newDisk(t, dir, nil, Rotation{MaxBytes: 10})
	d.Now = func() time.Time { return now }
	d.lines("a", 1, 2)
	d.commit()
	d.lines("a", 3, 4, 5) // Fills a.log.
	d.lines("b", 6)       // Is new.
	d.lines("a", 7, 8)    // Is set aside.
	now = now.Add(time.Second)
	d.lines("a", 11, 12, 13, 14) // Once more: one of them was begun and filled behind the cursor.
	crash := newDisk(t, dir, d.stored, Rotation{})
	if got, want := crash.text(dir), "a-2026-01-02T03-04-05.000.log:1,2 a.log: b.log: "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	crash.lines("a", 3)
	crash.lines("b", 6)
	// Somebody else moves them away, and others come in their place.
	crash.commit()
	crash.lines("a", 4)
	for _, name := range []string{"a.log", "b.log"} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".1")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "b.log"), []byte("foreign\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := newDisk(t, dir, crash.stored, Rotation{})
	again.lines("b", 9)
	if got, want := again.text(dir), "a-2026-01-02T03-04-05.000.log:1,2 a.log.1:3 b.log:foreign,9 b.log.1:6 "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	last := newDisk(t, dir, again.stored, Rotation{})
	if got, want := last.text(dir), "a-2026-01-02T03-04-05.000.log:1,2 a.log.1:3 b.log:foreign b.log.1:6 "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestReopen: after SIGHUP lines go to files of the names, and what was moved
// away keeps what it has.
func TestReopen(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "np.log")
	s, _ := w.run(OneFile(path, formats[FormatNPLog], Rotation{}, hclog.NewNullLogger()), nil)
	lines := func(path string) int { b, _ := os.ReadFile(path); return bytes.Count(b, []byte("\n")) }
	w.packet("n1", allow, 1, 0)
	eventually(t, "the line", func() bool { return lines(path) == 1 })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	s.Reopen()
	eventually(t, "the sink to have heard", func() bool { return len(s.reopen) == 0 && s.Stats().Cursor == 1 })
	w.packet("n1", allow, 2, 1)
	eventually(t, "the line in a new file", func() bool { return lines(path) == 1 && lines(path+".1") == 1 })
}
