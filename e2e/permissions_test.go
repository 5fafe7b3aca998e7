package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// viewersName is that of a user who may do what tests let it, and nothing else.
const viewersName = "system:serviceaccount:shop:viewer"

// auditPolicy has the API server record who asked for what.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:weir-system"]
- level: Metadata
  users: ["` + viewersName + `"]
- level: None
`

// permission is what one rule grants at its finest: "*" stands for any.
type permission struct{ verb, group, resource, namespace, name string }

func (p permission) String() string {
	return fmt.Sprintf("%s %s.%s %s/%s", p.verb, p.resource, p.group, p.namespace, p.name)
}

// covers says whether a permission allows what was asked for.
func (p permission) covers(asked permission) bool {
	return p.verb == asked.verb && p.group == asked.group && p.resource == asked.resource &&
		(p.namespace == "*" || p.namespace == asked.namespace) && (p.name == "*" || p.name == asked.name)
}

// judgePermissions compares what each account of Weir's asked for with what it is
// granted: nothing was refused, and, where everything had to be used, nothing is
// granted in vain.
func (in *installation) judgePermissions(everything bool) {
	t := in.t
	t.Helper()
	granted, used := in.granted(), in.used()
	for _, account := range slices.Sorted(maps.Keys(granted)) {
		for _, p := range granted[account] {
			if everything && !slices.ContainsFunc(used[account], p.covers) {
				t.Errorf("%s may %s and never does", account, p)
			}
		}
	}
	for _, account := range slices.Sorted(maps.Keys(used)) {
		for _, asked := range used[account] {
			if !slices.ContainsFunc(granted[account], func(p permission) bool { return p.covers(asked) }) {
				t.Errorf("%s does %s by a permission that is not Weir's", account, asked)
			}
		}
	}
	if accounts := slices.Sorted(maps.Keys(granted)); !slices.Equal(accounts, []string{"weir-policyd"}) {
		t.Errorf("%q have permissions", accounts)
	}
}

// granted are the permissions of the accounts of Weir's Namespace.
func (in *installation) granted() map[string][]permission {
	in.t.Helper()
	var clusterRoles rbacv1.ClusterRoleList
	var roles rbacv1.RoleList
	var clusterBindings rbacv1.ClusterRoleBindingList
	var bindings rbacv1.RoleBindingList
	in.get(&clusterRoles, "clusterroles")
	in.get(&roles, "roles", "-A")
	in.get(&clusterBindings, "clusterrolebindings")
	in.get(&bindings, "rolebindings", "-A")
	rules := func(ref rbacv1.RoleRef, namespace string) []rbacv1.PolicyRule {
		for _, r := range clusterRoles.Items {
			if ref.Kind == "ClusterRole" && r.Name == ref.Name {
				return r.Rules
			}
		}
		for _, r := range roles.Items {
			if ref.Kind == "Role" && r.Name == ref.Name && r.Namespace == namespace {
				return r.Rules
			}
		}
		in.t.Errorf("there is no %s %s", ref.Kind, ref.Name)
		return nil
	}
	out := make(map[string][]permission)
	grant := func(subjects []rbacv1.Subject, ref rbacv1.RoleRef, namespace string) {
		for _, s := range subjects {
			if s.Kind == "ServiceAccount" && s.Namespace == weirNamespace {
				out[s.Name] = append(out[s.Name], finest(rules(ref, namespace), namespace)...)
			}
		}
	}
	for _, b := range clusterBindings.Items {
		grant(b.Subjects, b.RoleRef, "*")
	}
	for _, b := range bindings.Items {
		grant(b.Subjects, b.RoleRef, b.Namespace)
	}
	return out
}

func finest(rules []rbacv1.PolicyRule, namespace string) (out []permission) {
	for _, r := range rules {
		names := r.ResourceNames
		if len(names) == 0 {
			names = []string{"*"}
		}
		for _, verb := range r.Verbs {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, name := range names {
						out = append(out, permission{verb, group, resource, namespace, name})
					}
				}
			}
		}
	}
	return out
}

// used is what the accounts asked for, and were granted; what was refused is an
// error.
func (in *installation) used() map[string][]permission {
	in.t.Helper()
	seen := make(map[string]map[permission]bool)
	in.eachRequest(func(r apiRequest) {
		account, ours := strings.CutPrefix(r.User.Username, "system:serviceaccount:"+weirNamespace+":")
		if !ours {
			return
		}
		if r.ResponseStatus.Code == 403 {
			in.t.Errorf("%s was refused: %s %s", account, r.Verb, r.RequestURI)
			return
		}
		if r.ObjectRef == nil {
			in.t.Errorf("%s asks for %s", account, r.RequestURI)
			return
		}
		if seen[account] == nil {
			seen[account] = make(map[permission]bool)
		}
		p := r.permission()
		seen[account][p] = true
		if p.verb == "patch" && r.ResponseStatus.Code == 201 { // Applying what is not there takes both.
			p.verb = "create"
			seen[account][p] = true
		}
	})
	out := make(map[string][]permission)
	for account, permissions := range seen {
		out[account] = slices.Collect(maps.Keys(permissions))
	}
	return out
}

// apiRequest is a line of the API server's audit log.
type apiRequest struct {
	Verb, RequestURI string
	User             struct{ Username string }
	ObjectRef        *struct{ Resource, Namespace, Name, APIGroup, Subresource string }
	ResponseStatus   struct{ Code int }
}

// permission is what the request takes.
func (r apiRequest) permission() permission {
	p := permission{r.Verb, r.ObjectRef.APIGroup, r.ObjectRef.Resource, r.ObjectRef.Namespace, r.ObjectRef.Name}
	if r.ObjectRef.Subresource != "" {
		p.resource += "/" + r.ObjectRef.Subresource
	}
	return p
}

// eachRequest goes through the API server's audit log; see auditPolicy.
func (in *installation) eachRequest(do func(apiRequest)) {
	in.t.Helper()
	f, err := os.Open(in.path("audit.log"))
	must(in.t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r apiRequest
		must(in.t, json.Unmarshal(lines.Bytes(), &r))
		do(r)
	}
	must(in.t, lines.Err())
}
