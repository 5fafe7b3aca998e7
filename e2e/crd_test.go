package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
	"github.com/weirnet/weir/services/policy/evaluate/conformance"
)

// startKube is an API server that ends with the test.
func startKube(t testing.TB, cfg harness.KubeConfig) *harness.Kube {
	t.Helper()
	var err error
	if cfg.Bin, err = harness.BuildKube(t.Context()); err != nil {
		if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cfg.Dir, cfg.Log = t.TempDir(), t.Logf
	k, err := harness.StartKube(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	return k
}

// TestCRDs holds the definitions of our kinds to a real API server, and to the
// validation of package api, which must refuse whatever the schemas refuse.
func TestCRDs(t *testing.T) {
	t.Parallel()
	k := startKube(t, harness.KubeConfig{})
	if err := k.ApplyWeirCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg, err := k.Config()
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &schemas{kube: k, client: client, namespaces: map[string]bool{"default": true}}
	t.Run("definitions", s.testDefinitions)
	t.Run("explained", s.testExplained)
	t.Run("examples", s.testExamples)
	t.Run("accepted", s.testAccepted)
	t.Run("refused", s.testRefused)
	t.Run("agreement", s.testAgreement)
	t.Run("listings", s.testListings) // From here on objects are kept.
	t.Run("changes", s.testChanges)
}

// schemas is an API server that has our kinds.
type schemas struct {
	kube       *harness.Kube
	client     *dynamic.DynamicClient
	namespaces map[string]bool // That are there.
}

// plurals are the kinds whose schemas are tested.
var plurals = map[string]string{"Tier": "tiers", "ClusterNetworkPolicy": "clusternetworkpolicies", "NetworkPolicy": "networkpolicies", "ClusterGroup": "clustergroups", "Group": "groups"}

func (s *schemas) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := s.kube.Kubectl(t.Context(), []byte(stdin), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// create says what the API server answers to the creation of an object, which
// it does not keep. Unknown fields are errors.
func (s *schemas) create(t *testing.T, o *unstructured.Unstructured) error {
	t.Helper()
	plural, ours := plurals[o.GetKind()]
	if !ours || o.GetAPIVersion() != antreav1beta1.APIVersion {
		t.Fatalf("%s of %s has no schema of ours", o.GetKind(), o.GetAPIVersion())
	}
	resource := s.client.Resource(schema.GroupVersionResource{Group: "crd.antrea.io", Version: "v1beta1", Resource: plural})
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
	if o.GetKind() != "NetworkPolicy" && o.GetKind() != "Group" {
		_, err := resource.Create(t.Context(), o, options)
		return err
	}
	ns := o.GetNamespace()
	if ns == "" {
		ns = "default"
	}
	if !s.namespaces[ns] {
		s.kubectl(t, "", "create", "namespace", ns)
		s.namespaces[ns] = true
	}
	_, err := resource.Namespace(ns).Create(t.Context(), o, options)
	return err
}

// objects are the objects of a text that have one of our schemas.
func objects(t *testing.T, text string) (list []*unstructured.Unstructured) {
	t.Helper()
	for doc := range strings.SplitSeq("\n"+text, "\n---\n") {
		raw, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if o := object(t, raw); o != nil {
			list = append(list, o)
		}
	}
	return list
}

// object is an object that has one of our schemas, or nil.
func object(t *testing.T, raw []byte) *unstructured.Unstructured {
	t.Helper()
	var o unstructured.Unstructured
	if json.Unmarshal(raw, &o.Object) != nil || o.GetAPIVersion() != antreav1beta1.APIVersion || plurals[o.GetKind()] == "" {
		return nil
	}
	if err := o.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	return &o
}

func (s *schemas) testDefinitions(t *testing.T) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
	}
	if err := json.Unmarshal([]byte(s.kubectl(t, "", "get", "crds", "--output", "json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 6 {
		t.Errorf("%d definitions are there", len(list.Items))
	}
	for _, crd := range list.Items {
		for _, c := range crd.Status.Conditions {
			if good := c.Type == "Established" || c.Type == "NamesAccepted"; good != (c.Status == "True") {
				t.Errorf("%s is %s %s: %s", crd.Metadata.Name, c.Type, c.Status, c.Message)
			}
		}
	}
}

// listed are objects of each kind. The static tiers are there too.
const listed = `
apiVersion: crd.antrea.io/v1beta1
kind: Tier
metadata: {name: mytier}
spec: {priority: 10}
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: test-cnp}
spec: {tier: emergency, priority: 5, appliedTo: [{podSelector: {}}]}
---
apiVersion: crd.antrea.io/v1beta1
kind: NetworkPolicy
metadata: {name: test-annp, namespace: default}
spec: {tier: securityops, priority: 5.5, appliedTo: [{podSelector: {}}]}
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterGroup
metadata: {name: test-cg}
spec: {podSelector: {}}
---
apiVersion: crd.antrea.io/v1beta1
kind: Group
metadata: {name: test-grp, namespace: default}
spec: {podSelector: {}}
---
apiVersion: weir.dev/v1alpha1
kind: NodeEndpoints
metadata: {name: node}
endpoints: [{namespace: default, name: pod, ips: [10.9.8.7]}]
`

// What kubectl get shows, with the columns of the reference, by long and short
// names, of one Namespace, of all, and of more columns.
func (s *schemas) testListings(t *testing.T) {
	for _, tier := range api.StaticTiers() {
		s.kubectl(t, tierOf(tier.Name, int(tier.Priority)), "create", "--filename", "-")
	}
	s.kubectl(t, listed, "apply", "--validate=strict", "--filename", "-")
	var b strings.Builder
	for _, test := range []struct{ names, flags []string }{
		{[]string{"tiers", "tiers.crd.antrea.io", "tr", "tr.crd.antrea.io"}, []string{"--sort-by=.spec.priority"}},
		{[]string{"clusternetworkpolicies", "clusternetworkpolicies.crd.antrea.io", "acnp", "acnp.crd.antrea.io"}, nil},
		{[]string{"networkpolicies.crd.antrea.io", "annp", "annp.crd.antrea.io"}, nil},
		{[]string{"clustergroups", "clustergroups.crd.antrea.io", "cg", "cg.crd.antrea.io"}, nil},
		{[]string{"groups", "groups.crd.antrea.io", "grp", "grp.crd.antrea.io"}, nil},
		{[]string{"nodeendpoints", "nep"}, nil},
		{[]string{"annp"}, []string{"--all-namespaces"}},
		{[]string{"grp"}, []string{"--all-namespaces"}},
		{[]string{"acnp"}, []string{"--output=wide"}},
		{[]string{"annp"}, []string{"--output=wide"}},
	} {
		first := ""
		for _, name := range test.names {
			args := append([]string{"get", name}, test.flags...)
			out := regexp.MustCompile(`(?m)\d+s$`).ReplaceAllString(s.kubectl(t, "", args...), "1s")
			if first == "" {
				first = out
				fmt.Fprintf(&b, "$ kubectl %s\n%s\n", strings.Join(args, " "), out)
			}
			if out != first {
				t.Errorf("kubectl %s shows\n%s\nand by %s\n%s", strings.Join(args, " "), out, test.names[0], first)
			}
		}
	}
	sameAsGolden(t, "listings.golden", b.String())
	for _, name := range []string{"acnp/test-cnp", "annp/test-annp", "cg/test-cg", "grp/test-grp"} {
		s.kubectl(t, "", "patch", name, "--subresource=status", "--type=merge", "--patch", `{"status": {"conditions": [{"type": "A", "status": "True", "lastTransitionTime": null}]}}`)
		if got := s.kubectl(t, "", "get", name, "--output", "jsonpath={.status.conditions}"); got != `[{"status":"True","type":"A"}]` {
			t.Errorf("the status of %s is %s", name, got)
		}
	}
}

// What kubectl explain says of fields, of whole kinds, and, in the document that it
// reads, of every field there is.
func (s *schemas) testExplained(t *testing.T) {
	for path, want := range map[string]string{
		"acnp.spec.egress.to.fqdn":      "Name of hosts",
		"annp.spec.ingress.action":      "What becomes of the traffic",
		"tiers.spec.priority":           "It cannot be changed",
		"clustergroups.spec.ipBlocks":   "Addresses of some prefixes",
		"grp.spec.podSelector":          "Pods with these labels",
		"nodeendpoints.endpoints.ips":   "Addresses of the Pod",
		"acnp.status.conditions.reason": "Why it holds or not, in one word",
	} {
		// The API server publishes the schema of a kind some time after it serves the kind.
		eventually(t, func() error {
			got, err := s.kube.Kubectl(t.Context(), nil, "explain", path)
			if err == nil && !strings.Contains(strings.Join(strings.Fields(got), " "), want) {
				err = fmt.Errorf("explain %s does not say %q:\n%s", path, want, got)
			}
			return err
		})
	}
	for kind, fields := range map[string]string{
		"tiers": "spec <Object> -required- description <string> priority <integer> -required-",
		"acnp":  "ports <[]Object> endPort <integer> port <Object> protocol <string> enum: TCP, UDP, SCTP",
		"annp":  "status <Object> conditions <[]Object>", "cg": "childGroups <[]string>", "grp": "serviceReference <Object> name <string> -required- namespace <string> -required-",
		"nodeendpoints": "endpoints <[]Object> ips <[]string> name <string> -required-",
	} {
		got := strings.Join(strings.Fields(s.kubectl(t, "", "explain", kind, "--recursive")), " ")
		if !strings.Contains(got, fields) {
			t.Errorf("explain %s --recursive does not have %q:\n%s", kind, fields, got)
		}
	}
	for _, path := range []string{"crd.antrea.io/v1beta1", "weir.dev/v1alpha1"} {
		var document struct {
			Components struct{ Schemas map[string]published }
		}
		must(t, json.Unmarshal([]byte(s.kubectl(t, "", "get", "--raw", "/openapi/v3/apis/"+path)), &document))
		for name, p := range document.Components.Schemas {
			if !strings.HasPrefix(name, "io.k8s.") { // Those are the API server's own.
				p.explained(t, name)
			}
		}
	}
}

// published is a schema as the API server tells it to clients.
type published struct {
	Description          string
	Properties           map[string]published
	Items                *published
	AdditionalProperties *published
}

func (p published) explained(t *testing.T, path string) {
	t.Helper()
	if len(strings.Fields(p.Description)) < 5 {
		t.Errorf("%s is explained as %q", path, p.Description)
	}
	for name, sub := range p.Properties {
		if name != "metadata" { // The API server's own.
			sub.explained(t, path+"."+name)
		}
	}
	if p.Items != nil && len(p.Items.Properties) > 0 {
		p.Items.explained(t, path+"[]")
	}
	if p.AdditionalProperties != nil {
		p.AdditionalProperties.explained(t, path+"{}")
	}
}

func (s *schemas) testChanges(t *testing.T) {
	patch := func(priority int) error {
		_, err := s.kube.Kubectl(t.Context(), nil, "patch", "tier", "mytier", "--type=merge", "--patch", fmt.Sprintf(`{"spec": {"priority": %d}}`, priority))
		return err
	}
	if err := patch(10); err != nil {
		t.Error(err)
	}
	if err := patch(11); err == nil || !strings.Contains(err.Error(), "the priority of a tier cannot be changed; write the former one") {
		t.Errorf("the priority of a tier is changed: %v", err)
	}
}

// The reference's examples, and what our own conformance cases create, are
// taken as they are: no field is unknown.
func (s *schemas) testExamples(t *testing.T) {
	dir := os.Getenv("WEIR_EXAMPLES_DIR")
	if dir == "" {
		t.Skip("WEIR_EXAMPLES_DIR is not set")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples in %s: %v", dir, err)
	}
	count := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects(t, string(text)) {
			count++
			if err := s.create(t, o); err != nil {
				t.Errorf("%s: %v", filepath.Base(file), err)
			}
		}
	}
	if count == 0 {
		t.Error("no example has a schema of ours")
	}
}

func (s *schemas) testAccepted(t *testing.T) {
	for _, test := range accepted {
		for _, o := range objects(t, test.text) {
			raw, err := o.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := api.Decode(raw); err != nil {
				t.Errorf("%s: package api refuses: %v", test.name, err)
			}
			if err := s.create(t, o); err != nil {
				t.Errorf("%s: the schema refuses: %v", test.name, err)
			}
		}
	}
}

// Each object is refused by the schema, with these words, and by package api,
// but for those that the schema alone refuses.
func (s *schemas) testRefused(t *testing.T) {
	for i, test := range slices.Concat(refusals, stricter) {
		list := objects(t, test.text)
		if len(list) != 1 {
			t.Fatalf("%s: %d objects", test.name, len(list))
		}
		switch err := s.create(t, list[0]); {
		case err == nil:
			t.Errorf("%s: the schema accepts", test.name)
		case !strings.Contains(err.Error(), test.want):
			t.Errorf("%s: the schema says\n%v\nwant\n%s", test.name, err, test.want)
		}
		if _, err := api.Decode([]byte(test.text)); (err == nil) != (i >= len(refusals)) {
			t.Errorf("%s: package api says %v", test.name, err)
		}
	}
}

// The schemas refuse no object of the conformance cases that package api accepts.
func (s *schemas) testAgreement(t *testing.T) {
	dirs := []string{filepath.Join("testdata", "conformance")}
	if d := os.Getenv("WEIR_CONFORMANCE_DIR"); d != "" {
		dirs = append(dirs, d)
	}
	seen := make(map[string]bool)
	var both, neither int
	var left []string // What package api alone refuses.
	for _, dir := range dirs {
		cases, err := conformance.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			var raw [][]byte
			for _, op := range c.Operations {
				raw = append(raw, op.Object)
			}
			for _, step := range c.Steps {
				for _, p := range step.Policies {
					raw = append(raw, p)
				}
			}
			for i, text := range raw {
				o := object(t, text)
				if o == nil || seen[string(text)] {
					continue
				}
				seen[string(text)] = true
				_, refused := api.Decode(text)
				err := s.create(t, o)
				switch {
				case err == nil && refused == nil:
					both++
				case err != nil && refused != nil:
					neither++
				case refused != nil:
					left = append(left, fmt.Sprintf("%s/%s[%d]: %v", c.Suite, c.Name, i, refused))
				default:
					t.Errorf("%s/%s[%d]: the schema alone refuses: %v", c.Suite, c.Name, i, err)
				}
			}
		}
	}
	slices.Sort(left)
	t.Logf("%d objects are accepted by both, %d refused by both, %d by package api alone:\n%s", both, neither, len(left), strings.Join(left, "\n"))
	if both < 100 || neither < 50 {
		t.Errorf("%d objects are accepted by both and %d refused: too few to hold them to each other", both, neither)
	}
}
