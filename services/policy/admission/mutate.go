package admission

import (
	"encoding/json"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/weirnet/weir/services/policy/api"
)

// operation of a JSON patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// patched is the answer that changes an object, if anything is to change.
func patched(operations ...operation) (*admissionv1.AdmissionResponse, error) {
	response := allowed
	if len(operations) == 0 {
		return &response, nil
	}
	patch, err := json.Marshal(operations)
	if err != nil {
		return nil, err
	}
	kind := admissionv1.PatchTypeJSONPatch
	response.Patch, response.PatchType = patch, &kind
	return &response, nil
}

// fillIn gives an object what its author left to the API: a tier, names of rules.
// One that cannot be read is left as it is: who validates it says what is wrong.
func (w *Webhook) fillIn(r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	full, err := api.Default(r.Object.Raw)
	if err != nil {
		return patched()
	}
	var was, is struct {
		Spec json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(r.Object.Raw, &was); err != nil {
		return nil, fmt.Errorf("read the object: %w", err)
	}
	if err := json.Unmarshal(full, &is); err != nil {
		return nil, fmt.Errorf("read the completed object: %w", err)
	}
	if len(is.Spec) == 0 || sameJSON(was.Spec, is.Spec) {
		return patched()
	}
	return patched(operation{"replace", "/spec", is.Spec})
}

// sameJSON compares two texts of JSON, of which numbers are compared as written.
func sameJSON(a, b json.RawMessage) bool {
	tree := func(text json.RawMessage) string {
		var v any
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.UseNumber()
		if d.Decode(&v) != nil {
			return string(text)
		}
		sorted, _ := json.Marshal(v) // What was decoded can be encoded.
		return string(sorted)
	}
	return tree(a) == tree(b)
}

// changedBy writes down who changes what an object says. Nobody can claim to be
// another: what the object itself says of it is replaced, and while it says the
// same as before, who changed it stays.
func (w *Webhook) changedBy(r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	user := r.UserInfo.Username
	if r.Operation == admissionv1.Update && saysTheSame(r.OldObject.Raw, r.Object.Raw) {
		user = annotation(r.OldObject.Raw)
	}
	if annotation(r.Object.Raw) == user {
		return patched()
	}
	return patched(setEntry(r.Object.Raw, "annotations", api.AnnotationChangedBy, user)...)
}

// annotation is who changed an object, as it says.
func annotation(raw []byte) string {
	var o struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	_ = json.Unmarshal(raw, &o) // Of what is no object there is nothing.
	return o.Metadata.Annotations[api.AnnotationChangedBy]
}

// labelNamespace gives a Namespace the label that holds its name.
func (w *Webhook) labelNamespace(r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	var o struct {
		Metadata struct {
			Name   string            `json:"name"`
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(r.Object.Raw, &o); err != nil {
		return nil, fmt.Errorf("read the Namespace: %w", err)
	}
	name := o.Metadata.Name
	if name == "" { // It has a generateName, and no name yet.
		name = r.Name
	}
	if name == "" || o.Metadata.Labels[api.LabelAntreaNamespaceName] == name {
		return patched()
	}
	return patched(setEntry(r.Object.Raw, "labels", api.LabelAntreaNamespaceName, name)...)
}

// setEntry sets a label or annotation, or removes one whose value is empty.
func setEntry(raw []byte, in, key, value string) []operation {
	var o struct {
		Metadata map[string]json.RawMessage `json:"metadata"`
	}
	var entries map[string]string
	if json.Unmarshal(raw, &o) == nil {
		_ = json.Unmarshal(o.Metadata[in], &entries) // Absent: there are none.
	}
	at := "/metadata/" + in
	pointer := at + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(key) // RFC 6901, section 3.
	switch {
	case value == "":
		return []operation{{Op: "remove", Path: pointer}}
	case entries == nil:
		return []operation{{"add", at, map[string]string{key: value}}}
	}
	return []operation{{"add", pointer, value}}
}
