package bridge_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// What others change of a bridge that is ours is restored at once, and told.
func TestBridgeIsGuarded(t *testing.T) {
	t.Parallel()
	in := ovstest.New(t)
	var mu sync.Mutex
	mended := make(map[string]int)
	b, err := bridge.New(bridge.Config{Name: "br-weir", RunDir: in.Dir, DatapathType: "netdev", Mended: func(what string) {
		mu.Lock()
		defer mu.Unlock()
		mended[what]++
	}})
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
	if _, err := b.Local(ctx); err != nil {
		t.Fatal(err)
	}
	row := func() string {
		out, err := in.Vsctl(ctx, "--columns=fail_mode,protocols,controller,datapath_type,other_config,external_ids", "list", "bridge", "br-weir")
		if err != nil {
			return err.Error()
		}
		return out
	}
	ours := row()
	told := func(what string) int {
		mu.Lock()
		defer mu.Unlock()
		return mended[what]
	}
	for _, by := range []struct {
		what string
		args []string
	}{
		{bridge.MendedFailMode, []string{"set", "bridge", "br-weir", "fail_mode=standalone"}},
		{bridge.MendedFailMode, []string{"clear", "bridge", "br-weir", "fail_mode"}},
		{bridge.MendedProtocols, []string{"set", "bridge", "br-weir", "protocols=OpenFlow10"}},
		{bridge.MendedController, []string{"set-controller", "br-weir", "tcp:127.0.0.1:6653"}},
		{bridge.MendedAddress, []string{"set", "bridge", "br-weir", `other_config:hwaddr="02:00:00:00:00:99"`}},
		{bridge.MendedAddress, []string{"remove", "bridge", "br-weir", "other_config", "hwaddr"}},
		{bridge.MendedDatapathID, []string{"set", "bridge", "br-weir", "other_config:datapath-id=00000000000000aa"}},
		{bridge.MendedRecord, []string{"remove", "bridge", "br-weir", "external_ids", "weir-adoption"}},
	} {
		before := told(by.what)
		start := time.Now()
		if _, err := in.Vsctl(ctx, append([]string{"--no-wait"}, by.args...)...); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, func() bool { return told(by.what) > before && row() == ours }, by.what, row)
		t.Logf("%v: restored %s after it was begun", by.args, time.Since(start))
	}

	// Of a switch that is away, too: it must not come back failing open.
	in.KillSwitch()
	if _, err := in.Vsctl(ctx, "--no-wait", "set", "bridge", "br-weir", "fail_mode=standalone"); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, func() bool { return row() == ours })
	if err := in.StartSwitch(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}

	// A bridge that is removed is made anew, with its address and its ports.
	if _, err := in.Run(ctx, "ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1"); err != nil {
		t.Fatal(err)
	}
	if err := b.AddPort(ctx, "p0", map[string]string{"pod-name": "a", "pod-namespace": "x"}); err != nil {
		t.Fatal(err)
	}
	has := func() bool {
		ports, err := b.Ports(ctx)
		return err == nil && len(ports) == 2 && ports[1].Name == "p0" && ports[1].ExternalIDs["pod-name"] == "a" && ports[0].Number == openflow.PortLocal
	}
	within(t, 5*time.Second, has)
	settings := func(row string) string { // Less those that may be the switch's defaults as well.
		var kept []string
		for line := range strings.Lines(row) {
			if !strings.HasPrefix(line, "protocols") {
				kept = append(kept, strings.Replace(line, `, weir-made="true"`, "", 1))
			}
		}
		return strings.Join(kept, "")
	}
	for what, args := range map[string][]string{
		"removed":  {"del-br", "br-weir"},
		"replaced": {"del-br", "br-weir", "--", "add-br", "br-weir", "--", "set", "bridge", "br-weir", "datapath_type=netdev"},
	} {
		bridges, ports := told(bridge.MendedBridge), told(bridge.MendedPorts)
		if _, err := in.Vsctl(ctx, append([]string{"--no-wait"}, args...)...); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, func() bool {
			return told(bridge.MendedBridge) > bridges && told(bridge.MendedPorts) > ports && has() && settings(row()) == settings(ours)
		}, what, row)
	}
}

// within waits until something holds, and fails where it does not in time.
func within(t *testing.T, limit time.Duration, holds func() bool, about ...any) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); {
		if time.Now().After(end) {
			for i, a := range about {
				if f, ok := a.(func() string); ok {
					about[i] = f()
				}
			}
			t.Fatalf("not within %s: %v", limit, about)
		}
		time.Sleep(10 * time.Millisecond) // Between two looks.
	}
}
