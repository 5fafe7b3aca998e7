package main

import (
	"encoding/json"
	"maps"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/services/policy/api"
)

// kind is a kind with one version.
type kind struct {
	group, version string
	names          apiextensionsv1.CustomResourceDefinitionNames
	namespaced     bool
	about          string
	fields         fields // Beside apiVersion, kind and metadata.
	required       []string
	rules          []rule
	columns        []apiextensionsv1.CustomResourceColumnDefinition // Before AGE.
}

func kinds() []kind {
	return []kind{tier(), clusterNetworkPolicy(), networkPolicy(), clusterGroup(), group(), nodeEndpoints()}
}

func (k kind) name() string { return k.names.Plural + "." + k.group }

func (k kind) schema() schema {
	all := fields{
		"apiVersion": text("Group and version of the kind, which say by which schema the object is read."),
		"kind":       text("Name of the kind that the object is of."),
		"metadata":   {Type: "object"},
	}
	maps.Copy(all, k.fields)
	return object(k.about, all, k.rules...).requires(k.required...)
}

func (k kind) yaml() ([]byte, error) {
	scope := apiextensionsv1.ClusterScoped
	if k.namespaced {
		scope = apiextensionsv1.NamespaceScoped
	}
	open := apiextensionsv1.JSONSchemaProps(k.schema())
	v := apiextensionsv1.CustomResourceDefinitionVersion{Name: k.version, Served: true, Storage: true,
		Schema:                   &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &open},
		AdditionalPrinterColumns: append(k.columns, column("Age", "date", ".metadata.creationTimestamp", 0, "When the object was created."))}
	if _, has := k.fields["status"]; has {
		v.Subresources = &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}}
	}
	raw, err := json.Marshal(apiextensionsv1.CustomResourceDefinition{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
		ObjectMeta: metav1.ObjectMeta{Name: k.name(), Labels: map[string]string{api.LabelPartOf: api.PartOf}},
		Spec:       apiextensionsv1.CustomResourceDefinitionSpec{Group: k.group, Names: k.names, Scope: scope, Versions: []apiextensionsv1.CustomResourceDefinitionVersion{v}},
	})
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, err
	}
	delete(tree, "status") // The API server's.
	return yaml.Marshal(tree)
}

func names(kind, singular, plural, short string) apiextensionsv1.CustomResourceDefinitionNames {
	return apiextensionsv1.CustomResourceDefinitionNames{Kind: kind, ListKind: kind + "List", Singular: singular, Plural: plural, ShortNames: []string{short}}
}

// column is a column of kubectl get; above priority 0 of its wide form alone.
func column(name, of, path string, priority int32, about string) apiextensionsv1.CustomResourceColumnDefinition {
	return apiextensionsv1.CustomResourceColumnDefinition{Name: name, Type: of, JSONPath: path, Priority: priority, Description: about}
}
