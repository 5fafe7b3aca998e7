package shim

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
	"github.com/weirnet/weir/shim/pipeline"
)

// recorder is a bridge that tells what was applied to it.
type recorder struct {
	*bridge.Bridge

	mu      sync.Mutex // Guards changes.
	changes []bridge.Change
}

func (r *recorder) Apply(ctx context.Context, c bridge.Change) error {
	c.Upsert, c.More = slices.Collect(c.EachUpsert), nil // These are gone by the time that they are looked at.
	r.mu.Lock()
	r.changes = append(r.changes, c)
	r.mu.Unlock()
	return r.Bridge.Apply(ctx, c)
}

// take is what was applied since the last take.
func (r *recorder) take() []bridge.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.changes
	r.changes = nil
	return out
}

const benchBridge = "br-weir"

// benchNode is a node as it is: a shim's loop on a real Open vSwitch with a
// userspace datapath, and what a policy service sends it. Its Pods are x/pod-0
// and so on; pod-N has the port podN, and on its side of the link the device
// ethN, in the namespace of the switch too.
type benchNode struct {
	*world
	in   *ovstest.Instance
	sw   *recorder
	shim *Shim
	pods []*api.Pod
}

// newBenchNode starts a node whose Pods have open ports.
func newBenchNode(b testing.TB, pods int, with ...func(*Shim)) *benchNode {
	n := &benchNode{world: newWorld(b), in: ovstest.New(b)}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	b.Cleanup(cancel)
	br, err := bridge.New(bridge.Config{Name: benchBridge, RunDir: n.in.Dir, DatapathType: "netdev",
		Mark:        bridge.Mark{Value: pipeline.CookieMark, Mask: pipeline.CookieMask},
		Controllers: []bridge.Controller{{ID: pipeline.LogController}, {ID: pipeline.NameController}}})
	must(b, err)
	must(b, br.SetUp(ctx))
	n.sw = &recorder{Bridge: br}
	run, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); br.Run(run) }()
	b.Cleanup(func() { stop(); <-done })
	must(b, br.WaitConnected(ctx))

	objects := []api.Object{&api.Namespace{Name: "x"}}
	var links, ports []string
	links = append(links, "link set "+benchBridge+" up")
	for i := range pods {
		p := pod(fmt.Sprint("pod-", i), benchAddr(i).String())
		n.pods = append(n.pods, p)
		objects = append(objects, p)
		links = append(links, fmt.Sprintf("link add eth%d address %s type veth peer name pod%d", i, macText(benchMAC(i)), i),
			fmt.Sprintf("link set pod%d up", i), fmt.Sprintf("link set eth%d up", i))
		ports = append(ports, "--", "add-port", benchBridge, fmt.Sprint("pod", i), "--", "set", "Interface", fmt.Sprint("pod", i),
			"external_ids:pod-namespace=x", "external_ids:pod-name="+p.Name, `external_ids:attached-mac="`+macText(benchMAC(i))+`"`)
	}
	// Without IPv6, no device says anything of its own accord.
	_, err = n.in.Run(ctx, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	must(b, err)
	ip := n.in.Command(ctx, "ip", "-batch", "-")
	ip.Stdin = strings.NewReader(strings.Join(links, "\n"))
	if out, err := ip.CombinedOutput(); err != nil {
		b.Fatalf("make links: %v: %s", err, out)
	}
	_, err = n.in.Vsctl(ctx, ports...)
	must(b, err)

	n.shim = newShim(b, n.sw, n.world, b.TempDir())
	n.shim.bridge = br
	for _, do := range with {
		do(n.shim)
	}
	begin(b, n.shim)
	known := make(chan int)
	for tick := time.Tick(10 * time.Millisecond); ; {
		n.shim.turns <- func(context.Context) { known <- len(n.shim.loop.ports) }
		if <-known == pods {
			break
		}
		select {
		case <-tick:
		case <-ctx.Done():
			b.Fatal("the shim does not know the ports after a minute")
		}
	}
	n.bring(n.frames(objects...))
	n.sw.take()
	return n
}

func benchAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(1 + i%250)})
}
func benchMAC(i int) [6]byte { return [6]byte{2, 0, 0, 1, byte(i >> 8), byte(i)} }

// peers are Pods of other nodes: n, of the app, from the i-th on.
func peers(app string, i, n int) (out []api.Object) {
	for k := i; k < i+n; k++ {
		p := pod(fmt.Sprint("peer-", k), peerAddr(k).String())
		p.Node, p.Labels = fmt.Sprint("node-", 2+k%50), labels(app)
		out = append(out, p)
	}
	return out
}

func peerAddr(k int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(1 + k>>16), byte(k >> 8), byte(k)})
}

