package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/services/policy/api"
)

// World is the cluster of a case as its steps change it.
type World struct {
	fixture  Fixture
	policies []json.RawMessage
	objects  map[api.Ref]api.Object
}

// NewWorld begins a case: the fixture, without policies. No step is entered.
func NewWorld(c *Case) (*World, error) {
	w := &World{fixture: clone(c.Fixture)}
	objects, err := w.build()
	if err != nil {
		return nil, fmt.Errorf("fixture: %w", err)
	}
	w.objects = objects
	return w, nil
}

func clone(f Fixture) Fixture {
	return Fixture{slices.Clone(f.Namespaces), slices.Clone(f.Nodes), slices.Clone(f.Pods), slices.Clone(f.Services)}
}

// Enter applies what a step sets and removes, and puts its policies in force
// instead of those before. It returns what changed.
func (w *World) Enter(s *Step) ([]api.Event, error) {
	w.fixture.Namespaces = set(w.fixture.Namespaces, s.FixtureSet.Namespaces, func(n Namespace) string { return n.Name })
	w.fixture.Nodes = set(w.fixture.Nodes, s.FixtureSet.Nodes, func(n Node) string { return n.Name })
	w.fixture.Pods = set(w.fixture.Pods, s.FixtureSet.Pods, func(p Pod) string { return p.Namespace + "/" + p.Name })
	w.fixture.Services = set(w.fixture.Services, s.FixtureSet.Services, func(p Service) string { return p.Namespace + "/" + p.Name })
	var err error
	remove := func(e error) {
		if err == nil {
			err = e
		}
	}
	w.fixture.Pods = without(w.fixture.Pods, s.FixtureRemove.Pods, func(p Pod) string { return p.Namespace + "/" + p.Name }, remove)
	w.fixture.Services = without(w.fixture.Services, s.FixtureRemove.Services, func(p Service) string { return p.Namespace + "/" + p.Name }, remove)
	w.fixture.Nodes = without(w.fixture.Nodes, s.FixtureRemove.Nodes, func(n Node) string { return n.Name }, remove)
	w.fixture.Namespaces = without(w.fixture.Namespaces, s.FixtureRemove.Namespaces, func(n Namespace) string { return n.Name }, remove)
	if err != nil {
		return nil, fmt.Errorf("step %s: %w", s.Name, err)
	}
	// With a Namespace goes what is in it.
	for _, gone := range s.FixtureRemove.Namespaces {
		w.fixture.Pods = slices.DeleteFunc(w.fixture.Pods, func(p Pod) bool { return p.Namespace == gone })
		w.fixture.Services = slices.DeleteFunc(w.fixture.Services, func(p Service) bool { return p.Namespace == gone })
	}
	w.policies = s.Policies

	objects, err := w.build()
	if err != nil {
		return nil, fmt.Errorf("step %s: %w", s.Name, err)
	}
	var events []api.Event
	for ref, o := range objects {
		if old, there := w.objects[ref]; !there || !reflect.DeepEqual(old, o) {
			events = append(events, api.Event{Ref: ref, Object: o})
		}
	}
	for ref := range w.objects {
		if objects[ref] == nil {
			events = append(events, api.Event{Ref: ref})
		}
	}
	slices.SortFunc(events, func(a, b api.Event) int { return strings.Compare(a.Ref.String(), b.Ref.String()) })
	w.objects = objects
	return events, nil
}

// set replaces entries of the same name and appends the others.
func set[T any](list, entries []T, name func(T) string) []T {
	for _, e := range entries {
		i := slices.IndexFunc(list, func(old T) bool { return name(old) == name(e) })
		if i < 0 {
			list = append(list, e)
		} else {
			list[i] = e
		}
	}
	return list
}

func without[T any](list []T, names []string, name func(T) string, fail func(error)) []T {
	for _, n := range names {
		i := slices.IndexFunc(list, func(old T) bool { return name(old) == n })
		if i < 0 {
			fail(fmt.Errorf("fixtureRemove: %s is not there", n))
			continue
		}
		list = slices.Delete(list, i, i+1)
	}
	return list
}

// Fixture is the cluster as it stands. It must not be changed.
func (w *World) Fixture() Fixture { return w.fixture }

