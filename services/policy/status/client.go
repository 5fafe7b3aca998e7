package status

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/pager"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// kinds are those that have a status of ours.
var kinds = []api.Kind{api.KindAntreaClusterNetworkPolicy, api.KindAntreaNetworkPolicy, api.KindClusterGroup, api.KindGroup}

// resourceOf is the resource of a kind; the zero one where it has no status.
func resourceOf(k api.Kind) schema.GroupVersionResource {
	gv := schema.GroupVersion{Group: "crd.antrea.io", Version: "v1beta1"}
	switch k {
	case api.KindAntreaClusterNetworkPolicy:
		return gv.WithResource("clusternetworkpolicies")
	case api.KindAntreaNetworkPolicy:
		return gv.WithResource("networkpolicies")
	case api.KindClusterGroup:
		return gv.WithResource("clustergroups")
	case api.KindGroup:
		return gv.WithResource("groups")
	}
	return schema.GroupVersionResource{}
}

// clients are how the API server is reached: for objects with their status, for
// writes, whose answers are short, and for Leases and Events.
type clients struct {
	dynamic  dynamic.Interface
	metadata metadata.Interface
	typed    kubernetes.Interface
}

const fieldManager = "weir-policyd"

func newClients(base *rest.Config) (*clients, error) {
	cfg := rest.CopyConfig(base)
	cfg.UserAgent, cfg.QPS, cfg.Burst = fieldManager, 2*maxWrites, 2*maxWrites
	c := &clients{}
	var err error
	if c.dynamic, err = dynamic.NewForConfig(cfg); err == nil {
		if c.metadata, err = metadata.NewForConfig(cfg); err == nil {
			c.typed, err = kubernetes.NewForConfig(cfg)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("status of policies: %w", err)
	}
	return c, nil
}

// read is what the API server has of every status. A kind that is not served has none.
func (c *clients) read(ctx context.Context) (records, error) {
	rs := make(records)
	for _, k := range kinds {
		list := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.dynamic.Resource(resourceOf(k)).List(ctx, o)
		})
		err := list.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
			u := o.(*unstructured.Unstructured)
			r := &record{uid: string(u.GetUID())}
			if raw, has := u.Object["status"]; has {
				r.read(k, raw)
			}
			rs[api.Ref{Kind: k, Namespace: u.GetNamespace(), Name: u.GetName()}] = r
			return nil
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read the status of %s: %w", k, err)
		}
	}
	return rs, nil
}

// read takes a status. One that cannot be read counts as none: it is written anew.
func (r *record) read(k api.Kind, raw any) {
	text, err := json.Marshal(raw)
	if err != nil {
		return
	}
	if k == api.KindClusterGroup || k == api.KindGroup {
		var s antreav1beta1.GroupStatus
		if json.Unmarshal(text, &s) == nil {
			r.group = &s
		}
		return
	}
	var s antreav1beta1.PolicyStatus
	if json.Unmarshal(text, &s) == nil {
		r.policy = &s
	}
}

// write makes one write. Gone says that the object is not there, or another.
func (c *clients) write(ctx context.Context, w *write) (gone bool, err error) {
	patch, err := w.patch()
	if err != nil {
		return false, err
	}
	var to metadata.ResourceInterface = c.metadata.Resource(resourceOf(w.ref.Kind))
	if w.ref.Namespace != "" {
		to = c.metadata.Resource(resourceOf(w.ref.Kind)).Namespace(w.ref.Namespace)
	}
	_, err = to.Patch(ctx, w.ref.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	switch {
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err) && strings.Contains(err.Error(), uidPath): // The test of the patch failed.
		return true, nil
	case err != nil:
		return false, fmt.Errorf("write the status of %s: %w", w.ref, err)
	}
	return false, nil
}
