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
	service    string // "NAMESPACE/NAME" of the Service whose ClusterIP it was sent to.
	nodePort   bool   // It is for a port of the node itself.
	host       bool   // It is the host's own.
	steering   bool   // It is what it takes to steer a node.
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
			overruled := p.steering && !pol.AllowLockout && (r.Action == policyv1.Action_ACTION_DROP || r.Action == policyv1.Action_ACTION_REJECT)
			if from <= pol.Rank && pol.Rank <= to && in(ep, targets) && h.matches(r, ep, p) && !overruled {
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
	if r.Direction != p.dir || r.NodePorts != p.nodePort {
		return false
	}
	toService := slices.ContainsFunc(r.Peers.GetServices(), func(s *policyv1.ServiceRef) bool { return s.Namespace+"/"+s.Name == p.service })
	if r.Peers != nil && !toService && len(h.members(r.Peers.Groups, p.peer)) == 0 && !slices.ContainsFunc(r.Peers.Blocks, func(b *policyv1.IPBlock) bool { return inBlock(b, p.peer) }) {
		return false
	}
	if r.Services == nil {
		return true
	}
	destinations := [][]*policyv1.NamedPort{ep.Ports}
	if p.dir == policyv1.Direction_DIRECTION_EGRESS {
		destinations = nil // Of Pods, also where the host sends.
		groups := r.Peers.GetGroups()
		if r.Peers == nil || slices.ContainsFunc(r.Peers.Blocks, func(b *policyv1.IPBlock) bool { return inBlock(b, p.peer) }) {
			groups = slices.Concat(groups, r.PortNameGroups)
		}
		for _, m := range h.members(groups, p.peer) {
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
	a := agreement{TB: t, probes: probes, state: evaluate.New(objects...), nodes: make(map[string]held), claims: make(map[netip.Addr]int), pods: make(map[netip.Addr]*api.Pod)}
	var pods []*api.Pod
	var hosts []*api.Node
	var services []*api.Service
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
				a.pods[addr] = o
			}
		case *api.Node:
			if len(o.Addresses) > 0 {
				hosts = append(hosts, o)
			}
		case *api.Service:
			services = append(services, o)
		}
	}
	for _, svc := range services {
		for _, host := range hosts {
			a.onNodePorts(heldBy(t, store, host.Name), host, svc)
		}
	}
	a.hosts(store, hosts, pods)
	for _, from := range pods {
		for _, to := range pods {
			if from != to {
				a.both(from, to)
			}
		}
		for _, host := range hosts {
			a.withHost(from, host)
		}
		for _, svc := range services {
			a.toService(from, svc)
		}
	}
}

// agreement is what agree compares.
type agreement struct {
	testing.TB
	probes []probe
	state  *evaluate.State
	nodes  map[string]held
	pods   map[netip.Addr]*api.Pod
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
	ep := node.endpoint(pod)
	if ep == nil {
		a.Fatalf("node %s does not hold its Pod %s", pod.Node, pod.Ref())
	}
	if got := node.verdict(ep, p); got != wireVerdicts[want.Action] {
		a.Fatalf("%s: %s on %s, want %s: %s", what, got, p.dir, want.Action, want.Reason)
	}
}

// onNodePorts compares what becomes of clients that reach a Service by a node.
func (a *agreement) onNodePorts(node held, host *api.Node, svc *api.Service) {
	a.Helper()
	facts := node.Item(storage.NewScopeID(storage.ScopeNode, host.Name), nodeKey).GetNode()
	for _, port := range svc.Ports {
		for _, client := range []string{"10.0.0.77", "10.0.0.1", "10.0.1.200", "203.0.113.7"} {
			if port.NodePort == 0 || a.claims[netip.MustParseAddr(client)] > 0 {
				continue
			}
			from := evaluate.Endpoint{Addr: netip.MustParseAddr(client)}
			for _, source := range []uint16{0, 4000} {
				r, err := a.state.Evaluate(evaluate.Connection{From: from, To: evaluate.Endpoint{Node: host.Name}, Protocol: port.Protocol, Port: port.NodePort, SourcePort: source})
				if err != nil {
					a.Fatal(err)
				}
				p := packet{dir: policyv1.Direction_DIRECTION_INGRESS, peer: from.Addr, protocol: wireProtocol(port.Protocol), port: uint32(port.NodePort), sourcePort: uint32(source), nodePort: true}
				if got := node.verdict(&policyv1.Endpoint{Groups: facts.GetGroups()}, p); got != wireVerdicts[r.Ingress.Action] {
					a.Fatalf("%s to port %d of %s: %s, want %s: %s", client, port.NodePort, host.Ref(), got, r.Ingress.Action, r.Ingress.Reason)
				}
			}
		}
	}
}

