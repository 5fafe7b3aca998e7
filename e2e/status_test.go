package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/weirnet/weir/e2e/harness"
)

// statusCluster is an API server with three policy services, which may be killed,
// and nodes that acknowledge what they are sent.
type statusCluster struct {
	*harness.Kube
	t        *testing.T
	api      kubernetes.Interface
	dynamic  dynamic.Interface
	replicas []*harness.Process
	nodes    map[string]*statusNode
}

const statusNodes = 12

func startStatusCluster(t *testing.T) *statusCluster {
	requireDataplane(t) // For the binaries.
	c := &statusCluster{t: t, Kube: startKube(t, harness.KubeConfig{})}
	must(t, c.ApplyWeirCRDs(t.Context()))
	config, err := c.Config()
	must(t, err)
	c.api, err = kubernetes.NewForConfig(config)
	must(t, err)
	c.dynamic, err = dynamic.NewForConfig(config)
	must(t, err)
	var addresses []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		addresses = append(addresses, l.Addr().String())
		l.Close()
	}
	dir := t.TempDir()
	for i, a := range addresses {
		p := harness.HostProcess(fmt.Sprintf("policyd-%d", i), filepath.Join(dir, fmt.Sprintf("policyd-%d.log", i)), filepath.Join(bin, "weir-policyd"),
			"--kubeconfig", c.AdminKubeconfig(), "--namespace", "kube-system", "--listen", a, "--metrics-listen", "", "--replicas", strings.Join(addresses, ","))
		must(t, p.Start())
		t.Cleanup(p.Kill)
		c.replicas = append(c.replicas, p)
	}
	var names []string
	for i := range statusNodes {
		names = append(names, statusNodeName(i))
	}
	c.nodes = startStatusNodes(t, addresses, names...)
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range c.replicas {
				t.Log(p.Tail())
			}
		}
	})
	return c
}

