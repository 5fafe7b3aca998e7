package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is a file of the state folder. Shims share its lock, for one may
// begin before its forerunner has ended; an uninstallation has it alone.
const lockName = "lock"

var errRunning = errors.New("a shim is running on this node: stop it first, or give --force")

// lock takes the state folder's lock until the file is closed.
func lock(dir string, alone bool) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state folder: %w", err)
	}
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			if alone {
				return nil, errRunning
			}
			return nil, errors.New("lock state folder: the shim is being uninstalled")
		}
		return nil, fmt.Errorf("lock state folder: %w", err)
	}
	return f, nil
}

// answers says whether somebody serves a socket.
func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
