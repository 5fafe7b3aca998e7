package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// admitted is an installed cluster, whose webhooks a real API server calls.
func admitted(t *testing.T, replicas int) *harness.Cluster {
	c := startInstalled(t, harness.Config{Replicas: replicas})
	must(t, harness.Eventually(t.Context(), 30*time.Second, func() error { // Once the API server believes them, a wrong object is refused.
		out, err := c.Kube.Kubectl(t.Context(), []byte(acnp("tier: nowhere")), "create", "--dry-run=server", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "nowhere") {
			return fmt.Errorf("webhooks do not answer yet: %s %v", out, err)
		}
		return nil
	}))
	return c
}

// admissionObjects are there before the cases, with as many tiers as there may be.
var admissionObjects = strings.Join([]string{
	tierOf("taken", 10), manyTiers(11, api.MostTiers-len(api.StaticTiers())-1), "apiVersion: v1\nkind: Namespace\nmetadata: {name: own}\n", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns}\n",
	clusterGroup("podSelector: {}"), strings.Replace(clusterGroup("childGroups: [g]"), "name: g", "name: parent", 1), ownGroup("podSelector: {}"),
	strings.Replace(ownGroup("childGroups: [g]"), "name: g", "name: parent", 1),
	strings.Replace(clusterGroup("ipBlocks: [{cidr: 10.0.0.0/8}]"), "name: g", "name: blocks", 1),
	antreaObject("ClusterNetworkPolicy", "name: user", "tier: taken, priority: 5, appliedTo: [{podSelector: {}}], ingress: [{name: all, action: Allow}]"),
	"apiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: ns}\nspec: {clusterIP: None, selector: {a: b}, ports: [{port: 80}]}\n",
	"apiVersion: v1\nkind: Service\nmetadata: {name: manual, namespace: ns}\nspec: {ports: [{port: 80}]}\n",
	"apiVersion: v1\nkind: Service\nmetadata: {name: inner, namespace: ns}\nspec: {selector: {a: b}, ports: [{port: 80}]}\n",
}, "---\n")

func manyTiers(first, n int) string {
	var list []string
	for i := range n {
		list = append(list, tierOf(fmt.Sprint("more-", i), first+i))
	}
	return strings.Join(list, "---\n")
}

// admissionCase is what kubectl is asked to do, by its words, of a text of objects.
type admissionCase struct{ name, do, text string }

// judgedBeside are refusals that no schema can say.
var judgedBeside = []admissionCase{
	{"a priority that is taken", "create", tierOf("b", 10)},
	{"one tier too many", "create", tierOf("b", 200-1)},
	{"another priority for a tier", "replace", tierOf("taken", 11)},
	{"a static tier goes", "delete tier emergency", ""},
	{"a tier in use goes", "delete tier taken", ""},
	{"no such tier", "create", acnp("tier: nowhere")},
	{"no such tier, in a NetworkPolicy", "create", annp("tier: nowhere, ingress: [{action: Drop}]")},
	{"a name that another rule is given", "create", acnp("ingress: [{action: Drop, name: ingress-drop-742ade5}, {action: Drop, ports: [{port: 1}], name: x}, {action: Drop}]")},
	{"everything that is wrong, at once", "create", acnp("tier: nowhere, ingress: [{action: Drop, from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}], egress: [{action: Drop, to: [{podSelector: {matchLabels: {'a b': c}}}]}]")},
	{"a label key that is none", "create", in("from: [{podSelector: {matchLabels: {'a b': c}}}]")},
	{"an except beyond its cidr", "create", in("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]")},
	{"an except that is its cidr", "create", in("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]")},
	{"multicast that is rejected", "create", acnp("egress: [{action: Reject, to: [{ipBlock: {cidr: 225.1.2.3/32}}]}]")},
	{"multicast that is passed", "create", acnp("egress: [{action: Pass, to: [{ipBlock: {cidr: 'ff02::1/128'}}]}]")},
	{"multicast beside unicast", "create", out("to: [{ipBlock: {cidr: 225.1.2.3/32}}, {ipBlock: {cidr: 10.0.0.0/8}}]")},
	{"multicast beside a selector", "create", out("to: [{ipBlock: {cidr: 225.1.2.3/32}}, {podSelector: {}}]")},
	{"a group of multicast and unicast", "create", strings.Replace(clusterGroup("ipBlocks: [{cidr: 225.1.2.3/32}, {cidr: 10.0.0.0/8}]"), "name: g", "name: h", 1)},
	{"a child that has children", "create", strings.Replace(clusterGroup("childGroups: [parent]"), "name: g", "name: h", 1)},
	{"children for a child", "replace", clusterGroup("childGroups: [blocks]")},
	{"children for a child, in a Namespace", "replace", ownGroup("childGroups: [h]")},
	{"a child goes", "delete clustergroup g", ""},
	{"a child goes, of a Namespace", "delete group g -n own", ""},
	{"an account of another Namespace", "create", bareANNP("priority: 5, appliedTo: [{serviceAccount: {name: a, namespace: ns}}]")},
	{"an upstream policy with a bad block", "create", "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\nspec: {priority: 5, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.1/33]}]}]}\n"},
}

