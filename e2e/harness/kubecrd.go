package harness

import (
	"context"
	"os"
	"path/filepath"
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
		if _, err := k.Kubectl(ctx, text, "apply", "--server-side", "--filename", from); err != nil {
			return err
		}
		if _, err := k.Kubectl(ctx, text, "wait", "--for", "condition=Established", "--timeout", "30s", "--filename", from); err != nil {
			return err
		}
	}
	return nil
}

// ApplyUpstreamCRDs applies the AdminNetworkPolicy and BaselineAdminNetworkPolicy
// of policy.networking.k8s.io, as the module that defines them has them.
func (k *Kube) ApplyUpstreamCRDs(ctx context.Context) error {
	dir, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api")
	if err != nil {
		return err
	}
	return k.ApplyCRDs(ctx, filepath.Join(dir, "config", "crd", "experimental"))
}
