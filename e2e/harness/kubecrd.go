package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ApplyCRDs applies CustomResourceDefinitions, each path a file, a folder of
// files or one with a kustomization, and waits until their kinds are served.
func (k *Kube) ApplyCRDs(ctx context.Context, paths ...string) error {
	for _, path := range paths {
		from, text := path, []byte(nil)
		if _, err := os.Stat(filepath.Join(path, "kustomization.yaml")); err == nil {
			out, err := k.Kubectl(ctx, nil, "kustomize", path)
			if err != nil {
				return err
			}
			from, text = "-", []byte(out)
		}
		// Server-side: the schemas are too long for the annotation of client-side apply.
		applied, err := k.Kubectl(ctx, text, "apply", "--server-side", "--filename", from, "--output", "name")
		if err != nil {
			return err
		}
		if _, err := k.Kubectl(ctx, text, "wait", "--for", "condition=Established", "--timeout", "30s", "--filename", from); err != nil {
			return err
		}
		if err := k.discovered(ctx, strings.Fields(applied)); err != nil {
			return err
		}
	}
	return nil
}

// discovered waits until the server tells clients of the kinds that some
// definitions define, which it does a moment after they are established, and
// makes kubectl forget what it was told before.
func (k *Kube) discovered(ctx context.Context, definitions []string) error {
	return Eventually(ctx, 10*time.Second, func() error {
		out, err := k.Kubectl(ctx, nil, "api-resources", "--output", "name")
		if err != nil {
			return err
		}
		known := strings.Fields(out)
		for _, d := range definitions {
			_, resource, _ := strings.Cut(d, "/")
			if !slices.Contains(known, resource) {
				return fmt.Errorf("%s is not served", resource)
			}
		}
		return nil
	})
}

// ApplyUpstreamCRDs applies the kinds of policy.networking.k8s.io: AdminNetworkPolicy
// and BaselineAdminNetworkPolicy as the module that defines them has them, and
// ClusterNetworkPolicy in a form of our own that takes any spec.
func (k *Kube) ApplyUpstreamCRDs(ctx context.Context) error {
	upstream, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api")
	if err != nil {
		return err
	}
	root, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	return k.ApplyCRDs(ctx, filepath.Join(upstream, "config", "crd", "experimental"), filepath.Join(root, "e2e", "testdata", "crds"))
}

// ApplyWeirCRDs applies the kinds that Weir reads and writes, as they are deployed.
func (k *Kube) ApplyWeirCRDs(ctx context.Context) error {
	root, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	return k.ApplyCRDs(ctx, filepath.Join(root, "deploy", "base", "crds"))
}
