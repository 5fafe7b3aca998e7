package e2e

import (
	"fmt"
	"strings"
)

// crdCase is a text of objects, and what the API server says of a refused one.
type crdCase struct{ name, text, want string }

func antreaObject(kind, meta, spec string) string {
	return fmt.Sprintf("apiVersion: crd.antrea.io/v1beta1\nkind: %s\nmetadata: {%s}\nspec: {%s}\n", kind, meta, spec)
}
func tierOf(name string, priority int) string {
	return antreaObject("Tier", "name: "+name, fmt.Sprintf("priority: %d", priority))
}
func bareACNP(spec string) string { return antreaObject("ClusterNetworkPolicy", "name: p", spec) }
func bareANNP(spec string) string {
	return antreaObject("NetworkPolicy", "name: p, namespace: own", spec)
}

// acnp and annp have what must be there, and more.
func acnp(spec string) string {
	return bareACNP("priority: 5, appliedTo: [{podSelector: {}}], " + spec)
}
func annp(spec string) string {
	return bareANNP("priority: 5, appliedTo: [{podSelector: {}}], " + spec)
}
func onNodes(spec string) string {
	return bareACNP("priority: 5, appliedTo: [{nodeSelector: {}}], " + spec)
}
func onService(spec string) string {
	return bareACNP("priority: 5, appliedTo: [{service: {name: s, namespace: ns}}], " + spec)
}
func appliedTo(entries string) string {
	return bareACNP("priority: 5, appliedTo: [" + entries + "]")
}

// in and out have one rule.
func in(rule string) string           { return acnp("ingress: [{action: Drop, " + rule + "}]") }
func out(rule string) string          { return acnp("egress: [{action: Drop, " + rule + "}]") }
func allowOut(rule string) string     { return acnp("egress: [{action: Allow, " + rule + "}]") }
func clusterGroup(spec string) string { return antreaObject("ClusterGroup", "name: g", spec) }
func ownGroup(spec string) string     { return antreaObject("Group", "name: g, namespace: own", spec) }

