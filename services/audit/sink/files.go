package sink

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/services/audit/record"
)

// Files writes lines to files, one or one a node.
type Files struct {
	// Path is where a node's lines go. The node's name is safe in a path.
	Path     func(node string) string
	Encode   func(b []byte, l *record.Line) []byte // Appending nothing leaves the line out.
	Rotation Rotation
	Logger   hclog.Logger
	Now      func() time.Time // Nil: time.Now.

	open    map[string]*openNode
	uses    uint64
	buf     []byte
	sweeps  sync.WaitGroup
	sweepMu sync.Mutex // One sweep at a time.
}

type openNode struct {
	*file
	used uint64
}

// maxFiles are open at a time; the one that was not used for longest is closed
// for another.
const maxFiles = 256

// NPLogs returns the np.log files of all nodes, DIR/NODE/np.log.
func NPLogs(dir string, enc record.NPLog, r Rotation, logger hclog.Logger) *Files {
	return &Files{Path: func(node string) string { return filepath.Join(dir, node, "np.log") }, Encode: enc.Append, Rotation: r, Logger: logger}
}

// NPLogOf returns the np.log of one node; lines of others are left out.
func NPLogOf(node, path string, enc record.NPLog, r Rotation, logger hclog.Logger) *Files {
	return &Files{Path: func(string) string { return path }, Rotation: r, Logger: logger, Encode: func(b []byte, l *record.Line) []byte {
		if l.Node != node {
			return b
		}
		return enc.Append(b, l)
	}}
}

// JSONFile returns a file of JSON lines.
func JSONFile(path string, r Rotation, logger hclog.Logger) *Files {
	return &Files{Path: func(string) string { return path }, Encode: record.AppendJSON, Rotation: r, Logger: logger}
}

// Open implements Output.
func (s *Files) Open(context.Context) error {
	if s.Now == nil {
		s.Now = time.Now
	}
	s.open = make(map[string]*openNode)
	return nil
}

// Write implements Output.
func (s *Files) Write(l *record.Line) (int, error) {
	s.buf = s.Encode(s.buf[:0], l)
	if len(s.buf) == 0 {
		return 0, nil
	}
	f, err := s.file(s.Path(l.Node))
	if err != nil {
		return 0, err
	}
	rotated, err := f.write(s.buf)
	if rotated {
		s.sweep(f.path)
	}
	return 1, err
}

func (s *Files) file(path string) (*file, error) {
	s.uses++
	if f := s.open[path]; f != nil {
		f.used = s.uses
		return f.file, nil
	}
	if len(s.open) >= maxFiles {
		if err := s.closeOldest(); err != nil {
			return nil, err
		}
	}
	f, err := openFile(path, s.Rotation, s.Now)
	if err != nil {
		return nil, err
	}
	s.open[path] = &openNode{f, s.uses}
	s.sweep(path)
	return f, nil
}

func (s *Files) closeOldest() error {
	oldest := ""
	for path, f := range s.open {
		if oldest == "" || f.used < s.open[oldest].used {
			oldest = path
		}
	}
	f := s.open[oldest]
	delete(s.open, oldest)
	return errors.Join(f.sync(), f.close())
}

// sweep tidies beside the writing: compressing takes its time.
func (s *Files) sweep(path string) {
	now := s.Now()
	s.sweeps.Go(func() {
		s.sweepMu.Lock()
		defer s.sweepMu.Unlock()
		if err := sweep(path, s.Rotation, now); err != nil {
			s.Logger.Warn("cannot tidy files set aside", "file", path, "err", err)
		}
	})
}

// Flush implements Output.
func (s *Files) Flush(context.Context) error {
	for _, f := range s.open {
		if err := f.flush(); err != nil {
			return err
		}
	}
	return nil
}

// Sync implements Output.
func (s *Files) Sync(context.Context) error {
	for _, f := range s.open {
		if err := f.sync(); err != nil {
			return err
		}
	}
	return nil
}

// Close implements Output.
func (s *Files) Close() error {
	var errs []error
	for _, f := range s.open {
		errs = append(errs, f.close())
	}
	s.open = nil
	s.sweeps.Wait()
	return errors.Join(errs...)
}
