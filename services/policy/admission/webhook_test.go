package admission

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/yaml"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

// model is an index of what a test has.
type model struct {
	*validate.Index
	incomplete bool
}

func (m *model) Complete() bool { return !m.incomplete }

func antrea(kind, meta, spec string) string {
	return fmt.Sprintf("{apiVersion: crd.antrea.io/v1beta1, kind: %s, metadata: {%s}, spec: {%s}}", kind, meta, spec)
}

func acnp(meta, spec string) string {
	return antrea("ClusterNetworkPolicy", "name: p"+meta, "priority: 5, appliedTo: [{podSelector: {}}], "+spec)
}

func toJSON(t *testing.T, text string) []byte {
	t.Helper()
	if text == "" {
		return nil
	}
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// caller calls webhooks as an API server does.
type caller struct {
	t    *testing.T
	hook http.Handler
}

func newCaller(t *testing.T, m *model) *caller {
	return &caller{t, New(Config{Model: m, Registry: prometheus.NewRegistry(), Logger: hclog.NewNullLogger()})}
}

func (c *caller) post(path string, body []byte) *httptest.ResponseRecorder {
	out := httptest.NewRecorder()
	c.hook.ServeHTTP(out, httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body)))
	return out
}

func (c *caller) call(path string, op admissionv1.Operation, old, object string) *admissionv1.AdmissionResponse {
	c.t.Helper()
	review := admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{UID: "u-1", Operation: op, UserInfo: authenticationv1.UserInfo{Username: "jane"},
			Object: runtime.RawExtension{Raw: toJSON(c.t, object)}, OldObject: runtime.RawExtension{Raw: toJSON(c.t, old)}}}
	raw, err := json.Marshal(review)
	if err != nil {
		c.t.Fatal(err)
	}
	out := c.post(path, raw)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(out.Body.Bytes(), &answer); err != nil || answer.Response == nil || answer.Response.UID != "u-1" || answer.Kind != "AdmissionReview" {
		c.t.Fatalf("%d %s", out.Code, out.Body)
	}
	return answer.Response
}

func TestValidate(t *testing.T) {
	index := validate.NewIndex()
	for _, text := range []string{antrea("Tier", "name: mine", "priority: 10"), antrea("ClusterGroup", "name: child", "podSelector: {}"), antrea("ClusterGroup", "name: parent", "childGroups: [child]"),
		acnp("", "tier: mine, ingress: [{name: a, action: Drop}]")} {
		m, err := api.Decode([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		index.Set(m.Objects[0].Object)
	}
	c := newCaller(t, &model{Index: index})
	wrong := "egress: [{action: Drop, to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]"
	for _, tt := range []struct {
		name        string
		op          admissionv1.Operation
		old, object string
		refused     []string // Fields, in order. Nil: it is allowed.
		warned      string
	}{
		{"a policy", admissionv1.Create, "", acnp("", "ingress: [{action: Drop}]"), nil, ""},
		{"what its author should know", admissionv1.Create, "", acnp("", "ingress: [{action: Deny}]"), nil, "spec.ingress[0].action: Deny is read as Drop"},
		{"what others have a say in", admissionv1.Create, "", acnp("", "tier: none"), []string{"spec.tier"}, ""},
		{"both at once", admissionv1.Create, "", acnp("", "tier: none, "+wrong), []string{"spec.egress[0].to[0].ipBlock.except[0]", "spec.tier"}, ""},
		{"a change for the worse", admissionv1.Update, acnp("", ""), acnp("", wrong), []string{"spec.egress[0].to[0].ipBlock.except[0]"}, ""},
		{"a change of what was wrong", admissionv1.Update, acnp("", wrong), acnp("", "tier: none, "+wrong), []string{"spec.egress[0].to[0].ipBlock.except[0]", "spec.tier"}, ""},
		{"no change of what was wrong", admissionv1.Update, acnp(", finalizers: [a/b], resourceVersion: '1'", wrong), acnp(", resourceVersion: '2'", wrong), nil, ""},
		{"another label for what was wrong", admissionv1.Update, acnp("", wrong), acnp(", labels: {a: b}", wrong), []string{"spec.egress[0].to[0].ipBlock.except[0]"}, ""},
		{"a tier's other priority", admissionv1.Update, antrea("Tier", "name: mine", "priority: 10"), antrea("Tier", "name: mine", "priority: 11"), []string{"spec.priority"}, ""},
		{"a tier in use", admissionv1.Delete, antrea("Tier", "name: mine", "priority: 10"), "", []string{"metadata.name"}, ""},
		{"a child", admissionv1.Delete, antrea("ClusterGroup", "name: child", "podSelector: {}"), "", []string{"metadata.name"}, ""},
		{"a parent", admissionv1.Delete, antrea("ClusterGroup", "name: parent", "childGroups: [child]"), "", nil, ""},
		{"a group that was wrong", admissionv1.Delete, antrea("ClusterGroup", "name: child", "podSelector: {}, ipBlocks: [{cidr: x}]"), "", nil, ""},
		{"a child of a child, which is wrong too", admissionv1.Create, "", antrea("ClusterGroup", "name: g", "childGroups: [parent], podSelector: {}"), []string{"spec", "spec.childGroups[0]"}, ""},
		{"another operation", admissionv1.Connect, "", acnp("", wrong), nil, ""},
	} {
		got := c.call("/validate", tt.op, tt.old, tt.object)
		var fields []string
		if !got.Allowed {
			for _, cause := range got.Result.Details.Causes {
				fields = append(fields, cause.Field)
				if !strings.Contains(got.Result.Message, cause.Message) {
					t.Errorf("%s: the message %q lacks %q", tt.name, got.Result.Message, cause.Message)
				}
			}
		}
		if !slices.Equal(fields, tt.refused) || got.Allowed != (tt.refused == nil) {
			t.Errorf("%s: allowed %t, refused for %q, want %q: %v", tt.name, got.Allowed, fields, tt.refused, got.Result)
		}
		if tt.warned != "" && !slices.ContainsFunc(got.Warnings, func(w string) bool { return strings.HasPrefix(w, tt.warned) }) {
			t.Errorf("%s: warnings %q, want %q", tt.name, got.Warnings, tt.warned)
		}
	}
}

// Before the cluster has been read nothing that depends on it is answered, and what
// is wrong by itself is.
func TestValidateBeforeTheClusterIsRead(t *testing.T) {
	c := newCaller(t, &model{Index: validate.NewIndex(), incomplete: true})
	if got := c.call("/validate", admissionv1.Create, "", acnp("", "ingress: [{action: Drop, from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]")); got.Allowed {
		t.Error("a wrong object is allowed")
	}
	review, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1"},
		Request: &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: toJSON(t, acnp("", ""))}}})
	if err != nil {
		t.Fatal(err)
	}
	if out := c.post("/validate", review); out.Code != http.StatusServiceUnavailable {
		t.Errorf("answered %d %s", out.Code, out.Body)
	}
}