// hosts compares what becomes of what hosts send and receive, on their ends.
func (a *agreement) hosts(store *storage.Store, hosts []*api.Node, pods []*api.Pod) {
	a.Helper()
	for _, host := range hosts {
		node := heldBy(a, store, host.Name)
		var others []evaluate.Endpoint
		for _, other := range hosts {
			if other != host {
				others = append(others, evaluate.Endpoint{Node: other.Name, Addr: other.Addresses[0]})
			}
		}
		for _, pod := range pods {
			if a.claims[pod.IPs[0]] == 1 {
				others = append(others, evaluate.Endpoint{Namespace: pod.Namespace, Pod: pod.Name, Addr: pod.IPs[0]})
			}
		}
		for _, outside := range []string{"10.0.0.77", "10.0.1.200", "203.0.113.7"} {
			if addr := netip.MustParseAddr(outside); a.claims[addr] == 0 {
				others = append(others, evaluate.Endpoint{Addr: addr})
			}
		}
		own := evaluate.Endpoint{Node: host.Name, Addr: host.Addresses[0]}
		for _, other := range others {
			for _, probe := range append(slices.Clone(a.probes), probe{api.ProtocolTCP, 10250, 0}, probe{api.ProtocolTCP, 8080, 0}) {
				a.ofHost(node, own, other, probe, policyv1.Direction_DIRECTION_EGRESS)
				a.ofHost(node, own, other, probe, policyv1.Direction_DIRECTION_INGRESS)
			}
		}
	}
}

// ofHost compares one connection of a host in one direction.
func (a *agreement) ofHost(node held, own, other evaluate.Endpoint, probe probe, d policyv1.Direction) {
	a.Helper()
	c := evaluate.Connection{From: own, To: other, Protocol: probe.protocol, Port: probe.port, SourcePort: probe.sourcePort}
	if d == policyv1.Direction_DIRECTION_INGRESS {
		c.From, c.To = other, own
	}
	r, err := a.state.Evaluate(c)
	if err != nil {
		a.Fatal(err)
	}
	want := r.Egress
	if d == policyv1.Direction_DIRECTION_INGRESS {
		want = r.Ingress
	}
	facts := node.Item(storage.NewScopeID(storage.ScopeNode, own.Node), nodeKey).GetNode()
	p := packet{dir: d, peer: other.Addr, protocol: wireProtocol(probe.protocol), port: uint32(probe.port), sourcePort: uint32(probe.sourcePort), host: true}
	p.steering = steers(facts, d, other.Addr, own.Addr, p)
	got := node.verdict(&policyv1.Endpoint{Groups: facts.GetGroups()}, p)
	if d == policyv1.Direction_DIRECTION_EGRESS && probe.protocol == api.ProtocolUDP && got == policyv1.Action_ACTION_REJECT {
		got = policyv1.Action_ACTION_DROP // As the API has it.
	}
	if got != wireVerdicts[want.Action] {
		a.Fatalf("%s and %s, %s/%d: %s on %s of the host, want %s: %s", own.Node, other.Addr, probe.protocol, probe.port, got, d, want.Action, want.Reason)
	}
}

// steers reads from a node's facts whether a packet of its host is what it takes
// to steer a node.
func steers(facts *policyv1.NodeFacts, d policyv1.Direction, peer, own netip.Addr, p packet) bool {
	isServer := func(a netip.Addr, ports ...uint32) bool {
		return slices.ContainsFunc(facts.GetServers(), func(s *policyv1.ServerAddress) bool {
			return slices.Equal(s.Ip, a.AsSlice()) && (len(ports) == 0 || s.Port == ports[0])
		})
	}
	client := slices.ContainsFunc(facts.GetClients(), func(ip []byte) bool { return slices.Equal(ip, peer.AsSlice()) })
	switch {
	case p.protocol != policyv1.Protocol_PROTOCOL_TCP:
		return false
	case d == policyv1.Direction_DIRECTION_EGRESS:
		return isServer(peer, p.port) || p.port == 10250 && isServer(own) && client
	}
	return p.port == 10250 && isServer(peer) || isServer(own, p.port) && client
}

