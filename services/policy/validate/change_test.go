package validate

import (
	"fmt"
	"slices"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// step is a change: documents are created or replace what has their name, a
// "-" and a Ref deletes. What is accepted is there for the next step.
type step struct {
	document             string
	delete               api.Ref
	violations, warnings []string
}

func TestChange(t *testing.T) {
	put := func(document string) step { return step{document: document} }
	refused := func(document string, violations ...string) step {
		return step{document: document, violations: violations}
	}
	warned := func(document string, warnings ...string) step {
		return step{document: document, warnings: warnings}
	}
	gone := func(kind api.Kind, name string, violations ...string) step {
		return step{delete: api.Ref{Kind: kind, Name: name}, violations: violations}
	}
	var fill []step
	for i := range 14 {
		fill = append(fill, put(tier(fmt.Sprintf("t%02d", i), i)))
	}
	child := clusterGroup("child", "podSelector: {}")
	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"a tier is created, stays as it is, and goes", []step{put(tier("a", 1)), put(tier("a", 1)), gone(api.KindTier, "a")}},
		{"a priority that is taken", []step{put(tier("a", 1)), refused(tier("b", 1), "Tier b: spec.priority: 1 is the priority of Tier a too; write another"), put(tier("b", 2))}},
		{"a priority that is free again", []step{put(tier("a", 1)), gone(api.KindTier, "a"), put(tier("b", 1))}},
		{"a priority changes", []step{put(tier("a", 1)), refused(tier("a", 2), "Tier a: spec.priority: 2; the priority of a tier stays what it was, write 1 or create another tier")}},
		{"a tier too many", append(slices.Clone(fill), refused(tier("z", 200-1), "Tier z: there are 20 tiers already"), gone(api.KindTier, "t00"), put(tier("z", 199)))},
		{"the last tier may be written again", append(slices.Clone(fill), put(tier("t13", 13)))},
		{"a static tier", []step{put(tier("emergency", 50)), gone(api.KindTier, "emergency", "Tier emergency: a static tier cannot be deleted")}},
		{"a tier with policies", []step{put(tier("a", 1)), put(acnp("p", "tier: a, ingress: [{action: Drop}]")), put(annp("x", "q", "tier: a, egress: [{action: Allow}]")),
			gone(api.KindTier, "a", "Tier a: 2 of the policies refer to it: AntreaClusterNetworkPolicy p, AntreaNetworkPolicy x/q; delete them"),
			put(acnp("p", "tier: platform, ingress: [{action: Drop}]")), gone(api.KindTier, "a", "1 of the policies refer to it: AntreaNetworkPolicy x/q"),
			{delete: api.Ref{Kind: api.KindAntreaNetworkPolicy, Namespace: "x", Name: "q"}}, gone(api.KindTier, "a")}},
		{"a policy of a tier that is not there", []step{refused(acnp("p", "tier: a"), "spec.tier: Tier a does not exist; create it first, or write one of emergency, securityops,"), put(tier("a", 1)), put(acnp("p", "tier: a"))}},
		{"a policy of a static tier by its former name", []step{put(acnp("p", "tier: SecurityOps"))}},
		{"a policy without a tier", []step{put(acnp("p", ""))}},

		{"groups nest once", []step{put(child), put(clusterGroup("parent", "childGroups: [child]")), refused(clusterGroup("above", "childGroups: [parent]"), "ClusterGroup above: spec.childGroups[0]: ClusterGroup parent has children of its own (child)")}},
		{"a child gets children", []step{put(child), put(clusterGroup("other", "podSelector: {}")), put(clusterGroup("parent", "childGroups: [child]")),
			refused(clusterGroup("child", "childGroups: [other]"), "ClusterGroup child: spec.childGroups: the group is a child of ClusterGroup parent")}},
		{"a child is deleted", []step{put(child), put(clusterGroup("parent", "childGroups: [child]")), gone(api.KindClusterGroup, "child", "ClusterGroup child: the group is a child of ClusterGroup parent; remove it there first"),
			put(clusterGroup("parent", "podSelector: {}")), gone(api.KindClusterGroup, "child")}},
		{"a group that a policy names is deleted", []step{put(child), put(acnp("p", "appliedTo: [{group: child}]")), gone(api.KindClusterGroup, "child")}},
		{"a child that is not there", []step{warned(clusterGroup("parent", "childGroups: [child]"), "spec.childGroups[0]: ClusterGroup child does not exist"), put(child)}},
		{"a child that is not there comes with children", []step{warned(clusterGroup("parent", "childGroups: [child]"), "ClusterGroup child does not exist"), {document: clusterGroup("child", "childGroups: [other]"),
			violations: []string{"the group is a child of ClusterGroup parent"}, warnings: []string{"ClusterGroup other does not exist"}}}},

		{"a policy is warned of its own rules", []step{put(acnp("p", "ingress: [{action: Drop, name: a}]")), warned(acnp("q", "ingress: [{action: Allow, name: b}]"),
			`AntreaClusterNetworkPolicy q: spec.ingress[0]: the rule "b" decides nothing`, `q: spec.ingress[0]: the rule "b" (Allow) and rule "a" (spec.ingress[0]) of AntreaClusterNetworkPolicy p (Drop) have equal precedence`)}},
		{"a policy that wins a contradiction is warned too", []step{put(acnp("p", "ingress: [{action: Allow, name: a}]")), warned(acnp("q", "ingress: [{action: Drop, name: b}]"),
			`q: spec.ingress[0]: the rule "b" (Drop) and rule "a" (spec.ingress[0]) of AntreaClusterNetworkPolicy p (Allow) have equal precedence and match some of the same traffic; there Drop wins`)}},
		{"what a policy said before is forgotten", []step{put(acnp("p", "ingress: [{action: Drop, name: a}]")), put(acnp("p", "ingress: [{action: Drop, name: a, ports: [{port: 1}]}]")), put(acnp("q", "priority: 6, ingress: [{action: Allow, name: b}]"))}},
		{"a group changes what is covered", []step{put(clusterGroup("g", "podSelector: {matchLabels: {app: a}}")), put(clusterGroup("parent", "childGroups: [g]")), put(acnp("p", "ingress: [{action: Drop, name: a, from: [{group: parent}]}]")),
			put(acnp("q", "priority: 6, ingress: [{action: Allow, name: b, from: [{podSelector: {matchLabels: {app: b}}}]}]")), put(clusterGroup("g", "podSelector: {matchLabels: {app: b}}")),
			warned(acnp("q", "priority: 6, ingress: [{action: Allow, name: b, from: [{podSelector: {matchLabels: {app: b}}}]}]"), `the rule "b" decides nothing`)}},
		{"a Service changes what is covered", []step{put(clusterGroup("plain", "ipBlocks: [{cidr: 10.0.0.0/8}]")), put(service("ns", "s", "selector: {app: a}")), put(clusterGroup("g", "serviceReference: {name: s, namespace: ns}")), put(clusterGroup("parent", "childGroups: [g, plain]")),
			put(acnp("p", "ingress: [{action: Drop, name: a, from: [{group: parent}]}]")), put(service("ns", "s", "selector: {app: b}")),
			warned(acnp("q", "priority: 6, ingress: [{action: Allow, name: b, from: [{podSelector: {matchLabels: {app: b}}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ns}}}]}]"), `the rule "b" decides nothing`)}},
		{"an update does not stand against itself", []step{put(acnp("p", "ingress: [{action: Drop, name: a}]")), put(acnp("p", "ingress: [{action: Allow, name: a}]"))}},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := NewIndex()
			for i, s := range test.steps {
				var changed api.Object
				ref := s.delete
				if s.document != "" {
					changed = objects(t, s.document)[0]
					ref = changed.Ref()
				}
				violations, warnings := x.Change(x.Get(ref), changed)
				expect(t, fmt.Sprintf("violations of step %d", i), violations, s.violations)
				expect(t, fmt.Sprintf("warnings of step %d", i), warnings, s.warnings)
				switch {
				case len(violations) > 0:
				case changed != nil:
					x.Set(changed)
				default:
					x.Remove(ref)
				}
			}
		})
	}
}

