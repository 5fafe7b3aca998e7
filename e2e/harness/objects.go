package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// objects are what a test has in an API server: exactly what it last asked for,
// but for Namespaces, which nobody would finish deleting.
type objects struct {
	api    dynamic.Interface
	mapper meta.RESTMapper

	mu      sync.Mutex // Guards applied.
	applied map[objectKey]*unstructured.Unstructured
}

type objectKey struct {
	resource        schema.GroupVersionResource
	namespace, name string
}

func newObjects(k *Kube) (*objects, error) {
	config, err := k.Config()
	if err != nil {
		return nil, err
	}
	api, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	found, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return &objects{api: api, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found)),
		applied: make(map[objectKey]*unstructured.Unstructured)}, nil
}

// decodeObjects reads YAML documents.
func decodeObjects(text []byte) (list []*unstructured.Unstructured, err error) {
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		o := &unstructured.Unstructured{}
		switch err := d.Decode(&o.Object); {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, err
		case len(o.Object) > 0:
			list = append(list, o)
		}
	}
}

func (s *objects) key(o *unstructured.Unstructured) (objectKey, error) {
	gvk := o.GroupVersionKind()
	m, err := s.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return objectKey{}, err
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace && o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	return objectKey{m.Resource, o.GetNamespace(), o.GetName()}, nil
}

func (s *objects) on(k objectKey) dynamic.ResourceInterface {
	if k.namespace == "" {
		return s.api.Resource(k.resource)
	}
	return s.api.Resource(k.resource).Namespace(k.namespace)
}

const fieldManager = "weir-e2e"

// apply makes an object what it is to be, without its status, and returns it as
// the API server has it.
func (s *objects) apply(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	k, err := s.key(o)
	if err != nil {
		return nil, err
	}
	o = o.DeepCopy()
	delete(o.Object, "status")
	unstructured.RemoveNestedField(o.Object, "metadata", "uid")
	unstructured.RemoveNestedField(o.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(o.Object, "metadata", "generation")
	complete(o)
	now, err := s.put(ctx, k, o)
	if err != nil {
		return nil, fmt.Errorf("apply %s %s/%s: %w", o.GetKind(), k.namespace, k.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied[k] = now
	return now, nil
}

// put writes an object. What others write fields of is applied; the rest is put in
// the place of what there was, or fields that were defaulted then would stay.
func (s *objects) put(ctx context.Context, k objectKey, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	if slices.Contains([]string{"Namespace", "Node", "Pod"}, o.GetKind()) {
		return s.on(k).Apply(ctx, k.name, o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	}
	was, err := s.on(k).Get(ctx, k.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return s.on(k).Create(ctx, o, metav1.CreateOptions{FieldManager: fieldManager})
	case err != nil:
		return nil, err
	}
	o.SetResourceVersion(was.GetResourceVersion())
	return s.on(k).Update(ctx, o, metav1.UpdateOptions{FieldManager: fieldManager})
}

// complete fills in what an API server insists on and cases leave out, and takes
// out what only a cluster with their address ranges would take.
func complete(o *unstructured.Unstructured) {
	switch o.GetKind() {
	case "Pod":
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "containers")
		if len(containers) == 0 {
			containers = []any{map[string]any{"name": "c"}}
		}
		for _, c := range containers {
			if c := c.(map[string]any); c["image"] == nil {
				c["image"] = "none"
			}
		}
		_ = unstructured.SetNestedSlice(o.Object, containers, "spec", "containers") // It is a map that was read just now.
	case "Service":
		unstructured.RemoveNestedField(o.Object, "spec", "clusterIP")
		unstructured.RemoveNestedField(o.Object, "spec", "clusterIPs")
	}
}

// applyStatus writes the status that an object has in the text.
func (s *objects) applyStatus(ctx context.Context, o *unstructured.Unstructured) error {
	status, has := o.Object["status"]
	if !has {
		return nil
	}
	k, err := s.key(o)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	if _, err := s.on(k).Patch(ctx, k.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status"); err != nil {
		return fmt.Errorf("write status of %s %s/%s: %w", o.GetKind(), k.namespace, k.name, err)
	}
	return nil
}

func (s *objects) remove(ctx context.Context, k objectKey) error {
	none := int64(0)
	err := s.on(k).Delete(ctx, k.name, metav1.DeleteOptions{GracePeriodSeconds: &none})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %s/%s: %w", k.resource.Resource, k.namespace, k.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.applied, k)
	return nil
}

// only removes what was applied and is not in the list, but for Namespaces.
func (s *objects) only(ctx context.Context, list []*unstructured.Unstructured) error {
	var keep []objectKey
	for _, o := range list {
		k, err := s.key(o)
		if err != nil {
			return err
		}
		keep = append(keep, k)
	}
	s.mu.Lock()
	var gone []objectKey
	for k := range s.applied {
		if !slices.Contains(keep, k) && k.resource.Resource != "namespaces" && !isMarker(k) {
			gone = append(gone, k)
		}
	}
	s.mu.Unlock()
	for _, k := range gone {
		if err := s.remove(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

var podsResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// markers have a label that changes, so that its resourceVersion tells when what
// was written to their kind before has been read.
const markerName = "weir-e2e-marker"

func isMarker(k objectKey) bool { return k.name == markerName || k.namespace == markerName }

// mark changes the markers one by one and hands over each one's resourceVersion.
// A watch of a kind comes in order, and nothing else is written meanwhile.
func (s *objects) mark(ctx context.Context, sequence int, wait func(version uint64) error) error {
	value := strconv.Itoa(sequence)
	for _, text := range []string{
		"{apiVersion: v1, kind: Namespace, metadata: {name: weir-e2e-marker, labels: {sequence: %q}}}",
		"{apiVersion: v1, kind: Node, metadata: {name: weir-e2e-marker, labels: {sequence: %q}}}",
		"{apiVersion: v1, kind: Pod, metadata: {name: weir-e2e-marker, namespace: weir-e2e-marker, labels: {sequence: %q}}, spec: {containers: [{name: c, image: none}]}}",
		"{apiVersion: v1, kind: Service, metadata: {name: weir-e2e-marker, namespace: weir-e2e-marker}, spec: {type: ExternalName, externalName: none.example, selector: {sequence: %q}}}",
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: weir-e2e-marker, namespace: weir-e2e-marker, labels: {kubernetes.io/service-name: weir-e2e-marker}}, addressType: IPv4, endpoints: [], ports: [{name: n%s}]}",
		"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: weir-e2e-marker, namespace: weir-e2e-marker}, spec: {podSelector: {matchLabels: {sequence: %q}}}}",
		"{apiVersion: crd.antrea.io/v1beta1, kind: ClusterGroup, metadata: {name: weir-e2e-marker}, spec: {podSelector: {matchLabels: {sequence: %q}}}}",
		"{apiVersion: crd.antrea.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: weir-e2e-marker}, spec: {priority: 1, appliedTo: [{podSelector: {matchLabels: {sequence: %q}}}]}}",
	} {
		list, err := decodeObjects(fmt.Appendf(nil, text, value))
		if err != nil {
			return err
		}
		now, err := s.apply(ctx, list[0])
		if err != nil {
			return err
		}
		version, err := strconv.ParseUint(now.GetResourceVersion(), 10, 64)
		if err != nil {
			return err
		}
		if err := wait(version); err != nil {
			return fmt.Errorf("%s %s: %w", now.GetKind(), markerName, err)
		}
	}
	return nil
}
