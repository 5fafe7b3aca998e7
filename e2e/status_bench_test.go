package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/weirnet/weir/e2e/harness"
)

// BenchmarkStatusWrites is what statuses of 1,000 policies, each of which reaches all
// of 1,000 nodes, cost behind a real API server. One operation is a second: in which
// nothing changes, a member comes to a group that all policies name, or a policy
// changes. Of the policy service, which writes: writes/s and cpu-ms/s, all that it
// does included. What it took when all policies came is logged.
func BenchmarkStatusWrites(b *testing.B) {
	requireDataplane(b) // For the binaries.
	const policies, nodes, peers = 1000, 1000, 100
	w := &statusBench{b: b, kube: startKube(b, harness.KubeConfig{})}
	must(b, w.kube.ApplyWeirCRDs(b.Context()))
	config, err := w.kube.Config()
	must(b, err)
	config.QPS, config.Burst = 1000, 1000
	w.api, err = kubernetes.NewForConfig(config)
	must(b, err)
	objects, err := dynamic.NewForConfig(config)
	must(b, err)
	w.policies = objects.Resource(schema.GroupVersionResource{Group: "crd.antrea.io", Version: "v1beta1", Resource: "networkpolicies"}).Namespace("default")
	w.each(nodes, func(ctx context.Context, i int) error { return w.pod(ctx, fmt.Sprint("web-", i), "web", i) })
	w.each(peers, func(ctx context.Context, i int) error { return w.pod(ctx, fmt.Sprint("peer-", i), "peer", i) })

	serves, metrics := freeAddress(b), freeAddress(b)
	w.metrics = "http://" + metrics + "/metrics"
	p := harness.HostProcess("policyd", filepath.Join(b.TempDir(), "policyd.log"), filepath.Join(bin, "weir-policyd"),
		"--kubeconfig", w.kube.AdminKubeconfig(), "--namespace", "kube-system", "--listen", serves, "--metrics-listen", metrics)
	must(b, p.Start())
	b.Cleanup(p.Kill)
	var names []string
	for i := range nodes {
		names = append(names, statusNodeName(i))
	}
	runStatusNodes(b, []string{serves}, true, names)
	w.each(policies, w.policy)
	began := time.Now()
	w.allRealized(policies)
	all := time.Since(began)
	b.Logf("%d policies came, and had %.0f writes until the last status said Realized, %.1f s after the last was made", policies, w.read().writes, all.Seconds())

	for _, load := range []struct {
		name   string
		change func(ctx context.Context, i int) error
	}{
		{"quiet", func(context.Context, int) error { return nil }},
		{"members", func(ctx context.Context, i int) error {
			return w.pod(ctx, fmt.Sprintf("more-%d-%d", i, b.N), "peer", i)
		}},
		{"policies", func(ctx context.Context, i int) error {
			_, err := w.policies.Patch(ctx, fmt.Sprint("guard-", i), types.MergePatchType, fmt.Appendf(nil, `{"spec":{"priority":%d}}`, policies+10+i), metav1.PatchOptions{})
			return err
		}},
	} {
		b.Run(load.name, func(b *testing.B) {
			if b.N == 1 {
				return // The run that finds out how long one takes.
			}
			before, start := w.read(), time.Now()
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for i := range b.N {
				must(b, load.change(b.Context(), i))
				<-tick.C
			}
			after, took := w.read(), time.Since(start).Seconds()
			b.ReportMetric((after.writes-before.writes)/took, "writes/s")
			b.ReportMetric(1000*(after.cpu-before.cpu)/took, "cpu-ms/s")
		})
		w.allRealized(policies)
	}
}

// statusBench is an API server, and the policy service whose metrics are read.
type statusBench struct {
	b        *testing.B
	kube     *harness.Kube
	api      kubernetes.Interface
	policies dynamic.ResourceInterface
	metrics  string
}

// each does something n times, some at once.
func (w *statusBench) each(n int, do func(ctx context.Context, i int) error) {
	w.b.Helper()
	g, ctx := errgroup.WithContext(w.b.Context())
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error { return do(ctx, i) })
	}
	must(w.b, g.Wait())
}

func (w *statusBench) pod(ctx context.Context, name, app string, i int) error {
	p, err := w.api.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{NodeName: statusNodeName(i), Containers: []corev1.Container{{Name: "c", Image: "none"}}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ip := fmt.Sprintf("10.%d.%d.%d", len(name), i>>8, i&255)
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	_, err = w.api.CoreV1().Pods("default").UpdateStatus(ctx, p, metav1.UpdateOptions{})
	return err
}

// policy makes one that applies to a Pod of each node and names the peers, and a group
// of its own.
func (w *statusBench) policy(ctx context.Context, i int) error {
	selector := func(app string) map[string]any {
		return map[string]any{"podSelector": map[string]any{"matchLabels": map[string]any{"app": app}}}
	}
	_, err := w.policies.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "crd.antrea.io/v1beta1", "kind": "NetworkPolicy", "metadata": map[string]any{"name": fmt.Sprint("guard-", i)},
		"spec": map[string]any{"priority": int64(i + 1), "appliedTo": []any{selector("web")},
			"ingress": []any{map[string]any{"name": "in", "action": "Drop", "from": []any{selector("peer"), selector(fmt.Sprint("own-", i))}}}},
	}}, metav1.CreateOptions{})
	return err
}

func (w *statusBench) allRealized(n int) {
	w.b.Helper()
	must(w.b, harness.Eventually(w.b.Context(), 3*time.Minute, func() error {
		list, err := w.policies.List(w.b.Context(), metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		realized := 0
		for i := range list.Items {
			phase, _, _ := unstructured.NestedString(list.Items[i].Object, "status", "phase")
			observed, _, _ := unstructured.NestedInt64(list.Items[i].Object, "status", "observedGeneration")
			if phase == "Realized" && observed == list.Items[i].GetGeneration() {
				realized++
			}
		}
		if realized != n {
			return fmt.Errorf("%d of %d policies are realised", realized, n)
		}
		return nil
	}))
}

// statusCost is what the policy service has spent so far.
type statusCost struct{ writes, cpu float64 }

func (w *statusBench) read() (c statusCost) {
	w.b.Helper()
	resp, err := http.Get(w.metrics)
	must(w.b, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(w.b, err)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(value, 64)
		switch {
		case err != nil:
		case strings.HasPrefix(name, "weir_policy_status_writes_total"):
			c.writes += v
		case name == "process_cpu_seconds_total":
			c.cpu = v
		}
	}
	return c
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}
