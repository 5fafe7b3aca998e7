package pipeline

import (
	"net/netip"
	"slices"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/igmp"
)

var (
	someGroup  = netip.MustParseAddr("239.1.2.3")
	otherGroup = netip.MustParseAddr("225.129.2.3")
)

// castWorld is three Pods of a node, in ports 1 to 3, and a fake bridge.
type castWorld struct {
	*feed
	c     *Compiler
	fake  *bridge.Fake
	ports []Port
}

func newCastWorld(t *testing.T, objects ...api.Object) *castWorld {
	w := &castWorld{feed: newFeed(t, "node-1"), c: New(config, Assignment{}), ports: []Port{port(1, "a"), port(2, "b"), port(3, "c")},
		fake: bridge.NewFake(bridge.Config{Mark: bridge.Mark{Value: CookieMark, Mask: CookieMask}, Controllers: []bridge.Controller{{ID: MulticastController}, {ID: LogController}}})}
	w.apply(pod("a", "node-1", "a", "10.0.0.1"), pod("b", "node-1", "b", "10.0.0.2"), pod("c", "node-1", "c", "10.0.0.3"))
	w.bring(objects...)
	return w
}

// bring brings objects, ports and members to the bridge.
func (w *castWorld) bring(objects ...api.Object) {
	w.t.Helper()
	w.apply(objects...)
	ch := w.update(w.c, w.sync(), w.ports)
	change := bridge.Change{Upsert: ch.Upsert, Delete: ch.Delete, PutGroups: ch.PutGroups, DeleteGroups: ch.DeleteGroups, PutMeters: w.c.Meters()}
	if err := w.fake.Apply(w.t.Context(), change); err != nil {
		w.t.Fatal(err)
	}
}

func (w *castWorld) members(list ...igmp.Member) {
	w.t.Helper()
	w.c.SetMembers(list)
	w.bring()
}

func member(group netip.Addr, n uint32) igmp.Member {
	return igmp.Member{Group: group, Port: igmp.Port{Number: n, ID: port(n, "").ID}}
}

// send is what becomes of a datagram that a Pod sends to an address.
func (w *castWorld) send(from byte, to netip.Addr, proto uint8) bridge.Walk {
	return w.fake.Send(bridge.Packet{InPort: uint32(from), EthSrc: [6]byte{2, 0, 0, 0, 1, from}, EthDst: [6]byte{1, 0, 0x5e, 9, 9, 9}, EthType: openflow.EtherIPv4,
		IPSrc: netip.AddrFrom4([4]byte{10, 0, 0, from}), IPDst: to, IPProto: proto, SrcPort: 4000, DstPort: 5000})
}

func (w *castWorld) reaches(from byte, to netip.Addr, want ...uint32) {
	w.t.Helper()
	for range 2 { // The connection is known by then.
		walk := w.send(from, to, openflow.ProtoUDP)
		if !slices.Equal(walk.Ports(), want) || len(walk.Ambiguous) > 0 {
			w.t.Fatalf("to %s from %d: ports %v, want %v; ambiguous %v", to, from, walk.Ports(), want, walk.Ambiguous)
		}
		judged := 0 // No more copies than arrive, or are denied, by ingress rules: the sender's own is none.
		for _, h := range walk.Trail {
			if h.Table == TableAntreaPolicyIngressRule {
				judged++
			}
		}
		if judged < len(want) || judged > 0 && slices.Contains(w.c.casting.in[to], uint32(from)) && judged >= len(w.c.casting.in[to]) {
			w.t.Fatalf("%d copies are judged", judged)
		}
		mac := [6]byte{1, 0, 0x5e, to.As4()[1] & 0x7f, to.As4()[2], to.As4()[3]}
		for _, d := range walk.Outputs {
			if d.Packet.EthDst != mac || d.Packet.EthSrc != config.LocalMAC || d.Packet.IPDst != to {
				w.t.Fatalf("it arrives as %s", d.Packet.String())
			}
		}
	}
}

func ruled(name, on string, priority float64, egress bool, rules ...api.OrderedRule) *api.OrderedPolicy {
	p := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: name, Tier: "application", Priority: priority,
		AppliedTo: []api.Target{{PodSelector: app(on), NamespaceSelector: &api.Selector{}}}}
	if egress {
		p.Egress = rules
	} else {
		p.Ingress = rules
	}
	return p
}

func toBlock(action api.Action, cidr string) api.OrderedRule {
	return api.OrderedRule{Name: "r", Action: action, Peers: []api.Peer{{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix(cidr)}}}}
}

