package sink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ending is how long a file is.
type ending struct {
	path string // That it has, or had while it was written.
	id   fileID
	size int64
}

func replaceNode(pattern, node string) string { return strings.ReplaceAll(pattern, "{node}", node) }

func sortedEndings(m map[string]ending) []ending {
	out := make([]ending, 0, len(m))
	for _, path := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[path])
	}
	return out
}

func encodeEndings(list []ending) []byte {
	b := binary.AppendUvarint(nil, uint64(len(list)))
	for _, e := range list {
		b = binary.AppendUvarint(b, uint64(len(e.path)))
		b = append(b, e.path...)
		b = binary.AppendUvarint(b, e.id.inode)
		b = binary.AppendVarint(b, e.id.born)
		b = binary.AppendUvarint(b, uint64(e.size))
	}
	return b
}

func decodeEndings(b []byte) ([]ending, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var out []ending
	d := varints{rest: b}
	for range d.unsigned() {
		out = append(out, ending{d.text(), fileID{d.unsigned(), d.signed()}, int64(d.unsigned())})
		if d.bad {
			break
		}
	}
	if d.bad || len(d.rest) > 0 {
		return nil, errors.New("the lengths of files that are stored with the cursor cannot be read")
	}
	return out, nil
}

// cut finds the file by whatever name it has now, and cuts off what is behind
// its ending. The name is empty if the file is gone. One that was set aside and
// has nothing left is removed.
func (e ending) cut() (name string, err error) {
	name, err = e.find()
	if err != nil || name == "" {
		return name, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", name, err)
	}
	if name != e.path && e.size == 0 {
		if err := os.Remove(name); err != nil {
			return "", fmt.Errorf("remove what was written behind the cursor: %w", err)
		}
		return name, nil
	}
	if info.Size() <= e.size {
		return name, nil
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("cut off what was written behind the cursor: %w", err)
	}
	if err := errors.Join(f.Truncate(e.size), f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("cut off what was written to %s behind the cursor: %w", name, err)
	}
	return name, nil
}

// find looks at the path, and then at whatever in its folder has a name that
// begins likewise.
func (e ending) find() (string, error) {
	if id, err := statID(nil, e.path); err == nil && id == e.id {
		return e.path, nil
	}
	folder := filepath.Dir(e.path)
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for what was %s: %w", e.path, err)
	}
	base := filepath.Base(e.path)
	prefix := strings.TrimSuffix(base, filepath.Ext(base))
	for _, entry := range entries {
		name := filepath.Join(folder, entry.Name())
		if !strings.HasPrefix(entry.Name(), prefix) || !entry.Type().IsRegular() {
			continue
		}
		if id, err := statID(nil, name); err == nil && id == e.id {
			return name, nil
		}
	}
	return "", nil
}
