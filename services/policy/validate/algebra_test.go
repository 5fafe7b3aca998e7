package validate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// The algebra is held against a matcher that knows nothing of it: over a small
// universe of packets, all of which are tried. A universe has the values that
// the policies speak of, and two of each kind of which none speaks.

type party struct {
	kind      string // "pod", "node", "service" or "outside".
	namespace string
	org, env  string // Labels of the Namespace. Empty: absent.
	app       string // Label of the Pod or Node. Empty: absent.
	account   string
}

type packet struct {
	subject, peer party
	address       netip.Addr
	names         []string // By which the peer's address is known.
	service       string   // To which it was sent.
	protocol      api.Protocol
	port, source  uint16
	icmp          [2]uint8
	portNames     []string // What the destination calls the port.
}

func (p party) namespaceLabels() map[string]string {
	m := map[string]string{api.LabelNamespaceName: p.namespace, api.LabelAntreaNamespaceName: p.namespace}
	if p.org != "" {
		m["org"] = p.org
	}
	if p.env != "" {
		m["env"] = p.env
	}
	return m
}

func (p party) labels() map[string]string {
	if p.app == "" {
		return nil
	}
	return map[string]string{"app": p.app}
}

// chosen judges a selector by its definition.
func chosen(s *api.Selector, labels map[string]string) bool {
	if s == nil {
		return true
	}
	for _, l := range s.MatchLabels {
		if v, there := labels[l.Key]; !there || v != l.Value {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		v, there := labels[r.Key]
		in := there && slices.Contains(r.Values, v)
		if !map[api.Operator]bool{api.OpIn: in, api.OpNotIn: !in, api.OpExists: there, api.OpDoesNotExist: !there}[r.Operator] {
			return false
		}
	}
	return true
}

func (p party) isPod(namespace string, namespaces, pods *api.Selector) bool {
	return p.kind == "pod" && (namespace == "" || p.namespace == namespace) && chosen(namespaces, p.namespaceLabels()) && chosen(pods, p.labels())
}

func glob(pattern, name string) bool {
	if pattern == "" {
		return name == ""
	}
	if pattern[0] == '*' {
		return glob(pattern[1:], name) || name != "" && glob(pattern, name[1:])
	}
	return name != "" && pattern[0] == name[0] && glob(pattern[1:], name[1:])
}

func (k packet) matches(p *api.OrderedPolicy, r *api.OrderedRule, egress bool) bool {
	return k.applies(p, r) && k.hasPeer(p, r) && k.hasTraffic(r, egress)
}

func (k packet) applies(p *api.OrderedPolicy, r *api.OrderedRule) bool {
	has, keys := 0, p.SameLabelKeys()
	for _, key := range keys {
		if _, there := k.subject.namespaceLabels()[key]; there {
			has++
		}
	}
	if has < len(keys) && (has == 0 || !r.AnyPeer()) {
		return false
	}
	return slices.ContainsFunc(append(slices.Clone(p.AppliedTo), r.AppliedTo...), func(t api.Target) bool {
		switch {
		case t.NodeSelector != nil:
			return k.subject.kind == "node" && chosen(t.NodeSelector, k.subject.labels())
		case t.ServiceAccount != nil:
			return k.subject.kind == "pod" && k.subject.namespace == t.ServiceAccount.Namespace && k.subject.account == t.ServiceAccount.Name
		}
		return k.subject.isPod(p.Namespace, t.NamespaceSelector, t.PodSelector)
	})
}

func (k packet) hasPeer(p *api.OrderedPolicy, r *api.OrderedRule) bool {
	if len(r.Peers)+len(r.ToServices) == 0 {
		return true
	}
	for _, s := range r.ToServices {
		if k.service == s.String() {
			return true
		}
	}
	return slices.ContainsFunc(r.Peers, func(e api.Peer) bool {
		switch {
		case e.IPBlock != nil:
			return e.IPBlock.CIDR.Contains(k.address) && !slices.ContainsFunc(e.IPBlock.Except, func(x netip.Prefix) bool { return x.Contains(k.address) })
		case e.FQDN != "":
			return slices.ContainsFunc(k.names, func(n string) bool { return glob(e.FQDN, n) })
		case e.NodeSelector != nil:
			return k.peer.kind == "node" && chosen(e.NodeSelector, k.peer.labels())
		case len(e.SameLabels) > 0:
			for _, key := range e.SameLabels {
				own, there := k.subject.namespaceLabels()[key]
				if other, also := k.peer.namespaceLabels()[key]; !there || !also || own != other {
					return false
				}
			}
			return k.subject.kind == "pod" && k.peer.isPod("", nil, e.PodSelector)
		case e.NamespaceSelector == nil:
			return k.peer.isPod(p.Namespace, nil, e.PodSelector)
		}
		return k.peer.isPod("", e.NamespaceSelector, e.PodSelector)
	})
}

func (k packet) hasTraffic(r *api.OrderedRule, egress bool) bool {
	return len(r.Traffic) == 0 || slices.ContainsFunc(r.Traffic, func(t api.Traffic) bool {
		in := func(n, first, last uint16) bool {
			return first == 0 || first <= n && n <= max(first, last)
		}
		to := k.subject
		if egress {
			to = k.peer
		}
		return t.Protocol == k.protocol && in(k.source, t.SourcePort, t.SourceEndPort) && in(k.port, t.Port, t.EndPort) &&
			(t.PortName == "" || to.kind == "pod" && slices.Contains(k.portNames, fmt.Sprintf("%d/%s", t.Protocol, t.PortName))) &&
			(t.ICMPType == nil || *t.ICMPType == k.icmp[0]) && (t.ICMPCode == nil || *t.ICMPCode == k.icmp[1])
	})
}

// world is what policies of a test are made of, and the packets of its universe.
type world struct {
	name       string
	namespaced bool // Some policies are of one Namespace.
	universe   []packet
	peers      func(*rand.Rand) []api.Peer
	services   []string
	traffic    func(*rand.Rand) []api.Traffic
	targets    func(*rand.Rand) []api.Target
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// subsets are all of a list, the empty one included.
func subsets(list ...string) [][]string {
	var all [][]string
	for n := range 1 << len(list) {
		var some []string
		for i, s := range list {
			if n>>i&1 == 1 {
				some = append(some, s)
			}
		}
		all = append(all, some)
	}
	return all
}

// randomSelector is one over a key that has two values of which it may speak.
func randomSelector(r *rand.Rand, key string) *api.Selector {
	s := &api.Selector{}
	requirement := func(op api.Operator, values ...string) {
		s.MatchExpressions = append(s.MatchExpressions, api.Requirement{Key: key, Operator: op, Values: values})
	}
	for range r.IntN(3) {
		switch r.IntN(5) {
		case 0:
			s.MatchLabels = api.Labels{{Key: key, Value: pick(r, "1", "2")}}
		case 1:
			requirement(api.OpIn, pick(r, "1", "2"), "1")
		case 2:
			requirement(api.OpNotIn, pick(r, "1", "2"))
		case 3:
			requirement(api.OpExists)
		case 4:
			requirement(api.OpDoesNotExist)
		}
	}
	return s
}

func randomNamespaces(r *rand.Rand) *api.Selector {
	if r.IntN(3) > 0 {
		return randomSelector(r, "org")
	}
	key := pick(r, api.LabelNamespaceName, api.LabelAntreaNamespaceName)
	return &api.Selector{MatchExpressions: []api.Requirement{{Key: key, Operator: pick(r, api.OpIn, api.OpNotIn), Values: []string{pick(r, "a", "b")}}}}
}

func anyPod(*rand.Rand) []api.Target      { return []api.Target{{PodSelector: &api.Selector{}}} }
func anyTraffic(*rand.Rand) []api.Traffic { return nil }

// namespacesWorld: how Namespaces of both sides are selected and related.
func namespacesWorld() world {
	var pods []party
	for _, namespace := range []string{"a", "b", "x", "y"} {
		for _, org := range []string{"", "1", "2", "x", "y"} {
			for _, app := range []string{"", "1"} {
				for _, env := range []string{"", "x"} {
					pods = append(pods, party{kind: "pod", namespace: namespace, org: org, env: env, app: app})
				}
			}
		}
	}
	w := world{name: "Namespaces", namespaced: true, traffic: anyTraffic}
	peers := append(slices.Clone(pods), party{kind: "outside"})
	for _, subject := range pods {
		for _, peer := range peers {
			if subject.namespace == peer.namespace && (subject.org != peer.org || subject.env != peer.env) {
				continue // One Namespace has its labels once.
			}
			w.universe = append(w.universe, packet{subject: subject, peer: peer, address: netip.MustParseAddr("10.0.0.1"), protocol: api.ProtocolTCP, port: 80})
		}
	}
	w.targets = func(r *rand.Rand) []api.Target {
		list := []api.Target{{NamespaceSelector: randomNamespaces(r)}}
		if r.IntN(2) == 0 {
			list = append(list, api.Target{PodSelector: &api.Selector{MatchLabels: api.Labels{{Key: "app", Value: "1"}}}, NamespaceSelector: randomNamespaces(r)})
		}
		return list
	}
	w.peers = func(r *rand.Rand) []api.Peer {
		var list []api.Peer
		for range r.IntN(4) {
			switch r.IntN(4) {
			case 0:
				list = append(list, api.Peer{SameLabels: pick(r, []string{"org"}, []string{"org", "env"}, []string{"env", api.LabelNamespaceName}, []string{api.LabelNamespaceName})})
			case 1:
				list = append(list, api.Peer{SameLabels: []string{api.LabelNamespaceName}, PodSelector: &api.Selector{MatchLabels: api.Labels{{Key: "app", Value: "1"}}}})
			default:
				list = append(list, api.Peer{NamespaceSelector: randomNamespaces(r)})
			}
		}
		return list
	}
	return w
}

// peersWorld: what a peer may be.
func peersWorld() world {
	w := world{name: "peers", traffic: anyTraffic, services: []string{"", "n/s", "n/x"}}
	peers := []party{{kind: "outside"}}
	for _, app := range []string{"", "1", "2", "x"} {
		peers = append(peers, party{kind: "pod", namespace: "a", app: app}, party{kind: "node", app: app})
	}
	for _, peer := range peers {
		for _, address := range []string{"10.0.0.1", "10.1.0.1", "10.1.2.1", "192.0.2.1", "225.1.1.1", "fd00::1", "fd00:1::1", "2001:db8::1", "ff02::5"} {
			a := netip.MustParseAddr(address)
			if a.IsMulticast() && peer.kind != "outside" {
				continue
			}
			for _, names := range subsets("x.a", "w.a", "z", "yy", "q") {
				for _, service := range w.services {
					for _, subject := range []party{{kind: "pod", namespace: "a"}, {kind: "node", app: "1"}} {
						w.universe = append(w.universe, packet{subject: subject, peer: peer, address: a, names: names, service: service, protocol: api.ProtocolTCP, port: 80})
					}
				}
			}
		}
	}
	w.targets = func(r *rand.Rand) []api.Target {
		if r.IntN(4) == 0 {
			return []api.Target{{NodeSelector: &api.Selector{}}}
		}
		return anyPod(r)
	}
	block := func(cidr string, except ...string) api.Peer {
		b := &api.IPBlock{CIDR: netip.MustParsePrefix(cidr)}
		for _, e := range except {
			b.Except = append(b.Except, netip.MustParsePrefix(e))
		}
		return api.Peer{IPBlock: b}
	}
	w.peers = func(r *rand.Rand) []api.Peer {
		var list []api.Peer
		for range r.IntN(5) {
			list = append(list, pick(r,
				block("10.0.0.0/8"), block("10.0.0.0/8", "10.1.0.0/16"), block("10.1.0.0/16"), block("10.1.0.0/16", "10.1.2.0/24"), block("0.0.0.0/0"), block("0.0.0.0/0", "10.0.0.0/8"),
				block("::/0"), block("::/0", "fd00::/16"), block("fd00::/16"), block("fd00::/64"), block("224.0.0.0/4"), block("ff00::/8"),
				api.Peer{FQDN: "x.a"}, api.Peer{FQDN: "*.a"}, api.Peer{FQDN: "*"}, api.Peer{FQDN: "z"}, api.Peer{FQDN: "y*"},
				api.Peer{NodeSelector: randomSelector(r, "app")}, api.Peer{PodSelector: randomSelector(r, "app"), NamespaceSelector: &api.Selector{}}))
		}
		return list
	}
	return w
}

// trafficWorld: protocols and ports.
func trafficWorld() world {
	w := world{name: "traffic", targets: anyPod}
	for _, peer := range []party{{kind: "pod", namespace: "a"}, {kind: "outside"}} {
		for _, address := range []string{"10.0.0.1", "fd00::1"} {
			base := packet{subject: party{kind: "pod", namespace: "a"}, peer: peer, address: netip.MustParseAddr(address)}
			for _, icmp := range [][2]uint8{{8, 0}, {8, 1}, {3, 0}, {255, 255}} {
				k := base
				k.protocol, k.icmp = api.ProtocolICMP, icmp
				w.universe = append(w.universe, k)
			}
			other := base
			other.protocol = 47
			w.universe = append(w.universe, other)
			for _, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP} {
				for _, port := range []uint16{0, 1, 79, 80, 81, 90, 91, 65535} {
					for _, source := range []uint16{0, 1, 1000, 1001} {
						for _, names := range subsets("6/web", "6/dns", "17/web", "17/dns") {
							k := base
							k.protocol, k.port, k.source, k.portNames = p, port, source, names
							w.universe = append(w.universe, k)
						}
					}
				}
			}
		}
	}
	w.peers = func(r *rand.Rand) []api.Peer {
		return pick(r, nil, nil, []api.Peer{{NamespaceSelector: &api.Selector{}}}, []api.Peer{{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("0.0.0.0/0")}}})
	}
	eight, zero := uint8(8), uint8(0)
	w.traffic = func(r *rand.Rand) []api.Traffic {
		var list []api.Traffic
		for range r.IntN(5) {
			p := pick(r, api.ProtocolTCP, api.ProtocolTCP, api.ProtocolUDP)
			list = append(list, pick(r,
				api.Traffic{Protocol: p}, api.Traffic{Protocol: p, Port: 80}, api.Traffic{Protocol: p, Port: 1, EndPort: 80}, api.Traffic{Protocol: p, Port: 80, EndPort: 90}, api.Traffic{Protocol: p, Port: 81, EndPort: 65535},
				api.Traffic{Protocol: p, PortName: "web"}, api.Traffic{Protocol: p, PortName: "dns"}, api.Traffic{Protocol: p, SourcePort: 1000}, api.Traffic{Protocol: p, Port: 80, SourcePort: 1, SourceEndPort: 1000},
				api.Traffic{Protocol: api.ProtocolICMP}, api.Traffic{Protocol: api.ProtocolICMP, ICMPType: &eight}, api.Traffic{Protocol: api.ProtocolICMP, ICMPType: &eight, ICMPCode: &zero}))
		}
		return list
	}
	return w
}

