package kubernetes

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr/funcr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// How long a reflector waits after an error, at first and at the most. The most
// is what an API server that comes back waits to be read again.
const minRetry, maxRetry = 200 * time.Millisecond, 3 * time.Second

// follow keeps a kind's mirror like what the API server has until the context
// ends.
func (s *Source) follow(ctx context.Context, k *kind, store cache.ReflectorStore) {
	logger := funcr.New(func(prefix, args string) { s.logger.Trace("reflector", "kind", k, "of", prefix, "said", args) }, funcr.Options{})
	var expected any = k.expected
	if k.expected == nil {
		expected = nil
	}
	r := cache.NewReflectorWithOptions(&watched{ListerWatcherWithContext: s.clients.listerWatcher(k), source: s, kind: k}, expected, store, cache.ReflectorOptions{
		Name: k.String(), TypeDescription: k.String(), Logger: &logger,
		Backoff: &wait.Backoff{Duration: minRetry, Cap: maxRetry, Steps: 16, Factor: 2, Jitter: 0.5},
	})
	r.RunWithContext(klog.NewContext(ctx, logger)) // What fails is told by watched.
}

// watched counts how reading a kind goes, and says once when it fails and once
// when it is well again.
type watched struct {
	cache.ListerWatcherWithContext
	source *Source
	kind   *kind

	mu      sync.Mutex // Guards failing.
	failing bool
}

// List implements cache.ListerWatcher, of which the reflector uses the forms
// with a context.
func (w *watched) List(o metav1.ListOptions) (runtime.Object, error) {
	return w.ListWithContext(context.Background(), o)
}

// Watch implements cache.ListerWatcher.
func (w *watched) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return w.WatchWithContext(context.Background(), o)
}

// ListWithContext implements cache.ListerWatcherWithContext.
func (w *watched) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	list, err := w.ListerWatcherWithContext.ListWithContext(ctx, o)
	w.outcome(ctx, err)
	return list, err
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (w *watched) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	wi, err := w.ListerWatcherWithContext.WatchWithContext(ctx, o)
	w.outcome(ctx, err)
	return wi, err
}

func (w *watched) outcome(ctx context.Context, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.source.metrics.errors.WithLabelValues(w.kind.String()).Inc()
		if !w.failing {
			w.source.logger.Warn("API server cannot be read; what is in force stays, and it is tried again", "kind", w.kind, "err", err)
		}
		w.failing = true
	case w.failing:
		w.source.logger.Info("API server can be read again", "kind", w.kind)
		w.failing = false
	}
	w.source.metrics.failing(w.kind, w.failing)
}
