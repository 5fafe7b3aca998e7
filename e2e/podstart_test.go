package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weirnet/weir/e2e/harness"
)

var (
	podstartSeed = flag.Uint64("podstart.seed", 1, "seed of TestPodsStartWithoutAGap")
	podstartPods = flag.Int("podstart.pods", 200, "Pods that TestPodsStartWithoutAGap starts")
)

// startRun starts Pods on two nodes, several at a time, where each takes over the
// place and often the address of one that went, and some Pods stay. All of them
// send to each other, those that start from the moment they have an interface.
type startRun struct {
	*ledger
	nodes  []string
	macs   map[string]net.HardwareAddr // Of the nodes' bridges.
	seed   uint64
	left   atomic.Int64 // Pods to start.
	failed atomic.Int64 // ADDs.

	mu   sync.Mutex // Guards what follows, and the harness.
	pods []*startingPod
	here atomic.Pointer[[]*startingPod] // That have a namespace.
}

const (
	placesOfNode = 4
	oldOfNode    = 2
)

var startApps = []string{"a", "b", "c"}

// newStartRun is a cluster with the Pods that stay.
func newStartRun(t testing.TB, seed uint64, policies int, shimArgs ...string) (*startRun, context.Context) {
	t.Helper()
	c := startCluster(t, harness.Config{PodNetwork: "routed", ShimArgs: shimArgs, Nodes: []harness.NodeConfig{{Name: "node-1"}, {Name: "node-2"}}})
	r := &startRun{ledger: newLedger(t, c, seed, policies, map[string]string{"cluster": startObjects(c)}), nodes: []string{"node-1", "node-2"}, macs: make(map[string]net.HardwareAddr), seed: seed}
	r.here.Store(new([]*startingPod))
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		if err := r.write(ctx); err != nil {
			t.Error(err)
		}
	})
	work.Go(func() { r.watch(ctx) })
	t.Cleanup(func() { cancel(); work.Wait(); r.end() })
	for _, name := range r.nodes {
		n := c.Nodes[name]
		must(t, harness.Eventually(ctx, 20*time.Second, func() error { _, err := n.CNIConfig(); return err }))
		text, err := n.BridgeMAC()
		must(t, err)
		r.macs[name], err = net.ParseMAC(text)
		must(t, err)
	}
	var adds sync.WaitGroup
	for n, node := range r.nodes {
		for i := range oldOfNode {
			adds.Go(func() {
				p := r.pod(node, []string{"one", "two"}[i%2], startApps[(i+n)%3], r.addresses(n, i+2))
				p.old = true
				if err := r.start(ctx, p, nil, true); err != nil {
					t.Error(err)
				}
			})
		}
	}
	adds.Wait()
	return r, ctx
}

func startObjects(c *harness.Cluster) string {
	return "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: one, labels: {space: one}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: two, labels: {space: two}}\n" + nodeObjects(c)
}

// addresses are the i-th of a node's prefixes.
func (r *startRun) addresses(node, i int) *addressPair {
	return &addressPair{v4: ip(fmt.Sprintf("10.77.%d.%d", node+1, i)), v6: ip(fmt.Sprintf("fd77:%d::%x", node+1, i))}
}

// pod is a Pod that is not there yet.
func (r *startRun) pod(node, space, app string, addr *addressPair) *startingPod {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &startingPod{run: r, serial: uint32(len(r.pods)), space: space, app: app, node: node, addr: addr, born: -1}
	p.name = fmt.Sprintf("pod-%d", p.serial)
	r.pods = append(r.pods, p)
	return p
}

func (p *startingPod) key() string { return "pods/" + p.name }

func (p *startingPod) uid() string { return "u-" + p.name }

func (p *startingPod) manifest() string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, uid: %s, labels: {app: %s}}\nspec: {nodeName: %s, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}, {ip: '%s'}]}\n",
		p.name, p.space, p.uid(), p.app, p.node, p.addr.v4, p.addr.v6)
}

