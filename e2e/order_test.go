package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/e2e/harness"
)

// ofNginx is a policy for the server, of Antrea's kinds or AdminNetworkPolicy.
func ofNginx(kind, metadata, spec string) string {
	if kind == "AdminNetworkPolicy" {
		return fmt.Sprintf("---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: %s\nmetadata: {%s}\nspec: {subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: nginx}}}}, %s}\n", kind, metadata, spec)
	}
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: %s\nmetadata: {%s}\nspec: {appliedTo: [{podSelector: {matchLabels: {app: nginx}}}], %s}\n", kind, metadata, spec)
}

// inEffect are the rows of weirctl get policies --sort-by=effectivePriority,
// without what names and groups are called.
func inEffect(t *testing.T, c *harness.Cluster) (rows []string) {
	t.Helper()
	args := slices.Concat([]string{"get", "policies", "--sort-by=effectivePriority", "--server", c.PolicyAddress()}, c.OperatorArgs())
	out, err := c.Fabric.Command(t.Context(), filepath.Join(bin, "weirctl"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("weirctl: %v: %s", err, out)
	}
	header, table, _ := strings.Cut(string(out), "\n")
	if got := strings.Join(strings.Fields(header), " "); got != "NAME APPLIED-TO RULES SOURCE TIER-PRIORITY PRIORITY" {
		t.Errorf("the header is %q", got)
	}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) != 6 || len(fields[1]) < 16 {
			t.Errorf("a row is %q", line)
			continue
		}
		rows = append(rows, strings.Join(fields[2:], " "))
	}
	return rows
}

// The reference's example of an order, with a policy of every later step behind
// it: weirctl lists them as they are judged. Each says the contrary of the one
// before, so that with the first gone the next decides, in both directions.
func TestPoliciesDecideInTheOrderListed(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	const client, remote = "{podSelector: {matchLabels: {app: client}}}", "{podSelector: {matchLabels: {app: remote}}}"
	const admin = "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: %s}}}}"
	steps := []struct {
		row, policy                string
		fromClient, fromRemote, to string // What becomes of connections while it is the first.
	}{
		{"4 AntreaClusterNetworkPolicy:acnp3 50 20", ofNginx("ClusterNetworkPolicy", "name: acnp3", "tier: emergency, priority: 20, "+
			"ingress: [{name: ir3.1, action: Drop, from: ["+client+"]}, {name: ir3.2, action: Allow}], egress: [{name: er3.1, action: Drop, to: ["+remote+"]}, {name: er3.2, action: Allow}]"), harness.Drop, harness.Allow, harness.Drop},
		{"4 AntreaClusterNetworkPolicy:acnp1 250 10", ofNginx("ClusterNetworkPolicy", "name: acnp1", "tier: application, priority: 10, "+
			"ingress: [{name: ir1.1, action: Allow, from: ["+client+"]}, {name: ir1.2, action: Drop}], egress: [{name: er1.1, action: Allow, to: ["+remote+"]}, {name: er1.2, action: Drop}]"), harness.Allow, harness.Drop, harness.Allow},
		{"4 AntreaNetworkPolicy:default/annp1 250 15", ofNginx("NetworkPolicy", "name: annp1, namespace: default", "tier: application, priority: 15, "+
			"ingress: [{name: ir2.1, action: Drop, from: ["+client+"]}, {name: ir2.2, action: Allow}], egress: [{name: er2.1, action: Drop, to: ["+remote+"]}, {name: er2.2, action: Allow}]"), harness.Drop, harness.Allow, harness.Drop},
		{"3 AdminNetworkPolicy:admin 251 0", ofNginx("AdminNetworkPolicy", "name: admin", "priority: 0, ingress: [{action: Allow, from: ["+fmt.Sprintf(admin, "client")+"]}, "+
			"{action: Deny, from: [{namespaces: {}}]}], egress: [{action: Allow, to: [{namespaces: {}}]}]"), harness.Allow, harness.Drop, harness.Allow},
		{"1 K8sNetworkPolicy:default/later <NONE> <NONE>", policy("later", "{podSelector: {matchLabels: {app: nginx}}, policyTypes: [Ingress, Egress], ingress: [{from: ["+remote+"]}]}"),
			harness.Drop, harness.Allow, harness.Drop},
		{"2 AntreaClusterNetworkPolicy:baseline 253 1", ofNginx("ClusterNetworkPolicy", "name: baseline", "tier: baseline, priority: 1, ingress: [{action: Drop, from: ["+remote+"]}], egress: [{action: Allow}]"),
			harness.Allow, harness.Drop, harness.Allow},
	}
	for first := range len(steps) + 1 {
		var policies, rows []string
		for _, s := range slices.Backward(steps[first:]) { // The order in which they are written is nothing.
			policies, rows = append(policies, s.policy), append([]string{s.row}, rows...)
		}
		set(t, c, append(policies, smallObjects(false))...)
		if got := inEffect(t, c); !slices.Equal(got, rows) {
			t.Errorf("weirctl lists\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(rows, "\n"))
		}
		want := []string{harness.Allow, harness.Allow, harness.Allow}
		if first < len(steps) {
			want = []string{steps[first].fromClient, steps[first].fromRemote, steps[first].to}
		}
		outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.9.1.2"), tcp(c.Pod("default/remote"), "10.9.1.2"), tcp(c.Pod("default/nginx"), "10.9.2.1")}, want...)
	}
}