// lets is a policy that lets the Pods of an app in to those of another, by UDP.
func lets(name, target, from string, ports ...uint16) *api.NetworkPolicy {
	p := deny(name, target)
	rule := api.NetworkPolicyRule{Peers: []api.NetworkPolicyPeer{{PodSelector: &api.Selector{MatchLabels: labels(from)}}}}
	for _, port := range ports {
		rule.Ports = append(rule.Ports, api.NetworkPolicyPort{Protocol: api.ProtocolUDP, Port: port})
	}
	p.Ingress = []api.NetworkPolicyRule{rule}
	return p
}

// bring takes a cut from its frames to where it would be acknowledged: decoded,
// compiled, applied and settled. It returns how long that took.
func (n *benchNode) bring(frames [][]byte) time.Duration {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	start := time.Now()
	touched := n.receive(frames)
	problems, err := n.shim.Apply(ctx, n.replica, touched)
	took := time.Since(start)
	if err != nil || len(problems) > 0 {
		n.t.Fatalf("apply: %v, problems %v", err, problems)
	}
	return took
}

// flowCount is how many flows the bridge has, beside those that count: these
// outlive their rules.
func (n *benchNode) flowCount() int {
	n.t.Helper()
	return deciding(slices.Collect(maps.Values(n.flows())))
}

// flows are those that the bridge has.
func (n *benchNode) flows() map[openflow.FlowKey]openflow.Flow {
	n.t.Helper()
	state, err := n.sw.Read(context.Background())
	must(n.t, err)
	maps.Copy(state.Flows, state.Foreign)
	return state.Flows
}

// deciding is how many of the flows do more than count.
func deciding(flows []openflow.Flow) (sum int) {
	for _, f := range flows {
		if _, counts := pipeline.CountOf(f); !counts {
			sum++
		}
	}
	return sum
}

// quantile of values, which it sorts.
func quantile[T cmp.Ordered](q float64, values []T) T {
	slices.Sort(values)
	return values[min(len(values)-1, int(q*float64(len(values))))]
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// fewest is how many pairs a ratio is the median of, at the least.
const fewest = 5

// BenchmarkFlowInstall installs policies whose flows are about so many: a
// thousand for each, which is nearly all peers. One operation is a cut, from
// its frames to where it would be acknowledged, on a node whose Pods are there
// already. In turns with it, ovs-ofctl --bundle is given the same flows.
func BenchmarkFlowInstall(b *testing.B) {
	for _, flows := range []int{1000, 10000, 100000} {
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			const pods = 10
			n := newBenchNode(b, pods)
			policies := n.thousands(flows, pods)
			base := n.flowCount()
			var ours, theirs []time.Duration
			var ratios []float64
			pair := func() {
				b.StopTimer()
				defer b.StartTimer()
				frames := n.frames(policies...)
				there := n.flows()
				b.StartTimer()
				ours = append(ours, n.bring(frames))
				b.StopTimer()
				changes := slices.DeleteFunc(n.sw.take(), func(c bridge.Change) bool { return len(c.Upsert) == 0 }) // Those take out flows that have counted.
				if len(changes) != 1 {
					b.Fatalf("%d changes", len(changes))
				}
				fresh := slices.DeleteFunc(changes[0].Upsert, func(f openflow.Flow) bool { // Of those that are replaced there are no more then.
					_, was := there[f.Key()]
					return was
				})
				if len(fresh) < flows || len(fresh) > flows*11/10 || n.flowCount() != base+deciding(fresh) {
					b.Fatalf("%d flows are new, and %d on the bridge, of which %d were there before; want %d", len(fresh), n.flowCount(), base, flows)
				}
				n.bring(n.without(policies...))
				n.sw.take()
				theirs = append(theirs, n.ofctl(fresh))
				ratios = append(ratios, ours[len(ours)-1].Seconds()/theirs[len(theirs)-1].Seconds())
				if n.flowCount() != base {
					b.Fatalf("%d flows are left, want %d", n.flowCount(), base)
				}
			}
			for b.Loop() {
				pair()
			}
			for len(ours) < fewest {
				pair()
			}
			b.StopTimer()
			b.ReportMetric(float64(quantile(0.5, ours).Nanoseconds()), "ns/op")
			b.ReportMetric(quantile(0.5, ours).Seconds(), "s/op")
			b.ReportMetric(quantile(0.5, theirs).Seconds(), "s/ovs-ofctl")
			b.ReportMetric(quantile(0.5, ratios), "ratio")
		})
	}
}

