package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// OccupiedError says that another agent is at work on the node, which would
// have the Pods' ports, addresses and flows for itself too.
type OccupiedError struct{ Found []string }

// Error names what was found, and what to do.
func (e *OccupiedError) Error() string {
	return "Antrea's agent is at work on this node (" + strings.Join(e.Found, "; ") + "): remove it, or give --take-over to go on beside what is left of it"
}

// antreaFinder is a Dataplane that can tell whose bridges the switch has.
type antreaFinder interface {
	AntreaBridges(ctx context.Context) ([]string, error)
}

// unoccupied fails with an *OccupiedError where Antrea's agent is at work, by
// its configuration of the container runtime, its sockets and its bridges.
func (s *Shim) unoccupied(ctx context.Context) error {
	var found []string
	if dir := s.cfg.CNIConfDir; dir != "" {
		path := filepath.Join(dir, "10-antrea.conflist")
		switch _, err := os.Lstat(path); {
		case err == nil:
			found = append(found, "configuration of the container runtime: "+path)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("look for Antrea: %w", err)
		}
	}
	if dir := s.cfg.AntreaRunDir; dir != "" {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type()&fs.ModeSocket != 0 {
				found = append(found, "socket: "+path)
				return fs.SkipAll
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for Antrea: %w", err)
		}
	}
	if sw, ok := s.bridge.(antreaFinder); ok {
		bridges, err := sw.AntreaBridges(ctx)
		if err != nil {
			return fmt.Errorf("look for Antrea: %w", err)
		}
		for _, name := range bridges {
			found = append(found, "bridge with its external_ids: "+name)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return &OccupiedError{Found: found}
}
