package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// foundCluster is a node whose bridge forwards by itself, with running Pods: of
// client, stranger and web the policy service will know, of lone it will not.
func foundCluster(t *testing.T, shimArgs ...string) (*harness.Cluster, *harness.Node) {
	t.Helper()
	c := startCluster(t, harness.Config{Found: true, ShimArgs: shimArgs, Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1")}}}})
	all80 := []harness.Service{{Protocol: api.ProtocolTCP, Port: 80}, {Protocol: api.ProtocolUDP, Port: 80}}
	var pods []harness.PodConfig
	for i, name := range []string{"client", "stranger", "web", "lone"} {
		pods = append(pods, harness.PodConfig{Namespace: "default", Name: name, Node: "node-1", IPs: []netip.Addr{ip(fmt.Sprintf("10.9.1.%d", i+1)), ip(fmt.Sprintf("fd09:1::%d", i+1))}, Serves: all80})
	}
	must(t, c.SetPods(t.Context(), pods))
	for _, name := range []string{"client", "stranger", "web", "lone"} { // They are on one link, beside their gateway.
		must(t, c.Pod("default/"+name).NS.IP(t.Context(), "route add 10.9.1.0/24 dev eth0 scope link", "route add fd09:1::/64 dev eth0"))
	}
	return c, c.Nodes["node-1"]
}

// foundObjects are what the policy service knows of foundCluster: web is for
// client alone, in both directions: an older connection is picked up by whichever
// of its packets comes first.
func foundObjects() string {
	var b strings.Builder
	b.WriteString("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n")
	b.WriteString("---\napiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n")
	for i, name := range []string{"client", "stranger", "web"} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, uid: u-%s, labels: {app: %s}}\nspec: {nodeName: node-1, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.9.1.%d}, {ip: 'fd09:1::%d'}]}\n", name, name, name, i+1, i+1)
	}
	b.WriteString(policy("web", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}], egress: [{to: [{podSelector: {matchLabels: {app: client}}}]}]}"))
	return b.String()
}

// know has the policy service know them.
func know(t *testing.T, c *harness.Cluster) {
	t.Helper()
	must(t, c.WriteManifests(t.Context(), []byte(foundObjects())))
	must(t, c.ManifestsRead(t.Context()))
}

