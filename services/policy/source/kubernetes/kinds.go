package kubernetes

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// kind is a kind of objects that is read.
type kind struct {
	kind     api.Kind
	resource schema.GroupVersionResource
	// expected is the type that the API server's client gives; nil for kinds of
	// CustomResourceDefinitions, which come as they are written.
	expected runtime.Object
	// convert returns an error that says what is wrong with the object.
	convert func(runtime.Object) (api.Object, error)
}

// String is the kind as RBAC has it: networkpolicies.crd.antrea.io.
func (k *kind) String() string { return k.resource.GroupResource().String() }

func builtIn[T any, P interface {
	*T
	runtime.Object
}, O api.Object](of api.Kind, resource schema.GroupVersionResource, from func(P) (O, error)) *kind {
	return &kind{kind: of, resource: resource, expected: P(new(T)), convert: func(o runtime.Object) (api.Object, error) {
		typed, is := o.(P)
		if !is {
			return nil, fmt.Errorf("%T is no %s", o, of)
		}
		return from(typed)
	}}
}

func always[P any, O api.Object](from func(P) O) func(P) (O, error) {
	return func(o P) (O, error) { return from(o), nil }
}

func custom(of api.Kind, apiVersion, plural string) *kind {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		panic("kubernetes: " + err.Error())
	}
	return &kind{kind: of, resource: gv.WithResource(plural), convert: decode}
}

// decode reads an object as strictly as a manifest is read: a field that we do
// not know might narrow what the rest of the object says.
func decode(o runtime.Object) (api.Object, error) {
	u, is := o.(*unstructured.Unstructured)
	if !is {
		return nil, fmt.Errorf("%T is not what the API server sends", o)
	}
	unstructured.RemoveNestedField(u.Object, "metadata", "managedFields")
	raw, err := json.Marshal(u.Object)
	if err != nil {
		return nil, err
	}
	return api.DecodeObject(raw)
}

// kinds are all that are read, those first that others refer to.
func kinds() []*kind {
	core, discovery, networking := corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion
	const admin1 = "policy.networking.k8s.io/v1alpha1"
	return []*kind{
		builtIn(api.KindNamespace, core.WithResource("namespaces"), always(api.FromNamespace)),
		builtIn(api.KindNode, core.WithResource("nodes"), always(api.FromNode)),
		builtIn(api.KindPod, core.WithResource("pods"), always(api.FromPod)),
		builtIn(api.KindService, core.WithResource("services"), always(api.FromService)),
		builtIn(api.KindServiceAccount, core.WithResource("serviceaccounts"), always(api.FromServiceAccount)),
		builtIn(api.KindEndpointSlice, discovery.WithResource("endpointslices"), always(api.FromEndpointSlice)),
		builtIn(api.KindNetworkPolicy, networking.WithResource("networkpolicies"), api.FromNetworkPolicy),
		custom(api.KindAdminNetworkPolicy, admin1, "adminnetworkpolicies"),
		custom(api.KindBaselineAdminNetworkPolicy, admin1, "baselineadminnetworkpolicies"),
		custom(api.KindClusterNetworkPolicy, adminv1alpha2.APIVersion, "clusternetworkpolicies"),
		custom(api.KindTier, antreav1beta1.APIVersion, "tiers"),
		custom(api.KindAntreaClusterNetworkPolicy, antreav1beta1.APIVersion, "clusternetworkpolicies"),
		custom(api.KindAntreaNetworkPolicy, antreav1beta1.APIVersion, "networkpolicies"),
		custom(api.KindClusterGroup, antreav1beta1.APIVersion, "clustergroups"),
		custom(api.KindGroup, antreav1beta1.APIVersion, "groups"),
	}
}

// listerWatcher reads a resource of all Namespaces.
func (c *clients) listerWatcher(k *kind) cache.ListerWatcherWithContext {
	var lw cache.ListerWatcher
	if k.expected == nil {
		lw = c.dynamicListerWatcher(k.resource)
	} else {
		lw = cache.NewListWatchFromClient(c.rest(k.resource.GroupVersion()), k.resource.Resource, "", fields.Everything())
	}
	return cache.ToListerWatcherWithContext(lw)
}
