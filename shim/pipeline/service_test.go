package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// cluster holds Services as a store has them.
type cluster struct {
	*feed
	items  map[storage.ScopeID]map[string]storage.Change
	ports  []Port
	former map[storage.ScopeID]map[string]storage.Change
}

var servicesID = storage.NewScopeID(storage.ScopeServices, "")

func newCluster(t testing.TB, items ...*policyv1.Item) *cluster {
	w := &cluster{feed: newFeed(t, "node-1"), items: make(map[storage.ScopeID]map[string]storage.Change), ports: []Port{port(1, "client")}}
	w.put(&policyv1.Item{Body: &policyv1.Item_Node{Node: &policyv1.NodeFacts{Name: "node-1", Zone: "z1"}}},
		&policyv1.Item{Body: &policyv1.Item_Endpoint{Endpoint: &policyv1.Endpoint{Namespace: "x", Name: "client", Ips: [][]byte{{10, 0, 0, 2}, netip.MustParseAddr("fd00::2").AsSlice()}}}})
	w.put(items...)
	return w
}

// put adds items, or replaces those of the same keys.
func (w *cluster) put(items ...*policyv1.Item) {
	for _, item := range items {
		scope, kind := servicesID, storage.ScopeServices
		switch {
		case item.GetNode() != nil, item.GetEndpoint() != nil:
			scope, kind = storage.NewScopeID(storage.ScopeNode, "node-1"), storage.ScopeNode
		case item.GetPolicy() != nil:
			scope, kind = storage.NewScopeID(storage.ScopePolicies, "all"), storage.ScopePolicies
		}
		e := storage.Encode(item)
		if w.items[scope] == nil {
			w.items[scope] = make(map[string]storage.Change)
		}
		w.items[scope][e.Key] = storage.Change{Op: storage.OpUpsert, Scope: scope, Kind: kind, Item: e}
	}
}

func (w *cluster) remove(item *policyv1.Item) {
	delete(w.items[servicesID], storage.Encode(item).Key)
}

// update brings a compiler up to date with the items.
func (w *cluster) update(c *Compiler) Change {
	now := make(map[storage.ScopeID]map[string]storage.Change)
	for scope, items := range w.items {
		now[scope] = make(map[string]storage.Change)
		for key, ch := range items {
			now[scope][key] = ch
		}
	}
	w.commit(w.former, now)
	w.former = now
	return w.feed.update(c, w.sync(), w.ports)
}

func serviceItem(s *policyv1.ClusterService) *policyv1.Item {
	return &policyv1.Item{Body: &policyv1.Item_Service{Service: s}}
}

// web is a Service of both families with a port of TCP.
func web() *policyv1.ClusterService {
	return &policyv1.ClusterService{Namespace: "x", Name: "web", Ips: [][]byte{{10, 96, 0, 1}, netip.MustParseAddr("fd96::1").AsSlice()},
		Ports: []*policyv1.ServicePort{{Name: "http", Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 80}}}
}

// backend serves web's port at 8080.
func backend(ip, node string, set ...func(*policyv1.Backend)) *policyv1.Item {
	b := &policyv1.Backend{Namespace: "x", Service: "web", Ip: netip.MustParseAddr(ip).AsSlice(), Node: node,
		Ports: []*policyv1.ServicePort{{Name: "http", Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 8080}}}
	for _, fn := range set {
		fn(b)
	}
	return &policyv1.Item{Body: &policyv1.Item_Backend{Backend: b}}
}

func terminating(b *policyv1.Backend) { b.Terminating = true }

func inZones(zones ...string) func(*policyv1.Backend) {
	return func(b *policyv1.Backend) { b.Zones = zones }
}

func onNodes(nodes ...string) func(*policyv1.Backend) {
	return func(b *policyv1.Backend) { b.Nodes = nodes }
}

