package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// TestUninstallFromACluster takes an installation out: the shims are told to
// clean their nodes before anything else goes, and what users wrote stays, until
// it is purged. What a DaemonSet's controller would report is written here.
func TestUninstallFromACluster(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	k := startKube(t, harness.KubeConfig{})
	must(t, k.ApplyWeirCRDs(t.Context()))
	kubectl(t, k, sourceObjects, "apply", "-f", "-") // While no webhook asks for a policy service, which this cluster has not.
	kubectl(t, k, sourceACNP, "apply", "-f", "-")
	must(t, k.Install(t.Context(), "../deploy/overlays/production"))
	weirctl := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "weirctl"), append(args, "--kubeconfig", k.AdminKubeconfig())...).CombinedOutput()
		return string(out), err
	}
	status := func(clean int) {
		var d struct {
			Metadata struct{ Generation int }
		}
		must(t, json.Unmarshal([]byte(kubectl(t, k, "", "get", "daemonset", "-n", "weir-system", "weir-shim", "-o", "json")), &d))
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"observedGeneration": d.Metadata.Generation, "desiredNumberScheduled": 3,
			"currentNumberScheduled": 3, "numberMisscheduled": 0, "updatedNumberScheduled": clean, "numberReady": 3}})
		must(t, err)
		kubectl(t, k, "", "patch", "daemonset", "-n", "weir-system", "weir-shim", "--subresource=status", "--type=merge", "-p", string(patch))
	}
	status(3)

	// While a node is not clean, nothing goes.
	out, err := weirctl("uninstall", "--timeout", "3s")
	if err == nil || !strings.Contains(out, "--force") {
		t.Errorf("nodes that are not clean: %v\n%s", err, out)
	}
	if args := kubectl(t, k, "", "get", "daemonset", "-n", "weir-system", "weir-shim", "-o", "jsonpath={.spec.template.spec.containers[0].args}"); !strings.HasPrefix(args, `["uninstall","--wait","--node=`) {
		t.Errorf("the shims are to run %s", args)
	}
	kubectl(t, k, "", "get", "deployment", "-n", "weir-system", "weir-policyd")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, err := k.Kubectl(ctx, nil, "get", "daemonset", "-n", "weir-system", "weir-shim"); err != nil {
				return // It is gone.
			}
		}
	}()
	status(3)
	if out, err = weirctl("uninstall", "--timeout", "30s"); err != nil || !strings.Contains(out, "3 of 3 nodes are clean") {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	<-done
	for _, gone := range []string{"deployment/weir-policyd", "statefulset/weir-auditd", "secret/weir-pki", "clusterrole/weir-policyd", "crd/nodeendpoints.weir.dev", "validatingwebhookconfiguration/weir", "mutatingwebhookconfiguration/weir"} {
		if _, err := k.Kubectl(t.Context(), nil, "get", "-n", "weir-system", gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	for _, kept := range []string{"acnp/guard", "networkpolicy/deny", "namespace/weir-system"} {
		kubectl(t, k, "", "get", "-n", "shop", kept)
	}
	// Again is no error; and what users wrote goes when that is asked for.
	if out, err = weirctl("uninstall"); err != nil {
		t.Errorf("again: %v\n%s", err, out)
	}
	if out, err = weirctl("uninstall", "--purge"); err != nil {
		t.Errorf("purge: %v\n%s", err, out)
	}
	if out := kubectl(t, k, "", "get", "crd", "-o", "name"); strings.Contains(out, "crd.antrea.io") {
		t.Errorf("purged, and the kinds are still there:\n%s", out)
	}
}
