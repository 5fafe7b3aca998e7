package validate

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// Change judges a change before it happens: the object as it was, nil where it
// is created, and as it is to be, nil where it is deleted. The index is what
// exists, the object as it was included, and is not changed. What the object
// says by itself has passed api.Validate.
//
// It costs what the rules of the one policy and those that they may meet cost. What a change means for the rules of other policies is not said.
func (x *Index) Change(old, changed api.Object) (violations, warnings []api.Violation) {
	f := &findings{}
	x.budget.left = looksOfChange
	switch {
	case changed == nil && old == nil:
		return nil, nil
	case changed == nil:
		x.deletion(f, old)
		return f.violations, nil
	}
	switch o := changed.(type) {
	case *api.Tier:
		x.tier(f, old, o)
	case *api.Group:
		x.groupChange(f, o)
	case *api.OrderedPolicy:
		if _, ranked := x.rank(o); !ranked {
			f.refuse(o.Ref(), "spec.tier", "Tier %s does not exist; create it first, or write one of %s", o.Tier, strings.Join(x.tierNames(), ", "))
		}
	}
	x.warn(f, changed, false)
	return f.violations, f.warnings
}

func (x *Index) tier(f *findings, old api.Object, t *api.Tier) {
	if former, is := old.(*api.Tier); is && former != nil {
		if former.Priority != t.Priority {
			f.refuse(t.Ref(), "spec.priority", "%d; the priority of a tier stays what it was, write %d or create another tier", t.Priority, former.Priority)
		}
		return
	}
	if _, static := api.StaticTier(t.Name); static {
		return
	}
	for _, other := range x.tiers {
		if other.Priority == t.Priority && other.Name != t.Name {
			f.refuse(t.Ref(), "spec.priority", "%d is the priority of Tier %s too; write another", t.Priority, other.Name)
		}
	}
	if len(x.tiers)+len(api.StaticTiers()) >= api.MostTiers {
		f.refuse(t.Ref(), "", "%s", tooMany)
	}
}

func (x *Index) tierNames() []string {
	var names []string
	for _, t := range api.StaticTiers() {
		names = append(names, t.Name)
	}
	return names
}

// groupChange judges the nesting of groups.
func (x *Index) groupChange(f *findings, g *api.Group) {
	if len(g.Children) == 0 {
		return
	}
	for i, name := range g.Children {
		child := x.groups[api.Ref{Kind: g.Kind, Namespace: g.Namespace, Name: name}]
		if child != nil && len(child.Children) > 0 {
			f.refuse(g.Ref(), fmt.Sprintf("spec.childGroups[%d]", i), "%s has children of its own (%s), and groups nest once; write these instead", child.Ref(), strings.Join(child.Children, ", "))
		}
	}
	if parents := x.usersOf(g.Ref(), g.Kind); len(parents) > 0 {
		f.refuse(g.Ref(), "spec.childGroups", "the group is a child of %s, and groups nest once; remove it there first, or write what it selects", some(parents))
	}
}

// deletion judges that an object goes.
func (x *Index) deletion(f *findings, o api.Object) {
	ref := o.Ref()
	switch ref.Kind {
	case api.KindTier:
		if _, static := api.StaticTier(ref.Name); static {
			f.refuse(ref, "", "a static tier cannot be deleted; remove the policies that refer to it if it is to have none")
			return
		}
		if users := x.usersOf(ref, api.KindAntreaClusterNetworkPolicy, api.KindAntreaNetworkPolicy); len(users) > 0 {
			f.refuse(ref, "", "%d of the policies refer to it: %s; delete them or write another tier there first", len(users), some(users))
		}
	case api.KindClusterGroup, api.KindGroup:
		if parents := x.usersOf(ref, ref.Kind); len(parents) > 0 {
			f.refuse(ref, "", "the group is a child of %s; remove it there first", some(parents))
		}
	}
}

// mostNames bounds how many objects a message names.
const mostNames = 10

func some(refs []api.Ref) string {
	var names []string
	for _, r := range refs {
		if len(names) == mostNames {
			names = append(names, fmt.Sprintf("and %d more", len(refs)-mostNames))
			break
		}
		names = append(names, r.String())
	}
	return strings.Join(names, ", ")
}
