// Package checkpoint keeps a node's last applied state on disk, so that a shim
// that starts without the policy service enforces what it enforced before.
//
// A checkpoint is one file, replaced atomically (package atomicfile): a snapshot
// of the state, the node's name and the assignment of the pipeline as opaque
// bytes. A file that is torn, altered, of another node or of another version is
// an error of Load and never half a state; who loads it then starts without
// one, which means that unknown Pods stay closed.
//
// Read checkpoint_test.go first.
package checkpoint

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage/atomicfile"
)

// Checkpoint is what is kept.
type Checkpoint struct {
	Node       string
	State      *policyv1.Cut // A snapshot: see storage.Replica.Snapshot.
	Assignment []byte        // Opaque here.
}

var format = atomicfile.Format{Magic: "WEIRCKPT", Version: 1}

// Errors of Load, beside those of the file system. A missing file is
// fs.ErrNotExist.
var (
	ErrCorrupt = atomicfile.ErrCorrupt
	ErrVersion = atomicfile.ErrVersion
	ErrNode    = errors.New("checkpoint is of another node")
)

// Save writes the checkpoint to path, atomically and durably.
func Save(path string, c Checkpoint) error {
	state, err := proto.Marshal(c.State)
	if err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	return SaveEncoded(path, c.Node, state, c.Assignment)
}

// SaveEncoded is Save of a state that is encoded already: see
// storage.Replica.EncodedSnapshot.
func SaveEncoded(path, node string, state, assignment []byte) error {
	var parts [][]byte
	for _, part := range [][]byte{[]byte(node), state, assignment} {
		parts = append(parts, protowire.AppendVarint(nil, uint64(len(part))), part)
	}
	if err := atomicfile.Write(path, format, parts...); err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	return nil
}

// Load reads the checkpoint of a node.
func Load(path, node string) (Checkpoint, error) {
	state, assignment, err := LoadEncoded(path, node)
	if err != nil {
		return Checkpoint{}, err
	}
	c := Checkpoint{Node: node, State: &policyv1.Cut{}, Assignment: assignment}
	if err := proto.Unmarshal(state, c.State); err != nil {
		return Checkpoint{}, fmt.Errorf("load checkpoint %s: %w: %v", path, ErrCorrupt, err)
	}
	return c, nil
}

// LoadEncoded is Load that leaves the state encoded: see storage.Replica.ApplyEncoded.
func LoadEncoded(path, node string) (state, assignment []byte, err error) {
	body, err := atomicfile.Read(path, format)
	if err != nil {
		return nil, nil, fmt.Errorf("load checkpoint %s: %w", path, err)
	}
	var parts [3][]byte
	for i := range parts {
		v, n := protowire.ConsumeBytes(body)
		if n < 0 {
			return nil, nil, fmt.Errorf("load checkpoint %s: %w: part %d", path, ErrCorrupt, i)
		}
		parts[i], body = v, body[n:]
	}
	if of := string(parts[0]); of != node {
		return nil, nil, fmt.Errorf("load checkpoint %s: %w: %q, not %q", path, ErrNode, of, node)
	}
	return parts[1], parts[2], nil
}