// present are the Pods that have a namespace.
func (r *startRun) present() []*startingPod { return *r.here.Load() }

func (r *startRun) appear(p *startingPod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := append(slices.Clone(r.present()), p)
	r.here.Store(&list)
}

func (r *startRun) vanish(p *startingPod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(r.present()), func(q *startingPod) bool { return q == p })
	r.here.Store(&list)
}

// start gives a Pod its network. Its object comes before, or once its interface
// is there; what is to change with it changes in the same set.
func (r *startRun) start(ctx context.Context, p *startingPod, with map[string]string, early bool) (err error) {
	objects := map[string]string{p.key(): p.manifest()}
	for key, text := range with {
		objects[key] = text
	}
	r.mu.Lock()
	p.host, err = r.c.Sandbox(ctx)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := p.prepare(); err != nil {
		return err
	}
	node := r.c.Nodes[p.node]
	conf, err := node.CNIConfig()
	if err != nil {
		return err
	}
	conf["timeout"] = "20s"
	conf["runtimeConfig"] = map[string]any{"ips": []string{p.addr.v4.String() + "/24", p.addr.v6.String() + "/64"}}
	p.call = harness.CNICall{ContainerID: "c-" + p.name, NetNS: "/run/netns/" + p.host.NS.Name, Config: conf,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + p.space + ";K8S_POD_NAME=" + p.name + ";K8S_POD_UID=" + p.uid()}
	go p.listen()
	r.appear(p)
	go p.send()
	if early {
		if p.born, err = r.change(ctx, objects); err != nil {
			return err
		}
	}
	added := make(chan error, 1)
	p.begun = r.now()
	go func() { added <- r.add(p) }()
	if !early {
		select {
		case <-p.linked:
		case err := <-added:
			return fmt.Errorf("ADD of %s is over before the Pod is known: %w", p.name, err)
		}
		if p.born, err = r.change(ctx, objects); err != nil {
			return err
		}
	}
	if err := <-added; err != nil {
		return fmt.Errorf("%w\n%s", err, node.Shim.Tail())
	}
	p.opened.Store(int64(r.now()))
	return node.RoomySwitch()
}

// add is ADD, again where it fails for a reason that passes.
func (r *startRun) add(p *startingPod) error {
	call := p.call
	call.Command = "ADD"
	for {
		_, err := r.c.Nodes[p.node].CNI(context.Background(), call)
		var said *types.Error
		if err == nil || !errors.As(err, &said) || said.Code != types.ErrTryAgainLater || !strings.Contains(said.Msg, p.name) || r.failed.Add(1) > 20 {
			return err
		}
		r.t.Logf("ADD of %s: %s", p.name, said.Msg)
	}
}

// leave takes a Pod's network away; its object stays.
func (r *startRun) leave(p *startingPod) error {
	p.closed = r.now()
	call := p.call
	call.Command = "DEL"
	_, err := r.c.Nodes[p.node].CNI(context.Background(), call)
	close(p.stop)
	<-p.ended
	r.vanish(p)
	p.ear.Close()
	<-p.deaf
	return err
}

// place starts Pods one after the other in a place of a node.
func (r *startRun) place(ctx context.Context, node, number int) error {
	rng := rand.New(rand.NewPCG(r.seed, uint64(2+node*placesOfNode+number)))
	var addrs []*addressPair
	for i := range 3 {
		addrs = append(addrs, r.addresses(node, 16+number*3+i))
	}
	var former *startingPod // Whose object is still there.
	current := addrs[0]
	for r.left.Add(-1) >= 0 {
		if rng.IntN(3) == 0 {
			current = addrs[rng.IntN(len(addrs))]
		}
		p := r.pod(r.nodes[node], []string{"one", "two"}[rng.IntN(2)], startApps[rng.IntN(3)], current)
		with := map[string]string{}
		late := rng.IntN(3) == 0 // Its forerunner's object outlives its start.
		if former != nil && !late {
			with[former.key()] = ""
			if rng.IntN(2) == 0 {
				if _, err := r.change(ctx, with); err != nil {
					return err
				}
				with = nil
			}
		}
		if err := r.start(ctx, p, with, rng.IntN(2) == 0); err != nil {
			return err
		}
		if former != nil && late {
			if _, err := r.change(ctx, map[string]string{former.key(): ""}); err != nil {
				return err
			}
		}
		<-p.lived
		if err := r.leave(p); err != nil {
			return err
		}
		former = p
	}
	return nil
}

