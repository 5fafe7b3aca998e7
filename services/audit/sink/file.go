package sink

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/storage/faultpoint"
)

// file is a file that lines are appended to.
type file struct {
	path     string
	rotation Rotation
	now      func() time.Time
	f        *os.File
	w        *bufio.Writer
	id       fileID
	size     int64
	begun    time.Time // When the first line was written.
	dirty    bool
	known    bool // Its identity is stored: what is written from here on would be found after a crash.
}

// fileID tells a file from others of the same folder, whatever its name is, and
// from one that has its inode after it.
type fileID struct {
	inode uint64
	born  int64 // Nanoseconds; zero where the file system does not tell.
}

// statID looks at an open file, or at a path where there is none.
func statID(f *os.File, path string) (fileID, error) {
	var st unix.Statx_t
	var err error
	if f != nil {
		err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
	} else {
		err = unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &st)
	}
	if err != nil {
		return fileID{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	id := fileID{inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = st.Btime.Sec*int64(time.Second) + int64(st.Btime.Nsec)
	}
	return id, nil
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
	o, err := os.OpenFile(f.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("open %s: %w", f.path, err)
	}
	size, err := wholeLines(o)
	var id fileID
	if err == nil {
		id, err = statID(o, f.path)
	}
	if err == nil && size == 0 {
		err = syncFolder(f.path) // It may be new.
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", f.path, err), o.Close())
	}
	f.f, f.w, f.id, f.size, f.begun, f.known, f.dirty = o, bufio.NewWriterSize(o, 64<<10), id, size, f.now(), false, false
	if size > 0 {
		f.begun = f.begunBefore(o)
	}
	return nil
}

// clockSlack is what the clocks of a file system and ours may differ by.
const clockSlack = time.Minute

// begunBefore is when a file that has lines was begun. One of the future is of
// before the clock was set back: nobody knows how old it is, so it is as old as can
// be, and not young for as long as the step.
func (f *file) begunBefore(o *os.File) time.Time {
	begun := f.now()
	if info, err := o.Stat(); err == nil && info.ModTime().Before(begun) {
		begun = info.ModTime()
	}
	if born := time.Unix(0, f.id.born); f.id.born != 0 && born.Before(begun) {
		begun = born
	} else if f.id.born != 0 && born.Sub(begun) > clockSlack {
		begun = time.Time{}
	}
	return begun
}

// syncFolder makes the names in a file's folder durable.
func syncFolder(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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

// full says whether a line of a length belongs into another file.
func (f *file) full(line int) bool {
	return f.size > 0 && (f.rotation.MaxBytes > 0 && f.size+int64(line) > f.rotation.MaxBytes ||
		f.rotation.Every > 0 && f.now().Sub(f.begun) >= f.rotation.Every)
}

// write appends a line.
func (f *file) write(line []byte) error {
	if f.size == 0 {
		f.begun = f.now()
	}
	f.dirty = true
	n, err := f.w.Write(line)
	f.size += int64(n)
	if err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return nil
}

// rotate sets the file aside, and begins another. It tells the name before the
// file has it.
func (f *file) rotate(aside func(path string)) error {
	if err := f.flushAndSync(); err != nil {
		return err
	}
	name, err := f.asideName()
	if err != nil {
		return err
	}
	aside(name)
	faultpoint.Reach("auditd.rotate.synced")
	if err := os.Rename(f.path, name); err != nil {
		return fmt.Errorf("set %s aside: %w", f.path, err)
	}
	faultpoint.Reach("auditd.rotate.renamed")
	if err := f.again(); err != nil {
		return err
	}
	faultpoint.Reach("auditd.rotate.reopened")
	return nil
}

// asideName is behind those of all files set aside before, whatever the clock was
// set to meanwhile: their order tells which are the oldest.
func (f *file) asideName() (string, error) {
	aside, err := rotatedFiles(f.path)
	if err != nil {
		return "", err
	}
	stamp := f.now().UTC().Truncate(time.Millisecond)
	if len(aside) > 0 && !stamp.After(aside[0].stamp) {
		stamp = aside[0].stamp.Add(time.Millisecond)
	}
	return rotatedName(f.path, stamp), nil
}

// again opens whatever has the path now.
func (f *file) again() error {
	if err := f.f.Close(); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return f.open()
}

func (f *file) flush() error {
	if err := f.w.Flush(); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return nil
}

func (f *file) flushAndSync() error {
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
	return nil
}

// sync puts what was written onto the disk. A file that somebody else moved away
// is opened anew for what follows; one that somebody else cut is as long as it is.
func (f *file) sync() error {
	if !f.dirty {
		return nil
	}
	if err := f.flushAndSync(); err != nil {
		return err
	}
	ours, err := f.f.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", f.path, err)
	}
	f.size = ours.Size()
	if there, err := os.Stat(f.path); err == nil && os.SameFile(ours, there) {
		return nil
	}
	return f.again()
}

// close closes the file; what is buffered is dropped.
func (f *file) close() error { return f.f.Close() }