// A group's packets go to its members on the node, other than the sender, and to
// nobody else; without members they go nowhere.
func TestMulticastGoesToMembers(t *testing.T) {
	w := newCastWorld(t)
	before := text(w.c.Desired())
	w.reaches(1, someGroup)
	w.members(member(someGroup, 1), member(someGroup, 2), member(otherGroup, 3))
	w.reaches(1, someGroup, 2)
	w.reaches(2, someGroup, 1)
	w.reaches(3, someGroup, 1, 2)
	w.reaches(1, otherGroup, 3)
	w.reaches(3, otherGroup)
	w.reaches(1, netip.MustParseAddr("239.1.2.4"))
	w.members(member(someGroup, 1), member(someGroup, 2), member(someGroup, 3))
	w.reaches(1, someGroup, 2, 3)
	w.reaches(1, otherGroup)
	w.members(member(netip.MustParseAddr("224.0.0.251"), 2))
	w.reaches(1, netip.MustParseAddr("224.0.0.251"))
	w.members()
	w.reaches(1, someGroup)
	if got := text(w.c.Desired()); got != before || len(w.c.Groups()) != 0 || len(w.c.casting.pairs) != 0 {
		t.Errorf("something is left: %s, groups %v", difference(got, before), w.c.Groups())
	}
}

// A port that closes, or is another's, is a member no more.
func TestMembershipIsOfThePort(t *testing.T) {
	w := newCastWorld(t)
	w.members(member(someGroup, 2), member(someGroup, 3))
	w.reaches(1, someGroup, 2, 3)
	all := w.ports
	w.ports = all[:2]
	w.bring()
	w.reaches(1, someGroup, 2)
	w.ports = slices.Clone(all[:2])
	w.ports[1].ID = "row-another"
	w.bring()
	w.reaches(1, someGroup)
	if len(w.c.Groups()) != 0 {
		t.Errorf("groups %v", w.c.Groups())
	}
}

// The sender's egress rules judge the group's address, and the ingress rules and
// isolation of each receiver the sender.
func TestMulticastIsJudged(t *testing.T) {
	w := newCastWorld(t)
	w.members(member(someGroup, 2), member(someGroup, 3), member(otherGroup, 2))
	out := ruled("out", "a", 5, true, toBlock(api.ActionDrop, "239.1.2.3/32"))
	w.bring(out)
	w.reaches(1, someGroup)
	w.reaches(1, otherGroup, 2)
	w.reaches(3, someGroup, 2)
	out.Egress[0].Action = api.ActionAllow
	in := ruled("in", "b", 5, false, toBlock(api.ActionDrop, "10.0.0.1/32"))
	w.bring(out, in)
	w.reaches(1, someGroup, 3)
	w.reaches(1, otherGroup)
	w.reaches(3, someGroup, 2)
	w.bring(&api.NetworkPolicy{Namespace: "x", Name: "only-b", PodSelector: *app("c"), Ingress: []api.NetworkPolicyRule{{Peers: []api.NetworkPolicyPeer{{PodSelector: app("b")}}}}})
	w.reaches(1, someGroup)
	w.reaches(2, someGroup, 3)
}

// IGMP goes to the controller, whole, and nowhere else, but for what is forged.
func TestIGMPGoesToTheController(t *testing.T) {
	w := newCastWorld(t)
	w.members(member(someGroup, 2))
	for _, to := range []string{"224.0.0.22", "224.0.0.2", "239.1.2.3"} {
		walk := w.send(1, netip.MustParseAddr(to), igmp.Protocol)
		if len(walk.Outputs) != 0 || len(walk.PacketIns) != 1 || walk.PacketIns[0].ControllerID != MulticastController || walk.PacketIns[0].Metadata.InPort() != 1 {
			t.Errorf("to %s: %v, %d copies", to, walk.Ports(), len(walk.PacketIns))
		}
	}
	forged := bridge.Packet{InPort: 1, EthSrc: [6]byte{2, 0, 0, 0, 1, 1}, EthType: openflow.EtherIPv4, IPSrc: netip.MustParseAddr("10.0.0.2"), IPDst: someGroup, IPProto: igmp.Protocol}
	for _, p := range w.fake.Send(forged).PacketIns {
		if p.ControllerID == MulticastController {
			t.Error("a forged report is read")
		}
	}
	if walk := w.send(1, netip.MustParseAddr("10.0.0.2"), igmp.Protocol); len(walk.PacketIns) != 0 {
		t.Error("IGMP to a Pod is read")
	}
}

func about(action api.Action, typ uint8, group netip.Addr) api.OrderedRule {
	r := api.OrderedRule{Name: "r", Action: action, Traffic: []api.Traffic{{Protocol: api.ProtocolIGMP, Multicast: group}}}
	if typ != 0 {
		r.Traffic[0].IGMPType = &typ
	}
	return r
}

