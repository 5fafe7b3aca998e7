package evaluate

import (
	"fmt"
	"testing"
)

// anp is an AdminNetworkPolicy over the Namespace shop.
func anp(name string, priority int, created, rules string) string {
	return fmt.Sprintf("---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: %s%s}\nspec: {priority: %d, subject: {namespaces: {matchLabels: {team: sales}}}, %s}\n",
		name, created, priority, rules)
}

func banp(rules string) string {
	return "---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: default}\nspec: {subject: {namespaces: {}}, " + rules + "}\n"
}

func from(action string) string {
	return `{action: ` + action + `, from: [{namespaces: {}}]}`
}

func TestAdminPolicies(t *testing.T) {
	const (
		flow   = "shop/client shop/web TCP/80"
		older  = `, creationTimestamp: "2020-01-01T00:00:00Z"`
		newer  = `, creationTimestamp: "2021-01-01T00:00:00Z"`
		shut   = `{podSelector: {}, policyTypes: [Ingress]}`
		opened = `{podSelector: {}, ingress: [{}]}`
	)
	for _, tc := range []struct {
		name, policies string
		want           Verdict
		by             string // The deciding policy.
	}{
		{"the lower number comes first", anp("a", 2, "", "ingress: ["+from("Deny")+"]") + anp("b", 1, "", "ingress: ["+from("Allow")+"]"), Allow, "AdminNetworkPolicy b"},
		{"the first rule counts", anp("a", 1, "", "ingress: ["+from("Allow")+","+from("Deny")+"]"), Allow, "AdminNetworkPolicy a"},
		{"one priority: position before action", anp("a", 1, "", "ingress: ["+from("Allow")+"]") + anp("b", 1, "", "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {none: x}}}]},"+from("Deny")+"]"), Allow, "AdminNetworkPolicy a"},
		{"one priority and position: the strictest", anp("a", 1, older, "ingress: ["+from("Allow")+"]") + anp("b", 1, newer, "ingress: ["+from("Deny")+"]"), Drop, "AdminNetworkPolicy b"},
		{"pass is stricter than allow", np("shut", shut) + anp("a", 1, older, "ingress: ["+from("Allow")+"]") + anp("b", 1, newer, "ingress: ["+from("Pass")+"]"), Drop, ""},
		{"then the older", anp("a", 1, newer, "ingress: ["+from("Deny")+"]") + anp("b", 1, older, "ingress: ["+from("Deny")+"]"), Drop, "AdminNetworkPolicy b"},
		{"then the name", anp("b", 1, "", "ingress: ["+from("Deny")+"]") + anp("a", 1, older, "ingress: ["+from("Deny")+"]"), Drop, "AdminNetworkPolicy a"},
		{"a drop is not undone by a NetworkPolicy", np("open", opened) + anp("a", 1, "", "ingress: ["+from("Deny")+"]"), Drop, "AdminNetworkPolicy a"},
		{"an allow overrules isolation", np("shut", shut) + anp("a", 1, "", "ingress: ["+from("Allow")+"]"), Allow, "AdminNetworkPolicy a"},
		{"a pass goes past later admin rules", np("open", opened) + anp("a", 1, "", "ingress: ["+from("Pass")+"]") + anp("b", 2, "", "ingress: ["+from("Deny")+"]"), Allow, "NetworkPolicy shop/open"},
		{"what passes and is not isolated comes to the baseline", anp("a", 1, "", "ingress: ["+from("Pass")+"]") + banp("ingress: ["+from("Deny")+"]"), Drop, "BaselineAdminNetworkPolicy default"},
		{"the baseline does not undo an allow", np("open", opened) + banp("ingress: ["+from("Deny")+"]"), Allow, "NetworkPolicy shop/open"},
		{"nor isolation", np("shut", shut) + banp("ingress: ["+from("Allow")+"]"), Drop, ""},
		{"directions are judged apart", anp("a", 1, "", "egress: [{action: Allow, to: [{namespaces: {}}]}]") + banp("ingress: ["+from("Deny")+"]"), Drop, "BaselineAdminNetworkPolicy default"},
		{"other subjects are not judged", anp("a", 1, "", "egress: [{action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: none}}}}]}]"), Allow, ""},
		{"a port name of any protocol", anp("a", 1, "", "ingress: [{action: Deny, from: [{namespaces: {}}], ports: [{namedPort: http}]}]"), Allow, ""},
		{"a prefix", anp("a", 1, "", "egress: [{action: Deny, to: [{networks: [10.1.0.0/24]}]}]"), Drop, "AdminNetworkPolicy a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := load(t, cluster, tc.policies).Evaluate(connect(t, flow))
			if err != nil {
				t.Fatal(err)
			}
			decision := r.Ingress
			if r.Egress.Action != Allow {
				decision = r.Egress
			}
			by := ""
			if decision.Policy != nil {
				by = decision.Policy.String()
			}
			if r.Verdict != tc.want || by != tc.by {
				t.Errorf("%s by %q, want %s by %q: %s", r.Verdict, by, tc.want, tc.by, decision.Reason)
			}
		})
	}
	s := load(t, cluster, anp("a", 1, "", "ingress: [{action: Deny, from: [{namespaces: {}}], ports: [{namedPort: http}]}]"))
	for flow, want := range map[string]Verdict{"shop/client shop/web TCP/8080": Drop, "shop/client shop/web2 TCP/8080": Allow, "shop/client shop/web UDP/8080": Allow, "shop/client shop/web ICMP": Allow} {
		if r, err := s.Evaluate(connect(t, flow)); err != nil || r.Verdict != want {
			t.Errorf("%s: %s, %v, want %s", flow, r.Verdict, err, want)
		}
	}
}
