package validate

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// objects decodes YAML documents, each of which must be valid by itself.
func objects(t *testing.T, documents ...string) []api.Object {
	t.Helper()
	m, err := api.Decode([]byte(strings.Join(documents, "\n---\n")))
	if err != nil {
		t.Fatal(err)
	}
	var list []api.Object
	for _, d := range m.Objects {
		list = append(list, d.Object)
	}
	return list
}

func object(apiVersion, kind, meta, spec string) string {
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {%s}\nspec: {%s}", apiVersion, kind, meta, spec)
}

func antrea(kind, meta, spec string) string {
	return object("crd.antrea.io/v1beta1", kind, meta, spec)
}

func tier(name string, priority int) string {
	return antrea("Tier", "name: "+name, fmt.Sprintf("priority: %d", priority))
}

// acnp applies to all Pods unless the spec has an appliedTo.
func acnp(name, spec string) string {
	if !strings.Contains(spec, "appliedTo") {
		spec += ", appliedTo: [{podSelector: {}}]"
	}
	if !strings.Contains(spec, "priority") {
		spec += ", priority: 5"
	}
	return antrea("ClusterNetworkPolicy", "name: "+name, strings.TrimPrefix(spec, ", "))
}

func annp(namespace, name, spec string) string {
	return strings.Replace(strings.Replace(acnp(name, spec), "ClusterNetworkPolicy", "NetworkPolicy", 1), "name: "+name, "name: "+name+", namespace: "+namespace, 1)
}

func staged(document string) string {
	return strings.Replace(document, "metadata: {", "metadata: {annotations: {weir.dev/enforcement: staged}, ", 1)
}

func clusterGroup(name, spec string) string { return antrea("ClusterGroup", "name: "+name, spec) }
func group(namespace, name, spec string) string {
	return antrea("Group", "name: "+name+", namespace: "+namespace, spec)
}

func pod(namespace, name, label string) string {
	return object("v1", "Pod", fmt.Sprintf("name: %s, namespace: %s, labels: {app: %s}", name, namespace, label), "")
}

func namespace(name string) string { return object("v1", "Namespace", "name: "+name, "") }

func service(namespace, name, spec string) string {
	return object("v1", "Service", "name: "+name+", namespace: "+namespace, spec+", ports: [{port: 80}]")
}

func networkPolicy(namespace, name, spec string) string {
	return object("networking.k8s.io/v1", "NetworkPolicy", "name: "+name+", namespace: "+namespace, spec)
}

func texts(list []api.Violation) []string {
	out := []string{}
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// expect compares what was said with parts of it, in order.
func expect(t *testing.T, what string, got []api.Violation, want []string) {
	t.Helper()
	if !slices.EqualFunc(got, want, func(v api.Violation, part string) bool { return strings.Contains(v.String(), part) }) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(texts(got), "\n"), strings.Join(want, "\n"))
	}
}

// guarded keeps warnings away that a test is not about.
const guarded = "ingress: [{action: Drop}]"

