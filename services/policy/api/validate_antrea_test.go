package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func antrea(kind, meta, spec string) string {
	return fmt.Sprintf("apiVersion: crd.antrea.io/v1beta1\nkind: %s\nmetadata: {%s}\nspec: {%s}\n", kind, meta, spec)
}

// acnp is a ClusterNetworkPolicy p, annp a NetworkPolicy own/p; with that many
// fields of the spec, of which appliedTo and priority are there already.
func acnp(spec string) string {
	return antrea("ClusterNetworkPolicy", "name: p", "priority: 5, appliedTo: [{podSelector: {}}], "+spec)
}
func annp(spec string) string {
	return antrea("NetworkPolicy", "name: p, namespace: own", "priority: 5, appliedTo: [{podSelector: {}}], "+spec)
}
func bareACNP(spec string) string { return antrea("ClusterNetworkPolicy", "name: p", spec) }
func bareANNP(spec string) string { return antrea("NetworkPolicy", "name: p, namespace: own", spec) }
func appliedTo(entries string) string {
	return bareACNP("priority: 5, appliedTo: [" + entries + "]")
}

// in and out have one rule.
func in(rule string) string  { return acnp("ingress: [{action: Drop, " + rule + "}]") }
func out(rule string) string { return acnp("egress: [{action: Drop, " + rule + "}]") }
func allowOut(rule string) string {
	return acnp("egress: [{action: Allow, " + rule + "}]")
}
func onNodes(spec string) string {
	return bareACNP("priority: 5, appliedTo: [{nodeSelector: {}}], " + spec)
}
func onService(spec string) string {
	return bareACNP("priority: 5, appliedTo: [{service: {name: s, namespace: ns}}], " + spec)
}
func aTier(name string, priority int) string {
	return antrea("Tier", "name: "+name, fmt.Sprintf("priority: %d", priority))
}
func clusterGroup(spec string) string { return antrea("ClusterGroup", "name: g", spec) }
func ownGroup(spec string) string     { return antrea("Group", "name: g, namespace: own", spec) }