// policies are some of a world, of which some are of equal precedence.
func (w *world) policies(r *rand.Rand) []*api.OrderedPolicy {
	var list []*api.OrderedPolicy
	for i := range 4 + r.IntN(3) {
		p := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: fmt.Sprintf("p%d", i), Tier: "application", Priority: float64(1 + r.IntN(3)), AppliedTo: w.targets(r), Staged: r.IntN(6) == 0}
		if w.namespaced && r.IntN(4) == 0 {
			p.Kind, p.Namespace = api.KindAntreaNetworkPolicy, "a"
			for j := range p.AppliedTo {
				p.AppliedTo[j].NamespaceSelector = nil
			}
		}
		for range 1 + r.IntN(2) {
			rule := api.OrderedRule{Action: pick(r, api.ActionAllow, api.ActionDrop, api.ActionPass, api.ActionReject), Peers: w.peers(r), Traffic: w.traffic(r)}
			if len(w.services) > 0 && r.IntN(6) == 0 {
				rule.Peers, rule.ToServices = nil, []api.NamespacedName{{Namespace: "n", Name: "s"}}
			}
			p.Egress = append(p.Egress, rule)
		}
		list = append(list, p)
	}
	return list
}

// before is the order of judgement, said once more.
func before(a, b *rule) bool {
	rank := map[api.Action]int{api.ActionDrop: 0, api.ActionReject: 1, api.ActionPass: 2, api.ActionAllow: 3}
	p, q := a.policy, b.policy
	switch {
	case p.Priority != q.Priority:
		return p.Priority < q.Priority
	case a.index != b.index:
		return a.index < b.index
	case a.spec().Action != b.spec().Action:
		return rank[a.spec().Action] < rank[b.spec().Action]
	case p.Kind != q.Kind:
		return p.Kind < q.Kind
	}
	return p.Name < q.Name
}

