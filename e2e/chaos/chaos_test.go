package chaos

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	"github.com/weirnet/weir/e2e/harness"
)

var (
	rounds = flag.Int("chaos.rounds", 0, "rounds of random faults; 0: every fault once")
	seed   = flag.Uint64("chaos.seed", 1, "that determines faults and their parameters; 0: any")
	only   = flag.String("chaos.only", "", "faults that there are to be, by a regular expression; empty: all")
	keep   = flag.String("chaos.dir", "", "where the runs' folders are kept; empty: a failed run's alone, where temporary files are")
)

// requireDataplane skips a test where there can be no cluster.
func requireDataplane(t *testing.T) {
	t.Helper()
	if why := harness.Missing(); why != "" {
		if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}

// TestChaos does faults to a cluster, and holds what came of it to the invariants:
// every fault once, or random ones for as many rounds as asked for.
func TestChaos(t *testing.T) {
	requireDataplane(t)
	bin, err := harness.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(bin) })
	if err := harness.BuildFaultpoints(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	folder := *keep
	if folder == "" {
		folder = os.TempDir()
	}
	cfg := Config{Bin: bin, Module: "../..", Dir: folder, Seed: *seed, Rounds: *rounds, Log: progress(t),
		Command: fmt.Sprintf("go test -count=1 -timeout 0 ./e2e/chaos -run 'TestChaos$' -chaos.rounds %d -chaos.seed %d -chaos.only '%s' -v", *rounds, *seed, *only)}
	if *only != "" {
		if cfg.Only, err = regexp.Compile(*only); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := Run(context.WithoutCancel(t.Context()), cfg)
	if err != nil {
		t.Fatalf("%v\nto repeat it: %s", err, cfg.Command)
	}
	e, err := invariant.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	findings := invariant.Judge(e)
	var table bytes.Buffer
	invariant.Report(&table, findings)
	n := invariant.Violations(findings)
	t.Logf("%s\n%s%d rounds, violations: %d", summary(e), table.String(), *rounds, n)
	if n > 0 {
		t.Errorf("%d violations\nto repeat it: %s\nto judge it again: go run ./e2e/chaos/judge %s", n, cfg.Command, dir)
	} else if *keep == "" {
		os.RemoveAll(dir)
	}
}

// progress tells at once what a long run is about.
func progress(t *testing.T) func(string, ...any) {
	if *rounds == 0 {
		return t.Logf
	}
	return func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
}

// summary is what a run was.
func summary(e *invariant.Evidence) string {
	kinds := make(map[string]int)
	for _, f := range e.Faults {
		kinds[f.Name]++
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		list = append(list, fmt.Sprintf("%s %d", name, kinds[name]))
	}
	var sent, bytes, lost, unknown uint64
	for _, r := range e.Records {
		switch {
		case r.Kind == "loss" && r.Stage == invariant.StageUnknown:
			unknown++
		case r.Kind == "loss":
			lost += r.Count
		}
	}
	for _, f := range e.Flows {
		sent += uint64(len(f.Sent))
	}
	for _, s := range e.Streams {
		bytes += s.Bytes
	}
	return fmt.Sprintf("%d faults (%s); %d datagrams, %d connections tried, %d bytes of streams, %d records, %d packets stated as lost and %d losses of unknown size",
		len(e.Faults), strings.Join(list, ", "), sent, len(e.Dials), bytes, len(e.Records), lost, unknown)
}
