package main

import (
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/weirnet/weir/services/policy/api"
)

const antrea, antreaVersion = "crd.antrea.io", "v1beta1"

// tier is the schema of a Tier. That no other tier has its priority, and how
// many there are, is for the webhook.
func tier() kind {
	var named, own, taken []string
	for _, t := range api.StaticTiers() {
		named = append(named, t.Name)
		own = append(own, fmt.Sprintf("'%s': %d", t.Name, t.Priority))
		if t.Priority < 250 {
			taken = append(taken, fmt.Sprint(t.Priority))
		}
	}
	static := "self.metadata.name in " + quoted(named)
	const instead = "; write a number from 0 to 249 that no other tier has"
	return kind{
		group: antrea, version: antreaVersion, names: names("Tier", "tier", "tiers", "tr"),
		about: "A Tier orders policies: those of a tier with a lower priority are judged before those of one with a higher.",
		fields: fields{"spec": object("Where the tier stands among the others, and what it is for.", fields{
			"priority": integer("Place of the tier among the tiers, the lowest of which is judged first: 0 to 249, other than that of any other tier. It cannot be changed.", 0, 255,
				must("self == oldSelf", "the priority of a tier cannot be changed; write the former one, or make another tier")),
			"description": text("What the tier is for, in words for its readers; nothing depends on it."),
		}).requires("priority")},
		required: []string{"spec"},
		rules: []rule{
			must("!("+static+") || self.spec.priority == {"+strings.Join(own, ", ")+"}[self.metadata.name]", "a static tier has its priority for good ("+strings.ReplaceAll(strings.Join(own, ", "), "'", "")+"); write that, or another name"),
			must(static+" || self.spec.priority < 250", "from 250 on priorities are reserved"+instead),
			must(static+" || !(self.spec.priority in ["+strings.Join(taken, ", ")+"])", strings.Join(taken, ", ")+" are the priorities of static tiers"+instead),
		},
		columns: []apiextensionsv1.CustomResourceColumnDefinition{column("Priority", "integer", ".spec.priority", 0, "Place of the tier among the tiers.")},
	}
}
