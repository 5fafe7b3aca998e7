package main

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
	"github.com/weirnet/weir/services/policy/api/weirv1alpha1"
)

// types are the Go types of the kinds, by the name of their definition.
var types = map[string]any{
	"tiers.crd.antrea.io":                  antreav1beta1.Tier{},
	"clusternetworkpolicies.crd.antrea.io": antreav1beta1.ClusterNetworkPolicy{},
	"networkpolicies.crd.antrea.io":        antreav1beta1.NetworkPolicy{},
	"clustergroups.crd.antrea.io":          antreav1beta1.ClusterGroup{},
	"groups.crd.antrea.io":                 antreav1beta1.Group{},
	"nodeendpoints.weir.dev":               weirv1alpha1.NodeEndpoints{},
}

// A schema has the fields of its Go type and no others: what it lacks would be lost without a word, and what it has beyond would be
// stored and not read.
func TestSchemasHaveTheFieldsOfTheTypes(t *testing.T) {
	for _, k := range kinds() {
		typed, ok := types[k.name()]
		if !ok {
			t.Errorf("%s has no Go type", k.name())
			continue
		}
		s := apiextensionsv1.JSONSchemaProps(k.schema())
		compare(t, k.names.Kind, reflect.TypeOf(typed), &s)
	}
}

func compare(t *testing.T, path string, of reflect.Type, s *apiextensionsv1.JSONSchemaProps) {
	t.Helper()
	for of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	switch {
	case s.XPreserveUnknownFields != nil || strings.HasSuffix(path, ".metadata") || s.Type == "string" || s.XIntOrString: // Looked into no further.
	case of.Kind() == reflect.Slice && s.Type == "array":
		compare(t, path+"[]", of.Elem(), s.Items.Schema)
	case of.Kind() == reflect.Map && s.AdditionalProperties != nil:
		compare(t, path+"{}", of.Elem(), s.AdditionalProperties.Schema)
	case of.Kind() == reflect.Struct && s.Type == "object":
		names := jsonNames(of)
		for name, field := range names {
			if sub, has := s.Properties[name]; has {
				compare(t, path+"."+name, field, &sub)
			} else {
				t.Errorf("%s.%s is a field of the Go type alone", path, name)
			}
		}
		for name := range s.Properties {
			if _, has := names[name]; !has {
				t.Errorf("%s.%s is a field of the schema alone", path, name)
			}
		}
	case !slices.Contains([]string{"integer", "number", "boolean"}, s.Type) || of.Kind() == reflect.Struct:
		t.Errorf("%s is a %s in the schema and a %s in Go", path, s.Type, of)
	}
}

// jsonNames are the fields of a struct, by their names in JSON.
func jsonNames(of reflect.Type) map[string]reflect.Type {
	names := make(map[string]reflect.Type)
	for f := range of.Fields() {
		if f.Type == reflect.TypeFor[metav1.TypeMeta]() {
			names["apiVersion"], names["kind"] = reflect.TypeFor[string](), reflect.TypeFor[string]()
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[name] = f.Type
	}
	return names
}

// Kubectl explain has a sentence for each field, and another one for each: one that
// says no more than the field's name, or the same as its neighbour's, helps nobody.
func TestFieldsAreExplained(t *testing.T) {
	count := 0
	for _, k := range kinds() {
		s := apiextensionsv1.JSONSchemaProps(k.schema())
		explained(t, k.names.Kind, &s, &count)
		for _, c := range k.columns {
			if c.Description == "" {
				t.Errorf("column %s of %s has no description", c.Name, k.name())
			}
		}
	}
	if count < 500 {
		t.Errorf("%d fields have been looked at, which are not all", count)
	}
}

var sentence = regexp.MustCompile(`^[A-Z].*[^.\s]\.$`)

func explained(t *testing.T, path string, s *apiextensionsv1.JSONSchemaProps, count *int) {
	t.Helper()
	*count++
	if words := strings.Fields(s.Description); len(words) < 5 || !sentence.MatchString(s.Description) || strings.Contains(s.Description, "  ") {
		t.Errorf("%s is explained as %q, which is no sentence of five words", path, s.Description)
	}
	said := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		sub := s.Properties[name]
		if s.Type == "object" && name == "metadata" { // The API server explains it.
			continue
		}
		if other := said[sub.Description]; other != "" {
			t.Errorf("%s.%s is explained as its neighbour %s is: %q", path, name, other, sub.Description)
		}
		said[sub.Description] = name
		explained(t, path+"."+name, &sub, count)
	}
	if s.Items != nil && s.Items.Schema.XPreserveUnknownFields == nil {
		explained(t, path+"[]", s.Items.Schema, count)
	}
	if s.AdditionalProperties != nil {
		explained(t, path+"{}", s.AdditionalProperties.Schema, count)
	}
}

// What a rule says of a violation names what to write instead; and rules end up
// in one line.
func TestRulesHaveMessages(t *testing.T) {
	var walk func(path string, s *apiextensionsv1.JSONSchemaProps)
	walk = func(path string, s *apiextensionsv1.JSONSchemaProps) {
		for _, r := range s.XValidations {
			if !strings.Contains(r.Message, "write ") && !strings.Contains(r.Message, "remove ") && !strings.Contains(r.Message, "move it ") {
				t.Errorf("%s: %q does not say what to write", path, r.Message)
			}
			if strings.Contains(r.Rule+r.Message, "\n") {
				t.Errorf("%s: %q has several lines", path, r.Rule)
			}
		}
		for name, sub := range s.Properties {
			walk(path+"."+name, &sub)
		}
		if s.Items != nil {
			walk(path+"[]", s.Items.Schema)
		}
	}
	for _, k := range kinds() {
		s := apiextensionsv1.JSONSchemaProps(k.schema())
		walk(k.names.Kind, &s)
	}
}
