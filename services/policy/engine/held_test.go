package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/storage"
)

// held reads what the items of a node say, as a shim would have to: it knows
// nothing of selectors, and the evaluator knows nothing of items.
type held struct{ *storage.Replica }

// heldBy is what a node holds, over the wire.
func heldBy(t testing.TB, store *storage.Store, node string) held {
	t.Helper()
	sub := store.Subscribe(node)
	defer sub.Close()
	replica := &storage.Replica{}
	for _, b := range sub.Next().Frames(1 << 20) {
		frame := &policyv1.Cut{}
		if err := proto.Unmarshal(b, frame); err != nil {
			t.Fatal(err)
		}
		if _, _, err := replica.Apply(frame); err != nil {
			t.Fatal(err)
		}
	}
	return held{replica}
}

// packet is a connection as a node sees it, in one direction.
type packet struct {
	dir      policyv1.Direction
	peer     netip.Addr
	protocol policyv1.Protocol
	port     uint32

	sourcePort uint32
}

// verdict judges a packet of an endpoint of the node.
func (h held) verdict(ep *policyv1.Endpoint, p packet) policyv1.Action {
	var policies []*policyv1.Policy
	h.Items(storage.ScopePolicies, func(_ storage.ScopeID, item *policyv1.Item) {
		if pol := item.GetPolicy(); !pol.Staged {
			policies = append(policies, pol)
		}
	})
	if a := h.ordered(policies, 0, api.RankAdmin, ep, p); a != 0 && a != policyv1.Action_ACTION_PASS {
		return a
	}
	isolated := false
	for _, pol := range policies {
		if pol.Rank != api.RankK8s || !in(ep, pol.AppliedTo) {
			continue
		}
		isolated = isolated || pol.IsolatesIngress && p.dir == policyv1.Direction_DIRECTION_INGRESS || pol.IsolatesEgress && p.dir == policyv1.Direction_DIRECTION_EGRESS
		for _, r := range pol.Rules {
			if h.matches(r, ep, p) {
				return policyv1.Action_ACTION_ALLOW
			}
		}
	}
	if isolated {
		return policyv1.Action_ACTION_DROP
	}
	if a := h.ordered(policies, api.RankK8s+1, api.RankUpstreamBaseline, ep, p); a != 0 {
		return a
	}
	return policyv1.Action_ACTION_ALLOW
}

func in(ep *policyv1.Endpoint, groups [][]byte) bool {
	return slices.ContainsFunc(groups, func(g []byte) bool {
		return slices.ContainsFunc(ep.Groups, func(own []byte) bool { return string(g) == string(own) })
	})
}

// ordered is the action of the first rule of some ranks that matches; zero for none.
func (h held) ordered(policies []*policyv1.Policy, from, to uint32, ep *policyv1.Endpoint, p packet) policyv1.Action {
	type candidate struct {
		policy *policyv1.Policy
		rule   *policyv1.Rule
	}
	var matching []candidate
	for _, pol := range policies {
		for _, r := range pol.Rules {
			targets := pol.AppliedTo
			if len(r.AppliedTo) > 0 {
				targets = r.AppliedTo
			}
			if from <= pol.Rank && pol.Rank <= to && in(ep, targets) && h.matches(r, ep, p) {
				matching = append(matching, candidate{pol, r})
			}
		}
	}
	if len(matching) == 0 {
		return 0
	}
	strict := map[policyv1.Action]int{policyv1.Action_ACTION_DROP: 0, policyv1.Action_ACTION_REJECT: 1, policyv1.Action_ACTION_PASS: 2, policyv1.Action_ACTION_ALLOW: 3}
	first := slices.MinFunc(matching, func(a, b candidate) int {
		kind := 0
		if a.policy.Rank == api.RankAdmin || a.policy.Rank == api.RankUpstreamBaseline {
			kind = cmp.Compare(a.policy.Ref.Kind, b.policy.Ref.Kind)
		}
		return cmp.Or(cmp.Compare(a.policy.Rank, b.policy.Rank), cmp.Compare(a.policy.Priority, b.policy.Priority), kind,
			cmp.Compare(a.rule.Index, b.rule.Index), cmp.Compare(strict[a.rule.Action], strict[b.rule.Action]))
	})
	return first.rule.Action
}