func TestSet(t *testing.T) {
	var tiers []string
	for i := range 15 {
		tiers = append(tiers, tier(fmt.Sprintf("t%02d", i), i))
	}
	const isolate = "podSelector: {}, policyTypes: [Ingress]"
	for _, test := range []struct {
		name                 string
		documents            []string
		violations, warnings []string
	}{
		{"nothing", nil, nil, nil},
		{"tiers that differ", []string{tier("a", 1), tier("b", 2)}, nil, nil},
		{"the younger of two tiers", []string{antrea("Tier", "name: a, creationTimestamp: '2026-01-02T00:00:00Z'", "priority: 1"), antrea("Tier", "name: b, creationTimestamp: '2026-01-01T00:00:00Z'", "priority: 1"), tier("c", 1)},
			[]string{"Tier a: spec.priority: 1 is the priority of Tier b too; write another", "Tier c: spec.priority: 1 is the priority of Tier b too; write another"}, nil},
		{"two tiers of one priority", []string{tier("b", 1), tier("a", 1)}, []string{"Tier b: spec.priority: 1 is the priority of Tier a too; write another"}, nil},
		{"twenty tiers", tiers[:14], nil, nil},
		{"a tier too many", tiers, []string{"Tier t14: there are 20 tiers already, the 6 static ones included"}, nil},
		{"a tier that is not there", []string{acnp("p", "tier: mine, ingress: [{action: Drop}]")}, nil, []string{"AntreaClusterNetworkPolicy p: spec.tier: Tier mine does not exist; the policy is held back, not enforced, until the tier appears"}},
		{"a tier that is there", []string{tier("mine", 1), acnp("p", "tier: mine, "+guarded)}, nil, nil},
		{"a tier that is refused is not there", []string{tier("a", 1), tier("b", 1), acnp("p", "tier: b, "+guarded)}, []string{"Tier b"}, []string{"spec.tier: Tier b does not exist"}},

		{"one level of nesting", []string{clusterGroup("a", "childGroups: [b]"), clusterGroup("b", "podSelector: {}")}, nil, nil},
		{"a child with children", []string{clusterGroup("a", "childGroups: [c, b]"), clusterGroup("b", "childGroups: [c]"), clusterGroup("c", "podSelector: {}")}, []string{"ClusterGroup a: spec.childGroups[1]: ClusterGroup b has children of its own (c)"}, nil},
		{"groups of two Namespaces", []string{group("x", "a", "childGroups: [b]"), group("v", "b", "childGroups: [c]"), group("v", "c", "podSelector: {}")}, nil, []string{"Group x/a: spec.childGroups[0]: Group x/b does not exist"}},

		{"groups that are not there", []string{acnp("p", "appliedTo: [{group: a}], ingress: [{action: Drop, from: [{group: b}]}]"), annp("x", "p", "ingress: [{action: Allow, from: [{group: b}]}]"), clusterGroup("c", "childGroups: [d]")}, nil,
			[]string{"AntreaClusterNetworkPolicy p: spec.appliedTo[0].group: ClusterGroup a does not exist", "p: spec.ingress[0].from[0].group: ClusterGroup b does not exist", "AntreaNetworkPolicy x/p: spec.ingress[0].from[0].group: Group x/b does not exist", "ClusterGroup c: spec.childGroups[0]: ClusterGroup d does not exist"}},
		{"groups to which no policy applies", []string{clusterGroup("a", "ipBlocks: [{cidr: 10.0.0.0/8}]"), group("x", "b", "namespaceSelector: {}"), acnp("p", "appliedTo: [{group: a}]"), annp("x", "p", "appliedTo: [{group: b}]")}, nil,
			[]string{"spec.appliedTo[0].group: ClusterGroup a holds addresses, to which no policy applies", "spec.appliedTo[0].group: Group x/b selects Pods of other Namespaces"}},
		{"Services that are not there", []string{acnp("p", "egress: [{action: Drop, toServices: [{name: s, namespace: ns}]}]"), acnp("q", "appliedTo: [{service: {name: s, namespace: ns}}]"), clusterGroup("c", "serviceReference: {name: s, namespace: ns}")}, nil,
			[]string{"p: spec.egress[0].toServices[0]: Service ns/s does not exist", "q: spec.appliedTo[0].service: Service ns/s does not exist", "ClusterGroup c: spec.serviceReference: Service ns/s does not exist"}},
		{"Services of another kind", []string{service("ns", "headless", "clusterIP: None, selector: {app: a}"), service("ns", "bare", "type: ClusterIP"),
			acnp("p", "egress: [{action: Drop, toServices: [{name: headless, namespace: ns}]}]"), acnp("q", "appliedTo: [{service: {name: bare, namespace: ns}}]"), clusterGroup("c", "serviceReference: {name: bare, namespace: ns}")}, nil,
			[]string{"p: spec.egress[0].toServices[0]: Service ns/headless is headless", "q: spec.appliedTo[0].service: Service ns/bare is of type ClusterIP and has no node port", "ClusterGroup c: spec.serviceReference: Service ns/bare has no selector"}},
		{"a Service that is a name", []string{service("ns", "name", "type: ExternalName, externalName: example.com"), acnp("p", "egress: [{action: Drop, toServices: [{name: name, namespace: ns}]}]")}, nil,
			[]string{"p: spec.egress[0].toServices[0]: Service ns/name is a name for another host"}},
		{"Services as they should be", []string{service("ns", "s", "type: NodePort, selector: {app: a}"),
			acnp("p", "egress: [{action: Drop, toServices: [{name: s, namespace: ns}]}]"), acnp("q", "appliedTo: [{service: {name: s, namespace: ns}}]"), clusterGroup("c", "serviceReference: {name: s, namespace: ns}")}, nil, nil},
		{"the name of a Service", []string{service("ns", "s", "clusterIP: 10.96.0.1"), service("ns", "h", "clusterIP: None"), acnp("p", "egress: [{action: Allow, to: [{fqdn: S.ns.svc.cluster.local}, {fqdn: h.ns.svc.cluster.local}, {fqdn: s.other.org}, {fqdn: '*.svc.cluster.local'}, {fqdn: '*'}, {fqdn: 'h.*.svc'}]}]")}, nil,
			[]string{`spec.egress[0].to[0].fqdn: "s.ns.svc.cluster.local" is a name of Service ns/s, whose traffic is judged by the endpoint`, `spec.egress[0].to[3].fqdn: "*.svc.cluster.local" is a name of Service ns/s`}},

		{"selectors that match", []string{pod("x", "p", "web"), acnp("p", "appliedTo: [{podSelector: {matchLabels: {app: web}}}], ingress: [{action: Drop, from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}}]}]")}, nil, nil},
		{"selectors that match nothing", []string{pod("x", "p", "web"), acnp("p", "appliedTo: [{podSelector: {matchLabels: {app: wbe}}}], ingress: [{action: Drop, from: [{namespaceSelector: {matchLabels: {antrea.io/metadata.name: z}}}, {serviceAccount: {name: a, namespace: x}}]}]"),
			annp("v", "p", "ingress: [{action: Drop}]"), clusterGroup("c", "podSelector: {matchLabels: {app: wbe}}"), networkPolicy("x", "p", "podSelector: {matchLabels: {app: wbe}}, ingress: [{from: [{podSelector: {matchLabels: {app: bwe}}}]}]")}, nil,
			[]string{"NetworkPolicy x/p: spec.podSelector: matches no Pod now", "x/p: spec.ingress[0].from[0]: matches no Pod now", "AntreaClusterNetworkPolicy p: spec.appliedTo[0]: matches no Pod now", "p: spec.ingress[0].from[0]: matches no Pod now", "p: spec.ingress[0].from[1].serviceAccount: no Pod runs as ServiceAccount x/a",
				"AntreaNetworkPolicy v/p: spec.appliedTo[0]: matches no Pod now", "ClusterGroup c: spec.podSelector: matches no Pod now"}},
		{"selectors where no Pod is known", []string{acnp("p", "appliedTo: [{podSelector: {matchLabels: {app: wbe}}}]")}, nil, nil},

		{"Namespaces that nothing guards", []string{namespace("x"), namespace("v"), namespace("z"), namespace("empty"), pod("x", "p", "a"), pod("v", "p", "a"), pod("z", "p", "a"), networkPolicy("x", "p", isolate), annp("v", "p", guarded)}, nil,
			[]string{"Namespace z: no policy denies anything to its Pods; write a NetworkPolicy"}},
		{"Namespaces that a policy of the cluster guards", []string{namespace("x"), pod("x", "p", "a"), acnp("p", guarded)}, nil, nil},
		{"Namespaces without any policy", []string{namespace("x"), pod("x", "p", "a")}, nil, nil},
		{"a staged policy guards nothing", []string{namespace("x"), pod("x", "p", "a"), staged(acnp("p", guarded))}, nil, []string{"Namespace x: no policy denies"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			violations, warnings := Set(objects(t, test.documents...))
			expect(t, "violations", violations, test.violations)
			expect(t, "warnings", warnings, test.warnings)
		})
	}
}

