package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/weirnet/weir/e2e/harness"
)

// people are who TestRoles binds roles to, each in Namespace own or, with -c, in the
// whole cluster, as an administrator would.
const people = `
apiVersion: v1
kind: Namespace
metadata: {name: own}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
`

// TestRoles asks a real API server what the holders of the roles may do, and has
// them do it.
func TestRoles(t *testing.T) {
	t.Parallel()
	k := startKube(t, harness.KubeConfig{})
	must(t, k.ApplyWeirCRDs(t.Context()))
	kubectl(t, k, people, "apply", "-f", "-")
	kubectl(t, k, "", "apply", "-f", "../deploy/base/roles.yaml")
	aggregate(t, k)
	for _, role := range []string{"view", "edit", "admin", "weir-cluster-view", "weir-cluster-edit"} {
		kubectl(t, k, "", "create", "rolebinding", role, "-n", "own", "--clusterrole="+role, "--user="+role)
		kubectl(t, k, "", "create", "clusterrolebinding", role+"-c", "--clusterrole="+role, "--user="+role+"-c")
	}
	t.Run("allowed", func(t *testing.T) { testAllowed(t, k) })
	t.Run("done", func(t *testing.T) { testDone(t, k) })
	t.Run("tiers", func(t *testing.T) { testTierUse(t, k) })
}

// aggregate does what the controller of a cluster does: roles that others are to be
// in get the rules of these, and of those that these got.
func aggregate(t *testing.T, k *harness.Kube) {
	t.Helper()
	config, err := k.Config()
	must(t, err)
	client, err := kubernetes.NewForConfig(config)
	must(t, err)
	api := client.RbacV1().ClusterRoles()
	for changed := true; changed; {
		changed = false
		list, err := api.List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for _, role := range list.Items {
			if role.AggregationRule == nil {
				continue
			}
			var rules []rbacv1.PolicyRule
			for _, s := range role.AggregationRule.ClusterRoleSelectors {
				selector, err := metav1.LabelSelectorAsSelector(&s)
				must(t, err)
				for _, part := range list.Items {
					if part.Name != role.Name && selector.Matches(labels.Set(part.Labels)) {
						rules = append(rules, part.Rules...)
					}
				}
			}
			if fmt.Sprint(rules) == fmt.Sprint(role.Rules) {
				continue
			}
			role.Rules, changed = rules, true
			_, err := api.Update(t.Context(), &role, metav1.UpdateOptions{})
			must(t, err)
		}
	}
}

// The verbs that people have for something.
var (
	reading = []string{"get", "list", "watch"}
	writing = []string{"create", "update", "patch", "delete", "deletecollection"}
	both    = slices.Concat(reading, writing)
)

// testAllowed compares what each person may do in either Namespace, by verb and
// resource, with what is said here; of what is not, they may do nothing.
func testAllowed(t *testing.T, k *harness.Kube) {
	own, virtual, cluster := []string{"networkpolicies.crd.antrea.io", "groups.crd.antrea.io"}, []string{"inspections.weir.dev", "records.weir.dev"},
		[]string{"tiers.crd.antrea.io", "clusternetworkpolicies.crd.antrea.io", "clustergroups.crd.antrea.io"}
	statuses := []string{"networkpolicies.crd.antrea.io/status", "groups.crd.antrea.io/status", "clusternetworkpolicies.crd.antrea.io/status", "clustergroups.crd.antrea.io/status"}
	all := slices.Concat(own, virtual, cluster, statuses, []string{"nodeendpoints.weir.dev"})
	type grant struct{ resources, verbs []string }
	grants := map[string][]grant{
		"view": {{own, reading}, {virtual, reading}}, "edit": {{own, both}, {virtual, reading}}, "admin": {{own, both}, {virtual, reading}},
		"weir-cluster-view": {{cluster, reading}}, "weir-cluster-edit": {{cluster, both}},
	}
	for role, granted := range grants {
		for _, everywhere := range []bool{false, true} {
			user := role
			if everywhere {
				user += "-c"
			}
			for _, namespace := range []string{"own", "other", ""} {
				may := allowedTo(t, k, user, namespace, all, both)
				for _, resource := range all {
					var want []string
					for _, g := range granted {
						// What is of the whole cluster is not in a Namespace to be granted.
						if slices.Contains(g.resources, resource) && (everywhere || namespace == "own") {
							want = append(want, g.verbs...)
						}
					}
					if got := may[resource]; !slices.Equal(got, want) {
						t.Errorf("in Namespace %q %s may %q %s, want %q", namespace, user, got, resource, want)
					}
				}
			}
		}
	}
}

// allowedTo asks the API server's authorizer, by SubjectAccessReviews, for each
// resource which of some verbs a user may.
func allowedTo(t *testing.T, k *harness.Kube, user, namespace string, resources, verbs []string) map[string][]string {
	t.Helper()
	config, err := k.Config()
	must(t, err)
	client, err := kubernetes.NewForConfig(config)
	must(t, err)
	may := make(map[string][]string)
	for _, resource := range resources {
		whole, subresource, _ := strings.Cut(resource, "/")
		name, group, _ := strings.Cut(whole, ".")
		for _, verb := range verbs {
			review, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user,
				ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: verb, Group: group, Resource: name, Subresource: subresource}}}, metav1.CreateOptions{})
			must(t, err)
			if review.Status.Allowed {
				may[resource] = append(may[resource], verb)
			}
		}
	}
	return may
}

