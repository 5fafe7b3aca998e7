package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// cniCluster is two nodes whose shims make the Pod network, dual stack; the
// prefixes of node N are 10.77.N.0/24 and fd77:N::/64.
func cniCluster(t *testing.T, mode string) *harness.Cluster {
	t.Helper()
	c := startCluster(t, harness.Config{PodNetwork: mode, Nodes: []harness.NodeConfig{{Name: "node-1"}, {Name: "node-2"}}})
	must(t, c.WriteManifests(t.Context(), []byte(cniNodes(c))))
	for _, n := range c.Nodes {
		must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
			if _, err := n.CNIConfig(); err != nil {
				return fmt.Errorf("the runtime is not told of the network: %w\n%s", err, n.Shim.Tail())
			}
			return nil
		}))
	}
	return c
}

func cniNodes(c *harness.Cluster) string {
	var b strings.Builder
	b.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n")
	for i, name := range []string{"node-1", "node-2"} {
		via := c.Nodes[name].Vias()
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [10.77.%d.0/24, 'fd77:%d::/64']}\n"+
			"status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: '%s'}]}\n", name, i+1, i+1, via[0], via[1])
	}
	return b.String()
}

func cniPod(name, uid, node string, ips ...string) string {
	var list []string
	for _, ip := range ips {
		list = append(list, fmt.Sprintf("{ip: '%s'}", ip))
	}
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, uid: %s, labels: {app: %s}}\nspec: {nodeName: %s, containers: [{name: c, image: c}]}\nstatus: {podIPs: [%s]}\n",
		name, uid, name, node, strings.Join(list, ", "))
}

// attachedPod is a Pod whose network the plugin makes.
type attachedPod struct {
	*harness.Host
	t    *testing.T
	node *harness.Node
	call harness.CNICall
	port string // Of the result.
}

func newAttached(t *testing.T, c *harness.Cluster, node, name, uid string) *attachedPod {
	t.Helper()
	h, err := c.Sandbox(t.Context())
	must(t, err)
	n := c.Nodes[node]
	conf, err := n.CNIConfig()
	must(t, err)
	conf["timeout"] = "15s"
	return &attachedPod{Host: h, t: t, node: n, call: harness.CNICall{ContainerID: "c-" + name, NetNS: "/run/netns/" + h.NS.Name,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + name + ";K8S_POD_UID=" + uid + ";K8S_POD_INFRA_CONTAINER_ID=c", Config: conf}}
}

func (p *attachedPod) do(command string) ([]byte, error) {
	call := p.call
	call.Command = command
	return p.node.CNI(context.Background(), call)
}

// add is an ADD that must succeed.
func (p *attachedPod) add() *current.Result {
	p.t.Helper()
	out, err := p.do("ADD")
	if err != nil {
		p.t.Fatalf("ADD: %v\n%s", err, p.node.Shim.Tail())
	}
	return p.take(out)
}

func (p *attachedPod) take(out []byte) *current.Result {
	p.t.Helper()
	r := &current.Result{}
	must(p.t, json.Unmarshal(out, r))
	p.IPs = nil
	for _, c := range r.IPs {
		a, _ := netip.AddrFromSlice(c.Address.IP)
		p.IPs = append(p.IPs, a.Unmap())
	}
	p.port = r.Interfaces[0].Name
	var prev map[string]any
	must(p.t, json.Unmarshal(out, &prev))
	p.call.Config["prevResult"] = prev
	return r
}

// fails is a call that must fail with a code and words.
func (p *attachedPod) fails(command string, code uint, words ...string) {
	p.t.Helper()
	_, err := p.do(command)
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code {
		p.t.Fatalf("%s: %v, want code %d", command, err, code)
	}
	for _, w := range words {
		if !strings.Contains(e.Msg, w) {
			p.t.Errorf("%s: %q does not say %q", command, e.Msg, w)
		}
	}
}

// ports are the ports of the node's bridge.
func ports(t *testing.T, n *harness.Node) string {
	t.Helper()
	out, err := n.OVS.Vsctl(t.Context(), "list-ports", harness.Bridge)
	must(t, err)
	return string(out)
}