func stream(t *testing.T, from *harness.Host, to string) *harness.Stream {
	t.Helper()
	s, err := harness.StartStream(from, ip(to), 80)
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

func lives(t *testing.T, what string, streams ...*harness.Stream) {
	t.Helper()
	for i, s := range streams {
		if err := s.Lives(t.Context(), 10*time.Second); err != nil {
			t.Errorf("%s: stream %d: %v", what, i, err)
		}
	}
}

func stalls(t *testing.T, what string, s *harness.Stream) {
	t.Helper()
	if err := s.Stalls(t.Context(), 10*time.Second); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// bridgeRow is what the database says of the bridge, but of our own record.
func bridgeRow(t *testing.T, n *harness.Node) string {
	t.Helper()
	out, err := n.OVS.Vsctl(t.Context(), "--columns=fail_mode,datapath_type,protocols", "list", "bridge", harness.Bridge)
	must(t, err)
	return strings.Join(strings.Fields(string(out)), " ")
}

func adoptionState(t *testing.T, n *harness.Node) string {
	t.Helper()
	out, err := n.OVS.Vsctl(t.Context(), "--if-exists", "get", "bridge", harness.Bridge, "external_ids:weir-adoption")
	must(t, err)
	return strings.TrimSpace(string(out))
}

func flows(t *testing.T, n *harness.Node, filter string) []string {
	t.Helper()
	out, err := n.Flows(t.Context(), filter)
	must(t, err)
	return out
}

// adopted waits until the bridge is Weir's, with the state in force.
func adopted(t *testing.T, c *harness.Cluster, n *harness.Node) {
	t.Helper()
	must(t, c.Settled(t.Context()))
	if state := adoptionState(t, n); state != "done" {
		t.Fatalf("in sync, and the adoption is %s", state)
	}
}

// On a bridge with running workloads nothing changes before there is a state,
// and then older connections are judged once as new. Uninstalling gives the
// bridge back, and no connection breaks on either way.
func TestRunningWorkloadsAreAdoptedAndGivenBack(t *testing.T) {
	t.Parallel()
	c, node := foundCluster(t)
	client, stranger, lone := c.Pod("default/client"), c.Pod("default/stranger"), c.Pod("default/lone")
	found, before := bridgeRow(t, node), flows(t, node, "")
	var good []*harness.Stream
	for _, s := range []struct {
		from *harness.Host
		to   string
	}{{client, "10.9.1.3"}, {client, "fd09:1::3"}, {stranger, "10.9.1.1"}, {node.Host(), "10.9.1.3"}} {
		if s.from != client && s.from != stranger { // The node itself, by the bridge's own port.
			must(t, node.NS.IP(t.Context(), "route replace 10.9.1.3/32 dev "+harness.Bridge))
		}
		good = append(good, stream(t, s.from, s.to))
	}
	ping := harness.StartPing(client, ip("10.9.1.3"))
	t.Cleanup(ping.Close)
	denied, unknown := stream(t, stranger, "10.9.1.3"), stream(t, lone, "10.9.1.1")

	know(t, c)
	must(t, c.Policyd.Pause())
	must(t, node.Shim.Start())
	eventually(t, func() error {
		if state := adoptionState(t, node); state != "running" || !strings.Contains(node.Shim.Tail(), "connected to switch") {
			return fmt.Errorf("adoption %q\n%s", state, node.Shim.Tail())
		}
		return nil
	})
	lives(t, "before there is a state", append(good, ping, denied, unknown)...)
	outcomes(t, []harness.Probe{tcp(stranger, "10.9.1.3")}, harness.Allow)
	if now := bridgeRow(t, node); now != found {
		t.Errorf("the bridge was %s and is %s", found, now)
	}
	if now := flows(t, node, ""); !slices.Equal(now, before) {
		t.Errorf("flows %v were %v", now, before)
	}
	answers, sent, gap := ping.Count()
	t.Logf("before: %d of %d pings answered, longest gap %s", answers, sent, gap)

	must(t, c.Policyd.Resume())
	adopted(t, c, node)
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.3"), tcp(stranger, "10.9.1.3"), tcp(stranger, "10.9.1.1"), tcp(client, "10.9.1.2"), tcp(lone, "10.9.1.1"), tcp(lone, "10.9.1.3"), tcp(client, "fd09:1::3"), tcp(stranger, "fd09:1::3")},
		harness.Allow, harness.Drop, harness.Allow, harness.Allow, harness.Drop, harness.Drop, harness.Allow, harness.Drop)
	lives(t, "after the adoption", append(good, ping)...)
	stalls(t, "denied by a policy", denied)
	stalls(t, "of an unknown Pod", unknown)
	answers, sent, gap = ping.Count()
	t.Logf("adopted: %d of %d pings answered, longest gap %s", answers, sent, gap)
	for i, s := range good {
		_, _, gap := s.Count()
		t.Logf("stream %d: longest gap %s", i, gap)
	}
	if now := bridgeRow(t, node); !strings.Contains(now, "secure") {
		t.Errorf("the bridge is %s", now)
	}
	if theirs := flows(t, node, "cookie=0/0xff00000000000000"); len(theirs) > 0 {
		t.Errorf("flows of others: %v", theirs)
	}

	refused := node.Uninstall()
	must(t, refused.Start())
	if ok, err := refused.Wait(t.Context()); err != nil || ok || !strings.Contains(refused.Tail(), "a shim is running") {
		t.Errorf("uninstalled beside a running shim: %v, %v\n%s", ok, err, refused.Tail())
	}
	node.Shim.Terminate()
	for range 2 { // The second time there is nothing to do.
		p := node.Uninstall()
		must(t, p.Start())
		if ok, err := p.Wait(t.Context()); err != nil || !ok {
			t.Fatalf("%v\n%s", err, p.Tail())
		}
		if now := bridgeRow(t, node); now != found {
			t.Errorf("the bridge was %s and is %s", found, now)
		}
		if now := flows(t, node, ""); !slices.Equal(now, before) {
			t.Errorf("flows %v were %v", now, before)
		}
	}
	lives(t, "uninstalled", append(good, ping)...)
	lives(t, "no longer denied", denied, unknown)
	outcomes(t, []harness.Probe{tcp(stranger, "10.9.1.3"), tcp(lone, "10.9.1.1")}, harness.Allow, harness.Allow)
	answers, sent, gap = ping.Count()
	t.Logf("uninstalled: %d of %d pings answered, longest gap %s", answers, sent, gap)
	left(t, node)
}

// left fails where something of Weir's is left on a node.
func left(t *testing.T, node *harness.Node) {
	t.Helper()
	out, err := node.NS.Command(t.Context(), "nft", "list", "tables").Output()
	must(t, err)
	if strings.Contains(string(out), "weir") {
		t.Errorf("tables: %s", out)
	}
	row, err := node.OVS.Vsctl(t.Context(), "--if-exists", "get", "bridge", harness.Bridge, "external_ids")
	must(t, err)
	if ids := strings.TrimSpace(string(row)); ids != "" && ids != "{}" && ids != `{weir-made="true"}` {
		t.Errorf("external_ids: %s", ids)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(filepath.Dir(node.Socket())), "state")); !os.IsNotExist(err) {
		t.Errorf("state folder: %v", err)
	}
	if _, err := os.Stat(node.Socket()); !os.IsNotExist(err) {
		t.Errorf("socket: %v", err)
	}
}