// What rules mean beside each other.
func TestRules(t *testing.T) {
	web := "appliedTo: [{podSelector: {matchLabels: {app: web}}}]"
	const onAll = "egress: [{action: Allow, name: dns, ports: [{protocol: UDP, port: 53}]}, {action: Drop, name: rest}]"
	for _, test := range []struct {
		name      string
		documents []string
		want      []string
	}{
		{"rules in good order", []string{acnp("p", "ingress: [{action: Allow, name: a, ports: [{port: 80}]}, {action: Drop, name: b}]")}, nil},
		{"a rule behind one that has all", []string{acnp("p", "ingress: [{action: Drop, name: a}, {action: Allow, name: b, ports: [{port: 80}]}]")},
			[]string{`AntreaClusterNetworkPolicy p: spec.ingress[1]: the rule "b" decides nothing: all that it matches is decided before, by rule "a" (spec.ingress[0]) (Drop); move it before that rule, or remove it`}},
		{"a rule behind two that have all together", []string{acnp("p", "ingress: [{action: Drop, name: a, ports: [{port: 1, endPort: 100}]}, {action: Allow, name: b, ports: [{port: 101, endPort: 200}]}, {action: Drop, name: c, ports: [{port: 50, endPort: 150}]}]")},
			[]string{`spec.ingress[2]: the rule "c" decides nothing: all that it matches is decided before, by the rules "a" (spec.ingress[0]) (Drop), "b" (spec.ingress[1]) (Allow) together`}},
		{"a rule behind one of another policy", []string{acnp("p", "tier: emergency, ingress: [{action: Pass, name: a}]"), annp("x", "q", "ingress: [{action: Drop, name: b}]")},
			[]string{`AntreaNetworkPolicy x/q: spec.ingress[0]: the rule "b" decides nothing: all that it matches is decided before, by rule "a" (spec.ingress[0]) of AntreaClusterNetworkPolicy p (Pass)`}},
		{"by the priorities of policies", []string{acnp("p", "priority: 2, ingress: [{action: Drop, name: a}]"), acnp("q", "priority: 1, ingress: [{action: Drop, name: b, from: [{podSelector: {}}]}]")}, nil},
		{"by the priorities of tiers", []string{tier("late", 240), tier("early", 10), acnp("p", "tier: late, ingress: [{action: Drop, name: a}]"), acnp("q", "tier: early, priority: 9, ingress: [{action: Allow, name: b}]")},
			[]string{`AntreaClusterNetworkPolicy p: spec.ingress[0]: the rule "a" decides nothing`}},
		{"the directions are apart", []string{acnp("p", "ingress: [{action: Drop, name: a}], egress: [{action: Allow, name: b}]")}, nil},
		{"the baseline is another step", []string{acnp("p", "ingress: [{action: Drop, name: a}]"), acnp("q", "tier: baseline, ingress: [{action: Drop, name: b}]")}, nil},
		{"rules that match nothing by a missing group are not covered", []string{acnp("p", "ingress: [{action: Drop, name: a}, {action: Allow, name: b, from: [{group: g}]}]")}, []string{"from[0].group: ClusterGroup g does not exist"}},
		{"groups are what they select", []string{clusterGroup("g", "childGroups: [h, i]"), clusterGroup("h", "podSelector: {matchLabels: {app: a}}"), clusterGroup("i", "ipBlocks: [{cidr: 10.0.0.0/8}]"),
			acnp("p", "ingress: [{action: Drop, name: a, from: [{group: g}]}, {action: Allow, name: b, from: [{podSelector: {matchLabels: {app: a}}}, {ipBlock: {cidr: 10.1.0.0/16}}]}]")}, []string{`spec.ingress[1]: the rule "b" decides nothing`}},
		{"a Service's Pods are what its selector selects", []string{service("ns", "s", "selector: {app: a}"), clusterGroup("g", "serviceReference: {name: s, namespace: ns}"),
			acnp("p", "ingress: [{action: Drop, name: a, from: [{podSelector: {matchLabels: {app: a}}}]}, {action: Allow, name: b, from: [{group: g}]}]")}, []string{`spec.ingress[1]: the rule "b" decides nothing`}},
		{"a Namespace by its name and by itself", []string{acnp("p", "priority: 1, appliedTo: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}}], ingress: [{action: Drop, name: a}]"), annp("x", "q", "ingress: [{action: Allow, name: b}]")}, []string{`x/q: spec.ingress[0]: the rule "b" decides nothing`}},
		{"values that a selector leaves out", []string{acnp("p", "priority: 1, appliedTo: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}], ingress: [{action: Drop, name: a}]"), acnp("q", "priority: 2, "+web+", ingress: [{action: Drop, name: b}]"), acnp("r", "priority: 3, ingress: [{action: Drop, name: c}]")},
			[]string{`r: spec.ingress[0]: the rule "c" decides nothing: all that it matches is decided before, by the rules "a" (spec.ingress[0]) of AntreaClusterNetworkPolicy p (Drop), "b" (spec.ingress[0]) of AntreaClusterNetworkPolicy q (Drop) together`}},
		{"upstream policies come behind the tiers", []string{acnp("p", "ingress: [{action: Drop, name: a}]"),
			object("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", "name: u", "priority: 1, subject: {namespaces: {}}, ingress: [{name: b, action: Allow, from: [{namespaces: {}}]}]")}, []string{`AdminNetworkPolicy u: spec.ingress[0]: the rule "b" decides nothing`}},
		{"a staged rule is judged in the staged world", []string{acnp("p", "priority: 1, ingress: [{action: Drop, name: a}]"), staged(acnp("q", "priority: 2, ingress: [{action: Drop, name: b}]"))}, []string{`q: spec.ingress[0]: the rule "b" decides nothing`}},
		{"an enforced rule is not behind a staged one", []string{staged(acnp("p", "priority: 1, ingress: [{action: Drop, name: a}]")), acnp("q", "priority: 2, ingress: [{action: Drop, name: b}]")}, nil},

		{"equal precedence, and what both match", []string{acnp("p", web+", ingress: [{action: Allow, name: a, from: [{podSelector: {matchLabels: {app: client}}}]}]"), acnp("q", web+", ingress: [{action: Drop, name: b, from: [{podSelector: {matchLabels: {role: dev}}}]}]")},
			[]string{`AntreaClusterNetworkPolicy p: spec.ingress[0]: the rule "a" (Allow) and rule "b" (spec.ingress[0]) of AntreaClusterNetworkPolicy q (Drop) have equal precedence and match some of the same traffic; there Drop wins`}},
		{"equal precedence, and nothing in common", []string{acnp("p", web+", ingress: [{action: Allow, name: a, from: [{podSelector: {matchLabels: {app: client}}}]}]"), acnp("q", web+", ingress: [{action: Drop, name: b, from: [{podSelector: {matchLabels: {app: dev}}}]}]")}, nil},
		{"equal precedence, and the same action", []string{acnp("p", web+", ingress: [{action: Drop, name: a, ports: [{port: 1}]}]"), acnp("q", web+", ingress: [{action: Drop, name: b, ports: [{protocol: UDP}]}]")}, nil},
		{"other indices", []string{acnp("p", "ingress: [{action: Allow, name: a, ports: [{port: 1}]}]"), acnp("q", "ingress: [{action: Drop, name: b, ports: [{port: 2}]}, {action: Drop, name: c}]")}, nil},
		{"a named port may be the number of another rule", []string{acnp("p", "ingress: [{action: Reject, name: a, ports: [{port: web}]}]"), acnp("q", "ingress: [{action: Pass, name: b, ports: [{port: 80}]}]")}, []string{`q: spec.ingress[0]: the rule "b" (Pass) and rule "a" (spec.ingress[0]) of AntreaClusterNetworkPolicy p (Reject) have equal precedence and match some of the same traffic; there Reject wins`}},

		{"a default deny with a way to DNS", []string{acnp("p", onAll)}, nil},
		{"a default deny without", []string{acnp("p", "egress: [{action: Allow, name: web, ports: [{port: 443}]}, {action: Drop, name: rest}]")}, []string{`spec.egress[1]: the rule "rest" denies all egress, and no rule before it lets the Pods ask for names`}},
		{"a way to DNS in a later policy is none", []string{acnp("p", "priority: 1, egress: [{action: Drop, name: rest}]"), acnp("q", "priority: 2, egress: [{action: Allow, name: dns, ports: [{port: 53}]}]")}, []string{`p: spec.egress[0]: the rule "rest" denies all egress`, `q: spec.egress[0]: the rule "dns" decides nothing`}},
		{"a way to DNS for other Pods is none", []string{acnp("p", "priority: 1, appliedTo: [{podSelector: {matchLabels: {app: other}}}], egress: [{action: Allow, name: dns, ports: [{port: 53}]}]"), acnp("q", "priority: 2, "+web+", egress: [{action: Drop, name: rest}]")}, []string{`q: spec.egress[0]: the rule "rest" denies all egress`}},
		{"a NetworkPolicy's way to DNS before the baseline", []string{networkPolicy("x", "dns", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]"), annp("x", "p", "tier: baseline, egress: [{action: Drop, name: rest}]")}, nil},
		{"a NetworkPolicy that denies all egress", []string{networkPolicy("x", "deny", "podSelector: {}, policyTypes: [Egress]")}, []string{"NetworkPolicy x/deny: spec.egress: the policy denies all egress, and no other lets the Pods ask for names"}},
		{"a NetworkPolicy beside one for DNS", []string{networkPolicy("x", "deny", "podSelector: {}, policyTypes: [Egress]"), networkPolicy("x", "dns", "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]")}, nil},
		{"a NetworkPolicy of ingress alone", []string{networkPolicy("x", "deny", "podSelector: {}, policyTypes: [Ingress]")}, nil},

		{"a way to the metadata of a cloud", []string{acnp("p", "egress: [{action: Allow, name: out, to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}, {action: Drop, name: rest}]")}, []string{`spec.egress[0]: the rule "out" lets Pods reach the metadata of a cloud's machine (169.254.169.254)`}},
		{"the metadata under except", []string{acnp("p", "egress: [{action: Allow, name: out, to: [{ipBlock: {cidr: 0.0.0.0/0, except: [169.254.0.0/16]}}]}, {action: Drop, name: rest}]")}, nil},
		{"the metadata dropped before", []string{acnp("p", "egress: [{action: Drop, name: md, to: [{ipBlock: {cidr: 169.254.169.254/32}}]}, {action: Allow, name: out, to: [{ipBlock: {cidr: 0.0.0.0/0}}]}, {action: Drop, name: rest}]")}, nil},
		{"other ports than the metadata's", []string{acnp("p", "egress: [{action: Allow, name: out, to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 53}, {port: 443}]}, {action: Drop, name: rest}]")}, nil},
		{"egress that nothing restricts", []string{acnp("p", "egress: [{action: Allow, name: out, to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]")}, nil},
		{"a NetworkPolicy that lets out to anywhere but Pods", []string{networkPolicy("x", "p", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: '::/0'}}, {ipBlock: {cidr: 0.0.0.0/0}}]}]")}, []string{"NetworkPolicy x/p: spec.egress[0]: the rule lets Pods reach the metadata of a cloud's machine (169.254.169.254 and fd00:ec2::254)"}},
		{"a NetworkPolicy that lets out everything", []string{networkPolicy("x", "p", "podSelector: {}, policyTypes: [Egress], egress: [{}]")}, nil},
		{"a NetworkPolicy behind a Drop of the metadata", []string{acnp("p", "egress: [{action: Drop, name: md, to: [{ipBlock: {cidr: 169.254.169.254/32}}]}]"), networkPolicy("x", "p", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]")}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			violations, warnings := Set(objects(t, test.documents...))
			expect(t, "violations", violations, nil)
			expect(t, "warnings", warnings, test.want)
		})
	}
}

