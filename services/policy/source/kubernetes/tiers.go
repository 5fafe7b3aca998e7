package kubernetes

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

var tiersResource = schema.GroupVersionResource{Group: "crd.antrea.io", Version: "v1beta1", Resource: "tiers"}

// tiersInterval is how often it is looked whether the static tiers are there.
const tiersInterval = 2 * time.Second

// keepTiers has the API server show the static tiers, which are in force whether
// it does or not.
func (s *Source) keepTiers(ctx context.Context) error {
	ticker := time.NewTicker(tiersInterval)
	defer ticker.Stop()
	said := ""
	for {
		if is, known := s.crds.serves(tiersResource); is && known {
			err := s.createTiers(ctx)
			if err != nil && err.Error() != said && ctx.Err() == nil {
				s.logger.Warn("static tiers cannot be shown; they are in force all the same", "err", err)
			}
			said = ""
			if err != nil {
				said = err.Error()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

func (s *Source) createTiers(ctx context.Context) error {
	for _, t := range api.StaticTiers() {
		ref := api.Ref{Kind: api.KindTier, Name: t.Name}
		s.mu.Lock()
		_, there := s.objects[ref]
		_, bad := s.problems[ref]
		s.mu.Unlock()
		if there || bad {
			continue
		}
		o := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": antreav1beta1.APIVersion, "kind": "Tier", "metadata": map[string]any{"name": t.Name},
			"spec": map[string]any{"priority": int64(t.Priority), "description": "A static tier, which cannot be changed or deleted."},
		}}
		_, err := s.clients.dynamic.Resource(tiersResource).Create(ctx, o, metav1.CreateOptions{FieldManager: "weir-policyd"})
		if errors.IsAlreadyExists(err) {
			continue // The other replica's, or one that is still to be read.
		}
		s.metrics.wrote(tiersResource.GroupResource().String(), err)
		if err != nil {
			return err
		}
	}
	return nil
}
