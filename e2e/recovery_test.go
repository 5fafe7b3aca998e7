package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// recoveryPods are, on node-1: client and web, both isolated, and free and open, which
// are not; stranger, of whom web knows nothing; on node-2: far and remote, both isolated.
func recoveryPods() (pods []harness.PodConfig, objects string) {
	var b strings.Builder
	b.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n")
	for i := range 2 {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-%d}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.%d}, {type: InternalIP, address: '2001:db8::%d'}]}\n", i+1, i+1, i+1)
	}
	for i, at := range []string{"client 1", "web 1", "free 1", "open 1", "stranger 1", "far 2", "remote 2"} {
		name, node, _ := strings.Cut(at, " ")
		v4, v6 := fmt.Sprintf("10.9.%s.%d", node, i+1), fmt.Sprintf("fd09:%s::%d", node, i+1)
		pods = append(pods, harness.PodConfig{Namespace: "default", Name: name, Node: "node-" + node, IPs: []netip.Addr{ip(v4), ip(v6)}})
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec: {nodeName: node-%s, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}, {ip: '%s'}]}\n", name, name, node, v4, v6)
	}
	return pods, b.String()
}

const callers = "podSelector: {matchExpressions: [{key: app, operator: In, values: [client, free, far]}]}"

var recoveryPolicies = policy("servers", "{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, remote]}]}, policyTypes: [Ingress, Egress], ingress: [{from: [{"+callers+"}], ports: [{port: 8000, endPort: 8100}]}]}") +
	policy("callers", "{podSelector: {matchExpressions: [{key: app, operator: In, values: [client, far]}]}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 8000, endPort: 8100}]}]}")