// warnedOf are accepted, and kubectl shows what their author should know.
var warnedOf = []admissionCase{
	{"Deny", "create", acnp("ingress: [{action: Deny}]")},
	{"a group that is not there yet", "create", in("from: [{group: later}]")},
	{"a Service that is not there yet", "create", out("toServices: [{name: later, namespace: ns}]")},
	{"a headless Service", "create", out("toServices: [{name: headless, namespace: ns}]")},
	{"a group of a Service without selector", "create", strings.Replace(clusterGroup("serviceReference: {name: manual, namespace: ns}"), "name: g", "name: h", 1)},
	{"a Service without node ports", "create", strings.ReplaceAll(strings.ReplaceAll(onService("ingress: [{action: Drop}]"), "name: s,", "name: inner,"), "name: p", "name: p")},
	{"a selector that matches nothing now", "create", appliedTo("{podSelector: {matchLabels: {app: nobody}}}")},
	{"a name of a ClusterIP Service", "create", allowOut("to: [{fqdn: inner.ns.svc.cluster.local}]")},
	{"a rule that an earlier one covers", "create", acnp("ingress: [{action: Drop}, {action: Allow, ports: [{port: 1}]}]")},
	{"contradictions of equal precedence", "create", antreaObject("ClusterNetworkPolicy", "name: p", "tier: taken, priority: 5, appliedTo: [{podSelector: {}}], ingress: [{action: Drop}]")},
	{"Allow in the baseline", "create", acnp("tier: baseline, ingress: [{action: Allow}]")},
	{"Drop of a name", "create", out("to: [{fqdn: a.example.com}]")},
	{"Reject of a name", "create", acnp("egress: [{action: Reject, to: [{fqdn: '*.example.com'}]}]")},
	{"no way to DNS", "create", acnp("egress: [{action: Drop}]")},
	{"the way to cloud metadata", "create", acnp("egress: [{action: Allow, to: [{ipBlock: {cidr: 169.254.0.0/16}}]}, {action: Drop}]")},
	{"a long log label for Nodes", "create", onNodes("ingress: [{action: Drop, logLabel: twelve-and-more, from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]")},
	{"no way to DNS by a Kubernetes NetworkPolicy", "create", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: shut, namespace: own}\nspec: {podSelector: {}, policyTypes: [Egress]}\n"},
	{"a Namespace that nothing isolates", "create", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: one, namespace: own}\nspec: {podSelector: {matchLabels: {app: a}}, ingress: [{}]}\n"},
}

// unremarkable are accepted without a word.
var unremarkable = []admissionCase{
	{"a tier in its former name", "create", acnp("tier: SecurityOps, egress: [{action: Drop, ports: [{port: 1}]}]")},
	{"a tier left out", "create", acnp("tier: '', egress: [{action: Drop, ports: [{port: 1}]}]")},
	{"labels for a tier in use", "label tier taken a=b", ""},
}

// run says whether kubectl did it, without keeping anything, and what it complained of.
func (a admissionCase) run(ctx context.Context, k *harness.Kube) (ok bool, complaint string) {
	args := append(strings.Fields(a.do), "--dry-run=server")
	if a.text != "" {
		args = append(args, "-f", "-")
	}
	_, complaint, err := k.KubectlSays(ctx, k.AdminKubeconfig(), []byte(a.text), args...)
	return err == nil, strings.TrimSpace(complaint)
}

// TestAdmission shows through kubectl, against a real API server, what of the
// reference's table is refused and what is warned of, in whose words.
func TestAdmission(t *testing.T) {
	t.Parallel()
	c := admitted(t, 2)
	out, err := c.Kube.Kubectl(t.Context(), []byte(admissionObjects), "create", "-f", "-")
	if err != nil {
		t.Fatal(out, err)
	}
	must(t, c.Settled(t.Context()))
	var all []admissionCase
	for _, r := range refusals {
		all = append(all, admissionCase{r.name, "create", r.text})
	}
	refused := len(all) + len(judgedBeside)
	all = slices.Concat(all, judgedBeside, warnedOf, unremarkable)
	said := make([]string, len(all))
	var g errgroup.Group
	g.SetLimit(4)
	for i, a := range all {
		g.Go(func() error {
			ok, text := a.run(t.Context(), c.Kube)
			if ok == (i < refused) {
				return fmt.Errorf("%s: refused %t, want %t: %s", a.name, !ok, i < refused, text)
			}
			if quiet := i >= len(all)-len(unremarkable); quiet != (text == "") {
				return fmt.Errorf("%s: kubectl says %q", a.name, text)
			}
			said[i] = text
			return nil
		})
	}
	must(t, g.Wait())
	var b strings.Builder
	for i, a := range all {
		fmt.Fprintf(&b, "# %s\n%s\n", a.name, said[i])
	}
	sameAsGolden(t, "admission.golden", b.String())

	// What authors leave out is filled in.
	const shown = `jsonpath={.spec.tier}{range .spec.ingress[*]} {.name}{end}{range .spec.egress[*]} {.name}{end}`
	for text, want := range map[string]string{
		acnp("ingress: [{action: Drop}, {action: Allow, name: own}], egress: [{action: Drop}]"): "application ingress-drop-742ade5 own egress-drop-742ade5",
		annp("tier: taken, ingress: [{action: Reject}]"):                                        "taken ingress-reject-a44b3bb",
	} {
		if got := kubectl(t, c.Kube, text, "create", "--dry-run=server", "-f", "-", "-o", shown); got != want {
			t.Errorf("%s\nis kept with %q, want %q", text, got, want)
		}
	}
}
