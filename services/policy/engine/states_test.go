package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

func labels(pairs ...string) api.Labels {
	var l api.Labels
	for i := 0; i < len(pairs); i += 2 {
		l = append(l, api.Label{Key: pairs[i], Value: pairs[i+1]})
	}
	return l
}

func matching(pairs ...string) *api.Selector { return &api.Selector{MatchLabels: labels(pairs...)} }

func newPod(ns, name, node, ip string, pairs ...string) *api.Pod {
	p := &api.Pod{Namespace: ns, Name: name, Node: node, ServiceAccount: "default", Labels: labels(pairs...)}
	if ip != "" {
		p.IPs = []netip.Addr{netip.MustParseAddr(ip)}
	}
	return p
}

func newNamespace(name string, pairs ...string) *api.Namespace {
	l := append(labels(api.LabelAntreaNamespaceName, name, api.LabelNamespaceName, name), labels(pairs...)...)
	return &api.Namespace{Name: name, Labels: l}
}

func ingressFrom(ns, name string, target *api.Selector, peers ...api.NetworkPolicyPeer) *api.NetworkPolicy {
	return &api.NetworkPolicy{Namespace: ns, Name: name, PodSelector: *target,
		Ingress: []api.NetworkPolicyRule{{Peers: peers, Ports: []api.NetworkPolicyPort{{Protocol: api.ProtocolTCP, Port: 80}}}}}
}

func adminPolicy(kind api.Kind, name string, action api.Action, subject, peer *api.Selector) *api.OrderedPolicy {
	all := &api.Selector{}
	return &api.OrderedPolicy{Kind: kind, Name: name, Priority: 5, Baseline: kind == api.KindBaselineAdminNetworkPolicy,
		AppliedTo: []api.Target{{NamespaceSelector: all, PodSelector: subject}},
		Ingress: []api.OrderedRule{{Name: "in", Action: action, Traffic: []api.Traffic{{Protocol: api.ProtocolTCP, PortName: "sql"}, {Protocol: api.ProtocolUDP, Port: 5, EndPort: 9}},
			Peers: []api.Peer{{NamespaceSelector: matching("team", "b"), PodSelector: peer}}}},
		Egress: []api.OrderedRule{{Action: action, Traffic: []api.Traffic{{Protocol: api.ProtocolTCP, PortName: "sql"}},
			Peers: []api.Peer{{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}, {NamespaceSelector: all, PodSelector: peer}}}}}
}

// antreaPolicy guards the Pods of every Namespace, with one rule for each peer.
func antreaPolicy(name, tier string, action api.Action, peers ...api.Peer) *api.OrderedPolicy {
	p := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: name, Tier: tier, Priority: 5, AppliedTo: []api.Target{{NamespaceSelector: &api.Selector{}}}}
	for _, peer := range peers {
		p.Ingress = append(p.Ingress, api.OrderedRule{Name: "r", Action: action, Peers: []api.Peer{peer}})
	}
	return p
}

// newService is one with a port that has a name and one that leads to a named port.
func newService(ns, name string, pairs ...string) *api.Service {
	return &api.Service{Namespace: ns, Name: name, Type: "ClusterIP", Selector: labels(pairs...), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []api.ServicePort{{Name: "web", Protocol: api.ProtocolTCP, Port: 80, TargetPort: 8080}, {Name: "sql", Protocol: api.ProtocolTCP, Port: 90, TargetName: "sql"}}}
}

func newSlice(ns, name, service string, endpoints ...api.SliceEndpoint) *api.EndpointSlice {
	return &api.EndpointSlice{Namespace: ns, Name: name, Service: service, Endpoints: endpoints,
		Ports: []api.ServicePort{{Name: "web", Protocol: api.ProtocolTCP, Port: 8080}}}
}

func serving(ip, node string) api.SliceEndpoint {
	return api.SliceEndpoint{Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Node: node, Ready: true, Serving: true}
}