// balanced are the flows and groups of Services.
func balanced(c *Compiler) string {
	flows := slices.DeleteFunc(c.Desired(), func(f openflow.Flow) bool {
		kind, _, _ := ParseCookie(f.Cookie)
		return kind != KindService
	})
	lines := text(flows)
	for _, g := range c.Groups() {
		lines += g.String() + "\n"
	}
	return strings.TrimLeft(lines, "\n")
}

// The flows of Services, each in a way of its own.
func TestFlowsOfServices(t *testing.T) {
	sticky, udp, sctp, local, headless := web(), web(), web(), web(), web()
	sticky.Name, sticky.Ips, sticky.AffinitySeconds = "sticky", [][]byte{{10, 96, 0, 2}}, 100000
	udp.Name, udp.Ips, udp.Ports[0].Protocol = "dns", [][]byte{{10, 96, 0, 3}}, policyv1.Protocol_PROTOCOL_UDP
	sctp.Name, sctp.Ports[0].Protocol = "sctp", policyv1.Protocol_PROTOCOL_SCTP
	local.Name, local.Ips, local.Local = "local", [][]byte{{10, 96, 0, 4}}, true
	headless.Name, headless.Ips = "headless", nil
	of := func(name string, p policyv1.Protocol) func(*policyv1.Backend) {
		return func(b *policyv1.Backend) { b.Service, b.Ports[0].Protocol = name, p }
	}
	w := newCluster(t, serviceItem(web()), backend("10.0.1.1", "node-2"), backend("10.0.0.2", "node-1"), backend("fd00::9", "node-2"),
		serviceItem(sticky), backend("10.0.1.1", "node-2", of("sticky", policyv1.Protocol_PROTOCOL_TCP)),
		serviceItem(udp),
		serviceItem(sctp), backend("10.0.1.1", "node-2", of("sctp", policyv1.Protocol_PROTOCOL_SCTP)), backend("fd00::9", "node-2", of("sctp", policyv1.Protocol_PROTOCOL_SCTP)),
		serviceItem(local), backend("10.0.1.1", "node-2", of("local", policyv1.Protocol_PROTOCOL_TCP)))
	c := New(config, Assignment{})
	w.update(c)
	golden(t, "services.flows", balanced(c))
	overlaps(t, c.Desired())
	for _, f := range c.Desired() {
		if id, _ := f.Match.Field(openflow.FieldMetadata); f.Table == TableServiceEndpoint && id.Value.Uint64() == 5 {
			if m := c.Describe(f); m.GetKind() != "service" || m.GetService() != "x/web:80/TCP" {
				t.Errorf("a flow of a Service is described as %v", m)
			}
		}
	}
	for _, g := range c.Groups() {
		if !g.Fits() {
			t.Errorf("group %d does not fit", g.ID)
		}
	}
	off := config
	off.BalanceServices = false
	c = New(off, Assignment{})
	w.feed.update(c, Whole(w.replica), w.ports)
	if got := balanced(c); got != "" {
		t.Errorf("switched off, there are still\n%s", got)
	}
}