func TestAlgebraAgreesWithEveryPacket(t *testing.T) {
	trials := 80
	if testing.Short() {
		trials = 40
	}
	for _, w := range []world{namespacesWorld(), peersWorld(), trafficWorld()} {
		t.Run(w.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			covered, contradicted, free := 0, 0, 0
			for trial := range trials {
				x := NewIndex()
				x.budget.left = looksOfSet
				for _, p := range w.policies(r) {
					x.Set(p)
				}
				var rules []*rule
				hits := map[*rule][]bool{}
				for _, c := range x.policies {
					for _, e := range c.rules {
						rules = append(rules, e)
						hits[e] = make([]bool, len(w.universe))
						for i, k := range w.universe {
							hits[e][i] = k.matches(e.policy, e.spec(), true)
						}
					}
				}
				for _, e := range rules {
					want := false
					left := slices.Clone(hits[e])
					want = slices.Contains(left, true)
					for _, o := range rules {
						if before(o, e) && (e.policy.Staged || !o.policy.Staged) {
							for i, hit := range hits[o] {
								left[i] = left[i] && !hit
							}
						}
					}
					want = want && !slices.Contains(left, true)
					got := x.covering(e)
					if (len(got) > 0) != want {
						t.Fatalf("trial %d: %s (%+v of %+v): covered is %v by brute force, and the algebra says %v", trial, e.name(api.Ref{}), *e.spec(), *e.policy, want, len(got) > 0)
					}
					if want {
						covered++
						checkNamed(t, hits, e, got)
					} else {
						free++
					}
					contradicted += checkContradictions(t, x, rules, hits, e)
				}
			}
			t.Logf("%d rules covered, %d not, %d contradictions, over %d packets", covered, free, contradicted, len(w.universe))
			if covered < 20 || free < 20 || contradicted < 20 {
				t.Errorf("%d rules covered, %d not, %d contradictions: the trials say too little", covered, free, contradicted)
			}
		})
	}
}

