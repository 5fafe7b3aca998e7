package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc/resolver"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// podsOf has gRPC know a Service by the Pods behind it that are ready, each as
// NAME:PORT, in an order that is another for every caller. gRPC takes the first that
// it gets through to, and asks anew when it loses one.
type podsOf struct {
	api                kubernetes.Interface
	namespace, service string
	first              []resolver.Address // What list said before.
}

const (
	podsScheme = "pods" // Of gRPC's target.
	grpcPort   = "grpc" // Its name in the manifests.
	// relistInterval is how soon Pods are looked for again at the earliest, and
	// listTimeout how long that may take.
	relistInterval = time.Second
	listTimeout    = 10 * time.Second
)

// list asks the API server.
func (p *podsOf) list(ctx context.Context) ([]resolver.Address, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	slices, err := p.api.DiscoveryV1().EndpointSlices(p.namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + p.service})
	if err != nil {
		return nil, fmt.Errorf("find the Pods of Service %s/%s: %w", p.namespace, p.service, err)
	}
	var out []resolver.Address
	seen := make(map[string]bool) // A Pod with two addresses is in two slices.
	for _, s := range slices.Items {
		for _, port := range s.Ports {
			if port.Name == nil || *port.Name != grpcPort || port.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || seen[e.TargetRef.Name] || e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				seen[e.TargetRef.Name] = true
				out = append(out, resolver.Address{Addr: net.JoinHostPort(e.TargetRef.Name, strconv.Itoa(int(*port.Port)))})
			}
		}
	}
	switch {
	case len(slices.Items) == 0:
		return nil, fmt.Errorf("there is no Service %s in Namespace %s: give the Namespace that Weir is in by --weir-namespace", p.service, p.namespace)
	case len(out) == 0:
		return nil, fmt.Errorf("no Pod of Service %s/%s is ready", p.namespace, p.service)
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out, nil
}

// Scheme implements resolver.Builder.
func (p *podsOf) Scheme() string { return podsScheme }

// Build implements resolver.Builder.
func (p *podsOf) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &podWatch{of: p, now: make(chan struct{}, 1), cancel: cancel}
	go w.run(ctx, cc)
	return w, nil
}

// podWatch tells one gRPC channel of the Pods.
type podWatch struct {
	of     *podsOf
	now    chan struct{} // Holds a token while somebody wants to know.
	cancel context.CancelFunc
}

// ResolveNow implements resolver.Resolver.
func (w *podWatch) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case w.now <- struct{}{}:
	default:
	}
}

// Close implements resolver.Resolver.
func (w *podWatch) Close() { w.cancel() }

func (w *podWatch) run(ctx context.Context, cc resolver.ClientConn) {
	pods, err := w.of.first, error(nil)
	for {
		if err == nil {
			_ = cc.UpdateState(resolver.State{Addresses: pods}) // Pods that cannot be reached are asked for again.
		} else {
			cc.ReportError(err)
			w.ResolveNow(resolver.ResolveNowOptions{})
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(relistInterval):
		}
		select {
		case <-ctx.Done():
			return
		case <-w.now:
		}
		pods, err = w.of.list(ctx)
	}
}