// Which backends a node takes is as kube-proxy has it.
func TestWhichBackendsServe(t *testing.T) {
	type set = []*policyv1.Item
	local := func(s *policyv1.ClusterService) { s.Local = true }
	for _, tc := range []struct {
		name     string
		service  func(*policyv1.ClusterService)
		backends set
		want     string
	}{
		{"none", nil, nil, ""},
		{"all", nil, set{backend("10.0.1.1", "node-2"), backend("10.0.1.2", "node-1"), backend("10.0.1.3", "")}, "1 2 3"},
		{"terminating are left out", nil, set{backend("10.0.1.1", "node-2"), backend("10.0.1.2", "node-1", terminating)}, "1"},
		{"terminating serve where nobody else does", nil, set{backend("10.0.1.1", "node-2", terminating), backend("10.0.1.2", "node-1", terminating)}, "1 2"},
		{"local", local, set{backend("10.0.1.1", "node-2"), backend("10.0.1.2", "node-1"), backend("10.0.1.3", "")}, "2"},
		{"local, terminating", local, set{backend("10.0.1.1", "node-2"), backend("10.0.1.2", "node-1", terminating)}, "2"},
		{"local, none", local, set{backend("10.0.1.1", "node-2")}, ""},
		{"zone", nil, set{backend("10.0.1.1", "node-2", inZones("z1")), backend("10.0.1.2", "node-1", inZones("z2")), backend("10.0.1.3", "", inZones("z2", "z1"))}, "1 3"},
		{"zone, one without a hint", nil, set{backend("10.0.1.1", "node-2", inZones("z1")), backend("10.0.1.2", "node-1")}, "1 2"},
		{"zone, none of ours", nil, set{backend("10.0.1.1", "node-2", inZones("z2")), backend("10.0.1.2", "node-1", inZones("z3"))}, "1 2"},
		{"zone, a terminating one has no say", nil, set{backend("10.0.1.1", "node-2", inZones("z1")), backend("10.0.1.2", "node-1", terminating), backend("10.0.1.3", "", inZones("z2"))}, "1"},
		{"node before zone", nil, set{backend("10.0.1.1", "node-2", inZones("z1"), onNodes("node-1")), backend("10.0.1.2", "node-1", inZones("z1"), onNodes("node-2"))}, "1"},
		{"node, none of ours", nil, set{backend("10.0.1.1", "node-2", inZones("z1"), onNodes("node-3")), backend("10.0.1.2", "node-1", inZones("z2"), onNodes("node-2"))}, "1"},
		{"local takes no hints", local, set{backend("10.0.1.1", "node-1", inZones("z1")), backend("10.0.1.2", "node-1", inZones("z2"))}, "1 2"},
		{"another port's name", nil, set{backend("10.0.1.1", "node-1", func(b *policyv1.Backend) { b.Ports[0].Name = "other" })}, ""},
		{"another protocol", nil, set{backend("10.0.1.1", "node-1", func(b *policyv1.Backend) { b.Ports[0].Protocol = policyv1.Protocol_PROTOCOL_UDP })}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := web()
			if tc.service != nil {
				tc.service(s)
			}
			w := newCluster(t, append(set{serviceItem(s)}, tc.backends...)...)
			c := New(config, Assignment{})
			w.update(c)
			var got []string
			for _, sp := range c.servicePorts {
				for e := range sp.serving[0] {
					if e.Port() != 8080 {
						t.Errorf("port %d of %s", e.Port(), e)
					}
					got = append(got, fmt.Sprint(e.Addr().As4()[3]))
				}
			}
			slices.Sort(got)
			if strings.Join(got, " ") != tc.want {
				t.Errorf("serving are %v, want %q", got, tc.want)
			}
		})
	}
}

// What a node knows of itself stays when other scopes go.
func TestZoneStaysWhenPoliciesGo(t *testing.T) {
	w := newCluster(t, serviceItem(web()), backend("10.0.1.1", "node-2", inZones("z1")), backend("10.0.1.2", "node-2", inZones("z2")))
	group := groupID("all")
	w.put(&policyv1.Item{Body: &policyv1.Item_Policy{Policy: &policyv1.Policy{
		Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "drop"}, Rank: 100, Priority: 5, AppliedTo: [][]byte{group[:]},
		Rules: []*policyv1.Rule{{Direction: egress, Action: drop}}}}})
	c := New(config, Assignment{})
	w.update(c)
	delete(w.items, storage.NewScopeID(storage.ScopePolicies, "all"))
	w.update(c)
	w.put(backend("10.0.1.3", "node-2", inZones("z2")))
	w.update(c)
	if g := c.Groups(); len(g) != 1 || len(g[0].Buckets) != 1 {
		t.Errorf("the node's zone is forgotten: %v", g)
	}
}

