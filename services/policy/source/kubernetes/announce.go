package kubernetes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/weirv1alpha1"
)

// nodeEndpoints is where the addresses that shims report are kept.
var nodeEndpoints = schema.GroupVersionResource{Group: "weir.dev", Version: "v1alpha1", Resource: "nodeendpoints"}

// Address is what a node's shim says of a Pod whose port it has.
type Address struct {
	Namespace, Name string
	UID             string // Empty: it is not known.
	IPs             []netip.Addr
}

type nodeAddress struct {
	uid string
	ips []netip.Addr
}

// announcer writes what shims report, and reads what all replicas have written.
type announcer struct {
	source *Source
	kind   *kind
	store  *mirror[map[key]nodeAddress]

	mu     sync.Mutex                                   // Guards what follows.
	queue  workqueue.TypedRateLimitingInterface[string] // Of nodes whose object may have to be written; nil while nothing runs.
	wanted map[string][]Address                         // By node, of the nodes that are connected to this replica.
	there  map[string]map[key]nodeAddress               // As read.
	failed map[string]string                            // By node, the last error, to say it once.
}

// Limits of what is tried again.
const minWriteRetry, maxWriteRetry = 50 * time.Millisecond, 5 * time.Second

// writers is how many objects are written at a time.
const writers = 4

func newAnnouncer(s *Source) *announcer {
	a := &announcer{source: s, kind: &kind{resource: nodeEndpoints}, wanted: make(map[string][]Address),
		there: make(map[string]map[key]nodeAddress), failed: make(map[string]string)}
	a.store = newMirror(readNodeEndpoints, a.changed, func(version uint64, whole bool) { s.wasRead(a.kind, version, whole) })
	return a
}

// Announce says what a node's shim reports, all of it; nil when the node is no
// longer connected to this replica, which then leaves its object to another.
func (s *Source) Announce(node string, addresses []Address) {
	a := s.nodes
	addresses = slices.Clone(addresses)
	slices.SortFunc(addresses, func(x, y Address) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if addresses == nil {
		delete(a.wanted, node)
		delete(a.failed, node)
		return
	}
	a.wanted[node] = addresses
	a.considerLocked(node)
}

// considerLocked has a node's object written if it is not as wanted.
func (a *announcer) considerLocked(node string) {
	if _, ours := a.wanted[node]; ours && a.queue != nil {
		a.queue.Add(node)
	}
}

// follower reads the objects while their definition is there.
func (a *announcer) follower() *follower {
	return &follower{kind: a.kind, store: a.store,
		follow: func(ctx context.Context) { a.source.follow(ctx, a.kind, a.store) },
		absent: func() { a.source.wasRead(a.kind, 0, true) }}
}

// changed takes over what is said of a node's Pods.
func (a *announcer) changed(k key, now *entry[map[key]nodeAddress], at uint64) {
	var value map[key]nodeAddress
	if now != nil {
		if now.err != nil {
			a.source.logger.Error("object cannot be read and is not in force", "object", "NodeEndpoints "+k.name, "err", now.err)
		}
		value = now.value
	}
	a.mu.Lock()
	former := a.there[k.name]
	if value == nil {
		delete(a.there, k.name)
	} else {
		a.there[k.name] = value
	}
	a.considerLocked(k.name) // Somebody else may have changed it.
	a.mu.Unlock()
	a.source.report(k.name, former, value, at)
}

// report takes over what is said of a node's Pods. Each node's word stands by
// itself: which one counts is for the Pod to say.
func (s *Source) report(node string, former, now map[key]nodeAddress, at uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.position = max(s.position, at)
	if now == nil {
		delete(s.reported, node)
	} else {
		s.reported[node] = now
	}
	for k, was := range former {
		if is, still := now[k]; !still || !was.equal(is) {
			s.touchPodLocked(podRef(k))
		}
	}
	for k := range now {
		if _, known := former[k]; !known {
			s.touchPodLocked(podRef(k))
		}
	}
}

func (a nodeAddress) equal(b nodeAddress) bool { return a.uid == b.uid && slices.Equal(a.ips, b.ips) }

func podRef(k key) api.Ref { return api.Ref{Kind: api.KindPod, Namespace: k.namespace, Name: k.name} }

// touchPodLocked has a Pod that there is looked at again.
func (s *Source) touchPodLocked(ref api.Ref) {
	if s.objects[ref] != nil {
		s.dirty[ref] = struct{}{}
	}
}

// run writes until the context ends.
func (a *announcer) run(ctx context.Context) error {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](minWriteRetry, maxWriteRetry))
	a.mu.Lock()
	a.queue = queue
	for node := range a.wanted {
		a.considerLocked(node)
	}
	a.mu.Unlock()
	var wait sync.WaitGroup
	defer wait.Wait()
	for range writers {
		wait.Go(func() {
			for {
				node, shutdown := queue.Get()
				if shutdown {
					return
				}
				if a.write(ctx, node) {
					queue.Forget(node)
				} else {
					queue.AddRateLimited(node)
				}
				queue.Done(node)
			}
		})
	}
	<-ctx.Done()
	queue.ShutDown()
	return ctx.Err()
}

