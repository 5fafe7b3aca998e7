package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/weirnet/weir/e2e/harness"
)

// auditctl runs weirctl audit against the cluster's collector.
func auditctl(t *testing.T, c *harness.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Fabric.Command(t.Context(), bin+"/weirctl", append(append([]string{"audit"}, args...), append(c.OperatorArgs(), "--server", c.AuditAddress())...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("audit %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestRecordsAreNamedAndExplained: a record of real packets tells whose its addresses
// were and which version of the policy decided, and is explained by the policy as
// it was, however it was changed since.
func TestRecordsAreNamedAndExplained(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(true), policy("access-nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}"))
	eventually(t, func() error { // The collector follows, too.
		if out := auditctl(t, c, "tail", "--changes", "--policy", "access-nginx", "-o", "json"); !strings.Contains(out, `"access-nginx"`) {
			return fmt.Errorf("no change of the policy in\n%s", out)
		}
		return nil
	})
	outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.9.1.2")}, harness.Drop)

	type end struct{ Namespace, Pod, Node string }
	var first struct {
		Cursor uint64
		Packet struct{ Source, Destination end }
	}
	eventually(t, func() error {
		out := auditctl(t, c, "tail", "--policy", "access-nginx", "--losses=false", "-n", "1", "-o", "json")
		if out == "" {
			return fmt.Errorf("no record")
		}
		return json.Unmarshal([]byte(out), &first)
	})
	if got := first.Packet; got.Source != (end{"default", "client", "node-1"}) || got.Destination != (end{"default", "nginx", "node-1"}) {
		t.Errorf("the ends are %+v", got)
	}

	set(t, c, smallObjects(true), policy("access-nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}"))
	outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.9.1.2")}, harness.Allow)
	eventually(t, func() error {
		out := auditctl(t, c, "explain", fmt.Sprint(first.Cursor))
		for _, want := range []string{"10.9.1.1   default/client on node-1", "10.9.1.2   default/nginx on node-1", "K8sNetworkPolicy:default/access-nginx", "  updated since, ", "spec.ingress", "      ingress: []"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %q in\n%s", want, out)
			}
		}
		return nil
	})
	eventually(t, func() error {
		out := strings.Join(strings.Fields(auditctl(t, c, "report", "--namespace", "default")), " ")
		for _, want := range []string{"default/client default/nginx - TCP/80 ingress drop", "default/client default/nginx - TCP/80 ingress allow"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %q in\n%s", want, out)
			}
		}
		return nil
	})
}