// The base state: two nodes, three Namespaces, and a policy of each shape.
func baseState() []api.Object {
	hostNet := newPod("x", "host", "node-1", "192.0.2.1", "app", "web")
	hostNet.HostNetwork = true
	finished := newPod("x", "job", "node-1", "10.0.0.9", "app", "web")
	finished.Finished = true
	named := newPod("y", "named", "node-2", "10.0.1.3", "app", "db")
	named.Ports = []api.ContainerPort{{Name: "sql", Protocol: api.ProtocolTCP, Port: 5432}}
	return []api.Object{
		&api.Node{Name: "node-1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Reached: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		&api.Node{Name: "node-2", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
		newNamespace("x", "team", "a"),
		newNamespace("y", "team", "b"),
		newPod("x", "web-1", "node-1", "10.0.0.2", "app", "web"),
		newPod("x", "web-2", "node-2", "10.0.1.2", "app", "web"),
		newPod("x", "client", "node-1", "10.0.0.3", "app", "client"),
		newPod("x", "pending", "node-1", "", "app", "web"),
		newPod("z", "orphan", "node-2", "10.0.1.4", "app", "client"), // Its Namespace's object is not there.
		hostNet, finished, named,
		ingressFrom("x", "web", matching("app", "web"), api.NetworkPolicyPeer{PodSelector: matching("app", "client")}),
		ingressFrom("x", "all-of-b", matching(), api.NetworkPolicyPeer{NamespaceSelector: matching("team", "b")}),
		ingressFrom("y", "anyone", matching("app", "db"), api.NetworkPolicyPeer{NamespaceSelector: matching(), PodSelector: matching("app", "client")},
			api.NetworkPolicyPeer{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}}),
		&api.NetworkPolicy{Namespace: "y", Name: "deny", PolicyTypes: []api.PolicyType{api.PolicyTypeEgress}},
		adminPolicy(api.KindAdminNetworkPolicy, "admin", api.ActionDrop, matching("app", "web"), matching("app", "client")),
		adminPolicy(api.KindBaselineAdminNetworkPolicy, "default", api.ActionAllow, matching("app", "db"), nil),
		&api.Tier{Name: "mine", Priority: 7},
		&api.Group{Kind: api.KindClusterGroup, Name: "clients", PodSelector: matching("app", "client")},
		&api.Group{Kind: api.KindClusterGroup, Name: "parent", Children: []string{"clients", "served", "blocks", "none"}},
		&api.Group{Kind: api.KindClusterGroup, Name: "served", Service: &api.NamespacedName{Namespace: "y", Name: "db"}},
		&api.Group{Kind: api.KindClusterGroup, Name: "blocks", IPBlocks: []api.IPBlock{{CIDR: netip.MustParsePrefix("10.0.1.0/29")}}},
		newService("y", "db", "app", "db"),
		newService("x", "web", "app", "web"),
		newSlice("x", "web-a", "web", serving("10.0.0.2", "node-1"), serving("10.0.1.2", "node-2")),
		antreaPolicy("grouped", "mine", api.ActionReject, api.Peer{Group: "parent"}),
		antreaPolicy("related", "application", api.ActionDrop, api.Peer{SameLabels: []string{"team"}}, api.Peer{NodeSelector: &api.Selector{}}),
	}
}

