package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// ordering is the example of the reference: three policies, of which the last
// is in an earlier tier, with two Kubernetes policies and a baseline beside them.
func ordering() []api.Object {
	policy := func(kind api.Kind, ns, name, tier string, priority float64) *api.OrderedPolicy {
		p := antreaPolicy(name, tier, api.ActionAllow, api.Peer{}, api.Peer{})
		p.Kind, p.Namespace, p.Priority = kind, ns, priority
		return p
	}
	const cluster, own = api.KindAntreaClusterNetworkPolicy, api.KindAntreaNetworkPolicy
	return []api.Object{
		policy(cluster, "", "acnp1", "application", 10), policy(own, "x", "annp1", "application", 15), policy(cluster, "", "acnp3", "emergency", 20),
		policy(cluster, "", "deep", "baseline", 1), policy(cluster, "", "lost", "nowhere", 1), policy(cluster, "", "fraction", "application", 14.5),
		ingressFrom("x", "b", matching()), ingressFrom("x", "a", matching()),
		adminPolicy(api.KindAdminNetworkPolicy, "admin", api.ActionDrop, nil, nil), adminPolicy(api.KindBaselineAdminNetworkPolicy, "default", api.ActionDrop, nil, nil),
	}
}

func TestByEffectivePriority(t *testing.T) {
	e := New()
	for _, o := range ordering() {
		e.Apply(upsert(o))
	}
	e.Flush()
	list := e.Policies()
	slices.SortStableFunc(list, ByEffectivePriority)
	var got []string
	for _, p := range list {
		got = append(got, fmt.Sprint(p.Wire.Rank, " ", p.Wire.Ref.Name))
	}
	if want := "50 acnp3, 250 acnp1, 250 fraction, 250 annp1, 251 admin, 252 a, 252 b, 253 deep, 254 default, 0 lost"; strings.Join(got, ", ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, ", "), want)
	}
}