func (h held) matches(r *policyv1.Rule, ep *policyv1.Endpoint, p packet) bool {
	if r.Direction != p.dir {
		return false
	}
	if r.Peers != nil && len(h.members(r.Peers.Groups, p.peer)) == 0 && !slices.ContainsFunc(r.Peers.Blocks, func(b *policyv1.IPBlock) bool { return inBlock(b, p.peer) }) {
		return false
	}
	if r.Services == nil {
		return true
	}
	destinations := [][]*policyv1.NamedPort{ep.Ports}
	if p.dir == policyv1.Direction_DIRECTION_EGRESS {
		destinations = nil
		for _, m := range h.members(slices.Concat(r.Peers.GetGroups(), r.PortNameGroups), p.peer) {
			destinations = append(destinations, m.Ports)
		}
	}
	return slices.ContainsFunc(r.Services.Services, func(s *policyv1.Service) bool {
		switch {
		case s.Protocol != p.protocol, s.SourcePort != 0 && (p.sourcePort < s.SourcePort || p.sourcePort > max(s.SourcePort, s.SourceEndPort)):
			return false
		case s.Protocol == policyv1.Protocol_PROTOCOL_ICMP:
			return (s.IcmpType == nil || *s.IcmpType == 8) && (s.IcmpCode == nil || *s.IcmpCode == 0)
		case s.PortName != "":
			return slices.ContainsFunc(slices.Concat(destinations...), func(n *policyv1.NamedPort) bool {
				return n.Name == s.PortName && n.Protocol == p.protocol && n.Port == p.port
			})
		}
		return s.Port == 0 || p.port == s.Port || s.Port <= p.port && p.port <= s.EndPort
	})
}

// members are those of groups that have an address.
func (h held) members(groups [][]byte, a netip.Addr) (found []*policyv1.Member) {
	for _, g := range groups {
		id, _ := storage.ScopeIDFromBytes(g)
		h.Scope(id, func(_ string, item *policyv1.Item) {
			if slices.ContainsFunc(item.GetMember().Ips, func(ip []byte) bool { return slices.Equal(ip, a.AsSlice()) }) {
				found = append(found, item.GetMember())
			}
		})
	}
	return found
}

func inBlock(b *policyv1.IPBlock, a netip.Addr) bool {
	in := func(p *policyv1.Prefix) bool {
		prefix, err := storage.PrefixFromWire(p)
		return err == nil && prefix.Contains(a)
	}
	return in(b.Cidr) && !slices.ContainsFunc(b.Except, in)
}

// probe is a packet without its addresses.
type probe struct {
	protocol         api.Protocol
	port, sourcePort uint16
}

// probes are what is tried between every two endpoints.
var probes = []probe{{api.ProtocolTCP, 80, 0}, {api.ProtocolTCP, 5432, 4000}, {api.ProtocolUDP, 7, 0}, {api.ProtocolICMP, 0, 0}}

// agree compares what the nodes hold with the evaluator, for every connection
// between endpoints, on both of its ends, and between endpoints and hosts.
func agree(t testing.TB, store *storage.Store, objects []api.Object) {
	t.Helper()
	agreeOn(t, store, objects, probes)
}

// agreeOn is agree by other probes, of which hosts are tried with the first.
func agreeOn(t testing.TB, store *storage.Store, objects []api.Object, probes []probe) {
	t.Helper()
	a := agreement{TB: t, probes: probes, state: evaluate.New(objects...), nodes: make(map[string]held), claims: make(map[netip.Addr]int)}
	var pods []*api.Pod
	var hosts []*api.Node
	for _, o := range objects {
		switch o := o.(type) {
		case *api.Pod:
			if !isEndpoint(o) {
				continue
			}
			if _, ok := a.nodes[o.Node]; !ok {
				a.nodes[o.Node] = heldBy(t, store, o.Node)
			}
			pods = append(pods, o)
			for _, addr := range o.IPs {
				a.claims[addr]++
			}
		case *api.Node:
			if len(o.Addresses) > 0 {
				hosts = append(hosts, o)
			}
		}
	}
	for _, from := range pods {
		for _, to := range pods {
			if from != to {
				a.both(from, to)
			}
		}
		for _, host := range hosts {
			a.withHost(from, host)
		}
	}
}

