package bridge_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// While the database is away the ports are those of before, and afterwards they are
// followed again.
func TestPortsOutliveTheDatabase(t *testing.T) {
	t.Parallel()
	in := ovstest.New(t)
	b, err := bridge.New(bridge.Config{Name: "br-weir", RunDir: in.Dir, DatapathType: "netdev"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := b.SetUp(ctx); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() { b.Run(ctx) })
	t.Cleanup(func() { cancel(); wait.Wait() })
	if err := b.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	ports := func(n int) func() bool {
		return func() bool { list, err := b.Ports(ctx); return err == nil && len(list) == n }
	}
	within(t, 5*time.Second, ports(1))
	in.KillDatabase()
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) { // As the outage lasts.
		if !ports(1)() {
			t.Fatal("the ports are forgotten")
		}
	}
	if err := in.StartDatabase(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Run(ctx, "ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1"); err != nil {
		t.Fatal(err)
	}
	if err := b.AddPort(ctx, "p0", nil); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, ports(2))
}
