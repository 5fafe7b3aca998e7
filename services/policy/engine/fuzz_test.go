package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// What a small cluster is made of, so that few bytes make much meet.
var (
	someNamespaces = []string{"x", "y", "z"}
	someNodes      = []string{"node-1", "node-2"}
	someApps       = []string{"web", "client", "db"}
	someTeams      = []string{"a", "b"}
	someGroups     = []string{"g-0", "g-1", "g-2"}
	someRoles      = []string{"edge", "core"}
	someAccounts   = []string{"default", "robot"}
)

func pick(c *choices, from []string) string { return from[c.below(len(from))] }

func (c *choices) selector(key string, values []string) *api.Selector {
	switch c.below(6) {
	case 0:
		return matching()
	case 1:
		return &api.Selector{MatchExpressions: []api.Requirement{{Key: key, Operator: api.OpNotIn, Values: []string{pick(c, values)}}}}
	case 2:
		return &api.Selector{MatchExpressions: []api.Requirement{{Key: key, Operator: api.OpExists}}}
	case 3:
		return &api.Selector{MatchExpressions: []api.Requirement{{Key: key, Operator: api.OpIn, Values: values[:1+c.below(len(values))]}}}
	}
	return matching(key, pick(c, values))
}

func (c *choices) block() *api.IPBlock {
	b := &api.IPBlock{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(c.below(2)), 0}), 24)}
	if c.bool() {
		b.Except = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, b.CIDR.Addr().As4()[2], byte(4 * c.below(4))}), 30)}
	}
	return b
}

// pod is one of a few Pods, somehow.
func (c *choices) pod() *api.Pod {
	i := c.below(4)
	p := newPod(pick(c, someNamespaces), fmt.Sprint("pod-", i), pick(c, someNodes), fmt.Sprintf("10.0.%d.%d", c.below(2), 1+c.below(12)), "app", pick(c, someApps))
	switch c.below(8) {
	case 0:
		p.HostNetwork = true
	case 1:
		p.Finished = true
	case 2:
		p.IPs = nil
	case 3:
		p.Labels = nil
	case 6:
		p.ServiceAccount = "robot"
	case 4, 5:
		p.Ports = []api.ContainerPort{{Name: "sql", Protocol: api.ProtocolTCP, Port: []uint16{80, 5432}[c.below(2)]}}
	}
	return p
}

func (c *choices) port() api.NetworkPolicyPort {
	switch c.below(4) {
	case 0:
		return api.NetworkPolicyPort{Protocol: api.ProtocolTCP, PortName: "sql"}
	case 1:
		return api.NetworkPolicyPort{Protocol: api.ProtocolUDP}
	case 2:
		return api.NetworkPolicyPort{Protocol: api.ProtocolTCP, Port: 80, EndPort: 6000}
	}
	return api.NetworkPolicyPort{Protocol: api.ProtocolTCP, Port: 80}
}

func (c *choices) networkPolicy() *api.NetworkPolicy {
	p := &api.NetworkPolicy{Namespace: pick(c, someNamespaces), Name: fmt.Sprint("policy-", c.below(3)), PodSelector: *c.selector("app", someApps), Staged: c.below(8) == 0}
	rules := func() (rules []api.NetworkPolicyRule) {
		for range c.below(3) {
			var r api.NetworkPolicyRule
			for range c.below(3) {
				r.Ports = append(r.Ports, c.port())
			}
			for range c.below(3) {
				peer := api.NetworkPolicyPeer{}
				switch c.below(4) {
				case 0:
					peer.IPBlock = c.block()
				case 1:
					peer.PodSelector = c.selector("app", someApps)
				case 2:
					peer.NamespaceSelector = c.selector("team", someTeams)
				default:
					peer.PodSelector, peer.NamespaceSelector = c.selector("app", someApps), c.selector("team", someTeams)
				}
				r.Peers = append(r.Peers, peer)
			}
			rules = append(rules, r)
		}
		return rules
	}
	p.Ingress, p.Egress = rules(), rules()
	p.PolicyTypes = [][]api.PolicyType{nil, {api.PolicyTypeIngress}, {api.PolicyTypeEgress}, {api.PolicyTypeIngress, api.PolicyTypeEgress}}[c.below(4)]
	return p
}