// What is refused among others is refused whatever the order in which it is read.
func TestSetDoesNotDependOnOrder(t *testing.T) {
	list := objects(t, tier("b", 1), tier("a", 1), clusterGroup("a", "childGroups: [b]"), clusterGroup("b", "childGroups: [c]"), clusterGroup("c", "podSelector: {}"),
		acnp("p", "ingress: [{action: Drop, name: a}]"), acnp("q", "priority: 9, ingress: [{action: Allow, name: b, from: [{group: c}]}]"), acnp("r", "tier: b, ingress: [{action: Drop}]"))
	violations, warnings := Set(list)
	if len(violations) != 2 || len(warnings) != 2 {
		t.Fatalf("got %v and %v", texts(violations), texts(warnings))
	}
	slices.Reverse(list)
	again, warned := Set(list)
	if !slices.Equal(again, violations) || !slices.Equal(warned, warnings) {
		t.Errorf("reversed: %v and %v, was %v and %v", texts(again), texts(warned), texts(violations), texts(warnings))
	}
}

// What is in force of a group that nests twice is what its author meant: the leaves
// of its children, however deep, each once, in the order in which they are met. A
// circle adds nothing, and a name of which there is no group stays.
func TestNestedGroupsAreMadeFlat(t *testing.T) {
	for _, test := range []struct {
		name   string
		groups []string
		want   map[string][]string // Children in force of those that are refused.
	}{
		{"once", []string{clusterGroup("a", "childGroups: [b, none]"), clusterGroup("b", "podSelector: {}")}, nil},
		{"twice", []string{clusterGroup("a", "childGroups: [b, d, c]"), clusterGroup("b", "childGroups: [c, none]"), clusterGroup("c", "podSelector: {}"), clusterGroup("d", "podSelector: {}")}, map[string][]string{"a": {"c", "none", "d"}}},
		{"three times", []string{clusterGroup("a", "childGroups: [b]"), clusterGroup("b", "childGroups: [c]"), clusterGroup("c", "childGroups: [d]"), clusterGroup("d", "podSelector: {}")}, map[string][]string{"a": {"d"}, "b": {"d"}}},
		{"each a child of the other", []string{clusterGroup("a", "childGroups: [b, c]"), clusterGroup("b", "childGroups: [a]"), clusterGroup("c", "podSelector: {}")}, map[string][]string{"a": {"c"}, "b": {"c"}}},
		{"in a circle alone", []string{clusterGroup("a", "childGroups: [b]"), clusterGroup("b", "childGroups: [a]")}, map[string][]string{"a": nil, "b": nil}},
	} {
		t.Run(test.name, func(t *testing.T) {
			list := objects(t, test.groups...)
			violations, flat := Refused(list)
			got := map[string][]string{}
			for ref, g := range flat {
				got[ref.Name] = g.Children
			}
			if len(got)+len(test.want) > 0 && !reflect.DeepEqual(got, test.want) {
				t.Errorf("in force are %v, want %v", got, test.want)
			}
			for _, v := range violations {
				if flat[v.Object] == nil {
					t.Errorf("of %s nothing is in force", v)
				}
			}
			if again, _ := Refused(Standing(list, violations, flat)); len(again) > 0 {
				t.Errorf("what is in force is refused: %v", texts(again))
			}
			slices.Reverse(list)
			if _, again := Refused(list); !reflect.DeepEqual(again, flat) {
				t.Errorf("in another order %v are in force, and were %v", again, flat)
			}
		})
	}
}