// accepted is what the schemas must not be too strict for.
var accepted = []crdCase{
	{name: "tiers", text: tierOf("mine", 0) + "---\n" + tierOf("other", 249) + "---\n" + tierOf("emergency", 50) + "---\n" + tierOf("application", 250) + "---\n" + tierOf("baseline", 253)},
	{name: "an empty policy", text: acnp("")},
	{name: "a tier in its former name", text: acnp("tier: SecurityOps, egress: [{action: Pass}]")},
	{name: "the first and last priority", text: bareACNP("priority: 1.0, appliedTo: [{podSelector: {}}]") + "---\n" + bareANNP("priority: 10000, appliedTo: [{podSelector: {}}]")},
	{name: "every action, and the former one", text: acnp("ingress: [{action: Allow}, {action: Drop}, {action: Reject}, {action: Pass}, {action: Deny}]")},
	{name: "appliedTo on every rule", text: bareACNP("priority: 5, ingress: [{action: Drop, appliedTo: [{podSelector: {}}]}], egress: [{action: Drop, appliedTo: [{group: g}]}]")},
	{name: "groups beside selectors", text: appliedTo("{group: g}, {podSelector: {}, namespaceSelector: {}}, {serviceAccount: {name: a, namespace: ns}}")},
	{name: "a policy on a Service", text: onService("ingress: [{action: Drop}, {action: Drop, from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]")},
	{name: "a policy on Nodes", text: onNodes("ingress: [{action: Drop, from: [{nodeSelector: {}}, {group: g}, {podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]")},
	{name: "every peer", text: allowOut("to: [{podSelector: {}, namespaceSelector: {}}, {namespaces: {match: Self}, podSelector: {}}, {namespaces: {sameLabels: [a/b, c]}}, {group: g}, {fqdn: '*.a.B'}, {serviceAccount: {name: a, namespace: ns}}, {nodeSelector: {}}, {ipBlock: {cidr: '::/0'}, scope: Cluster}]")},
	{name: "selectors", text: in("from: [{podSelector: {matchLabels: {a.b/c: d, e: ''}, matchExpressions: [{key: a, operator: In, values: [b]}, {key: a, operator: NotIn, values: [b, '']}, {key: a, operator: Exists}, {key: a, operator: DoesNotExist, values: []}]}}]")},
	{name: "blocks as the API server reads them", text: in("from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: 010.0.0.0/8}}, {ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]")},
	{name: "multicast", text: out("to: [{ipBlock: {cidr: 225.1.2.3/32}}, {ipBlock: {cidr: 'ff02::/16'}}]")},
	{name: "IGMP", text: acnp("ingress: [{action: Drop, protocols: [{igmp: {igmpType: 0x11, groupAddress: 224.0.0.1}}]}, {action: Allow, protocols: [{igmp: {}}]}], egress: [{action: Drop, protocols: [{igmp: {igmpType: 0x12}}, {igmp: {igmpType: 0x16, groupAddress: 225.1.2.3}}, {igmp: {igmpType: 0x22, groupAddress: 239.255.255.255}}]}]")},
	{name: "ICMP", text: in("protocols: [{icmp: {}}, {icmp: {icmpType: 0}}, {icmp: {icmpType: 255, icmpCode: 255}}]")},
	{name: "layer 7", text: acnp("ingress: [{action: Allow, l7Protocols: [{http: {host: a, method: GET, path: /}}], ports: [{protocol: TCP, port: 80}, {port: 81}]}, {action: Allow, l7Protocols: [{tls: {sni: a}}, {http: {}}]}]")},
	{name: "ports", text: in("ports: [{port: 80, endPort: 80}, {port: web-1, protocol: SCTP}, {port: 1a}, {protocol: UDP}, {sourcePort: 1, sourceEndPort: 65535}, {}]")},
	{name: "toServices", text: out("toServices: [{name: s, namespace: ns, scope: Cluster}], to: [], ports: []")},
	{name: "log labels", text: acnp("ingress: [{action: Drop, logLabel: a.b-C_9, name: b}, {action: Drop, name: c, logLabel: " + strings.Repeat("a", 63) + "}, {action: Drop, logLabel: ''}]")},
	{name: "lists that are empty", text: acnp("ingress: [{action: Drop, from: [], ports: [], appliedTo: [], to: [], toServices: [], l7Protocols: [], protocols: []}], egress: []")},
	{name: "groups", text: clusterGroup("podSelector: {}, namespaceSelector: {}") + "---\n" + ownGroup("ipBlocks: [{cidr: 10.0.0.0/8}]") + "---\n" + ownGroup("ipBlock: {cidr: 10.0.0.0/8}") +
		"---\n" + clusterGroup("serviceReference: {name: s, namespace: ns}") + "---\n" + ownGroup("childGroups: [a, b]") + "---\n" + clusterGroup("")},
	{name: "a rule of many addresses", text: in("from: [" + strings.TrimSuffix(strings.Repeat("{ipBlock: {cidr: 10.0.0.0/8}}, ", 1000), ", ") + "]")},
	{name: "a group of many addresses", text: clusterGroup("ipBlocks: [" + strings.TrimSuffix(strings.Repeat("{cidr: 10.0.0.0/8}, ", 5000), ", ") + "]")},
	{name: "a policy of many rules", text: acnp("ingress: [" + manyRules("in", 350) + "], egress: [" + manyRules("out", 350) + "]")},
}

func manyRules(name string, n int) string {
	var rules []string
	for i := range n {
		rules = append(rules, fmt.Sprintf("{name: %s-%d-%s, action: Drop, ports: [{port: %d}]}", name, i, strings.Repeat("x", 90), i+1))
	}
	return strings.Join(rules, ", ")
}

// stricter is what the schemas refuse and package api takes, which reads a number
// that is not there as zero.
var stricter = []crdCase{
	{"a tier without priority", antreaObject("Tier", "name: a", "description: none"), "spec.priority: Required value"},
	{"more rules than the API server can judge", acnp("ingress: [" + manyRules("in", 351) + "]"), "spec.ingress: Too many: 351: must have at most 350 items"},
}

