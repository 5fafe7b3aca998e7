// Package checkpoint keeps a node's last applied state on disk, so that a shim
// that starts without the policy service enforces what it enforced before.
//
// A checkpoint is one file: a magic, a version, the length and the hash of
// what follows, then a snapshot of the state, the node's name and the
// assignment of the pipeline as opaque bytes. It is written beside its place,
// synced and renamed: a reader sees the old one or the new one whole. A file
// that is torn, altered, of another node or of another version is an error of
// Load and never half a state; who loads it then starts without one, which
// means that unknown Pods stay closed.
//
// Read checkpoint_test.go first.
package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Checkpoint is what is kept.
type Checkpoint struct {
	Node       string
	State      *policyv1.Cut // A snapshot: see storage.Replica.Snapshot.
	Assignment []byte        // Opaque here.
}

const (
	magic   = "WEIRCKPT"
	version = 1
	header  = len(magic) + 4 + 8 + 16
)

// Errors of Load, beside those of the file system. A missing file is
// fs.ErrNotExist.
var (
	ErrCorrupt = errors.New("checkpoint is corrupt")
	ErrVersion = errors.New("checkpoint is of another version")
	ErrNode    = errors.New("checkpoint is of another node")
)

// Save writes the checkpoint to path, atomically and durably.
func Save(path string, c Checkpoint) error {
	state, err := proto.Marshal(c.State)
	if err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	var body []byte
	for _, part := range [][]byte{[]byte(c.Node), state, c.Assignment} {
		body = protowire.AppendBytes(body, part)
	}
	out := make([]byte, 0, header+len(body))
	out = append(out, magic...)
	out = binary.BigEndian.AppendUint32(out, version)
	out = binary.BigEndian.AppendUint64(out, uint64(len(body)))
	sum := xxh3.Hash128(body).Bytes()
	out = append(append(out, sum[:]...), body...)
	if err := replace(path, out); err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	return nil
}

func replace(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Load reads the checkpoint of a node.
func Load(path, node string) (Checkpoint, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("load checkpoint: %w", err)
	}
	c, err := decode(content)
	if err == nil && c.Node != node {
		err = fmt.Errorf("%w: %q, not %q", ErrNode, c.Node, node)
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("load checkpoint %s: %w", path, err)
	}
	return c, nil
}

func decode(content []byte) (Checkpoint, error) {
	if len(content) < header || string(content[:len(magic)]) != magic {
		return Checkpoint{}, fmt.Errorf("%w: no header", ErrCorrupt)
	}
	rest := content[len(magic):]
	if v := binary.BigEndian.Uint32(rest); v != version {
		return Checkpoint{}, fmt.Errorf("%w: %d, not %d", ErrVersion, v, version)
	}
	length, sum, body := binary.BigEndian.Uint64(rest[4:]), rest[12:28], rest[28:]
	if uint64(len(body)) != length {
		return Checkpoint{}, fmt.Errorf("%w: %d bytes where it says %d", ErrCorrupt, len(body), length)
	}
	if got := xxh3.Hash128(body).Bytes(); string(got[:]) != string(sum) {
		return Checkpoint{}, fmt.Errorf("%w: hash differs", ErrCorrupt)
	}
	var parts [3][]byte
	for i := range parts {
		v, n := protowire.ConsumeBytes(body)
		if n < 0 {
			return Checkpoint{}, fmt.Errorf("%w: part %d", ErrCorrupt, i)
		}
		parts[i], body = v, body[n:]
	}
	c := Checkpoint{Node: string(parts[0]), State: &policyv1.Cut{}, Assignment: parts[2]}
	if err := proto.Unmarshal(parts[1], c.State); err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return c, nil
}
