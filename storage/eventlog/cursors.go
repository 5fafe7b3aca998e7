package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

// Cursors keeps how far each of those who project the log has got, so that they
// do not wait for each other or for the log.
type Cursors struct{ in cursorStore }

// Cursors of the log.
func (l *Log) Cursors() Cursors { return Cursors{l.store.cursors()} }

// Load returns a cursor. Zero: there is none yet.
func (c Cursors) Load(name string) (uint64, error) {
	cursor, err := c.in.load(name)
	if err != nil {
		return 0, fmt.Errorf("load cursor of %s: %w", name, err)
	}
	return cursor, nil
}

// Store keeps a cursor durably.
func (c Cursors) Store(name string, cursor uint64) error {
	if err := c.in.store(name, cursor); err != nil {
		return fmt.Errorf("store cursor of %s: %w", name, err)
	}
	return nil
}

// cursorFiles are the cursors of a local log, each in a file of its own beside
// it.
type cursorFiles struct{ dir string }

// path of a name's file. Names that are no file names are made so.
func (c cursorFiles) path(name string) string {
	return filepath.Join(c.dir, fmt.Sprintf("%x", name))
}

func (c cursorFiles) load(name string) (uint64, error) {
	b, err := os.ReadFile(c.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for ; len(b) >= cursorLen; b = b[cursorLen:] {
		if crc32.ChecksumIEEE(b[:8]) == binary.BigEndian.Uint32(b[8:]) {
			return binary.BigEndian.Uint64(b), nil
		}
	}
	return 0, fmt.Errorf("%s is damaged; remove it to begin anew", c.path(name))
}

// cursorLen is a cursor and its checksum. A file has them twice, so that damage
// to either does no harm.
const cursorLen = 12

func (c cursorFiles) store(name string, cursor uint64) error {
	if err := os.MkdirAll(c.dir, 0o750); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, cursor)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(b, b...)
	path := c.path(name)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