func TestFaults(t *testing.T) {
	blocks := &api.Group{Kind: api.KindClusterGroup, Name: "blocks", IPBlocks: []api.IPBlock{{CIDR: netip.MustParsePrefix("10.0.0.0/8")}}}
	everywhere := &api.Group{Kind: api.KindGroup, Namespace: "x", Name: "everywhere", NamespaceSelector: matching()}
	elsewhere := &api.Group{Kind: api.KindGroup, Namespace: "x", Name: "elsewhere", Service: &api.NamespacedName{Namespace: "y", Name: "s"}}
	rule := func(action api.Action, peer api.Peer) *api.OrderedPolicy {
		return antreaPolicy("p", "application", action, peer)
	}
	appliedTo := func(targets ...api.Target) *api.OrderedPolicy {
		p := antreaPolicy("p", "application", api.ActionDrop)
		p.AppliedTo, p.Ingress = targets, []api.OrderedRule{{Name: "r", Action: api.ActionDrop}}
		return p
	}
	own, others := appliedTo(api.Target{Group: "everywhere"}), appliedTo(api.Target{Group: "elsewhere"})
	own.Kind, own.Namespace = api.KindAntreaNetworkPolicy, "x"
	others.Kind, others.Namespace = api.KindAntreaNetworkPolicy, "x"
	toService := func(names ...string) *api.OrderedPolicy {
		p := appliedTo(api.Target{PodSelector: matching()})
		p.Egress, p.Ingress = []api.OrderedRule{{Name: "r", Action: api.ActionDrop}}, nil
		for _, name := range names {
			p.Egress[0].ToServices = append(p.Egress[0].ToServices, api.NamespacedName{Namespace: "x", Name: name})
		}
		return p
	}
	hosts := toService()
	hosts.Egress[0].Peers = []api.Peer{{FQDN: "*.example.com"}, {FQDN: "example.com"}}
	onService := func(name string) *api.OrderedPolicy {
		return appliedTo(api.Target{Service: &api.NamespacedName{Namespace: "x", Name: name}})
	}
	headless, external, outer := *newService("x", "headless"), *newService("x", "external"), *newService("x", "outer")
	headless.Headless, headless.ClusterIPs = true, nil
	external.Type, external.ClusterIPs = api.ServiceExternalName, nil
	outer.Type, outer.Ports = "NodePort", []api.ServicePort{{Protocol: api.ProtocolTCP, Port: 80, NodePort: 30080}}
	layer7, igmp := appliedTo(api.Target{PodSelector: matching()}), appliedTo(api.Target{PodSelector: matching()})
	layer7.Ingress[0].Layer7, layer7.Ingress[0].Action = true, api.ActionAllow
	igmp.Ingress[0].Traffic = []api.Traffic{{Protocol: api.ProtocolIGMP}}
	igmpOfNodes := appliedTo(api.Target{NodeSelector: matching()})
	igmpOfNodes.Ingress[0].Traffic = igmp.Ingress[0].Traffic
	outOfHosts := appliedTo(api.Target{NodeSelector: matching()})
	outOfHosts.Egress, outOfHosts.Ingress = hosts.Egress, nil
	named, outOfNodes := appliedTo(api.Target{NodeSelector: matching()}), toService("s")
	named.Ingress[0].Traffic = []api.Traffic{{Protocol: api.ProtocolTCP, PortName: "http"}}
	outOfNodes.AppliedTo = []api.Target{{NodeSelector: matching()}}
	for _, tc := range []struct {
		name    string
		policy  *api.OrderedPolicy
		reason  string
		message string
		widens  bool
		items   int
	}{
		{"nothing is wrong", rule(api.ActionDrop, api.Peer{PodSelector: matching()}), "", "", false, 1},
		{"no tier", antreaPolicy("p", "nowhere", api.ActionDrop), ReasonTierNotFound, "tier nowhere is not there; the policy is held back until it is", true, 0},
		{"no group to let in", rule(api.ActionAllow, api.Peer{Group: "g"}), ReasonGroupNotFound, "ingress[0] (r): group g is not there; it matches nothing", false, 0},
		{"no group to drop", rule(api.ActionDrop, api.Peer{Group: "g"}), ReasonGroupNotFound, "ingress[0] (r): group g is not there; it matches nothing", true, 0},
		{"applied to a group of blocks", appliedTo(api.Target{Group: "blocks"}), ReasonUnsupportedGroup, "appliedTo: group blocks has blocks of addresses, and adds no Pod", true, 0},
		{"and to others", appliedTo(api.Target{Group: "blocks"}, api.Target{PodSelector: matching()}), ReasonUnsupportedGroup, "appliedTo: group blocks has blocks of addresses, and adds no Pod", true, 1},
		{"applied to a Group of other Namespaces", own, ReasonUnsupportedGroup, "appliedTo: group everywhere has a namespaceSelector, and adds no Pod", true, 0},
		{"applied to a Group of another Namespace's Service", others, ReasonUnsupportedGroup, "appliedTo: group elsewhere has a Service of another Namespace, and adds no Pod", true, 0},
		{"domain names", hosts, "", "", false, 1},
		{"toServices", toService("s"), "", "", false, 1},
		{"toServices of one that is not there", toService("none"), ReasonServiceNotFound, "egress[0] (r): Service x/none is not there; it matches nothing", true, 0},
		{"and of one that is", toService("none", "s"), ReasonServiceNotFound, "egress[0] (r): Service x/none is not there; it matches nothing", true, 1},
		{"toServices of a headless one", toService("headless"), ReasonUnsupportedService, "egress[0] (r): Service x/headless is headless, and never matches", true, 0},
		{"toServices of a name", toService("external"), ReasonUnsupportedService, "egress[0] (r): Service x/external is a name for another host, and never matches", true, 0},
		{"layer 7 is dropped", layer7, ReasonNotEnforced, "ingress[0] (r): nodes cannot look into layer 7 yet; what the rule matches is dropped", false, 1},
		{"IGMP", igmp, "", "", false, 1},
		{"Nodes", appliedTo(api.Target{NodeSelector: matching()}), "", "", false, 1},
		{"IGMP of Nodes", igmpOfNodes, ReasonNotEnforced, "ingress[0] (r): what a Node's own host says by IGMP is not watched; the rule matches nothing of it", true, 0},
		{"domain names for Nodes", outOfHosts, ReasonNotEnforced, "egress[0] (r): the DNS of Nodes is not watched; names of hosts match nothing", true, 0},
		{"a port's name at Nodes", named, ReasonNotEnforced, "ingress[0] (r): a Node's own ports have no names; write their numbers", true, 0},
		{"toServices of Nodes", outOfNodes, ReasonNotEnforced, "egress[0] (r): what a Node sends to Services is judged by the endpoint that it reaches; toServices matches nothing", true, 0},
		{"a NodePort Service", onService("outer"), "", "", false, 1},
		{"a NodePort Service that is not there", onService("none"), ReasonServiceNotFound, "appliedTo: Service x/none is not there; it adds nothing", true, 0},
		{"a Service without a NodePort", onService("s"), ReasonUnsupportedService, "appliedTo: Service x/s has no port on nodes, and adds nothing", true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := New()
			for _, o := range []api.Object{blocks, everywhere, elsewhere, newService("x", "s"), &headless, &external, &outer, newPod("x", "a", "node-1", "10.0.0.1"), tc.policy} {
				e.Apply(upsert(o))
			}
			e.Flush()
			p := e.Policies()[0]
			var got Fault
			if len(p.Faults) > 0 {
				got = p.Faults[0]
			}
			if len(p.Faults) > 1 || got != (Fault{tc.reason, tc.message, tc.widens}) || len(p.Items) != tc.items {
				t.Errorf("%d items, %+v", len(p.Items), p.Faults)
			}
		})
	}
}