// refusals follow the reference's table of what must be refused, as far as a
// schema can say it.
var refusals = []crdCase{
	{"a tier's priority below", tierOf("a", -1), "spec.priority in body should be greater than or equal to 0"},
	{"a tier's priority above", tierOf("a", 256), "spec.priority in body should be less than or equal to 255"},
	{"a reserved priority", tierOf("a", 251), "from 250 on priorities are reserved; write a number from 0 to 249"},
	{"another reserved priority", tierOf("a", 252), "from 250 on priorities are reserved"},
	{"a priority behind the baseline", tierOf("a", 254), "from 250 on priorities are reserved"},
	{"the last priority", tierOf("a", 255), "from 250 on priorities are reserved"},
	{"a priority behind application", tierOf("a", 250), "from 250 on priorities are reserved"},
	{"the priority of a static tier", tierOf("a", 100), "50, 100, 150, 200 are the priorities of static tiers; write a number from 0 to 249"},
	{"a static tier otherwise", tierOf("emergency", 51), "a static tier has its priority for good (emergency: 50, "},

	{"no priority", bareACNP("appliedTo: [{podSelector: {}}]"), "spec.priority: Required value"},
	{"a priority below", bareACNP("priority: 0.9, appliedTo: [{podSelector: {}}]"), "spec.priority in body should be greater than or equal to 1"},
	{"a priority above", bareANNP("priority: 10000.1, appliedTo: [{podSelector: {}}]"), "spec.priority in body should be less than or equal to 10000"},
	{"no action", acnp("ingress: [{}]"), "spec.ingress[0].action: Required value"},
	{"an unknown action", acnp("egress: [{action: allow}]"), `spec.egress[0].action: Unsupported value: "allow": supported values: "Allow", "Drop", "Reject", "Pass"`},
	{"Pass in the baseline", acnp("tier: baseline, egress: [{action: Pass}]"), "Pass in the baseline tier has no later step to pass to; write Allow, Drop or Reject"},
	{"Pass in the baseline by its former name", annp("tier: Baseline, ingress: [{action: Pass}]"), "Pass in the baseline tier"},
	{"one name twice", acnp("ingress: [{action: Drop, name: a}, {action: Drop, name: b}, {action: Allow, name: a}]"), "spec.ingress: Invalid value: two rules have one name"},
	{"one name in both directions", acnp("ingress: [{action: Drop, name: a}], egress: [{action: Drop}, {action: Drop, name: a}]"), "a rule of ingress and one of egress have one name"},

	{"appliedTo on both", acnp("ingress: [{action: Drop, appliedTo: [{group: g}]}]"), "appliedTo stands on the policy and on rules; write it on the policy alone"},
	{"appliedTo on neither", bareACNP("priority: 5, ingress: [{action: Drop}]"), "appliedTo is missing; write what the policy applies to"},
	{"appliedTo without rules", bareANNP("priority: 5"), "appliedTo is missing"},
	{"appliedTo on some rules", bareACNP("priority: 5, ingress: [{action: Drop, appliedTo: [{group: g}]}], egress: [{action: Drop}]"), "appliedTo is missing; write what the policy applies to, on the policy, or on every rule"},
	{"group with a selector", appliedTo("{group: g, podSelector: {}}"), "spec.appliedTo[0]: Invalid value: group, serviceAccount, service and nodeSelector stand alone; write an entry for each"},
	{"nodeSelector with a selector", appliedTo("{nodeSelector: {}, podSelector: {}}"), "spec.appliedTo[0]: Invalid value: group, serviceAccount, service and nodeSelector stand alone"},
	{"serviceAccount with a group", appliedTo("{serviceAccount: {name: a, namespace: ns}, group: g}"), "stand alone"},
	{"service with a selector", appliedTo("{service: {name: a, namespace: ns}, namespaceSelector: {}}"), "stand alone"},
	{"an entry with nothing", appliedTo("{}"), "spec.appliedTo[0]: Invalid value: the entry selects nothing; write podSelector"},
	{"an ipBlock in appliedTo", appliedTo("{ipBlock: {cidr: 10.0.0.0/8}}"), "spec.appliedTo[0].ipBlock: Invalid value: a policy applies to Pods, Nodes or Services, not to addresses"},
	{"an external entity", appliedTo("{externalEntitySelector: {}}"), "spec.appliedTo[0].externalEntitySelector: Invalid value: reaches beyond the cluster"},
	{"an account without Namespace", appliedTo("{serviceAccount: {name: a}}"), "spec.appliedTo[0].serviceAccount.namespace: Required value"},
	{"an account without name", appliedTo("{serviceAccount: {namespace: a, name: ''}}"), "serviceAccount.name in body should be at least 1 chars long"},
	{"a Service without name", appliedTo("{service: {namespace: a}}"), "spec.appliedTo[0].service.name: Required value"},
	{"a Service without Namespace", appliedTo("{service: {name: a}}"), "spec.appliedTo[0].service.namespace: Required value"},
	{"a NetworkPolicy beyond its Namespace", bareANNP("priority: 5, appliedTo: [{namespaceSelector: {}}]"), "a NetworkPolicy applies to Pods of its own Namespace; remove namespaceSelector"},
	{"a NetworkPolicy on Nodes", bareANNP("priority: 5, appliedTo: [{nodeSelector: {}}]"), "write a ClusterNetworkPolicy for Nodes"},
	{"a rule of a NetworkPolicy on Nodes", bareANNP("priority: 5, ingress: [{action: Drop, appliedTo: [{nodeSelector: {}}]}]"), "write a ClusterNetworkPolicy for Nodes"},

	{"a policy on a Service with egress", onService("egress: [{action: Drop}]"), "egress stands in a policy that applies to a Service, which only receives"},
	{"an egress rule on a Service", bareACNP("priority: 5, egress: [{action: Drop, appliedTo: [{service: {name: s, namespace: ns}}]}]"), "an egress rule applies to a Service, which only receives"},
	{"a Service beside Pods", appliedTo("{service: {name: s, namespace: ns}}, {podSelector: {}}"), "spec.appliedTo: Invalid value: a Service stands beside entries of another kind"},
	{"a Service beside Nodes", appliedTo("{service: {name: s, namespace: ns}}, {nodeSelector: {}}"), "a Service stands beside entries of another kind"},
	{"a policy on a Service with Pods as peers", onService("ingress: [{action: Drop, from: [{podSelector: {}}]}]"), "the clients of a Service are known by address alone; write ipBlock in from"},
	{"a rule on a Service with Pods as peers", bareACNP("priority: 5, ingress: [{action: Drop, appliedTo: [{service: {name: s, namespace: ns}}], from: [{podSelector: {}}]}]"), "spec.ingress[0]: Invalid value: the clients of a Service are known by address alone"},

	{"a rule on Nodes", bareACNP("priority: 5, ingress: [{action: Drop, appliedTo: [{nodeSelector: {}}]}]"), "nodeSelector stands on a rule; write it in spec.appliedTo of a policy for Nodes"},
	{"Nodes beside Pods", appliedTo("{nodeSelector: {}}, {podSelector: {}}"), "spec.appliedTo: Invalid value: nodeSelector stands beside entries of another kind"},
	{"Nodes in a group", clusterGroup("nodeSelector: {}"), "spec.nodeSelector: Invalid value: a group holds no Nodes; write nodeSelector in a policy's appliedTo"},
	{"names for Nodes", onNodes("egress: [{action: Allow, to: [{fqdn: a.b}]}]"), "the DNS of Nodes is not watched; write ipBlock instead of fqdn"},
	{"accounts for Nodes", onNodes("ingress: [{action: Allow, from: [{serviceAccount: {name: a, namespace: ns}}]}]"), "a policy for Nodes knows no service accounts"},
	{"layer 7 for Nodes", onNodes("ingress: [{action: Allow, l7Protocols: [{http: {}}]}]"), "Nodes have no layer 7 rules; remove l7Protocols"},
	{"toServices for Nodes", onNodes("egress: [{action: Drop, toServices: [{name: s, namespace: ns}]}]"), "the traffic of Nodes to Services cannot be told"},

	{"a peer with nothing", in("from: [{}]"), "spec.ingress[0].from[0]: Invalid value: the entry names no peer; write podSelector"},
	{"namespaces beside namespaceSelector", in("from: [{namespaces: {match: Self}, namespaceSelector: {}}]"), "namespaces stands beside namespaceSelector; write one of the two"},
	{"two criteria of namespaces", in("from: [{namespaces: {match: Self, sameLabels: [a]}}]"), "from[0].namespaces: Invalid value: write either match: Self, or sameLabels"},
	{"no criterion of namespaces", in("from: [{namespaces: {}}]"), "write either match: Self, or sameLabels"},
	{"an unknown relation", in("from: [{namespaces: {match: Other}}]"), `namespaces.match: Unsupported value: "Other": supported values: "Self"`},
	{"a bad label key in sameLabels", in("from: [{namespaces: {sameLabels: [a, 'b c']}}]"), "namespaces.sameLabels[1] in body should match"},
	{"namespaces in a NetworkPolicy", annp("ingress: [{action: Drop, from: [{namespaces: {match: Self}}]}]"), "a NetworkPolicy is of one Namespace; write namespaceSelector"},
	{"a group that does not stand alone", in("from: [{group: g, podSelector: {}}]"), "spec.ingress[0].from[0]: Invalid value: ipBlock, group, fqdn, serviceAccount and nodeSelector stand alone; write an entry for each"},
	{"an account that does not stand alone", in("from: [{serviceAccount: {name: a, namespace: ns}, ipBlock: {cidr: 10.0.0.0/8}}]"), "stand alone"},
	{"Nodes that do not stand alone", in("from: [{nodeSelector: {}, namespaces: {match: Self}}]"), "stand alone"},
	{"names that do not stand alone", allowOut("to: [{fqdn: a.b, podSelector: {}}]"), "stand alone"},
	{"an incomplete account", in("from: [{serviceAccount: {name: a}}]"), "from[0].serviceAccount.namespace: Required value"},
	{"an external entity as peer", in("from: [{externalEntitySelector: {}}]"), "from[0].externalEntitySelector: Invalid value: reaches beyond the cluster, which is not supported; write ipBlock"},
	{"another cluster", in("from: [{podSelector: {}, scope: ClusterSet}]"), `from[0].scope: Unsupported value: "ClusterSet": supported values: "Cluster"`},
	{"to in ingress", in("to: [{podSelector: {}}]"), "spec.ingress[0].to: Invalid value: to stands in an ingress rule; write from"},
	{"from in egress", out("from: [{podSelector: {}}]"), "spec.egress[0].from: Invalid value: from stands in an egress rule; write to"},

	{"toServices beside to", out("to: [{podSelector: {}}], toServices: [{name: s, namespace: ns}]"), "toServices says address and ports by itself; remove to, ports and protocols"},
	{"toServices beside ports", out("ports: [{port: 1}], toServices: [{name: s, namespace: ns}]"), "toServices says address and ports by itself"},
	{"toServices beside protocols", out("protocols: [{icmp: {}}], toServices: [{name: s, namespace: ns}]"), "toServices says address and ports by itself"},
	{"toServices in ingress", in("toServices: [{name: s, namespace: ns}]"), "toServices stands in an ingress rule; write it in an egress rule"},
	{"toServices without Namespace", out("toServices: [{name: s}]"), "spec.egress[0].toServices[0].namespace: Required value"},
	{"toServices without name", out("toServices: [{namespace: ns}]"), "spec.egress[0].toServices[0].name: Required value"},
	{"toServices of another cluster", out("toServices: [{name: s, namespace: ns, scope: ClusterSet}]"), "toServices[0].scope: Unsupported value"},

	{"a bad label value", in("from: [{podSelector: {matchLabels: {d: 'e f'}}}]"), "podSelector.matchLabels.d in body should match"},
	{"a bad label key in an expression", in("from: [{podSelector: {matchExpressions: [{key: 'a b', operator: Exists}]}}]"), "matchExpressions[0].key in body should match"},
	{"a bad value in an expression", in("from: [{podSelector: {matchExpressions: [{key: a, operator: In, values: ['-']}]}}]"), "matchExpressions[0].values[0] in body should match"},
	{"an unknown operator", in("from: [{namespaceSelector: {matchExpressions: [{key: a, operator: Within}]}}]"), `matchExpressions[0].operator: Unsupported value: "Within": supported values: "In", "NotIn", "Exists", "DoesNotExist"`},
	{"no values", in("from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]"), "matchExpressions[0].values: Required value"},
	{"empty values", in("from: [{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}]"), "matchExpressions[0].values in body should have at least 1 items"},
	{"values that are not asked for", appliedTo("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}"), "matchExpressions[0]"},

	{"no cidr", in("from: [{ipBlock: {}}]"), "from[0].ipBlock.cidr: Required value"},
	{"a cidr that is none", in("from: [{ipBlock: {cidr: 10.0.0.0}}]"), "from[0].ipBlock.cidr in body must be of type cidr"},
	{"a prefix too long", in("from: [{ipBlock: {cidr: 10.0.0.0/33}}]"), "from[0].ipBlock.cidr in body must be of type cidr"},
	{"an except that is none", in("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [z]}}]"), "from[0].ipBlock.except[0] in body must be of type cidr"},

	{"fqdn in ingress", in("from: [{fqdn: a.b}]"), "a client is not known by its name; write ipBlock, or fqdn in an egress rule"},
	{"fqdn of other characters", allowOut("to: [{fqdn: 'http://a'}]"), "to[0].fqdn in body should match '^[-0-9a-zA-Z.*]*$'"},

	{"an IGMP group that is none", out("protocols: [{igmp: {groupAddress: 10.0.0.1}}]"), "write an IPv4 multicast address, from 224.0.0.0 to 239.255.255.255"},
	{"a query for another group", in("protocols: [{igmp: {igmpType: 0x11, groupAddress: 224.0.0.2}}]"), "a query can be matched for 224.0.0.1 only"},
	{"a report in ingress", in("protocols: [{igmp: {igmpType: 0x12}}]"), "igmp.igmpType: Invalid value: 18: write 0x11, a query"},
	{"a newer report in ingress", in("protocols: [{igmp: {igmpType: 0x16}}]"), "igmp.igmpType: Invalid value: 22: write 0x11, a query"},
	{"the newest report in ingress", in("protocols: [{igmp: {igmpType: 0x22}}]"), "igmp.igmpType: Invalid value: 34: write 0x11, a query"},
	{"a query in egress", out("protocols: [{igmp: {igmpType: 0x11}}]"), "igmp.igmpType: Invalid value: 17: write 0x12, 0x16 or 0x22"},
	{"IGMP with Pass", acnp("egress: [{action: Pass, protocols: [{igmp: {}}]}]"), "IGMP is multicast, for which Pass and Reject are not possible; write Allow or Drop"},
	{"IGMP with Reject", acnp("ingress: [{action: Reject, protocols: [{igmp: {}}]}]"), "IGMP is multicast, for which Pass and Reject are not possible"},
	{"IGMP beside ICMP", in("protocols: [{igmp: {}}, {icmp: {}}]"), "IGMP stands beside another protocol; write a rule for each"},
	{"IGMP with from", in("protocols: [{igmp: {}}], from: [{podSelector: {}}]"), "IGMP has neither peers nor ports; remove from and ports"},
	{"IGMP with to", out("protocols: [{igmp: {}}], to: [{podSelector: {}}]"), "IGMP has neither peers nor ports; remove to and ports"},
	{"IGMP with ports", in("protocols: [{igmp: {}}], ports: [{port: 1}]"), "IGMP has neither peers nor ports"},
	{"IGMP with toServices", out("protocols: [{igmp: {}}], toServices: [{name: s, namespace: ns}]"), "toServices says address and ports by itself"},
	{"no protocol", in("protocols: [{}]"), "protocols[0]: Invalid value: write either icmp or igmp"},
	{"two protocols in one", in("protocols: [{icmp: {}, igmp: {}}]"), "protocols[0]: Invalid value: write either icmp or igmp"},
	{"an ICMP type too great", in("protocols: [{icmp: {icmpType: 256}}]"), "icmp.icmpType in body should be less than or equal to 255"},
	{"an ICMP type below", in("protocols: [{icmp: {icmpType: -1}}]"), "icmp.icmpType in body should be greater than or equal to 0"},
	{"an ICMP code too great", in("protocols: [{icmp: {icmpType: 1, icmpCode: 256}}]"), "icmp.icmpCode in body should be less than or equal to 255"},
	{"an ICMP code below", in("protocols: [{icmp: {icmpType: 1, icmpCode: -1}}]"), "icmp.icmpCode in body should be greater than or equal to 0"},
	{"an ICMP code without type", in("protocols: [{icmp: {icmpCode: 0}}]"), "protocols[0].icmp: Invalid value: icmpCode stands without icmpType; write the type"},

	{"layer 7 that does not allow", in("l7Protocols: [{http: {}}]"), "a rule with l7Protocols lets through what they say and drops the rest; write Allow"},
	{"layer 7 beside toServices", allowOut("l7Protocols: [{http: {}}], toServices: [{name: s, namespace: ns}]"), "toServices stands beside l7Protocols; write to instead"},
	{"HTTP over UDP", allowOut("l7Protocols: [{http: {}}], ports: [{protocol: UDP, port: 80}]"), "HTTP and TLS are carried by TCP; write TCP in ports"},
	{"HTTP over SCTP", allowOut("l7Protocols: [{http: {}}], ports: [{protocol: SCTP, port: 80}]"), "HTTP and TLS are carried by TCP; write TCP in ports"},
	{"HTTP over IGMP", allowOut("l7Protocols: [{http: {}}], protocols: [{igmp: {}}]"), "neither ICMP nor IGMP carries HTTP or TLS"},
	{"HTTP over ICMP", allowOut("l7Protocols: [{http: {}}], protocols: [{icmp: {}}]"), "neither ICMP nor IGMP carries HTTP or TLS"},
	{"an unknown method", allowOut("l7Protocols: [{http: {method: FETCH}}]"), `http.method: Unsupported value: "FETCH": supported values: "CONNECT", "DELETE", "GET"`},
	{"no layer 7 protocol", allowOut("l7Protocols: [{}]"), "l7Protocols[0]: Invalid value: write either http or tls"},

	{"endPort without port", in("ports: [{endPort: 9}]"), "endPort stands without port, or with a named port; write port"},
	{"endPort with a named port", in("ports: [{port: web, endPort: 9}]"), "ports[0]: Invalid value: endPort stands without port, or with a named port"},
	{"endPort below port", in("ports: [{port: 10, endPort: 9}]"), "endPort is below port; write the last port of the range"},
	{"sourceEndPort without sourcePort", in("ports: [{sourceEndPort: 9}]"), "sourceEndPort stands without sourcePort; write sourcePort"},
	{"sourceEndPort below sourcePort", in("ports: [{sourcePort: 10, sourceEndPort: 9}]"), "sourceEndPort is below sourcePort"},
	{"another protocol", in("ports: [{protocol: ICMP}]"), `ports[0].protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"`},
	{"port 0", in("ports: [{port: 0}]"), "ports[0].port in body should be greater than or equal to 1"},
	{"a port too great", in("ports: [{port: 70000}]"), "ports[0].port in body should be less than or equal to 65535"},
	{"a number as a name", in("ports: [{port: '80'}]"), "ports[0].port in body should match"},
	{"a bad name of a port", in("ports: [{port: a--b}]"), "ports[0].port in body should match"},
	{"a source port that is none", in("ports: [{sourcePort: 0}]"), "ports[0].sourcePort in body should be greater than or equal to 1"},

	{"a log label with a space", in("logLabel: 'a b'"), `spec.ingress[0].logLabel: Invalid value: "a b": write letters, digits, -, _ and .`},
	{"a log label that begins with a dash", out("logLabel: -a"), `spec.egress[0].logLabel: Invalid value: "-a": write letters, digits`},
	{"a log label too long", in("logLabel: " + strings.Repeat("a", 64)), "spec.ingress[0].logLabel: Too long: may not be more than 63"},

	{"a group that selects in two ways", clusterGroup("podSelector: {}, ipBlocks: [{cidr: 10.0.0.0/8}]"), "spec: Invalid value: the group selects in several ways; write a group for each"},
	{"a group that selects in three ways", ownGroup("namespaceSelector: {}, serviceReference: {name: s, namespace: ns}, childGroups: [c]"), "the group selects in several ways"},
	{"ipBlock beside ipBlocks", clusterGroup("ipBlock: {cidr: 10.0.0.0/8}, ipBlocks: [{cidr: 11.0.0.0/8}]"), "ipBlock stands beside ipBlocks; move it into that list"},
	{"itself as child", clusterGroup("childGroups: [a, g]"), "a group cannot be its own child; remove its name from childGroups"},
	{"a child of another Namespace", ownGroup("childGroups: [other/a]"), `spec.childGroups[0]: Invalid value: "other/a": the children of a Group are in its own Namespace; write the name alone`},
	{"a child of a ClusterGroup with a Namespace", clusterGroup("childGroups: [a/b]"), "the children of a ClusterGroup are ClusterGroups, which have no Namespace"},
	{"an external entity in a group", ownGroup("externalEntitySelector: {}"), "spec.externalEntitySelector: Invalid value: reaches beyond the cluster"},
	{"a group with a bad block", clusterGroup("ipBlocks: [{cidr: x}]"), "spec.ipBlocks[0].cidr in body must be of type cidr"},
	{"a group with an incomplete reference", ownGroup("serviceReference: {name: a}"), "spec.serviceReference.namespace: Required value"},

	{"an unknown field", acnp("ingres: []"), `unknown field "spec.ingres"`},
}
