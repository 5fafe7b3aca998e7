package main

import (
	"encoding/json"
	"maps"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

type (
	schema apiextensionsv1.JSONSchemaProps
	fields map[string]schema
	rule   = apiextensionsv1.ValidationRule
)

// must is a CEL rule, and what is said where it is false.
func must(expression, message string) rule { return rule{Rule: expression, Message: message} }

func object(about string, f fields, rules ...rule) schema {
	s := schema{Type: "object", Description: about, XValidations: rules}
	if len(f) > 0 {
		s.Properties = make(map[string]apiextensionsv1.JSONSchemaProps)
	}
	for name, field := range f {
		s.Properties[name] = apiextensionsv1.JSONSchemaProps(field)
	}
	return s
}

func (s schema) requires(names ...string) schema {
	s.Required = names
	return s
}

// but is the object with some fields replaced.
func (s schema) but(f fields) schema {
	s.Properties = maps.Clone(s.Properties)
	for name, field := range f {
		s.Properties[name] = apiextensionsv1.JSONSchemaProps(field)
	}
	return s
}

// list is a list of at most so many entries, zero for any number.
func list(about string, most int64, items schema, rules ...rule) schema {
	s := schema{Type: "array", Description: about, XValidations: rules,
		Items: &apiextensionsv1.JSONSchemaPropsOrArray{Schema: (*apiextensionsv1.JSONSchemaProps)(&items)}}
	if most > 0 {
		s.MaxItems = &most
	}
	return s
}

// listMap is a list whose entries differ in some fields.
func listMap(about string, items schema, keys ...string) schema {
	s := list(about, 0, items.requires(keys...))
	of := "map"
	s.XListType, s.XListMapKeys = &of, keys
	return s
}

func text(about string, rules ...rule) schema {
	return schema{Type: "string", Description: about, XValidations: rules}
}

func (s schema) pattern(p string) schema {
	s.Pattern = p
	return s
}

func (s schema) format(f string) schema {
	s.Format = f
	return s
}

func (s schema) length(least, most int64) schema {
	if least > 0 {
		s.MinLength = &least
	}
	s.MaxLength = &most
	return s
}

func oneOf(about string, values ...string) schema {
	s := text(about)
	for _, v := range values {
		s.Enum = append(s.Enum, enum(v))
	}
	return s
}

func enum(v string) apiextensionsv1.JSON {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("crds: a string cannot be written as JSON: " + err.Error())
	}
	return apiextensionsv1.JSON{Raw: raw}
}

func integer(about string, least, most float64, rules ...rule) schema {
	return schema{Type: "integer", Format: "int32", Description: about, Minimum: &least, Maximum: &most, XValidations: rules}
}

func count(about, format string) schema {
	return schema{Type: "integer", Format: format, Description: about}
}

func truth(about string) schema { return schema{Type: "boolean", Description: about} }

// refused is a field that must not be there; it is in the schema so that the
// answer is this, and not that the field is unknown.
func refused(about, message string) schema {
	keep := true
	s := object(about, nil, must("false", message))
	s.XPreserveUnknownFields = &keep
	return s
}

// refusedList is a list that must be empty.
func refusedList(about, message string) schema {
	keep := true
	return list(about, 0, schema{Type: "object", XPreserveUnknownFields: &keep}, must("size(self) == 0", message))
}

// quoted writes strings as a CEL list.
func quoted(values []string) string {
	return "['" + strings.Join(values, "', '") + "']"
}

// alone is the CEL expression that at most one of the conditions holds. Each is
// held against those after it, which costs less than to count them.
func alone(conditions ...string) string {
	if len(conditions) == 1 {
		return "true"
	}
	first, rest := conditions[0], conditions[1:]
	return "((" + first + ") ? !(" + strings.Join(rest, " || ") + ") : " + alone(rest...) + ")"
}

// hasAny is the CEL expression that one of the fields is there.
func hasAny(names ...string) string {
	has := make([]string, len(names))
	for i, n := range names {
		has[i] = "has(self." + n + ")"
	}
	return strings.Join(has, " || ")
}

// filled is the CEL expression that a list is there and has entries.
func filled(list string) string { return "has(" + list + ") && size(" + list + ") > 0" }

// empty is the opposite of filled.
func empty(list string) string { return "!has(" + list + ") || size(" + list + ") == 0" }