// variants are other objects that may stand in the place of those of the base state.
func variants() []api.Object {
	moved := newPod("x", "web-1", "node-2", "10.0.1.9", "app", "web")
	relabelled := newPod("x", "client", "node-1", "10.0.0.3", "app", "web")
	logged := newNamespace("x", "team", "b")
	logged.LogPolicies = true
	return []api.Object{
		moved, relabelled, logged, newNamespace("z", "team", "b"),
		newPod("x", "web-2", "node-2", "", "app", "web"),
		ingressFrom("x", "web", matching("app", "client"), api.NetworkPolicyPeer{PodSelector: matching("app", "web")}),
		ingressFrom("x", "all-of-b", matching("app", "web"), api.NetworkPolicyPeer{NamespaceSelector: matching("team", "a")}),
		&api.NetworkPolicy{Namespace: "y", Name: "deny", PodSelector: *matching("app", "db"), PolicyTypes: []api.PolicyType{api.PolicyTypeIngress}},
		adminPolicy(api.KindAdminNetworkPolicy, "admin", api.ActionPass, matching("app", "client"), matching("app", "db")),
		adminPolicy(api.KindBaselineAdminNetworkPolicy, "default", api.ActionDrop, matching("app", "web"), matching("app", "db")),
		&api.Tier{Name: "mine", Priority: 251 - 2},
		&api.Group{Kind: api.KindClusterGroup, Name: "clients", PodSelector: matching("app", "web")},
		newService("y", "db", "app", "web"),
		antreaPolicy("related", "baseline", api.ActionAllow, api.Peer{SameLabels: []string{api.LabelNamespaceName}, PodSelector: matching("app", "client")}),
		newSlice("x", "web-a", "web", serving("10.0.0.2", "node-1"), api.SliceEndpoint{Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.2")}, Serving: true, Terminating: true}),
		newSlice("x", "web-b", "web", serving("10.0.0.2", "node-2")),
		newSlice("y", "db-a", "db", serving("10.0.1.3", "node-2")),
	}
}

// dump is everything that each node must hold, read through a subscriber.
func dump(t *testing.T, store *storage.Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, node := range []string{"node-1", "node-2"} {
		cut := store.Subscribe(node).Next()
		replica := &storage.Replica{}
		for _, b := range cut.Frames(1 << 20) {
			frame := &policyv1.Cut{}
			if err := proto.Unmarshal(b, frame); err != nil {
				t.Fatal(err)
			}
			if _, _, err := replica.Apply(frame); err != nil {
				t.Fatal(err)
			}
		}
		snapshot := replica.Snapshot()
		snapshot.Revision, snapshot.Position = 0, nil
		out[node] = prototext.Format(snapshot)
	}
	return out
}

func upsert(o api.Object) api.Event { return api.Event{Ref: o.Ref(), Object: o} }

// The store that a set of objects gives does not depend on how they came.
func TestOutputIsAFunctionOfTheObjects(t *testing.T) {
	base := baseState()
	reference := New()
	for _, o := range base {
		reference.Apply(upsert(o))
	}
	refStore := storage.New("e")
	refStore.Commit(reference.Flush(), nil)
	want := dump(t, refStore)
	if n := refStore.Node("node-1").Items[storage.ScopePolicies]; n != 6 {
		t.Fatalf("node-1 holds %d policies, want 6", n)
	}

	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 2))
		e, store := New(), storage.New("e")
		maybeFlush := func() {
			if rng.IntN(3) == 0 {
				store.Commit(e.Flush(), nil)
			}
		}
		detour := variants()
		for range rng.IntN(25) { // A past that must leave no trace.
			o := append(detour, base...)[rng.IntN(len(detour)+len(base))]
			if rng.IntN(3) == 0 {
				e.Apply(api.Event{Ref: o.Ref()})
			} else {
				e.Apply(upsert(o))
			}
			maybeFlush()
		}
		for _, o := range detour {
			if rng.IntN(2) == 0 {
				e.Apply(upsert(o))
			}
			maybeFlush()
			e.Apply(api.Event{Ref: o.Ref()})
		}
		for _, i := range rng.Perm(len(base)) {
			for range 1 + rng.IntN(2) {
				e.Apply(upsert(base[i]))
			}
			maybeFlush()
		}
		store.Commit(e.Flush(), nil)
		got := dump(t, store)
		for node := range want {
			if got[node] != want[node] {
				t.Fatalf("seed %d: %s holds\n%s\nwant\n%s", seed, node, got[node], want[node])
			}
		}
		if a, b := len(e.Groups(false)), len(reference.Groups(false)); a != b {
			t.Fatalf("seed %d: %d groups are left, want %d", seed, a, b)
		}
	}
}

// Taking every object away leaves nothing: every index add has its remove.
func TestNothingIsLeftWhenAllObjectsGo(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 3))
		e, store := New(), storage.New("e")
		objects := append(baseState(), variants()...)
		for _, i := range rng.Perm(len(objects)) {
			e.Apply(upsert(objects[i]))
			if rng.IntN(2) == 0 {
				store.Commit(e.Flush(), nil)
			}
		}
		for _, i := range rng.Perm(len(objects)) {
			e.Apply(api.Event{Ref: objects[i].Ref()})
			if rng.IntN(2) == 0 {
				store.Commit(e.Flush(), nil)
			}
		}
		store.Commit(e.Flush(), nil)
		if left := leftovers(e); left != "" {
			t.Fatalf("seed %d: left over: %s", seed, left)
		}
		if nodes := store.Nodes(); len(nodes) != 0 {
			t.Fatalf("seed %d: the store still reaches %v", seed, nodes)
		}
	}
}

