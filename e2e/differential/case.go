package differential

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	anpv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// Case is a cluster's life in steps, and how it is enforced. It is a value:
// what it holds is not changed once it is made.
type Case struct {
	Name       string // Of the seed that it was made of.
	ClauseCap  int    // As pipeline.Config has it.
	FrameLimit int    // Bytes of a cut's frames.
	Steps      []Step
}

// Step is what changes at once, and the connections to judge afterwards.
type Step struct {
	Events []Event
	Ports  map[Pod]Port // All that there are from this step on.
	Probes []evaluate.Connection
	// Restarted is a node whose shim starts anew before what changes reaches
	// it, with the assignment that it had. Empty: none.
	Restarted string
}

// Event sets or removes an object. A nil Object means that it is gone.
type Event struct {
	Ref    api.Ref
	Object Object
}

// Object is a typed object of a kind that the generator makes, by pointer: see
// kindOf.
type Object = metav1.Object

// Pod names a Pod.
type Pod struct{ Namespace, Name string }

// Port is the port of a bridge that belongs to a Pod.
type Port struct {
	Node   string
	Number uint32
}

// kindOf is an object's kind, and the object as the policy service reads it.
func kindOf(o Object) (kind api.Kind, convert func() (api.Object, error)) {
	switch o := o.(type) {
	case *corev1.Namespace:
		return api.KindNamespace, func() (api.Object, error) { return api.FromNamespace(o), nil }
	case *corev1.Node:
		return api.KindNode, func() (api.Object, error) { return api.FromNode(o), nil }
	case *corev1.Pod:
		return api.KindPod, func() (api.Object, error) { return api.FromPod(o), nil }
	case *corev1.Service:
		return api.KindService, func() (api.Object, error) { return api.FromService(o), nil }
	case *discoveryv1.EndpointSlice:
		return api.KindEndpointSlice, func() (api.Object, error) { return api.FromEndpointSlice(o), nil }
	case *networkingv1.NetworkPolicy:
		return api.KindNetworkPolicy, func() (api.Object, error) { return api.FromNetworkPolicy(o) }
	case *anpv1alpha1.AdminNetworkPolicy:
		return api.KindAdminNetworkPolicy, func() (api.Object, error) { return api.FromAdminNetworkPolicy(o) }
	case *anpv1alpha1.BaselineAdminNetworkPolicy:
		return api.KindBaselineAdminNetworkPolicy, func() (api.Object, error) { return api.FromBaselineAdminNetworkPolicy(o) }
	case *adminv1alpha2.ClusterNetworkPolicy:
		return api.KindClusterNetworkPolicy, func() (api.Object, error) { return api.FromClusterNetworkPolicy(o) }
	case *antreav1beta1.Tier:
		return api.KindTier, func() (api.Object, error) { return api.FromTier(o) }
	case *antreav1beta1.ClusterGroup:
		return api.KindClusterGroup, func() (api.Object, error) { return api.FromClusterGroup(o) }
	case *antreav1beta1.Group:
		return api.KindGroup, func() (api.Object, error) { return api.FromGroup(o) }
	case *antreav1beta1.ClusterNetworkPolicy:
		return api.KindAntreaClusterNetworkPolicy, func() (api.Object, error) { return api.FromAntreaClusterNetworkPolicy(o) }
	case *antreav1beta1.NetworkPolicy:
		return api.KindAntreaNetworkPolicy, func() (api.Object, error) { return api.FromAntreaNetworkPolicy(o) }
	}
	panic(fmt.Sprintf("differential: an object of type %T", o))
}

// refOf names an object.
func refOf(o Object) api.Ref {
	kind, _ := kindOf(o)
	return api.Ref{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

func set(o Object) Event { return Event{Ref: refOf(o), Object: o} }

// Convert is the object as the policy service reads it. What validation
// refuses is an error: a user could not have it either.
func Convert(o Object) (api.Object, error) {
	if violations, _ := api.Validate(o); len(violations) > 0 {
		return nil, fmt.Errorf("%s: %s", refOf(o), violations[0])
	}
	_, convert := kindOf(o)
	return convert()
}

// nodes are the names of all nodes that the Case mentions, sorted.
func (c *Case) nodes() []string {
	names := map[string]struct{}{}
	for _, s := range c.Steps {
		for _, e := range s.Events {
			switch o := e.Object.(type) {
			case *corev1.Node:
				names[o.Name] = struct{}{}
			case *corev1.Pod:
				names[o.Spec.NodeName] = struct{}{}
			}
		}
		for _, p := range s.Ports {
			names[p.Node] = struct{}{}
		}
		names[s.Restarted] = struct{}{}
	}
	delete(names, "")
	return slices.Sorted(maps.Keys(names))
}

// String is the Case as manifests: the objects of the first step, then what
// the later ones change.
func (c *Case) String() string {
	var b strings.Builder
	for i, s := range c.Steps {
		if len(c.Steps) > 1 {
			fmt.Fprintf(&b, "# step %d\n", i+1)
		}
		for _, e := range s.Events {
			if e.Object == nil {
				fmt.Fprintf(&b, "# removes %s\n", e.Ref)
				continue
			}
			fmt.Fprintf(&b, "---\n%s", manifest(e.Object))
		}
		if s.Restarted != "" {
			fmt.Fprintf(&b, "# the shim of %s starts anew\n", s.Restarted)
		}
		b.WriteString("# ports:")
		for _, pod := range slices.SortedFunc(maps.Keys(s.Ports), comparePods) {
			fmt.Fprintf(&b, " %s/%s=%s:%d", pod.Namespace, pod.Name, s.Ports[pod].Node, s.Ports[pod].Number)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// manifest is an object as YAML, without the empty blocks that a typed Node has.
func manifest(o Object) []byte {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		panic("differential: " + err.Error()) // Typed objects always convert.
	}
	if status, ok := fields["status"].(map[string]any); ok {
		delete(status, "nodeInfo")
		delete(status, "daemonEndpoints")
	}
	text, err := yaml.Marshal(fields)
	if err != nil {
		panic("differential: " + err.Error()) // And they marshal.
	}
	return text
}

func comparePods(a, b Pod) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// describe names a connection as people read it.
func describe(c evaluate.Connection) string {
	end := func(e evaluate.Endpoint) string {
		switch {
		case e.Pod != "":
			return fmt.Sprintf("%s/%s (%s)", e.Namespace, e.Pod, e.Addr)
		case e.Node != "":
			return fmt.Sprintf("node %s (%s)", e.Node, e.Addr)
		case e.Service != "":
			return fmt.Sprintf("Service %s/%s (%s)", e.Namespace, e.Service, e.Addr)
		}
		return e.Addr.String()
	}
	service := c.Protocol.String()
	if c.Port != 0 {
		service = fmt.Sprintf("%s/%d", service, c.Port)
	}
	return fmt.Sprintf("%s -> %s %s, source port %d", end(c.From), end(c.To), service, c.SourcePort)
}