func leases(t *testing.T, p *attachedPod) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.call.Config["ipam"].(map[string]any)["dataDir"].(string), "weir"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			out = append(out, e.Name())
		}
	}
	return out
}

// ADD returns once the Pod's port is open, and not before; it fails with the
// reason, and leaves nothing, where the port does not open in time.
func TestCNI(t *testing.T) {
	t.Parallel()
	c := cniCluster(t, "vxlan")
	web := newAttached(t, c, "node-1", "web", "u-web")
	if _, err := web.do("STATUS"); err != nil {
		t.Fatalf("STATUS: %v", err)
	}

	web.call.Config["timeout"] = "700ms"
	web.fails("ADD", types.ErrTryAgainLater, "Pod default/web", "700ms", "the policy service does not know Pod default/web on this node yet")
	if got := ports(t, web.node); got != "" {
		t.Errorf("ports after a failed ADD: %s", got)
	}
	if got := leases(t, web); len(got) > 0 {
		t.Errorf("leases after a failed ADD: %s", got)
	}
	if err := web.NS.IP(t.Context(), "link show eth0"); err == nil {
		t.Error("the link is left after a failed ADD")
	}

	// The addresses come next in their range.
	web.call.Config["timeout"] = "20s"
	type answer struct {
		out []byte
		err error
	}
	added := make(chan answer, 1)
	go func() { out, err := web.do("ADD"); added <- answer{out, err} }()
	must(t, harness.Eventually(t.Context(), 10*time.Second, func() error {
		if !strings.Contains(ports(t, web.node), "weir") {
			return errors.New("no port yet")
		}
		return nil
	}))
	var given []string
	must(t, harness.Eventually(t.Context(), 10*time.Second, func() error {
		if given = leases(t, web); len(given) != 2 {
			return fmt.Errorf("leases: %v", given)
		}
		return nil
	}))
	select {
	case a := <-added:
		t.Fatalf("ADD answered before the Pod was known: %s, %v", a.out, a.err)
	case <-time.After(300 * time.Millisecond): // As long as it takes an ADD to go wrong.
	}
	objects := cniNodes(c) + cniPod("web", "u-web", "node-1", given...)
	must(t, c.WriteManifests(t.Context(), []byte(objects)))
	a := <-added
	if a.err != nil {
		t.Fatalf("ADD: %v\n%s", a.err, web.node.Shim.Tail())
	}
	r := web.take(a.out)
	if len(r.IPs) != 2 || len(r.Routes) != 2 || r.Interfaces[1].Name != "eth0" || r.Interfaces[1].Mtu != 1450 {
		t.Errorf("result: %s", a.out)
	}
	must(t, web.Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 80}))

	t.Run("another Pod of that name stays closed", func(t *testing.T) {
		other := newAttached(t, c, "node-1", "web", "u-other")
		other.call.ContainerID, other.call.Config["timeout"] = "c-other", "700ms"
		other.fails("ADD", types.ErrTryAgainLater, "UID u-other", "u-web")
	})
	t.Run("a second ADD is refused and disturbs nothing", func(t *testing.T) {
		if _, err := web.do("ADD"); err == nil {
			t.Error("a second ADD succeeded")
		}
		if _, err := web.do("CHECK"); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	})

	client := newAttached(t, c, "node-2", "client", "u-client")
	objects += cniPod("client", "u-client", "node-2", "10.77.2.2", "fd77:2::2")
	must(t, c.WriteManifests(t.Context(), []byte(objects)))
	client.add()
	crossNodes(t, client, web)
	t.Run("policies cover it", func(t *testing.T) {
		must(t, c.WriteManifests(t.Context(), []byte(objects+policy("deny", "{podSelector: {matchLabels: {app: web}}, ingress: []}"))))
		must(t, c.Applied(t.Context(), "node-1"))
		outcomes(t, []harness.Probe{tcp(client.Host, web.Addr(false).String()), tcp(client.Host, web.Addr(true).String())}, harness.Drop, harness.Drop)
		must(t, c.WriteManifests(t.Context(), []byte(objects)))
		must(t, c.Applied(t.Context(), "node-1"))
	})
	t.Run("what leaves the cluster is masqueraded", func(t *testing.T) { masqueraded(t, c, client) })
	t.Run("CHECK finds what is broken", func(t *testing.T) { checks(t, web) })
	t.Run("GC", func(t *testing.T) { collected(t, c, objects) })
	t.Run("DEL", func(t *testing.T) { deleted(t, client) })
	t.Run("STATUS and ADD without a shim", func(t *testing.T) {
		web.node.Shim.Terminate()
		web.fails("STATUS", types.ErrPluginNotAvailable, "weir-shim")
		late := newAttached(t, c, "node-1", "late", "u-late")
		before := leases(t, late)
		late.fails("ADD", types.ErrTryAgainLater, "Pod default/late", "weir-shim does not answer")
		if got := leases(t, late); len(got) != len(before) {
			t.Errorf("leases: %v, before %v", got, before)
		}
	})
}

