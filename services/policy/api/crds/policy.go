package main

import (
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// How long the lists of a policy may be: as long as what the API server grants
// the rules about them allows. A peer of many addresses is a group.
const (
	mostRules     = 350
	mostPeers     = 1000 // Of a rule.
	mostTargets   = 500  // Entries of appliedTo.
	mostPorts     = 500
	mostProtocols = 100
	mostServices  = 500
	mostLayer7    = 100
	nameLength    = 100 // Of a rule.
)

func clusterNetworkPolicy() kind {
	return kind{
		group: antrea, version: antreaVersion, names: names("ClusterNetworkPolicy", "clusternetworkpolicy", "clusternetworkpolicies", "acnp"),
		about:    "A ClusterNetworkPolicy allows and denies the traffic of Pods in all Namespaces, of Nodes, or of clients of Services.",
		fields:   fields{"spec": policySpec(false), "status": policyStatus()},
		required: []string{"spec"}, columns: policyColumns,
	}
}

func networkPolicy() kind {
	return kind{
		group: antrea, version: antreaVersion, names: names("NetworkPolicy", "networkpolicy", "networkpolicies", "annp"), namespaced: true,
		about:    "A NetworkPolicy allows and denies the traffic of Pods of its Namespace.",
		fields:   fields{"spec": policySpec(true), "status": policyStatus()},
		required: []string{"spec"}, columns: policyColumns,
	}
}

var policyColumns = []apiextensionsv1.CustomResourceColumnDefinition{
	column("Tier", "string", ".spec.tier", 0, "Tier of the policy."),
	column("Priority", "number", ".spec.priority", 0, "Place of the policy in its tier."),
	column("Phase", "string", ".status.phase", 1, "How far the policy is in force."),
	column("Desired Nodes", "integer", ".status.desiredNodesRealized", 1, "How many nodes must enforce the policy."),
	column("Current Nodes", "integer", ".status.currentNodesRealized", 1, "How many nodes enforce the policy."),
}

// policySpec is the spec of both kinds of policies.
func policySpec(namespaced bool) schema {
	return object("What the policy applies to, where it stands among others, and its rules.", fields{
		"tier":      text("Name of the policy's tier, which must be there; application where it is left out.").length(0, 253),
		"priority":  {Type: "number", Format: "double", Description: "Place of the policy in its tier, from 1.0 to 10000.0, the lowest of which is judged first. Policies may share one; of their rules in one place the strictest decides.", Minimum: new(1.0), Maximum: new(10000.0)},
		"appliedTo": appliedTo("What the policy applies to, all entries together; left out where every rule says it.", namespaced, false, false),
		"ingress":   list("Rules for the traffic that arrives, judged in their order: the first that matches decides.", mostRules, policyRule(namespaced, false), uniqueNames),
		"egress":    list("Rules for the traffic that leaves, judged in their order: the first that matches decides.", mostRules, policyRule(namespaced, true), uniqueNames),
	}, specRules()...).requires("priority")
}

// mostCompared is up to how many rules their names are compared: the time for it
// grows with their square.
const mostCompared = 50

// uniqueNames is the rule that names differ in a direction. That generated names
// do, and names in longer lists, is for the webhook.
var uniqueNames = must(fmt.Sprintf("size(self) > %d || self.all(r, !has(r.name) || r.name == '' || self.exists_one(o, has(o.name) && o.name == r.name))", mostCompared), "two rules have one name; write names that differ, or leave them out")

// specRules are what holds between the fields of a policy.
func specRules() []rule {
	every := func(list, condition string) string {
		return "(!has(self." + list + ") || self." + list + ".all(r, " + condition + "))"
	}
	both := func(condition string) string {
		return every("ingress", condition) + " && " + every("egress", condition)
	}
	none := func(field string) string { return "self.appliedTo.all(a, !has(a." + field + "))" }
	peers := func(condition string) string {
		return "(!has(self.ingress) || self.ingress.all(r, !has(r.from) || r.from.all(p, " + condition + "))) && " +
			"(!has(self.egress) || self.egress.all(r, !has(r.to) || r.to.all(p, " + condition + ")))"
	}
	unless := func(field, condition string) string {
		return "!has(self.appliedTo) || " + none(field) + " || " + condition
	}
	return []rule{
		must(empty("self.appliedTo")+" || "+both(empty("r.appliedTo")), "appliedTo stands on the policy and on rules; write it on the policy alone, or on every rule and not on the policy"),
		must("("+filled("self.appliedTo")+") || (("+filled("self.ingress")+" || "+filled("self.egress")+") && "+both(filled("r.appliedTo"))+")",
			"appliedTo is missing; write what the policy applies to, on the policy, or on every rule"),
		must("!has(self.tier) || self.tier.lowerAscii() != 'baseline' || "+both("r.action != 'Pass'"), "Pass in the baseline tier has no later step to pass to; write Allow, Drop or Reject, or another tier"),
		must(fmt.Sprintf("!has(self.ingress) || !has(self.egress) || size(self.ingress) > %d || size(self.egress) > %[1]d || ", mostCompared)+"self.ingress.all(r, !has(r.name) || r.name == '' || !self.egress.exists(o, has(o.name) && o.name == r.name))",
			"a rule of ingress and one of egress have one name; write names that differ, or leave them out"),
		must(unless("service", empty("self.egress")), "egress stands in a policy that applies to a Service, which only receives; remove the rules, or write them in a policy that applies to Pods"),
		must(unless("service", "(!has(self.ingress) || self.ingress.all(r, !has(r.from) || r.from.all(p, has(p.ipBlock))))"), "the clients of a Service are known by address alone; write ipBlock in from"),
		must(unless("nodeSelector", peers("!has(p.fqdn)")), "the DNS of Nodes is not watched; write ipBlock instead of fqdn in a policy for Nodes"),
		must(unless("nodeSelector", peers("!has(p.serviceAccount)")), "a policy for Nodes knows no service accounts; write podSelector and namespaceSelector, or ipBlock"),
		must(unless("nodeSelector", both(empty("r.l7Protocols"))), "Nodes have no layer 7 rules; remove l7Protocols"),
		must(unless("nodeSelector", "(!has(self.egress) || self.egress.all(r, "+empty("r.toServices")+"))"), "the traffic of Nodes to Services cannot be told; write to with ipBlock or nodeSelector instead of toServices"),
	}
}

// appliedTo is a list of targets, of a policy or of one of its rules.
func appliedTo(about string, namespaced, ofRule, egress bool) schema {
	entry := object("Pods, Nodes or a Service to which the policy or rule applies.", fields{
		"podSelector":            selector(pods),
		"namespaceSelector":      selector("Pods of the Namespaces with these labels, all of them where podSelector is left out."),
		"group":                  text("Name of a ClusterGroup or, in a NetworkPolicy, of a Group of its Namespace. The policy applies to its Pods, and to none while the group is not there."),
		"serviceAccount":         reference(accounts, "service account"),
		"service":                reference("The clients of a NodePort Service, as they arrive from outside; for ingress rules whose peers are blocks of addresses.", "Service"),
		"nodeSelector":           selector("Nodes with these labels: what their hosts receive and send themselves."),
		"externalEntitySelector": refused(notSupported, beyond+"write podSelector or namespaceSelector, or remove the entry"),
		"ipBlock":                refused("Refused: a policy does not apply to addresses, but to Pods, Nodes or Services.", "a policy applies to Pods, Nodes or Services, not to addresses; write podSelector, namespaceSelector, group, serviceAccount, service or nodeSelector"),
	},
		must(hasAny("podSelector", "namespaceSelector", "group", "serviceAccount", "service", "nodeSelector", "externalEntitySelector", "ipBlock"),
			"the entry selects nothing; write podSelector, namespaceSelector, group, serviceAccount, service or nodeSelector, podSelector: {} for all Pods"),
		must(alone(hasAny("podSelector", "namespaceSelector"), "has(self.group)", "has(self.serviceAccount)", "has(self.service)", "has(self.nodeSelector)"),
			"group, serviceAccount, service and nodeSelector stand alone; write an entry for each"))
	if namespaced {
		const own = "a NetworkPolicy applies to Pods of its own Namespace; "
		entry = entry.but(fields{
			"namespaceSelector": selector("Refused: a NetworkPolicy applies to Pods of its own Namespace.", must("false", own+"remove namespaceSelector, or write a ClusterNetworkPolicy")),
			"nodeSelector":      selector("Refused: a NetworkPolicy does not apply to Nodes.", must("false", own+"write a ClusterNetworkPolicy for Nodes")),
		})
	}
	if ofRule && !namespaced {
		entry = entry.but(fields{"nodeSelector": selector("Refused: a whole policy applies to Nodes, never a single rule.", must("false", "nodeSelector stands on a rule; write it in spec.appliedTo of a policy for Nodes"))})
	}
	if ofRule && egress {
		service := reference("Refused: a Service only receives, so that no egress rule applies to it.", "Service")
		service.XValidations = []rule{must("false", "an egress rule applies to a Service, which only receives; write an ingress rule, or apply it to Pods")}
		entry = entry.but(fields{"service": service})
	}
	return list(about, mostTargets, entry,
		must("!self.exists(a, has(a.service)) || self.all(a, has(a.service))", "a Service stands beside entries of another kind; write a policy, or a rule with its own appliedTo, for each"),
		must("!self.exists(a, has(a.nodeSelector)) || self.all(a, has(a.nodeSelector))", "nodeSelector stands beside entries of another kind; write a policy for the Nodes and one for the Pods"))
}

func policyStatus() schema {
	return object("What has become of the policy. Weir writes it, and nobody else need.", fields{
		"phase":                text("How far the policy is in force, in a word: Pending, Realizing, Realized or Failed. Conditions say why."),
		"observedGeneration":   count("Generation of the object that the status is about. Below metadata.generation it tells of an earlier spec.", "int64"),
		"currentNodesRealized": count("How many nodes enforce that generation, with the members that its groups and selectors have now.", "int32"),
		"desiredNodesRealized": count("How many nodes must enforce it: those that have Pods to which it applies, or are selected themselves.", "int32"),
		"conditions": listMap("What is true of the policy, by type of condition.", object(condition, fields{
			"type":               text("What the condition is about, such as Realizable: that the policy can be in force as it is written."),
			"status":             oneOf(conditionStatus, "True", "False", "Unknown"),
			"lastTransitionTime": text(conditionSince).format("date-time"),
			"reason":             text("Why it holds or not, in one word for programs."),
			"message":            text("Why it holds or not, in words for people: what is wrong, and where."),
		}), "type"),
	})
}
