package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
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

func TestAdmission(t *testing.T) {
	t.Parallel()
	c := admitted(t, 2)
	out, err := c.Kube.Kubectl(t.Context(), []byte(acnp("tier: nowhere, ingress: [{name: a, action: Drop}, {name: a, action: Drop}]")), "create", "-f", "-")
	t.Log(out, err)
	out, err = c.Kube.Kubectl(t.Context(), []byte(acnp("ingress: [{action: Drop, from: [{group: g}]}]")), "create", "-f", "-", "-o", "yaml")
	t.Log(out, err)
}