// startAll starts a number of Pods.
func (r *startRun) startAll(ctx context.Context, pods int) {
	r.left.Store(int64(pods))
	var places sync.WaitGroup
	for node := range r.nodes {
		for number := range placesOfNode {
			places.Go(func() {
				if err := r.place(ctx, node, number); err != nil {
					r.t.Error(err)
				}
			})
		}
	}
	places.Wait()
}

// end silences the Pods that are left.
func (r *startRun) end() {
	for _, p := range r.present() {
		close(p.stop)
		<-p.ended
		p.ear.Close()
		<-p.deaf
		r.vanish(p)
	}
}

// timeouts are the ports of a node that opened because they had waited long enough.
func (r *startRun) timeouts(node string) (n int) {
	r.t.Helper()
	text, err := r.c.Nodes[node].Metrics()
	must(r.t, err)
	_, after, _ := strings.Cut(text, "\nweir_shim_peer_barrier_timeouts_total ")
	if _, err := fmt.Sscan(after, &n); err != nil {
		r.t.Fatalf("%s does not count barriers' timeouts: %v", node, err)
	}
	return n
}

// Pods start, leave, and pass on their addresses while policies change. Whatever
// one sends from its first instant, and whatever is sent to it, comes through
// only where a set of policies that may have been in force on the way allows it;
// and once its port is open, what all these sets allow comes through.
func TestPodsStartWithoutAGap(t *testing.T) {
	t.Run("policies that change", func(t *testing.T) {
		r, ctx := newStartRun(t, *podstartSeed, 10, "--peer-barrier", "10s")
		begun := r.now()
		r.startAll(ctx, *podstartPods)
		t.Logf("%d Pods in %s", *podstartPods, (r.now() - begun).Round(time.Millisecond))
		r.end()
		r.judge().report(t)
		for _, node := range r.nodes {
			if n := r.timeouts(node); n != 0 {
				t.Errorf("%d ports of %s opened before the nodes concerned knew their addresses", n, node)
			}
		}
	})
	t.Run("a policy service that starts anew", startsOverARestart)
	t.Run("a node that does not answer", startsWithoutANode)
}

// startsOverARestart kills the policy service while Pods start: what is held back
// waits, and then goes on.
func startsOverARestart(t *testing.T) {
	r, ctx := newStartRun(t, *podstartSeed, 10, "--peer-barrier", "10s")
	opened := func() (n int) {
		for _, p := range r.present() {
			if !p.old && p.opened.Load() > 0 {
				n++
			}
		}
		return n
	}
	started := make(chan struct{})
	go func() { defer close(started); r.startAll(ctx, 24) }()
	must(t, harness.Eventually(ctx, 20*time.Second, func() error {
		if opened() < 2 {
			return errors.New("no Pod has started")
		}
		return nil
	}))
	r.c.Policyd.Kill()
	must(t, harness.Eventually(ctx, 20*time.Second, func() error {
		for _, p := range r.present() {
			if p.opened.Load() == 0 && p.transmitted.Load() > 0 {
				return nil
			}
		}
		return errors.New("no Pod waits for its port")
	}))
	must(t, r.c.Policyd.Start())
	<-started
	r.end()
	t.Logf("%d ADDs failed and were tried again", r.failed.Load())
	r.judge().report(t)
}