func TestSelectorOperators(t *testing.T) {
	pod := labels("a", "1", "b", "2")
	for _, tc := range []struct {
		name string
		req  api.Requirement
		want bool
	}{
		{"in", api.Requirement{Key: "a", Operator: api.OpIn, Values: []string{"0", "1"}}, true},
		{"in, another value", api.Requirement{Key: "a", Operator: api.OpIn, Values: []string{"0"}}, false},
		{"in, no key", api.Requirement{Key: "c", Operator: api.OpIn, Values: []string{"1"}}, false},
		{"not in", api.Requirement{Key: "a", Operator: api.OpNotIn, Values: []string{"0"}}, true},
		{"not in, the value", api.Requirement{Key: "a", Operator: api.OpNotIn, Values: []string{"1"}}, false},
		{"not in, no key", api.Requirement{Key: "c", Operator: api.OpNotIn, Values: []string{"1"}}, true},
		{"exists", api.Requirement{Key: "a", Operator: api.OpExists}, true},
		{"exists, no key", api.Requirement{Key: "c", Operator: api.OpExists}, false},
		{"does not exist", api.Requirement{Key: "c", Operator: api.OpDoesNotExist}, true},
		{"does not exist, the key", api.Requirement{Key: "a", Operator: api.OpDoesNotExist}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := new(normaliser).normalise(&api.Selector{MatchExpressions: []api.Requirement{tc.req}}).match(pod); got != tc.want {
				t.Errorf("matches: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestSelectorsThatSayTheSameShareAGroup(t *testing.T) {
	e := New()
	a := e.group(selection{namespace: "x", pods: matching("app", "web")})
	b := e.group(selection{namespace: "x", pods: &api.Selector{MatchExpressions: []api.Requirement{{Key: "app", Operator: api.OpIn, Values: []string{"web", "web"}}}}})
	if a != b {
		t.Errorf("%q and %q", a.text(), b.text())
	}
	if own, all := e.group(selection{namespace: "x"}), e.group(selection{namespaces: &api.Selector{}}); own == all || own.id == all.id {
		t.Error("a Namespace's Pods and all Pods are one group")
	}
}

// leftovers names what an engine holds.
func leftovers(e *Engine) string {
	var left []string
	for name, n := range map[string]int{
		"namespaces": e.namespaces.len(), "nodes": e.nodes.len(), "sets": e.sets.len(), "classes": e.classes, "shapes": e.shapes.len(),
		"selectors": e.selectors.len(), "loose": e.loose.len(), "labels": len(e.labels), "spacesByLabel": len(e.spacesByLabel),
		"hostGroups": len(e.hostGroups), "ordered": len(e.ordered), "related": len(e.related), "referents": len(e.referents),
		"services": len(e.services.all), "slices": len(e.services.slices), "behind": len(e.services.behind), "told services": e.services.told,
		"wideByLabel": len(e.wideByLabel), "wideLoose": e.wideLoose.len(), "node numbers": len(e.nodes.numbered) - len(e.nodes.unused),
	} {
		if n > 0 {
			left = append(left, fmt.Sprint(n, " ", name))
		}
	}
	slices.Sort(left)
	return strings.Join(left, ", ")
}

func TestPolicyTypesDefaulting(t *testing.T) {
	egress := []api.NetworkPolicyRule{{}}
	for _, tc := range []struct {
		name            string
		policy          api.NetworkPolicy
		ingress, egress bool
	}{
		{"nothing said", api.NetworkPolicy{}, true, false},
		{"egress rules", api.NetworkPolicy{Egress: egress}, true, true},
		{"egress alone", api.NetworkPolicy{PolicyTypes: []api.PolicyType{api.PolicyTypeEgress}}, false, true},
		{"ingress said, egress rules ignored", api.NetworkPolicy{PolicyTypes: []api.PolicyType{api.PolicyTypeIngress}, Egress: egress}, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, out := policyTypes(&tc.policy)
			if in != tc.ingress || out != tc.egress {
				t.Errorf("ingress %v, egress %v", in, out)
			}
		})
	}
}