// An endpoint that comes or goes touches its own flow and its group, however
// many there are; what UDP had with it is to be forgotten.
func TestEndpointTouchesOneFlow(t *testing.T) {
	s := web()
	s.Ports[0].Protocol = policyv1.Protocol_PROTOCOL_UDP
	udp := func(b *policyv1.Backend) { b.Ports[0].Protocol = policyv1.Protocol_PROTOCOL_UDP }
	w := newCluster(t, serviceItem(s))
	for i := range 500 {
		w.put(backend(fmt.Sprintf("10.1.%d.%d", i/250, i%250+1), "node-2", udp))
	}
	c := New(config, Assignment{})
	w.update(c)
	extra := backend("10.2.0.1", "node-3", udp)
	w.put(extra)
	if ch := w.update(c); len(ch.Upsert) != 1 || len(ch.Delete) != 0 || len(ch.PutGroups) != 1 || len(ch.DeleteGroups) != 0 || len(ch.Unserved) != 0 {
		t.Errorf("an endpoint changes %d flows and %d groups, removes %d and %d", len(ch.Upsert), len(ch.PutGroups), len(ch.Delete), len(ch.DeleteGroups))
	}
	w.put(backend("10.2.0.1", "node-3", udp, terminating))
	if ch := w.update(c); len(ch.Upsert) != 0 || len(ch.Delete) != 1 || len(ch.PutGroups) != 1 || len(ch.Unserved) != 0 {
		t.Errorf("an endpoint that is about to go changes %d flows, removes %d, and unserves %v: its connections go on", len(ch.Upsert), len(ch.Delete), ch.Unserved)
	}
	restarted := New(config, c.Assignment())
	w.feed.update(restarted, Whole(w.replica), w.ports)
	want := Served{Proto: openflow.ProtoUDP, VIP: netip.MustParseAddrPort("10.96.0.1:80"), Endpoint: netip.MustParseAddr("10.2.0.1")}
	w.remove(extra)
	if ch := w.update(c); len(ch.Upsert)+len(ch.Delete)+len(ch.PutGroups) != 0 || !slices.Equal(ch.Unserved, []Served{want}) {
		t.Errorf("the end of one that was about to go changes %d flows and %d groups, removes %d, and unserves %v", len(ch.Upsert), len(ch.PutGroups), len(ch.Delete), ch.Unserved)
	}
	if ch := w.feed.update(restarted, Whole(w.replica), w.ports); !slices.Equal(ch.Unserved, []Served{want}) {
		t.Errorf("and after a restart it unserves %v", ch.Unserved)
	}
	w.put(extra)
	w.update(c)
	w.remove(extra)
	if ch := w.update(c); len(ch.Upsert) != 0 || len(ch.Delete) != 1 || len(ch.PutGroups) != 1 || !slices.Equal(ch.Unserved, []Served{want}) {
		t.Errorf("an endpoint's end changes %d flows and %d groups, removes %d, and unserves %v", len(ch.Upsert), len(ch.PutGroups), len(ch.Delete), ch.Unserved)
	}
	w.remove(serviceItem(s))
	if ch := w.update(c); len(ch.DeleteGroups) != 1 || len(ch.Unserved) != 1 || ch.Unserved[0].Endpoint.IsValid() || balanced(c) != "" || len(c.Assignment().Services) != 0 {
		t.Errorf("a Service's end removes groups %v, unserves %v and leaves\n%s", ch.DeleteGroups, ch.Unserved, balanced(c))
	}
}