// testDone has people do what they may, and try what they may not, by kubectl.
func testDone(t *testing.T, k *harness.Kube) {
	policy := func(namespace, spec string) string {
		return antreaObject("NetworkPolicy", "name: p, namespace: "+namespace, "priority: 5, appliedTo: [{podSelector: {}}], "+spec)
	}
	const status = `{"status":{"phase":"Realized"}}`
	for _, step := range []struct {
		user, text, args string
		refused          string // What kubectl says. Empty: it is done.
	}{
		{"edit", policy("own", ""), "create -f -", ""},
		{"edit", policy("own", "ingress: [{action: Drop}]"), "replace -f -", ""},
		{"edit", ownGroup("podSelector: {}"), "create -f -", ""},
		{"edit", policy("other", ""), "create -f -", `cannot create resource "networkpolicies" in API group "crd.antrea.io" in the namespace "other"`},
		{"edit", tierOf("mine", 10), "create -f -", `cannot create resource "tiers" in API group "crd.antrea.io" at the cluster scope`},
		{"edit-c", tierOf("mine", 10), "create -f -", `cannot create resource "tiers"`},
		{"admin-c", acnp(""), "create -f -", `cannot create resource "clusternetworkpolicies"`},
		{"view", "", "get annp,grp -n own", ""},
		{"view", "", "get annp -A", `cannot list resource "networkpolicies" in API group "crd.antrea.io" at the cluster scope`},
		{"view", "", "delete annp p -n own", `cannot delete resource "networkpolicies"`},
		{"view-c", "", "get annp -A", ""},
		{"admin", "", "patch annp p -n own --subresource=status --type=merge -p " + status, `cannot get resource "networkpolicies/status"`},
		{"weir-cluster-edit-c", tierOf("mine", 10), "create -f -", ""},
		{"weir-cluster-edit-c", acnp("tier: mine"), "create -f -", ""},
		{"weir-cluster-edit-c", "", "patch acnp p --subresource=status --type=merge -p " + status, `cannot get resource "clusternetworkpolicies/status"`},
		{"weir-cluster-edit-c", "", "get annp -n own", `cannot list resource "networkpolicies"`},
		{"weir-cluster-edit", tierOf("other", 11), "create -f -", `cannot create resource "tiers"`}, // In a Namespace the role is good for nothing.
		{"weir-cluster-view-c", "", "get tiers,acnp,cg", ""},
		{"weir-cluster-view-c", "", "delete tier mine", `cannot delete resource "tiers"`},
		// Whoever may write policies in a Namespace cannot make others more than they are.
		{"admin", "", "create rolebinding more -n own --clusterrole=weir-edit --user=friend", ""},
		{"admin", "", "create rolebinding most -n own --clusterrole=weir-cluster-edit --user=friend", `attempting to grant RBAC permissions not currently held`},
		{"admin", "", "create clusterrolebinding most --clusterrole=weir-edit --user=friend", `cannot create resource "clusterrolebindings"`},
	} {
		args := append(strings.Fields(step.args), "--as="+step.user)
		out, err := k.Kubectl(t.Context(), []byte(step.text), args...)
		switch {
		case step.refused == "" && err != nil:
			t.Errorf("%s cannot %s: %v", step.user, step.args, err)
		case step.refused != "" && (err == nil || !strings.Contains(out+err.Error(), step.refused)):
			t.Errorf("%s does %s: %s%v, want %q", step.user, step.args, out, err, step.refused)
		}
	}
	// What an author writes of the status is not kept.
	kubectl(t, k, policy("own", "")+"status: {phase: Realized}\n", "apply", "--server-side", "--force-conflicts", "--as=edit", "-f", "-")
	if got := kubectl(t, k, "", "get", "annp", "p", "-n", "own", "-o", "jsonpath={.status}"); got != "" {
		t.Errorf("an author has written the status %s", got)
	}
}

// testTierUse has an editor write policies in tiers that may be used, and in others.
func testTierUse(t *testing.T, k *harness.Kube) {
	kubectl(t, k, "", "apply", "-f", "../deploy/components/tier-use/policy.yaml")
	policy := func(name, tier string) string {
		return antreaObject("NetworkPolicy", "name: "+name+", namespace: own", "priority: 5, appliedTo: [{podSelector: {}}], tier: "+tier)
	}
	const refused = "spec.tier: edit may not use tier securityops; write another, or have the verb use on it granted"
	must(t, harness.Eventually(t.Context(), 30*time.Second, func() error { // The API server takes admission policies up some time after they are there.
		_, err := k.Kubectl(t.Context(), []byte(policy("q", "SecurityOps")), "create", "--dry-run=server", "--as=edit", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), refused) {
			return fmt.Errorf("a tier that may not be used: %v", err)
		}
		return nil
	}))
	kubectl(t, k, policy("q", "''"), "create", "--as=edit", "-f", "-")
	kubectl(t, k, policy("q", "baseline"), "replace", "--as=edit", "-f", "-")
	if _, err := k.Kubectl(t.Context(), []byte(policy("q", "securityops")), "replace", "--as=edit", "-f", "-"); err == nil || !strings.Contains(err.Error(), refused) {
		t.Errorf("a policy moves to a tier that its author may not use: %v", err)
	}
	kubectl(t, k, policy("q", "securityops"), "replace", "-f", "-") // As the cluster's administrator.
	kubectl(t, k, "", "label", "annp", "q", "-n", "own", "a=b", "--as=edit")
	kubectl(t, k, "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: use-securityops}\nrules: [{apiGroups: [crd.antrea.io], resources: [tiers], resourceNames: [securityops], verbs: [use]}]\n", "create", "-f", "-")
	kubectl(t, k, "", "create", "clusterrolebinding", "security-team", "--clusterrole=use-securityops", "--user=edit")
	kubectl(t, k, strings.Replace(policy("q", "securityops"), "priority: 5", "priority: 6", 1), "replace", "--as=edit", "-f", "-")
}
