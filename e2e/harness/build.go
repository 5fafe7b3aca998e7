package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	module := strings.TrimSpace(string(out))
	if err := build(ctx, module, bin, nil, "./services/cmd/...", "./shim/cmd/...", hostLocal, static); err != nil {
		return "", errors.Join(err, os.RemoveAll(bin))
	}
	return bin, nil
}

// faultpoints is the folder, within that of the binaries, of those that die at
// fault points.
const faultpoints = "faultpoints"

// BuildFaultpoints builds the daemons once more, into a folder beside those of
// Build, so that they die where Process.Faultpoint says (storage/faultpoint).
func BuildFaultpoints(ctx context.Context, bin string) error {
	return build(ctx, "", filepath.Join(bin, faultpoints), []string{"-tags", "faultpoints"},
		"github.com/weirnet/weir/services/cmd/weir-policyd", "github.com/weirnet/weir/services/cmd/weir-auditd", "github.com/weirnet/weir/shim/cmd/weir-shim")
}

// build builds packages into a folder, from within the module.
func build(ctx context.Context, module, into string, flags []string, packages ...string) error {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build", "-o", into + string(filepath.Separator)}, flags, packages)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the binaries: %w\n%s", err, text)
	}
	return nil
}
