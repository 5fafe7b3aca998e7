package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// diskSize has room for the event log of a run, and fills quickly.
const diskSize = "256m"

func mountTmpfs(dir string) error {
	if err := unix.Mount("weir-chaos", dir, "tmpfs", 0, "size="+diskSize); err != nil {
		return fmt.Errorf("mount a disk at %s: %w", dir, err)
	}
	return nil
}

func unmount(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) }

// fill leaves no room on a disk, until free is called.
func fill(dir string) (free func() error, err error) {
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	free = func() error { return os.Remove(path) }
	chunk := make([]byte, 1<<20)
	for size := len(chunk); size >= 4096; {
		switch _, err := f.Write(chunk[:size]); {
		case errors.Is(err, unix.ENOSPC):
			size /= 4
		case err != nil:
			return nil, errors.Join(err, f.Close(), free())
		}
	}
	return free, f.Close()
}

// rotate sets the collector's files aside, as logrotate does, once it serves: a
// process that has just been started knows no hangup yet.
func (a *Act) rotate(ctx context.Context) error {
	err := harness.Eventually(ctx, settleLimit, func() error {
		_, err := a.Audit().Stats(ctx, &auditv1.StatsRequest{})
		return err
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rotations++
	for _, path := range []string{a.JSONLog(), a.NPLog(nodeNames[0]), a.NPLog(nodeNames[1])} {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, a.rotations)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return a.Auditd.Hangup()
}

// nft runs commands of nft(8) on a node.
func (a *Act) nft(ctx context.Context, n *harness.Node, commands string) error {
	cmd := n.NS.Command(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft on %s: %w: %s", n.Name, err, out)
	}
	return nil
}
