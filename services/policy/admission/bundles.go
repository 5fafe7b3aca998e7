package admission

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// BundlesConfig of Bundles.
type BundlesConfig struct {
	Kubeconfig string // File. Empty: the service account of the Pod.
	Namespace  string // Of the Services that the webhooks are called by.
	// Bundle is the authority, PEM; an error while there is none yet.
	Bundle func() ([]byte, error)
	// Mutating are names of further MutatingWebhookConfigurations, beside those of
	// the manifests.
	Mutating []string
	Logger   hclog.Logger
}

// manifest is the name of the webhook configurations of the manifests.
const manifest = "weir"

// Bundles keeps the caBundle of the webhook configurations right, so that the API
// server believes what the webhooks show. Every replica does, and writes nothing
// where nothing is wrong.
type Bundles struct {
	cfg BundlesConfig
	api kubernetes.Interface
}

// NewBundles asks nothing of the API server yet.
func NewBundles(cfg BundlesConfig) (*Bundles, error) {
	var config *rest.Config
	var err error
	if cfg.Kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("admission webhooks: %w", err)
	}
	config.UserAgent = fieldManager
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("admission webhooks: %w", err)
	}
	return &Bundles{cfg: cfg, api: api}, nil
}

const (
	lookInterval  = 15 * time.Second // Someone may apply the configurations anew, without a bundle.
	retryInterval = time.Second
	callTimeout   = 10 * time.Second
	fieldManager  = "weir-policyd"
)

// Run keeps them right until the context ends.
func (b *Bundles) Run(ctx context.Context) error {
	said := ""
	for {
		wait := lookInterval
		err := b.mend(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			said = ""
		default:
			wait = retryInterval
			if err.Error() != said {
				said = err.Error()
				b.cfg.Logger.Warn("webhooks cannot be called yet; trying on", "err", err)
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mend looks at every configuration once. One that is not there is wanted by nobody.
func (b *Bundles) mend(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	bundle, err := b.cfg.Bundle()
	if err != nil {
		return err
	}
	api := b.api.AdmissionregistrationV1()
	if err := mend(ctx, b, manifest, bundle, api.ValidatingWebhookConfigurations(), clientsOfValidating); err != nil {
		return fmt.Errorf("validatingwebhookconfiguration %s: %w", manifest, err)
	}
	for _, name := range slices.Concat([]string{manifest}, b.cfg.Mutating) {
		if err := mend(ctx, b, name, bundle, api.MutatingWebhookConfigurations(), clientsOfMutating); err != nil {
			return fmt.Errorf("mutatingwebhookconfiguration %s: %w", name, err)
		}
	}
	return nil
}

func clientsOfValidating(c *admissionregistrationv1.ValidatingWebhookConfiguration) (list []*admissionregistrationv1.WebhookClientConfig) {
	for i := range c.Webhooks {
		list = append(list, &c.Webhooks[i].ClientConfig)
	}
	return list
}

func clientsOfMutating(c *admissionregistrationv1.MutatingWebhookConfiguration) (list []*admissionregistrationv1.WebhookClientConfig) {
	for i := range c.Webhooks {
		list = append(list, &c.Webhooks[i].ClientConfig)
	}
	return list
}

// configurations is the part of a typed client that mend uses.
type configurations[T any] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Update(ctx context.Context, c T, o metav1.UpdateOptions) (T, error)
}

// mend gives the webhooks of a configuration that call our Service the bundle.
// Others, such as one by URL, are somebody else's.
func mend[T any](ctx context.Context, b *Bundles, name string, bundle []byte, api configurations[T], clients func(T) []*admissionregistrationv1.WebhookClientConfig) error {
	for {
		c, err := api.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		changed := false
		for _, client := range clients(c) {
			if s := client.Service; s != nil && s.Namespace == b.cfg.Namespace && !bytes.Equal(client.CABundle, bundle) {
				client.CABundle, changed = bundle, true
			}
		}
		if !changed {
			return nil
		}
		_, err = api.Update(ctx, c, metav1.UpdateOptions{FieldManager: fieldManager})
		if err == nil {
			b.cfg.Logger.Info("gave a webhook configuration the certificate authority", "name", name)
			return nil
		}
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}
