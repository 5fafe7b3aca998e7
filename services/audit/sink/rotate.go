package sink

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weirnet/weir/storage/faultpoint"
)

// Rotation says when a file is set aside, and which of these are kept. A file
// NAME.EXT becomes NAME-2006-01-02T15-04-05.000.EXT, with .gz if compressed.
type Rotation struct {
	MaxBytes int64         // Set aside before it grows beyond. Zero: never.
	Every    time.Duration // Set aside when it is so old. Zero: never.
	Keep     int           // Files set aside that are kept. Zero: all.
	KeepAge  time.Duration // How long they are kept. Zero: for ever.
	Gzip     bool
}

const rotatedStamp = "2006-01-02T15-04-05.000"

// sweep compresses what was set aside of a file, and removes what is not kept,
// but for files that are still needed as they are.
func sweep(path string, r Rotation, now time.Time, needed func(path string) bool) error {
	aside, err := rotatedFiles(path)
	if err != nil {
		return err
	}
	var errs []error
	for i, a := range aside { // Newest first.
		if needed(a.path) {
			continue
		}
		if r.Keep > 0 && i >= r.Keep || r.KeepAge > 0 && now.Sub(a.written()) > r.KeepAge {
			errs = append(errs, os.Remove(a.path))
			continue
		}
		if r.Gzip && !strings.HasSuffix(a.path, ".gz") {
			errs = append(errs, compress(a.path))
		}
	}
	return errors.Join(errs...)
}

type asideFile struct {
	path  string
	stamp time.Time // That its name has: they ascend, whatever the clock does.
}

// written is when the last line was written, at the latest. The stamp may be ahead
// of it, where the clock was set back.
func (a asideFile) written() time.Time {
	if info, err := os.Stat(a.path); err == nil && info.ModTime().Before(a.stamp) {
		return info.ModTime()
	}
	return a.stamp
}

func rotatedFiles(path string) ([]asideFile, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list files set aside of %s: %w", path, err)
	}
	base := filepath.Base(path)
	ext := filepath.Ext(base)
	prefix := strings.TrimSuffix(base, ext) + "-"
	var out []asideFile
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".gz")
		if !strings.HasPrefix(name, prefix) || !strings.HasSuffix(name, ext) {
			continue
		}
		stamp, err := time.Parse(rotatedStamp, strings.TrimSuffix(strings.TrimPrefix(name, prefix), ext))
		if err == nil {
			out = append(out, asideFile{filepath.Join(filepath.Dir(path), e.Name()), stamp})
		}
	}
	slices.SortFunc(out, func(a, b asideFile) int { return b.stamp.Compare(a.stamp) })
	return out, nil
}

// compress replaces a file by its gzip.
func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path+".gz.new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Sync(), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("compress %s: %w", path, err), os.Remove(out.Name())) // It takes room that may be needed.
	}
	faultpoint.Reach("auditd.rotate.compressed")
	if err := os.Rename(path+".gz.new", path+".gz"); err != nil {
		return err
	}
	faultpoint.Reach("auditd.rotate.replaced")
	return os.Remove(path)
}

func rotatedName(path string, stamp time.Time) string {
	ext := filepath.Ext(path)
	return strings.TrimSuffix(path, ext) + "-" + stamp.Format(rotatedStamp) + ext
}
