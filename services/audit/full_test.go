package audit

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// mountSmall mounts a file system of its own on a new folder.
func mountSmall(t *testing.T, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("weir", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a small file system; this test needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// serveMetrics has the collector serve metrics and health, and returns a client of them.
func (a *auditd) serveMetrics() func(path string) (code int, text string) {
	a.Helper()
	l, err := net.Listen("tcp", strings.Split(a.addr, ":")[0]+":0")
	if err != nil {
		a.Fatal(err)
	}
	l.Close()
	a.args = append(a.args, "--metrics-listen", l.Addr().String())
	return func(path string) (int, string) {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
}

// TestDiskOfLogFull: others fill the disk of the event log to the last byte. The
// collector says so, acknowledges nothing, and goes on when there is room; nothing
// that was acknowledged is lost.
func TestDiskOfLogFull(t *testing.T) {
	t.Parallel()
	const events = 60_000
	a := buildAuditd(t)
	dir := filepath.Join(a.dir, "log")
	mountSmall(t, dir, "32m")
	get := a.serveMetrics()
	a.start()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	var sent atomic.Int64
	done := make(chan struct{})
	go func() { defer close(done); reportExact(ctx, a.addr, "n1", events, &sent) }()
	eventually(t, "a part to be reported", func() bool { return sent.Load() > 1000 })
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for chunk := make([]byte, 4096); err == nil; {
		_, err = ballast.Write(chunk)
	}
	eventually(t, "the collector to say that it takes nothing", func() bool {
		if _, err := ballast.Write(make([]byte, 4096)); err == nil { // What it gives back is taken.
			return false
		}
		code, text := get("/readyz")
		_, metrics := get("/metrics")
		return code == http.StatusServiceUnavailable && strings.Contains(text, "not ready: append to event log") && strings.Contains(metrics, "weir_audit_log_writable 0")
	})
	// Who is started on a full disk waits.
	a.kill()
	said := filepath.Join(a.dir, "said")
	file, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	a.says = file
	a.start()
	eventually(t, "the collector to wait for room", func() bool {
		_, _ = ballast.Write(make([]byte, 4096))
		text, _ := os.ReadFile(said)
		return strings.Contains(string(text), "no room for the event log to be opened")
	})
	acked := sent.Load()
	if err := os.Remove(ballast.Name()); err != nil {
		t.Fatal(err)
	}
	if err := ballast.Truncate(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the collector to be ready again", func() bool { code, _ := get("/readyz"); return code == http.StatusOK })
	eventually(t, "more to be acknowledged", func() bool { return sent.Load() > acked+1000 })
	cancel()
	<-done
	a.kill() // What it has now is on the disk.
	a.start()
	kept, next := 0, uint64(1)
	eventually(t, "the log to be read", func() bool {
		var ok bool
		kept, _, ok = a.tally()
		return ok
	})
	if int64(kept) < sent.Load() {
		t.Errorf("%d acknowledged, %d kept", sent.Load(), kept)
	}
	call, err := a.client().Tail(t.Context(), &auditv1.TailRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for ; next <= uint64(kept); next++ {
		r, err := call.Recv()
		if err != nil || r.GetRecord().GetSequence() != next {
			t.Fatalf("sequence %d, want %d: %v", r.GetRecord().GetSequence(), next, err)
		}
	}
	t.Logf("full behind %d events; %d acknowledged, %d kept", acked, sent.Load(), kept)
}

// TestDiskOfSinkFull: the disk of one sink alone is full. The log and the other sinks go
// on, that sink waits, and at the end its files are exact.
func TestDiskOfSinkFull(t *testing.T) {
	t.Parallel()
	const events = 6000
	a := buildAuditd(t)
	np := filepath.Join(a.dir, "np")
	mountSmall(t, np, "300k")
	get := a.serveMetrics()
	a.args = append(a.args, "--rotate-size", "40k", "--rotate-keep", "0", "--rotate-gzip=false")
	a.start()
	var sent atomic.Int64
	reportExact(t.Context(), a.addr, "n1", events, &sent)
	stats := func() (waits, others bool, last string) {
		st, err := a.client().Stats(t.Context(), &auditv1.StatsRequest{})
		if err != nil || st.GetKept() != events {
			return false, false, fmt.Sprint(st.GetKept(), err)
		}
		others = true
		for _, s := range st.GetSinks() {
			if strings.Contains(s.GetName(), "np") {
				waits, last = s.GetCursor() < st.GetNewestCursor() && s.GetLastError() != "", s.GetLastError()
			} else {
				others = others && s.GetCursor() == st.GetNewestCursor()
			}
		}
		return waits, others, last
	}
	eventually(t, "one sink to wait, and the others to be done", func() bool {
		waits, others, last := stats()
		code, text := get("/readyz")
		_, metrics := get("/metrics")
		return waits && others && strings.Contains(last, "no space left") && code == http.StatusOK && strings.Contains(text, "warning: sink ") && strings.Contains(metrics, `weir_audit_sink_failing{sink="np`)
	})
	if err := syscall.Mount("weir", np, "tmpfs", syscall.MS_REMOUNT, "size=20m"); err != nil {
		t.Fatal(err)
	}
	a.written(events)
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	a.cmd = nil
	exactNPLog(t, concatenated(t, filepath.Join(np, "n1"), "np", ".log"), events)
	whole, err := os.ReadFile(filepath.Join(a.dir, "audit.json"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if len(whole) == 0 {
		t.Error("the other sink's file is empty")
	}
}
