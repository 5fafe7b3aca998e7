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
// violations are those of Refused; the other objects are judged as if what is
// refused was not there. What is missing is a warning, since it may come yet.
func Set(objects []api.Object) (violations, warnings []api.Violation) {
	violations = Refused(objects)
	kept := sorted(objects)
	kept = slices.DeleteFunc(kept, func(o api.Object) bool {
		return slices.ContainsFunc(violations, func(v api.Violation) bool { return v.Object == o.Ref() })
	})
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
// one must not be put in force. Of two tiers that cannot stand together the older
// stands, where that is not known the first by name, so that none that is in force
// is put out of it by one that comes. It costs little, however many policies there are.
func Refused(objects []api.Object) []api.Violation {
	f := &findings{}
	objects = sorted(objects)
	f.tiers(objects)
	f.nesting(objects)
	return f.violations
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

// nesting refuses groups whose children have children. A group that is its own
// child was refused before.
func (f *findings) nesting(objects []api.Object) {
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
			}
		}
	}
}
