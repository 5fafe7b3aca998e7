package pipeline

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/order"
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
func (w *feed) commit(before, now map[storage.ScopeID]map[string]storage.Change) {
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
	passed            candidate // The rule that passed the packet on to the Kubernetes rules.
	allowed, isolated bool
	policies          []*policyv1.Policy // That decide, by name.
}

// judge is the reference: the order of the design, written down plainly. In the
// staged world the staged policies hold too.
func (n *node) judge(t traffic, w world) (d decision) {
	decide := func(c candidate) decision {
		d.candidate, d.allowed, d.policies = c, c.rule.GetAction() == allow, []*policyv1.Policy{c.policy}
		return d
	}
	if c, ok := n.first(t, w, 0, order.RankAdmin); ok {
		if c.rule.GetAction() != pass {
			return decide(c)
		}
		d.passed = c
	}
	k8s := n.matching(t, w, order.RankK8s, order.RankK8s)
	if len(k8s) > 0 {
		decide(k8s[0])
		d.policies = nil
		for _, c := range k8s { // By name.
			if !slices.Contains(d.policies, c.policy) {
				d.policies = append(d.policies, c.policy)
			}
		}
		return d
	}
	for _, p := range n.byName(w) {
		isolates := t.dir == ingress && p.GetIsolatesIngress() || t.dir == egress && p.GetIsolatesEgress()
		if p.GetRank() == order.RankK8s && isolates && t.pod.in(p.GetAppliedTo()) {
			d.isolated, d.policies = true, append(d.policies, p)
		}
	}
	if d.isolated {
		return d
	}
	if c, ok := n.first(t, w, order.RankBaseline, order.RankUpstreamBaseline); ok {
		return decide(c)
	}
	d.allowed = true
	return d
}

// action is what becomes of the packet.
func (d decision) action() policyv1.Action {
	switch {
	case d.rule != nil:
		return d.rule.GetAction()
	case d.isolated:
		return drop
	}
	return allow
}

// logs says whether a policy asks for a record.
func (d decision) logs() bool {
	if d.isolated {
		return slices.ContainsFunc(d.policies, (*policyv1.Policy).GetLogIsolation)
	}
	return d.rule.GetLog()
}

// byName are the policies of a world, by kind and name.
func (n *node) byName(w world) []*policyv1.Policy {
	all := slices.SortedFunc(maps.Values(n.policies), func(a, b *policyv1.Policy) int {
		return cmp.Or(cmp.Compare(a.GetRef().GetKind(), b.GetRef().GetKind()), strings.Compare(a.GetRef().GetName(), b.GetRef().GetName()))
	})
	return slices.DeleteFunc(all, func(p *policyv1.Policy) bool { return p.GetStaged() && w == enforced })
}

// first is the deciding rule of those in a range of ranks.
func (n *node) first(t traffic, w world, from, to uint32) (best candidate, ok bool) {
	severe := []policyv1.Action{drop, reject, pass, allow}
	equal := func(a, b candidate) int {
		kind := 0
		if a.policy.GetRank() > 250 && a.policy.GetRank() != order.RankBaseline {
			kind = cmp.Compare(a.policy.GetRef().GetKind(), b.policy.GetRef().GetKind())
		}
		return cmp.Or(cmp.Compare(a.policy.GetRank(), b.policy.GetRank()), cmp.Compare(a.policy.GetPriority(), b.policy.GetPriority()), kind,
			cmp.Compare(a.rule.GetIndex(), b.rule.GetIndex()), cmp.Compare(slices.Index(severe, a.rule.GetAction()), slices.Index(severe, b.rule.GetAction())),
			strings.Compare(fmt.Sprint(b.rule.GetLog()), fmt.Sprint(a.rule.GetLog())))
	}
	for _, c := range n.matching(t, w, from, to) {
		switch {
		case !ok || equal(c, best) < 0:
			best, ok = c, true
		case equal(c, best) == 0 && order.Born(c.policy) < order.Born(best.policy):
			best = c
		}
	}
	return best, ok
}

// matching are the rules of a range of ranks that match, by kind and name of
// their policies.
func (n *node) matching(t traffic, w world, from, to uint32) (out []candidate) {
	for _, p := range n.byName(w) {
		if p.GetRank() < from || p.GetRank() > to {
			continue
		}
		for _, r := range p.GetRules() {
			applied := r.GetAppliedTo()
			if len(applied) == 0 {
				applied = p.GetAppliedTo()
			}
			if r.GetDirection() == t.dir && t.pod.in(applied) && n.matches(r, t) && !(p.GetRank() >= order.RankBaseline && r.GetAction() == pass) {
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
