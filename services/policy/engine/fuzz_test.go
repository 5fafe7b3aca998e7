package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// What a small cluster is made of, so that few bytes make much meet.
var (
	someNamespaces = []string{"x", "y", "z"}
	someNodes      = []string{"node-1", "node-2"}
	someApps       = []string{"web", "client", "db"}
	someTeams      = []string{"a", "b"}
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

func (c *choices) adminPolicy() *api.AdminPolicy {
	p := &api.AdminPolicy{Kind: api.KindAdminNetworkPolicy, Name: fmt.Sprint("admin-", c.below(3)), Priority: int32(c.below(3)), Staged: c.below(8) == 0}
	if c.below(3) == 0 {
		p.Kind, p.Name, p.Priority = api.KindBaselineAdminNetworkPolicy, "default", 0
	}
	pods := func() api.NamespacedPods {
		n := api.NamespacedPods{Namespaces: *c.selector("team", someTeams)}
		if c.bool() {
			n.Pods = c.selector("app", someApps)
		}
		return n
	}
	p.Subject = pods()
	rules := func() (rules []api.AdminRule) {
		for range c.below(3) {
			r := api.AdminRule{Action: []api.Action{api.ActionAllow, api.ActionDrop, api.ActionPass}[c.below(3)]}
			if p.Kind == api.KindBaselineAdminNetworkPolicy && r.Action == api.ActionPass {
				r.Action = api.ActionDrop
			}
			for range c.below(3) {
				r.Ports = append(r.Ports, c.port())
			}
			for range 1 + c.below(2) {
				if c.below(4) == 0 {
					r.Peers = append(r.Peers, api.AdminPeer{IPBlock: &api.IPBlock{CIDR: c.block().CIDR}})
				} else {
					n := pods()
					r.Peers = append(r.Peers, api.AdminPeer{Pods: &n})
				}
			}
			rules = append(rules, r)
		}
		return rules
	}
	p.Ingress, p.Egress = rules(), rules()
	return p
}

func (c *choices) object() api.Object {
	switch c.below(8) {
	case 0:
		if c.bool() {
			return newNamespace(pick(c, someNamespaces))
		}
		return newNamespace(pick(c, someNamespaces), "team", pick(c, someTeams))
	case 1:
		return &api.Node{Name: pick(c, someNodes)}
	case 2, 3:
		return c.networkPolicy()
	case 4, 5:
		return c.adminPolicy()
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