func TestPolicyWarnings(t *testing.T) {
	empty := &api.Group{Kind: api.KindClusterGroup, Name: "empty"}
	elsewhere := antreaPolicy("p", "application", api.ActionDrop, api.Peer{PodSelector: matching()})
	elsewhere.AppliedTo = []api.Target{{PodSelector: matching("app", "none")}}
	onPorts := antreaPolicy("p", "application", api.ActionDrop, api.Peer{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8")}})
	onPorts.AppliedTo = []api.Target{{Service: &api.NamespacedName{Namespace: "x", Name: "s"}}}
	nodePort := &api.Service{Namespace: "x", Name: "s", Type: "NodePort", Ports: []api.ServicePort{{Protocol: api.ProtocolTCP, Port: 80, NodePort: 30080}}}
	for _, tc := range []struct {
		name, want string
		policy     api.Object
	}{
		{"in effect", "", antreaPolicy("p", "application", api.ActionDrop, api.Peer{PodSelector: matching()})},
		{"its rules have nobody", "has no effect now", antreaPolicy("p", "application", api.ActionDrop, api.Peer{Group: "empty"})},
		{"its tier is not there", "has no effect now", antreaPolicy("p", "nowhere", api.ActionDrop, api.Peer{PodSelector: matching()})},
		{"it guards nobody", "applies to no Pod now", elsewhere},
		{"no Node is there whose ports it guards", "applies to no Node now", onPorts},
		{"nor does this", "applies to no Pod now", ingressFrom("x", "p", matching("app", "none"))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := New()
			for _, o := range []api.Object{empty, nodePort, newPod("x", "a", "node-1", "10.0.0.1"), tc.policy} {
				e.Apply(upsert(o))
			}
			e.Flush()
			if got := strings.Join(e.Policies()[0].Warnings, ", "); got != tc.want {
				t.Errorf("warns that it %q, want %q", got, tc.want)
			}
		})
	}
}

func TestDefinitions(t *testing.T) {
	e := New()
	for _, o := range append(baseState(), &api.Group{Kind: api.KindGroup, Namespace: "x", Name: "own", PodSelector: matching("app", "web")},
		&api.Group{Kind: api.KindClusterGroup, Name: "wide", NamespaceSelector: matching("team", "a")},
		&api.Group{Kind: api.KindClusterGroup, Name: "loose", Service: &api.NamespacedName{Namespace: "y", Name: "loose"}}, &api.Service{Namespace: "y", Name: "loose"}) {
		e.Apply(upsert(o))
	}
	e.Flush()
	var got []string
	for _, d := range e.Definitions(nil) {
		got = append(got, fmt.Sprint(d.Object.Ref(), " ", d.Members, " Pods, ", d.Blocks, " blocks, ", d.Policies, " policies ", d.Warnings))
	}
	want := `ClusterGroup blocks 0 Pods, 1 blocks, 1 policies []
ClusterGroup clients 2 Pods, 0 blocks, 1 policies []
ClusterGroup loose 0 Pods, 0 blocks, 0 policies [Service y/loose has no selector, and adds nothing]
ClusterGroup parent 3 Pods, 1 blocks, 1 policies [ClusterGroup none is not there, and adds nothing]
ClusterGroup served 1 Pods, 0 blocks, 1 policies []
ClusterGroup wide 3 Pods, 0 blocks, 0 policies []
Group x/own 2 Pods, 0 blocks, 0 policies []`
	if strings.Join(got, "\n") != want {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// What a policy applies to is counted alone as it is among all.
func TestEndpointsOfOnePolicy(t *testing.T) {
	e := New()
	for i, ns := range []string{"x", "x", "y"} {
		e.Apply(upsert(&api.Pod{Namespace: ns, Name: fmt.Sprint("p", i), Node: "n", IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}}))
	}
	for _, o := range ordering() {
		e.Apply(upsert(o))
	}
	e.Flush()
	counts := map[int]bool{}
	for _, p := range e.Policies() {
		counts[p.Endpoints] = true
		if got := e.Endpoints(p.Ref); got != p.Endpoints {
			t.Errorf("%s applies to %d, want %d", p.Ref, got, p.Endpoints)
		}
	}
	if !counts[0] || !counts[2] || !counts[3] {
		t.Errorf("the policies apply to %v Pods: this shows nothing", counts)
	}
	for _, ref := range []api.Ref{{Kind: api.KindNetworkPolicy, Namespace: "x", Name: "none"}, {Kind: api.KindNetworkPolicy, Namespace: "none", Name: "a"},
		{Kind: api.KindAdminNetworkPolicy, Name: "none"}, {Kind: api.KindTier, Name: "emergency"}} {
		if got := e.Endpoints(ref); got != 0 {
			t.Errorf("%s applies to %d", ref, got)
		}
	}
}