// Of more endpoints than a group can have, each node takes as many as there
// may be, and they stay the same while others come and go.
func TestMoreEndpointsThanAGroupHas(t *testing.T) {
	w := newCluster(t, serviceItem(web()))
	for i := range 3000 {
		w.put(backend(fmt.Sprintf("fd01::%x", i+1), "node-2"))
	}
	c := New(config, Assignment{})
	w.update(c)
	if g := c.Groups(); len(g) != 1 || len(g[0].Buckets) != backendsMost || !g[0].Fits() {
		t.Fatalf("%d groups", len(g))
	}
	w.put(backend("fd02::1", "node-2"))
	if ch := w.update(c); len(ch.Upsert) > 1 || len(ch.Delete) > 1 || len(ch.PutGroups) > 1 {
		t.Errorf("one more changes %d flows and %d groups, and removes %d", len(ch.Upsert), len(ch.PutGroups), len(ch.Delete))
	}
}

// What a restarted shim wants of Services is what was there.
func TestServicesKeepTheirIDs(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 77))
		w := newCluster(t)
		c := New(config, Assignment{})
		flows, groups := make(map[openflow.FlowKey]openflow.Flow), make(map[uint32]openflow.Group)
		for range 20 {
			for range 1 + rng.IntN(4) {
				item := randomServiceItem(rng)
				if rng.IntN(3) == 0 {
					w.remove(item)
				} else {
					w.put(item)
				}
			}
			w.put(&policyv1.Item{Body: &policyv1.Item_Node{Node: &policyv1.NodeFacts{Name: "node-1", Zone: []string{"", "z1", "z2"}[rng.IntN(3)]}}})
			ch := w.update(c)
			for _, f := range ch.Upsert {
				flows[f.Key()] = f
			}
			for _, k := range ch.Delete {
				delete(flows, k)
			}
			for _, g := range ch.PutGroups {
				groups[g.ID] = g
			}
			for _, id := range ch.DeleteGroups {
				if _, there := groups[id]; !there {
					t.Fatalf("seed %d: removes group %d, which is not there", seed, id)
				}
				delete(groups, id)
			}
			var told []openflow.Flow
			for _, f := range flows {
				told = append(told, f)
				for _, a := range f.Actions.List() {
					if g, is := a.(openflow.ToGroup); is && groups[uint32(g)].ID == 0 {
						t.Fatalf("seed %d: %s has no group", seed, f)
					}
				}
			}
			if d := differing(told, c.Desired()); d != "" {
				t.Fatalf("seed %d: what the bridge was told (+) and the state (-): %s", seed, d)
			}
			if len(groups) != len(c.Groups()) {
				t.Fatalf("seed %d: told of %d groups, want %d", seed, len(groups), len(c.Groups()))
			}
			a, err := DecodeAssignment(c.Assignment().Encode())
			if err != nil {
				t.Fatal(err)
			}
			fresh := New(config, a)
			w.feed.update(fresh, Whole(w.replica), w.ports)
			if got, want := balanced(fresh), balanced(c); got != want {
				t.Fatalf("seed %d: fresh (+) and incremental (-):\n%s", seed, difference(got, want))
			}
		}
	}
}

func randomServiceItem(rng *rand.Rand) *policyv1.Item {
	protocols := []policyv1.Protocol{policyv1.Protocol_PROTOCOL_TCP, policyv1.Protocol_PROTOCOL_UDP, policyv1.Protocol_PROTOCOL_SCTP}
	name := fmt.Sprint("s-", rng.IntN(3))
	ports := func(number uint32) (out []*policyv1.ServicePort) {
		for i := range 1 + rng.IntN(2) {
			out = append(out, &policyv1.ServicePort{Name: fmt.Sprint("p-", i), Protocol: protocols[(i+rng.IntN(2))%3], Port: number + uint32(i)})
		}
		return out
	}
	if rng.IntN(3) == 0 {
		s := &policyv1.ClusterService{Namespace: "x", Name: name, Ips: [][]byte{{10, 96, 0, byte(1 + rng.IntN(2))}}, Ports: ports(80), Local: rng.IntN(4) == 0}
		s.Ips[0][2] = name[2]
		if rng.IntN(2) == 0 {
			s.Ips = append(s.Ips, netip.MustParseAddr("fd96::"+name[2:]).AsSlice())
		}
		if rng.IntN(3) == 0 {
			s.AffinitySeconds = 10800
		}
		return serviceItem(s)
	}
	b := &policyv1.Backend{Namespace: "x", Service: name, Ip: []byte{10, 0, 1, byte(rng.IntN(4))}, Node: fmt.Sprint("node-", rng.IntN(3)), Ports: ports(8080 + uint32(rng.IntN(2))),
		Terminating: rng.IntN(4) == 0}
	if rng.IntN(3) == 0 {
		b.Ip = netip.MustParseAddr(fmt.Sprint("fd00::", rng.IntN(3))).AsSlice()
	}
	if rng.IntN(2) == 0 {
		b.Zones = []string{fmt.Sprint("z", 1+rng.IntN(2))}
	}
	return &policyv1.Item{Body: &policyv1.Item_Backend{Backend: b}}
}

