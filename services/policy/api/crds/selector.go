package main

import apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

// Syntax of labels. That the keys of matchLabels have it is for the webhook: a
// schema has no say in the keys of a mapping, and a rule for each label of each
// peer of each rule costs more than the API server grants.
const (
	labelKey   = `^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`
	labelValue = `^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`
	keyLength  = 253 + 1 + 63
)

// selector is a label selector. Its rules are plain schema, for their cost.
func selector(about string, rules ...rule) schema {
	value := text("Value that a label has: letters, digits, -, _ and ., at most 63.").pattern(labelValue)
	labels := schema{Type: "object", Description: "Labels that must all be there, with exactly these values.",
		AdditionalProperties: &apiextensionsv1.JSONSchemaPropsOrBool{Schema: (*apiextensionsv1.JSONSchemaProps)(&value)}}
	one, none := int64(1), int64(0)
	requirement := object("A condition on the label of one key.", fields{
		"key":      text("Key of the label that the condition is about.").pattern(labelKey).length(1, keyLength),
		"operator": oneOf("How the label is held against the values: In and NotIn with values, Exists and DoesNotExist without.", "In", "NotIn", "Exists", "DoesNotExist"),
		"values":   list("Values of the label, at least one for In and NotIn, none for Exists and DoesNotExist.", 0, value),
	}).requires("key", "operator")
	requirement.AnyOf = []apiextensionsv1.JSONSchemaProps{
		{Required: []string{"values"}, Properties: map[string]apiextensionsv1.JSONSchemaProps{
			"operator": {Enum: []apiextensionsv1.JSON{enum("In"), enum("NotIn")}}, "values": {MinItems: &one}}},
		{Properties: map[string]apiextensionsv1.JSONSchemaProps{
			"operator": {Enum: []apiextensionsv1.JSON{enum("Exists"), enum("DoesNotExist")}}, "values": {MaxItems: &none}}},
	}
	return object(about+" The empty selector selects all of them.", fields{
		"matchLabels":      labels,
		"matchExpressions": list("Conditions that must all hold, beside matchLabels.", 0, requirement),
	}, rules...)
}

// reference names an object in a Namespace.
func reference(about, what string) schema {
	return object(about, fields{
		"name":      text("Name of the "+what+" in its Namespace.").length(1, 253),
		"namespace": text("Namespace that the "+what+" is in.").length(1, 63),
	}).requires("name", "namespace")
}

// block is a prefix less some prefixes. That these are inside the prefix is for
// the webhook.
func block(about string) schema {
	return object(about, fields{
		"cidr":   text("Prefix of the addresses, such as 10.9.8.0/24 or 2001:db8::/64; /32 or /128 for one address.").format("cidr"),
		"except": list("Prefixes that are left out, each within the cidr and smaller than it.", 0, text("A prefix within the cidr, such as 10.9.8.128/25.").format("cidr")),
	}).requires("cidr")
}

// What fields say of themselves in several places.
const (
	pods            = "Pods with these labels."
	addresses       = "Addresses of one prefix, less those of some prefixes within it."
	accounts        = "Pods that run as this service account, in its Namespace."
	notSupported    = "Refused: what it selects is beyond the cluster, where Weir enforces nothing."
	condition       = "Something that is true of the object or not, and since when."
	conditionStatus = "Whether it holds: True, False, or Unknown where that is not known."
	conditionSince  = "When the condition last began to hold or ceased to, and not when it was last looked at."
)

const beyond = "reaches beyond the cluster, which is not supported; "
