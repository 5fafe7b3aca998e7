package e2e

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/weirnet/weir/e2e/harness"
)

// The workload of BenchmarkAPIServerToFlows: 50 Namespaces of 100 Pods and 10
// policies each, on 100 nodes, of which three are real.
const (
	benchSpaces, benchPods, benchPolicies = 50, 100, 10
	benchNodes                            = 100
	benchGuarded                          = 10 // Namespaces with a Pod on node-1 that has a port.
)

// BenchmarkAPIServerToFlows is about an installed cluster with 5,000 Pods and 500
// policies behind a real API server. One operation: a Pod gets its address in its
// status, and so becomes a peer of a policy that guards a Pod on node-1. It is
// over when Open vSwitch there says that a flow with the address has come
// (p50-ms, p99-ms, from the API server's answer). Ten Pods a second come beside.
// Of the first policy service: heap-MB (in use), rss-MB.
func BenchmarkAPIServerToFlows(b *testing.B) {
	c := startInstalled(b, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1"}, {Name: "node-2"}, {Name: "node-3"}}})
	config, err := c.Kube.Config()
	must(b, err)
	kube, err := kubernetes.NewForConfig(config)
	must(b, err)
	w := &bench{b: b, kube: kube, next: netip.MustParseAddr("10.128.0.1")}
	w.fill(c)
	must(b, c.Settled(b.Context()))

	flows := watchFlows(b, c.Nodes["node-1"])
	ctx, stop := context.WithCancel(b.Context())
	var beside sync.WaitGroup
	beside.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			_ = w.pod(ctx, i%benchSpaces, fmt.Sprintf("beside-%d", i), i%benchPolicies) // Ends with the context.
			<-tick.C
		}
	})
	<-flows.begun
	var took []float64
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		space, policy := i%benchGuarded, i%benchPolicies
		name := fmt.Sprintf("fresh-%d", i)
		must(b, w.create(ctx, space, name, policy))
		ip := w.address()
		seen := flows.await(ip)
		b.StartTimer()
		must(b, w.status(ctx, space, name, ip))
		answered := time.Now()
		select {
		case at := <-seen:
			took = append(took, float64(at.Sub(answered).Microseconds())/1000)
		case <-time.After(20 * time.Second):
			there, _ := c.Nodes["node-1"].OVS.Ofctl(ctx, "dump-flows", harness.Bridge)
			b.Fatalf("not told of a flow of %s in 20 s; there are %d lines of flows, %d with it\n%s", ip, strings.Count(there, "\n"), strings.Count(there, ip.String()), c.Nodes["node-1"].Shim.Tail())
		}
	}
	stop()
	beside.Wait()
	slices.Sort(took)
	at := func(q float64) float64 { return took[min(len(took)-1, int(math.Ceil(q*float64(len(took)))))] }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	text, err := c.PolicydMetrics(0)
	must(b, err)
	for line := range strings.Lines(text) {
		for metric, unit := range map[string]string{"go_memstats_heap_inuse_bytes": "heap-MB", "process_resident_memory_bytes": "rss-MB"} {
			var v float64
			if n, _ := fmt.Sscanf(line, metric+" %g", &v); n == 1 {
				b.ReportMetric(v/1e6, unit)
			}
		}
	}
}

type bench struct {
	b    *testing.B
	kube kubernetes.Interface

	mu   sync.Mutex // Guards next.
	next netip.Addr
}

func (w *bench) address() netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next = w.next.Next()
	return w.next
}

func benchSpace(i int) string { return fmt.Sprintf("team-%02d", i) }

