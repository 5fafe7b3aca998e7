package kubernetes

import (
	"context"
	"fmt"

	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// clients are how the API server is reached: with types, in protobuf, and as
// objects are written.
type clients struct {
	typed   *kubernetes.Clientset
	dynamic *dynamic.DynamicClient
}

// Requests a second, and at once. Reading is a list and a watch of each kind;
// what is written is rare.
const requestRate, requestBurst = 100, 200

func newClients(cfg *rest.Config) (*clients, error) {
	base := rest.CopyConfig(cfg)
	base.QPS, base.Burst = requestRate, requestBurst
	base.UserAgent = "weir-policyd"
	compact := rest.CopyConfig(base)
	compact.ContentType = runtime.ContentTypeProtobuf
	compact.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c := &clients{}
	var err error
	if c.typed, err = kubernetes.NewForConfig(compact); err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfig(base); err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	return c, nil
}

// loadConfig reads a kubeconfig; without one it is the Pod's own service
// account.
func loadConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no --kubeconfig, and no service account of a Pod: %w", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}

// rest is the client of a group of built-in kinds.
func (c *clients) rest(gv schema.GroupVersion) rest.Interface {
	switch gv {
	case discoveryv1.SchemeGroupVersion:
		return c.typed.DiscoveryV1().RESTClient()
	case networkingv1.SchemeGroupVersion:
		return c.typed.NetworkingV1().RESTClient()
	}
	return c.typed.CoreV1().RESTClient()
}

func (c *clients) dynamicListerWatcher(r schema.GroupVersionResource) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.dynamic.Resource(r).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.dynamic.Resource(r).Watch(ctx, o)
		},
	}
}
