package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

const (
	ingress = policyv1.Direction_DIRECTION_INGRESS
	egress  = policyv1.Direction_DIRECTION_EGRESS
	allow   = policyv1.Action_ACTION_ALLOW
	drop    = policyv1.Action_ACTION_DROP
	reject  = policyv1.Action_ACTION_REJECT
	pass    = policyv1.Action_ACTION_PASS
)

// node is a node's state in the words of the wire, and what the reference
// interpreter reads: order and matching, as the design defines them, rule by
// rule.
type node struct {
	pods     map[string]*testPod
	policies map[string]*policyv1.Policy
}

// testPod is a Pod; one without a port is on another node.
type testPod struct {
	name   string
	port   uint32
	ips    []netip.Addr
	groups map[string]bool
	ports  []*policyv1.NamedPort
}

// everyone is the group of all Pods, on which port names are resolved.
const everyone = "everyone"

var testGroups = []string{"a", "b", "c", everyone}

func groupID(name string) storage.ScopeID { return storage.NewScopeID(storage.ScopeAddressGroup, name) }

func groupIDs(names ...string) (out [][]byte) {
	for _, n := range names {
		id := groupID(n)
		out = append(out, id[:])
	}
	return out
}

// items are the node's state by scope and key.
func (n *node) items() map[storage.ScopeID]map[string]storage.Change {
	out := make(map[storage.ScopeID]map[string]storage.Change)
	put := func(scope storage.ScopeID, kind storage.ScopeKind, item *policyv1.Item) {
		if out[scope] == nil {
			out[scope] = make(map[string]storage.Change)
		}
		e := storage.Encode(item)
		out[scope][e.Key] = storage.Change{Op: storage.OpUpsert, Scope: scope, Kind: kind, Item: e}
	}
	for _, p := range n.pods {
		var ips [][]byte
		for _, a := range p.ips {
			ips = append(ips, a.AsSlice())
		}
		var groups []string
		for g := range p.groups {
			groups = append(groups, g)
			put(groupID(g), storage.ScopeAddressGroup, &policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{
				Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "x", Name: p.name}}, Ips: ips, Ports: p.ports}}})
		}
		if p.port != 0 {
			put(storage.NewScopeID(storage.ScopeNode, "node-1"), storage.ScopeNode, &policyv1.Item{Body: &policyv1.Item_Endpoint{Endpoint: &policyv1.Endpoint{
				Namespace: "x", Name: p.name, Ips: ips, Groups: groupIDs(slices.Sorted(slices.Values(groups))...), Ports: p.ports}}})
		}
	}
	for _, p := range n.policies {
		put(storage.NewScopeID(storage.ScopePolicies, p.GetRef().GetKind().String()), storage.ScopePolicies, &policyv1.Item{Body: &policyv1.Item_Policy{Policy: p}})
	}
	return out
}

// commit makes the store hold the node's state.
func (w *world) commit(before, now map[storage.ScopeID]map[string]storage.Change) {
	var changes []storage.Change
	for scope, items := range now {
		for _, ch := range items {
			if before[scope] == nil {
				changes = append(changes, storage.Change{Op: storage.OpJoin, Scope: scope, Kind: ch.Kind, Node: "node-1"})
				break
			}
		}
		changes = append(changes, slices.Collect(maps.Values(items))...)
	}
	for scope, items := range before {
		if now[scope] == nil {
			changes = append(changes, storage.Change{Op: storage.OpDrop, Scope: scope})
			continue
		}
		for key, ch := range items {
			if _, stays := now[scope][key]; !stays {
				ch.Op = storage.OpRemove
				changes = append(changes, ch)
			}
		}
	}
	w.store.Commit(changes, nil)
}

func (n *node) localPorts() (out []Port) {
	for _, p := range n.pods {
		if p.port != 0 {
			out = append(out, port(p.port, p.name))
		}
	}
	return out
}

// traffic is one packet's part in a direction: the Pod that is guarded, and the
// other end.
type traffic struct {
	dir    policyv1.Direction
	pod    *testPod
	peer   netip.Addr
	packet bridge.Packet
}