// write makes a node's object say what is wanted; false where that is to be
// tried again.
func (a *announcer) write(ctx context.Context, node string) bool {
	a.mu.Lock()
	wanted, ours := a.wanted[node]
	there, exists := a.there[node]
	a.mu.Unlock()
	if !ours || exists && sameAddresses(there, wanted) || !exists && len(wanted) == 0 {
		return true
	}
	body, err := applyOf(node, a.source.uidOf(node), wanted)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		force := true
		_, err = a.source.clients.dynamic.Resource(nodeEndpoints).Patch(ctx, node, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "weir-policyd", Force: &force})
	}
	a.source.metrics.wrote(nodeEndpoints.GroupResource().String(), err)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.failed, node)
		return true
	}
	if a.failed[node] != err.Error() && ctx.Err() == nil {
		a.failed[node] = err.Error()
		why := err
		if errors.IsNotFound(err) {
			why = fmt.Errorf("its CustomResourceDefinition is not installed: %w", err)
		}
		a.source.logger.Warn("addresses of a node's Pods cannot be written; ports of new Pods stay closed until their status has them", "node", node, "err", why)
	}
	return false
}

// sameAddresses compares what is there with what is wanted.
func sameAddresses(there map[key]nodeAddress, wanted []Address) bool {
	if len(there) != len(wanted) {
		return false
	}
	for _, w := range wanted {
		is, known := there[key{w.Namespace, w.Name}]
		if !known || is.uid != w.UID || !slices.Equal(is.ips, w.IPs) {
			return false
		}
	}
	return true
}

// uidOf is that of a Node's object; empty where there is none.
func (s *Source) uidOf(node string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, is := s.objects[api.Ref{Kind: api.KindNode, Name: node}].(*api.Node); is {
		return n.UID
	}
	return ""
}

// applyOf is the object that says a node's addresses. It goes with the Node.
func applyOf(node, uid string, addresses []Address) ([]byte, error) {
	o := weirv1alpha1.NodeEndpoints{TypeMeta: metav1.TypeMeta{APIVersion: weirv1alpha1.APIVersion, Kind: "NodeEndpoints"}, ObjectMeta: metav1.ObjectMeta{Name: node}}
	if uid != "" {
		o.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(uid)}}
	}
	for _, a := range addresses {
		e := weirv1alpha1.Endpoint{Namespace: a.Namespace, Name: a.Name, UID: a.UID}
		for _, ip := range a.IPs {
			e.IPs = append(e.IPs, ip.String())
		}
		o.Endpoints = append(o.Endpoints, e)
	}
	return json.Marshal(o)
}

func readNodeEndpoints(o runtime.Object) (map[key]nodeAddress, error) {
	u, is := o.(*unstructured.Unstructured)
	if !is {
		return nil, fmt.Errorf("%T is not what the API server sends", o)
	}
	var read weirv1alpha1.NodeEndpoints
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &read); err != nil {
		return nil, err
	}
	out := make(map[key]nodeAddress, len(read.Endpoints))
	for i, e := range read.Endpoints {
		a := nodeAddress{uid: e.UID}
		for j, text := range e.IPs {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("endpoints[%d].ips[%d]: %w", i, j, err)
			}
			a.ips = append(a.ips, ip.Unmap())
		}
		out[key{e.Namespace, e.Name}] = a
	}
	return out, nil
}