// ordered is a policy of any kind that has an order.
func (c *choices) ordered() *api.OrderedPolicy {
	p := &api.OrderedPolicy{Name: fmt.Sprint("policy-", c.below(3)), Priority: float64(c.below(3)), Staged: c.below(8) == 0, AllowLockout: c.below(8) == 0}
	switch c.below(6) {
	case 0:
		p.Kind = api.KindAdminNetworkPolicy
	case 1:
		p.Kind, p.Baseline, p.Name, p.Priority = api.KindBaselineAdminNetworkPolicy, true, "default", 0
	case 2:
		p.Kind, p.Baseline = api.KindClusterNetworkPolicy, c.bool()
	case 3:
		p.Kind, p.Namespace = api.KindAntreaNetworkPolicy, pick(c, someNamespaces)
	default:
		p.Kind = api.KindAntreaClusterNetworkPolicy
	}
	if antrea := p.Kind == api.KindAntreaClusterNetworkPolicy || p.Kind == api.KindAntreaNetworkPolicy; antrea {
		p.Tier = pick(c, []string{"application", "emergency", "baseline", "mine"})
		if c.bool() {
			p.AppliedTo = c.targets(p, false)
		}
	} else {
		p.AppliedTo = []api.Target{{NamespaceSelector: c.selector("team", someTeams), PodSelector: c.selector("app", someApps)}}
	}
	p.Ingress = c.rules(p, false)
	if len(p.AppliedTo) == 0 || p.AppliedTo[0].Service == nil {
		p.Egress = c.rules(p, true)
	}
	return p
}

func (c *choices) targets(p *api.OrderedPolicy, egress bool) (list []api.Target) {
	if !egress && p.Kind == api.KindAntreaClusterNetworkPolicy && c.below(4) == 0 {
		return []api.Target{{Service: &api.NamespacedName{Namespace: pick(c, someNamespaces), Name: "service"}}}
	}
	if p.Kind == api.KindAntreaClusterNetworkPolicy && c.below(3) == 0 {
		return []api.Target{{NodeSelector: c.selector("role", someRoles)}}
	}
	for range 1 + c.below(2) {
		var t api.Target
		switch c.below(5) {
		case 0:
			t.Group = pick(c, someGroups)
		case 1:
			t.ServiceAccount = &api.NamespacedName{Namespace: pick(c, someNamespaces), Name: pick(c, someAccounts)}
		case 2:
			t.PodSelector = c.selector("app", someApps)
		default:
			if p.Namespace != "" {
				t.PodSelector = c.selector("app", someApps)
			} else {
				t.NamespaceSelector, t.PodSelector = c.selector("team", someTeams), nil
			}
		}
		list = append(list, t)
	}
	return list
}

func (c *choices) rules(p *api.OrderedPolicy, egress bool) (rules []api.OrderedRule) {
	for range c.below(3) {
		r := api.OrderedRule{Action: []api.Action{api.ActionAllow, api.ActionDrop, api.ActionPass, api.ActionReject}[c.below(4)], Layer7: c.below(12) == 0}
		if r.Action == api.ActionPass && (p.Baseline || p.Tier == "baseline") {
			r.Action = api.ActionDrop
		}
		if len(p.AppliedTo) == 0 {
			r.AppliedTo = c.targets(p, egress)
		}
		onService := len(slices.Concat(p.AppliedTo, r.AppliedTo)) > 0 && slices.Concat(p.AppliedTo, r.AppliedTo)[0].Service != nil
		if egress && p.Tier != "" && c.below(4) == 0 {
			r.ToServices = append(r.ToServices, api.NamespacedName{Namespace: pick(c, someNamespaces), Name: "service"})
			r.Layer7 = false
			rules = append(rules, r)
			continue
		}
		for range c.below(3) {
			r.Traffic = append(r.Traffic, c.traffic())
		}
		for range c.below(3) {
			if onService {
				r.Peers = append(r.Peers, api.Peer{IPBlock: c.block()})
			} else {
				r.Peers = append(r.Peers, c.peer(p, egress))
			}
		}
		if p.Tier == "" && len(r.Peers) == 0 {
			r.Peers = []api.Peer{{NamespaceSelector: &api.Selector{}}}
		}
		rules = append(rules, r)
	}
	return rules
}