// candidate is a rule that matches.
type candidate struct {
	policy *policyv1.Policy
	rule   *policyv1.Rule
}

// decision is what the interpreter says: the rule that decides, none for what no
// rule decides, and whether the packet goes on.
type decision struct {
	candidate
	allowed, isolated bool
	allowing          []string // Kubernetes policies that allow.
}

// judge is the reference: the order of the design, written down plainly.
func (n *node) judge(t traffic) decision {
	if c, ok := n.first(t, 0, rankAdmin); ok && c.rule.GetAction() != pass {
		return decision{candidate: c, allowed: c.rule.GetAction() == allow}
	}
	k8s := n.matching(t, rankK8s, rankK8s)
	if len(k8s) > 0 {
		d := decision{candidate: k8s[0], allowed: true}
		for _, c := range k8s {
			d.allowing = append(d.allowing, c.policy.GetRef().GetName())
		}
		slices.Sort(d.allowing)
		d.allowing = slices.Compact(d.allowing)
		return d
	}
	for _, p := range n.policies {
		isolates := t.dir == ingress && p.GetIsolatesIngress() || t.dir == egress && p.GetIsolatesEgress()
		if p.GetRank() == rankK8s && isolates && t.pod.in(p.GetAppliedTo()) {
			return decision{isolated: true}
		}
	}
	if c, ok := n.first(t, rankBaseline, rankUpstreamBaseline); ok {
		return decision{candidate: c, allowed: c.rule.GetAction() == allow}
	}
	return decision{allowed: true}
}

// first is the deciding rule of those in a range of ranks.
func (n *node) first(t traffic, from, to uint32) (best candidate, ok bool) {
	order := []policyv1.Action{drop, reject, pass, allow}
	equal := func(a, b candidate) int {
		kind := 0
		if a.policy.GetRank() > 250 && a.policy.GetRank() != rankBaseline {
			kind = cmp.Compare(a.policy.GetRef().GetKind(), b.policy.GetRef().GetKind())
		}
		return cmp.Or(cmp.Compare(a.policy.GetRank(), b.policy.GetRank()), cmp.Compare(a.policy.GetPriority(), b.policy.GetPriority()), kind,
			cmp.Compare(a.rule.GetIndex(), b.rule.GetIndex()), cmp.Compare(slices.Index(order, a.rule.GetAction()), slices.Index(order, b.rule.GetAction())),
			strings.Compare(fmt.Sprint(b.rule.GetLog()), fmt.Sprint(a.rule.GetLog())))
	}
	for _, c := range n.matching(t, from, to) {
		ages := c.policy.GetCreated() != 0 && best.policy.GetCreated() != 0
		switch {
		case !ok || equal(c, best) < 0:
			best, ok = c, true
		case equal(c, best) == 0 && ages && c.policy.GetCreated() < best.policy.GetCreated():
			best = c
		}
	}
	return best, ok
}

// matching are the rules of a range of ranks that match, by kind and name of
// their policies.
func (n *node) matching(t traffic, from, to uint32) (out []candidate) {
	byName := slices.SortedFunc(maps.Values(n.policies), func(a, b *policyv1.Policy) int {
		return cmp.Or(cmp.Compare(a.GetRef().GetKind(), b.GetRef().GetKind()), strings.Compare(a.GetRef().GetName(), b.GetRef().GetName()))
	})
	for _, p := range byName {
		if p.GetRank() < from || p.GetRank() > to {
			continue
		}
		for _, r := range p.GetRules() {
			applied := r.GetAppliedTo()
			if len(applied) == 0 {
				applied = p.GetAppliedTo()
			}
			if r.GetDirection() == t.dir && t.pod.in(applied) && n.matches(r, t) && !(p.GetRank() >= rankBaseline && r.GetAction() == pass) {
				out = append(out, candidate{p, r})
			}
		}
	}
	return out
}

func (p *testPod) in(groups [][]byte) bool {
	return slices.ContainsFunc(groups, func(g []byte) bool {
		for name := range p.groups {
			if id := groupID(name); string(id[:]) == string(g) {
				return true
			}
		}
		return false
	})
}

