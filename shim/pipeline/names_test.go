package pipeline

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// namingPolicy is one of a tier that lets group a reach some names, and nothing else.
func namingPolicy(names ...string) *policyv1.Policy {
	p := tier("names", 1, allow)
	p.Rules = []*policyv1.Rule{{Direction: egress, Action: allow, Name: "names", Peers: &policyv1.Peers{Names: names}},
		{Direction: egress, Action: drop, Index: 1, Name: "rest"}}
	return p
}

// A name's addresses are a group: one is one flow, of each rule that has the name.
func TestNamesAreGroups(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	w.add(namingPolicy("*.foo.com", "bar.com"))
	w.bring(c)
	if got := strings.Join(c.Names(), " "); got != "*.foo.com bar.com" {
		t.Errorf("names %s", got)
	}
	addr := netip.MustParseAddr("203.0.113.1")
	before := text(c.Desired())
	tell := func(list ...Named) Change {
		c.SetNamed(list)
		return w.update(c, nil, w.localPorts())
	}
	if ch := tell(Named{"*.foo.com", addr, false}, Named{"bar.com", addr, false}, Named{"other.com", addr, false}); len(ch.Upsert) == 0 || len(ch.Delete) != 0 {
		t.Errorf("an address puts %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
	}
	if ch := tell(Named{"*.foo.com", addr, false}); len(ch.Upsert) != 0 {
		t.Errorf("the same again puts %d flows", len(ch.Upsert))
	}
	hit := Hit{Table: TableAntreaPolicyEgressRule, InPort: 1, Src: netip.MustParseAddr("10.0.0.1"), Dst: addr, Proto: openflow.ProtoTCP, DstPort: 80}
	for id, pt := range c.byConj {
		if hit.Cookie = cookie(KindRule, id); pt.body.action != allow {
			continue
		}
		if a, ok := c.Attribute(hit); !ok || a.Rule != "names" || !c.covers(pt.body.owner, scene{dir: egress, ep: c.ports[1], peer: addr, hit: hit, revision: c.revision}) {
			t.Errorf("attributed to %+v", a)
		}
	}
	tell(Named{"*.foo.com", addr, true}, Named{"bar.com", addr, true})
	if got := text(c.Desired()); got != before {
		t.Errorf("with the address gone:\n%s", difference(got, before))
	}
	c.SetFull([]string{"bar.com"})
	if p := c.Problems(); len(p) != 1 || !strings.Contains(p[0].Err.Error(), "bar.com stands for more hosts") {
		t.Errorf("problems %v", p)
	}
}

// Queries are copied, and answers held as long as the lease is there, for Pods whose
// rules name hosts, and by the resolvers that there are.
func TestDNSIsWatched(t *testing.T) {
	ctx := context.Background()
	cfg := config
	cfg.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
	w, c := newTierWorld(t), New(cfg, Assignment{})
	fake := bridge.NewFake(bridge.Config{Name: "br0", Mark: bridge.Mark{Value: CookieMark, Mask: CookieMask}})
	if err := fake.AddPort(ctx, "if1", nil); err != nil {
		t.Fatal(err)
	}
	apply := func(ch Change) {
		t.Helper()
		if err := fake.Apply(ctx, bridge.Change{Upsert: ch.Upsert, Delete: ch.Delete}); err != nil {
			t.Fatal(err)
		}
	}
	pod, server := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.53")
	query := bridge.Packet{EthType: openflow.EtherIPv4, InPort: 1, EthSrc: [6]byte{2, 0, 0, 0, 1, 1}, EthDst: config.LocalMAC, TTL: 64, IPProto: openflow.ProtoUDP, SrcPort: 4000, DstPort: 53, IPSrc: pod, IPDst: server}
	for _, p := range w.localPorts() {
		query.EthSrc = p.MAC
	}
	answer := bridge.Packet{EthType: openflow.EtherIPv4, InPort: openflow.PortLocal, EthSrc: config.LocalMAC, TTL: 64, IPProto: openflow.ProtoUDP, SrcPort: 53, DstPort: 4000, IPSrc: server, IPDst: pod}
	seen := func(p bridge.Packet) (queries, answers int, out []uint32) {
		t.Helper()
		walk := fake.Walk(p, bridge.WalkOptions{CtNext: []uint32{}})
		for _, in := range walk.PacketIns {
			switch {
			case in.ControllerID != NameController:
			case Queries(in.UserData):
				queries++
			default:
				answers++
				if in.Metadata.Reg(regOutput) != 1 {
					t.Errorf("held for port %d", in.Metadata.Reg(regOutput))
				}
			}
		}
		return queries, answers, walk.Ports()
	}
	expect := func(what string, p bridge.Packet, queries, answers int, out ...uint32) {
		t.Helper()
		if q, a, o := seen(p); q != queries || a != answers || !slices.Equal(o, out) {
			t.Errorf("%s: %d copies, %d held, out by %v; want %d, %d, %v", what, q, a, o, queries, answers, out)
		}
	}
	apply(w.bring(c))
	expect("no rule has a name", query, 0, 0, openflow.PortLocal)
	expect("no rule has a name", answer, 0, 0, 1)
	open := namingPolicy("bar.com")
	open.Rules = open.Rules[:1]
	w.add(open)
	apply(w.bring(c))
	if !c.WatchesNames() {
		t.Error("nothing is watched")
	}
	expect("a query", query, 1, 0, openflow.PortLocal)
	expect("an answer without a lease", answer, 0, 0, 1)
	apply(Change{Upsert: []openflow.Flow{Lease()}})
	expect("an answer", answer, 0, 1)
	other := answer
	other.IPSrc = netip.MustParseAddr("192.0.2.54")
	expect("one of another server", other, 0, 0, 1)
	delete(w.policies, "names")
	apply(w.bring(c))
	expect("no rule has a name any more", query, 0, 0, openflow.PortLocal)
	expect("no rule has a name any more", answer, 0, 0, 1)
}