// crossNodes is what Pods of two nodes, and the hosts, are to each other.
func crossNodes(t *testing.T, client, web *attachedPod) {
	t.Helper()
	var probes []harness.Probe
	var want []string
	host := &harness.Host{NS: client.node.NS, IPs: client.node.Vias()}
	for _, v6 := range []bool{false, true} {
		probes = append(probes, tcp(client.Host, web.Addr(v6).String()), tcp(host, web.Addr(v6).String()))
		want = append(want, harness.Allow, harness.Allow)
	}
	outcomes(t, probes, want...)
	var bulk []byte
	must(t, web.NS.Do(func() error {
		l, err := net.Listen("tcp", netip.AddrPortFrom(web.Addr(false), 99).String())
		if err != nil {
			return err
		}
		go func() {
			defer l.Close()
			if conn, err := l.Accept(); err == nil {
				conn.Write(make([]byte, 1<<20)) // Segments as large as the link takes.
				conn.Close()
			}
		}()
		return nil
	}))
	must(t, client.NS.Do(func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(web.Addr(false), 99).String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buf)
			bulk = append(bulk, buf[:n]...)
			if err != nil {
				break
			}
		}
		return nil
	}))
	if len(bulk) != 1<<20 {
		t.Errorf("%d bytes of %d came through", len(bulk), 1<<20)
	}
}

// sourceOf is the address by which a Pod is seen from an address.
func sourceOf(t *testing.T, c *harness.Cluster, from *attachedPod, to *harness.Host, at netip.Addr) netip.Addr {
	t.Helper()
	seen := make(chan netip.AddrPort, 1)
	target := netip.AddrPortFrom(at, 98).String()
	must(t, to.NS.Do(func() error {
		l, err := net.Listen("tcp", target)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			if conn, err := l.Accept(); err == nil {
				seen <- conn.RemoteAddr().(*net.TCPAddr).AddrPort()
				conn.Close()
			}
		}()
		return nil
	}))
	must(t, from.NS.Do(func() error {
		conn, err := net.DialTimeout("tcp", target, 5*time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	}))
	return (<-seen).Addr().Unmap()
}

func masqueraded(t *testing.T, c *harness.Cluster, p *attachedPod) {
	other := c.Nodes["node-1"]
	for i, outside := range []string{"203.0.113.80", "2001:db8:77::80"} {
		host, err := c.Outside(t.Context(), ip(outside))
		must(t, err)
		if got, want := sourceOf(t, c, p, host, ip(outside)), p.node.Vias()[i]; got != want {
			t.Errorf("seen from outside as %s, want %s", got, want)
		}
		if got, want := sourceOf(t, c, p, &harness.Host{NS: other.NS}, other.Vias()[i]), p.Addr(i == 1); got != want {
			t.Errorf("seen from a node as %s, want %s", got, want)
		}
	}
}

