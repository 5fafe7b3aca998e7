package validate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// findings gathers what there is to say.
type findings struct {
	violations, warnings []api.Violation
}

func (f *findings) refuse(of api.Ref, field, format string, args ...any) {
	f.violations = append(f.violations, api.Violation{Object: of, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (f *findings) warn(of api.Ref, field, format string, args ...any) {
	f.warnings = append(f.warnings, api.Violation{Object: of, Field: field, Message: fmt.Sprintf(format, args...)})
}

func compareRefs(a, b api.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// Set judges objects that are all there is, in any order: a folder, or what a
// command is given. Each has passed api.Validate, and no two have one Ref. The
// violations are those of Refused; the other objects are judged beside what of
// these is in force. What is missing is a warning, since it may come yet.
func Set(objects []api.Object) (violations, warnings []api.Violation) {
	violations, flat := Refused(objects)
	kept := Standing(sorted(objects), violations, flat)
	f := &findings{}
	x := NewIndex(kept...)
	x.budget.left = looksOfSet
	for _, o := range kept {
		x.warn(f, o, true)
	}
	x.unguarded(f)
	return violations, f.warnings
}

// Refused are the violations of objects that are all there is. An object with
// one must not be put in force as it is written: a tier not at all, a group that
// nests twice as flat says. It is a function of the objects, so that everybody who
// has the same finds the same. It costs little, however many policies there are.
//
// Of two tiers that cannot stand together the older stands, of those of one second,
// or where that is not known, the first by name, so that none that is in force
// is put out of it by one that comes. A group has nobody to yield to: what it
// is given as a child may have been given children at the same time. To leave it out
// would open what rules deny by it, so its children's children are in their place.
func Refused(objects []api.Object) (violations []api.Violation, flat map[api.Ref]*api.Group) {
	f := &findings{}
	objects = sorted(objects)
	f.tiers(objects)
	flat = f.nesting(objects)
	return f.violations, flat
}

// Standing is a list with what Refused says in the place of what it refuses.
func Standing(objects []api.Object, violations []api.Violation, flat map[api.Ref]*api.Group) []api.Object {
	refused := map[api.Ref]bool{}
	for _, v := range violations {
		refused[v.Object] = true
	}
	var list []api.Object
	for _, o := range objects {
		if ref := o.Ref(); !refused[ref] {
			list = append(list, o)
		} else if g := flat[ref]; g != nil {
			list = append(list, g)
		}
	}
	return list
}

// sorted is a list by kind, Namespace and name.
func sorted(objects []api.Object) []api.Object {
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b api.Object) int { return compareRefs(a.Ref(), b.Ref()) })
	return objects
}

// tiers judges tiers by each other.
func (f *findings) tiers(objects []api.Object) {
	var list []*api.Tier
	for _, o := range objects {
		if t, is := o.(*api.Tier); is {
			list = append(list, t)
		}
	}
	slices.SortStableFunc(list, func(a, b *api.Tier) int { return cmp.Compare(born(a.Created), born(b.Created)) })
	first := map[uint8]string{}
	count := len(api.StaticTiers())
	for _, t := range list {
		if _, static := api.StaticTier(t.Name); static {
			continue
		}
		switch other, taken := first[t.Priority]; {
		case taken:
			f.refuse(t.Ref(), "spec.priority", "%d is the priority of Tier %s too; write another", t.Priority, other)
		case count == api.MostTiers:
			f.refuse(t.Ref(), "", "%s", tooMany)
		default:
			first[t.Priority] = t.Name
			count++
		}
	}
}

var tooMany = fmt.Sprintf("there are %d tiers already, the %d static ones included, and there may be no more; move its policies to another tier, or remove one that is not used", api.MostTiers, len(api.StaticTiers()))

// nesting refuses groups whose children have children, and makes them flat. A group
// that is its own child was refused before.
func (f *findings) nesting(objects []api.Object) map[api.Ref]*api.Group {
	flat := map[api.Ref]*api.Group{}
	groups := map[api.Ref]*api.Group{}
	for _, o := range objects {
		if g, is := o.(*api.Group); is {
			groups[g.Ref()] = g
		}
	}
	for _, o := range objects {
		g, is := o.(*api.Group)
		if !is {
			continue
		}
		for i, name := range g.Children {
			if child := groups[api.Ref{Kind: g.Kind, Namespace: g.Namespace, Name: name}]; child != nil && len(child.Children) > 0 {
				f.refuse(g.Ref(), fmt.Sprintf("spec.childGroups[%d]", i), "%s has children of its own (%s), and groups nest once; write these instead", child.Ref(), strings.Join(child.Children, ", "))
				flat[g.Ref()] = nil
			}
		}
		if _, nested := flat[g.Ref()]; nested {
			leaf := *g
			leaf.Children = leaves(groups, g)
			flat[g.Ref()] = &leaf
		}
	}
	return flat
}

// leaves are the groups without children that a group comes to, however deep they
// are, each once; those that are not there are among them, since they may come.
// A circle adds nothing.
func leaves(groups map[api.Ref]*api.Group, g *api.Group) (names []string) {
	seen := map[string]bool{g.Name: true}
	var visit func(g *api.Group)
	visit = func(g *api.Group) {
		for _, name := range g.Children {
			if seen[name] {
				continue
			}
			seen[name] = true
			if child := groups[api.Ref{Kind: g.Kind, Namespace: g.Namespace, Name: name}]; child != nil && len(child.Children) > 0 {
				visit(child)
			} else {
				names = append(names, name)
			}
		}
	}
	visit(g)
	return names
}