// A rule that names a Service has a flow for each of its ports.
func TestRulesThatNameServices(t *testing.T) {
	group := groupID("all")
	policy := &policyv1.Item{Body: &policyv1.Item_Policy{Policy: &policyv1.Policy{
		Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "no-web"}, Rank: 100, Priority: 5, AppliedTo: [][]byte{group[:]},
		Rules: []*policyv1.Rule{{Direction: egress, Action: drop, Peers: &policyv1.Peers{Services: []*policyv1.ServiceRef{{Namespace: "x", Name: "web"}}}}}}}}
	s := web()
	w := newCluster(t, policy)
	w.put(&policyv1.Item{Body: &policyv1.Item_Endpoint{Endpoint: &policyv1.Endpoint{Namespace: "x", Name: "client", Ips: [][]byte{{10, 0, 0, 2}}, Groups: [][]byte{group[:]}}}})
	c := New(config, Assignment{})
	count := func() (n int) {
		for _, f := range c.Desired() {
			if _, is := f.Match.Field(openflow.FieldMetadata); is && f.Table == TableAntreaPolicyEgressRule {
				n++
			}
		}
		return n
	}
	check := func(what string, want int) {
		t.Helper()
		w.update(c)
		if got := count(); got != want {
			t.Errorf("%s: %d flows match the Service, want %d", what, got, want)
		}
	}
	check("no Service", 0)
	w.put(serviceItem(s))
	check("one port", 1)
	if got := c.ClusterIP(netip.MustParseAddr("10.96.0.1")); got != s.Namespace+"/"+s.Name || c.ClusterIP(netip.MustParseAddr("10.96.0.77")) != "" {
		t.Errorf("the ClusterIP is that of %q", got)
	}
	s.Ports = append(s.Ports, &policyv1.ServicePort{Name: "https", Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 443})
	w.put(serviceItem(s))
	check("two ports", 2)
	hit := Hit{Table: TableAntreaPolicyEgressRule, InPort: 1, Src: netip.MustParseAddr("10.0.0.2"), Dst: netip.MustParseAddr("10.0.1.1"), Proto: openflow.ProtoTCP, DstPort: 8080}
	for id, pt := range c.byConj {
		hit.Cookie = cookie(KindRule, id)
		at := scene{dir: egress, ep: c.ports[1], peer: hit.Dst, hit: hit, revision: c.revision}
		if c.decider(pt.body.owner, at) != nil {
			t.Error("what is for the endpoint itself is taken for the rule's")
		}
		for at.hit.Service = range c.servicePorts {
			if c.decider(pt.body.owner, at) == nil {
				t.Error("what is for the Service is not taken for the rule's")
			}
			if a, _ := c.Attribute(at.hit); a.Service != "x/web" {
				t.Errorf("what is for the Service is said to be for %q", a.Service)
			}
		}
		if a, _ := c.Attribute(hit); a.Service != "" {
			t.Errorf("what is for the endpoint itself is said to be for %q", a.Service)
		}
	}
	if p := c.Problems(); len(p) > 0 {
		t.Error(p)
	}
	off := config
	off.BalanceServices = false
	unbalanced := New(off, Assignment{})
	w.feed.update(unbalanced, Whole(w.replica), w.ports)
	if p := unbalanced.Problems(); len(p) != 1 || !strings.Contains(p[0].Err.Error(), "--service-lb") {
		t.Error("switched off, the problems are", p)
	}
	w.remove(serviceItem(s))
	check("no Service any more", 0)
	if got := c.ClusterIP(netip.MustParseAddr("10.96.0.1")); got != "" {
		t.Errorf("the ClusterIP is still that of %q", got)
	}
}

