package pipeline

import (
	"testing"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// shared is a compiler with one of two Pods adopted.
func shared(t *testing.T, cfg Config) (*feed, *Compiler) {
	w := newFeed(t, "node-1")
	w.apply(&api.Namespace{Name: "x"}, pod("a", "node-1", "a", "10.0.0.1", "fd00::1"), pod("b", "node-1", "b", "10.0.0.2"))
	c := New(cfg, Assignment{})
	c.Share(&Sharing{Others: [][6]byte{port(2, "b").MAC}})
	w.update(c, w.sync(), []Port{port(1, "a")})
	return w, c
}

// In a shared bridge's first table our flows come ahead of all others' and leave
// it to them what is not ours; in the end nothing is left of the sharing.
func TestSharingLeavesTheRestToOthers(t *testing.T) {
	for name, cfg := range map[string]Config{"plain": config, "uplink": {LocalMAC: config.LocalMAC, HostMAC: config.HostMAC, RuleLogRate: 100, RuleLogBurst: 100, MeterLimit: 1 << 18, RejectRate: 50, Uplink: 9}} {
		t.Run(name, func(t *testing.T) {
			w, c := shared(t, cfg)
			for _, f := range c.Desired() {
				if f.Table == TableClassifier && (Shareable(openflow.Flow{Priority: f.Priority}) || Closes(f)) {
					t.Errorf("others' flows may hide %s, or it them", f)
				}
			}
			ports := []Port{port(1, "a"), port(2, "b")}
			c.Share(nil)
			w.update(c, nil, ports)
			fresh := New(cfg, Assignment{})
			w.update(fresh, Whole(w.replica), ports)
			if got, want := text(c.Desired()), text(fresh.Desired()); got != want {
				t.Errorf("after the sharing:\n%s\nwithout:\n%s", got, want)
			}
		})
	}
}

// Which ports are ours, and which are in doubt, can be told from the flows.
func TestPortsAreToldFromFlows(t *testing.T) {
	w, c := shared(t, config)
	count := func(of func(openflow.Flow) (uint32, bool)) (n int) {
		for _, f := range c.Desired() {
			if id, ok := of(f); ok {
				n++
				if id != 1 {
					t.Errorf("port %d: %s", id, f)
				}
			}
		}
		return n
	}
	if n := count(DividesPort); n != 1 {
		t.Errorf("%d flows divide a port", n)
	}
	if n := count(DoubtsPort); n != 0 {
		t.Errorf("%d flows doubt a port", n)
	}
	doubted := port(1, "a")
	doubted.Doubt = true
	w.update(c, nil, []Port{doubted})
	if n := count(DoubtsPort); n != 3 { // From it, and to both of its addresses.
		t.Errorf("%d flows doubt a port", n)
	}
	c.Share(nil)
	w.update(c, nil, []Port{port(1, "a")})
	if n := count(DividesPort); n != 1 {
		t.Errorf("%d flows divide a port", n)
	}
}

// Others may have any table that we have not, and ours if their flows do not
// come first.
func TestShareable(t *testing.T) {
	for f, want := range map[openflow.FlowKey]bool{
		{Table: 0, Priority: 65530}: true, {Table: 0, Priority: 65531}: false, {Table: TableOutput}: false, {Table: 99, Priority: 65535}: true,
	} {
		if got := Shareable(openflow.Flow{Table: f.Table, Priority: f.Priority}); got != want {
			t.Errorf("%v: %v", f, got)
		}
	}
}
