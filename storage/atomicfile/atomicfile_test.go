package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

var format = Format{Magic: "TESTFILE", Version: 3}

func TestWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if _, err := Read(path, format); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for _, content := range []string{"first", "", "second"} { // Each replaces the one before.
		if err := Write(path, format, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path, format); err != nil || string(got) != content {
			t.Errorf("read %q, %v; want %q", got, err, content)
		}
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 {
		t.Errorf("%d files are left, want one", len(entries))
	}
}

// What a writer left that died goes, and nothing else.
func TestCleanRemovesWhatIsUnfinished(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	f, err := os.CreateTemp(dir, ".state.*"+unfinished)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := WriteVolatile(path, format, []byte("content")); err != nil {
		t.Fatal(err)
	}
	if err := Clean(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.Name()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unfinished: %v", err)
	}
	if got, err := Read(path, format); err != nil || string(got) != "content" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestWhatIsNotWholeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := Write(path, format, []byte("content")); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, Format{Magic: "OTHERONE", Version: 3}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("of another kind: %v", err)
	}
	if _, err := Read(path, Format{Magic: format.Magic, Version: 4}); !errors.Is(err, ErrVersion) {
		t.Errorf("of another version: %v", err)
	}
	read := func(content []byte) error {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Read(path, format)
		return err
	}
	for n := range whole {
		if err := read(whole[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("torn at %d: %v", n, err)
		}
		flipped := append([]byte(nil), whole...)
		flipped[n] ^= 0x40
		if err := read(flipped); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("bit flipped at %d: %v", n, err)
		}
	}
}
