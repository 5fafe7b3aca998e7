package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kubeBinaries are the packages that make an API server, by the name of the
// binary.
var kubeBinaries = []struct{ name, pkg string }{
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
}

// BuildKube builds kube-apiserver, etcd and kubectl from the module e2e/kube,
// and returns the folder that has them. That is in the user's cache, one for
// each content of the module's files: the first build takes minutes, those
// after it nothing. Processes that build at once wait for one another, and a
// folder is there when it is complete.
func BuildKube(ctx context.Context) (dir string, err error) {
	root, err := goOutput(ctx, "", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, "e2e", "kube")
	version, err := goOutput(ctx, module, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	flags := kubeLDFlags(version)
	key, err := kubeKey(ctx, module, flags)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w", err)
	}
	cache = filepath.Join(cache, "weir", "kube")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	dir = filepath.Join(cache, key)
	unlock, err := lockFile(ctx, filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	unfinished, err := os.MkdirTemp(cache, "unfinished-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(unfinished)
	if err := os.Chmod(unfinished, 0o755); err != nil {
		return "", err
	}
	for _, b := range kubeBinaries {
		fmt.Fprintf(os.Stderr, "building %s for Kubernetes %s into %s\n", b.name, version, dir)
		if _, err := goOutput(ctx, module, "build", "-trimpath", "-ldflags", flags, "-o", filepath.Join(unfinished, b.name), b.pkg); err != nil {
			return "", fmt.Errorf("build %s: %w", b.name, err)
		}
	}
	return dir, os.Rename(unfinished, dir)
}

// kubeLDFlags tell the binaries which version they are: servers and clients
// compare theirs.
func kubeLDFlags(version string) string {
	const at = " -X k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return "-s -w" + at + "gitVersion=" + version + at + "gitMajor=" + major + at + "gitMinor=" + minor
}

// kubeKey names what a build depends on.
func kubeKey(ctx context.Context, module, flags string) (string, error) {
	tool, err := goOutput(ctx, module, "env", "GOVERSION", "GOOS", "GOARCH")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n", tool, flags)
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// lockFile waits for the lock of a file. Its holder's end releases it, however
// that comes.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	waiting := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !waiting {
			waiting = true
			fmt.Fprintf(os.Stderr, "waiting for another process that holds %s\n", path)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// goOutput runs the go command without cgo, in a folder (empty: this process's).
func goOutput(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return "", fmt.Errorf("go %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}
