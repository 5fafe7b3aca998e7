package validate

import (
	"maps"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// Index is what exists, as far as objects are judged by others. It is for one
// goroutine at a time.
type Index struct {
	tiers      map[string]*api.Tier // Without the static ones.
	groups     map[api.Ref]*api.Group
	services   map[api.NamespacedName]*api.Service
	policies   map[api.Ref]*compiled
	isolating  map[string]map[string]*api.NetworkPolicy // By Namespace and name.
	namespaces map[string]*api.Namespace
	labelled   map[api.Label]map[string]bool // Namespaces by label.
	pods       *podIndex
	nodes      map[string]*api.Node

	// users are the policies and groups that name a tier, group or Service.
	users map[api.Ref]map[api.Ref]bool
	// rules holds what is judged in order, by direction and step.
	rules map[setIndex]*ruleSet
	// equal holds the same rules by precedence.
	equal map[place]*ruleSet
	// budget bounds what Set and Change cost.
	budget budget
	// seen is what any has found, until something changes.
	seen map[string]bool
	// byNamespace holds the policies by Namespace, which is empty where they have none.
	byNamespace map[string]map[*compiled]bool
}

// compiled is a policy whose rules are in the index.
type compiled struct {
	*api.OrderedPolicy
	rules []*rule
}

// NewIndex makes an index of some objects.
func NewIndex(objects ...api.Object) *Index {
	x := &Index{
		tiers: map[string]*api.Tier{}, groups: map[api.Ref]*api.Group{}, services: map[api.NamespacedName]*api.Service{},
		policies: map[api.Ref]*compiled{}, isolating: map[string]map[string]*api.NetworkPolicy{}, namespaces: map[string]*api.Namespace{},
		labelled: map[api.Label]map[string]bool{},
		pods:     newPodIndex(), nodes: map[string]*api.Node{},
		users: map[api.Ref]map[api.Ref]bool{}, rules: map[setIndex]*ruleSet{}, equal: map[place]*ruleSet{}, byNamespace: map[string]map[*compiled]bool{},
	}
	for _, egress := range []bool{false, true} {
		for _, late := range []bool{false, true} {
			x.rules[setIndex{egress, late}] = newRuleSet()
		}
	}
	// Groups and Services first, so that no policy is compiled twice.
	for _, o := range objects {
		if _, policy := o.(*api.OrderedPolicy); !policy {
			x.Set(o)
		}
	}
	for _, o := range objects {
		if p, policy := o.(*api.OrderedPolicy); policy {
			x.Set(p)
		}
	}
	return x
}

// Set adds an object, or replaces the one of its name.
func (x *Index) Set(o api.Object) {
	ref := o.Ref()
	x.seen = nil
	x.Remove(ref)
	switch o := o.(type) {
	case *api.Tier:
		if _, static := api.StaticTier(o.Name); !static {
			x.tiers[o.Name] = o
		}
	case *api.Group:
		x.groups[ref] = o
		x.use(ref, groupNames(o), true)
		x.recompile(ref)
	case *api.Service:
		x.services[api.NamespacedName{Namespace: o.Namespace, Name: o.Name}] = o
		x.recompile(ref)
	case *api.OrderedPolicy:
		x.use(ref, policyNames(o), true)
		c := &compiled{OrderedPolicy: o}
		x.policies[ref] = c
		x.compile(c)
	case *api.NetworkPolicy:
		if x.isolating[o.Namespace] == nil {
			x.isolating[o.Namespace] = map[string]*api.NetworkPolicy{}
		}
		x.isolating[o.Namespace][o.Name] = o
	case *api.Namespace:
		x.namespaces[o.Name] = o
		for _, l := range o.Labels {
			add(x.labelled, l, o.Name)
		}
	case *api.Pod:
		x.pods.set(o)
	case *api.Node:
		x.nodes[o.Name] = o
	}
}

// Remove takes out an object. One that is not there is no error.
func (x *Index) Remove(ref api.Ref) {
	x.seen = nil
	switch ref.Kind {
	case api.KindTier:
		delete(x.tiers, ref.Name)
	case api.KindClusterGroup, api.KindGroup:
		if g := x.groups[ref]; g != nil {
			x.use(ref, groupNames(g), false)
			delete(x.groups, ref)
			x.recompile(ref)
		}
	case api.KindService:
		name := api.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
		if x.services[name] != nil {
			delete(x.services, name)
			x.recompile(ref)
		}
	case api.KindNetworkPolicy:
		delete(x.isolating[ref.Namespace], ref.Name)
		if len(x.isolating[ref.Namespace]) == 0 {
			delete(x.isolating, ref.Namespace)
		}
	case api.KindNamespace:
		if n := x.namespaces[ref.Name]; n != nil {
			for _, l := range n.Labels {
				remove(x.labelled, l, n.Name)
			}
			delete(x.namespaces, ref.Name)
		}
	case api.KindPod:
		x.pods.remove(ref)
	case api.KindNode:
		delete(x.nodes, ref.Name)
	default:
		if c := x.policies[ref]; c != nil {
			x.use(ref, policyNames(c.OrderedPolicy), false)
			x.discard(c)
			delete(x.policies, ref)
		}
	}
}

// Get is the object of a name, of the kinds that Change judges. Nil: there is
// none. The static tiers are always there.
func (x *Index) Get(ref api.Ref) api.Object {
	switch ref.Kind {
	case api.KindTier:
		if p, static := api.StaticTier(ref.Name); static {
			return &api.Tier{Name: ref.Name, Priority: p}
		}
		if t := x.tiers[ref.Name]; t != nil {
			return t
		}
	case api.KindClusterGroup, api.KindGroup:
		if g := x.groups[ref]; g != nil {
			return g
		}
	case api.KindNetworkPolicy:
		if p := x.isolating[ref.Namespace][ref.Name]; p != nil {
			return p
		}
	default:
		if c := x.policies[ref]; c != nil {
			return c.OrderedPolicy
		}
	}
	return nil
}

// use notes, or forgets, what an object names.
func (x *Index) use(user api.Ref, names []api.Ref, is bool) {
	for _, name := range names {
		if is {
			add(x.users, name, user)
		} else {
			remove(x.users, name, user)
		}
	}
}

// usersOf are what names an object, of some kinds, in the order of kinds and names.
func (x *Index) usersOf(ref api.Ref, kinds ...api.Kind) []api.Ref {
	list := slices.SortedFunc(maps.Keys(x.users[ref]), compareRefs)
	return slices.DeleteFunc(list, func(r api.Ref) bool { return !slices.Contains(kinds, r.Kind) })
}

// recompile works out anew what depends on a group or Service, be it by way of
// other groups.
func (x *Index) recompile(of api.Ref) {
	seen := map[api.Ref]bool{of: true}
	for queue := []api.Ref{of}; len(queue) > 0; queue = queue[1:] {
		for user := range x.users[queue[0]] {
			if seen[user] {
				continue
			}
			seen[user] = true
			if c := x.policies[user]; c != nil {
				x.discard(c)
				x.compile(c)
			} else {
				queue = append(queue, user)
			}
		}
	}
}

func (x *Index) compile(c *compiled) {
	c.rules = x.rulesOf(c.OrderedPolicy)
	add(x.byNamespace, c.Namespace, c)
	for _, r := range c.rules {
		x.rules[setOf(r)].add(r)
		at := placeOf(r)
		if x.equal[at] == nil {
			x.equal[at] = newRuleSet()
		}
		x.equal[at].add(r)
	}
}

func (x *Index) discard(c *compiled) {
	remove(x.byNamespace, c.Namespace, c)
	for _, r := range c.rules {
		x.rules[setOf(r)].remove(r)
		at := placeOf(r)
		of := x.equal[at]
		if of == nil {
			continue // Of a rule that matches nothing, a set tells nothing.
		}
		if of.remove(r); of.empty() {
			delete(x.equal, at)
		}
	}
}

// add and remove keep sets by a key, of which none is empty.
func add[K, V comparable](m map[K]map[V]bool, key K, value V) {
	if m[key] == nil {
		m[key] = map[V]bool{}
	}
	m[key][value] = true
}

func remove[K, V comparable](m map[K]map[V]bool, key K, value V) {
	if delete(m[key], value); len(m[key]) == 0 {
		delete(m, key)
	}
}

// rulesOf are the rules of a policy with what they match.
func (x *Index) rulesOf(p *api.OrderedPolicy) []*rule {
	var list []*rule
	for i, rules := range [][]api.OrderedRule{p.Ingress, p.Egress} {
		for j := range rules {
			list = append(list, &rule{policy: p, egress: i == 1, index: j, region: x.region(p, &rules[j], i == 1)})
		}
	}
	return list
}

// groupNames are what a group names.
func groupNames(g *api.Group) []api.Ref {
	var list []api.Ref
	if g.Service != nil {
		list = append(list, serviceRef(*g.Service))
	}
	for _, name := range g.Children {
		list = append(list, api.Ref{Kind: g.Kind, Namespace: g.Namespace, Name: name})
	}
	return list
}

func serviceRef(n api.NamespacedName) api.Ref {
	return api.Ref{Kind: api.KindService, Namespace: n.Namespace, Name: n.Name}
}

// policyNames are the tier and the groups that a policy names.
func policyNames(p *api.OrderedPolicy) []api.Ref {
	var list []api.Ref
	if p.Tier != "" {
		list = append(list, api.Ref{Kind: api.KindTier, Name: p.Tier})
	}
	group := func(name string) {
		if name != "" {
			list = append(list, api.GroupRef(p.Ref(), name))
		}
	}
	for _, t := range p.AppliedTo {
		group(t.Group)
	}
	for _, rules := range [][]api.OrderedRule{p.Ingress, p.Egress} {
		for i := range rules {
			for _, t := range rules[i].AppliedTo {
				group(t.Group)
			}
			for j := range rules[i].Peers {
				group(rules[i].Peers[j].Group)
			}
		}
	}
	return list
}