// toService compares what becomes of a Pod's connections to a Service, over all
// backends that its node may choose.
func (a *agreement) toService(from *api.Pod, svc *api.Service) {
	a.Helper()
	if !svc.Balanced() || a.claims[from.IPs[0]] > 1 {
		return
	}
	for _, port := range svc.Ports {
		r, err := a.state.Evaluate(evaluate.Connection{From: endpointOf(from), To: evaluate.Endpoint{Namespace: svc.Namespace, Service: svc.Name}, Protocol: port.Protocol, Port: port.Port})
		what := fmt.Sprintf("%s to %s, %s/%d", from.Ref(), svc.Ref(), port.Protocol, port.Port)
		backends := a.nodes[from.Node].chosen(from.Node, svc, port.Name)
		if len(backends) == 0 || err != nil {
			if len(backends) > 0 || err == nil {
				a.Fatalf("%s: its node may choose of %v, and the evaluator says %v", what, backends, err)
			}
			continue
		}
		worst := policyv1.Action_ACTION_ALLOW
		for _, b := range backends {
			got, known := a.through(from, svc, b, port.Protocol)
			if !known {
				return
			}
			if got == policyv1.Action_ACTION_DROP || worst == policyv1.Action_ACTION_ALLOW {
				worst = got
			}
		}
		if worst != wireVerdicts[r.Verdict] {
			decision := r.Deciding()
			a.Fatalf("%s: %s, want %s: %s", what, worst, r.Verdict, decision.Reason)
		}
	}
}

// destination is an address behind a Service, with its port.
type destination struct {
	addr netip.Addr
	port uint32
}

// chosen are the IPv4 backends of a port that a node may choose for its Pods, as
// far as its items say. Where it has no zone or no hint names it, hints do not count.
func (h held) chosen(node string, svc *api.Service, port string) []destination {
	var list []*policyv1.Backend
	at := map[*policyv1.Backend]destination{}
	local := false
	h.Items(storage.ScopeServices, func(_ storage.ScopeID, item *policyv1.Item) {
		if s := item.GetService(); s.GetNamespace() == svc.Namespace && s.GetName() == svc.Name {
			local = s.Local
		}
		b := item.GetBackend()
		for _, p := range b.GetPorts() {
			if addr, _ := netip.AddrFromSlice(b.Ip); b.Namespace == svc.Namespace && b.Service == svc.Name && p.Name == port && addr.Is4() {
				list, at[b] = append(list, b), destination{addr, p.Port}
			}
		}
	})
	keep := func(is func(*policyv1.Backend) bool) (kept []*policyv1.Backend) {
		for _, b := range list {
			if is(b) {
				kept = append(kept, b)
			}
		}
		return kept
	}
	if local {
		list = keep(func(b *policyv1.Backend) bool { return b.Node == node })
	}
	if ready := keep(func(b *policyv1.Backend) bool { return !b.Terminating }); len(ready) > 0 {
		list = ready
		zone := h.Item(storage.NewScopeID(storage.ScopeNode, node), nodeKey).GetNode().GetZone()
		byNode := keep(func(b *policyv1.Backend) bool { return slices.Contains(b.Nodes, node) })
		byZone := keep(func(b *policyv1.Backend) bool { return slices.Contains(b.Zones, zone) })
		switch {
		case local:
		case len(byNode) > 0 && len(keep(func(b *policyv1.Backend) bool { return len(b.Nodes) > 0 })) == len(list):
			list = byNode
		case len(byZone) > 0 && len(keep(func(b *policyv1.Backend) bool { return len(b.Zones) > 0 })) == len(list):
			list = byZone
		}
	}
	var out []destination
	for _, b := range list {
		out = append(out, at[b])
	}
	return out
}

// through is what becomes of a connection through a Service to one of its
// backends, on both ends; unknown where two Pods claim the backend's address.
func (a *agreement) through(from *api.Pod, svc *api.Service, to destination, protocol api.Protocol) (policyv1.Action, bool) {
	if a.claims[to.addr] > 1 {
		return 0, false
	}
	p := packet{dir: policyv1.Direction_DIRECTION_EGRESS, peer: to.addr, protocol: wireProtocol(protocol), port: to.port, service: svc.Namespace + "/" + svc.Name}
	node := a.nodes[from.Node]
	if got := node.verdict(node.endpoint(from), p); got != policyv1.Action_ACTION_ALLOW {
		return got, true
	}
	pod := a.pods[to.addr]
	if pod == nil || pod == from { // Beyond the cluster, or itself.
		return policyv1.Action_ACTION_ALLOW, true
	}
	p.dir, p.peer, p.service = policyv1.Direction_DIRECTION_INGRESS, from.IPs[0], ""
	node = a.nodes[pod.Node]
	return node.verdict(node.endpoint(pod), p), true
}

// endpoint is the item of one of the node's Pods.
func (h held) endpoint(p *api.Pod) *policyv1.Endpoint {
	return h.Item(storage.NewScopeID(storage.ScopeNode, p.Node), storage.PodKey(p.Namespace, p.Name)).GetEndpoint()
}