// fill creates the workload. Pods of app=a are guarded by the policy a, and those
// of role=a are whom it lets in.
func (w *bench) fill(c *harness.Cluster) {
	ctx, b := w.b.Context(), w.b
	var g errgroup.Group
	g.SetLimit(16)
	for i := range benchNodes {
		g.Go(func() error {
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i+1)}}
			_, err := w.kube.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
			return err
		})
	}
	for i := range benchSpaces {
		_, err := w.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: benchSpace(i)}}, metav1.CreateOptions{})
		must(b, err)
		for j := range benchPolicies {
			g.Go(func() error {
				p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: benchSpace(i), Name: fmt.Sprintf("p%d", j)}}
				p.Spec.PodSelector.MatchLabels = map[string]string{"guarded": "yes"}
				p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": fmt.Sprint(j)}}}}}}
				_, err := w.kube.NetworkingV1().NetworkPolicies(benchSpace(i)).Create(ctx, p, metav1.CreateOptions{})
				return err
			})
		}
		for j := range benchPods {
			g.Go(func() error { return w.pod(ctx, i, fmt.Sprintf("pod-%d", j), j%benchPolicies) })
		}
	}
	must(b, g.Wait())
	var guarded []harness.PodConfig
	var text strings.Builder
	for i := range benchGuarded {
		p := harness.PodConfig{Namespace: benchSpace(i), Name: "guarded", Node: "node-1", IPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.9.1.%d", 10+i))}}
		guarded = append(guarded, p)
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: guarded, namespace: %s, labels: {guarded: 'yes'}}\nspec: {nodeName: node-1, containers: [{name: c, image: none}]}\n", p.Namespace)
	}
	must(b, c.SetPods(ctx, guarded))
	must(b, c.SetObjects(ctx, []byte(text.String())))
}

// pod is a Pod with an address, on one of the nodes that are not real.
func (w *bench) pod(ctx context.Context, space int, name string, role int) error {
	if err := w.create(ctx, space, name, role); err != nil {
		return err
	}
	return w.status(ctx, space, name, w.address())
}

func (w *bench) create(ctx context.Context, space int, name string, role int) error {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: benchSpace(space), Name: name, Labels: map[string]string{"role": fmt.Sprint(role)}}}
	p.Spec.NodeName = fmt.Sprintf("node-%d", 4+(space*7+len(name)+role)%(benchNodes-4))
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "none"}}
	_, err := w.kube.CoreV1().Pods(p.Namespace).Create(ctx, p, metav1.CreateOptions{})
	return err
}

func (w *bench) status(ctx context.Context, space int, name string, ip netip.Addr) error {
	patch := fmt.Sprintf(`{"status": {"phase": "Running", "podIP": %q, "podIPs": [{"ip": %q}]}}`, ip, ip)
	_, err := w.kube.CoreV1().Pods(benchSpace(space)).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	return err
}

// flowWatch is told by Open vSwitch of flows that come.
type flowWatch struct {
	begun chan struct{} // Closed with the first.
	once  sync.Once

	mu      sync.Mutex // Guards waiting.
	waiting map[string]chan time.Time
}

func watchFlows(b *testing.B, n *harness.Node) *flowWatch {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "ovs-ofctl", "monitor", "unix:"+n.OVS.Dir+"/"+harness.Bridge+".mgmt", "watch:!initial,!delete,!modify")
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+n.OVS.Dir)
	out, err := cmd.StderrPipe() // That is where it prints.
	must(b, err)
	must(b, cmd.Start())
	f := &flowWatch{begun: make(chan struct{}), waiting: make(map[string]chan time.Time)}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			f.once.Do(func() { close(f.begun) })
			_, rest, is := strings.Cut(lines.Text(), "nw_src=")
			if !is {
				continue
			}
			f.mu.Lock()
			ip := strings.FieldsFunc(rest, func(r rune) bool { return r == ',' || r == ' ' })[0]
			if c := f.waiting[ip]; c != nil {
				c <- time.Now()
				delete(f.waiting, ip)
			}
			f.mu.Unlock()
		}
		_ = cmd.Wait() // It ends with the context.
	}()
	return f
}

// await tells when a flow of an address comes.
func (f *flowWatch) await(ip netip.Addr) <-chan time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan time.Time, 1)
	f.waiting[ip.String()] = c
	return c
}
