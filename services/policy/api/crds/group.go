package main

// mostChildren is how many groups a group may be made of.
const mostChildren = 1000

func clusterGroup() kind {
	return kind{
		group: antrea, version: antreaVersion, names: names("ClusterGroup", "clustergroup", "clustergroups", "cg"),
		about:    "A ClusterGroup is a set of Pods or addresses that ClusterNetworkPolicies refer to by its name.",
		fields:   fields{"spec": groupSpec("the children of a ClusterGroup are ClusterGroups, which have no Namespace; write the name alone"), "status": groupStatus()},
		required: []string{"spec"}, rules: groupRules,
	}
}

func group() kind {
	return kind{
		group: antrea, version: antreaVersion, names: names("Group", "group", "groups", "grp"), namespaced: true,
		about:    "A Group is a set of Pods or addresses that NetworkPolicies of its Namespace refer to by its name.",
		fields:   fields{"spec": groupSpec("the children of a Group are in its own Namespace; write the name alone"), "status": groupStatus()},
		required: []string{"spec"}, rules: groupRules,
	}
}

var groupRules = []rule{
	must("!has(self.spec.childGroups) || !(self.metadata.name in self.spec.childGroups)", "a group cannot be its own child; remove its name from childGroups"),
}

// groupSpec is how a group selects. What is wrong between groups is for the webhook.
func groupSpec(qualified string) schema {
	return object("What the group holds: Pods by podSelector and namespaceSelector, blocks of addresses, the Pods of a Service, or other groups; one of these ways alone.", fields{
		"podSelector":            selector(pods),
		"namespaceSelector":      selector("Pods of the Namespaces with these labels, all of them where podSelector is left out."),
		"nodeSelector":           refused("Refused: a group holds no Nodes, which policies select by themselves.", "a group holds no Nodes; write nodeSelector in a policy's appliedTo or in a rule's peer"),
		"ipBlock":                block("Addresses of one prefix. ipBlocks is the newer form, and is written instead of it."),
		"ipBlocks":               list("Addresses of some prefixes, multicast ones or others, not both.", 0, block(addresses)),
		"serviceReference":       reference("The Pods that a Service selects, whatever its ports are; none for a Service without selector.", "Service"),
		"externalEntitySelector": refused(notSupported, beyond+"write podSelector, namespaceSelector or ipBlocks"),
		"childGroups": list("Names of groups whose members are those of this one. They have no children of their own; one that is not there counts as empty until it is.", mostChildren,
			text("Name of a group of the same kind and, where it has one, the same Namespace.", must("!self.contains('/')", qualified)).length(1, 253)),
	},
		must("!(has(self.ipBlock) && "+filled("self.ipBlocks")+")", "ipBlock stands beside ipBlocks; move it into that list"),
		must(alone(hasAny("podSelector", "namespaceSelector"), "has(self.ipBlock)", filled("self.ipBlocks"), "has(self.serviceReference)", filled("self.childGroups")),
			"the group selects in several ways; write a group for each, and one with childGroups that holds them"))
}

func groupStatus() schema {
	return object("What has become of the group. Weir writes it, and nobody else need.", fields{
		"conditions": listMap("What is true of the group, by type of condition.", object(condition, fields{
			"type":               text("What the condition is about: GroupMembersComputed, that the members are known."),
			"status":             oneOf(conditionStatus, "True", "False", "Unknown"),
			"lastTransitionTime": text(conditionSince).format("date-time"),
		}), "type"),
	})
}
