package differential

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// A trace does not track connections. So here packets of both directions go
// through Open vSwitch itself, which must count them on the flows on which the
// Fake counts them.
func TestSwitchTracksAsTheFake(t *testing.T) {
	sw := newSwitch(t)
	c := Case{Name: "tracking", FrameLimit: 1 << 20, Steps: []Step{{
		Events: decode(t, `
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p0}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.11}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.12}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: a, name: np}, spec: {podSelector: {}, policyTypes: [Ingress, Egress],
  ingress: [{}], egress: [{ports: [{protocol: SCTP, port: 79}, {protocol: TCP, port: 79}, {protocol: UDP, port: 79}]}]}}
`),
		Ports: map[Pod]Port{{"a", "p0"}: {"n1", 1}, {"a", "p1"}: {"n1", 2}},
	}}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := newCluster(&c)
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.begin(ctx, cl); err != nil {
		t.Fatal(err)
	}
	changes, err := cl.enter(&c, &c.Steps[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.apply(ctx, cl, changes); err != nil {
		t.Fatal(err)
	}
	fake, real := cl.nodes["n1"].fake, sw.byNode["n1"]
	for i, text := range []string{
		"a/p1 a/p0 SCTP/79", "a/p0 a/p1 SCTP/79", "a/p0 a/p1 SCTP/79 79", "a/p0 a/p1 SCTP/80 79", "a/p0 a/p1 SCTP/80",
		"a/p0 a/p1 TCP/79", "a/p1 a/p0 TCP/79", "a/p0 a/p1 TCP/80", "a/p0 a/p1 UDP/79", "a/p0 a/p1 UDP/80", "a/p0 a/p1 ICMP",
	} {
		probe := connect(t, c.Steps[0].Events, text, uint16(firstPort+i))
		from, _ := cl.locate(probe.From)
		to, _ := cl.locate(probe.To)
		p := first(probe)
		for _, h := range [][]hop{hops(from, to, p), hops(to, from, reply(p)), hops(from, to, next(p)), hops(to, from, next(reply(p)))} {
			fake.Send(h[0].packet)
			out := openflow.PacketOut{InPort: h[0].packet.InPort, Actions: openflow.NewActions(openflow.OutputPort(openflow.PortTable)), Packet: h[0].packet.Frame()}
			if err := real.PacketOut(ctx, out); err != nil {
				t.Fatal(err)
			}
		}
	}
	end := time.Now().Add(10 * time.Second)
	all := openflow.FlowFilter{Table: openflow.AllTables}
	want := make(map[openflow.FlowKey]uint64)
	if err := fake.Counters(ctx, all, func(f openflow.Flow) {
		if want[f.Key()] = f.Packets; f.Packets == 0 && f.Table == pipeline.TableSCTPState {
			t.Errorf("no packet tests %s", f)
		}
	}); err != nil {
		t.Fatal(err)
	}
	// Packet-outs are not answered, and the cache tells late what it counted.
	for {
		if _, err := sw.ask(ctx, "revalidator/purge"); err != nil {
			t.Fatal(err)
		}
		differs := ""
		if err := real.Counters(ctx, all, func(f openflow.Flow) {
			if f.Packets != want[f.Key()] {
				differs += fmt.Sprintf("%s: %d packets, the fake has %d\n", f, f.Packets, want[f.Key()])
			}
		}); err != nil {
			t.Fatal(err)
		}
		if differs == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the counts differ:\n%s", differs)
		}
	}
}