func (n *node) matches(r *policyv1.Rule, t traffic) bool {
	var peer *testPod
	for _, p := range n.pods {
		if slices.Contains(p.ips, t.peer) {
			peer = p
		}
	}
	if r.GetPeers() != nil {
		held := peer != nil && peer.in(r.GetPeers().GetGroups())
		for _, b := range r.GetPeers().GetBlocks() {
			cidr, _ := storage.PrefixFromWire(b.GetCidr())
			held = held || cidr.Contains(t.peer) && !slices.ContainsFunc(b.GetExcept(), func(w *policyv1.Prefix) bool {
				x, _ := storage.PrefixFromWire(w)
				return x.Contains(t.peer)
			})
		}
		if !held {
			return false
		}
	}
	if r.GetServices() == nil {
		return true
	}
	destination := t.pod
	if t.dir == egress {
		destination = peer
	}
	return slices.ContainsFunc(r.GetServices().GetServices(), func(s *policyv1.Service) bool {
		proto := map[policyv1.Protocol]uint8{policyv1.Protocol_PROTOCOL_TCP: 6, policyv1.Protocol_PROTOCOL_UDP: 17, policyv1.Protocol_PROTOCOL_SCTP: 132, policyv1.Protocol_PROTOCOL_ICMP: 1}[s.GetProtocol()]
		if proto == 1 && t.peer.Is6() {
			proto = 58
		}
		switch {
		case proto == 0:
			return true
		case proto != t.packet.IPProto:
			return false
		case s.GetPortName() != "":
			return destination != nil && slices.ContainsFunc(destination.ports, func(p *policyv1.NamedPort) bool {
				return p.GetName() == s.GetPortName() && p.GetProtocol() == s.GetProtocol() && p.GetPort() == uint32(t.packet.DstPort)
			})
		}
		return s.GetPort() == 0 || uint32(t.packet.DstPort) >= s.GetPort() && uint32(t.packet.DstPort) <= max(s.GetPort(), s.GetEndPort())
	})
}

// randomPolicy makes a policy of any rank.
func randomPolicy(rng *rand.Rand, name string) *policyv1.Policy {
	kinds := policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY
	p := &policyv1.Policy{Rank: []uint32{50, 250, 250, rankAdmin, rankK8s, rankK8s, rankBaseline, rankUpstreamBaseline}[rng.IntN(8)], Priority: float64(rng.IntN(4)) / 2, Created: int64(rng.IntN(4))}
	switch p.Rank {
	case rankAdmin:
		kinds = []policyv1.PolicyKind{policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY, policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY}[rng.IntN(2)]
	case rankUpstreamBaseline:
		kinds = []policyv1.PolicyKind{policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY, policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY}[rng.IntN(2)]
	case rankK8s:
		kinds = policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY
		p.IsolatesIngress, p.IsolatesEgress = rng.IntN(2) == 0, rng.IntN(2) == 0
		p.Priority = 0
	}
	p.Ref = &policyv1.PolicyRef{Kind: kinds, Name: name}
	group := func() []byte { return groupIDs(testGroups[rng.IntN(4)])[0] }
	onRules := p.Rank < rankK8s && rng.IntN(3) == 0
	if !onRules {
		p.AppliedTo = [][]byte{group()}
	}
	for _, dir := range []policyv1.Direction{ingress, egress} {
		for i := range rng.IntN(4) {
			r := &policyv1.Rule{Direction: dir, Index: uint32(i), Name: fmt.Sprint(name, "-", dir, "-", i), Action: allow, Log: p.Rank != rankK8s && rng.IntN(3) == 0}
			if p.Rank != rankK8s {
				r.Action = []policyv1.Action{allow, drop, reject, pass}[rng.IntN(4)]
			}
			if onRules {
				r.AppliedTo = [][]byte{group()}
			}
			r.Peers, r.Services = randomPeers(rng, group), randomServices(rng)
			if dir == egress && (r.Peers == nil || len(r.Peers.Blocks) > 0) {
				r.PortNameGroups = groupIDs(everyone)
			}
			p.Rules = append(p.Rules, r)
		}
	}
	return p
}

