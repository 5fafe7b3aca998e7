package manifests

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

// Loaded is what files and folders held when they were read.
type Loaded struct {
	Files    int
	Objects  []api.Object // Of each path by kind, Namespace and name.
	Problems []Problem    // What is wrong. The objects without problems are there nevertheless.
	Warnings []Problem
}

// Load reads files, and every manifest below folders, once. The objects of all
// paths are judged together; of one that several define, the first path's
// counts for that. An error means that a path held nothing to read; what is wrong
// with files is in Problems.
func Load(paths ...string) (Loaded, error) {
	var out Loaded
	all := newCatalog()
	all.places = map[api.Ref]Problem{}
	for _, path := range paths {
		c, extra, err := read(path)
		if err != nil {
			return Loaded{}, err
		}
		if len(c.files) == 0 {
			return Loaded{}, fmt.Errorf("%s holds no manifest (.yaml, .yml or .json)", path)
		}
		objects, problems, warnings := c.merge()
		out.Files += len(c.files)
		out.Problems = append(append(out.Problems, problems...), extra...)
		out.Warnings = append(out.Warnings, warnings...)
		for _, ref := range slices.SortedFunc(maps.Keys(objects), compareRefs) {
			out.Objects = append(out.Objects, objects[ref])
			if all.defined[ref] == nil {
				all.defined[ref], all.places[ref] = objects[ref], c.places[ref]
			}
		}
	}
	defined := slices.Collect(maps.Values(all.defined))
	_, warnings := validate.Set(defined)
	violations, flat := validate.Refused(defined)
	for _, v := range violations {
		out.Problems = append(out.Problems, all.locate(v))
	}
	out.Objects = validate.Standing(out.Objects, violations, flat)
	for _, v := range warnings {
		out.Warnings = append(out.Warnings, all.locate(v))
	}
	sortProblems(out.Problems)
	sortProblems(out.Warnings)
	return out, nil
}

// read reads a file or a folder. Extra are folders and files that could not be
// looked at.
func read(path string) (c *catalog, extra []Problem, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read manifests: %w", err)
	}
	c = newCatalog()
	take := func(full, name string) {
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
		take(path, path)
		return c, nil, nil
	}
	l, err := list(path)
	if err != nil {
		return nil, nil, err
	}
	for name := range l.files {
		take(filepath.Join(path, name), name)
	}
	for name, err := range l.failed {
		extra = append(extra, problemsOf(name, err)...)
	}
	return c, extra, nil
}