func FuzzSet(f *testing.F) {
	f.Add([]byte(tier("a", 1) + "\n---\n" + acnp("p", "tier: a, ingress: [{action: Drop, from: [{namespaces: {sameLabels: [x]}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]")))
	f.Add([]byte(clusterGroup("g", "childGroups: [h]") + "\n---\n" + clusterGroup("h", "childGroups: [g]") + "\n---\n" + acnp("p", "appliedTo: [{group: g}], egress: [{action: Allow, to: [{fqdn: '*.a*'}, {group: h}]}, {action: Drop}]")))
	f.Add([]byte(networkPolicy("x", "p", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: '::/0'}}], ports: [{port: web}]}]")))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := api.Decode(text)
		var invalid *api.Invalid
		if err != nil && !errors.As(err, &invalid) {
			t.Fatal(err)
		}
		var list []api.Object
		for _, d := range m.Objects {
			list = append(list, d.Object)
		}
		violations, _ := Set(list)
		// Change comes to the same as Set where the object is the last to come.
		x := NewIndex()
		for _, o := range list {
			x.Change(nil, o)
			x.Set(o)
		}
		for _, o := range list {
			x.Change(o, nil)
			x.Remove(o.Ref())
		}
		if n := len(x.users) + len(x.policies) + len(x.equal) + len(x.byNamespace); n > 0 {
			t.Fatalf("%d entries are left in an index from which everything was removed", n)
		}
		for _, v := range violations {
			if v.Message == "" {
				t.Fatalf("a violation without message: %v", v)
			}
		}
	})
}