// In the order of rules the first that names a message decides; nothing else does.
func TestIGMPIsJudged(t *testing.T) {
	any := netip.Addr{}
	logged := about(api.ActionDrop, 0, any)
	logged.Log, logged.LogLabel = true, "label"
	query := about(api.ActionDrop, igmp.Query, igmp.AllHosts)
	stagedDrop := ruled("p", "a", 5, true, about(api.ActionDrop, 0, any))
	stagedDrop.Staged = true
	baseline := ruled("base", "a", 5, true, about(api.ActionDrop, 0, any))
	baseline.Tier = "baseline"
	for _, tc := range []struct {
		name    string
		objects []api.Object
		dir     policyv1.Direction
		typ     uint8
		group   netip.Addr
		want    bool
		records string // The rule of record, and what staged policies say.
	}{
		{"no rule", nil, egress, igmp.ReportV2, someGroup, true, ""},
		{"isolation", []api.Object{&api.NetworkPolicy{Namespace: "x", Name: "shut", PodSelector: *app("a"), PolicyTypes: []api.PolicyType{api.PolicyTypeIngress, api.PolicyTypeEgress}}}, egress, igmp.ReportV2, someGroup, true, ""},
		{"a rule for any traffic", []api.Object{ruled("p", "a", 5, true, api.OrderedRule{Action: api.ActionDrop})}, egress, igmp.ReportV2, someGroup, true, ""},
		{"of type and group", []api.Object{ruled("p", "a", 5, true, about(api.ActionDrop, igmp.ReportV2, someGroup))}, egress, igmp.ReportV2, someGroup, false, ""},
		{"of another type", []api.Object{ruled("p", "a", 5, true, about(api.ActionDrop, igmp.ReportV2, someGroup))}, egress, igmp.ReportV3, someGroup, true, ""},
		{"of another group", []api.Object{ruled("p", "a", 5, true, about(api.ActionDrop, igmp.ReportV2, someGroup))}, egress, igmp.ReportV2, otherGroup, true, ""},
		{"on another Pod", []api.Object{ruled("p", "b", 5, true, about(api.ActionDrop, 0, any))}, egress, igmp.ReportV2, someGroup, true, ""},
		{"in the other direction", []api.Object{ruled("p", "a", 5, false, query)}, egress, igmp.ReportV2, someGroup, true, ""},
		{"a query", []api.Object{ruled("p", "a", 5, false, query)}, ingress, igmp.Query, igmp.AllHosts, false, ""},
		{"logged", []api.Object{ruled("p", "a", 5, true, logged)}, egress, igmp.ReportV1, someGroup, false, "r"},
		{"the first policy", []api.Object{ruled("p", "a", 5, true, about(api.ActionDrop, 0, any)), ruled("q", "a", 4, true, about(api.ActionAllow, 0, someGroup))}, egress, igmp.ReportV3, someGroup, true, ""},
		{"the first rule", []api.Object{ruled("p", "a", 5, true, about(api.ActionAllow, 0, someGroup), about(api.ActionDrop, 0, any))}, egress, igmp.ReportV3, someGroup, true, ""},
		{"of one place the strictest", []api.Object{ruled("p", "a", 5, true, about(api.ActionAllow, 0, any)), ruled("q", "a", 5, true, about(api.ActionDrop, 0, any))}, egress, igmp.ReportV3, someGroup, false, ""},
		{"a baseline", []api.Object{baseline}, egress, igmp.ReportV3, someGroup, false, ""},
		{"before a baseline", []api.Object{baseline, ruled("p", "a", 5, true, about(api.ActionAllow, 0, any))}, egress, igmp.ReportV3, someGroup, true, ""},
		{"staged", []api.Object{stagedDrop}, egress, igmp.ReportV3, someGroup, true, " staged ACTION_DROP by p r"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newCastWorld(t, tc.objects...)
			if problems := w.c.Problems(); len(problems) > 0 {
				t.Fatal(problems)
			}
			allowed, a, recorded := w.c.JudgeIGMP(tc.dir, 1, tc.typ, tc.group)
			got := ""
			if recorded {
				got = a.Rule
			}
			if a.Staged != nil {
				got += " staged " + a.Staged.GetAction().String() + " by " + a.Staged.GetPolicy().GetName() + " " + a.Staged.GetRule()
			}
			if allowed != tc.want || got != tc.records || a.AppliedTo != "x/a" || a.Unlogged != (tc.name != "logged") {
				t.Errorf("allowed %t, recorded %q, %+v", allowed, got, a)
			}
			if allowed, _, _ := w.c.JudgeIGMP(tc.dir, 9, tc.typ, tc.group); allowed {
				t.Error("a port that is not open may say something")
			}
			if tc.objects == nil {
				return
			}
			for _, o := range tc.objects {
				w.engine.Apply(api.Event{Ref: o.Ref()})
			}
			w.bring()
			if len(w.c.casting.policies) > 0 {
				t.Error("policies that are gone are known")
			}
		})
	}
}