// agreement is what agree compares.
type agreement struct {
	testing.TB
	probes []probe
	state  *evaluate.State
	nodes  map[string]held
	claims map[netip.Addr]int // An address that two claim is on its way from one to the other.
}

var wireVerdicts = map[evaluate.Verdict]policyv1.Action{evaluate.Allow: policyv1.Action_ACTION_ALLOW, evaluate.Drop: policyv1.Action_ACTION_DROP, evaluate.Reject: policyv1.Action_ACTION_REJECT}

func endpointOf(p *api.Pod) evaluate.Endpoint {
	return evaluate.Endpoint{Namespace: p.Namespace, Pod: p.Name}
}

// both compares both ends of the connections between two Pods.
func (a *agreement) both(from, to *api.Pod) {
	a.Helper()
	if a.claims[from.IPs[0]] > 1 || a.claims[to.IPs[0]] > 1 {
		return
	}
	for _, probe := range a.probes {
		r, err := a.state.Evaluate(evaluate.Connection{From: endpointOf(from), To: endpointOf(to), Protocol: probe.protocol, Port: probe.port, SourcePort: probe.sourcePort})
		if err != nil {
			a.Fatal(err)
		}
		what := fmt.Sprintf("%s to %s, %s/%d", from.Ref(), to.Ref(), probe.protocol, probe.port)
		p := packet{protocol: wireProtocol(probe.protocol), port: uint32(probe.port), sourcePort: uint32(probe.sourcePort)}
		p.dir, p.peer = policyv1.Direction_DIRECTION_EGRESS, to.IPs[0]
		a.check(what, from, p, r.Egress)
		p.dir, p.peer = policyv1.Direction_DIRECTION_INGRESS, from.IPs[0]
		a.check(what, to, p, r.Ingress)
	}
}

// withHost compares connections between a Pod and a host, on the Pod's end.
func (a *agreement) withHost(pod *api.Pod, host *api.Node) {
	a.Helper()
	if a.claims[pod.IPs[0]] > 1 {
		return
	}
	probe, node := a.probes[0], evaluate.Endpoint{Node: host.Name}
	out, err := a.state.Evaluate(evaluate.Connection{From: endpointOf(pod), To: node, Protocol: probe.protocol, Port: probe.port})
	if err != nil {
		a.Fatal(err)
	}
	p := packet{protocol: wireProtocol(probe.protocol), port: uint32(probe.port), dir: policyv1.Direction_DIRECTION_EGRESS, peer: host.Addresses[0]}
	a.check(fmt.Sprintf("%s to %s", pod.Ref(), host.Ref()), pod, p, out.Egress)
	if host.Name == pod.Node {
		return // Its own host's traffic is let in before any item counts.
	}
	back, err := a.state.Evaluate(evaluate.Connection{From: node, To: endpointOf(pod), Protocol: probe.protocol, Port: probe.port})
	if err != nil {
		a.Fatal(err)
	}
	p.dir = policyv1.Direction_DIRECTION_INGRESS
	a.check(fmt.Sprintf("%s to %s", host.Ref(), pod.Ref()), pod, p, back.Ingress)
}

func (a *agreement) check(what string, pod *api.Pod, p packet, want evaluate.Decision) {
	a.Helper()
	node := a.nodes[pod.Node]
	ep := node.Item(storage.NewScopeID(storage.ScopeNode, pod.Node), storage.PodKey(pod.Namespace, pod.Name)).GetEndpoint()
	if ep == nil {
		a.Fatalf("node %s does not hold its Pod %s", pod.Node, pod.Ref())
	}
	if got := node.verdict(ep, p); got != wireVerdicts[want.Action] {
		a.Fatalf("%s: %s on %s, want %s: %s", what, got, p.dir, want.Action, want.Reason)
	}
}
