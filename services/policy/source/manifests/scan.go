package manifests

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// stamp tells one content of a file from another without reading it.
type stamp struct {
	size         int64
	mtime, ctime int64
	device, node uint64
}

// listing is the files below a folder, by path relative to it.
type listing struct {
	files   map[string]stamp
	newest  int64            // Unix nanoseconds of the last change of a file or folder.
	folders []string         // Absolute, the root first.
	failed  map[string]error // Files and folders that could not be looked at.
}

// list walks a folder. It follows symbolic links, and leaves out what begins
// with a dot. An error means that the folder itself cannot be listed.
func list(root string) (listing, error) {
	l := listing{files: map[string]stamp{}, failed: map[string]error{}}
	if err := l.walk(root, "", nil); err != nil {
		return l, fmt.Errorf("list manifest folder: %w", err)
	}
	return l, nil
}

func (l *listing) walk(root, rel string, above []os.FileInfo) error {
	dir := filepath.Join(root, rel)
	self, err := os.Stat(dir)
	if err != nil {
		return err
	}
	for _, a := range above {
		if os.SameFile(a, self) {
			return nil // A link back up: its files are read already.
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	l.folders = append(l.folders, dir)
	l.newest = max(l.newest, stampOf(self).changed())
	above = append(slices.Clone(above), self)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(rel, e.Name())
		info, err := os.Stat(filepath.Join(root, path))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// Gone since, or a link to nowhere: no file.
		case err != nil:
			l.failed[path] = err
		case info.IsDir():
			if err := l.walk(root, path, above); err != nil && !errors.Is(err, fs.ErrNotExist) {
				l.failed[path] = err
			}
		case info.Mode().IsRegular() && isManifest(path):
			l.files[path] = stampOf(info)
			l.newest = max(l.newest, l.files[path].changed())
		}
	}
	return nil
}

func isManifest(path string) bool {
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func stampOf(info os.FileInfo) stamp {
	s := stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.ctime, s.device, s.node = time.Unix(sys.Ctim.Unix()).UnixNano(), uint64(sys.Dev), sys.Ino
	}
	return s
}

// changed is when the file was last touched, in Unix nanoseconds.
func (s stamp) changed() int64 { return max(s.ctime, s.mtime) }

func (s stamp) age() time.Duration { return time.Since(time.Unix(0, s.changed())) }

// same reports whether two listings tell of the same content.
func (l *listing) same(other *listing) bool {
	if len(l.files) != len(other.files) || len(l.failed) != len(other.failed) {
		return false
	}
	for path, s := range l.files {
		if o, there := other.files[path]; !there || o != s {
			return false
		}
	}
	return true
}

// covers reports whether a path is below something that could not be looked at.
func (l *listing) covers(path string) bool {
	for failed := range l.failed {
		if path == failed || strings.HasPrefix(path, failed+string(filepath.Separator)) {
			return true
		}
	}
	return false
}
