package shim

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/shim/cni"
	"github.com/weirnet/weir/shim/credentials"
)

// Files of ours go, whoever's else stay, and none has to be there.
func TestUninstallRemovesOurFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := Defaults()
	cfg.StateDir, cfg.CNIConfDir, cfg.CNIBinDir, cfg.Socket = filepath.Join(dir, "state"), filepath.Join(dir, "net.d"), filepath.Join(dir, "bin"), filepath.Join(dir, "shim.sock")
	for _, d := range []string{cfg.StateDir, cfg.CNIConfDir, cfg.CNIBinDir} {
		must(t, os.Mkdir(d, 0o755))
	}
	theirs := []string{filepath.Join(cfg.CNIConfDir, "20-other.conflist"), filepath.Join(cfg.CNIBinDir, "host-local")}
	for _, path := range append([]string{filepath.Join(cfg.CNIConfDir, cni.ConflistName), filepath.Join(cfg.CNIBinDir, "weir-cni"), cfg.Socket,
		cfg.checkpoint(), filepath.Join(cfg.StateDir, credentials.KeptFile), filepath.Join(cfg.StateDir, lockName)}, theirs...) {
		must(t, os.WriteFile(path, nil, 0o600))
	}
	for range 2 {
		must(t, removeFiles(&cfg))
		var left []string
		must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				left = append(left, path)
			}
			return err
		}))
		slices.Sort(theirs)
		slices.Sort(left)
		if !slices.Equal(left, theirs) {
			t.Errorf("left: %v", left)
		}
		if _, err := os.Stat(cfg.StateDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("state folder: %v", err)
		}
	}
}

// While a shim has the state folder, or answers, nothing is uninstalled; and the
// other way round.
func TestUninstallNeedsTheNodeAlone(t *testing.T) {
	t.Parallel()
	cfg := Defaults()
	cfg.StateDir, cfg.Socket, cfg.Logger = t.TempDir(), filepath.Join(t.TempDir(), "shim.sock"), hclog.NewNullLogger()
	first, err := lock(cfg.StateDir, false)
	must(t, err)
	second, err := lock(cfg.StateDir, false) // A successor may begin early.
	must(t, err)
	if err := Uninstall(context.Background(), cfg, false); !errors.Is(err, errRunning) {
		t.Error(err)
	}
	first.Close()
	second.Close()
	l, err := net.Listen("unix", cfg.Socket)
	must(t, err)
	if err := Uninstall(context.Background(), cfg, false); !errors.Is(err, errRunning) {
		t.Error(err)
	}
	l.Close()
	alone, err := lock(cfg.StateDir, true)
	must(t, err)
	defer alone.Close()
	if _, err := lock(cfg.StateDir, false); err == nil {
		t.Error("a shim begins amid an uninstallation")
	}
}