// pod puts a Pod with an address onto a node.
func (c *statusCluster) pod(ctx context.Context, name, app string, node int, address string) error {
	p, err := c.api.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{NodeName: statusNodeName(node), Containers: []corev1.Container{{Name: "c", Image: "none"}}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, address, []corev1.PodIP{{IP: address}}
	_, err = c.api.CoreV1().Pods("default").UpdateStatus(ctx, p, metav1.UpdateOptions{})
	return err
}

// guards are policies for the Pods of every node, whose peers come and go.
func guards(n int) string {
	var b strings.Builder
	for i := range n {
		kind, scope := "ClusterNetworkPolicy", "namespaceSelector: {}, "
		if i%2 == 1 {
			kind, scope = "NetworkPolicy", ""
		}
		fmt.Fprintf(&b, "---\napiVersion: crd.antrea.io/v1beta1\nkind: %s\nmetadata: {name: guard-%d}\nspec: {priority: %d, appliedTo: [{podSelector: {matchLabels: {app: web}}}], "+
			"ingress: [{name: in, action: Drop, from: [{%spodSelector: {matchLabels: {app: peer}}}]}]}\n", kind, i, i+1, scope)
	}
	return b.String()
}

func (c *statusCluster) kubectl(stdin string, args ...string) string {
	c.t.Helper()
	return kubectl(c.t, c.Kube, stdin, args...)
}

// condition is a field of a policy's condition.
func (c *statusCluster) condition(policy, kind, field string) string {
	c.t.Helper()
	return c.kubectl("", "get", policy, "-o", `jsonpath={.status.conditions[?(@.type=="`+kind+`")].`+field+"}")
}

// TestStatus: kubectl shows whether a policy is in force, and why not.
func TestStatus(t *testing.T) {
	t.Parallel()
	c := startStatusCluster(t)
	for i := range statusNodes {
		must(t, c.pod(t.Context(), fmt.Sprintf("web-%d", i), "web", i, fmt.Sprintf("10.1.0.%d", i+1)))
	}
	c.kubectl(guards(2)+`---
{apiVersion: crd.antrea.io/v1beta1, kind: ClusterGroup, metadata: {name: webs}, spec: {podSelector: {matchLabels: {app: web}}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed}, spec: {podSelector: {}, policyTypes: [Ingress]}}
`, "create", "-f", "-")
	c.kubectl("", "wait", "--for=condition=Realized", "--timeout=60s", "acnp/guard-0", "annp/guard-1")
	c.kubectl("", "wait", "--for=condition=GroupMembersComputed", "--timeout=60s", "clustergroup/webs")
	if got := c.kubectl("", "get", "acnp/guard-0", "-o", "jsonpath={.status.phase} {.status.currentNodesRealized}/{.status.desiredNodesRealized} {.status.observedGeneration}"); got != "Realized 12/12 1" {
		t.Errorf("the status is %s", got)
	}
	must(t, harness.Eventually(t.Context(), 30*time.Second, func() error {
		// kubectl describe shows none of a NetworkPolicy.
		if said := c.kubectl("", "events", "--for", "networkpolicies.networking.k8s.io/closed"); !strings.Contains(said, "12 of 12 nodes enforce it") {
			return fmt.Errorf("no event tells that the NetworkPolicy is in force:\n%s", said)
		}
		return nil
	}))

	t.Run("a node that is late", func(t *testing.T) {
		c.t = t
		n := c.nodes[statusNodeName(3)]
		n.stuck.Store(true)
		c.kubectl("", "patch", "acnp/guard-0", "--type=json", "-p", `[{"op": "replace", "path": "/spec/priority", "value": 77}]`)
		c.kubectl("", "wait", "--for=condition=Realized=false", "--timeout=60s", "acnp/guard-0")
		if said := c.kubectl("", "describe", "acnp/guard-0"); !strings.Contains(said, "11 of 12 nodes enforce it: worker-03 is late") || !strings.Contains(said, "Realizing") {
			t.Errorf("kubectl describe:\n%s", said)
		}
		if got := c.condition("annp/guard-1", "Realized", "status"); got != "True" {
			t.Errorf("a policy that has not changed is said to be realised: %s", got)
		}
		n.stuck.Store(false)
		c.kubectl("", "wait", "--for=condition=Realized", "--timeout=60s", "acnp/guard-0")
	})
	t.Run("members count", func(t *testing.T) {
		c.t = t
		n := c.nodes[statusNodeName(5)]
		n.stuck.Store(true)
		must(t, c.pod(t.Context(), "peer", "peer", 0, "10.2.0.1"))
		c.kubectl("", "wait", "--for=condition=Realized=false", "--timeout=60s", "acnp/guard-0", "annp/guard-1")
		n.stuck.Store(false)
		c.kubectl("", "wait", "--for=condition=Realized", "--timeout=60s", "acnp/guard-0", "annp/guard-1")
	})
	t.Run("what is wrong with it", func(t *testing.T) {
		c.t = t
		c.kubectl("", "patch", "acnp/guard-0", "--type=json", "-p", `[{"op": "add", "path": "/spec/ingress/0/from/-", "value": {"group": "nobody"}}]`)
		c.kubectl("", "wait", "--for=condition=Realizable=false", "--timeout=60s", "acnp/guard-0")
		if said := c.kubectl("", "describe", "acnp/guard-0"); !strings.Contains(said, "GroupNotFound") || !strings.Contains(said, "ingress[0] (in): group nobody is not there") {
			t.Errorf("kubectl describe:\n%s", said)
		}
		if got := c.condition("acnp/guard-0", "Realized", "status"); got != "False" {
			t.Errorf("a policy that is not enforced as it is written is realised: %s", got)
		}
	})
}

// TestStatusUnderChurn: groups change all the time while replicas are killed at
// random, whoever writes the status among them. No condition changes without a
// reason, no policy is written more than once a second, and in the end all is told
// as it is.
func TestStatusUnderChurn(t *testing.T) {
	t.Parallel()
	c := startStatusCluster(t)
	const policies = 20
	for i := range statusNodes {
		must(t, c.pod(t.Context(), fmt.Sprintf("web-%d", i), "web", i, fmt.Sprintf("10.1.0.%d", i+1)))
	}
	c.kubectl(guards(policies), "create", "-f", "-")
	wait := []string{"wait", "--for=condition=Realized", "--timeout=90s"}
	for i := range policies {
		wait = append(wait, []string{"acnp", "annp"}[i%2]+fmt.Sprintf("/guard-%d", i))
	}
	c.kubectl("", wait...)
	ledger := watchStatuses(c)

	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { c.churn(ctx) })
	rng := rand.New(rand.NewPCG(1, 2))
	var holders []string
	for range 6 {
		holder := c.holder()
		holders = append(holders, holder)
		p := c.replicas[rng.IntN(len(c.replicas))]
		if len(holders)%2 == 1 { // Whoever writes.
			for _, r := range c.replicas {
				if strings.Contains(strings.Join(r.Lines(), "\n"), holder) {
					p = r
				}
			}
		}
		p.Kill()
		must(t, sleepFor(ctx, time.Duration(1+rng.IntN(3))*time.Second))
		must(t, p.Start())
		must(t, sleepFor(ctx, 5*time.Second))
	}
	stop()
	work.Wait()
	if slices.Sort(holders); len(slices.Compact(holders)) < 2 {
		t.Errorf("the Lease was held by %q alone", holders)
	}
	// A change after all that is told by whoever holds the Lease in the end.
	for i := range policies {
		c.kubectl("", "patch", wait[3+i], "--type=json", "-p", fmt.Sprintf(`[{"op": "replace", "path": "/spec/priority", "value": %d}]`, 100+i))
	}
	c.kubectl("", wait...)
	must(t, harness.Eventually(t.Context(), 30*time.Second, func() error {
		got := strings.Fields(c.kubectl("", "get", "acnp,annp", "-A", "-o", `jsonpath={range .items[*]}{.status.phase}/{.status.currentNodesRealized}/{.status.desiredNodesRealized}/{.status.observedGeneration} {end}`))
		for _, s := range got {
			if s != "Realized/12/12/2" {
				return fmt.Errorf("statuses are %q", got)
			}
		}
		if len(got) != policies {
			return fmt.Errorf("there are %d policies", len(got))
		}
		return nil
	}))
	ledger.judge()
}