func randomPeers(rng *rand.Rand, group func() []byte) *policyv1.Peers {
	if rng.IntN(4) == 0 {
		return nil
	}
	out := &policyv1.Peers{}
	for range rng.IntN(3) {
		if rng.IntN(2) == 0 {
			out.Groups = append(out.Groups, group())
			continue
		}
		b := &policyv1.IPBlock{Cidr: storage.PrefixToWire(netip.MustParsePrefix([]string{"10.0.0.0/8", "10.0.0.0/29", "192.0.2.0/24", "fd00::/64", "0.0.0.0/0"}[rng.IntN(5)]))}
		if except := netip.MustParsePrefix([]string{"10.0.0.2/31", "192.0.2.0/25", "10.0.0.1/32"}[rng.IntN(3)]); rng.IntN(2) == 0 && b.Cidr.Length < 25 && len(b.Cidr.Address) == 4 {
			b.Except = append(b.Except, storage.PrefixToWire(except))
		}
		out.Blocks = append(out.Blocks, b)
	}
	return out
}

func randomServices(rng *rand.Rand) *policyv1.Services {
	if rng.IntN(3) == 0 {
		return nil
	}
	tcp, udp, sctp := policyv1.Protocol_PROTOCOL_TCP, policyv1.Protocol_PROTOCOL_UDP, policyv1.Protocol_PROTOCOL_SCTP
	out := &policyv1.Services{}
	for range rng.IntN(4) {
		out.Services = append(out.Services, []*policyv1.Service{
			{Protocol: tcp, Port: 80}, {Protocol: tcp, PortName: "http"}, {Protocol: udp, Port: 50, EndPort: 55}, {Protocol: udp, PortName: "http"},
			{Protocol: sctp, Port: 80}, {Protocol: sctp}, {Protocol: policyv1.Protocol_PROTOCOL_ICMP}, {},
		}[rng.IntN(8)])
	}
	return out
}

func randomPod(rng *rand.Rand, i int) *testPod {
	p := &testPod{name: fmt.Sprint("pod-", i), groups: map[string]bool{everyone: true}, ips: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}}
	if i < 5 {
		p.port = uint32(i)
	}
	if rng.IntN(2) == 0 {
		p.ips = append(p.ips, netip.MustParseAddr(fmt.Sprintf("fd00::%d", i)))
	}
	for _, g := range testGroups[:3] {
		if rng.IntN(2) == 0 {
			p.groups[g] = true
		}
	}
	for range rng.IntN(3) {
		p.ports = append(p.ports, &policyv1.NamedPort{Name: "http", Protocol: []policyv1.Protocol{policyv1.Protocol_PROTOCOL_TCP, policyv1.Protocol_PROTOCOL_UDP}[rng.IntN(2)], Port: uint32(79 + rng.IntN(3))})
	}
	return p
}

// randomPacket is one between a local Pod and another Pod or a stranger, with
// its two ends; nil is a stranger.
func (n *node) randomPacket(rng *rand.Rand) (p bridge.Packet, from, to *testPod) {
	from, to = n.pods[fmt.Sprint("pod-", 1+rng.IntN(4))], n.pods[fmt.Sprint("pod-", 1+rng.IntN(6))]
	i := rng.IntN(2)
	stranger := []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(256))}), netip.MustParseAddr("fd00::99")}
	address := func(pod *testPod) (netip.Addr, bool) {
		if pod == nil {
			return stranger[i], true
		}
		return pod.ips[min(i, len(pod.ips)-1)], i < len(pod.ips)
	}
	if to == from || rng.IntN(5) == 0 {
		to = nil
	}
	if rng.IntN(2) == 0 {
		from, to = to, from
	}
	src, ok := address(from)
	dst, okay := address(to)
	if !ok || !okay {
		return n.randomPacket(rng)
	}
	p = bridge.Packet{EthType: openflow.EtherIPv4, IPSrc: src, IPDst: dst, TTL: 64, SrcPort: 1234, InPort: openflow.PortLocal, EthSrc: config.LocalMAC,
		IPProto: []uint8{openflow.ProtoTCP, openflow.ProtoUDP, openflow.ProtoSCTP, openflow.ProtoICMP}[rng.IntN(4)], DstPort: []uint16{53, 79, 80, 81}[rng.IntN(4)]}
	if dst.Is6() {
		p.EthType = openflow.EtherIPv6
	}
	switch p.IPProto {
	case openflow.ProtoTCP:
		p.TCPFlags = bridge.TCPSyn
	case openflow.ProtoICMP:
		p.SrcPort, p.DstPort, p.ICMPType = 0, 0, 8
		if dst.Is6() {
			p.IPProto, p.ICMPType = openflow.ProtoICMPv6, 128
		}
	}
	if from != nil && from.port != 0 {
		p.InPort, p.EthSrc, p.EthDst = from.port, port(from.port, from.name).MAC, config.LocalMAC
	}
	return p, from, to
}

