package sink

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/storage/faultpoint"
)

// Files writes lines to files, one or one a node.
//
// How long each file is is stored with the cursor, and a file that is new since
// is stored before anything is written to it. So what a crash leaves behind the
// cursor is found, whatever names the files have got meanwhile, and cut off when
// Files is opened again; the lines come again then. Files set aside are neither
// compressed nor removed before what they hold is below the cursor.
type Files struct {
	// Path is where a node's lines go. The node's name is safe in a path.
	Path     func(node string) string
	Format   Format
	Rotation Rotation
	Logger   hclog.Logger
	Now      func() time.Time // Nil: time.Now.

	link   Link
	open   map[string]*openNode
	ends   map[string]ending // Of every file that was written, by path: how it is, or was when it was closed.
	stored []ending          // That are durable.
	tidy   map[string]bool   // Paths to sweep when the cursor is stored.
	uses   uint64
	buf    []byte
	sweeps sync.WaitGroup
	sweep1 sync.Mutex // One sweep at a time.

	mu     sync.Mutex      // Guards needed.
	needed map[string]bool // Files set aside that hold lines beyond the cursor.
}

type openNode struct {
	*file
	used uint64
}

// maxFiles are open at a time; the one that was not used for longest is closed
// for another.
const maxFiles = 256

// NodePath returns a Path with "{node}" in place of the node's name.
func NodePath(pattern string) func(node string) string {
	return func(node string) string { return replaceNode(pattern, node) }
}

// NPLogs returns the np.log files of all nodes, DIR/NODE/np.log.
func NPLogs(dir string, f Format, r Rotation, logger hclog.Logger) *Files {
	return &Files{Path: func(node string) string { return filepath.Join(dir, node, "np.log") }, Format: f, Rotation: r, Logger: logger}
}

// OneFile returns a file for the lines of all nodes.
func OneFile(path string, f Format, r Rotation, logger hclog.Logger) *Files {
	return &Files{Path: func(string) string { return path }, Format: f, Rotation: r, Logger: logger}
}

// Open implements Output: it cuts off what was written behind the cursor.
func (s *Files) Open(_ context.Context, link Link) error {
	if s.Now == nil {
		s.Now = time.Now
	}
	s.sweeps.Wait()
	s.link = link
	s.open, s.ends, s.tidy, s.needed = make(map[string]*openNode), make(map[string]ending), make(map[string]bool), make(map[string]bool)
	var err error
	if s.stored, err = decodeEndings(link.State); err != nil {
		return err
	}
	for _, e := range s.stored {
		name, err := e.cut()
		if err != nil {
			return err
		}
		if name == "" && e.size > 0 {
			s.Logger.Warn("a file that lines were written to is gone", "file", e.path)
		}
		if name == e.path {
			s.ends[e.path] = e
		}
	}
	if former := len(s.stored); len(s.ends) < former { // Nothing more is written to the others.
		s.stored = sortedEndings(s.ends)
		if err := link.Keep(encodeEndings(s.stored)); err != nil {
			return err
		}
	}
	for path := range s.ends {
		s.sweep(path) // What a crash left undone.
	}
	return nil
}

// Write implements Output.
func (s *Files) Write(_ context.Context, l *record.Line) (int, error) {
	s.buf = s.Format.line(s.buf[:0], l)
	if len(s.buf) == 0 {
		return 0, nil
	}
	f, err := s.file(s.Path(l.Node))
	if err != nil {
		return 0, err
	}
	if f.full(len(s.buf)) {
		if err := f.rotate(s.need); err != nil {
			return 0, err
		}
		s.tidy[f.path] = true
	}
	if !f.known {
		if err := s.announce(f); err != nil {
			return 0, err
		}
	}
	return 1, f.write(s.buf)
}

// announce stores a file before anything is written to it.
func (s *Files) announce(f *file) error {
	e := ending{f.path, f.id, f.size}
	for _, has := range s.stored {
		if has.path == e.path && has.id == e.id {
			f.known = true // Since it was stored, others have been at it, or nobody.
			return nil
		}
	}
	s.stored = append(s.stored, e)
	if err := s.link.Keep(encodeEndings(s.stored)); err != nil {
		return err
	}
	f.known = true
	faultpoint.Reach("auditd.sink.announced")
	return nil
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
	s.tidy[path] = true
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
	err := f.sync()
	s.ends[oldest] = ending{oldest, f.id, f.size}
	return errors.Join(err, f.close())
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

// State implements Stateful.
func (s *Files) State() []byte {
	for path, f := range s.open {
		s.ends[path] = ending{path, f.id, f.size}
	}
	s.stored = sortedEndings(s.ends)
	return encodeEndings(s.stored)
}

// Stored implements Stateful: what was set aside is done with.
func (s *Files) Stored() {
	for _, f := range s.open {
		f.known = true
	}
	s.mu.Lock()
	clear(s.needed)
	s.mu.Unlock()
	for path := range s.tidy {
		s.sweep(path)
	}
	clear(s.tidy)
}

// Reopen implements Reopener: all files were moved away, or may have been.
func (s *Files) Reopen() error {
	for path, f := range s.open {
		delete(s.open, path)
		if err := f.close(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Files) need(aside string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.needed[aside] = true
}

func (s *Files) isNeeded(aside string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.needed[aside]
}

// sweep tidies beside the writing: compressing takes its time.
func (s *Files) sweep(path string) {
	now := s.Now()
	s.sweeps.Go(func() {
		s.sweep1.Lock()
		defer s.sweep1.Unlock()
		if err := sweep(path, s.Rotation, now, s.isNeeded); err != nil {
			s.Logger.Warn("cannot tidy files set aside", "file", path, "err", err)
		}
	})
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
