package bridge_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// vsctl runs ovs-vsctl with words that a line has.
func vsctl(t *testing.T, in *ovstest.Instance, line string) string {
	t.Helper()
	out, err := in.Vsctl(deadline(t), strings.Fields(line)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func find(t *testing.T, in *ovstest.Instance, name, datapath string) (bridge.Standing, error) {
	t.Helper()
	cfg := config(name)
	cfg.RunDir, cfg.DatapathType = in.Dir, datapath
	b, err := bridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b.Find(deadline(t), false)
}

// A bridge is adopted if nobody of ours was ever there, and then until it is
// closed; what was found is put back.
func TestAdoptionIsOnTheBridgesRow(t *testing.T) {
	in := ovstest.New(t)
	cfg := config("br0")
	cfg.RunDir, cfg.DatapathType = in.Dir, "netdev"
	b, err := bridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	adopting := func(known, want bool) bridge.Standing {
		t.Helper()
		s, err := b.Find(deadline(t), known)
		must(err)
		if s.Adopting != want {
			t.Fatalf("adopting: %v", s.Adopting)
		}
		return s
	}
	adopting(false, false) // There is no bridge.
	vsctl(t, in, "add-br br0 -- set bridge br0 datapath_type=netdev protocols=OpenFlow13")
	adopting(true, false)
	before := vsctl(t, in, "--columns=fail_mode,datapath_type,other_config list bridge br0")
	adopting(false, true)
	if after := vsctl(t, in, "--columns=fail_mode,datapath_type,other_config list bridge br0"); after != before {
		t.Errorf("the bridge has become %s", after)
	}
	in.KillSwitch()
	must(in.StartSwitch(deadline(t)))
	adopting(true, true) // Whatever else is known: it goes on.
	until := time.Now().Add(time.Minute).Truncate(time.Second)
	must(b.Close(deadline(t), until, func(context.Context) error { return nil }))
	if mode := vsctl(t, in, "get bridge br0 fail_mode"); mode != "secure" {
		t.Errorf("fail mode %s", mode)
	}
	if s := adopting(false, false); !s.EstablishedUntil.Equal(until) {
		t.Errorf("established until %s", s.EstablishedUntil)
	}
	mac := vsctl(t, in, "get bridge br0 other_config:hwaddr")
	for range 2 {
		if made, err := b.Restore(deadline(t)); err != nil || made {
			t.Fatal(made, err)
		}
		if row := vsctl(t, in, "--columns=fail_mode,protocols,external_ids list bridge br0"); strings.Join(strings.Fields(row), " ") !=
			"fail_mode : [] protocols : [OpenFlow13] external_ids : {}" {
			t.Errorf("restored: %s", row)
		}
	}
	if now := vsctl(t, in, "get bridge br0 other_config:hwaddr"); now != mac {
		t.Errorf("address %s has become %s", mac, now)
	}

	vsctl(t, in, "del-br br0")
	must(b.SetUp(deadline(t)))
	adopting(false, false)
	if made, err := b.Restore(deadline(t)); err != nil || !made {
		t.Error(made, err)
	}
}

// A flow of ours says that the bridge was ours, whatever was lost.
func TestBridgeWithOurFlowsIsNotAdopted(t *testing.T) {
	in := ovstest.New(t)
	vsctl(t, in, "add-br br0 -- set bridge br0 datapath_type=netdev")
	if _, err := in.Run(deadline(t), "ovs-ofctl", "add-flow", "br0", "cookie=0x5745000000000001,priority=7,actions=drop"); err != nil {
		t.Fatal(err)
	}
	if s, err := find(t, in, "br0", "netdev"); err != nil || s.Adopting {
		t.Fatal(s, err)
	}
}

// What cannot be taken over is left as it is, and named.
func TestUnfitBridges(t *testing.T) {
	in := ovstest.New(t)
	for name, c := range map[string]struct{ datapath, setUp, why string }{
		"br1": {"system", "", "its datapath type is netdev, and to make it system would rebuild it"},
		"br2": {"netdev", " -- set-controller br2 tcp:127.0.0.1:6653", "it has an OpenFlow controller, which would go on writing flows (ovs-vsctl del-controller br2)"},
		"br3": {"netdev", " -- add-port br3 p3 tag=7 -- set interface p3 type=internal", "port p3 is in a VLAN, and Pods' forwarding knows none"},
		"br4": {"netdev", " -- add-bond br4 bond p4 p5 -- set interface p4 type=internal -- set interface p5 type=internal", "port bond is a bond"},
	} {
		t.Run(name, func(t *testing.T) {
			vsctl(t, in, "add-br "+name+" -- set bridge "+name+" datapath_type=netdev"+c.setUp)
			_, err := find(t, in, name, c.datapath)
			var unfit *bridge.UnfitError
			if !errors.As(err, &unfit) || unfit.Why != c.why {
				t.Errorf("%v", err)
			}
			if ids := vsctl(t, in, "get bridge "+name+" external_ids"); ids != "{}" {
				t.Errorf("external_ids: %s", ids)
			}
		})
	}
}

// Antrea's agent leaves its round on the bridge, and the kind of each port.
func TestAntreaBridges(t *testing.T) {
	in := ovstest.New(t)
	vsctl(t, in, "add-br plain -- set bridge plain datapath_type=netdev")
	vsctl(t, in, "add-br round -- set bridge round datapath_type=netdev external_ids:roundNum=1")
	vsctl(t, in, "add-br ports -- set bridge ports datapath_type=netdev -- add-port ports gw0 -- set interface gw0 type=internal external_ids:antrea-type=gateway")
	cfg := config("plain")
	cfg.RunDir = in.Dir
	b, err := bridge.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.AntreaBridges(deadline(t))
	if err != nil || strings.Join(got, " ") != "ports round" {
		t.Errorf("%v, %v", got, err)
	}
}
