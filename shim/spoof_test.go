package shim

import (
	"context"
	"net/netip"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// counterOf is a counter of the shim's; zero where there is none of these labels.
func counterOf(t testing.TB, s *Shim, name string, labels map[string]string) float64 {
	t.Helper()
	families, err := s.metrics.registry.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if labels[l.GetName()] != l.GetValue() {
					continue next
				}
			}
			return m.GetCounter().GetValue()
		}
	}
	return 0
}

// What a Pod sends in another's name is dropped, recorded with the Pod's name, and
// counted for the Pod: also what comes shortly before its port goes to another.
func TestForgeriesAreCountedForTheirPod(t *testing.T) {
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	ctx := context.Background()
	s.loop.refreshPorts(ctx)
	if r := s.loop.apply(ctx, w.replica, w.cut(objects...)); r.err != nil {
		t.Fatal(r.err)
	}
	forged := syn(1, 2)
	forged.IPSrc = netip.MustParseAddr("10.0.0.77")
	for range 3 {
		walk := sw.Send(forged)
		if len(walk.Outputs) != 0 || len(walk.PacketIns) != 1 {
			t.Fatalf("the packet went to %v with %d packet-ins", walk.Ports(), len(walk.PacketIns))
		}
		s.loop.spoofed(<-s.spoofIns)
	}
	s.log.Flush(time.Now().Add(time.Minute))
	events := s.log.Take(10)
	if len(events) != 1 {
		t.Fatalf("events %v", events)
	}
	p := events[0].GetPacket()
	m := mac(1)
	if p.GetReason() != "spoof" || p.GetTable() != "SpoofGuard" || p.GetAppliedTo() != "x/client" || p.GetCount() != 3 || p.GetDirection() != policyv1.Direction_DIRECTION_EGRESS ||
		p.GetAction() != policyv1.Action_ACTION_DROP || len(p.GetPolicies()) != 0 || [6]byte(p.GetSourceMac()) != m {
		t.Errorf("the event is %v", p)
	}

	const name = "weir_shim_spoofed_packets_total"
	of := func(pod string) float64 {
		return counterOf(t, s, name, map[string]string{"namespace": "x", "pod": pod})
	}
	s.loop.countSpoofs(ctx)
	if got := of("client"); got != 3 {
		t.Errorf("counted %v, want 3", got)
	}
	sw.Send(forged)
	// Its port's number goes to another Pod in one change, between two readings.
	for i := range s.loop.ports {
		if p := &s.loop.ports[i]; p.OFPort == 1 {
			p.ID, p.Name = "another row", "heir"
		}
	}
	if r := s.loop.apply(ctx, w.replica, w.cut(pod("heir", "10.0.0.3"))); r.err != nil {
		t.Fatal(r.err)
	}
	sw.Send(forged)
	s.loop.countSpoofs(ctx)
	s.loop.countSpoofs(ctx)
	if a, b := of("client"), of("heir"); a != 4 || b != 1 {
		t.Errorf("counted %v for the former Pod and %v for its heir, want 4 and 1", a, b)
	}
	s.loop.publish(nil)
	for _, p := range s.node.ports() {
		if want := map[string]uint64{"heir": 1, "web": 0}[p.GetName()]; p.GetSpoofed() != want {
			t.Errorf("port %v, want %d forged packets", p, want)
		}
	}
	stranger := syn(9, 2)
	sw.Send(stranger)
	s.loop.countSpoofs(ctx)
	if got := counterOf(t, s, "weir_shim_closed_port_packets_total", nil); got != 1 {
		t.Errorf("%v packets of an unknown port, want 1", got)
	}
}

// Lost reports of forged packets are stated as such, apart from the log's.
func TestLossesOfForgeriesAreApart(t *testing.T) {
	sw, w, _ := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	ctx, now := context.Background(), time.Unix(1000, 0)
	for i, dropped := range []uint64{0, 7} {
		sw.meters = []openflow.MeterStats{{ID: pipeline.LogMeter, Packets: 30 * uint64(i), Dropped: 11 * uint64(i)}, {ID: pipeline.SpoofMeter, Packets: 7 * uint64(i), Dropped: dropped}}
		s.loop.countLosses(ctx, now.Add(time.Duration(i)*time.Second))
	}
	got := make(map[string]uint64)
	for _, e := range s.log.Take(10) {
		if stage := e.GetLoss().GetStage(); stage == auditv1.LossStage_LOSS_STAGE_METER || stage == auditv1.LossStage_LOSS_STAGE_RULE_METER {
			got[e.GetLoss().GetReason()] += e.GetLoss().GetCount()
		}
	}
	if got[""] != 11 || got["spoof"] != 7 || len(got) != 2 {
		t.Errorf("losses %v, want 11 of the log and 7 of what was forged", got)
	}
}
