package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	"github.com/weirnet/weir/e2e/harness"
)

// World is a cluster under faults.
type World struct {
	*harness.Cluster
	begin time.Time
	log   func(format string, args ...any)
	disk  string // Where the event log lies: small enough to be filled.
	claims
	nudged  chan struct{}   // Has a token when policies are to change soon.
	settle  chan chan error // Who is sent is told when a change is in force.
	changes int             // How often policies have changed. Of turn alone, while that runs.

	mu        sync.Mutex      // Guards what follows, and the starting and stopping of processes.
	down      map[string]bool // Processes that a fault has stopped.
	ended     []string        // Those that ended without one.
	rotations int             // How often files were set aside.
	faults    []invariant.Fault
}

var nodeNames = []string{"node-1", "node-2"}

// Namespaces: what policies of loud deny and allow is on record, of quiet not.
const (
	loud  = "loud"
	quiet = "quiet"
)

// A Pod of each role is on each node.
var roles = []struct{ namespace, name string }{
	{loud, "client"},  // Sends and connects.
	{loud, "server"},  // Lets clients in.
	{loud, "shut"},    // Isolated: nobody gets in.
	{loud, "guarded"}, // A policy of a tier drops UDP.
	{loud, "mute"},    // Isolated: nothing gets out.
	{loud, "turning"}, // Now open, now shut.
	{quiet, "hushed"}, // As shut.
}

func podName(role string, node int) string {
	for _, r := range roles {
		if r.name == role {
			return fmt.Sprintf("%s/%s-%d", r.namespace, role, node+1)
		}
	}
	return ""
}

func podIPs(role, node int) []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.9.%d.%d", node+1, role+1)), netip.MustParseAddr(fmt.Sprintf("fd09:%d::%d", node+1, role+1))}
}

// startWorld builds the cluster, and waits until its policies are in force.
func startWorld(ctx context.Context, bin string, log func(string, ...any)) (w *World, err error) {
	disk, err := os.MkdirTemp("", "weir-chaos-")
	if err != nil {
		return nil, err
	}
	if err := mountTmpfs(disk); err != nil {
		return nil, errors.Join(err, os.Remove(disk))
	}
	w = &World{log: log, disk: disk, down: make(map[string]bool), begin: time.Now(),
		claims: claims{of: make(map[string]*sync.Mutex)}, nudged: make(chan struct{}, 1), settle: make(chan chan error)}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	cfg := harness.Config{Bin: bin, Log: log, Replicas: 2,
		AuditdArgs: []string{"--dir", filepath.Join(disk, "log"), "--min-free", "8Mi", "--rotate-size", "256Ki", "--rotate-keep", "0", "--np-log-isolation", "named"},
		ShimArgs:   []string{"--stats-interval", "1s"}}
	for i, name := range nodeNames {
		cfg.Nodes = append(cfg.Nodes, harness.NodeConfig{Name: name, IPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))}})
	}
	if w.Cluster, err = harness.Start(ctx, cfg); err != nil {
		return w, err
	}
	var pods []harness.PodConfig
	for role, r := range roles {
		for node, name := range nodeNames {
			_, pod, _ := strings.Cut(podName(r.name, node), "/")
			pods = append(pods, harness.PodConfig{Namespace: r.namespace, Name: pod, Node: name, IPs: podIPs(role, node)})
		}
	}
	if err := w.SetPods(ctx, pods); err != nil {
		return w, err
	}
	if err := w.PutManifests(w.manifests()); err != nil {
		return w, err
	}
	if err := w.inForce(ctx); err != nil {
		return w, err
	}
	for _, n := range w.Nodes {
		if err := n.RoomySwitch(); err != nil {
			return w, err
		}
	}
	return w, nil
}

// stop ends the cluster and removes all of it.
func (w *World) stop() error {
	var errs []error
	if w.Cluster != nil {
		errs = append(errs, w.Cluster.Stop())
	}
	return errors.Join(append(errs, unmount(w.disk), os.RemoveAll(w.disk))...)
}

// objects are the Namespaces, Nodes and Pods.
func objects() string {
	var b strings.Builder
	for ns, logged := range map[string]bool{loud: true, quiet: false} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, annotations: {networkpolicy.antrea.io/enable-logging: '%t'}}\n", ns, logged)
	}
	for i, name := range nodeNames {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s, annotations: {weir.dev/gateway-addresses: '169.254.1.1'}}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.%d}, {type: InternalIP, address: '2001:db8::%d'}]}\n", name, i+1, i+1)
	}
	for role, r := range roles {
		for node, name := range nodeNames {
			_, pod, _ := strings.Cut(podName(r.name, node), "/")
			ips := podIPs(role, node)
			fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: %s, name: %s, labels: {role: %s}}\nspec: {nodeName: %s, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}, {ip: '%s'}]}\n",
				r.namespace, pod, r.name, name, ips[0], ips[1])
		}
	}
	return b.String()
}