// What one object by itself must be, as the reference's validation.md has it. No
// want: it is accepted.
func TestAntreaObjects(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string // Each a part of one violation, in order.
	}{
		{"a tier", aTier("mine", 10), nil},
		{"the first and the last priority of a tier", aTier("mine", 0) + "---\n" + aTier("other", 249), nil},
		{"a static tier as it is", aTier("emergency", 50) + "---\n" + aTier("baseline", 253), nil},
		{"a static tier otherwise", aTier("emergency", 51), []string{"Tier emergency: spec.priority: 51; the static tier emergency has priority 50 for good, write that"}},
		{"a tier's priority below and above", aTier("a", -1) + "---\n" + aTier("b", 256), []string{"Tier a: spec.priority: -1 is no priority; write a number from 0 to 249", "Tier b: spec.priority: 256 is no"}},
		{"a reserved priority", aTier("a", 251) + "---\n" + aTier("b", 252) + "---\n" + aTier("c", 254) + "---\n" + aTier("d", 255), []string{"251 is reserved", "252 is reserved", "254 is reserved", "255 is reserved"}},
		{"a priority behind application", aTier("a", 250) + "---\n" + aTier("b", 253), []string{"250 is behind the tiers that may be added", "253 is behind"}},
		{"the priority of a static tier", aTier("a", 100), []string{"100 is the priority of the static tier securityops; write"}},

		{"an empty policy", acnp(""), nil},
		{"a tier in its former name", acnp("tier: SecurityOps"), nil},
		{"the syntax of names in references", acnp(`tier: "A b", ingress: [{action: Drop, from: [{group: "A/b c"}]}]`), nil},
		{"priorities", bareACNP("priority: 1.0, appliedTo: [{podSelector: {}}]") + "---\n" + antrea("ClusterNetworkPolicy", "name: q", "priority: 10000, appliedTo: [{podSelector: {}}]"), nil},
		{"no priority", bareACNP("appliedTo: [{podSelector: {}}]"), []string{"AntreaClusterNetworkPolicy p: spec.priority: missing; write a number from 1 to 10000"}},
		{"a priority outside", bareACNP("priority: 0.9, appliedTo: [{podSelector: {}}]") + "---\n" + bareANNP("priority: 10000.1, appliedTo: [{podSelector: {}}]"), []string{"spec.priority: 0.9 is no priority", "AntreaNetworkPolicy own/p: spec.priority: 10000.1 is no priority"}},
		{"every action", acnp("ingress: [{action: Allow}, {action: Drop}, {action: Reject}, {action: Pass}]"), nil},
		{"no action", acnp("ingress: [{}]"), []string{"spec.ingress[0].action: missing; write Allow, Drop, Reject or Pass"}},
		{"an unknown action", acnp("egress: [{action: allow}]"), []string{`spec.egress[0].action: "allow" is unknown; write Allow`}},
		{"Pass in the baseline", acnp("tier: Baseline, egress: [{action: Pass}, {action: Drop}]"), []string{"spec.egress[0].action: Pass in the baseline tier"}},
		{"Pass elsewhere", acnp("tier: emergency, egress: [{action: Pass}]"), nil},
		{"names that differ", acnp("ingress: [{action: Drop, name: a}], egress: [{action: Drop, name: b}]"), nil},
		{"one name in both directions", acnp("ingress: [{action: Drop, name: a}], egress: [{action: Drop}, {action: Drop, name: a}]"), []string{`spec.egress[1].name: "a" is the name of spec.ingress[0] too`}},
		{"the same rule twice", acnp("ingress: [{action: Drop}, {action: Drop}]"), []string{`spec.ingress[1]: has the generated name "ingress-drop-`}},
		{"the same rule in both directions", acnp("ingress: [{action: Drop}], egress: [{action: Drop}]"), nil},

		{"appliedTo on every rule", bareACNP("priority: 5, ingress: [{action: Drop, appliedTo: [{podSelector: {}}]}], egress: [{action: Drop, appliedTo: [{group: g}]}]"), nil},
		{"appliedTo on both", acnp("ingress: [{action: Drop, appliedTo: [{group: g}]}]"), []string{"spec.appliedTo: stands on the policy and on spec.ingress[0]"}},
		{"appliedTo on neither", bareACNP("priority: 5, ingress: [{action: Drop}]"), []string{"spec.appliedTo: missing; write"}},
		{"appliedTo without rules", bareANNP("priority: 5"), []string{"spec.appliedTo: missing; write"}},
		{"appliedTo on some rules", bareACNP("priority: 5, ingress: [{action: Drop, appliedTo: [{group: g}]}], egress: [{action: Drop}, {action: Pass}]"), []string{"spec.egress[0].appliedTo: missing; other rules have one", "spec.egress[1].appliedTo: missing"}},
		{"both selectors", appliedTo("{podSelector: {}, namespaceSelector: {}}"), nil},
		{"groups beside selectors", appliedTo("{group: g}, {podSelector: {}}, {serviceAccount: {name: a, namespace: ns}}"), nil},
		{"group with a selector", appliedTo("{group: g, podSelector: {}}"), []string{"spec.appliedTo[0]: group stands together with other fields; write an entry for each"}},
		{"two that stand alone", appliedTo("{group: g, serviceAccount: {name: a, namespace: ns}}, {nodeSelector: {}, podSelector: {}}"), []string{"spec.appliedTo[0]: group stands together", "spec.appliedTo[1]: nodeSelector stands together", "spec.appliedTo: nodeSelector stands beside"}},
		{"service with a selector", appliedTo("{service: {name: a, namespace: ns}, namespaceSelector: {}}"), []string{"spec.appliedTo[0]: service stands together"}},
		{"an entry with nothing", appliedTo("{}"), []string{"spec.appliedTo[0]: selects nothing; write podSelector"}},
		{"an ipBlock", appliedTo("{ipBlock: {cidr: 10.0.0.0/8}}"), []string{"spec.appliedTo[0].ipBlock: a policy applies to Pods, Nodes or Services, not to addresses"}},
		{"an external entity", appliedTo("{externalEntitySelector: {}}"), []string{"externalEntitySelector: reaches beyond the cluster"}},
		{"an incomplete reference", appliedTo("{serviceAccount: {name: a}}, {serviceAccount: {namespace: ns}}"), []string{"[0].serviceAccount.namespace: missing", "[1].serviceAccount.name: missing"}},
		{"a NetworkPolicy beyond its Namespace", bareANNP("priority: 5, appliedTo: [{namespaceSelector: {}}, {serviceAccount: {name: a, namespace: other}}]"),
			[]string{"[0].namespaceSelector: a NetworkPolicy applies to Pods of its own Namespace", `[1].serviceAccount.namespace: "other"; a NetworkPolicy applies to its own Namespace, write "own"`}},
		{"a NetworkPolicy on Nodes", bareANNP("priority: 5, appliedTo: [{nodeSelector: {}}]"), []string{"[0].nodeSelector: a NetworkPolicy applies to Pods"}},
		{"a NetworkPolicy in its Namespace", bareANNP("priority: 5, appliedTo: [{group: g}, {serviceAccount: {name: a, namespace: own}}]"), nil},

		{"a policy on a Service", onService("ingress: [{action: Drop}, {action: Drop, from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]"), nil},
		{"a policy on a Service with egress", onService("egress: [{action: Drop}]"), []string{"spec.egress: stands in a policy that applies to a Service"}},
		{"a Service beside Pods", bareACNP("priority: 5, appliedTo: [{service: {name: s, namespace: ns}}, {podSelector: {}}]"), []string{"spec.appliedTo: a Service stands beside entries of another kind"}},
		{"an egress rule on a Service", bareACNP("priority: 5, egress: [{action: Drop, appliedTo: [{service: {name: s, namespace: ns}}]}]"), []string{"spec.egress[0].appliedTo: an egress rule applies to a Service"}},
		{"a rule on a Service with Pods as peers", onService("ingress: [{action: Drop, from: [{podSelector: {}}]}]"), []string{"spec.ingress[0].from[0]: the rule applies to a Service"}},

		{"a policy on Nodes", onNodes("ingress: [{action: Drop, from: [{nodeSelector: {}}, {group: g}, {podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]"), nil},
		{"a rule on Nodes", bareACNP("priority: 5, ingress: [{action: Drop, appliedTo: [{nodeSelector: {}}]}]"), []string{"spec.ingress[0].appliedTo: nodeSelector stands on a rule"}},
		{"Nodes beside Pods", appliedTo("{nodeSelector: {}}, {podSelector: {}}"), []string{"spec.appliedTo: nodeSelector stands beside entries that select Pods"}},
		{"what Nodes do not have", onNodes("egress: [{action: Allow, to: [{fqdn: a.b}, {serviceAccount: {name: a, namespace: ns}}], l7Protocols: [{http: {}}]}, {action: Drop, toServices: [{name: s, namespace: ns}]}]"),
			[]string{"egress[0].l7Protocols: Nodes have no layer 7 rules", "egress[0].to[0].fqdn: stands in a policy for Nodes", "egress[0].to[1].serviceAccount: stands in a policy for Nodes", "egress[1].toServices: stands in a policy for Nodes"}},

		{"every peer", allowOut("to: [{podSelector: {}, namespaceSelector: {}}, {namespaces: {match: Self}, podSelector: {}}, {namespaces: {sameLabels: [a/b, c]}}, {group: g}, {fqdn: '*.a.B'}, {serviceAccount: {name: a, namespace: ns}}, {nodeSelector: {}}, {ipBlock: {cidr: '::/0'}}]"), nil},
		{"a peer with nothing", in("from: [{}]"), []string{"ingress[0].from[0]: names no peer; write podSelector"}},
		{"namespaces beside namespaceSelector", in("from: [{namespaces: {match: Self}, namespaceSelector: {}}]"), []string{"from[0].namespaces: stands beside namespaceSelector"}},
		{"two criteria of namespaces", in("from: [{namespaces: {match: Self, sameLabels: [a]}}]"), []string{"from[0].namespaces: match stands beside sameLabels"}},
		{"no criterion of namespaces", in("from: [{namespaces: {}}, {namespaces: {match: Other}}]"), []string{"from[0].namespaces: empty; write match: Self", `from[1].namespaces.match: "Other" is unknown; write Self`}},
		{"a bad label key", in("from: [{namespaces: {sameLabels: [a, 'b c']}}]"), []string{`from[0].namespaces.sameLabels[1]: "b c" is no label key`}},
		{"namespaces in a NetworkPolicy", annp("ingress: [{action: Drop, from: [{namespaces: {match: Self}}]}]"), []string{"from[0].namespaces: a NetworkPolicy is of one Namespace"}},
		{"peers that stand alone", in("from: [{group: g, podSelector: {}}, {serviceAccount: {name: a, namespace: ns}, ipBlock: {cidr: 10.0.0.0/8}}, {nodeSelector: {}, namespaces: {match: Self}}]"),
			[]string{"from[0]: group stands together", "from[1]: serviceAccount stands together", "from[2]: nodeSelector stands together"}},
		{"an incomplete account", in("from: [{serviceAccount: {}}]"), []string{"from[0].serviceAccount.name: missing", "from[0].serviceAccount.namespace: missing"}},
		{"beyond the cluster", in("from: [{externalEntitySelector: {}}, {podSelector: {}, scope: ClusterSet}, {podSelector: {}, scope: Cluster}]"), []string{"from[0].externalEntitySelector: reaches beyond", `from[1].scope: "ClusterSet" reaches beyond`}},
		{"the list of the other direction", acnp("ingress: [{action: Drop, to: [{podSelector: {}}]}], egress: [{action: Drop, from: [{podSelector: {}}]}]"), []string{"ingress[0].to: stands in an ingress rule", "egress[0].from: stands in an egress rule"}},

		{"toServices", out("toServices: [{name: s, namespace: ns, scope: Cluster}]"), nil},
		{"toServices beside others", out("to: [{podSelector: {}}], ports: [{port: 1}], protocols: [{icmp: {}}], toServices: [{name: s, namespace: ns}]"), []string{"egress[0].to: stands beside toServices", "egress[0].ports: stands beside", "egress[0].protocols: stands beside"}},
		{"toServices, incomplete and beyond", out("toServices: [{name: s}, {namespace: ns}, {name: s, namespace: ns, scope: ClusterSet}]"), []string{"toServices[0].namespace: missing", "toServices[1].name: missing", "toServices[2].scope: \"ClusterSet\""}},
		{"toServices in ingress", in("toServices: [{name: s, namespace: ns}]"), []string{"ingress[0].toServices: stands in an ingress rule"}},

		{"selectors", in("from: [{podSelector: {matchLabels: {'a b': c, d: 'e f'}}}, {namespaceSelector: {matchExpressions: [{key: a, operator: Within}, {key: a, operator: In}, {key: a, operator: Exists, values: [b]}]}}]"),
			[]string{`podSelector.matchLabels: key "a b"`, `podSelector.matchLabels.d: value "e f"`, `operator: "Within" is unknown`, "values: missing; In needs", "values: Exists takes no values"}},
		{"ipBlocks", in("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]"), nil},
		{"bad ipBlocks", in("from: [{ipBlock: {}}, {ipBlock: {cidr: x}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8, 11.0.0.0/16, z]}}]"),
			[]string{"from[0].ipBlock.cidr: missing", `from[1].ipBlock.cidr: "x" is no CIDR`, "except[0]: 10.0.0.0/8 is not strictly inside", "except[1]: 11.0.0.0/16 is not", `except[2]: "z" is no CIDR`}},

		{"fqdn in ingress", in("from: [{fqdn: a.b}]"), []string{"from[0].fqdn: a client is not known by its name"}},
		{"fqdn of other characters", allowOut("to: [{fqdn: 'a_b.c'}, {fqdn: 'http://a'}, {fqdn: '*foo-bar.com'}]"), []string{`to[0].fqdn: "a_b.c" is no name`, `to[1].fqdn: "http://a" is no name`}},

		{"multicast", out("to: [{ipBlock: {cidr: 225.1.2.3/32}}, {ipBlock: {cidr: 'ff02::/16'}}]"), nil},
		{"multicast with Pass or Reject", acnp("egress: [{action: Pass, to: [{ipBlock: {cidr: 225.1.2.3/32}}]}, {action: Reject, to: [{ipBlock: {cidr: 225.1.2.3/32}}]}]"), []string{"egress[0].action: Pass is not possible for multicast", "egress[1].action: Reject is not"}},
		{"multicast beside others", acnp("egress: [{action: Drop, to: [{ipBlock: {cidr: 225.1.2.3/32}}, {ipBlock: {cidr: 10.0.0.0/8}}]}, {action: Drop, to: [{podSelector: {}}, {ipBlock: {cidr: 225.1.2.3/32}}]}]"), []string{"egress[0].to: multicast addresses stand beside", "egress[1].to: multicast"}},
		{"more than multicast", out("to: [{ipBlock: {cidr: 224.0.0.0/3}}]"), []string{"to[0].ipBlock.cidr: 224.0.0.0/3 is more than the multicast addresses 224.0.0.0/4"}},

		{"IGMP", acnp("ingress: [{action: Drop, protocols: [{igmp: {igmpType: 0x11, groupAddress: 224.0.0.1}}]}, {action: Allow, protocols: [{igmp: {}}]}], egress: [{action: Drop, protocols: [{igmp: {igmpType: 0x12}}, {igmp: {igmpType: 0x16, groupAddress: 225.1.2.3}}, {igmp: {igmpType: 0x22}}]}]"), nil},
		{"an IGMP group that is none", out("protocols: [{igmp: {groupAddress: 10.0.0.1}}, {igmp: {groupAddress: x}}]"), []string{`protocols[0].igmp.groupAddress: "10.0.0.1" is no IPv4 multicast address`, `protocols[1].igmp.groupAddress: "x"`}},
		{"a query for another group", in("protocols: [{igmp: {igmpType: 0x11, groupAddress: 224.0.0.2}}]"), []string{"groupAddress: 224.0.0.2; a query can be matched for 224.0.0.1 only"}},
		{"IGMP in the wrong direction", acnp("ingress: [{action: Drop, protocols: [{igmp: {igmpType: 0x12}}, {igmp: {igmpType: 0x16}}, {igmp: {igmpType: 0x22}}]}], egress: [{action: Drop, protocols: [{igmp: {igmpType: 0x11}}]}]"),
			[]string{"0x12 is a report", "0x16 is a report", "0x22 is a report", "0x11 is a query"}},
		{"an unknown IGMP type", out("protocols: [{igmp: {igmpType: 0x17}}]"), []string{"igmpType: 0x17 is not supported"}},
		{"IGMP with Pass or Reject", acnp("egress: [{action: Pass, protocols: [{igmp: {}}]}, {action: Reject, protocols: [{igmp: {}}]}]"), []string{"egress[0].action: Pass is not possible for IGMP", "egress[1].action: Reject"}},
		{"IGMP beside others", acnp("ingress: [{action: Drop, protocols: [{igmp: {}}, {icmp: {}}], from: [{podSelector: {}}], ports: [{port: 1}]}], egress: [{action: Drop, protocols: [{igmp: {}}], to: [{podSelector: {}}]}]"),
			[]string{"ingress[0].protocols: IGMP stands beside", "ingress[0].from: IGMP has none", "ingress[0].ports: IGMP has none", "egress[0].to: IGMP has none"}},
		{"protocols that name none or two", in("protocols: [{}, {icmp: {}, igmp: {}}]"), []string{"protocols[0]: empty; write one of icmp, igmp", "protocols[1]: icmp, igmp stand together", "protocols: IGMP stands beside"}},

		{"ICMP", in("protocols: [{icmp: {}}, {icmp: {icmpType: 0}}, {icmp: {icmpType: 255, icmpCode: 255}}]"), nil},
		{"bad ICMP", in("protocols: [{icmp: {icmpType: 256, icmpCode: -1}}, {icmp: {icmpCode: 0}}]"), []string{"protocols[0].icmp.icmpType: 256", "protocols[0].icmp.icmpCode: -1", "protocols[1].icmp.icmpCode: stands without icmpType"}},

		{"layer 7", acnp("ingress: [{action: Allow, l7Protocols: [{http: {host: a, method: GET, path: /}}], ports: [{protocol: TCP, port: 80}, {port: 81}]}, {action: Allow, l7Protocols: [{tls: {sni: a}}]}]"), nil},
		{"layer 7 that does not allow", in("l7Protocols: [{http: {}}]"), []string{"ingress[0].action: Drop; a rule with l7Protocols lets through"}},
		{"layer 7 beside toServices", allowOut("l7Protocols: [{http: {}}], toServices: [{name: s, namespace: ns}]"), []string{"egress[0].l7Protocols: stands beside toServices"}},
		{"HTTP over what carries none", allowOut("l7Protocols: [{http: {}}], ports: [{protocol: UDP, port: 80}], protocols: [{icmp: {}}]"), []string{"ports[0].protocol: UDP carries neither", "protocols: neither ICMP nor IGMP carries"}},
		{"an unknown method", allowOut("l7Protocols: [{http: {method: FETCH}}, {}]"), []string{`l7Protocols[0].http.method: "FETCH" is unknown; write one of CONNECT, DELETE, GET`, "l7Protocols[1]: empty; write one of http, tls"}},

		{"ports", in("ports: [{port: 80, endPort: 80}, {port: web, protocol: SCTP}, {protocol: UDP}, {sourcePort: 1, sourceEndPort: 65535}, {}]"), nil},
		{"bad ports", in("ports: [{endPort: 9}, {port: web, endPort: 9}, {port: 10, endPort: 9}, {protocol: ICMP}, {sourceEndPort: 9}, {sourcePort: 10, sourceEndPort: 9}, {port: 0}, {port: 70000}, {port: '80'}, {sourcePort: 0}]"),
			[]string{"ports[0].endPort: stands without port", `ports[1].endPort: stands with the named port "web"`, "ports[2].endPort: 9 is below port 10", `ports[3].protocol: "ICMP" is unknown; write TCP, UDP or SCTP`, "ports[4].sourceEndPort: stands without sourcePort",
				"ports[5].sourceEndPort: 9 is below sourcePort 10", "ports[6].port: 0 is no port", "ports[7].port: 70000 is no port", `ports[8].port: "80" is a string`, "ports[9].sourcePort: 0 is no port"}},

		{"log labels", acnp("ingress: [{action: Drop, logLabel: a, name: a}, {action: Drop, logLabel: a.b-C_9, name: b}, {action: Drop, name: c, logLabel: " + strings.Repeat("a", 63) + "}]"), nil},
		{"bad log labels", acnp("ingress: [{action: Drop, logLabel: -a}, {action: Drop, logLabel: 'a b'}, {action: Drop, logLabel: " + strings.Repeat("a", 64) + "}]"), []string{`ingress[0].logLabel: "-a"; write at most 63`, "ingress[1].logLabel", "ingress[2].logLabel"}},

		{"groups", clusterGroup("podSelector: {}, namespaceSelector: {}") + "---\n" + ownGroup("ipBlocks: [{cidr: 10.0.0.0/8}]"), nil},
		{"other groups", clusterGroup("serviceReference: {name: s, namespace: ns}") + "---\n" + ownGroup("childGroups: [a, b]"), nil},
		{"more than one way", clusterGroup("podSelector: {}, ipBlocks: [{cidr: 10.0.0.0/8}]") + "---\n" + ownGroup("namespaceSelector: {}, serviceReference: {name: s, namespace: ns}, childGroups: [c]"),
			[]string{"ClusterGroup g: spec: selects in several ways: podSelector or namespaceSelector, ipBlocks", "Group own/g: spec: selects in several ways: podSelector or namespaceSelector, serviceReference, childGroups"}},
		{"ipBlock beside ipBlocks", clusterGroup("ipBlock: {cidr: 10.0.0.0/8}, ipBlocks: [{cidr: 11.0.0.0/8}]"), []string{"spec.ipBlock: stands beside ipBlocks; move it"}},
		{"itself as child", clusterGroup("childGroups: [a, g]"), []string{`spec.childGroups[1]: "g" is the group itself`}},
		{"a child of another Namespace", ownGroup("childGroups: [other/a]") + "---\n" + clusterGroup("childGroups: [a/b]"), []string{`spec.childGroups[0]: "other/a"; the children of a Group are in its own Namespace`, `"a/b"; the children of a ClusterGroup are ClusterGroups`}},
		{"multicast beside unicast in a group", clusterGroup("ipBlocks: [{cidr: 10.0.0.0/8}, {cidr: 224.0.0.0/8}]"), []string{"spec.ipBlocks: multicast and unicast addresses stand together"}},
		{"multicast in a group", clusterGroup("ipBlocks: [{cidr: 225.0.0.0/8}, {cidr: 224.0.0.0/8}]"), nil},
		{"Nodes and what is beyond the cluster in a group", clusterGroup("nodeSelector: {}") + "---\n" + ownGroup("externalEntitySelector: {}"), []string{"spec.nodeSelector: a group holds no Nodes", "spec.externalEntitySelector: reaches beyond"}},
		{"bad blocks and references in a group", clusterGroup("ipBlocks: [{cidr: x}, {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]") + "---\n" + ownGroup("serviceReference: {}"),
			[]string{`spec.ipBlocks[0].cidr: "x" is no CIDR`, "spec.ipBlocks[1].except[0]: 10.0.0.0/8 is not strictly inside", "spec.serviceReference.name: missing", "spec.serviceReference.namespace: missing"}},

		{"a lock-out that is neither allowed nor not", antrea("ClusterNetworkPolicy", "name: p, annotations: {weir.dev/allow-lockout: 'yes'}", "priority: 5, appliedTo: [{nodeSelector: {}}]"), []string{`metadata.annotations.weir.dev/allow-lockout: "yes"`}},
		{"an unknown enforcement", antrea("ClusterNetworkPolicy", "name: p, annotations: {weir.dev/enforcement: dry}", "priority: 5, appliedTo: [{podSelector: {}}]"), []string{`metadata.annotations.weir.dev/enforcement: "dry"`}},
		{"everything at once", bareACNP("priority: 0, ingress: [{action: Dorp, ports: [{port: 0}], from: [{}]}]"), []string{"spec.priority", "spec.appliedTo", "spec.ingress[0].action", "spec.ingress[0].ports[0].port", "spec.ingress[0].from[0]"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := Decode([]byte(test.text))
			var got []Violation
			var invalid *Invalid
			if errors.As(err, &invalid) {
				got = invalid.Violations
			}
			if len(m.Objects) == 0 && err == nil {
				t.Fatal("nothing was read")
			}
			if len(got) != len(test.want) {
				t.Fatalf("got %d violations, want %d:\n%v", len(got), len(test.want), err)
			}
			for i, want := range test.want {
				if !strings.Contains(got[i].String(), want) {
					t.Errorf("violation %d is\n%s\nwant\n%s", i, got[i], want)
				}
			}
		})
	}
}

