package podnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/hashicorp/go-hclog"
)

// host is a node: a network namespace with an uplink, and a device in the place
// of the bridge's.
type host struct {
	t       testing.TB
	name    string
	network *Network
	masks   []string // Calls of the Masquerader.
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func newHost(t testing.TB, name string, mode Mode) *host {
	t.Helper()
	missing := t.Skipf
	if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
		missing = t.Fatalf
	}
	if os.Geteuid() != 0 {
		missing("needs root")
	}
	for _, tool := range []string{"ip", "bridge"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing("needs %s: %v", tool, err)
		}
	}
	h := &host{t: t, name: fmt.Sprintf("weir-podnet-%d-%s", os.Getpid(), name)}
	run(t, "ip", "netns", "add", h.name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", h.name).Run() })
	h.ip("link", "set", "lo", "up")
	h.pair("br-weir")
	h.mode(mode)
	return h
}

func (h *host) mode(mode Mode) {
	h.t.Helper()
	var err error
	h.network, err = New(Config{Mode: mode, Bridge: "br-weir", VXLANID: 4100, VXLANPort: 4789, Masquerade: true, Logger: hclog.NewNullLogger(),
		Masquerader: func(_ context.Context, pods, cluster []netip.Prefix, nodes []netip.Addr) error {
			h.masks = append(h.masks, fmt.Sprint(pods, cluster, nodes))
			return nil
		}}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
}

// pair makes a device with a far end that is up.
func (h *host) pair(device string) {
	h.t.Helper()
	h.ip("link", "add", device, "type", "veth", "peer", "name", device+"-far")
	h.ip("link", "set", device+"-far", "up")
}

func (h *host) ip(args ...string) string {
	h.t.Helper()
	return run(h.t, "ip", append([]string{"-n", h.name}, args...)...)
}

// make brings the host's kernel to what the cluster asks for, once.
func (h *host) make(nodes ...Node) error {
	h.t.Helper()
	c := Cluster{Own: nodes[0].Name, Nodes: nodes}
	h.network.Set(c)
	return ns.WithNetNSPath("/run/netns/"+h.name, func(ns.NetNS) error { return h.network.make(context.Background()) })
}

// fetch has another node send as much as takes segments of full size, and says
// how much of it came.
func (h *host) fetch(from *host, address string) (n int64) {
	h.t.Helper()
	in := func(of *host, fn func() error) {
		if err := ns.WithNetNSPath("/run/netns/"+of.name, func(ns.NetNS) error { return fn() }); err != nil {
			h.t.Error(err)
		}
	}
	target := net.JoinHostPort(address, "99")
	in(from, func() error {
		l, err := net.Listen("tcp", target)
		if err != nil {
			return err
		}
		go func() {
			defer l.Close()
			if conn, err := l.Accept(); err == nil {
				conn.Write(make([]byte, 1<<20))
				conn.Close()
			}
		}()
		return nil
	})
	in(h, func() error {
		conn, err := net.DialTimeout("tcp", target, 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		n, err = io.Copy(io.Discard, conn)
		return err
	})
	return n
}

func (h *host) holds(what, text string, there bool) {
	h.t.Helper()
	var out string
	switch what {
	case "fdb":
		out = run(h.t, "bridge", "-n", h.name, "fdb", "show", "dev", deviceName)
	case "route":
		out = h.ip("route", "show") + h.ip("-6", "route", "show")
	case "neigh":
		out = h.ip("neigh", "show") + h.ip("-6", "neigh", "show")
	case "addr":
		out = h.ip("addr", "show", "dev", "br-weir")
	case "link":
		out = h.ip("-d", "link", "show")
	}
	if strings.Contains(out, text) != there {
		h.t.Errorf("%s: %q there: %v, want %v, in\n%s", what, text, !there, there, out)
	}
}

// twoHosts are two nodes on one link, with these addresses.
func twoHosts(t testing.TB, mode Mode, a, b string) (*host, *host, [2]Node) {
	t.Helper()
	one, two := newHost(t, "a", mode), newHost(t, "b", mode)
	run(t, "ip", "-n", one.name, "link", "add", "uplink", "type", "veth", "peer", "name", "uplink", "netns", two.name)
	for h, list := range map[*host]string{one: a, two: b} {
		h.ip("link", "set", "uplink", "up")
		for _, addr := range strings.Fields(list) {
			bits := "/24"
			args := []string{"addr", "add", addr + bits, "dev", "uplink"}
			if strings.Contains(addr, ":") {
				args[2] = addr + "/64"
				args = append(args, "nodad")
			}
			h.ip(args...)
		}
	}
	return one, two, [2]Node{node("a", "10.0.1.0/24 fd00:1::/64", a), node("b", "10.0.2.0/24 fd00:2::/64", b)}
}

// Packets get from a gateway to the other node's, either family inside of
// either family.
func TestNodesReachEachOthersPods(t *testing.T) {
	for _, tc := range []struct {
		name string
		mode Mode
		a, b string
	}{
		{"vxlan over IPv4", VXLAN, "192.0.2.1", "192.0.2.2"},
		{"vxlan over IPv6", VXLAN, "2001:db8::1", "2001:db8::2"},
		{"routed", Routed, "192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b, nodes := twoHosts(t, tc.mode, tc.a, tc.b)
			for range 2 { // The second time there is nothing to do.
				if err := a.make(nodes[0], nodes[1]); err != nil {
					t.Fatal(err)
				}
				if err := b.make(nodes[1], nodes[0]); err != nil {
					t.Fatal(err)
				}
			}
			for _, to := range []string{"10.0.2.1", "fd00:2::1"} {
				if n := a.fetch(b, to); n != 1<<20 {
					t.Errorf("%d bytes of %d came from %s", n, 1<<20, to)
				}
			}
			if got := run(t, "ip", "netns", "exec", a.name, "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"); strings.Contains(got, "0") {
				t.Errorf("the host does not forward: %s", got)
			}
			if len(a.masks) != 1 {
				t.Errorf("masquerading was set %d times: %v", len(a.masks), a.masks)
			}
		})
	}
}

// What is gone from the cluster goes from the kernel, what others removed comes
// back, and what others made stays.
func TestKernelFollowsTheCluster(t *testing.T) {
	a, _, nodes := twoHosts(t, VXLAN, "192.0.2.1", "192.0.2.2")
	c := node("c", "10.0.3.0/24", "192.0.2.3")
	a.ip("route", "add", "10.0.3.0/24", "via", "192.0.2.9") // Another's, in our way.
	a.ip("route", "add", "10.9.0.0/16", "via", "192.0.2.9")
	if err := a.make(nodes[0], nodes[1], c); err == nil || !strings.Contains(err.Error(), "route 10.0.3.0/24: there is a route of somebody else's") {
		t.Errorf("a route in the way: %v", err)
	}
	a.holds("route", "10.0.2.0/24 via 10.0.2.0 dev weir-vx0 proto 87 src 10.0.1.1 onlink", true)
	a.holds("route", "fd00:2::/64 via fd00:2:: dev weir-vx0 proto 87 src fd00:1::1", true)
	a.holds("route", "10.0.3.0/24 via 192.0.2.9", true)
	a.holds("fdb", macOf("b").String()+" dst 192.0.2.2 self permanent", true)
	a.holds("neigh", "10.0.2.0 dev weir-vx0 lladdr "+macOf("b").String()+" PERMANENT", true)
	a.holds("addr", "10.0.1.1/24", true)
	a.holds("link", "nolearning", true)

	a.ip("route", "del", "10.0.3.0/24")
	a.ip("route", "del", "10.0.2.0/24")
	a.ip("addr", "flush", "dev", "br-weir")
	a.ip("link", "set", "br-weir", "down")
	if err := a.make(nodes[0], nodes[1], c); err != nil {
		t.Error(err)
	}
	a.holds("route", "10.0.2.0/24 via 10.0.2.0", true)
	a.holds("route", "10.0.3.0/24 via 10.0.3.0", true)
	a.holds("addr", "fd00:1::1/64", true)

	nodes[0].PodCIDRs = nodes[0].PodCIDRs[:1]
	if err := a.make(nodes[0], c); err != nil {
		t.Error(err)
	}
	for what, text := range map[string]string{"route": "10.0.2.0/24", "fdb": macOf("b").String(), "neigh": "10.0.2.0", "addr": "fd00:1::1/64"} {
		a.holds(what, text, false)
	}
	a.holds("route", "10.9.0.0/16 via 192.0.2.9", true)

	a.ip("link", "del", "uplink") // And with it the device that was on it.
	if err := a.make(nodes[0], c); err == nil {
		t.Error("a tunnel without a link is no error")
	}
	a.mode(Routed)
	a.pair("uplink")
	a.ip("link", "set", "uplink", "up")
	a.ip("addr", "add", "192.0.2.1/24", "dev", "uplink")
	if err := a.make(nodes[0], c); err != nil {
		t.Error(err)
	}
	a.holds("route", "10.0.3.0/24 via 192.0.2.3 dev uplink proto 87 onlink", true)
	a.holds("link", "weir-vx0", false)
}

// Remove leaves nothing of ours, and all that is others'.
func TestRemove(t *testing.T) {
	a, _, nodes := twoHosts(t, VXLAN, "192.0.2.1", "192.0.2.2")
	a.ip("route", "add", "10.9.0.0/16", "via", "192.0.2.9")
	routes := func() string { // Whether a link is up yet is no matter of theirs.
		return strings.ReplaceAll(a.ip("route", "show")+a.ip("-6", "route", "show", "dev", "uplink"), " linkdown", "")
	}
	before := routes()
	if err := a.make(nodes[0], nodes[1]); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ns.WithNetNSPath("/run/netns/"+a.name, func(ns.NetNS) error { return Remove("br-weir") }); err != nil {
			t.Fatal(err)
		}
		if after := routes(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		a.holds("link", deviceName, false)
		a.holds("addr", "10.0.1.1/24", false)
	}
}
