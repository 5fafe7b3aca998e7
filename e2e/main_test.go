// Package e2e tests whole clusters: the real binaries, real Open vSwitch, real
// packets, in network namespaces. Where there is no root or a tool is missing
// its tests are skipped with the reason; with WEIR_REQUIRE_DATAPLANE=1 they
// fail instead.
//
// Tests that take long and mostly wait (for packets that must not arrive, for API
// servers) run beside each other, after all others.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/weirnet/weir/e2e/harness"
)

// bin is the folder of the binaries under test.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	code := func() int {
		if harness.Missing() == "" {
			var err error
			if bin, err = harness.Build(context.Background()); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer os.RemoveAll(bin)
		}
		return m.Run()
	}()
	os.Exit(code)
}

var buildFaultpoints = sync.OnceValue(func() error { return harness.BuildFaultpoints(context.Background(), bin) })

// requireFaultpoints builds the binaries that die at fault points, once.
func requireFaultpoints(t testing.TB) {
	t.Helper()
	requireDataplane(t)
	must(t, buildFaultpoints())
}

// requireDataplane skips a test where there can be no cluster.
func requireDataplane(t testing.TB) {
	t.Helper()
	if why := harness.Missing(); why != "" {
		if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}

// startCluster is a cluster that ends with the test.
func startCluster(t testing.TB, cfg harness.Config) *harness.Cluster {
	t.Helper()
	requireDataplane(t)
	cfg.Bin, cfg.Log = bin, t.Logf
	c, err := harness.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes {
				t.Logf("shim of %s:\n%s", n.Name, n.Shim.Tail())
			}
			t.Logf("policyd:\n%s\nauditd:\n%s", c.Policyd.Tail(), c.Auditd.Tail())
		}
		if err := c.Stop(); err != nil {
			t.Errorf("stop cluster: %v", err)
		}
	})
	return c
}
