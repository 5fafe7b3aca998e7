package differential

import (
	"encoding/json"
	"iter"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// reduce yields copies of an object, each with one thing less: a field, or an
// entry of a list or a mapping, however deep. Some of them may be invalid.
func reduce(o Object) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		text, err := json.Marshal(o)
		if err != nil {
			panic("differential: " + err.Error()) // Typed objects always marshal.
		}
		var tree map[string]any
		if err := json.Unmarshal(text, &tree); err != nil {
			panic("differential: " + err.Error()) // And are read again.
		}
		less := func() bool {
			text, err := json.Marshal(tree)
			if err != nil {
				panic("differential: " + err.Error())
			}
			c := reflect.New(reflect.TypeOf(o).Elem()).Interface().(Object)
			if json.Unmarshal(text, c) != nil || refOf(c) != refOf(o) {
				return true // What is left is no such object.
			}
			return reflect.DeepEqual(c, o) || elsewhere(c, o) || yield(c)
		}
		for _, part := range []string{"metadata", "spec", "status", "endpoints", "ports"} {
			more := true
			switch v := tree[part].(type) {
			case map[string]any:
				more = lessOf(v, less)
			case []any:
				more = lessOfList(v, func(l []any) { tree[part] = l }, less)
			}
			if !more {
				return
			}
		}
	}
}

// elsewhere says whether two Pods are not in the same place: on a node, on its
// host's network, running. What has an address there must not get it here.
func elsewhere(a, b Object) bool {
	p, is := a.(*corev1.Pod)
	if !is {
		return false
	}
	q := b.(*corev1.Pod)
	return p.Spec.NodeName != q.Spec.NodeName || p.Spec.HostNetwork != q.Spec.HostNetwork || p.Status.Phase != q.Status.Phase
}

// lessOf calls less with each thing under a mapping away in turn, and puts it
// back. It ends where less says so.
func lessOf(m map[string]any, less func() bool) bool {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		v := m[key]
		delete(m, key)
		more := less()
		m[key] = v
		if !more {
			return false
		}
		switch v := v.(type) {
		case map[string]any:
			more = lessOf(v, less)
		case []any:
			more = lessOfList(v, func(l []any) { m[key] = l }, less)
		}
		if !more {
			return false
		}
	}
	return true
}

func lessOfList(list []any, put func([]any), less func() bool) bool {
	for i, v := range list {
		put(slices.Delete(slices.Clone(list), i, i+1))
		more := less()
		put(list)
		if !more {
			return false
		}
		if m, is := v.(map[string]any); is && !lessOf(m, less) {
			return false
		}
	}
	return true
}
