package manifests

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// content is what a file holds: its last good objects, and what is wrong with it now.
type content struct {
	objects  []api.Decoded
	warnings []Problem
	problems []Problem // Not empty: the objects are those of an earlier reading.
}

// catalog is the pure part of the source: the content of every file, and what
// follows from it. It does no I/O.
type catalog struct {
	files map[string]*content
	// inForce is what the last diff handed out.
	inForce map[api.Ref]api.Object
}

func newCatalog() *catalog {
	return &catalog{files: map[string]*content{}, inForce: map[api.Ref]api.Object{}}
}

// set takes in a file's text.
func (c *catalog) set(path string, text []byte) {
	m, err := api.Decode(text)
	if err != nil {
		c.fail(path, err)
		return
	}
	c.files[path] = &content{objects: m.Objects, warnings: locate(path, m.Warnings)}
}

// fail says that a file cannot be read or decoded. What it last held stays.
func (c *catalog) fail(path string, err error) {
	if c.files[path] == nil {
		c.files[path] = &content{}
	}
	c.files[path].problems = problemsOf(path, err)
}

// keep forgets every file but those that wanted holds for.
func (c *catalog) keep(wanted func(path string) bool) {
	maps.DeleteFunc(c.files, func(path string, _ *content) bool { return !wanted(path) })
}

// merge finds what is in force: of several definitions the first path's.
func (c *catalog) merge() (objects map[api.Ref]api.Object, problems, warnings []Problem) {
	objects = map[api.Ref]api.Object{}
	owner := map[api.Ref]string{}
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		f := c.files[path]
		problems = append(problems, f.problems...)
		warnings = append(warnings, f.warnings...)
		for _, d := range f.objects {
			ref := d.Object.Ref()
			if first, taken := owner[ref]; taken {
				problems = append(problems, Problem{Path: path, Violation: api.Violation{Document: d.Document, Line: d.Line, Object: ref,
					Message: fmt.Sprintf("defined already in %s, which counts; remove one of the two", first)}})
				continue
			}
			owner[ref] = path
			objects[ref] = d.Object
		}
	}
	sortProblems(problems)
	return objects, problems, warnings
}

// diff is what changed since the last diff, in the order of kinds and names,
// so that Namespaces and Nodes come before what refers to them.
func (c *catalog) diff() (events []api.Event, problems, warnings []Problem) {
	objects, problems, warnings := c.merge()
	for ref, o := range objects {
		old, there := c.inForce[ref]
		if there && (old == o || reflect.DeepEqual(old, o)) {
			objects[ref] = old
			continue
		}
		events = append(events, api.Event{Ref: ref, Object: o})
	}
	for ref := range c.inForce {
		if objects[ref] == nil {
			events = append(events, api.Event{Ref: ref})
		}
	}
	slices.SortFunc(events, func(a, b api.Event) int {
		return cmp.Or(cmp.Compare(a.Ref.Kind, b.Ref.Kind), cmp.Compare(a.Ref.Namespace, b.Ref.Namespace), cmp.Compare(a.Ref.Name, b.Ref.Name))
	})
	c.inForce = objects
	return events, problems, warnings
}