// holder is who holds the Lease: an epoch.
func (c *statusCluster) holder() (epoch string) {
	c.t.Helper()
	must(c.t, harness.Eventually(c.t.Context(), 60*time.Second, func() error {
		lease, err := c.api.CoordinationV1().Leases("kube-system").Get(c.t.Context(), "weir-policyd", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
			return errors.New("nobody holds the Lease")
		}
		epoch = *lease.Spec.HolderIdentity
		return nil
	}))
	return epoch
}

// churn has ten peers a second come and go.
func (c *statusCluster) churn(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		if err := c.pod(ctx, fmt.Sprintf("peer-%d", i), "peer", i%statusNodes, fmt.Sprintf("10.3.%d.%d", i/200, i%200+1)); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) {
			c.t.Error(err)
		}
		if old := i - 20; old >= 0 {
			if err := c.api.CoreV1().Pods("default").Delete(ctx, fmt.Sprintf("peer-%d", old), *metav1.NewDeleteOptions(0)); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) {
				c.t.Error(err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// statusLedger is every status that the API server has told.
type statusLedger struct {
	t  *testing.T
	mu sync.Mutex // Guards what follows.
	// By object: when it was written, and what its conditions were.
	written map[string][]time.Time
	changes map[string][]string
}

func watchStatuses(c *statusCluster) *statusLedger {
	l := &statusLedger{t: c.t, written: make(map[string][]time.Time), changes: make(map[string][]string)}
	for _, plural := range []string{"clusternetworkpolicies", "networkpolicies"} {
		w, err := c.dynamic.Resource(schema.GroupVersionResource{Group: "crd.antrea.io", Version: "v1beta1", Resource: plural}).Watch(c.t.Context(), metav1.ListOptions{})
		must(c.t, err)
		c.t.Cleanup(w.Stop)
		go func() {
			for ev := range w.ResultChan() {
				if u, is := ev.Object.(*unstructured.Unstructured); is && (ev.Type == watch.Added || ev.Type == watch.Modified) {
					l.take(plural+"/"+u.GetName(), u)
				}
			}
		}()
	}
	return l
}

func (l *statusLedger) take(name string, u *unstructured.Unstructured) {
	l.mu.Lock()
	defer l.mu.Unlock()
	status, _, _ := unstructured.NestedMap(u.Object, "status")
	said := fmt.Sprint(status)
	key := name + " said"
	if before := l.changes[key]; len(before) > 0 && before[0] == said {
		return // The spec was written.
	}
	l.changes[key] = []string{said}
	l.written[name] = append(l.written[name], time.Now())
	conditions, _, _ := unstructured.NestedSlice(status, "conditions")
	for _, raw := range conditions {
		c := raw.(map[string]any)
		of := name + " " + fmt.Sprint(c["type"])
		now := fmt.Sprint(c["status"], " ", c["lastTransitionTime"])
		if before := l.changes[of]; len(before) == 0 || before[len(before)-1] != now {
			l.changes[of] = append(before, now)
		}
	}
}

// judge holds what was told to what may be.
func (l *statusLedger) judge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	writes := 0
	for name, at := range l.written {
		writes += len(at)
		for i := 1; i < len(at); i++ {
			if gap := at[i].Sub(at[i-1]); i > 1 && gap < 950*time.Millisecond { // The first is what there was.
				l.t.Errorf("%s was written twice within %v", name, gap)
			}
		}
	}
	for of, seen := range l.changes {
		if !strings.HasSuffix(of, " said") && len(seen) != 1 {
			l.t.Errorf("%s changed: %q", of, seen)
		}
	}
	l.t.Logf("%d statuses of %d policies were seen", writes, len(l.written))
}

func sleepFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
