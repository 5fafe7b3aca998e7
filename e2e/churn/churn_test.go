package churn

import (
	"flag"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	seed     = flag.Uint64("churn.seed", 1, "seed of the changes and the disturbances")
	duration = flag.Duration("churn.for", 0, "change for so long, as a cluster in use does; zero for a moment, as fast as can be")
	shims    = flag.Int("churn.shims", 24, "nodes")
	rate     = flag.Int("churn.rate", 400, "changes a second")
)

// Whatever happens, all ends agree once it is over, nothing had to be
// corrected on the way, and nothing is left behind. The long form:
//
//	go test ./e2e/churn -run Churn -v -timeout 0 -churn.for=30m -churn.shims=1000 -churn.rate=200
func TestChurn(t *testing.T) {
	cfg := Config{Seed: *seed, Shims: *shims, Rate: *rate, Changes: 400, Logf: t.Logf, Dir: t.TempDir(),
		Disturbances: 30, Sample: 50, Hold: 200 * time.Millisecond, Stall: 200 * time.Millisecond,
		ShimLife: 200 * time.Millisecond, ReplicaLife: 500 * time.Millisecond}
	if *duration > 0 {
		cfg.Disturbances = 20
		cfg.Changes = int(duration.Seconds()) * *rate
		cfg.Hold, cfg.Stall = 5*time.Second, 2500*time.Millisecond
		cfg.ShimLife, cfg.ReplicaLife = time.Second, 30*time.Second
	}
	report, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d changes in %s, %d connections (%+v), %d shims and %d replicas started anew, %d flows compared",
		report.Changes, report.Took.Round(time.Millisecond), report.Connections, report.Disturbances, report.ShimStarts, report.ReplicaLives, report.Flows)
	t.Logf("at the first quarter %+v, at the end %+v", report.Quarter, report.End)
	for _, name := range slices.Sorted(maps.Keys(report.Counters)) {
		if n := report.Counters[name]; n != 0 && (strings.HasPrefix(name, "weir_") || strings.HasPrefix(name, calls+"/")) {
			t.Logf("%s %.0f", name, n)
		}
	}
	checkHappened(t, &report)
	checkClean(t, &report)
	checkFlat(t, &report)
}

// checkHappened holds the run to having tested something.
func checkHappened(t *testing.T, r *Report) {
	t.Helper()
	for what, n := range map[string]int{"connections were cut": int(r.Disturbances.Cut), "connections were truncated": int(r.Disturbances.Truncated),
		"connections were held": int(r.Disturbances.Held), "replicas were started anew": r.ReplicaLives, "shims were started anew": r.ShimStarts, "flows were compared": r.Flows} {
		if n == 0 {
			t.Errorf("no %s", what)
		}
	}
}

// calls are the gRPC calls that ended.
const calls = "grpc_server_handled_total"

// checkClean: nobody corrupted a state, so none may have had to be corrected;
// and whatever became of connections, neither end said what the other could not
// take, and no handler failed.
func checkClean(t *testing.T, r *Report) {
	t.Helper()
	for _, code := range []string{"InvalidArgument", "Internal", "Unknown", "DataLoss", "PermissionDenied"} {
		if n := r.Counters[calls+"/"+code]; n != 0 {
			t.Errorf("%.0f calls ended with %s", n, code)
		}
	}
	for _, name := range []string{"weir_shim_digest_mismatches_total", "weir_policy_digest_mismatches_total", "weir_shim_flows_mended_total"} {
		n, counted := r.Counters[name]
		if !counted || n != 0 {
			t.Errorf("%s is %v (counted: %t)", name, n, counted)
		}
	}
}

// checkFlat compares what the process holds at two moments of rest.
//
// Goroutines depend on nothing but the connections that there are, one a shim.
// What is allowed beyond is for gRPC's, which end a moment after a connection,
// and for timers that happen to fire.
//
// The heap follows the number and the content of the objects, which wander, and
// maps keep the size that they once had.
func checkFlat(t *testing.T, r *Report) {
	t.Helper()
	if limit := r.Quarter.Goroutines + *shims/100 + 10; r.End.Goroutines > limit {
		t.Errorf("%d goroutines at the end, %d at the first quarter", r.End.Goroutines, r.Quarter.Goroutines)
	}
	if limit := r.Quarter.Heap + r.Quarter.Heap/10; *duration > 0 && r.End.Heap > limit {
		t.Errorf("%d MB of heap at the end, %d MB at the first quarter", r.End.Heap>>20, r.Quarter.Heap>>20)
	}
}
