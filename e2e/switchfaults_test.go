package e2e

import (
	"fmt"
	"net"
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

// A meter that somebody removed comes back under the flows that name it: it counts what
// they report again, although another meter has taken its place in the switch.
func TestMetersComeBackUnderTheirFlows(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(true), policy("deny-all", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}"))
	node, ctx := c.Nodes["node-1"], t.Context()
	denied := func(n int) {
		for range n {
			must(t, c.Pod("default/client").NS.Do(func() error {
				conn, err := net.Dial("udp", "10.9.1.2:80")
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.Write([]byte("denied"))
				return err
			}))
		}
	}
	// reporting is the meter of the flow that has reported most, with how much.
	reporting := func() (meter, packets uint64) {
		out, err := node.OVS.Ofctl(ctx, "dump-flows", harness.Bridge, "table=22,cookie=0x5700050000000000/0xff00ff0000000000")
		must(t, err)
		for line := range strings.Lines(out) {
			n := countPackets(line)
			if _, rest, reports := strings.Cut(line, "meter_id="); reports && n > packets {
				packets = n
				fmt.Sscanf(rest, "%d", &meter)
			}
		}
		return meter, packets
	}
	metered := func(meter uint64) (packets uint64) {
		out, err := node.OVS.Ofctl(ctx, "meter-stats", harness.Bridge, fmt.Sprintf("meter=%d", meter))
		must(t, err)
		if _, rest, there := strings.Cut(out, "packet_in_count:"); there {
			fmt.Sscanf(rest, "%d", &packets)
		}
		return packets
	}
	denied(20)
	var meter uint64
	eventually(t, func() error {
		var packets uint64
		if meter, packets = reporting(); packets < 20 || metered(meter) < 20 {
			return fmt.Errorf("meter %d counted %d of %d", meter, metered(meter), packets)
		}
		return nil
	})
	start := time.Now()
	for _, args := range [][]string{{"del-meter", harness.Bridge, fmt.Sprintf("meter=%d", meter)}, {"add-meter", harness.Bridge, "meter=9000,pktps,band=type=drop,rate=1"}} {
		_, err := node.OVS.Ofctl(ctx, args...)
		must(t, err)
	}
	restored(t, node, "a meter whose place is taken", start)
	denied(20)
	eventually(t, func() error {
		if now, packets := reporting(); now != meter || metered(now) < 20 {
			return fmt.Errorf("meter %d counted %d of the last 20; its flow %d in all", now, metered(now), packets)
		}
		return nil
	})
}
