package eventlog

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weirnet/weir/storage/faultpoint"
)

// Cursors keeps how far each of those who project the log has got, so that they
// do not wait for each other or for the log.
type Cursors struct{ in cursorStore }

// Cursors of the log.
func (l *Log) Cursors() Cursors { return Cursors{l.store.cursors()} }

// Load returns a cursor. Zero: there is none yet.
func (c Cursors) Load(name string) (uint64, error) {
	cursor, _, err := c.LoadState(name)
	return cursor, err
}

// LoadState returns a cursor, and what was stored with it.
func (c Cursors) LoadState(name string) (cursor uint64, state []byte, err error) {
	if cursor, state, err = c.in.load(name); err != nil {
		return 0, nil, fmt.Errorf("load cursor of %s: %w", name, err)
	}
	return cursor, state, nil
}

// Store keeps a cursor durably.
func (c Cursors) Store(name string, cursor uint64) error { return c.StoreState(name, cursor, nil) }

// StoreState keeps a cursor, and what belongs to it, durably: both or neither.
func (c Cursors) StoreState(name string, cursor uint64, state []byte) error {
	if err := c.in.store(name, cursor, state); err != nil {
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

func (c cursorFiles) load(name string) (uint64, []byte, error) {
	b, err := os.ReadFile(c.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	// A file has it all twice, so that damage to either does no harm; those of
	// older versions once.
	for _, b := range [][]byte{b[:len(b)/2], b[len(b)/2:], b} {
		end := len(b) - crc32.Size
		if end >= 8 && crc32.ChecksumIEEE(b[:end]) == binary.BigEndian.Uint32(b[end:]) {
			return binary.BigEndian.Uint64(b), b[8:end], nil
		}
	}
	return 0, nil, fmt.Errorf("%s is damaged; remove it to begin anew", c.path(name))
}

// highest is the highest of all cursors. Those that are damaged are for their
// owners to tell.
func (c cursorFiles) highest() (highest uint64, err error) {
	files, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, f := range files {
		name, err := hex.DecodeString(f.Name())
		if err != nil {
			continue // It was not finished.
		}
		if cursor, _, err := c.load(string(name)); err == nil {
			highest = max(highest, cursor)
		}
	}
	return highest, err
}

func (c cursorFiles) store(name string, cursor uint64, state []byte) error {
	if err := os.MkdirAll(c.dir, 0o750); err != nil {
		return err
	}
	b := append(binary.BigEndian.AppendUint64(nil, cursor), state...)
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
	faultpoint.Reach("auditd.cursor.written")
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	faultpoint.Reach("auditd.cursor.renamed")
	return errors.Join(d.Sync(), d.Close())
}