func checks(t *testing.T, p *attachedPod) {
	ns, node := p.NS, p.node.NS
	vsctl := func(args ...string) func() error {
		return func() error { _, err := p.node.OVS.Vsctl(t.Context(), args...); return err }
	}
	lines := func(ns *harness.NetNS, lines ...string) func() error {
		return func() error { return ns.IP(t.Context(), lines...) }
	}
	v4, v6 := p.Addr(false).String(), p.Addr(true).String()
	for _, tc := range []struct {
		name          string
		damage, amend func() error
		words         string
	}{
		{"an address", lines(ns, "addr del "+v4+"/32 dev eth0"), lines(ns, "addr add "+v4+"/32 dev eth0", "route replace 10.77.1.1 dev eth0 scope link", "route replace default via 10.77.1.1 dev eth0"), "has lost the address " + v4},
		{"an IPv6 address", lines(ns, "addr del "+v6+"/128 dev eth0"), lines(ns, "addr add "+v6+"/128 dev eth0 nodad"), "has lost the address " + v6},
		{"the default route", lines(ns, "route del default"), lines(ns, "route add default via 10.77.1.1 dev eth0"), "route 0.0.0.0/0 of the Pod is gone"},
		{"the MTU", lines(ns, "link set eth0 mtu 1400"), lines(ns, "link set eth0 mtu 1450"), "an MTU of 1400"},
		{"the host's end", lines(node, "link set "+p.port+" down"), lines(node, "link set "+p.port+" up"), "is down"},
		{"the port's Pod", vsctl("set", "interface", p.port, "external_ids:pod-uid=x"), vsctl("set", "interface", p.port, "external_ids:pod-uid=u-web"), "external_ids:pod-uid"},
		{"the port", vsctl("del-port", p.port), nil, "is not on bridge"},
	} {
		must(t, tc.damage())
		_, err := p.do("CHECK")
		if err == nil || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("%s: CHECK says %v, want %q", tc.name, err, tc.words)
		}
		if tc.amend != nil {
			must(t, tc.amend())
			if _, err := p.do("CHECK"); err != nil {
				t.Fatalf("%s, mended: %v", tc.name, err)
			}
		}
	}
}

// collected holds GC to removing what is not valid, and nothing else.
func collected(t *testing.T, c *harness.Cluster, objects string) {
	stays, goes := newAttached(t, c, "node-1", "stays", "u-stays"), newAttached(t, c, "node-1", "goes", "u-goes")
	for _, p := range []*attachedPod{stays, goes} {
		p.call.Config["timeout"] = "20s"
		uid := "u-" + strings.TrimPrefix(p.call.ContainerID, "c-")
		done := make(chan error, 1)
		var out []byte
		before := leases(t, p)
		go func() { var err error; out, err = p.do("ADD"); done <- err }()
		var given []string
		must(t, harness.Eventually(t.Context(), 10*time.Second, func() error {
			given = nil
			for _, l := range leases(t, p) {
				if !strings.Contains(" "+strings.Join(before, " ")+" ", " "+l+" ") {
					given = append(given, l)
				}
			}
			if len(given) != 2 {
				return fmt.Errorf("leases: %v", given)
			}
			return nil
		}))
		objects += cniPod(strings.TrimPrefix(uid, "u-"), uid, "node-1", given...)
		must(t, c.WriteManifests(t.Context(), []byte(objects)))
		must(t, <-done)
		p.take(out)
	}
	stays.call.Config["cni.dev/valid-attachments"] = []map[string]string{{"containerID": "c-stays", "ifname": "eth0"}}
	if _, err := stays.do("GC"); err != nil {
		t.Fatalf("GC: %v", err)
	}
	if got := strings.Fields(ports(t, stays.node)); len(got) != 1 || got[0] != stays.port {
		t.Errorf("ports after GC: %v, want %s", got, stays.port)
	}
	if got := leases(t, stays); len(got) != 2 {
		t.Errorf("leases after GC: %v", got)
	}
	if _, err := stays.do("CHECK"); err != nil {
		t.Errorf("CHECK of what stays: %v", err)
	}
}