func (c *choices) traffic() api.Traffic {
	eight := uint8(8)
	switch c.below(6) {
	case 0:
		return api.Traffic{Protocol: api.ProtocolICMP}
	case 1:
		return api.Traffic{Protocol: api.ProtocolICMP, ICMPType: &eight}
	case 2:
		return api.Traffic{Protocol: api.ProtocolTCP, SourcePort: 3000, SourceEndPort: 5000}
	}
	p := c.port()
	return api.Traffic{Protocol: p.Protocol, Port: p.Port, EndPort: p.EndPort, PortName: p.PortName}
}

func (c *choices) peer(p *api.OrderedPolicy, egress bool) api.Peer {
	pods := func() *api.Selector {
		if c.bool() {
			return nil
		}
		return c.selector("app", someApps)
	}
	switch n := c.below(9); {
	case n == 0:
		return api.Peer{IPBlock: c.block()}
	case n == 1:
		return api.Peer{NodeSelector: c.selector("role", someRoles)}
	case n == 2 && p.Tier != "":
		return api.Peer{Group: pick(c, someGroups)}
	case n == 3 && p.Tier != "":
		return api.Peer{ServiceAccount: &api.NamespacedName{Namespace: pick(c, someNamespaces), Name: pick(c, someAccounts)}}
	case n == 4 && p.Kind == api.KindAntreaClusterNetworkPolicy:
		return api.Peer{SameLabels: []string{api.LabelNamespaceName}, PodSelector: pods()}
	case n == 5 && p.Kind == api.KindAntreaClusterNetworkPolicy:
		return api.Peer{SameLabels: []string{"team"}, PodSelector: pods()}
	case n == 6 && p.Kind == api.KindAntreaClusterNetworkPolicy:
		return api.Peer{SameLabels: []string{"env", "team"}, PodSelector: pods()}
	case n == 7 && p.Tier != "":
		return api.Peer{PodSelector: c.selector("app", someApps)}
	}
	return api.Peer{NamespaceSelector: c.selector("team", someTeams), PodSelector: pods()}
}

func (c *choices) group() *api.Group {
	g := &api.Group{Kind: api.KindClusterGroup, Name: pick(c, someGroups)}
	if c.bool() {
		g.Kind, g.Namespace = api.KindGroup, pick(c, someNamespaces)
	}
	switch c.below(6) {
	case 0:
		g.IPBlocks = []api.IPBlock{*c.block()}
	case 1:
		g.Service = &api.NamespacedName{Namespace: pick(c, someNamespaces), Name: "service"}
	case 2:
		g.Children = someGroups[:1+c.below(3)]
	case 3:
		g.NamespaceSelector = c.selector("team", someTeams)
	default:
		g.PodSelector = c.selector("app", someApps)
	}
	return g
}

// service is one of a few Services, somehow.
func (c *choices) service() *api.Service {
	s := &api.Service{Namespace: pick(c, someNamespaces), Name: "service", Type: "ClusterIP", InternalLocal: c.below(8) == 0}
	if c.below(4) > 0 {
		s.Selector = labels("app", pick(c, someApps))
	}
	switch c.below(6) {
	case 0:
		s.Headless = true
	case 1:
		s.Type = "ExternalName"
	default:
		s.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.1")}
		if c.bool() {
			s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr("fd96::1"))
		}
	}
	s.Ports = []api.ServicePort{{Name: "web", Protocol: api.ProtocolTCP, Port: 80}}
	if c.bool() {
		s.Ports = append(s.Ports, api.ServicePort{Name: "sql", Protocol: api.ProtocolTCP, Port: 81, TargetName: "sql"})
	}
	if c.bool() {
		s.Type, s.Ports[0].NodePort = "NodePort", 30000+10*uint16(c.below(2))+uint16(s.Namespace[0]) // No two may share one.
	}
	return s
}