// Where it is asked for, older TCP connections live on, over a restart too, and
// what let them is gone after its time; new ones are judged from the beginning.
func TestOlderConnectionsMayLive(t *testing.T) {
	t.Parallel()
	c, node := foundCluster(t, "--adopt=allow-established", "--adopt-window=6s")
	stranger := c.Pod("default/stranger")
	know(t, c)
	older := stream(t, stranger, "10.9.1.3")
	must(t, node.Shim.Start())
	adopted(t, c, node)
	const window = "table=5,tcp,tcp_flags=0/0x2"
	node.Shim.Kill()
	must(t, node.Shim.Start())
	must(t, c.Settled(t.Context()))
	if len(flows(t, node, window)) == 0 {
		t.Error("a restart ended the time of older connections")
	}
	lives(t, "older than the adoption", older)
	udp := tcp(stranger, "10.9.1.3")
	udp.Protocol = api.ProtocolUDP
	outcomes(t, []harness.Probe{tcp(stranger, "10.9.1.3"), udp}, harness.Drop, harness.Drop)
	eventually(t, func() error {
		if f := flows(t, node, window); len(f) > 0 {
			return fmt.Errorf("flows %v", f)
		}
		return nil
	})
	lives(t, "after the window", older)
	outcomes(t, []harness.Probe{tcp(stranger, "10.9.1.3")}, harness.Drop)
}

// A shim that is killed again and again goes on with the adoption, and what it
// began with stays.
func TestAdoptionGoesOnAfterCrashes(t *testing.T) {
	t.Parallel()
	c, node := foundCluster(t)
	client, stranger := c.Pod("default/client"), c.Pod("default/stranger")
	know(t, c)
	good := stream(t, client, "10.9.1.3")
	for i := 1; i <= 4; i++ { // Killed once it has taken so many ports.
		must(t, node.Shim.Start())
		eventually(t, func() error {
			if n := taken(t, node); n < i && adoptionState(t, node) != "done" {
				return fmt.Errorf("%d ports are taken", n)
			}
			return nil
		})
		node.Shim.Kill()
		t.Logf("killed with adoption %s and %d ports", adoptionState(t, node), taken(t, node))
	}
	must(t, node.Shim.Start())
	adopted(t, c, node)
	lives(t, "after crashes", good)
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.3"), tcp(stranger, "10.9.1.3")}, harness.Allow, harness.Drop)
}