func TestMutations(t *testing.T) {
	c := newCaller(t, &model{Index: validate.NewIndex()})
	namespace := func(meta string) string { return "{apiVersion: v1, kind: Namespace, metadata: {" + meta + "}}" }
	by := func(user string) string { return "annotations: {weir.dev/changed-by: " + user + "}" }
	for _, tt := range []struct {
		name, path, old, object, want string
	}{
		{"a tier and names", "/default", "", acnp("", "ingress: [{action: Drop}, {name: a, action: Drop}], egress: [{action: Pass}]"),
			acnp("", "tier: application, ingress: [{name: ingress-drop-742ade5, action: Drop}, {name: a, action: Drop}], egress: [{name: egress-pass-87f5a3a, action: Pass}]")},
		{"nothing is missing", "/default", "", acnp("", "tier: mine, ingress: [{name: a, action: Drop}]"), acnp("", "tier: mine, ingress: [{name: a, action: Drop}]")},
		{"what cannot be read", "/default", "", acnp("", "ingress: 5"), acnp("", "ingress: 5")},
		{"who creates", "/changed-by", "", acnp("", ""), acnp(", "+by("jane"), "")},
		{"who claims to be another", "/changed-by", "", acnp(", annotations: {weir.dev/changed-by: root, a: b}", ""), acnp(", annotations: {weir.dev/changed-by: jane, a: b}", "")},
		{"who changes", "/changed-by", acnp(", "+by("joe"), ""), acnp(", "+by("joe"), "tier: a"), acnp(", "+by("jane"), "tier: a")},
		{"who changes no content", "/changed-by", acnp(", "+by("joe"), ""), acnp(", finalizers: [a/b]", ""), acnp(", finalizers: [a/b], "+by("joe"), "")},
		{"who changes a claim alone", "/changed-by", acnp(", "+by("joe"), ""), acnp(", "+by("root"), ""), acnp(", "+by("joe"), "")},
		{"a claim where nobody was known", "/changed-by", acnp("", ""), acnp(", annotations: {weir.dev/changed-by: root, a: b}", ""), acnp(", annotations: {weir.dev/changed-by: jane, a: b}", "")},
		{"a claim alone where nobody was known", "/changed-by", acnp(", annotations: {a: b}", ""), acnp(", annotations: {weir.dev/changed-by: root, a: b}", ""), acnp(", annotations: {a: b}", "")},
		{"a Namespace's name", "/mutate/namespace", "", namespace("name: a"), namespace("name: a, labels: {antrea.io/metadata.name: a}")},
		{"another name than its own", "/mutate/namespace", "", namespace("name: a, labels: {antrea.io/metadata.name: b, c: d}"), namespace("name: a, labels: {antrea.io/metadata.name: a, c: d}")},
		{"no name yet", "/mutate/namespace", "", namespace("generateName: a-"), namespace("generateName: a-")},
	} {
		op := admissionv1.Create
		if tt.old != "" {
			op = admissionv1.Update
		}
		got := c.call(tt.path, op, tt.old, tt.object)
		if !got.Allowed {
			t.Errorf("%s: refused", tt.name)
		}
		object, want := toJSON(t, tt.object), toJSON(t, tt.want)
		if got.Patch != nil {
			patch, err := jsonpatch.DecodePatch(got.Patch)
			if err != nil {
				t.Fatal(err)
			}
			if object, err = patch.Apply(object); err != nil {
				t.Fatalf("%s: %s: %v", tt.name, got.Patch, err)
			}
		}
		if !sameJSON(object, want) {
			t.Errorf("%s: %s, want %s", tt.name, object, want)
		}
	}
}

func TestBadReviews(t *testing.T) {
	c := newCaller(t, &model{Index: validate.NewIndex()})
	for _, body := range []string{"", "{}", "[]", `{"apiVersion":"admission.k8s.io/v1beta1","request":{}}`, `{"apiVersion":"admission.k8s.io/v1"}`, strings.Repeat(" ", maxReviewBytes+1)} {
		if out := c.post("/validate", []byte(body)); out.Code != http.StatusBadRequest || !strings.Contains(out.Body.String(), "AdmissionReview") {
			t.Errorf("%.50q: %d %s", body, out.Code, out.Body)
		}
	}
	for _, path := range []string{"/", "/validate/x", "/mutate"} {
		if out := c.post(path, nil); out.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, out.Code)
		}
	}
}
