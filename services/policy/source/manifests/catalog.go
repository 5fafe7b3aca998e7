package manifests

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

// content is what a file holds: its last good objects, and what is wrong with it now.
type content struct {
	objects  []api.Decoded
	versions map[api.Ref]*api.Version
	warnings []Problem
	problems []Problem // Not empty: the objects are those of an earlier reading.
}

// catalog is the pure part of the source: the content of every file, and what
// follows from it. It does no I/O.
type catalog struct {
	// record makes the version of an object as it is written, which is the former
	// one where its content is. Nil: none are kept.
	record func(ref api.Ref, raw []byte, former *api.Version) *api.Version
	files  map[string]*content
	// defined is what the files define, each object by the first path that does,
	// and places is where.
	defined map[api.Ref]api.Object
	places  map[api.Ref]Problem
	// versions are of what is defined.
	versions map[api.Ref]*api.Version
	// refused is what cannot stand beside other objects that are defined, and flat
	// what is in force of groups of it.
	refused []api.Violation
	flat    map[api.Ref]*api.Group
	// warned is what is said of objects beside each other; it is stale where
	// something else than Pods and their like has changed since.
	warned []api.Violation
	stale  bool
	// inForce, faults and told are the objects, what is wrong with them and their
	// versions, as the last diff handed them out.
	inForce map[api.Ref]api.Object
	faults  map[api.Ref]string
	told    map[api.Ref]*api.Version
}

func newCatalog() *catalog {
	return &catalog{files: map[string]*content{}, defined: map[api.Ref]api.Object{}, inForce: map[api.Ref]api.Object{}}
}

// set takes in a file's text.
func (c *catalog) set(path string, text []byte) {
	m, err := api.Decode(text)
	if err != nil {
		c.fail(path, err)
		return
	}
	f := &content{objects: m.Objects, versions: map[api.Ref]*api.Version{}, warnings: locate(path, m.Warnings)}
	for i := range f.objects {
		o := &f.objects[i]
		ref := o.Object.Ref()
		if written, _ := api.Written(ref.Kind); c.record != nil && written != "" {
			f.versions[ref] = c.record(ref, o.Raw, c.versions[ref])
		}
		o.Raw = nil // It is the whole text, and has been read.
	}
	c.files[path] = f
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

// merge finds what is defined, and where: of several definitions the first
// path's counts.
func (c *catalog) merge() (objects map[api.Ref]api.Object, problems, warnings []Problem) {
	objects = map[api.Ref]api.Object{}
	c.places = map[api.Ref]Problem{}
	c.versions = map[api.Ref]*api.Version{}
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		f := c.files[path]
		problems = append(problems, f.problems...)
		warnings = append(warnings, f.warnings...)
		for _, d := range f.objects {
			ref := d.Object.Ref()
			here := Problem{Path: path, Violation: api.Violation{Document: d.Document, Line: d.Line, Object: ref}}
			if first, taken := c.places[ref]; taken {
				here.Message = fmt.Sprintf("defined already in %s, which counts; remove one of the two", first.Path)
				problems = append(problems, here)
				continue
			}
			c.places[ref] = here
			objects[ref] = d.Object
			if v := f.versions[ref]; v != nil {
				c.versions[ref] = v
			}
		}
	}
	return objects, problems, warnings
}

// define takes in what is defined now, and judges the objects beside each other
// as far as some must not be in force. Most changes are of Pods, and cost nothing
// here.
func (c *catalog) define(objects map[api.Ref]api.Object) {
	judge := false
	changed := func(ref api.Ref) {
		switch ref.Kind {
		case api.KindPod, api.KindNode, api.KindServiceAccount, api.KindEndpointSlice:
			return
		case api.KindTier, api.KindClusterGroup, api.KindGroup:
			judge = true
		}
		c.stale = true
	}
	for ref, o := range objects {
		old, there := c.defined[ref]
		if there && (old == o || reflect.DeepEqual(old, o)) {
			objects[ref] = old
			continue
		}
		changed(ref)
	}
	for ref := range c.defined {
		if objects[ref] == nil {
			changed(ref)
		}
	}
	c.defined = objects
	if judge {
		c.refused, c.flat = validate.Refused(slices.Collect(maps.Values(objects)))
	}
}

// diff is what changed since the last diff, in the order of kinds and names,
// so that Namespaces and Nodes come before what refers to them.
func (c *catalog) diff() (events []api.Event, problems, warnings []Problem) {
	objects, problems, warnings := c.merge()
	c.define(objects)
	objects = maps.Clone(objects)
	for _, v := range c.refused {
		delete(objects, v.Object)
		problems = append(problems, c.locate(v))
	}
	for ref, g := range c.flat {
		objects[ref] = g
	}
	sortProblems(problems)
	faults := api.Faults(c.refused)
	for ref := range differ(c.inForce, objects, differ(c.faults, faults, differ(c.told, c.versions, nil))) {
		events = append(events, api.Event{Ref: ref, Object: objects[ref], Fault: faults[ref], Version: c.versions[ref]})
	}
	slices.SortFunc(events, func(a, b api.Event) int { return compareRefs(a.Ref, b.Ref) })
	c.inForce, c.faults, c.told = objects, faults, c.versions
	return events, problems, warnings
}

// differ adds to a set the names of what is not as it was.
func differ[T comparable](was, is map[api.Ref]T, set map[api.Ref]struct{}) map[api.Ref]struct{} {
	if set == nil {
		set = map[api.Ref]struct{}{}
	}
	for ref, v := range is {
		if was[ref] != v {
			set[ref] = struct{}{}
		}
	}
	for ref := range was {
		if _, there := is[ref]; !there {
			set[ref] = struct{}{}
		}
	}
	return set
}

// locate says where the object of a violation is.
func (c *catalog) locate(v api.Violation) Problem {
	p := c.places[v.Object]
	p.Field, p.Message, p.alone = v.Field, v.Message, true
	return p
}

// judge works out anew what there is to say of the objects beside each other, as
// of the last diff, where that may have changed. It may take a second where
// there are tens of thousands of policies.
func (c *catalog) judge() {
	if c.stale {
		_, c.warned = validate.Set(slices.Collect(maps.Values(c.defined)))
		c.stale = false
	}
}

// judged is what there was to say at the last judge, of what is still there.
func (c *catalog) judged() []Problem {
	var list []Problem
	for _, v := range c.warned {
		if c.defined[v.Object] != nil {
			list = append(list, c.locate(v))
		}
	}
	sortProblems(list)
	return list
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