// A ClusterIP that goes from one Service to another is balanced for that, whichever
// of them comes first, in one cut or in two.
func TestClusterIPGoesToAnotherService(t *testing.T) {
	named := func(name string, vip byte) *policyv1.Item {
		s := web()
		s.Name, s.Ips = name, [][]byte{{10, 96, 0, vip}}
		return serviceItem(s)
	}
	for what, change := range map[string]func(w *cluster, update func()){
		"to an earlier name": func(w *cluster, _ func()) { w.remove(named("web", 1)); w.put(named("a", 1)) },
		"to a later name":    func(w *cluster, _ func()) { w.remove(named("web", 1)); w.put(named("z", 1)) },
		"in two cuts":        func(w *cluster, update func()) { w.put(named("a", 1)); update(); w.remove(named("web", 1)) },
		"exchanged":          func(w *cluster, _ func()) { w.put(named("web", 2), named("other", 1)) },
	} {
		t.Run(what, func(t *testing.T) {
			w := newCluster(t, named("web", 1), named("other", 2))
			c := New(config, Assignment{})
			w.update(c)
			change(w, func() { w.update(c) })
			w.update(c)
			fresh := New(config, c.Assignment())
			w.feed.update(fresh, Whole(w.replica), w.ports)
			if got, want := balanced(c), balanced(fresh); got != want {
				t.Errorf("changed (+) and fresh (-):\n%s", difference(got, want))
			}
		})
	}
}

// A rule that names a Service twice has its ports once, in either form: two Pods
// of two families make it heavy enough for conjunctions, and one makes it light.
func TestRuleThatNamesAServiceTwice(t *testing.T) {
	group := groupID("all")
	twice := []*policyv1.ServiceRef{{Namespace: "x", Name: "web"}, {Namespace: "x", Name: "web"}}
	w := newCluster(t, &policyv1.Item{Body: &policyv1.Item_Policy{Policy: &policyv1.Policy{
		Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "no-web"}, Rank: 100, Priority: 5, AppliedTo: [][]byte{group[:]},
		Rules: []*policyv1.Rule{{Direction: egress, Action: drop, Peers: &policyv1.Peers{Services: twice}}}}}})
	for name, ip := range map[string]string{"client": "fd00::2", "other": "10.0.0.3"} {
		w.put(&policyv1.Item{Body: &policyv1.Item_Endpoint{Endpoint: &policyv1.Endpoint{Namespace: "x", Name: name, Ips: [][]byte{netip.MustParseAddr(ip).AsSlice()}, Groups: [][]byte{group[:]}}}})
	}
	w.ports = append(w.ports, port(2, "other"))
	c := New(config, Assignment{})
	w.update(c)
	w.put(serviceItem(web()))
	w.ports = w.ports[:1]
	w.update(c)
	w.remove(serviceItem(web()))
	w.update(c)
	fresh := New(config, Assignment{})
	w.feed.update(fresh, Whole(w.replica), w.ports)
	if len(c.Desired()) != len(fresh.Desired()) {
		t.Errorf("%d flows are left, and a new shim wants %d", len(c.Desired()), len(fresh.Desired()))
	}
}
