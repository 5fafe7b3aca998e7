package bridge_test

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

func TestTraceOutcome(t *testing.T) {
	in := ovstest.New(t)
	s := onInstance(t, in, "brt")
	next := flow(20, 7, of.NewMatch(of.IPv4()), of.OutputPort(1), of.OutputPort(of.PortLocal), of.OutputRegister(1))
	next.Cookie |= 5
	s.put(flow(0, 7, of.NewMatch(of.IPv4()), of.SetReg(1, 3, 0xff), of.Controller{ControllerID: 1}, of.CT{Recirc: true, Table: 20}), next)
	b := s.api.(*bridge.Bridge)
	trace := func(p bridge.Packet) bridge.Outcome {
		text, err := b.Trace(s.ctx, p.String())
		s.must(err)
		o, err := bridge.ParseTrace(text)
		s.must(err)
		return o
	}
	want := bridge.Outcome{Outputs: []string{"3", "LOCAL"}, ToController: true, Tables: []uint8{0, 20}, Cookies: []uint64{ours, ours | 5}, Recirculations: 1}
	if got := trace(udp(1, "10.0.0.1", "10.0.0.2", 1, 2)); !reflect.DeepEqual(got, want) {
		t.Errorf("outcome %+v, want %+v", got, want)
	}
	if got := trace(udp(1, "fd00::1", "fd00::2", 1, 2)); !got.Dropped() || got.ToController || !reflect.DeepEqual(got.Tables, []uint8{0}) {
		t.Errorf("a table miss has outcome %+v", got)
	}
	if _, err := b.Trace(s.ctx, "nonsense=1"); err == nil {
		t.Error("nonsense was traced")
	}
	if _, err := bridge.ParseTrace("nothing at all"); err == nil {
		t.Error("nonsense was read")
	}
}

// TestTextIsWhatOfctlTakes installs the text of every sample with ovs-ofctl and
// reads the same back.
func TestTextIsWhatOfctlTakes(t *testing.T) {
	s := newReal(t)
	in := shared.instance
	b := s.api.(*bridge.Bridge)
	socket := filepath.Join(in.Dir, b.Name()+".mgmt")
	ofctl := func(command, text string) {
		t.Helper()
		cmd := in.Command(s.ctx, "ovs-ofctl", "-O", "OpenFlow15", command, socket, "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	_, err := in.Ofctl(s.ctx, "add-meter", socket, meter6.String())
	s.must(err)
	inDatapath, byFields := balancer(6, true, 2), balancer(7, false, 2)
	inDatapath.Hash, byFields.Hash = of.HashDatapath, of.HashFields
	ofctl("add-groups", group5.String()+"\n"+inDatapath.String()+"\n"+byFields.String())
	text := ""
	for _, f := range sampleFlows() {
		text += f.String() + "\n"
	}
	ofctl("add-flows", text)
	state := s.read()
	if !state.Groups[5].Same(group5) || state.Meters[6] != meter6 {
		t.Errorf("group %v and meter %v, want %v and %v", state.Groups[5], state.Meters[6], group5, meter6)
	}
	if !state.Groups[6].Same(inDatapath) || !state.Groups[7].Same(byFields) {
		t.Errorf("groups %v and %v, want %v and %v", state.Groups[6], state.Groups[7], inDatapath, byFields)
	}
	for _, want := range sampleFlows() {
		got, ok := state.Flows[want.Key()]
		// A copy for controllers with nothing to say has a second, plainer encoding.
		if !ok || !got.Same(want) && got.Actions.String() != "CONTROLLER:65535" {
			t.Errorf("read back %v\n   instead of %v", got, want)
		}
	}
}

func TestPausedPacketGoesOn(t *testing.T) {
	s := newReal(t)
	s.put(flow(0, 1, of.NewMatch(of.IPv4()), of.SetReg(3, 8, 0xff), of.Controller{ControllerID: logID, Pause: true}, of.GotoTable(1)),
		flow(1, 1, of.NewMatch(of.Reg(3, 8, 0xff)), of.Controller{ControllerID: otherID}))
	p := udp(1, "10.0.0.1", "10.0.0.2", 1, 2)
	s.send(p)
	in := s.next(logID)
	if !in.Paused || len(s.PacketIns(otherID)) != 0 {
		t.Fatalf("the packet did not wait: %+v", in)
	}
	s.must(s.api.(*bridge.Bridge).Resume(logID, &in))
	out := s.next(otherID)
	if got, err := bridge.ParseFrame(out.Packet); err != nil || out.Table != 1 || got.DstPort != p.DstPort || out.Paused {
		t.Errorf("went on as %+v in table %d, %v", got, out.Table, err)
	}
}
