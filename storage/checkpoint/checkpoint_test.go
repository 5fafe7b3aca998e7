package checkpoint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

var sample = Checkpoint{
	Node:       "node-1",
	State:      &policyv1.Cut{Epoch: "e", Revision: 7, Digest: make([]byte, 16), Snapshot: true},
	Assignment: []byte("assignment"),
}

func TestSavedIsLoaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	for range 2 { // The second replaces the first.
		if err := Save(path, sample); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Load(path, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.State, sample.State) || string(got.Assignment) != "assignment" {
		t.Errorf("loaded %v", got)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 {
		t.Errorf("%d files are left, want the checkpoint alone", len(entries))
	}
}

func TestWhatIsNotACheckpointIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "checkpoint")
	if err := Save(path, sample); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, "node-2"); !errors.Is(err, ErrNode) {
		t.Errorf("another node's: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "none"), "node-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	load := func(content []byte) error {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path, "node-1")
		return err
	}
	for n := range whole {
		if err := load(whole[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("torn at %d: %v", n, err)
		}
		flipped := append([]byte(nil), whole...)
		flipped[n] ^= 0x40
		if err := load(flipped); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("bit flipped at %d: %v", n, err)
		}
	}
}