// Where the budget does not do, less is said, and nothing that is not so.
func TestASpentBudgetSaysNothingWrong(t *testing.T) {
	list := objects(t, namespace("x"), pod("x", "p", "web"),
		acnp("p", "ingress: [{action: Drop, name: a, ports: [{port: 1, endPort: 100}]}, {action: Allow, name: b, ports: [{port: 101, endPort: 200}]}, {action: Drop, name: c, ports: [{port: 50, endPort: 150}]}]"),
		acnp("q", "ingress: [{action: Allow, name: a, from: [{namespaceSelector: {matchExpressions: [{key: t, operator: Exists}]}}]}]"),
		acnp("r", "priority: 7, egress: [{action: Drop, name: md, to: [{ipBlock: {cidr: 169.254.169.254/32}}], ports: [{port: 80}]}, {action: Allow, name: out, to: [{ipBlock: {cidr: 0.0.0.0/0}}]}, {action: Drop, name: rest}]"),
		acnp("s", "priority: 8, appliedTo: [{podSelector: {matchLabels: {app: web}}}], egress: [{action: Allow, name: out, to: [{ipBlock: {cidr: '::/0'}}]}, {action: Drop, name: rest}]"),
		networkPolicy("x", "p", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"),
		networkPolicy("x", "q", "podSelector: {}, policyTypes: [Egress]"))
	_, full := Set(list)
	said := map[int]bool{}
	for looks := range 300 {
		x := NewIndex(list...)
		x.budget.left = looks
		f := &findings{}
		for _, o := range sorted(list) {
			x.warn(f, o, true)
		}
		for _, v := range f.warnings {
			about := func(w api.Violation) bool { return w.Object == v.Object && w.Field == v.Field }
			if !slices.ContainsFunc(full, about) {
				t.Fatalf("after %d looks: %s, which is not so:\n%s", looks, v, strings.Join(texts(full), "\n"))
			}
		}
		said[len(f.warnings)] = true
	}
	if len(full) < 5 || !said[len(full)] || len(said) < 3 {
		t.Errorf("%d warnings in all, and these numbers with less: %v", len(full), said)
	}
}
