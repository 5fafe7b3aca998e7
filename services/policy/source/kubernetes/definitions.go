package kubernetes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weirnet/weir/services/policy/api"
)

// definitionsResource is where CustomResourceDefinitions are.
var definitionsResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// definition is what is kept of a CustomResourceDefinition.
type definition struct {
	established bool
	served      map[string]bool // By version.
	ours        bool            // Weir was installed with it.
}

// definitions says which kinds the API server has. A kind that it answers to
// with "not found" may just not be there yet, so that alone would not do.
type definitions struct {
	mu      sync.Mutex            // Guards what follows.
	byName  map[string]definition // By name: PLURAL.GROUP.
	known   bool                  // All have been read.
	changed chan struct{}         // One slot.
}

func newDefinitions() *definitions {
	return &definitions{byName: make(map[string]definition), changed: make(chan struct{}, 1)}
}

func readDefinition(o runtime.Object) (definition, error) {
	d := definition{served: make(map[string]bool)}
	u, is := o.(*unstructured.Unstructured)
	if !is {
		return d, nil
	}
	d.ours = u.GetLabels()[api.LabelPartOf] == api.PartOf
	versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
	for _, v := range versions {
		m, _ := v.(map[string]any)
		name, _ := m["name"].(string)
		served, _ := m["served"].(bool)
		d.served[name] = served
	}
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		m, _ := c.(map[string]any)
		if m["type"] == "Established" {
			d.established = m["status"] == "True"
		}
	}
	return d, nil
}

// mirror keeps the definitions.
func (d *definitions) mirror() *mirror[definition] {
	return newMirror(readDefinition,
		func(k key, now *entry[definition], _ uint64) {
			d.mu.Lock()
			defer d.mu.Unlock()
			if now == nil {
				delete(d.byName, k.name)
			} else {
				d.byName[k.name] = now.value
			}
		},
		func(_ uint64, whole bool) {
			d.mu.Lock()
			d.known = d.known || whole
			d.mu.Unlock()
			select {
			case d.changed <- struct{}{}:
			default:
			}
		})
}

// serves says whether a kind can be read, and whether that is known.
func (d *definitions) serves(r schema.GroupVersionResource) (is, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	def := d.byName[r.GroupResource().String()]
	return def.established && def.served[r.Version], d.known
}

// foreign are the definitions of Antrea's group that are not ours: where there
// is one, Antrea is or was installed.
func (d *definitions) foreign() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name, def := range d.byName {
		if strings.HasSuffix(name, "."+tiersResource.Group) && !def.ours {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// established says whether a kind is there, in whatever version.
func (d *definitions) established(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byName[name].established
}

// follower reads one kind of a CustomResourceDefinition while it is there.
type follower struct {
	kind   *kind
	store  interface{ clear() }
	follow func(context.Context) // Until the context ends.
	absent func()                // The kind is not there: it has been read, and there is nothing.

	stop     context.CancelFunc // Nil: not running.
	done     chan struct{}
	unserved bool // It was said that the version is not served.
}

// followCustom reads the kinds of CustomResourceDefinitions as these come and go.
func (s *Source) followCustom(ctx context.Context) error {
	followers := []*follower{s.nodes.follower()}
	for _, k := range s.kinds {
		if k.expected == nil {
			m := s.mirrorOf(k)
			followers = append(followers, &follower{kind: k, store: m,
				follow: func(ctx context.Context) { s.follow(ctx, k, m) },
				absent: func() { s.wasRead(k, 0, true) }})
		}
	}
	ctx, stop := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer func() {
		stop()
		for _, f := range followers {
			f.end()
		}
		wait.Wait()
	}()
	wait.Go(func() {
		s.follow(ctx, &kind{resource: definitionsResource}, s.crds.mirror())
	})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.crds.changed:
		}
		known := false
		for _, f := range followers {
			var is bool
			if is, known = s.crds.serves(f.kind.resource); !known {
				break
			}
			f.set(ctx, s, is)
		}
		if known {
			if names := s.crds.foreign(); len(names) > 0 && !s.takeOver {
				return fmt.Errorf("the kinds of Antrea are installed (%s), and its agents may enforce the same policies: uninstall Antrea first, or give --take-over if nothing enforces them", strings.Join(names, ", "))
			}
			s.mu.Lock()
			s.settled = true
			s.mu.Unlock()
			s.signal()
		}
	}
}

// set begins to read the kind, or ends it and forgets what there was.
func (f *follower) set(ctx context.Context, s *Source, there bool) {
	switch {
	case there && f.stop == nil:
		s.logger.Debug("reading a kind", "kind", f.kind)
		ctx, cancel := context.WithCancel(ctx)
		f.stop, f.done = cancel, make(chan struct{})
		go func(done chan struct{}) { defer close(done); f.follow(ctx) }(f.done)
	case !there && f.stop != nil:
		s.logger.Warn("a kind is not there any more, and with it its objects", "kind", f.kind)
		f.end()
		f.store.clear()
		f.absent()
	case !there:
		if unserved := s.crds.established(f.kind.String()); unserved != f.unserved {
			if f.unserved = unserved; unserved {
				s.logger.Warn("the API server has a kind, and not in the version that is read; its objects are not in force", "kind", f.kind, "version", f.kind.resource.Version)
			}
		}
		f.absent()
	}
}

// end stops reading, and waits until that has ended.
func (f *follower) end() {
	if f.stop != nil {
		f.stop()
		<-f.done
		f.stop = nil
	}
}
