package bridge_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// While the database is away its last copy answers, and it is followed again once
// it is back.
func TestPortsOutliveTheDatabase(t *testing.T) {
	in := ovstest.New(t)
	vsctl(t, in, "add-br br0 -- set bridge br0 datapath_type=netdev")
	cfg := config("br0")
	cfg.RunDir, cfg.DatapathType = in.Dir, "netdev"
	b, err := bridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t)
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.Run(running) }()
	t.Cleanup(func() { stop(); <-ended })
	ports := func() string {
		list, err := b.Ports(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(list)
	}
	before := ports()
	for followed := false; !followed; {
		select {
		case <-b.PortsChanged():
		default:
			followed = true
		}
	}

	in.KillDatabase()
	started := make(chan error, 1)
	go func() { started <- in.StartDatabase(ctx) }()
	for back := false; !back; {
		if now := ports(); now != before {
			t.Fatalf("the ports were %s and are %s", before, now)
		}
		select {
		case <-b.PortsChanged():
			back = true
		case <-ctx.Done():
			t.Fatal("the database is not followed again")
		default:
		}
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	vsctl(t, in, "add-port br0 more -- set interface more type=internal")
	for ports() == before {
		select {
		case <-b.PortsChanged():
		case <-ctx.Done():
			t.Fatal("a port that came is not seen")
		}
	}
}