// taken is how many ports of Pods our flows serve.
func taken(t *testing.T, n *harness.Node) int {
	t.Helper()
	return len(slices.DeleteFunc(flows(t, n, "table=0,cookie=0x5700020000000000/0xff00ff0000000000"), func(f string) bool { return !strings.Contains(f, "in_port=") || strings.Contains(f, "in_port=LOCAL") }))
}

// What forwards by flows of its own in several tables is adopted at once.
func TestBridgeWithTablesIsAdopted(t *testing.T) {
	t.Parallel()
	c, node := foundCluster(t)
	for _, f := range []string{"table=0,priority=65535,actions=goto_table:10", "table=10,priority=65000,actions=NORMAL", "table=20,priority=9,vlan_tci=0x1005,actions=drop"} {
		_, err := node.OVS.Run(t.Context(), "ovs-ofctl", "add-flow", harness.Bridge, f)
		must(t, err)
	}
	client, stranger := c.Pod("default/client"), c.Pod("default/stranger")
	good := stream(t, client, "10.9.1.3")
	know(t, c)
	must(t, node.Shim.Start())
	adopted(t, c, node)
	if !strings.Contains(node.Shim.Tail(), "all ports are adopted at once") {
		t.Errorf("log:\n%s", node.Shim.Tail())
	}
	lives(t, "adopted", good)
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.3"), tcp(stranger, "10.9.1.3")}, harness.Allow, harness.Drop)
	if theirs := flows(t, node, "cookie=0/0xff00000000000000"); len(theirs) > 0 {
		t.Errorf("flows of others: %v", theirs)
	}
}

// A bridge as ovs-cni leaves it is adopted as it is: Pods are known by the UIDs
// on the rows of their ports.
func TestBridgeOfOVSCNIIsAdopted(t *testing.T) {
	t.Parallel()
	c, node := foundCluster(t)
	client, stranger := c.Pod("default/client"), c.Pod("default/stranger")
	for _, name := range []string{"client", "stranger", "web", "lone"} {
		h := c.Pod("default/" + name)
		_, err := node.OVS.Vsctl(t.Context(), "--", "clear", "interface", h.Port(), "external_ids", "--", "set", "port", h.Port(), "external_ids:owner=ovs-cni.network.kubevirt.io",
			"external_ids:contPodUid=u-"+name, "external_ids:contIface=eth0", "external_ids:contNetns=/run/netns/"+h.NS.Name)
		must(t, err)
	}
	good, denied := stream(t, client, "10.9.1.3"), stream(t, stranger, "10.9.1.3")
	know(t, c)
	must(t, node.Shim.Start())
	adopted(t, c, node)
	lives(t, "adopted", good)
	stalls(t, "denied", denied)
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.3"), tcp(stranger, "10.9.1.3"), tcp(stranger, "10.9.1.1")}, harness.Allow, harness.Drop, harness.Allow)
}

