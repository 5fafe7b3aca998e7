package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// manifestOf is the one that a database goes by.
func manifestOf(t *testing.T, dir string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "MANIFEST-*"))
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	return all[len(all)-1]
}

// copyLive copies a log that is open, as a crash would leave it. Files that it has done
// with may go meanwhile.
func copyLive(t *testing.T, from string) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		to := filepath.Join(t.TempDir(), "log")
		err := os.CopyFS(to, os.DirFS(from))
		if err == nil {
			return to
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// asideOf are the databases that were set aside.
func asideOf(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, asidePrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestFlippedBitInManifest flips bits of the manifest, after a clean stop and after a
// crash, with and without a table that is gone. Nothing is lost but what was in that,
// and that is stated; acknowledged records come back from the write-ahead log too.
func TestFlippedBitInManifest(t *testing.T) {
	t.Parallel()
	stopped := filepath.Join(t.TempDir(), "log")
	const tables = 3
	for i := range uint64(tables) { // Each life leaves one.
		l, stop := start(t, Config{Dir: stopped})
		for first := damageRecords/tables*i + 1; first <= damageRecords/tables*(i+1); first += 100 {
			var texts []string
			for n := range uint64(100) {
				texts = append(texts, fmt.Sprint(first+n, " "))
			}
			mustAppend(t, l, batch("n1", first, texts...))
		}
		stop()
	}
	live := copyDir(t, stopped)
	l, _ := start(t, Config{Dir: live})
	mustAppend(t, l, batch("n2", 1, "x", "y"))
	crashed := copyLive(t, live) // These two are in no table.
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range 24 {
		whole, more := stopped, 0
		if round%2 == 0 {
			whole, more = crashed, 2
		}
		dir := copyDir(t, whole)
		manifest := manifestOf(t, dir)
		bit := rng.Int64N(8 * fileSize(t, manifest))
		if round < 4 { // The last of it, which Pebble takes for torn.
			bit = 8*fileSize(t, manifest) - 1 - 16*int64(round)
		}
		flip(t, manifest, bit)
		missing := round%3 == 2
		if missing {
			all, err := filepath.Glob(filepath.Join(dir, "*.sst"))
			if err != nil || len(all) != tables {
				t.Fatal(all, err)
			}
			if err := os.Remove(all[1]); err != nil {
				t.Fatal(err)
			}
		}
		lost := uint64(0)
		for life := range 2 {
			l, stop := start(t, Config{Dir: dir, MinFree: 1})
			if again := wantAllOrStated(t, l); life > 0 && again != lost {
				t.Fatalf("round %d: %d lost, then %d", round, lost, again)
			} else {
				lost = again
			}
			if statedLoss(l) != lost || l.High("n1", "b1") != damageRecords || l.High("n2", "b1") != uint64(more) || l.Health() != nil {
				t.Fatalf("round %d, bit %d: %d lost, %d in Stats; up to %d and %d; health %v", round, bit, lost, statedLoss(l), l.High("n1", "b1"), l.High("n2", "b1"), l.Health())
			}
			if got := dump(t, l, damageRecords); len(got) != more {
				t.Fatalf("round %d: %v", round, got)
			}
			stop()
		}
		if missing && lost != damageRecords/tables || !missing && lost > 0 {
			t.Errorf("round %d: %d lost; a table was removed: %v", round, lost, missing)
		}
		if aside := asideOf(t, dir); len(aside) != 1 || fileSize(t, manifestOf(t, aside[0])) == 0 {
			t.Errorf("round %d: set aside: %v", round, aside)
		}
	}
}

// TestCheckManifest: every bit that flips in a manifest is met. One that ends in the midst
// of a write, as on a full disk, is as good as without that.
func TestCheckManifest(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	for n := uint64(1); n <= 3; n++ {
		l, stop := start(t, Config{Dir: dir})
		mustAppend(t, l, batch("n1", n, "x"))
		stop()
	}
	manifest := manifestOf(t, dir)
	whole, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	check := func() error { return checkManifest(vfs.Default, dir) }
	for bit := range 8 * int64(len(whole)) {
		flip(t, manifest, bit)
		if check() == nil {
			t.Errorf("bit %d of byte %d is not met", bit%8, bit/8)
		}
		flip(t, manifest, bit)
	}
	for _, end := range []string{"", "\x00", strings.Repeat("\x00", 100)} {
		for size := len(whole); size >= 0; size-- {
			if err := os.WriteFile(manifest, append(whole[:size:size], end...), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := check(); err != nil && (end == "" || size == len(whole)) {
				t.Errorf("cut at %d of %d, %d zeros behind: %v", size, len(whole), len(end), err)
			}
		}
	}
}

// TestRescueNeedsRoom: where there is no room for another database the error says how
// much is needed, and nothing is touched.
func TestRescueNeedsRoom(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	l, stop := start(t, Config{Dir: dir})
	mustAppend(t, l, batch("n1", 1, "x"))
	stop()
	flip(t, manifestOf(t, dir), 8*fileSize(t, manifestOf(t, dir))/2)
	if _, err := Open(Config{Dir: dir, MinFree: 1 << 60}); err == nil || !strings.Contains(err.Error(), "MANIFEST-") || !strings.Contains(err.Error(), "MiB must be free for it") {
		t.Errorf("%v", err)
	}
	if aside := asideOf(t, dir); len(aside) > 0 {
		t.Errorf("%v", aside)
	}
	l, stop = start(t, Config{Dir: dir, MinFree: 1})
	defer stop()
	if got := dump(t, l, 0); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// TestFlippedBitInOptions: the name of the order of keys is another.
func TestFlippedBitInOptions(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	l, stop := start(t, Config{Dir: dir})
	mustAppend(t, l, batch("n1", 1, "x"))
	stop()
	options, err := filepath.Glob(filepath.Join(dir, "OPTIONS-*"))
	if err != nil || len(options) != 1 {
		t.Fatal(options, err)
	}
	b, err := os.ReadFile(options[0])
	if err != nil {
		t.Fatal(err)
	}
	flip(t, options[0], 8*int64(bytes.Index(b, []byte("BytewiseComparator"))))
	l, stop = start(t, Config{Dir: dir, MinFree: 1})
	defer stop()
	if got := dump(t, l, 0); len(got) != 1 || len(l.SetAside()) != 1 || statedLoss(l) != 0 {
		t.Errorf("%v, set aside %v", got, l.SetAside())
	}
	if err := os.RemoveAll(l.SetAside()[0]); err != nil {
		t.Fatal(err)
	}
	if aside := l.SetAside(); len(aside) > 0 {
		t.Errorf("%v is gone", aside)
	}
}

// TestRescueAfterRetention: what was removed for its age stays removed, and is not
// stated as damaged.
func TestRescueAfterRetention(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "log")
	l, stop := start(t, Config{Dir: dir})
	now := time.Now()
	for n := uint64(1); n <= 10; n++ {
		b := batch("n1", n, fmt.Sprint("record ", n))
		b.Received = now.Add(time.Duration(n) * time.Hour)
		mustAppend(t, l, b)
	}
	stop()
	l, err := Open(Config{Dir: dir, RetentionAge: time.Hour, MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	l.store.retain(now.Add(6*time.Hour + time.Minute)) // Up to record 5.
	if oldest, newest := l.Range(); oldest != 6 || newest != 10 {
		t.Fatalf("%d to %d", oldest, newest)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, manifestOf(t, dir), 8*fileSize(t, manifestOf(t, dir))-20)
	l, stop = start(t, Config{Dir: dir})
	defer stop()
	if oldest, newest := l.Range(); oldest != 6 || newest != 10 || statedLoss(l) != 0 || len(dump(t, l, 0)) != 5 {
		t.Errorf("%d to %d, %d stated: %v", oldest, newest, statedLoss(l), dump(t, l, 0))
	}
	if st := l.Stats(); st.Kept != 10 {
		t.Errorf("%d kept in the log's life", st.Kept)
	}
}

// TestRescueGoesOn: the process dies between the steps by which another database takes
// the place of the damaged one.
func TestRescueGoesOn(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "log")
	fillForDamage(t, whole)
	broken := copyDir(t, whole)
	flip(t, manifestOf(t, broken), 8*fileSize(t, manifestOf(t, broken))/2)
	// The steps, each as it was left: half a database in the making; one that is made;
	// and one of which half is in its place.
	move := func(from, to string, part int) {
		t.Helper()
		if err := os.MkdirAll(to, 0o750); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range entries {
			if i%part == 0 && e.Type().IsRegular() && e.Name() != "LOCK" {
				if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, leave := range map[string]func(dir string){
		"making": func(dir string) { move(copyDir(t, whole), filepath.Join(dir, rescueMaking), 2) },
		"made":   func(dir string) { move(copyDir(t, whole), filepath.Join(dir, rescueMade), 1) },
		"half aside": func(dir string) {
			move(copyDir(t, whole), filepath.Join(dir, rescueMade), 1)
			move(dir, filepath.Join(dir, asidePrefix+"2026-01-02T03-04-05"), 2)
		},
		"half in place": func(dir string) {
			move(dir, filepath.Join(dir, asidePrefix+"2026-01-02T03-04-05"), 1)
			move(copyDir(t, whole), filepath.Join(dir, rescuePlacing), 1)
			move(filepath.Join(dir, rescuePlacing), dir, 2)
		},
	} {
		dir := copyDir(t, broken)
		leave(dir)
		l, stop := start(t, Config{Dir: dir, MinFree: 1, MemTableBytes: 256 << 10})
		if lost := wantAllOrStated(t, l); lost != 0 {
			t.Errorf("%s: %d lost", name, lost)
		}
		stop()
		if left, err := filepath.Glob(filepath.Join(dir, "rescue*")); err != nil || len(left) > 0 {
			t.Errorf("%s: %v is left, %v", name, left, err)
		}
	}
}

// TestFlippedBitInWriteAheadLog: what is behind a flipped bit is taken for torn. When
// the node's next event arrives all that is gone is stated, before it.
func TestFlippedBitInWriteAheadLog(t *testing.T) {
	t.Parallel()
	const records = 40
	live := filepath.Join(t.TempDir(), "log")
	l, _ := start(t, Config{Dir: live})
	for n := uint64(1); n <= records; n++ {
		mustAppend(t, l, batch("n1", n, fmt.Sprint("record ", n)))
	}
	crashed := copyLive(t, live)
	rng := rand.New(rand.NewPCG(7, 8))
	worst := uint64(0)
	for round := range 20 {
		dir := copyDir(t, crashed)
		logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
		if err != nil || len(logs) != 1 {
			t.Fatal(logs, err)
		}
		flip(t, logs[0], rng.Int64N(8*fileSize(t, logs[0])))
		l, stop := start(t, Config{Dir: dir})
		r := mustAppend(t, l, batch("n1", records+1, "next"))
		kept, missing := uint64(0), uint64(0)
		for _, e := range entries(t, l, 0) {
			if e.Sequence > 0 {
				if kept++; e.Sequence != kept+missing {
					t.Fatalf("round %d: record %d behind %d and %d that are missing", round, e.Sequence, kept-1, missing)
				}
				continue
			}
			var event auditv1.Event
			if err := proto.Unmarshal(e.Data, &event); err != nil {
				t.Fatal(err)
			}
			missing += event.GetLoss().GetCount()
		}
		if kept+missing != records+1 || missing != r.Missing {
			t.Errorf("round %d: %d kept and %d stated of %d", round, kept, missing, records+1)
		}
		worst = max(worst, missing)
		stop()
	}
	if worst == 0 {
		t.Error("no bit does any harm")
	}
}
