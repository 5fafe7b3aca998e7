package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// Loaded is what a file or folder held when it was read.
type Loaded struct {
	Files    int
	Objects  []api.Object // By kind, Namespace and name.
	Problems []Problem    // What is wrong. The objects without problems are there nevertheless.
	Warnings []Problem
}

// Load reads a file, or every manifest below a folder, once. An error means
// that there was nothing to read; what is wrong with files is in Problems.
func Load(path string) (Loaded, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Loaded{}, fmt.Errorf("read manifests: %w", err)
	}
	c := newCatalog()
	var extra []Problem
	read := func(full, name string) {
		text, err := os.ReadFile(full)
		if err != nil {
			c.fail(name, err)
			return
		}
		m, err := api.Decode(text)
		c.files[name] = &content{objects: m.Objects, warnings: locate(name, m.Warnings)}
		if err != nil {
			c.files[name].problems = problemsOf(name, err)
		}
	}
	if !info.IsDir() {
		read(path, path)
	} else {
		l, err := list(path)
		if err != nil {
			return Loaded{}, err
		}
		for name := range l.files {
			read(filepath.Join(path, name), name)
		}
		for name, err := range l.failed {
			extra = append(extra, problemsOf(name, err)...)
		}
	}
	out := Loaded{Files: len(c.files)}
	events, problems, warnings := c.diff()
	for _, e := range events {
		out.Objects = append(out.Objects, e.Object)
	}
	out.Problems, out.Warnings = append(problems, extra...), warnings
	slices.SortStableFunc(out.Problems, func(a, b Problem) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}