// What is accepted, and told of.
func TestAntreaWarnings(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"nothing to tell", acnp("ingress: [{action: Drop}], egress: [{action: Allow, to: [{fqdn: a.b}]}]"), nil},
		{"Deny", acnp("ingress: [{action: Deny}]"), []string{"spec.ingress[0].action: Deny is read as Drop; write Drop"}},
		{"Allow in the baseline", acnp("tier: baseline, ingress: [{action: Allow}, {action: Drop}]"), []string{"spec.ingress[0].action: Allow in the baseline tier"}},
		{"Drop and Reject of a name", acnp("egress: [{action: Drop, to: [{fqdn: a.b}]}, {action: Reject, to: [{podSelector: {}}, {fqdn: a.b}]}]"), []string{"spec.egress[0].to[0].fqdn: stands in a rule that does not allow", "spec.egress[1].to[1].fqdn"}},
		{"a long log label on Nodes", onNodes("ingress: [{action: Drop, logLabel: abcdefghijkl, name: a}, {action: Drop, logLabel: abcdefghijklm}]"), []string{`spec.ingress[1].logLabel: "abcdefghijklm" has more than 12 characters`}},
		{"a long log label on Pods", acnp("ingress: [{action: Drop, logLabel: abcdefghijklm}]"), nil},
		{"a group of nothing", clusterGroup(""), []string{"spec: selects nothing"}},
		{"packets from a multicast address", in("from: [{ipBlock: {cidr: 225.0.0.0/8}}]"), []string{"ingress[0].from: no packet comes from a multicast address"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := Decode([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(m.Warnings, test.want, func(v Violation, want string) bool { return strings.Contains(v.String(), want) }) {
				t.Errorf("got %v, want %q", m.Warnings, test.want)
			}
		})
	}
}