// A node whose own address is on the bridge, which its uplink is on too, keeps
// it, and its Pods reach the world by it.
func TestNodeWithItsUplinkOnTheBridgeIsNotCutOff(t *testing.T) {
	t.Parallel()
	c, node := foundCluster(t, "--uplink=uplink")
	_, err := node.OVS.Vsctl(t.Context(), "add-port", harness.Bridge, "uplink")
	must(t, err)
	must(t, c.Fabric.Command(t.Context(), "ethtool", "-K", "n1", "tx", "off").Run()) // Nobody on the way would make its checksums.
	via := node.Via().String()
	gw := strings.TrimSuffix(c.PolicyAddress(), ":9740")
	must(t, node.NS.IP(t.Context(), "addr flush dev uplink", "addr add "+via+"/24 dev "+harness.Bridge, "route add default via "+gw))
	outside, err := c.Outside(t.Context(), ip("203.0.113.9"))
	must(t, err)
	must(t, outside.Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 80}))
	client, host := c.Pod("default/client"), &harness.Host{NS: node.NS, IPs: []netip.Addr{node.Via()}}
	own, out := stream(t, host, "203.0.113.9"), stream(t, client, "203.0.113.9")
	know(t, c)
	must(t, node.Shim.Start())
	adopted(t, c, node)
	lives(t, "adopted", own, out)
	outcomes(t, []harness.Probe{tcp(host, "203.0.113.9"), tcp(client, "203.0.113.9"), tcp(outside, "10.9.1.1"), tcp(outside, "10.9.1.3"), tcp(host, "10.9.1.3")},
		harness.Allow, harness.Allow, harness.Allow, harness.Drop, harness.Allow)
}

// Beside Antrea's agent a shim does not start, unless it is told to take over.
func TestShimDoesNotStartBesideAntrea(t *testing.T) {
	t.Parallel()
	run, conf := t.TempDir(), t.TempDir()
	c, node := foundCluster(t, "--antrea-run-dir", run, "--cni-conf-dir", conf)
	must(t, os.WriteFile(filepath.Join(conf, "10-antrea.conflist"), []byte("{}"), 0o644))
	l, err := net.Listen("unix", filepath.Join(run, "cni.sock"))
	must(t, err)
	defer l.Close()
	_, err = node.OVS.Vsctl(t.Context(), "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "external_ids:roundNum=3")
	must(t, err)
	found := bridgeRow(t, node)
	must(t, node.Shim.Start())
	ok, err := node.Shim.Wait(t.Context())
	for _, said := range []string{"10-antrea.conflist", "cni.sock", "br-int", "--take-over"} {
		if err != nil || ok || !strings.Contains(node.Shim.Tail(), said) {
			t.Errorf("%v, %v: it does not say %s:\n%s", ok, err, said, node.Shim.Tail())
		}
	}
	if now := bridgeRow(t, node); now != found {
		t.Errorf("the bridge was %s and is %s", found, now)
	}
	node.ShimArgs("--take-over")
	know(t, c)
	must(t, node.Shim.Start())
	adopted(t, c, node)
	outcomes(t, []harness.Probe{tcp(c.Pod("default/stranger"), "10.9.1.3")}, harness.Drop)
}

// A bridge that Weir made stays for as long as Pods are on it; a process that is
// told to wait answers in the shim's place.
func TestBridgeThatWeirMadeGoesWithItsPods(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(false), policy("deny", "{podSelector: {}, ingress: []}"))
	node, client, nginx := c.Nodes["node-1"], c.Pod("default/client"), "10.9.1.2"
	outcomes(t, []harness.Probe{tcp(client, nginx)}, harness.Drop)
	node.Shim.Terminate()
	p := node.Uninstall("--wait")
	must(t, p.Start())
	t.Cleanup(p.Kill)
	eventually(t, func() error {
		text, err := node.Get("/readyz")
		if err == nil && !strings.Contains(text, "200 OK") {
			return fmt.Errorf("%s", text)
		}
		return err
	})
	left(t, node)
	outcomes(t, []harness.Probe{tcp(client, nginx), tcp(client, "10.9.2.1")}, harness.Allow, harness.Drop) // Of the other node Weir is in charge.
	must(t, c.SetPods(t.Context(), slices.DeleteFunc(smallPodConfigs(), func(p harness.PodConfig) bool { return p.Node == "node-1" })))
	p.Terminate()
	p = node.Uninstall()
	must(t, p.Start())
	if ok, err := p.Wait(t.Context()); err != nil || !ok {
		t.Fatalf("%v\n%s", err, p.Tail())
	}
	if out, err := node.OVS.Vsctl(t.Context(), "list-br"); err != nil || len(out) > 0 {
		t.Errorf("bridges %s, %v", out, err)
	}
}