// The rules that are named cover, and none could be left out.
func checkNamed(t *testing.T, hits map[*rule][]bool, e *rule, named []*rule) {
	t.Helper()
	sticksOut := func(by []*rule) bool {
		for i, hit := range hits[e] {
			if hit && !slices.ContainsFunc(by, func(o *rule) bool { return hits[o][i] }) {
				return true
			}
		}
		return false
	}
	if sticksOut(named) {
		t.Fatalf("the rules named do not cover %s", e.name(api.Ref{}))
	}
	for i := range named {
		if rest := slices.Delete(slices.Clone(named), i, i+1); len(rest) > 0 && !sticksOut(rest) {
			t.Fatalf("%s is covered without %s, which is named", e.name(api.Ref{}), named[i].name(api.Ref{}))
		}
	}
}

func checkContradictions(t *testing.T, x *Index, rules []*rule, hits map[*rule][]bool, e *rule) int {
	t.Helper()
	var want []string
	for _, o := range rules {
		if o.policy == e.policy || o.policy.Priority != e.policy.Priority || o.index != e.index || o.spec().Action == e.spec().Action || !before(o, e) {
			continue
		}
		for i := range hits[e] {
			if hits[e][i] && hits[o][i] {
				want = append(want, o.name(api.Ref{}))
				break
			}
		}
	}
	var got []string
	for _, o := range x.contradicting(e, false, &x.budget) {
		got = append(got, o.name(api.Ref{}))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("%s is contradicted by %v, and the algebra says %v", e.name(api.Ref{}), want, got)
	}
	return len(want)
}

func TestPatternWithin(t *testing.T) {
	var names []string
	for length := range 6 {
		for n := range 1 << (2 * length) {
			var b strings.Builder
			for i := range length {
				b.WriteByte("ab.c"[n>>(2*i)&3])
			}
			names = append(names, b.String())
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	random := func() string {
		var b strings.Builder
		for range r.IntN(4) {
			b.WriteByte(pick(r, byte('a'), 'b', '.', '*', '*'))
		}
		return b.String()
	}
	inside := 0
	for range 3000 {
		pattern := random()
		others := []string{random(), random()}
		want := true
		for _, n := range names {
			if glob(pattern, n) && !slices.ContainsFunc(others, func(o string) bool { return glob(o, n) }) {
				want = false
				break
			}
		}
		if got := patternWithin(pattern, others); got != want {
			t.Fatalf("%q within %q: got %v, want %v", pattern, others, got, want)
		}
		if want {
			inside++
		}
	}
	if inside < 100 {
		t.Errorf("%d patterns lay within others: the trials say too little", inside)
	}
}
