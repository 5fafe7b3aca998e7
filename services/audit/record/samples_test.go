package record

import (
	"net/netip"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

const acnp = policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY

// samples are lines of every kind, by name: each encoder's test goes through
// them all.
func samples(t testing.TB) map[string]*Line {
	first := time.Date(2023, 7, 4, 12, 33, 25, 221413000, time.UTC)
	with := func(change func(l *Line)) *Line {
		l := sample(t)
		change(l)
		return l
	}
	packet := func(change func(p *Packet)) *Line { return with(func(l *Line) { change(&l.Packet) }) }
	all := map[string]*Line{
		"isolation": sample(t),
		"allow": packet(func(p *Packet) {
			p.Action, p.Isolation, p.Reason, p.Table, p.Rule, p.Priority, p.LogLabel = allow, false, "rule", "AntreaPolicyIngressRule", "r", num(14000), "web"
		}),
		"reject": packet(func(p *Packet) { p.Action, p.Direction, p.Isolation, p.Reason = reject, out, false, "" }),
		"pass":   packet(func(p *Packet) { p.Action, p.Isolation, p.Policies = 4, false, []Policy{{acnp, "", "pass"}} }),
		"redirect": packet(func(p *Packet) {
			p.Action, p.Isolation, p.Redirected, p.Policies = allow, false, true, []Policy{{annp, "default", "layer-7"}}
		}),
		"ipv6": packet(func(p *Packet) {
			p.Source, p.Destination, p.Protocol = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), 58
			p.SourcePort, p.DestPort, p.TCPFlags, p.ICMPType, p.ICMPCode = Number{}, Number{}, 0, num(128), num(0)
		}),
		"number": packet(func(p *Packet) { p.Protocol, p.SourcePort, p.DestPort, p.TCPFlags = 47, Number{}, Number{}, 0 }),
		"node":   packet(func(p *Packet) { p.AppliedTo, p.Peer, p.Policies = "node:n1", "node:n2", []Policy{{acnp, "", "nodes"}} }),
		"service": packet(func(p *Packet) {
			p.AppliedTo, p.Peer, p.Service, p.Table = "service:default/web", "", "default/web", "NodePort"
		}),
		"nobody": packet(func(p *Packet) {
			p.Policies, p.Table, p.AppliedTo, p.Peer, p.Reason, p.Direction, p.Action, p.Isolation = nil, "", "", "", "unattributed", 0, 0, false
		}),
		"overflow":             with(func(l *Line) { l.Record, l.Overflow = FoldFlow.fold(&l.Record), true }),
		"overflow of anything": with(func(l *Line) { l.Record, l.Overflow = FoldRule.fold(&l.Record), true }),
		"observed":             packet(func(p *Packet) { p.Action, p.Isolation, p.Reason, p.Policies = allow, false, reasonObserved, nil }),
		"staged":               packet(func(p *Packet) { p.Reason, p.Staged = reasonStaged, stagedOpen() }),
		"would":                packet(func(p *Packet) { p.Staged = stagedOpen() }),
		"gone":                 packet(func(p *Packet) { p.Reason, p.Staged = reasonStaged, &Staged{Action: drop} }),
		"withheld":             packet(func(p *Packet) { p.Source, p.Peer = netip.Addr{}, "" }),
		"context":              with(func(l *Line) { l.Context = sampleContext() }),
		"forged": packet(func(p *Packet) {
			p.Reason, p.Direction, p.Isolation, p.Policies = reasonSpoof, out, false, nil
			p.Forged = &Forged{SourceMAC: [6]byte{2, 0, 0, 0, 0, 0xab}}
		}),
		"forged ARP": packet(func(p *Packet) {
			p.Reason, p.Direction, p.Isolation, p.Policies, p.Protocol, p.SourcePort, p.DestPort = reasonSpoof, out, false, nil, 0, Number{}, Number{}
			p.Forged = &Forged{SourceMAC: [6]byte{2, 0, 0, 0, 0, 1}, ClaimedMAC: [6]byte{2, 0, 0, 0, 0, 2}, EtherType: etherARP}
		}),
		"forged frame": packet(func(p *Packet) {
			p.Reason, p.Direction, p.Isolation, p.Policies, p.Protocol = reasonSpoof, out, false, nil, 0
			p.Source, p.Destination, p.SourcePort, p.DestPort = netip.Addr{}, netip.Addr{}, Number{}, Number{}
			p.Forged = &Forged{SourceMAC: [6]byte{2, 0, 0, 0, 0, 1}, EtherType: 0x88cc}
		}),
		"forged neighbour": packet(func(p *Packet) {
			p.Reason, p.Direction, p.Isolation, p.Policies, p.Protocol, p.ICMPType = reasonSpoof, out, false, nil, 58, num(136)
			p.Source, p.Destination, p.SourcePort, p.DestPort = netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1"), Number{}, Number{}
			p.Forged = &Forged{SourceMAC: [6]byte{2, 0, 0, 0, 0, 1}, Target: netip.MustParseAddr("fe80::2")}
		}),
		"test": {Record: Record{Cursor: 9, Event: Event{Kind: KindTest, Test: &Test{Sink: "siem", ID: "4711", Time: first}}}},
	}
	for stage := range auditv1.LossStage_name {
		if stage > 0 {
			s := auditv1.LossStage(stage)
			all["loss "+stageWords.of(s)] = &Line{Record: Record{Cursor: 8, Node: "n1", Boot: "b1", Sequence: 4, Received: first,
				Event: Event{Kind: KindLoss, Loss: Loss{From: first, To: first.Add(time.Second), Count: 9, Stage: s}}}}
		}
	}
	all["loss of a rule"] = &Line{Record: Record{Cursor: 8, Node: "n1", Boot: "b1", Sequence: 4, Event: Event{Kind: KindLoss, Loss: Loss{From: first, To: first.Add(time.Second),
		Stage: auditv1.LossStage_LOSS_STAGE_RULE_METER, Reason: "isolation", Policy: Policy{annp, "default", "p"}, Rule: "r", Direction: in}}}}
	all["loss of the collector"] = &Line{Record: Record{Cursor: 8, Event: Event{Kind: KindLoss, Loss: Loss{From: first, To: first, Count: 1 << 63, Stage: auditv1.LossStage_LOSS_STAGE_DAMAGED}}}}
	for kind := range auditv1.ChangeKind_name {
		if kind > 0 {
			k := auditv1.ChangeKind(kind)
			all["change "+changeWords.of(k)] = &Line{Record: Record{Cursor: 8, Event: Event{Kind: KindChange, Change: sampleChange(k, first)}}}
		}
	}
	all["change of a tier"] = &Line{Record: Record{Cursor: 8, Event: Event{Kind: KindChange, Change: &Change{Time: first, Kind: 1, Object: &policyv1.ObjectVersion{Kind: "Tier", Name: "t"}}}}}
	return all
}

func stagedOpen() *Staged {
	return &Staged{Action: allow, Policy: Policy{annp, "default", "open"}, Rule: "r", Policies: []Policy{{annp, "default", "open"}}}
}

func sampleContext() *Context {
	return &Context{Source: End{Namespace: "shop", Pod: "web-1", Node: "n2", Workload: "Deployment/web"}, Destination: End{Node: "n1"}, Service: "shop/db",
		Policies: []Version{{UID: "0b1e-2", Generation: 3}, {}}}
}

func sampleChange(kind auditv1.ChangeKind, at time.Time) *Change {
	return &Change{Time: at, Kind: kind, Fields: []string{"spec.ingress", "metadata.labels"}, PodsBefore: 2, PodsAfter: 3,
		Object: &policyv1.ObjectVersion{ApiVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "shop", Name: "deny", Uid: "u-1", Generation: 4,
			Manager: "kubectl", User: "eve@example.net", Manifest: []byte("{\n  \"metadata\": {\"name\": \"deny\"},\r\n\t\"spec\": {\"podSelector\": {}}}")}}
}