// recoveryCluster is two nodes with these Pods under these policies, and a connection of
// stranger to web that was there before and is denied.
func recoveryCluster(t *testing.T, shimArgs ...string) (c *harness.Cluster, denied *harness.Stream) {
	t.Helper()
	c = startCluster(t, harness.Config{ShimArgs: shimArgs, Nodes: []harness.NodeConfig{
		{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1"), ip("2001:db8::1")}}, {Name: "node-2", IPs: []netip.Addr{ip("192.0.2.2"), ip("2001:db8::2")}}}})
	pods, objects := recoveryPods()
	must(t, c.SetPods(t.Context(), pods))
	set(t, c, objects)
	denied = push(t, c, "stranger", "web", false, 8050)
	set(t, c, objects, recoveryPolicies)
	_, err := c.Nodes["node-1"].OVS.Appctl(t.Context(), "dpctl/flush-conntrack")
	must(t, err)
	stalls(t, "denied by a policy", denied)
	return c, denied
}

// push has a server say something to a client again and again, which says nothing.
func push(t *testing.T, c *harness.Cluster, from, to string, six bool, port uint16) *harness.Stream {
	t.Helper()
	client, server := c.Pod("default/"+from), c.Pod("default/"+to)
	s, err := harness.StartPush(t.Context(), client, server, server.Addr(six), port)
	if err != nil {
		t.Fatalf("%s to %s: %v", from, to, err)
	}
	t.Cleanup(s.Close)
	return s
}

// barrage is what a Pod sends that is denied, and how much of it arrived.
type barrage struct {
	to    *harness.Host
	sent  atomic.Int64
	stop  context.CancelFunc
	wait  sync.WaitGroup
	heard *regexp.Regexp
}

// startBarrage sends SYNs and datagrams from a Pod to another, of both families, until it is
// stopped, and has the other's firewall count what is from it.
func startBarrage(t *testing.T, from, to *harness.Host, port uint16) *barrage {
	t.Helper()
	f := &barrage{to: to, heard: regexp.MustCompile(`counter packets (\d+)`)}
	must(t, to.NS.Command(t.Context(), "nft", fmt.Sprintf("table inet heard { chain in { type filter hook prerouting priority -300; ip saddr %s counter; ip6 saddr %s counter; }; }", from.Addr(false), from.Addr(true))).Run())
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	t.Cleanup(f.end)
	for _, six := range []bool{false, true} {
		at := netip.AddrPortFrom(to.Addr(six), port).String()
		for _, network := range []string{"tcp", "udp"} {
			f.wait.Go(func() {
				for ctx.Err() == nil {
					_ = from.NS.Do(func() error {
						d := net.Dialer{Timeout: 10 * time.Millisecond}
						if conn, err := d.DialContext(ctx, network, at); err == nil {
							_, _ = conn.Write([]byte("x"))
							conn.Close()
						}
						return nil
					})
					f.sent.Add(1)
					if network == "udp" {
						time.Sleep(time.Millisecond) // The pace.
					}
				}
			})
		}
	}
	return f
}

func (f *barrage) end() {
	f.stop()
	f.wait.Wait()
}

// silent fails where anything arrived.
func (f *barrage) silent(t *testing.T) {
	t.Helper()
	f.end()
	if n := f.arrived(t); n > 0 || f.sent.Load() < 100 {
		t.Errorf("of %d denied packets %d arrived", f.sent.Load(), n)
	}
}

// arrived is how many packets did so far.
func (f *barrage) arrived(t *testing.T) (sum int) {
	t.Helper()
	out, err := f.to.NS.Command(context.Background(), "nft", "list", "table", "inet", "heard").Output()
	must(t, err)
	counts := f.heard.FindAllSubmatch(out, -1)
	if len(counts) != 2 {
		t.Fatalf("%d counters: %s", len(counts), out)
	}
	for _, n := range counts {
		count, err := strconv.Atoi(string(n[1]))
		must(t, err)
		sum += count
	}
	return sum
}

// metric is a shim's, by its name and labels.
func metric(t *testing.T, n *harness.Node, name string) float64 {
	t.Helper()
	text, err := n.Metrics()
	must(t, err)
	for line := range strings.SplitSeq(text, "\n") {
		if value, is := strings.CutPrefix(line, name+" "); is {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			must(t, err)
			return v
		}
	}
	return 0
}

// Allowed connections outlive the switch, also those whose server alone talks; none is
// begun that is denied, and none lives again.
func TestConnectionsOutliveTheSwitch(t *testing.T) {
	t.Parallel()
	c, denied := recoveryCluster(t, "--recovery-window=12s")
	node := c.Nodes["node-1"]
	var streams []*harness.Stream
	var names []string
	port := uint16(8000)
	for _, pair := range []string{"client web", "client remote", "client open", "free web", "free remote", "far web", "far open"} {
		from, to, _ := strings.Cut(pair, " ")
		for _, six := range []bool{false, true} {
			port++
			streams, names = append(streams, push(t, c, from, to, six, port)), append(names, fmt.Sprintf("%s, IPv6 %v", pair, six))
		}
	}
	barred := startBarrage(t, c.Pod("default/stranger"), c.Pod("default/web"), 8001)
	node.OVS.KillSwitch()
	start := time.Now()
	must(t, node.OVS.StartSwitch(t.Context()))
	back := time.Now()
	for i, s := range streams {
		if err := s.Lives(t.Context(), 10*time.Second); err != nil {
			t.Errorf("%s: %v", names[i], err)
		}
	}
	t.Logf("the switch was back after %s, all connections %s later", back.Sub(start), time.Since(back))
	stalls(t, "denied before", denied)
	if n := metric(t, node, `weir_shim_recovery_packets_total{outcome="recovered"}`); n < float64(len(streams)-4) { // A client may have been the first.
		t.Errorf("%v connections were recovered", n)
	}
	const window = "table=5,cookie=0x5704110000000000/0xffffff0000000000"
	if len(flows(t, node, window)) == 0 {
		t.Error("the recovery is over already")
	}
	node.Shim.Kill()
	must(t, node.Shim.Start())
	eventually(t, func() error {
		if !strings.Contains(node.Shim.Tail(), "judged as the first of new ones from now on") {
			return fmt.Errorf("the next shim ends no recovery")
		}
		return nil
	})
	if f := flows(t, node, window); len(f) > 0 {
		t.Errorf("after the recovery: %v", f)
	}
	lives(t, "after the recovery", streams...)
	barred.silent(t)
	// What is forgotten without a restart of the switch is judged as any: the server
	// may not talk. The client may, so that what it acknowledges just then goes on.
	eventually(t, func() error {
		if _, err := node.OVS.Appctl(t.Context(), "dpctl/flush-conntrack"); err != nil {
			return err
		}
		return streams[0].Stalls(t.Context(), 3*time.Second)
	})
}
