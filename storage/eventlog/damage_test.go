package eventlog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

const damageRecords, damageBlock, damageTables = 24_000, 20, 3

// fillForDamage makes a log of several tables, each by a life of its own: how many
// one life makes depends on whether flushes keep up with what is appended.
func fillForDamage(t *testing.T, dir string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	next := uint64(1)
	for table := range uint64(damageTables) {
		l, stop := start(t, Config{Dir: dir})
		for next <= damageRecords*(table+1)/damageTables {
			b := Batch{Node: "n1", Boot: "b1", First: next, Received: time.Now()}
			for range damageBlock {
				b.Events = append(b.Events, Event{Data: fmt.Appendf(nil, "%d %x", next, rng.Uint64())})
				next++
			}
			if err := l.Submit(t.Context(), b, func(_ Result, err error) {
				if err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		stop()
	}
}

// copyDir copies a log's files.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "log")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// flip changes one bit of a file.
func flip(t *testing.T, path string, bit int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], bit/8); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(b[:], bit/8); err != nil {
		t.Fatal(err)
	}
}

// size is a file's.
func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// wantAllOrStated reads the log: every record is there, once and in order, or a loss
// in its place counts it. It returns how many are lost.
func wantAllOrStated(t *testing.T, l *Log) uint64 {
	t.Helper()
	next, lost := uint64(1), uint64(0)
	r := l.NewReader(0)
	for {
		e, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if e.Node == "n2" {
			continue // Appended later.
		}
		if e.Sequence > 0 {
			if e.Sequence != next || e.Cursor != next || !bytes.HasPrefix(e.Data, fmt.Appendf(nil, "%d ", next)) {
				t.Fatalf("record %d at %d, %q, want %d", e.Sequence, e.Cursor, e.Data, next)
			}
			next++
			continue
		}
		var event auditv1.Event
		if err := proto.Unmarshal(e.Data, &event); err != nil {
			t.Fatal(err)
		}
		loss := event.GetLoss()
		if loss.GetStage() != auditv1.LossStage_LOSS_STAGE_DAMAGED || loss.GetCount() == 0 || loss.GetFrom().AsTime().After(loss.GetTo().AsTime()) {
			t.Fatalf("%v", loss)
		}
		lost += loss.GetCount()
		next += loss.GetCount()
		if e.Cursor != next-1 {
			t.Fatalf("a loss up to %d has cursor %d", next-1, e.Cursor)
		}
	}
	if next != damageRecords+1 || r.Skipped() != 0 {
		t.Fatalf("ends before %d, %d skipped", next, r.Skipped())
	}
	return lost
}

// statedLoss is what Stats say of damage.
func statedLoss(l *Log) (n uint64) {
	for _, node := range l.Stats().Nodes {
		for _, lost := range node.Lost {
			if lost.Stage == auditv1.LossStage_LOSS_STAGE_DAMAGED {
				n += lost.Count
			}
		}
	}
	return n
}

// TestFlippedBitInTable flips bits of tables while the log is closed, and while it
// is open. What is lost is less than a table, stated once, and for ever; the
// rest is served, and appending goes on.
func TestFlippedBitInTable(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "log")
	fillForDamage(t, whole)
	rng := rand.New(rand.NewPCG(3, 4))
	worst, harmless := uint64(0), 0
	for round := range 20 {
		dir := copyDir(t, whole)
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		if err != nil || len(tables) != damageTables {
			t.Fatal(tables, err)
		}
		path := tables[rng.IntN(len(tables))]
		bit := rng.Int64N(8 * fileSize(t, path))
		if round < 8 { // The end, where what is needed to read the rest is.
			bit = 8*fileSize(t, path) - 1 - 97*8*int64(round)
		}
		open := round%3 == 0
		t.Logf("round %d: bit %d of %s, of %d bytes, open: %v", round, bit, filepath.Base(path), fileSize(t, path), open)
		if !open {
			flip(t, path, bit)
		}
		l, stop := start(t, Config{Dir: dir, MemTableBytes: 256 << 10})
		if open {
			flip(t, path, bit)
		}
		lost := wantAllOrStated(t, l)
		if again := wantAllOrStated(t, l); again != lost || statedLoss(l) != lost {
			t.Fatalf("%d lost, then %d; %d in Stats", lost, again, statedLoss(l))
		}
		mustAppend(t, l, batch("n2", 1, "x"))
		stop()
		l, stop = start(t, Config{Dir: dir, MemTableBytes: 256 << 10})
		if got := dump(t, l, damageRecords); len(got) != 1 || got[0] != "n2/b1#1 x" {
			t.Fatalf("%v", got)
		}
		before := lost // What was in memory of a table that was open may be found damaged only now.
		if lost = wantAllOrStated(t, l); statedLoss(l) != lost || lost != before && !open || l.Health() != nil {
			t.Fatalf("%d lost, were %d; %d in Stats after a restart; health %v", lost, before, statedLoss(l), l.Health())
		}
		if r := mustAppend(t, l, batch("n1", damageRecords, "again")); r.Repeated != 1 && lost == 0 {
			t.Fatalf("%+v", r)
		}
		stop()
		worst = max(worst, lost)
		if lost == 0 {
			harmless++
		}
	}
	t.Logf("at most %d of %d records lost by one bit; none by %d", worst, damageRecords, harmless)
	if worst == 0 || worst == damageRecords {
		t.Errorf("at most %d lost", worst)
	}
}

// TestLostEnd: a bit that flips in the write-ahead log looks like the end of what a
// crash left. What a sink has read of the rest is stated as lost, and its cursor
// is not given to another record.
func TestLostEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l, _ := start(t, Config{Dir: dir})
	for n := uint64(1); n <= 8; n++ {
		mustAppend(t, l, batch("n1", n, fmt.Sprint("record ", n)))
	}
	if err := l.Cursors().Store("sink", 6); err != nil {
		t.Fatal(err)
	}
	dir = copyDir(t, dir) // As after a crash.
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	flip(t, logs[0], 8*fileSize(t, logs[0])/4)
	for range 2 { // It is stated once.
		var stop func()
		l, stop = start(t, Config{Dir: dir})
		all := entries(t, l, 0)
		last := all[len(all)-1]
		if last.Sequence != 0 || last.Cursor != 6 || statedLoss(l) != 6-uint64(len(all)-1) || l.Health() != nil {
			t.Fatalf("%d records, the last at %d of sequence %d; %d stated", len(all), last.Cursor, last.Sequence, statedLoss(l))
		}
		stop()
	}
	l, _ = start(t, Config{Dir: dir})
	high := l.High("n1", "b1")
	if r := mustAppend(t, l, batch("n1", 9, "record 9")); r.Missing != 8-high {
		t.Errorf("%+v behind %d", r, high)
	}
	if got := dump(t, l, 6); len(got) != 2 || got[1] != "n1/b1#9 record 9" {
		t.Errorf("%v", got)
	}
}