// deleted holds DEL to taking everything away, and to not minding what is gone.
func deleted(t *testing.T, p *attachedPod) {
	delete(p.call.Config, "prevResult")
	p.call.NetNS = "/run/netns/weir-e2e-nothing"
	for range 2 {
		if _, err := p.do("DEL"); err != nil {
			t.Fatalf("DEL: %v", err)
		}
		if got := ports(t, p.node); got != "" {
			t.Errorf("ports after DEL: %s", got)
		}
		if got := leases(t, p); len(got) > 0 {
			t.Errorf("leases after DEL: %v", got)
		}
		if err := p.node.NS.IP(t.Context(), "link show "+p.port); err == nil {
			t.Error("the link is left")
		}
	}
	p.call.Config["ovsRunDir"] = t.TempDir() // As after Open vSwitch was uninstalled.
	if _, err := p.do("DEL"); err != nil {
		t.Errorf("DEL without Open vSwitch: %v", err)
	}
}

// A routed Pod network has the same Pods reach each other without a tunnel.
func TestPodNetworkRouted(t *testing.T) {
	t.Parallel()
	c := cniCluster(t, "routed")
	must(t, c.WriteManifests(t.Context(), []byte(cniNodes(c)+cniPod("web", "u-web", "node-1", "10.77.1.2", "fd77:1::2")+cniPod("client", "u-client", "node-2", "10.77.2.2", "fd77:2::2"))))
	web, client := newAttached(t, c, "node-1", "web", "u-web"), newAttached(t, c, "node-2", "client", "u-client")
	if r := web.add(); r.Interfaces[1].Mtu != 1500 {
		t.Errorf("MTU: %d", r.Interfaces[1].Mtu)
	}
	client.add()
	must(t, web.Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 80}))
	crossNodes(t, client, web)
	masqueraded(t, c, client)

	// What is gone comes back, and what is another's stays.
	node := c.Nodes["node-2"]
	must(t, node.NS.IP(t.Context(), "route del 10.77.1.0/24", "route add 10.99.0.0/24 dev uplink", "addr flush dev "+harness.Bridge))
	must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
		got, err := harness.Run(t.Context(), []harness.Probe{tcp(client.Host, web.Addr(false).String())})
		if err == nil && got[0] != harness.Allow {
			err = errors.New("the Pod network is not mended")
		}
		return err
	}))
	must(t, node.NS.IP(t.Context(), "route del 10.99.0.0/24"))
}

// A bridge of ovs-cni works as it is: its port is known by the UID on the port's
// row, and its MAC is read in the Pod.
func TestPortsOfOVSCNI(t *testing.T) {
	t.Parallel()
	c := startCluster(t, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1"}}})
	must(t, c.SetPods(t.Context(), []harness.PodConfig{
		{Namespace: "default", Name: "web", Node: "node-1", IPs: []netip.Addr{ip("10.77.1.2")}, Serves: []harness.Service{{Protocol: api.ProtocolTCP, Port: 80}}},
		{Namespace: "default", Name: "client", Node: "node-1", IPs: []netip.Addr{ip("10.77.1.3")}}}))
	node := c.Nodes["node-1"]
	for _, name := range []string{"web", "client"} {
		h := c.Pod("default/" + name)
		_, err := node.OVS.Vsctl(t.Context(), "--", "clear", "interface", h.Port(), "external_ids", "--", "set", "port", h.Port(), "external_ids:owner=ovs-cni.network.kubevirt.io",
			"external_ids:contPodUid=u-"+name, "external_ids:contIface=eth0", "external_ids:contNetns=/run/netns/"+h.NS.Name)
		must(t, err)
	}
	const namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"
	set(t, c, namespace, cniPod("web", "u-web", "node-1", "10.77.1.2"), cniPod("client", "u-client", "node-1", "10.77.1.3"))
	outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.77.1.2")}, harness.Allow)
	set(t, c, namespace, cniPod("web", "u-web", "node-1", "10.77.1.2"), cniPod("client", "u-client", "node-1", "10.77.1.3"), policy("deny", "{podSelector: {}, ingress: []}"))
	outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.77.1.2")}, harness.Drop)
}