func (c *choices) slice() *api.EndpointSlice {
	s := &api.EndpointSlice{Namespace: pick(c, someNamespaces), Name: fmt.Sprint("slice-", c.below(2)), Service: []string{"service", "service", "service", "none", ""}[c.below(5)]}
	for range c.below(3) {
		e := api.SliceEndpoint{Node: pick(c, someNodes), Ready: c.bool(), Serving: c.bool(), Terminating: c.bool()}
		if c.below(8) > 0 {
			e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + c.below(4))})}
		}
		switch c.below(4) {
		case 0:
			e.Zones = []string{pick(c, []string{"east", "west"})}
		case 1:
			e.Nodes = []string{pick(c, someNodes)}
		case 2:
			e.Ready = true
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	if s.Name == "slice-1" && c.bool() { // Of API servers, some of them on Nodes.
		s.Namespace, s.Service = "default", "kubernetes"
		for i := range s.Endpoints {
			if c.bool() {
				s.Endpoints[i].Addresses = []netip.Addr{nodeAddress(pick(c, someNodes))}
			}
		}
	}
	for _, name := range []string{"web", "sql"}[c.below(2):] {
		s.Ports = append(s.Ports, api.ServicePort{Name: name, Protocol: api.ProtocolTCP, Port: uint16(8080 + c.below(2))})
	}
	return s
}

func nodeAddress(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, name[len(name)-1]})
}

func (c *choices) object() api.Object {
	switch c.below(14) {
	case 0:
		switch c.below(3) {
		case 0:
			return newNamespace(pick(c, someNamespaces))
		case 1:
			return newNamespace(pick(c, someNamespaces), "env", pick(c, someTeams), "team", pick(c, someTeams))
		}
		return newNamespace(pick(c, someNamespaces), "team", pick(c, someTeams))
	case 1:
		n := &api.Node{Name: pick(c, someNodes), Labels: labels("role", pick(c, someRoles)), Zone: pick(c, []string{"", "east"})}
		n.Addresses = []netip.Addr{nodeAddress(n.Name)}
		return n
	case 2, 3:
		return c.networkPolicy()
	case 4, 5, 6:
		return c.ordered()
	case 7:
		return c.group()
	case 8:
		if c.bool() {
			return &api.Tier{Name: "mine", Priority: []uint8{7, 60}[c.below(2)]}
		}
		return c.service()
	case 9:
		return c.service()
	case 10:
		return c.slice()
	}
	return c.pod()
}

// follow takes an engine through what the choices say, and compares what comes
// of it with an engine that was given the last objects alone, and with the
// evaluator.
func follow(t testing.TB, c *choices) {
	e, store := New(), storage.New("e")
	objects := map[api.Ref]api.Object{}
	flush := func() {
		changes, _ := e.FlushMoves()
		store.Commit(changes, nil)
	}
	for len(*c) > 0 {
		switch o := c.object(); c.below(5) {
		case 0:
			e.Apply(api.Event{Ref: o.Ref()})
			delete(objects, o.Ref())
		case 1:
			flush()
			fallthrough
		default:
			e.Apply(upsert(o))
			objects[o.Ref()] = o
		}
	}
	flush()
	fresh, want := New(), storage.New("e")
	var list []api.Object
	for _, o := range objects {
		fresh.Apply(upsert(o))
		list = append(list, o)
	}
	want.Commit(fresh.Flush(), nil)
	for _, node := range someNodes {
		if got, want := store.Node(node).Digest, want.Node(node).Digest; got != want {
			t.Fatalf("%s holds %s, and from the objects alone %s", node, got, want)
		}
	}
	agree(t, store, list)
	agreeOnServices(t, store, list)
	if diff := cmp.Diff(fresh.Policies(), e.Policies(), protocmp.Transform()); diff != "" {
		t.Fatalf("the engine tells of other policies than from the objects alone (-want +got):\n%s", diff)
	}
	for ref := range objects {
		e.Apply(api.Event{Ref: ref})
	}
	flush()
	if left := leftovers(e); left != "" {
		t.Fatalf("left over: %s", left)
	}
}

func TestRandomClustersAgreeWithTheEvaluator(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 9))
		c := make(choices, 200+rng.IntN(1200))
		for i := range c {
			c[i] = byte(rng.Uint32())
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) { follow(t, &c) })
	}
}

func FuzzEngine(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 9))
	for range 8 {
		c := make([]byte, 400)
		for i := range c {
			c[i] = byte(rng.Uint32())
		}
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4000 {
			b = b[:4000]
		}
		c := choices(b)
		follow(t, &c)
	})
}