// Policies that log, each in a table of its own, by which its flows are known.
const (
	policyOpen    = "open"    // IngressRule: allows.
	policyShut    = "shut"    // IngressDefaultRule.
	policyGuarded = "guarded" // AntreaPolicyIngressRule: drops.
	policyRefuse  = "refuse"  // AntreaPolicyEgressRule: rejects.
	policyMute    = "mute"    // EgressDefaultRule.
)

// refusedPort is where the policy refuse lets nobody connect to.
const refusedPort = 90

// policies are those that stay.
func policies() string {
	k8s := func(namespace, name, spec string) string {
		return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %s, name: %s}\nspec: %s\n", namespace, name, spec)
	}
	ordered := func(name, spec string) string {
		return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec: %s\n", name, spec)
	}
	return k8s(loud, policyOpen, "{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 80}, {port: 81}, {port: 7000, endPort: 7999, protocol: UDP}]}]}") +
		k8s(loud, policyShut, "{podSelector: {matchLabels: {role: shut}}, ingress: []}") +
		k8s(loud, policyMute, "{podSelector: {matchLabels: {role: mute}}, policyTypes: [Egress], egress: []}") +
		k8s(quiet, "hushed", "{podSelector: {matchLabels: {role: hushed}}, ingress: []}") +
		ordered(policyGuarded, "{tier: securityops, priority: 5, appliedTo: [{podSelector: {matchLabels: {role: guarded}}}], ingress: [{name: no-udp, action: Drop, enableLogging: true, ports: [{protocol: UDP}]}]}") +
		ordered(policyRefuse, fmt.Sprintf("{tier: securityops, priority: 6, appliedTo: [{podSelector: {matchLabels: {role: client}}}], egress: [{name: no-admin, action: Reject, enableLogging: true, ports: [{protocol: TCP, port: %d}]}]}", refusedPort))
}

// turning is the policy that comes and goes: it shuts the Pods that turn.
func turning(shut bool) string {
	if !shut {
		return ""
	}
	return "---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: turning}\nspec: {tier: application, priority: 5, appliedTo: [{podSelector: {matchLabels: {role: turning}}}], ingress: [{name: shut, action: Drop, ports: [{protocol: UDP}]}]}\n"
}

// otherPolicies are some of which none decides on any of the traffic.
func otherPolicies(change int) string {
	var b strings.Builder
	for i := range change % 4 {
		fmt.Fprintf(&b, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %s, name: other-%d}\nspec: {podSelector: {matchLabels: {role: server}}, ingress: [{ports: [{port: %d}]}]}\n", loud, change+i, 5000+change+i)
	}
	return b.String()
}

// manifests are all objects as they are to be by now.
func (w *World) manifests() []byte {
	marker := fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %s, name: %s}\nspec: {podSelector: {matchLabels: {role: none}}}\n", quiet, w.marker())
	return []byte(objects() + policies() + turning(w.shut()) + otherPolicies(w.changes) + marker)
}

// marker is the name of a policy that is there since the last change.
func (w *World) marker() string { return fmt.Sprintf("change-%d", w.changes) }

// shut says whether the Pods that turn are shut by now.
func (w *World) shut() bool { return w.changes%2 == 1 }

// change turns the policies that change.
func (w *World) change() error {
	w.changes++
	return w.PutManifests(w.manifests())
}

// settleLimit is how long all may take to be in force once nothing is wrong any more.
const settleLimit = 30 * time.Second

// inForce waits until the last change is in force everywhere.
func (w *World) inForce(ctx context.Context) error { return w.InForce(ctx, settleLimit, w.marker()) }

// Stop stops a process by a signal that ends it, until Start.
func (w *World) Stop(p *harness.Process, end func(*harness.Process)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[p.Name] = true
	end(p)
}

// Start starts a process that Stop has stopped.
func (w *World) Start(p *harness.Process) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.down, p.Name)
	return p.Start()
}

// Expect says that a process will end by itself.
func (w *World) Expect(p *harness.Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[p.Name] = true
}

// watch notes processes that end without a fault, and starts them again.
func (w *World) watch(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.mu.Lock()
		for name, p := range w.Processes() {
			if w.down[name] || p.Running() {
				continue
			}
			w.ended = append(w.ended, fmt.Sprintf("%s ended at %s:\n%s", name, time.Since(w.begin).Round(time.Millisecond), p.Tail()))
			if err := p.Start(); err != nil {
				w.ended = append(w.ended, err.Error())
				w.down[name] = true
			}
		}
		w.mu.Unlock()
	}
}

// rules are the policies that log, by node.
func rules() []invariant.Rule {
	var out []invariant.Rule
	for _, node := range nodeNames {
		for _, policy := range []string{policyOpen, policyShut, policyGuarded, policyRefuse, policyMute} {
			out = append(out, invariant.Rule{Node: node, Policy: policy, Journaled: slices.Contains([]string{policyShut, policyGuarded, policyMute}, policy)})
		}
	}
	return out
}

// address is that of a Pod of a role on a node, of a family.
func (w *World) address(role string, node int, v6 bool) (*harness.Host, netip.Addr) {
	h := w.Pod(podName(role, node))
	return h, h.Addr(v6)
}