// Asking changes nothing: an index says the same again.
func TestChangeLeavesTheIndexAsItIs(t *testing.T) {
	x := NewIndex(objects(t, acnp("p", "ingress: [{action: Drop, name: a}]"), acnp("q", "priority: 9, ingress: [{action: Drop, name: b, ports: [{port: 1}]}]"))...)
	changed := objects(t, acnp("q", "priority: 9, ingress: [{action: Pass, name: c}, {action: Drop, name: d}]"))[0]
	old := x.Get(changed.Ref())
	_, first := x.Change(old, changed)
	_, second := x.Change(old, changed)
	if len(first) != 2 || !slices.Equal(first, second) || x.Get(changed.Ref()) != old {
		t.Errorf("got %v, then %v", texts(first), texts(second))
	}
}

// tenThousand is a cluster of policies such as there may be: three in each of
// many Namespaces, some of the cluster, of which a few have no label at all.
func tenThousand() []api.Object {
	var list []api.Object
	label := func(key, value string) *api.Selector {
		return &api.Selector{MatchLabels: api.Labels{{Key: key, Value: value}}}
	}
	add := func(p *api.OrderedPolicy) {
		p.Tier, p.Ingress = "application", []api.OrderedRule{
			{Name: "a", Action: api.ActionAllow, Peers: []api.Peer{{PodSelector: label("app", fmt.Sprint("c", len(list)%7))}}, Traffic: []api.Traffic{{Protocol: api.ProtocolTCP, Port: 80}}},
			{Name: "b", Action: api.ActionDrop},
		}
		list = append(list, p)
	}
	for i := range 3000 {
		for j := range 3 {
			add(&api.OrderedPolicy{Kind: api.KindAntreaNetworkPolicy, Namespace: fmt.Sprintf("ns%d", i), Name: fmt.Sprintf("p%d", j), Priority: 5, AppliedTo: []api.Target{{PodSelector: label("app", fmt.Sprint("s", j))}}})
		}
	}
	for i := range 1000 {
		p := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: fmt.Sprintf("c%d", i), Priority: float64(10 + i%50), AppliedTo: []api.Target{{NamespaceSelector: label("team", fmt.Sprint("t", i%200)), PodSelector: label("role", fmt.Sprint("r", i))}}}
		if i%100 == 0 {
			p.AppliedTo[0] = api.Target{PodSelector: &api.Selector{}}
			p.Priority = 9000
		}
		add(p)
	}
	return list
}

func BenchmarkSet(b *testing.B) {
	list := tenThousand()
	for b.Loop() {
		if violations, _ := Set(list); len(violations) > 0 {
			b.Fatal(violations)
		}
	}
}

func BenchmarkChange(b *testing.B) {
	list := tenThousand()
	x := NewIndex(list...)
	p := *list[len(list)-1].(*api.OrderedPolicy)
	p.Name = "new"
	for b.Loop() {
		if violations, _ := x.Change(nil, &p); len(violations) > 0 {
			b.Fatal(violations)
		}
	}
}

// Conflicts only reads: the policy service answers several askers at once.
func TestConflictsOfSeveralAskers(t *testing.T) {
	x := NewIndex(objects(t, acnp("p", "ingress: [{action: Drop, name: a}]"), acnp("q", "ingress: [{action: Allow, name: b}]"))...)
	answers := make(chan int)
	for range 4 {
		go func() { answers <- len(x.Conflicts()) }()
	}
	for range 4 {
		if n := <-answers; n != 2 {
			t.Errorf("%d policies are in conflict, want 2", n)
		}
	}
}
