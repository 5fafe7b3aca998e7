package kubernetes

import (
	"fmt"
	"reflect"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/weirnet/weir/services/policy/api"
)

// entry is an object as it is kept: converted, or with what is wrong with it.
type entry[T any] struct {
	namespace, name string
	version         uint64 // resourceVersion.
	value           T
	err             error  // It cannot be read; value is zero.
	uid             string // Of one that cannot be read, as is generation.
	generation      int64
	content         *api.Version // Nil: none is kept.
}

// GetObjectMeta implements metav1.ObjectMetaAccessor, by which the reflector
// finds an entry's key.
func (e *entry[T]) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: e.namespace, Name: e.name, ResourceVersion: strconv.FormatUint(e.version, 10)}
}

type key struct{ namespace, name string }

// mirror is what the API server has of one kind. It is filled by a reflector,
// which calls it from one goroutine.
type mirror[T any] struct {
	convert func(runtime.Object) (T, error)
	// record makes the version of an object, which is the former one where its
	// content is. Nil: none are kept.
	record func(o runtime.Object, former *api.Version) *api.Version
	// changed is told of what differs: nil where the object is gone. At is the
	// resourceVersion of the change, zero where a list without the object is all
	// that tells of it.
	changed func(k key, now *entry[T], at uint64)
	// read is told how far the kind has been read, after what changed by then;
	// whole after a list.
	read func(version uint64, whole bool)

	entries map[key]*entry[T]
}

var _ cache.TransformingStore = (*mirror[int])(nil)
var _ cache.ReflectorBookmarkStore = (*mirror[int])(nil)

func newMirror[T any](convert func(runtime.Object) (T, error), changed func(key, *entry[T], uint64), read func(uint64, bool)) *mirror[T] {
	return &mirror[T]{convert: convert, changed: changed, read: read, entries: make(map[key]*entry[T])}
}

// Transformer implements cache.TransformingStore: lists that come as streams are
// converted as they come.
func (m *mirror[T]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		if _, done := o.(*entry[T]); done {
			return o, nil
		}
		return m.entryOf(o)
	}
}

// entryOf converts an object. Only one without name or version is an error.
func (m *mirror[T]) entryOf(o any) (*entry[T], error) {
	if e, done := o.(*entry[T]); done {
		return e, nil
	}
	accessor, err := meta.Accessor(o)
	if err != nil {
		return nil, fmt.Errorf("an object that is none: %w", err)
	}
	version, err := parseVersion(accessor.GetResourceVersion())
	if err != nil {
		return nil, err
	}
	e := &entry[T]{namespace: accessor.GetNamespace(), name: accessor.GetName(), version: version}
	typed, is := o.(runtime.Object)
	if !is {
		return nil, fmt.Errorf("%T is no object of the API server", o)
	}
	if m.record != nil {
		var former *api.Version
		if old := m.entries[key{e.namespace, e.name}]; old != nil {
			former = old.content
		}
		e.content = m.record(typed, former) // First: converting takes something off the object.
	}
	if e.value, e.err = m.convert(typed); e.err != nil {
		e.uid, e.generation = string(accessor.GetUID()), accessor.GetGeneration()
	}
	return e, nil
}

// parseVersion reads a resourceVersion, which is a number that grows
// (KEP-5504, and etcd's revision before).
func parseVersion(s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resourceVersion %q is no number: %w", s, err)
	}
	return v, nil
}

// put takes an object, and tells if it differs.
func (m *mirror[T]) put(e *entry[T]) {
	k := key{e.namespace, e.name}
	old := m.entries[k]
	if old != nil && same(old, e) {
		if old.content == e.content {
			old.version = e.version
			return
		}
		e.value = old.value // What others hold stays one.
	}
	m.entries[k] = e
	m.changed(k, e, e.version)
}

func same[T any](a, b *entry[T]) bool {
	if (a.err == nil) != (b.err == nil) || a.err != nil && a.err.Error() != b.err.Error() || a.uid != b.uid || a.generation != b.generation {
		return false
	}
	return reflect.DeepEqual(a.value, b.value)
}

// Add implements cache.ReflectorStore.
func (m *mirror[T]) Add(o any) error {
	e, err := m.entryOf(o)
	if err != nil {
		return err
	}
	m.put(e)
	m.read(e.version, false)
	return nil
}

// Update implements cache.ReflectorStore.
func (m *mirror[T]) Update(o any) error { return m.Add(o) }

// Delete implements cache.ReflectorStore. The object's version is that of its
// deletion.
func (m *mirror[T]) Delete(o any) error {
	accessor, err := meta.Accessor(o)
	if err != nil {
		return err
	}
	version, err := parseVersion(accessor.GetResourceVersion())
	if err != nil {
		return err
	}
	m.remove(key{accessor.GetNamespace(), accessor.GetName()}, version)
	m.read(version, false)
	return nil
}

func (m *mirror[T]) remove(k key, at uint64) {
	if m.entries[k] != nil {
		delete(m.entries, k)
		m.changed(k, nil, at)
	}
}

// Replace implements cache.ReflectorStore: the objects are all that there are.
func (m *mirror[T]) Replace(list []any, version string) error {
	at, err := parseVersion(version)
	if err != nil {
		return err
	}
	there := make(map[key]bool, len(list))
	for _, o := range list {
		e, err := m.entryOf(o)
		if err != nil {
			return err
		}
		there[key{e.namespace, e.name}] = true
		m.put(e)
	}
	for k := range m.entries {
		if !there[k] {
			m.remove(k, 0)
		}
	}
	m.read(at, true)
	return nil
}

// clear forgets everything: the kind is not served any more.
func (m *mirror[T]) clear() {
	for k := range m.entries {
		m.remove(k, 0)
	}
}

// Bookmark implements cache.ReflectorBookmarkStore.
func (m *mirror[T]) Bookmark(version string) error {
	at, err := parseVersion(version)
	if err == nil {
		m.read(at, false)
	}
	return err
}

// Resync implements cache.ReflectorStore; there is nothing to do.
func (m *mirror[T]) Resync() error { return nil }
