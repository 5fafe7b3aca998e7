package audit

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// diesAt starts the collector so that it dies at a fault point, and does what leads it
// there.
func (a *auditd) diesAt(point string, lead func()) {
	a.Helper()
	a.T.Setenv("WEIR_FAULTPOINT", point)
	a.start()
	os.Unsetenv("WEIR_FAULTPOINT")
	lead()
	died := make(chan error, 1)
	go func() { died <- a.cmd.Wait() }()
	select {
	case <-died:
	case <-time.After(30 * time.Second):
		a.Fatalf("the collector lives on, its fault point is %s", point)
	}
	if state := a.cmd.ProcessState; state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		a.Fatalf("the collector ended before its fault point %s: %s", point, state)
	}
	a.cmd = nil
}

func (a *auditd) client() auditv1.AuditServiceClient {
	a.Helper()
	conn, err := grpc.NewClient(a.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { conn.Close() })
	return auditv1.NewAuditServiceClient(conn)
}

// tally reads the whole log: events of nodes, and records that are stated as lost for
// damage. It is false where the collector is not there, or goes.
func (a *auditd) tally() (kept, damaged int, ok bool) {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), 5*time.Second)
	defer cancel()
	call, err := a.client().Tail(ctx, &auditv1.TailRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return 0, 0, false
	}
	for {
		r, err := call.Recv()
		if err != nil {
			return kept, damaged, err.Error() == "EOF"
		}
		if r.GetRecord().GetSequence() > 0 {
			kept++
		} else if l := r.GetRecord().GetEvent().GetLoss(); l.GetStage() == auditv1.LossStage_LOSS_STAGE_DAMAGED {
			damaged += int(l.GetCount())
		}
	}
}

// TestUpkeepOverDeaths: the collector dies while it writes positions, mends a damaged
// table and removes old records. Nothing is lost for that, or stated or stored twice.
func TestUpkeepOverDeaths(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "weir-auditd")
	if out, err := exec.Command("go", "build", "-tags", "faultpoints", "-o", binary, "github.com/weirnet/weir/services/cmd/weir-auditd").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	a := newAuditd(t, binary)
	const events = 1500
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	report := func() {
		var sent atomic.Int64
		reportExact(ctx, a.addr, "n1", events, &sent)
	}
	terminate := func() {
		if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	a.diesAt("auditd.store.snapshot", func() { report(); terminate() })
	a.start()
	report() // Everything is there: nothing is sent again.
	if kept, _, ok := a.tally(); !ok || kept != events {
		t.Fatalf("%d records after a death at the positions, %t", kept, ok)
	}
	terminate()
	if err := a.cmd.Wait(); err != nil {
		t.Fatal(err)
	}

	tables, err := filepath.Glob(filepath.Join(a.dir, "log", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables: %v, %v", tables, err)
	}
	for _, table := range tables {
		flipBit(t, table, 3)
	}
	read := func() { a.tally() }
	a.diesAt("auditd.mend.salvaged", read)
	a.diesAt("auditd.mend.replaced", read)
	a.start()
	kept, damaged := 0, 0
	eventually(t, "the log to be whole, as far as it is stated", func() bool {
		var ok bool
		kept, damaged, ok = a.tally()
		return ok && kept+damaged == events
	})
	if damaged == 0 || kept == 0 {
		t.Fatalf("%d records and %d stated as damaged", kept, damaged)
	}
	a.kill()

	a.args = []string{"--retention-age", "1ms"}
	a.diesAt("auditd.trim.removed", func() {})
	a.args = nil
	a.start()
	report()
	if kept, damaged, ok := a.tally(); !ok || kept != 0 || damaged != 0 {
		t.Errorf("%d records are left, and %d stated as damaged, %t", kept, damaged, ok)
	}
	st, err := a.client().Stats(t.Context(), &auditv1.StatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.GetNodes()[0].GetKept() != events {
		t.Errorf("of node n1 %d events are counted", st.GetNodes()[0].GetKept())
	}
}

// TestDamagedManifest: after a bit of the log's manifest has flipped the collector has all
// it had, and says what happened.
func TestDamagedManifest(t *testing.T) {
	t.Parallel()
	const events = 500
	a := buildAuditd(t)
	get := a.serveMetrics()
	a.start()
	var sent atomic.Int64
	reportExact(t.Context(), a.addr, "n1", events, &sent)
	a.kill()
	manifests, err := filepath.Glob(filepath.Join(a.dir, "log", "MANIFEST-*"))
	if err != nil || len(manifests) != 1 {
		t.Fatal(manifests, err)
	}
	flipBit(t, manifests[0], 2)
	a.start()
	eventually(t, "the collector to say that its log was damaged", func() bool {
		code, text := get("/readyz")
		_, metrics := get("/metrics")
		return code == http.StatusOK && strings.Contains(text, "warning: the event log's database was damaged") && strings.Contains(metrics, "weir_audit_log_set_aside 1")
	})
	reportExact(t.Context(), a.addr, "n1", events+100, &sent) // It knows what it has.
	if kept, damaged, ok := a.tally(); !ok || kept != events+100 || damaged != 0 {
		t.Errorf("%d records, %d stated as damaged, %t", kept, damaged, ok)
	}
	a.written(events + 100)
}

// flipBit flips a bit of a file, at one of so many parts of it.
func flipBit(t *testing.T, path string, part int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/part] ^= 0x10
	if err := os.WriteFile(path, b, 0o640); err != nil {
		t.Fatal(err)
	}
}
