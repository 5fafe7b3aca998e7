package sink

import (
	"bufio"
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

// file is a file that lines are appended to.
type file struct {
	path     string
	rotation Rotation
	now      func() time.Time
	f        *os.File
	w        *bufio.Writer
	size     int64
	begun    time.Time // When the first line was written.
	dirty    bool
}

// openFile opens or makes a file. The beginning of a line that a crash left at
// its end is cut off: that line comes again.
func openFile(path string, r Rotation, now func() time.Time) (*file, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", path, err)
	}
	f := &file{path: path, rotation: r, now: now}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *file) open() error {
	o, err := os.OpenFile(f.path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return fmt.Errorf("open %s: %w", f.path, err)
	}
	size, err := wholeLines(o)
	if err == nil {
		_, err = o.Seek(size, io.SeekStart)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", f.path, err), o.Close())
	}
	f.f, f.w, f.size, f.begun = o, bufio.NewWriterSize(o, 64<<10), size, f.now()
	if info, err := o.Stat(); err == nil && size > 0 && info.ModTime().Before(f.begun) {
		f.begun = info.ModTime()
	}
	return nil
}

// wholeLines cuts a file behind its last newline, and returns its size.
func wholeLines(o *os.File) (int64, error) {
	info, err := o.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	buf := make([]byte, 4096)
	for end := size; end > 0; {
		start := max(0, end-int64(len(buf)))
		n, err := o.ReadAt(buf[:end-start], start)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if i := strings.LastIndexByte(string(buf[:n]), '\n'); i >= 0 {
			end = start + int64(i) + 1
			if end == size {
				return size, nil
			}
			return end, o.Truncate(end)
		}
		end = start
	}
	if size == 0 {
		return 0, nil
	}
	return 0, o.Truncate(0)
}

// write appends a line. It reports whether the file before was set aside.
func (f *file) write(line []byte) (rotated bool, err error) {
	if f.size > 0 && (f.rotation.MaxBytes > 0 && f.size+int64(len(line)) > f.rotation.MaxBytes ||
		f.rotation.Every > 0 && f.now().Sub(f.begun) >= f.rotation.Every) {
		if err := f.rotate(); err != nil {
			return false, err
		}
		rotated = true
	}
	if f.size == 0 {
		f.begun = f.now()
	}
	f.dirty = true
	n, err := f.w.Write(line)
	f.size += int64(n)
	if err != nil {
		return rotated, fmt.Errorf("write %s: %w", f.path, err)
	}
	return rotated, nil
}

func (f *file) rotate() error {
	if err := f.sync(); err != nil {
		return err
	}
	if err := f.f.Close(); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	stamp := f.now().UTC()
	for ; ; stamp = stamp.Add(time.Millisecond) {
		aside := rotatedName(f.path, stamp)
		if _, err := os.Lstat(aside); err == nil {
			continue
		}
		if _, err := os.Lstat(aside + ".gz"); err == nil {
			continue
		}
		if err := os.Rename(f.path, aside); err != nil {
			return fmt.Errorf("set %s aside: %w", f.path, err)
		}
		return f.open()
	}
}

func rotatedName(path string, stamp time.Time) string {
	ext := filepath.Ext(path)
	return strings.TrimSuffix(path, ext) + "-" + stamp.Format(rotatedStamp) + ext
}

func (f *file) flush() error {
	if err := f.w.Flush(); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return nil
}

// sync puts what was written onto the disk. A file that somebody else moved away
// is opened anew for what follows.
func (f *file) sync() error {
	if !f.dirty {
		return nil
	}
	if err := f.flush(); err != nil {
		return err
	}
	if err := f.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.path, err)
	}
	f.dirty = false
	ours, err := f.f.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", f.path, err)
	}
	if there, err := os.Stat(f.path); err == nil && os.SameFile(ours, there) {
		return nil
	}
	if err := f.f.Close(); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return f.open()
}

// close closes the file; what is buffered is dropped.
func (f *file) close() error { return f.f.Close() }

// sweep compresses what was set aside of a file, and removes what is not kept.
func sweep(path string, r Rotation, now time.Time) error {
	aside, err := rotatedFiles(path)
	if err != nil {
		return err
	}
	var errs []error
	for i, a := range aside { // Newest first.
		if r.Keep > 0 && i >= r.Keep || r.KeepAge > 0 && now.Sub(a.stamp) > r.KeepAge {
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
	stamp time.Time
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
		return fmt.Errorf("compress %s: %w", path, err)
	}
	if err := os.Rename(path+".gz.new", path+".gz"); err != nil {
		return err
	}
	return os.Remove(path)
}
