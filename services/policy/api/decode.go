package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Manifest is what a YAML text says.
type Manifest struct {
	Objects  []Decoded
	Warnings []Violation
}

// Decoded is one object of a text.
type Decoded struct {
	Object   Object
	Raw      []byte // The object as it was written, in JSON.
	Document int    // From one.
	Line     int    // Where its document begins, from one.
}

// Decode reads a text of YAML documents (JSON is YAML too), checks it as
// strictly as an API server would, and fills in the defaults that the API
// server gives to what we read. Lists are taken apart; kinds of Kubernetes that
// are not read are skipped with a warning. The error is an *Invalid with every
// violation of the text; the objects without violations are returned beside it.
func Decode(text []byte) (Manifest, error) {
	var m Manifest
	var violations []Violation
	seen := map[Ref]int{}
	for _, doc := range split(text) {
		d := decoder{doc: doc}
		raw, err := toJSON(doc.text)
		if err != nil {
			d.complain(typeMeta{}, "", "not valid YAML: %s", yamlError(err, doc.line))
		} else {
			d.decode(raw, typeMeta{})
		}
		for _, o := range d.objects {
			ref := o.Object.Ref()
			if first, dup := seen[ref]; dup {
				d.violations = append(d.violations, Violation{Object: ref,
					Message: fmt.Sprintf("defined already by document %d; remove one of the two", first)})
				continue
			}
			seen[ref] = doc.index
			o.Document, o.Line = doc.index, doc.line
			m.Objects = append(m.Objects, o)
		}
		violations = append(violations, locate(d.violations, doc)...)
		m.Warnings = append(m.Warnings, locate(d.warnings, doc)...)
	}
	return m, invalid(violations)
}

// DecodeObject reads one object, as JSON, as Decode reads it. Warnings are
// left out: an API server gave them to who wrote the object.
func DecodeObject(raw []byte) (Object, error) {
	o, _, err := ReviewObject(raw)
	return o, err
}

// ReviewObject reads one object, as JSON, as Decode reads it, and says what its
// author should know. The error of one that must be refused is an *Invalid.
func ReviewObject(raw []byte) (o Object, warnings []Violation, err error) {
	d := decoder{}
	d.decode(raw, typeMeta{})
	if err := invalid(d.violations); err != nil {
		return nil, d.warnings, err
	}
	if len(d.objects) != 1 {
		return nil, d.warnings, fmt.Errorf("%s is not read", peek(raw).subject())
	}
	return d.objects[0].Object, d.warnings, nil
}

// Outline is what other objects have a say in, of an object that must be refused
// for what it says itself: the tier of a policy, the children of a group. Nil where
// that is nothing, or cannot be read.
func Outline(raw []byte) Object {
	t := peek(raw)
	var o struct {
		Spec struct {
			Tier        string   `json:"tier"`
			ChildGroups []string `json:"childGroups"`
		} `json:"spec"`
	}
	if kjson.UnmarshalCaseSensitivePreserveInts(raw, &o) != nil {
		return nil
	}
	switch kind := KindOf(t.APIVersion, t.Kind); kind {
	case KindAntreaClusterNetworkPolicy, KindAntreaNetworkPolicy:
		return &OrderedPolicy{Kind: kind, Namespace: t.Metadata.Namespace, Name: t.Metadata.Name, Tier: TierName(o.Spec.Tier)}
	case KindClusterGroup, KindGroup:
		return &Group{Kind: kind, Namespace: t.Metadata.Namespace, Name: t.Metadata.Name, Children: o.Spec.ChildGroups}
	}
	return nil
}

func locate(list []Violation, doc document) []Violation {
	for i := range list {
		list[i].Document, list[i].Line = doc.index, doc.line
	}
	return list
}

// decoder reads the objects of one document.
type decoder struct {
	doc        document
	objects    []Decoded
	violations []Violation
	warnings   []Violation
}

func (d *decoder) complain(t typeMeta, field, format string, args ...any) {
	v := Violation{Field: field, Message: fmt.Sprintf(format, args...)}
	if t.Kind != "" || t.Metadata.Name != "" {
		v.Subject = t.subject()
	}
	d.violations = append(d.violations, v)
}