// check sends a packet and holds what becomes of it to the interpreter.
func (n *node) check(fake *bridge.Fake, c *Compiler, p bridge.Packet, from, to *testPod) error {
	var want []decision
	out := openflow.PortLocal
	if from != nil && from.port != 0 {
		want = append(want, n.judge(traffic{egress, from, p.IPDst, p}))
	}
	if to != nil && to.port != 0 {
		out = to.port
		if len(want) == 0 || want[0].allowed {
			want = append(want, n.judge(traffic{ingress, to, p.IPSrc, p}))
		}
	}
	w := fake.Walk(p, bridge.WalkOptions{CtNext: []uint32{}})
	if len(w.Ambiguous) > 0 {
		return fmt.Errorf("ambiguous: %v", w.Ambiguous)
	}
	passes := len(want) == 0 || want[len(want)-1].allowed
	if got := w.Ports(); passes != (len(got) == 1 && got[0] == out) || !passes && len(got) > 0 {
		return fmt.Errorf("leaves by %v, while %v is right: %+v", got, passes, want)
	}
	// The flows that decided mean the rules that decided.
	var hits []bridge.Hit
	for _, h := range w.Trail {
		kind, id, _ := ParseCookie(h.Flow.Cookie)
		if kind == KindIsolation || kind == KindRule && c.byConj[id].rule.wire.GetAction() != pass {
			hits = append(hits, h)
		}
	}
	logs := make(map[uint64]bool)
	for _, in := range w.PacketIns {
		logs[in.Cookie] = true
	}
	for _, d := range want {
		if d.rule == nil && !d.isolated {
			continue
		}
		if len(hits) == 0 {
			return fmt.Errorf("nothing that decided was hit: %+v", d)
		}
		h := hits[0]
		hits = hits[1:]
		a, ok := c.Attribute(Hit{Table: h.Table, Cookie: h.Flow.Cookie, InPort: p.InPort, OutPort: out, Src: p.IPSrc, Dst: p.IPDst,
			Proto: p.IPProto, SrcPort: p.SrcPort, DstPort: p.DstPort, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode})
		switch {
		case !ok || a.Isolation != d.isolated:
			return fmt.Errorf("attributed to %+v instead of %+v", a, d)
		case d.isolated:
			continue
		case len(d.allowing) > 0:
			var names []string
			for _, ref := range a.Policies {
				names = append(names, ref.GetName())
			}
			if !slices.Equal(names, d.allowing) {
				return fmt.Errorf("attributed to %v instead of %v", names, d.allowing)
			}
		case a.Action != d.rule.GetAction() || a.Rule != d.rule.GetName() || a.Policies[0].GetName() != d.policy.GetRef().GetName() || logs[h.Flow.Cookie] != d.rule.GetLog():
			return fmt.Errorf("attributed to %+v instead of %+v; recorded: %v", a, d, logs[h.Flow.Cookie])
		}
	}
	if len(hits) > 0 {
		return fmt.Errorf("hits too much: %v", hits)
	}
	return nil
}

