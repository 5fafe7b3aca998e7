// Package atomicfile keeps one piece of state in a file that is read back whole
// or not at all.
//
// A file is a magic, a version, the length and the hash of what follows. It is
// written beside its place, synced and renamed: a reader sees the old content or
// the new. One that is torn, altered, of another kind or another version is an
// error of Read; what to begin with then is the reader's business.
//
// A process that dies while it writes leaves the file that was to take the place
// beside it: Clean removes such.
package atomicfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"

	"github.com/weirnet/weir/storage/faultpoint"
)

// Format says what a file is.
type Format struct {
	Magic   string // 8 bytes.
	Version uint32 // Of the content.
}

const header = 8 + 4 + 8 + 16

// Errors of Read, beside those of the file system. A missing file is
// fs.ErrNotExist.
var (
	ErrCorrupt = errors.New("file is corrupt")
	ErrVersion = errors.New("file is of another version")
)

// Write puts the content, which may be in parts, in the place of the file's,
// atomically and durably.
func Write(path string, format Format, content ...[]byte) error {
	return replace(path, encode(format, content), true)
}

// WriteVolatile is Write for what need not outlive the machine, only the process:
// nothing is synced.
func WriteVolatile(path string, format Format, content []byte) error {
	return replace(path, encode(format, [][]byte{content}), false)
}

// encode puts the header before the parts of a content.
func encode(format Format, content [][]byte) [][]byte {
	length, hash := 0, xxh3.New()
	for _, part := range content {
		length += len(part)
		_, _ = hash.Write(part) // Which never fails.
	}
	out := make([]byte, 0, header)
	out = append(out, format.Magic...)
	out = binary.BigEndian.AppendUint32(out, format.Version)
	out = binary.BigEndian.AppendUint64(out, uint64(length))
	sum := hash.Sum128().Bytes()
	return append([][]byte{append(out, sum[:]...)}, content...)
}

// unfinished ends the names of files that are being written.
const unfinished = ".tmp"

// Clean removes what writers that died have left in a folder.
func Clean(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, ".*"+unfinished)) // The pattern is a good one, but for the folder's name.
	for _, path := range paths {
		if e := os.Remove(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func replace(path string, content [][]byte, durable bool) (err error) {
	name := filepath.Base(path)
	f, err := os.CreateTemp(filepath.Dir(path), "."+name+".*"+unfinished)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			var of *fs.PathError
			if errors.As(err, &of) {
				of.Path = path // The other name says nothing, and is another each time.
			}
		}
	}()
	for _, part := range content {
		if _, err = f.Write(part); err != nil {
			return err
		}
	}
	if durable {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	faultpoint.Reach("file." + name + ".written")
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	faultpoint.Reach("file." + name + ".renamed")
	if !durable {
		return nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Read returns the content of a file.
func Read(path string, format Format) ([]byte, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(file) < header || string(file[:len(format.Magic)]) != format.Magic {
		return nil, fmt.Errorf("%w: no header", ErrCorrupt)
	}
	rest := file[len(format.Magic):]
	if v := binary.BigEndian.Uint32(rest); v != format.Version {
		return nil, fmt.Errorf("%w: %d, not %d", ErrVersion, v, format.Version)
	}
	length, sum, content := binary.BigEndian.Uint64(rest[4:]), rest[12:28], rest[28:]
	if uint64(len(content)) != length {
		return nil, fmt.Errorf("%w: %d bytes where it says %d", ErrCorrupt, len(content), length)
	}
	if got := xxh3.Hash128(content).Bytes(); string(got[:]) != string(sum) {
		return nil, fmt.Errorf("%w: hash differs", ErrCorrupt)
	}
	return content, nil
}
