package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// restored waits until the bridge holds what it is to, as the shim itself checks it, and
// fails where that takes longer than it may.
func restored(t *testing.T, n *harness.Node, what string, start time.Time) {
	t.Helper()
	eventually(t, func() error {
		if code, out := checkBridge(t, n); code != 0 {
			return fmt.Errorf("%s: %s", what, out)
		}
		return nil
	})
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("%s: restored after %s", what, took)
	} else {
		t.Logf("%s: restored after %s", what, took)
	}
}

// Whatever becomes of the switch, its database or the bridge, it is put right within
// five seconds and said; no denied packet passes meanwhile, and allowed connections go on.
func TestSwitchFaults(t *testing.T) {
	t.Parallel()
	c, denied := recoveryCluster(t)
	node := c.Nodes["node-1"]
	ovs, ctx := node.OVS, t.Context()
	server := push(t, c, "client", "web", false, 8001)
	barred := startBarrage(t, c.Pod("default/stranger"), c.Pod("default/web"), 8001)
	vsctl := func(args ...string) func() error {
		return func() error { _, err := ovs.Vsctl(ctx, append([]string{"--no-wait"}, args...)...); return err }
	}
	ofctl := func(args ...string) func() error {
		return func() error { _, err := ovs.Ofctl(ctx, args...); return err }
	}
	const flows, groups = "weir_shim_flows_mended_total", "weir_shim_groups_mended_total"
	setting := func(name string) string {
		return fmt.Sprintf("weir_shim_bridge_settings_mended_total{setting=%q}", name)
	}
	const losses = "weir_shim_switch_losses_total"
	for _, f := range []struct {
		what   string
		do     func() error
		metric string // That tells of it; empty: nothing is lost.
	}{
		{"flows are removed", ofctl("del-flows", harness.Bridge, "table=24"), flows},
		{"flows are changed", ofctl("mod-flows", harness.Bridge, "table=23,actions=drop"), flows},
		{"a flow is added", ofctl("add-flow", harness.Bridge, "table=60,priority=9,actions=NORMAL"), flows},
		{"all flows are removed", ofctl("del-flows", harness.Bridge), losses},
		{"a group is added", ofctl("add-group", harness.Bridge, "group_id=77,type=all,bucket=actions=drop"), groups},
		{"a meter is removed", ofctl("del-meter", harness.Bridge, "meter=3"), groups},
		{"a meter is changed", ofctl("mod-meter", harness.Bridge, "meter=3,pktps,band=type=drop,rate=7"), groups},
		{"the protocols are changed", vsctl("set", "bridge", harness.Bridge, "protocols=OpenFlow10"), setting("protocols")},
		{"a controller is set", vsctl("set-controller", harness.Bridge, "tcp:127.0.0.1:6653"), setting("controller")},
		{"the address is changed", vsctl("set", "bridge", harness.Bridge, `other_config:hwaddr="02:00:00:00:00:99"`), setting("hwaddr")},
		{"the datapath id is changed", vsctl("set", "bridge", harness.Bridge, "other_config:datapath-id=00000000000000aa"), setting("datapath-id")},
		{"the database dies", func() error { ovs.KillDatabase(); return ovs.StartDatabase(ctx) }, ""},
		{"the switch stops", func() error { ovs.StopSwitch(); return ovs.StartSwitch(ctx) }, losses},
		{"the switch dies, and is to come back failing open", func() error {
			ovs.KillSwitch()
			if err := vsctl("set", "bridge", harness.Bridge, "fail_mode=standalone")(); err != nil {
				return err
			}
			eventually(t, func() error {
				mode, err := ovs.Vsctl(ctx, "get", "bridge", harness.Bridge, "fail_mode")
				if err == nil && strings.TrimSpace(mode) != "secure" {
					return fmt.Errorf("it fails %s", mode)
				}
				return err
			})
			return ovs.StartSwitch(ctx)
		}, setting("fail_mode")},
		{"both die", func() error {
			ovs.KillSwitch()
			ovs.KillDatabase()
			if err := ovs.StartDatabase(ctx); err != nil {
				return err
			}
			return ovs.StartSwitch(ctx)
		}, losses},
		{"the bridge is removed", func() error {
			if err := vsctl("del-br", harness.Bridge)(); err != nil {
				return err
			}
			eventually(t, func() error { return node.AddGateway(ctx) })
			return nil
		}, setting("bridge")},
	} {
		var before float64
		if f.metric != "" {
			before = metric(t, node, f.metric)
		}
		start := time.Now()
		if err := f.do(); err != nil {
			t.Fatalf("%s: %v", f.what, err)
		}
		if strings.Contains(f.what, "die") || strings.Contains(f.what, "stops") {
			start = time.Now() // It is back.
		}
		if f.metric != "" {
			eventually(t, func() error {
				if metric(t, node, f.metric) <= before {
					return fmt.Errorf("%s: %s is %v still", f.what, f.metric, before)
				}
				return nil
			})
		}
		restored(t, node, f.what, start)
		lives(t, f.what, server)
	}
	stalls(t, "denied before", denied)
	barred.silent(t)
}

// A running switch that is told to fail open forwards by itself until that is undone:
// for no longer than it takes to undo it, and nothing passes afterwards.
func TestSwitchToldToFailOpenIsClosed(t *testing.T) {
	t.Parallel()
	c, _ := recoveryCluster(t)
	node := c.Nodes["node-1"]
	server := push(t, c, "client", "web", false, 8001)
	barred := startBarrage(t, c.Pod("default/stranger"), c.Pod("default/web"), 8001)
	for range 5 {
		before := metric(t, node, `weir_shim_bridge_settings_mended_total{setting="fail_mode"}`)
		start := time.Now()
		_, err := node.OVS.Vsctl(t.Context(), "--no-wait", "set", "bridge", harness.Bridge, "fail_mode=standalone")
		must(t, err)
		eventually(t, func() error {
			if metric(t, node, `weir_shim_bridge_settings_mended_total{setting="fail_mode"}`) <= before {
				return fmt.Errorf("it is not restored")
			}
			return nil
		})
		restored(t, node, "the fail mode is changed", start)
	}
	lives(t, "closed again", server)
	passed, sent := barred.arrived(t), barred.sent.Load()
	eventually(t, func() error {
		if now := barred.sent.Load(); now < sent+200 {
			return fmt.Errorf("%d more packets", now-sent)
		}
		return nil
	})
	t.Logf("of %d denied packets %d passed in five changes", sent, passed)
	if now := barred.arrived(t); now != passed {
		t.Errorf("%d denied packets passed afterwards", now-passed)
	}
	if passed > int(sent)/10 {
		t.Errorf("of %d denied packets %d passed", sent, passed)
	}
}