// Packets on a bridge with random policies of all ranks fare as the interpreter
// says, through edits and restarts; and a compiler that went through them wants
// what a new one would with its assignment.
func TestRulesOfAllRanks(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		if err := allRanks(t, rand.New(rand.NewPCG(seed, 9))); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func allRanks(t *testing.T, rng *rand.Rand) error {
	ctx := context.Background()
	cfg := config
	cfg.ClauseCap = 1 + rng.IntN(3)
	w := newWorld(t, "node-1")
	n := &node{pods: make(map[string]*testPod), policies: make(map[string]*policyv1.Policy)}
	for i := range 6 {
		p := randomPod(rng, i+1)
		n.pods[p.name] = p
	}
	fake := bridge.NewFake(bridge.Config{Name: "br0", Mark: bridge.Mark{Value: CookieMark, Mask: CookieMask}})
	for i := range 4 {
		if err := fake.AddPort(ctx, fmt.Sprint("if", i+1), nil); err != nil {
			return err
		}
	}
	tight := rng.IntN(2) == 0
	start := func(former Assignment) *Compiler {
		c := New(cfg, former)
		if tight { // So that priorities run out and flows move.
			for table := range c.ladders {
				c.ladders[table] = newLadder(1, 32, 24, c.move)
				c.ladders[table].restore(former.Levels[table])
			}
		}
		return c
	}
	c := start(Assignment{})
	var held map[storage.ScopeID]map[string]storage.Change
	for round := range 12 {
		for range rng.IntN(5) {
			name := fmt.Sprint("policy-", rng.IntN(8))
			if delete(n.policies, name); rng.IntN(4) > 0 {
				n.policies[name] = randomPolicy(rng, name)
			}
		}
		if rng.IntN(3) == 0 {
			p := randomPod(rng, 1+rng.IntN(6))
			n.pods[p.name] = p
		}
		items := n.items()
		w.commit(held, items)
		held = items
		ch := w.update(c, w.sync(), n.localPorts())
		if err := fake.Apply(ctx, bridge.Change{Upsert: ch.Upsert, Delete: ch.Delete}); err != nil {
			return err
		}
		desired := text(c.Desired())
		assignment, err := DecodeAssignment(c.Assignment().Encode())
		if err != nil {
			return err
		}
		fresh := start(assignment)
		w.update(fresh, Whole(w.replica), n.localPorts())
		if got := text(fresh.Desired()); got != desired {
			return fmt.Errorf("round %d: fresh (+) and incremental (-):\n%s", round, difference(got, desired))
		}
		if rng.IntN(4) == 0 { // A restart.
			c = fresh
		}
		if rng.IntN(6) == 0 { // One without a checkpoint.
			c = start(Assignment{Next: assignment.Next})
			w.update(c, Whole(w.replica), n.localPorts())
		}
		state, err := fake.Read(ctx)
		if err != nil {
			return err
		}
		want := bridge.NewContent()
		for _, f := range c.Desired() {
			want.Flows[f.Key()] = f
		}
		diff := bridge.Diff(want, state)
		if c == fresh && len(diff.Upsert)+len(diff.Delete) > 0 {
			return fmt.Errorf("round %d: a restart changes %v", round, diff)
		}
		if err := fake.Apply(ctx, diff); err != nil {
			return err
		}
		if err := n.problems(c); err != nil {
			return err
		}
		for range 60 {
			p, from, to := n.randomPacket(rng)
			if err := n.check(fake, c, p, from, to); err != nil {
				return fmt.Errorf("round %d: %s: %w", round, p.String(), err)
			}
		}
	}
	return nil
}

// problems checks that a Pass in a baseline is a problem, and nothing else.
func (n *node) problems(c *Compiler) error {
	want := 0
	for _, p := range n.policies {
		for _, r := range p.GetRules() {
			if p.GetRank() >= rankBaseline && r.GetAction() == pass {
				want++
			}
		}
	}
	got := 0
	for _, p := range c.Problems() {
		got += strings.Count(p.Err.Error(), "in a baseline")
	}
	if got != want {
		return fmt.Errorf("%d rules that pass in a baseline are problems, want %d: %v", got, want, c.Problems())
	}
	return nil
}