// decode reads one object, or the items of a list. An entry of a list of one
// kind may leave out what kind it is.
func (d *decoder) decode(raw []byte, entry typeMeta) {
	t := peek(raw)
	if t.Kind == "" && t.APIVersion == "" {
		t.Kind, t.APIVersion = entry.Kind, entry.APIVersion
	}
	switch {
	case len(raw) == 0 || raw[0] != '{':
		d.complain(t, "", "not an object; write apiVersion, kind, metadata and spec")
	case t.Kind == "List" && t.APIVersion == "v1":
		d.decodeList(raw, t, typeMeta{})
	case strings.HasSuffix(t.Kind, "List") && Reads(t.APIVersion, strings.TrimSuffix(t.Kind, "List")):
		d.decodeList(raw, t, typeMeta{APIVersion: t.APIVersion, Kind: strings.TrimSuffix(t.Kind, "List")})
	case Reads(t.APIVersion, t.Kind):
		d.decodeObject(raw, t)
	case Skips(t.APIVersion, t.Kind):
		d.warnings = append(d.warnings, Violation{Subject: t.subject(), Message: "skipped: " + t.Kind + " is not read"})
	default:
		field, message := unreadable(t.APIVersion, t.Kind)
		d.complain(t, field, "%s", message)
	}
}