// thousands are policies whose flows are about so many, a thousand each; their
// targets are the first of the node's Pods, and the policy service has their
// peers already.
func (n *benchNode) thousands(flows, targets int) (policies []api.Object) {
	const each = 1000
	for i := range flows / each {
		app := fmt.Sprint("app-", i)
		for _, o := range peers(app, i*each, each) {
			n.engine.Apply(api.Event{Ref: o.Ref(), Object: o})
		}
		policies = append(policies, lets(fmt.Sprint("policy-", i), fmt.Sprint("pod-", i%targets), app, 80))
	}
	return policies
}

// ofctl has ovs-ofctl install flows in a bundle, says how long that took, and
// takes them out again.
func (n *benchNode) ofctl(flows []openflow.Flow) time.Duration {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var text strings.Builder
	remove := bridge.Change{}
	for _, f := range flows {
		text.WriteString(f.String() + "\n")
		remove.Delete = append(remove.Delete, f.Key())
	}
	file := filepath.Join(n.in.Dir, "flows")
	must(n.t, os.WriteFile(file, []byte(text.String()), 0o600))
	before := n.flowCount()
	cmd := exec.CommandContext(ctx, "ovs-ofctl", "-O", "OpenFlow15", "--bundle", "add-flows", "unix:"+filepath.Join(n.in.Dir, benchBridge+".mgmt"), file)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	if err != nil {
		n.t.Fatalf("ovs-ofctl: %v: %s", err, out)
	}
	if got, want := n.flowCount()-before, deciding(flows); got != want {
		n.t.Fatalf("ovs-ofctl installed %d flows, want %d", got, want)
	}
	must(n.t, n.sw.Bridge.Apply(ctx, remove))
	return took
}

// BenchmarkMemberChange is about a Pod that becomes a peer of rules, and one
// that ceases to be, on a node with 10,000 other flows. Its group is named at
// three priorities: by five Kubernetes policies and two of a tier. Times are
// from a cut's frames to where it would be acknowledged.
func BenchmarkMemberChange(b *testing.B) {
	const pods, groups, each, priorities = 10, 10, 1000, 3
	const touches = priorities + 1 // And the flow that notes the revision.
	n := newBenchNode(b, pods)
	var objects []api.Object
	for i := range groups {
		objects = append(objects, peers(fmt.Sprint("app-", i), i*each, each)...)
		objects = append(objects, lets(fmt.Sprint("policy-", i), fmt.Sprint("pod-", i), fmt.Sprint("app-", i), 80))
	}
	for i := range 5 {
		objects = append(objects, lets(fmt.Sprint("group-", i), fmt.Sprint("pod-", i), "group", uint16(81+i)))
	}
	for i := range 2 {
		objects = append(objects, tiered(fmt.Sprint("tiered-", i), float64(i+1), fmt.Sprint("pod-", i), "group", 90))
	}
	member := peers("group", groups*each, 100)
	n.bring(n.frames(append(objects, member...)...))
	if got := n.flowCount(); got < groups*each {
		b.Fatalf("%d flows on the bridge, want %d and more", got, groups*each)
	}
	n.sw.take()
	one := peers("group", groups*each+100, 1)[0]
	in, had := false, n.flowCount()
	var took []time.Duration
	touched := 0
	for b.Loop() {
		b.StopTimer()
		frames := [][]byte(nil)
		if in {
			frames = n.without(one)
		} else {
			frames = n.frames(one)
		}
		in = !in
		b.StartTimer()
		took = append(took, n.bring(frames))
		b.StopTimer()
		for _, c := range n.sw.take() {
			if got := len(c.Upsert) + len(c.Delete); got != touches {
				b.Fatalf("a member touched %d flows, want %d", got, touches)
			}
			touched += len(c.Upsert) + len(c.Delete)
		}
		b.StartTimer()
	}
	if touched != len(took)*touches {
		b.Fatalf("%d changes touched %d flows, want %d each", len(took), touched, touches)
	}
	if in {
		had += priorities
	}
	if got := n.flowCount(); got != had {
		b.Fatalf("%d flows on the bridge, want %d", got, had)
	}
	b.ReportMetric(ms(quantile(0.5, took)), "p50-ms")
	b.ReportMetric(ms(quantile(0.99, took)), "p99-ms")
	b.ReportMetric(float64(touched)/float64(len(took)), "flows/op")
}

// tiered is a policy of the application tier that lets the Pods of an app in to
// those of another, by UDP.
func tiered(name string, priority float64, target, from string, port uint16) *api.OrderedPolicy {
	return &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: name, Tier: "application", Priority: priority,
		AppliedTo: []api.Target{{PodSelector: &api.Selector{MatchLabels: labels(target)}}},
		Ingress: []api.OrderedRule{{Name: "in", Action: api.ActionAllow, Traffic: []api.Traffic{{Protocol: api.ProtocolUDP, Port: port}},
			Peers: []api.Peer{{PodSelector: &api.Selector{MatchLabels: labels(from)}}}}}}
}