// Direct is a probe with the port to which it really goes: one to a Service by
// way of a node names either the port on nodes or the Service's own.
func (w *World) Direct(p Probe) Probe {
	if p.ToNode == "" || p.ToService == "" {
		return p
	}
	for _, s := range w.fixture.Services {
		for _, port := range s.Ports {
			if s.Namespace+"/"+s.Name == p.ToService && port.Port == p.Port && port.NodePort != 0 && ProtocolOf(port.Protocol) == ProtocolOf(p.Protocol) {
				p.Port = port.NodePort
				return p
			}
		}
	}
	return p
}

// Objects are the objects as they stand, policies included, by Ref.
func (w *World) Objects() []api.Object {
	list := make([]api.Object, 0, len(w.objects))
	for _, o := range w.objects {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b api.Object) int { return strings.Compare(a.Ref().String(), b.Ref().String()) })
	return list
}

// Manifest is the world as YAML documents, policies included, as a watched
// folder takes them.
func (w *World) Manifest() ([]byte, error) {
	var out bytes.Buffer
	objects := w.typed()
	for _, raw := range w.policies {
		objects = append(objects, raw)
	}
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			return nil, fmt.Errorf("write manifest: %w", err)
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes(), nil
}

// build decodes the world as a user's manifest, so that a case is held to what
// a user is held to.
func (w *World) build() (map[api.Ref]api.Object, error) {
	text, err := w.Manifest()
	if err != nil {
		return nil, err
	}
	m, err := api.Decode(text)
	if err != nil {
		return nil, err
	}
	if len(m.Objects) != len(w.typed())+len(w.policies) {
		return nil, errors.New("not every object of the case is read")
	}
	objects := make(map[api.Ref]api.Object, len(m.Objects))
	for _, d := range m.Objects {
		objects[d.Object.Ref()] = d.Object
	}
	return objects, nil
}

// typed are the objects of the fixture as Kubernetes has them.
func (w *World) typed() []any {
	var list []any
	v1 := func(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }
	for _, n := range w.fixture.Namespaces {
		list = append(list, &corev1.Namespace{TypeMeta: v1("Namespace"), ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, Annotations: n.Annotations}})
	}
	for _, n := range w.fixture.Nodes {
		o := &corev1.Node{TypeMeta: v1("Node"), ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels}}
		for _, ip := range n.Addresses() {
			o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
		}
		list = append(list, o)
	}
	for _, p := range w.fixture.Pods {
		list = append(list, typedPod(p, v1("Pod")))
	}
	for _, s := range w.fixture.Services {
		list = append(list, typedService(s, v1("Service")))
	}
	return list
}

func typedPod(p Pod, meta metav1.TypeMeta) *corev1.Pod {
	o := &corev1.Pod{TypeMeta: meta, ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: p.Labels}}
	o.Spec.NodeName = p.Node
	o.Spec.ServiceAccountName = p.ServiceAccount
	o.Spec.HostNetwork = p.HostNetwork
	c := corev1.Container{Name: "main"}
	for _, port := range p.Ports {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: port.Name, ContainerPort: int32(port.Port), Protocol: corev1.Protocol(port.Protocol)})
	}
	o.Spec.Containers = []corev1.Container{c}
	o.Status.Phase = corev1.PodPhase(p.Phase)
	if o.Status.Phase == "" {
		o.Status.Phase = corev1.PodRunning
	}
	for _, ip := range p.IPs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return o
}

func typedService(s Service, meta metav1.TypeMeta) *corev1.Service {
	o := &corev1.Service{TypeMeta: meta, ObjectMeta: metav1.ObjectMeta{Name: s.Name, Namespace: s.Namespace}}
	o.Spec.Type = corev1.ServiceType(s.Type)
	o.Spec.ClusterIP = s.ClusterIP
	o.Spec.ClusterIPs = s.ClusterIPs
	if o.Spec.ClusterIP == "" && len(s.ClusterIPs) > 0 {
		o.Spec.ClusterIP = s.ClusterIPs[0]
	}
	o.Spec.Selector = s.Selector
	for i, p := range s.Ports {
		port := corev1.ServicePort{Name: p.Name, Port: int32(p.Port), Protocol: corev1.Protocol(p.Protocol), NodePort: int32(p.NodePort)}
		if port.Name == "" && len(s.Ports) > 1 {
			port.Name = fmt.Sprintf("port-%d", i)
		}
		if len(p.TargetPort) > 0 {
			var target intstr.IntOrString
			if json.Unmarshal(p.TargetPort, &target) == nil {
				port.TargetPort = target
			}
		}
		o.Spec.Ports = append(o.Spec.Ports, port)
	}
	return o
}