func (d *decoder) decodeList(raw []byte, t, entry typeMeta) {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta   `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	if !d.unmarshal(raw, &list, t) {
		return
	}
	for _, item := range list.Items {
		d.decode(item, entry)
	}
}

func (d *decoder) decodeObject(raw []byte, t typeMeta) {
	antrea := t.APIVersion == antreav1beta1.APIVersion
	switch t.Kind {
	case "Namespace":
		decodeAs(d, raw, t, infallible(FromNamespace))
	case "Node":
		decodeAs(d, raw, t, infallible(FromNode))
	case "Pod":
		decodeAs(d, raw, t, infallible(FromPod))
	case "Service":
		decodeAs(d, raw, t, infallible(FromService))
	case "ServiceAccount":
		decodeAs(d, raw, t, infallible(FromServiceAccount))
	case "EndpointSlice":
		decodeAs(d, raw, t, infallible(FromEndpointSlice))
	case "NetworkPolicy":
		if antrea {
			decodeAs(d, raw, t, FromAntreaNetworkPolicy)
		} else {
			decodeAs(d, raw, t, FromNetworkPolicy)
		}
	case "ClusterNetworkPolicy":
		if antrea {
			decodeAs(d, raw, t, FromAntreaClusterNetworkPolicy)
		} else {
			decodeAs(d, raw, t, FromClusterNetworkPolicy)
		}
	case "AdminNetworkPolicy":
		decodeAs(d, raw, t, FromAdminNetworkPolicy)
	case "BaselineAdminNetworkPolicy":
		decodeAs(d, raw, t, FromBaselineAdminNetworkPolicy)
	case "Tier":
		decodeAs(d, raw, t, FromTier)
	case "ClusterGroup":
		decodeAs(d, raw, t, FromClusterGroup)
	case "Group":
		decodeAs(d, raw, t, FromGroup)
	default:
		panic("api: no decoder for " + t.Kind + ", which is in readKinds")
	}
}

func infallible[T any, O Object](convert func(*T) O) func(*T) (O, error) {
	return func(o *T) (O, error) { return convert(o), nil }
}

// decodeAs unmarshals, defaults, validates and converts one object.
func decodeAs[T any, O Object](d *decoder, raw []byte, t typeMeta, convert func(*T) (O, error)) {
	typed := new(T)
	before := len(d.violations)
	if !d.unmarshal(raw, typed, t) {
		return
	}
	d.warnings = append(d.warnings, nullEntries(raw, t)...)
	inDefaultNamespace(typed)
	violations, warnings := Validate(typed)
	d.violations = append(d.violations, violations...)
	d.warnings = append(d.warnings, warnings...)
	if len(d.violations) > before {
		return
	}
	o, err := convert(typed)
	if err != nil {
		d.complain(t, "", "%v", err)
		return
	}
	d.objects = append(d.objects, Decoded{Object: o, Raw: raw})
}

// inDefaultNamespace puts namespaced objects that name no Namespace into "default".
func inDefaultNamespace(typed any) {
	switch typed.(type) {
	case *corev1.Pod, *corev1.Service, *corev1.ServiceAccount, *discoveryv1.EndpointSlice, *networkingv1.NetworkPolicy,
		*antreav1beta1.NetworkPolicy, *antreav1beta1.Group:
		m := typed.(metav1.Object)
		if m.GetNamespace() == "" {
			m.SetNamespace(metav1.NamespaceDefault)
		}
	}
}

// unmarshal decodes strictly and reports every unknown or duplicate field. It
// is false where a value has the wrong type, so that the rest cannot be judged.
func (d *decoder) unmarshal(raw []byte, into any, t typeMeta) bool {
	strict, err := kjson.UnmarshalStrict(raw, into)
	for _, e := range strict {
		field, message := "", e.Error()
		if fe, ok := e.(kjson.FieldError); ok {
			field = fe.FieldPath()
			message = strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(message), strconv.Quote(field)))
			if message == "unknown field" {
				message = "unknown field; check its spelling and indentation, or remove it"
			}
		}
		d.complain(t, field, "%s", message)
	}
	if err != nil {
		field, message := typeError(err)
		d.complain(t, field, "%s", message)
	}
	return err == nil
}

// typeError says where a value has the wrong type.
func typeError(err error) (field, message string) {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return te.Field, describeType(te.Value, te.Type.String())
	}
	return "", "cannot be read: " + strings.TrimPrefix(err.Error(), "json: ")
}

func describeType(value, goType string) string {
	want := goType
	switch {
	case strings.HasPrefix(goType, "[]"):
		want = "a list: begin each entry with \"- \""
	case strings.HasPrefix(goType, "map["):
		want = "a mapping of keys to values"
	case goType == "string" || strings.HasSuffix(goType, "Protocol") || strings.HasSuffix(goType, "PolicyType") || strings.HasSuffix(goType, "Operator"):
		want = "a string: put it in quotes"
	case strings.HasPrefix(goType, "int") || strings.HasPrefix(goType, "uint"):
		want = "a number, without quotes"
	case goType == "bool":
		want = "true or false, without quotes"
	case strings.Contains(goType, "."):
		want = "a mapping of fields"
	}
	if value == "bool" && strings.HasSuffix(want, "quotes") && goType != "bool" {
		want += " (YAML reads y, n, yes, no, on and off without quotes as true and false)"
	}
	return fmt.Sprintf("is a %s; write %s", value, want)
}

// nullEntries warns of list entries without content: a dash too many reads as
// the empty object, and an empty rule matches everything.
func nullEntries(raw []byte, t typeMeta) []Violation {
	var tree any
	if json.Unmarshal(raw, &tree) != nil {
		return nil
	}
	var found []Violation
	var walk func(v any, path string)
	walk = func(v any, path string) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				walk(e, strings.TrimPrefix(path+"."+k, "."))
			}
		case []any:
			for i, e := range v {
				at := fmt.Sprintf("%s[%d]", path, i)
				if e == nil {
					found = append(found, Violation{Subject: t.subject(), Field: at,
						Message: "list entry without content counts as {}; write {} if that is meant, or remove the dash"})
				}
				walk(e, at)
			}
		}
	}
	walk(tree, "")
	return found
}

// yamlError shortens a YAML error; its line numbers count from the document's beginning.
func yamlError(err error, from int) string {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = strings.TrimPrefix(text, "yaml: ")
	var lines []string
	for line := range strings.SplitSeq(strings.TrimPrefix(text, "unmarshal errors:\n"), "\n") {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "line "); ok {
			if number, message, ok := strings.Cut(rest, ": "); ok {
				if n, err := strconv.Atoi(number); err == nil {
					line = fmt.Sprintf("line %d: %s", from+n-1, message)
				}
			}
		} else {
			line = fmt.Sprintf("line %d: %s", from, line) // The parser names no first line.
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}