// noneFromC drops what Pods of app c send to those of app b.
const noneFromC = `---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: no-c}
spec:
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: b}}}}
  ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: c}}}}]}]
`

// startsWithoutANode starts Pods that a rule of a node drops while that node's
// shim stands still: their ports open after the barrier's time, which is counted,
// and nothing comes through before, nor once the shim goes on.
func startsWithoutANode(t *testing.T) {
	const barrier = time.Second
	r, ctx := newStartRun(t, *podstartSeed, 0, "--peer-barrier", barrier.String())
	_, err := r.change(ctx, map[string]string{"policies/no-c": noneFromC})
	must(t, err)
	for _, node := range r.nodes {
		must(t, r.c.Applied(ctx, node))
	}
	far := r.c.Nodes["node-2"].Shim
	must(t, far.Pause())
	t.Cleanup(func() { far.Resume() })
	var pods []*startingPod
	var starts sync.WaitGroup
	for i := range placesOfNode {
		p := r.pod("node-1", "one", "c", r.addresses(0, 16+i))
		pods = append(pods, p)
		starts.Go(func() {
			if err := r.start(ctx, p, nil, false); err != nil {
				t.Error(err)
				return
			}
			<-p.lived
		})
	}
	starts.Wait()
	if n := r.timeouts("node-1"); n != len(pods) {
		t.Errorf("%d ports are counted that opened after the barrier's time, want %d", n, len(pods))
	}
	must(t, far.Resume())
	must(t, r.c.Applied(ctx, "node-2"))
	known := r.now()
	must(t, harness.Eventually(ctx, 20*time.Second, func() error {
		r.ledger.mu.Lock()
		defer r.ledger.mu.Unlock()
		if seen := r.sightings["node-2"]; seen[len(seen)-1].set < len(r.sets)-1 {
			return errors.New("node-2 is not seen in sync")
		}
		return nil
	}))
	for _, p := range pods {
		after := p.transmitted.Load() + 500
		must(t, harness.Eventually(ctx, 20*time.Second, func() error {
			if p.transmitted.Load() < after {
				return errors.New("the Pod does not send")
			}
			return nil
		}))
	}
	r.end()
	j := r.judge()
	for _, to := range r.pods {
		for _, h := range to.heard {
			if from := r.pods[h.from]; slices.Contains(pods, from) && h.at < from.begun+barrier {
				t.Errorf("%s was heard %s after its ADD began", from, h.at-from.begun)
			}
		}
	}
	// What came through after the barrier's time is what its counting is for, and
	// connections that began then go on.
	j.excuse(func(g gap) bool {
		return g.to.node == "node-2" && slices.Contains(pods, g.from) && (g.at < known || g.steady)
	})
	j.report(t)
}

// BenchmarkPodStart starts one Pod after the other that the policy service knows,
// on a node of two, and that a rule of the other drops: so its port waits for
// that node. One operation is ADD, by its process (p50-ms, p99-ms).
func BenchmarkPodStart(b *testing.B) {
	r, ctx := newStartRun(b, 1, 0)
	_, err := r.change(ctx, map[string]string{"policies/no-c": noneFromC})
	must(b, err)
	addr := []*addressPair{r.addresses(0, 16), r.addresses(0, 17)}
	var took []time.Duration
	var former *startingPod
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		p := r.pod("node-1", "one", "c", addr[i%2])
		with := map[string]string{}
		if former != nil {
			with[former.key()] = ""
		}
		b.StartTimer()
		must(b, r.start(ctx, p, with, true))
		b.StopTimer()
		took = append(took, time.Duration(p.opened.Load())-p.begun)
		must(b, r.leave(p))
		former = p
		b.StartTimer()
	}
	slices.Sort(took)
	for unit, q := range map[string]float64{"p50-ms": 0.5, "p99-ms": 0.99} {
		b.ReportMetric(float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds())/1000, unit)
	}
	b.ReportMetric(0, "ns/op")
}
