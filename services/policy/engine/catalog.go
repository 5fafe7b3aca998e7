package engine

import (
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// The same labels and the same selectors recur in every Namespace, so both are
// held once, and what depends on them alone is indexed once:
//
//	label ──► shapes that have it ──► classes of the shape, by Namespace
//	      └─► selectors that are anchored at it ──► groups of the selector
//
// A class finds its groups, and a group its classes, over whichever is
// shorter: this way, or the list of what its Namespace has.

// shape is a set of Pod labels and a service account. It is there as long as
// a class has it.
type shape struct {
	labels  api.Labels
	account string
	hash    uint32
	uses    []*labelUse // Of labels, in their order, and of the account.
	classes list[*class]
}

func (s *shape) sum() uint32 { return s.hash }

// accountKey is the key under which a selector asks for the service account: no
// label can have it.
const accountKey = "(service account)"

func (s *shape) label(key string) (value string, has bool) {
	if key == accountKey {
		return s.account, true
	}
	return s.labels.Get(key)
}

// each calls fn for all that a selector may ask a shape for.
func (s *shape) each(fn func(i int, l api.Label)) {
	for i, l := range s.labels {
		fn(i, l)
	}
	fn(len(s.labels), api.Label{Key: accountKey, Value: s.account})
}

// selector is a normalised label selector. It is there as long as a group has it.
type selector struct {
	requirements
	hash   uint32
	groups int          // That have it, on Pods or on Namespaces.
	wide   list[*group] // That have it on Pods, over more than one Namespace.
}

func (s *selector) sum() uint32 { return s.hash }

// labelUse is who has a label.
type labelUse struct {
	shapes    list[*shape]
	selectors list[*selector] // Anchored here.
}

func (e *Engine) labelUse(l api.Label) *labelUse {
	u := e.labels[l]
	if u == nil {
		u = &labelUse{}
		e.labels[l] = u
	}
	return u
}

func (e *Engine) releaseLabel(l api.Label, u *labelUse) {
	if u.shapes.len() == 0 && u.selectors.len() == 0 {
		delete(e.labels, l)
	}
}

// shape returns the shape of a Pod, and begins it where there was none.
func (e *Engine) shape(obj *api.Pod) *shape {
	h := hashString(e.seed, obj.ServiceAccount)
	for i := range obj.Labels {
		h = mix(h, mix(hashString(e.seed, obj.Labels[i].Key), hashString(e.seed, obj.Labels[i].Value)))
	}
	s, ok := e.shapes.find(h, func(s *shape) bool { return s.is(obj) })
	if !ok {
		s = &shape{labels: obj.Labels, account: obj.ServiceAccount, hash: h}
		e.shapes.add(s)
		s.uses = make([]*labelUse, len(s.labels)+1)
		s.each(func(i int, l api.Label) {
			s.uses[i] = e.labelUse(l)
			s.uses[i].shapes.add(s)
		})
	}
	return s
}

func (s *shape) is(obj *api.Pod) bool {
	return s.account == obj.ServiceAccount && slices.Equal(s.labels, obj.Labels)
}

func (e *Engine) releaseShape(s *shape) {
	if s.classes.len() > 0 {
		return
	}
	s.each(func(i int, l api.Label) {
		s.uses[i].shapes.remove(s)
		e.releaseLabel(l, s.uses[i])
	})
	e.shapes.remove(s)
}

// selector returns the normalised form of a selector, and begins it where
// there was none. Nil is the empty selector.
func (e *Engine) selector(written *api.Selector) *selector {
	rs := e.normaliser.normalise(written)
	h := rs.sum(e.seed)
	s, ok := e.selectors.find(h, func(s *selector) bool {
		return slices.EqualFunc(s.requirements, rs, func(a, b requirement) bool { return a.equal(&b) })
	})
	if !ok {
		s = &selector{requirements: rs.clone(), hash: h}
		e.selectors.add(s)
		if a := s.anchor(); a == nil {
			e.loose.add(s)
		} else {
			for _, v := range a.values {
				e.labelUse(api.Label{Key: a.key, Value: v}).selectors.add(s)
			}
		}
	}
	return s
}

func (e *Engine) releaseSelector(s *selector) {
	if s.groups > 0 {
		return
	}
	if a := s.anchor(); a == nil {
		e.loose.remove(s)
	} else {
		for _, v := range a.values {
			l := api.Label{Key: a.key, Value: v}
			u := e.labels[l]
			u.selectors.remove(s)
			e.releaseLabel(l, u)
		}
	}
	e.selectors.remove(s)
}
