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
	return object("What the group holds, chosen in one way.", fields{
		"podSelector":            selector("Pods with these labels."),
		"namespaceSelector":      selector("Pods of the Namespaces with these labels."),
		"nodeSelector":           refused("Not supported: a group holds no Nodes.", "a group holds no Nodes; write nodeSelector in a policy's appliedTo or in a rule's peer"),
		"ipBlock":                block("Addresses of one prefix; ipBlocks is its newer form."),
		"ipBlocks":               list("Addresses of some prefixes.", 0, block("Addresses of one prefix.")),
		"serviceReference":       reference("The Pods that a Service selects.", "Service"),
		"externalEntitySelector": refused("Not supported: what it selects is beyond the cluster.", beyond+"write podSelector, namespaceSelector or ipBlocks"),
		"childGroups": list("Names of groups whose members are the members of this one.", mostChildren,
			text("Name of a group of the same kind.", must("!self.contains('/')", qualified)).length(1, 253)),
	},
		must("!(has(self.ipBlock) && "+filled("self.ipBlocks")+")", "ipBlock stands beside ipBlocks; move it into that list"),
		must(alone(hasAny("podSelector", "namespaceSelector"), "has(self.ipBlock)", filled("self.ipBlocks"), "has(self.serviceReference)", filled("self.childGroups")),
			"the group selects in several ways; write a group for each, and one with childGroups that holds them"))
}

func groupStatus() schema {
	return object("What has become of the group.", fields{
		"conditions": listMap("Conditions of the group.", object("One condition.", fields{
			"type":               text("What it is about, such as GroupMembersComputed."),
			"status":             oneOf("Whether it holds.", "True", "False", "Unknown"),
			"lastTransitionTime": text("When the status last changed.").format("date-time"),
		}), "type"),
	})
}
