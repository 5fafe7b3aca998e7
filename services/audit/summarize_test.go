package audit

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

func flowText(f *auditv1.FlowSummary) string {
	text := fmt.Sprintf("%s > %s %s %d %s/%s x%d in %d", f.GetSource(), f.GetDestination(), f.GetService(), f.GetPort(),
		strings.TrimPrefix(f.GetDirection().String(), "DIRECTION_"), strings.TrimPrefix(f.GetAction().String(), "ACTION_"), f.GetPackets(), f.GetRecords())
	if f.GetStaged() != 0 {
		text += " staged " + strings.TrimPrefix(f.GetStaged().String(), "ACTION_")
	}
	if f.GetObserved() {
		text += " observed"
	}
	return text + " " + strings.Join(f.GetPolicies(), ",")
}

// TestSummarize groups by workload where it is known, by Pod where the node says so,
// and else by address.
func TestSummarize(t *testing.T) {
	web2 := pod("web-2", "10.0.1.6")
	te := startTeller(t, pod("web-1", "10.0.1.5"), web2)
	c := start(t, func(c *Config) { c.PolicyServers = []string{te.addr} })
	eventually(t, "the policy service is followed", c.watcher.connected.Load)
	s := c.report("n1", "b1")
	s.acked(0)
	with := func(e *auditv1.Event, change func(p *auditv1.PacketEvent)) *auditv1.Event {
		change(e.GetPacket())
		return e
	}
	s.batch(1,
		drop(1), // From web-1,
		with(drop(2), func(p *auditv1.PacketEvent) { p.SourceIp = netip.MustParseAddr("10.0.1.6").AsSlice(); p.Count = 4 }), // and web-2: one workload.
		with(drop(3), func(p *auditv1.PacketEvent) { p.SourceIp, p.Peer = netip.MustParseAddr("192.0.2.1").AsSlice(), "" }),
		with(drop(4), func(p *auditv1.PacketEvent) { p.Staged = &auditv1.StagedOutcome{Action: policyv1.Action_ACTION_ALLOW} }),
		with(allow(5), func(p *auditv1.PacketEvent) { p.Reason, p.Policies, p.Service = "observed", nil, "shop/db" }),
		with(allow(6), func(p *auditv1.PacketEvent) {
			p.Direction, p.AppliedTo, p.Peer = policyv1.Direction_DIRECTION_EGRESS, "shop/web", "node:n9"
			p.SourceIp = netip.MustParseAddr("10.0.3.3").AsSlice()
		}),
		with(allow(7), func(p *auditv1.PacketEvent) { p.First = timestamppb.New(day.Add(time.Hour)) }),
		lossEvent(9))
	s.acked(8)
	client := auditv1.NewAuditServiceClient(c.dial(nil))
	summarize := func(req *auditv1.SummarizeRequest) (*auditv1.SummarizeResponse, []string) {
		t.Helper()
		resp, err := client.Summarize(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, f := range resp.GetFlows() {
			out = append(out, strings.TrimSpace(flowText(f)))
		}
		return resp, out
	}
	deny := "K8sNetworkPolicy:shop/default-deny,K8sNetworkPolicy:shop/only-api"
	want := []string{
		"shop/Deployment/web > shop/db  5432 INGRESS/DROP x5 in 2 " + deny,
		"192.0.2.1 > shop/db  5432 INGRESS/DROP x1 in 1 " + deny,
		"shop/Deployment/web > shop/db  5432 INGRESS/DROP x1 in 1 staged ALLOW " + deny,
		"shop/Deployment/web > shop/db shop/db 5432 INGRESS/ALLOW x1 in 1 observed",
		"shop/web > node:n9  5432 EGRESS/ALLOW x1 in 1 K8sNetworkPolicy:shop/allow-web",
	}
	resp, got := summarize(&auditv1.SummarizeRequest{Filter: &auditv1.RecordFilter{Until: timestamppb.New(day.Add(time.Minute))}})
	if !slices.Equal(got, want) || resp.GetRecords() != 6 || resp.GetPackets() != 9 || resp.GetLost() != 9 || !resp.GetFrom().AsTime().Equal(day.Add(time.Microsecond)) {
		t.Errorf("flows:\n%s\nof %d records, %d packets, %d lost since %v\nwant:\n%s", strings.Join(got, "\n"), resp.GetRecords(), resp.GetPackets(), resp.GetLost(), resp.GetFrom().AsTime(), strings.Join(want, "\n"))
	}
	if resp, got := summarize(&auditv1.SummarizeRequest{Limit: 2}); len(got) != 2 || resp.GetMore() != 4 {
		t.Errorf("%d flows, %d more", len(got), resp.GetMore())
	}
	if _, got := summarize(&auditv1.SummarizeRequest{Filter: &auditv1.RecordFilter{Action: policyv1.Action_ACTION_ALLOW, Policy: "allow-web"}}); len(got) != 2 {
		t.Errorf("of one policy: %v", got)
	}
}

// TestSummaryIsBounded: a scan does not make rows without end, and all its packets
// are in one.
func TestSummaryIsBounded(t *testing.T) {
	s := newSummary()
	e := record.Event{}
	data, err := proto.Marshal(drop(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := record.NewDecoder().DecodeInto(data, &e); err != nil {
		t.Fatal(err)
	}
	e.Packet.Peer = ""
	for i := range maxFlows + 5000 {
		e.Packet.Source = netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
		s.add(&e)
	}
	resp := s.response(maxFlows + 10)
	if len(resp.GetFlows()) != maxFlows+1 || resp.GetFlows()[0].GetSource() != otherAddresses || resp.GetFlows()[0].GetPackets() != 5000 || resp.GetPackets() != maxFlows+5000 {
		t.Errorf("%d flows, first %v", len(resp.GetFlows()), resp.GetFlows()[0])
	}
}
