package validate

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/services/policy/api"
)

// podIndex counts Pods by what selectors look at, so that whether a selector
// matches anything is found among the classes and not among the Pods.
type podIndex struct {
	classes map[string]map[classKey]*class // By Namespace.
	of      map[api.Ref]*class
}

type classKey struct{ labels, account string }

// class is the Pods of one Namespace with the same labels and account.
type class struct {
	namespace string
	key       classKey
	labels    api.Labels
	account   string
	pods      int
}

func newPodIndex() *podIndex {
	return &podIndex{classes: map[string]map[classKey]*class{}, of: map[api.Ref]*class{}}
}

// set takes in a Pod. What uses its Node's network, and what has finished, is
// selected by nothing.
func (x *podIndex) set(p *api.Pod) {
	x.remove(p.Ref())
	if p.HostNetwork || p.Finished {
		return
	}
	var text strings.Builder
	for _, l := range p.Labels {
		text.WriteString(l.Key + "=" + l.Value + ",")
	}
	key := classKey{text.String(), p.ServiceAccount}
	if x.classes[p.Namespace] == nil {
		x.classes[p.Namespace] = map[classKey]*class{}
	}
	c := x.classes[p.Namespace][key]
	if c == nil {
		c = &class{namespace: p.Namespace, key: key, labels: p.Labels, account: p.ServiceAccount}
		x.classes[p.Namespace][key] = c
	}
	c.pods++
	x.of[p.Ref()] = c
}

func (x *podIndex) remove(ref api.Ref) {
	c := x.of[ref]
	if c == nil {
		return
	}
	delete(x.of, ref)
	if c.pods--; c.pods > 0 {
		return
	}
	if delete(x.classes[c.namespace], c.key); len(x.classes[c.namespace]) == 0 {
		delete(x.classes, c.namespace)
	}
}

// any reports whether some Pod is selected. No Namespace: those that the
// selector matches.
func (x *Index) any(namespace string, namespaces, pods *api.Selector) bool {
	if namespace != "" {
		return x.anyIn(namespace, pods)
	}
	key := fmt.Sprint(namespaces, pods)
	found, known := x.seen[key]
	if !known {
		found = x.anywhere(namespaces, pods)
		if x.seen == nil {
			x.seen = map[string]bool{}
		}
		x.seen[key] = found
	}
	return found
}

// anywhere is any over all Namespaces. It takes the budget for each that it
// looks at, and without one it says yes, so that nothing is said.
func (x *Index) anywhere(namespaces, pods *api.Selector) bool {
	if l, is := required(namespaces); is {
		if isName(l.Key) {
			return selects(namespaces, x.labelsOf(l.Value)) && x.anyIn(l.Value, pods)
		}
		for name := range x.labelled[l] {
			if !x.budget.spend() || selects(namespaces, x.labelsOf(name)) && x.anyIn(name, pods) {
				return true
			}
		}
		return false
	}
	for name := range x.pods.classes {
		if !x.budget.spend() || (namespaces == nil || selects(namespaces, x.labelsOf(name))) && x.anyIn(name, pods) {
			return true
		}
	}
	return false
}

// required is a label that a selector cannot do without.
func required(s *api.Selector) (l api.Label, is bool) {
	if s == nil {
		return l, false
	}
	if len(s.MatchLabels) > 0 {
		return s.MatchLabels[0], true
	}
	for _, r := range s.MatchExpressions {
		if r.Operator == api.OpIn && len(r.Values) == 1 {
			return api.Label{Key: r.Key, Value: r.Values[0]}, true
		}
	}
	return l, false
}

func (x *Index) anyIn(namespace string, pods *api.Selector) bool {
	for _, c := range x.pods.classes[namespace] {
		if pods == nil || selects(pods, c.labels) {
			return true
		}
	}
	return false
}

// labelsOf are a Namespace's, its name at least.
func (x *Index) labelsOf(namespace string) api.Labels {
	if n := x.namespaces[namespace]; n != nil {
		return n.Labels
	}
	return api.Labels{{Key: api.LabelAntreaNamespaceName, Value: namespace}, {Key: api.LabelNamespaceName, Value: namespace}}
}

// selects reports whether a selector matches labels.
func selects(s *api.Selector, labels api.Labels) bool {
	for _, l := range s.MatchLabels {
		if v, there := labels.Get(l.Key); !there || v != l.Value {
			return false
		}
	}
	for i := range s.MatchExpressions {
		r := &s.MatchExpressions[i]
		v, there := labels.Get(r.Key)
		if !there {
			v = absent
		}
		if to, _ := allowed(r); !to.has(v) {
			return false
		}
	}
	return true
}
