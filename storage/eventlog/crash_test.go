package eventlog

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const crashEnv = "WEIR_EVENTLOG_CRASH_DIR"

// TestCrash kills a writing process, again and again: whatever it was told to
// be durable is there, once, and the cursors have no gap. The processes send
// what was not acknowledged again, as shims do.
func TestCrash(t *testing.T) {
	if dir := os.Getenv(crashEnv); dir != "" {
		crashChild(dir)
		return
	}
	dir := t.TempDir()
	acked := make(map[string]uint64)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrash$")
		cmd.Env = append(os.Environ(), crashEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		stopAt, lines := 50+rng.IntN(400), 0
		for sc.Scan() {
			var node string
			var high uint64
			if _, err := fmt.Sscanf(sc.Text(), "ack %s %d", &node, &high); err != nil {
				t.Fatalf("child: %s", sc.Text())
			}
			acked[node] = high
			if lines++; lines == stopAt {
				_ = cmd.Process.Kill() // SIGKILL; what was printed before is still read.
			}
		}
		_ = cmd.Wait() // It was killed.
		if lines < stopAt {
			t.Fatal("child ended by itself")
		}
	}

	l, _ := start(t, Config{Dir: dir})
	r := l.NewReader(0)
	next := make(map[string]uint64)
	cursor := uint64(0)
	for {
		e, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if cursor++; e.Cursor != cursor {
			t.Fatalf("cursor %d follows %d", e.Cursor, cursor-1)
		}
		if next[e.Node]++; e.Sequence != next[e.Node] || string(e.Data) != crashData(e.Node, e.Sequence) {
			t.Fatalf("node %s: %d %q follows %d", e.Node, e.Sequence, e.Data, next[e.Node]-1)
		}
	}
	total := uint64(0)
	for node, high := range acked {
		if next[node] < high || l.High(node, "b1") != next[node] {
			t.Errorf("node %s: %d acknowledged, %d stored, high %d", node, high, next[node], l.High(node, "b1"))
		}
		total += high
	}
	if len(acked) != 4 || total == 0 {
		t.Errorf("acknowledged: %v", acked)
	}
	t.Logf("%d records, %d acknowledged", cursor, total)
}

func crashData(node string, seq uint64) string {
	return fmt.Sprintf("%s-%d-%s", node, seq, strings.Repeat("x", int(seq%200)))
}

// crashChild appends from four nodes until it is killed.
func crashChild(dir string) {
	l, err := Open(Config{Dir: dir, MinFree: 1, MemTableBytes: 256 << 10}) // Small, so that it is flushed while we write.
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go l.Run(context.Background())
	for i := range 4 {
		go func() {
			node := fmt.Sprint("n", i)
			for {
				first := l.High(node, "b1") + 1
				if first > 3 {
					first -= 2 // Some are sent twice.
				}
				b := Batch{Node: node, Boot: "b1", First: first, Received: time.Now()}
				for s := first; s < first+20; s++ {
					b.Events = append(b.Events, Event{Data: []byte(crashData(node, s))})
				}
				r, err := l.Append(context.Background(), b)
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				fmt.Printf("ack %s %d\n", node, r.High)
			}
		}()
	}
	select {}
}

// TestTornTail cuts the write-ahead log at every byte, as a crash may leave it. What
// was synced by then is there, and appending goes on behind it.
func TestTornTail(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "log")
	l, stop := start(t, Config{Dir: whole})
	mustAppend(t, l, batch("n1", 1, "first"))
	stop() // It is in a table.
	l, stop = start(t, Config{Dir: whole})
	wal := func(dir string) string {
		logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
		if err != nil || len(logs) == 0 {
			t.Fatal(logs, err)
		}
		return logs[len(logs)-1] // Their names are numbers of six digits.
	}
	var synced []int64 // The log's length when record i+2 was durable.
	for n := uint64(2); n <= 5; n++ {
		mustAppend(t, l, batch("n1", n, fmt.Sprint("record ", n)))
		synced = append(synced, fileSize(t, wal(whole)))
	}
	crashed := copyDir(t, whole) // As it would be after a crash now.
	stop()
	for cut := range fileSize(t, wal(crashed)) + 1 {
		dir := copyDir(t, crashed)
		if err := os.Truncate(wal(dir), cut); err != nil {
			t.Fatal(err)
		}
		durable := 1
		for _, end := range synced {
			if end <= cut {
				durable++
			}
		}
		l, err := Open(Config{Dir: dir, MinFree: 1})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		got := dump(t, l, 0)
		if len(got) < durable || l.High("n1", "b1") != uint64(len(got)) {
			t.Fatalf("cut at %d: %d records of %d, high %d", cut, len(got), durable, l.High("n1", "b1"))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}
