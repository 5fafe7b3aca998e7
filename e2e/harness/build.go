package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// IPAM plugins: hostLocal is what the CNI plugin is used with, static gives Pods
// the addresses that a test chooses.
const (
	hostLocal = "github.com/containernetworking/plugins/plugins/ipam/host-local"
	static    = "github.com/containernetworking/plugins/plugins/ipam/static"
)

// Build builds the binaries of the module that the working folder is in, and
// IPAM plugins, into a folder of its own, and returns that.
func Build(ctx context.Context) (bin string, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	bin, err = os.MkdirTemp("", "weir-bin-")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+string(filepath.Separator), "./services/cmd/...", "./shim/cmd/...", hostLocal, static)
	cmd.Dir = strings.TrimSpace(string(out))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(bin)
		return "", fmt.Errorf("build the binaries: %w\n%s", err, text)
	}
	return bin, nil
}
