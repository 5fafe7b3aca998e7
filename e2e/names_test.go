package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/dns"
)

// allFoobar is the guide's example: a name with a wildcard, and nothing else.
const allFoobar = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: foobar}
spec:
  priority: 1
  appliedTo: [{podSelector: {matchLabels: {app: client}}}]
  egress:
  - {action: Allow, to: [{fqdn: "*foobar.com"}], ports: [{protocol: TCP, port: 8080}]}
  - {action: Drop}
`

// askDNS lets Pods ask DNS.
const askDNS = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: ask-dns}
spec:
  tier: securityops
  priority: 5
  appliedTo: [{podSelector: {}}]
  egress: [{action: Allow, ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]
`

// reference is a file of the reference's examples, or where there are none, a
// text of ours.
func reference(t *testing.T, file, own string) string {
	t.Helper()
	dir := os.Getenv("WEIR_EXAMPLES_DIR")
	if dir == "" {
		return own
	}
	text, err := os.ReadFile(filepath.Join(dir, file))
	must(t, err)
	return "---\n" + string(text)
}

// namedHosts is a cluster with a DNS server on node 2, behind a Service, and hosts
// outside that serve port 8080.
type namedHosts struct {
	*zone
	c       *harness.Cluster
	client  *harness.Host
	objects string
	server  netip.AddrPort
}

func newNamedHosts(t *testing.T, shimArgs ...string) *namedHosts {
	t.Helper()
	c := smallCluster(t, shimArgs...)
	pods := append(smallPodConfigs(), harness.PodConfig{Namespace: "kube-system", Name: "dns", Node: "node-2", IPs: []netip.Addr{ip("10.9.2.53"), ip("fd09:2::53")}})
	must(t, c.SetPods(t.Context(), pods))
	n := &namedHosts{zone: newZone(), c: c, client: c.Pod("default/client"), server: netip.AddrPortFrom(vip(10, false), 53)}
	n.serve(t, c.Pod("kube-system/dns"))
	n.objects = smallObjects(false) + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}\n" +
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}\nspec: {nodeName: node-2, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.9.2.53}, {ip: 'fd09:2::53'}]}\n" +
		clusterService("kube-dns, namespace: kube-system", 10, "selector: {k8s-app: kube-dns}, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]")
	return n
}

// outside has a host at an address serve port 8080.
func (n *namedHosts) outside(t *testing.T, addrs ...string) {
	t.Helper()
	for _, addr := range addrs {
		h, err := n.c.Outside(t.Context(), ip(addr))
		must(t, err)
		must(t, (&harness.Host{NS: h.NS, IPs: []netip.Addr{ip(addr)}}).Serve(harness.Service{Protocol: api.ProtocolTCP, Port: 8080}))
	}
}

// ask looks a name up by a server, and holds the answer to what the zone says.
func (n *namedHosts) ask(t *testing.T, name string, want ...string) {
	t.Helper()
	got, err := lookup(t.Context(), n.client, n.server, name)
	var texts []string
	for _, a := range got {
		texts = append(texts, a.Unmap().String())
	}
	slices.Sort(texts)
	if slices.Sort(want); err != nil || !slices.Equal(texts, want) {
		t.Errorf("%s is %q, %v; want %q", name, texts, err, want)
	}
}

func (n *namedHosts) to(addr string) harness.Probe {
	return harness.Probe{From: n.client, To: ip(addr), Protocol: api.ProtocolTCP, Port: 8080, Answered: true}
}

// A name is open from the moment that its address is known, and no other address.
func TestNamesOfHosts(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	n := newNamedHosts(t)
	hosts := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.9", "2001:db8:f::1"}
	n.outside(t, hosts...)
	set(t, n.c, n.objects, askDNS, reference(t, "26-acnp-fqdn-all-foobar.yaml", allFoobar))
	n.set("foobar.com", "203.0.113.1", "2001:db8:f::1")
	n.set("edge.cdn.net", "203.0.113.2")
	n.aliases["www.test.foobar.com"] = "edge.cdn.net"
	n.set("other.com", "203.0.113.9")
	drop := func(addr string) harness.Probe { p := n.to(addr); p.Answered = false; return p }
	outcomes(t, []harness.Probe{drop("203.0.113.1"), drop("203.0.113.2"), drop("203.0.113.9")}, harness.Drop, harness.Drop, harness.Drop)
	n.ask(t, "foobar.com", "203.0.113.1", "2001:db8:f::1")
	outcomes(t, []harness.Probe{n.to("203.0.113.1"), n.to("2001:db8:f::1"), drop("203.0.113.2")}, harness.Allow, harness.Allow, harness.Drop)
	n.ask(t, "WWW.test.Foobar.com", "203.0.113.2") // By way of an alias.
	n.ask(t, "other.com", "203.0.113.9")
	outcomes(t, []harness.Probe{n.to("203.0.113.2"), drop("203.0.113.9")}, harness.Allow, harness.Drop)

	eventually(t, func() error {
		code, out := weirctl(t, n.c, "get", "fqdn")
		if line := regexp.MustCompile(`(?m)^node-1 +foobar\.com +203\.0\.113\.1 +\S+Z +\*foobar\.com$`); code != 0 || !line.MatchString(out) || strings.Contains(out, "other.com") {
			return fmt.Errorf("weirctl get fqdn ends with %d:\n%s", code, out)
		}
		return nil
	})

	n.mu.Lock()
	n.cut = true
	n.mu.Unlock()
	n.set("tcp.foobar.com", "203.0.113.3")
	n.ask(t, "tcp.foobar.com", "203.0.113.3")
	outcomes(t, []harness.Probe{n.to("203.0.113.3")}, harness.Allow)

	// The first packet after the answer is the first that is let through.
	for i := range 50 {
		addr := fmt.Sprintf("203.0.113.%d", 100+i)
		n.outside(t, addr)
		n.set(fmt.Sprintf("h%d.foobar.com", i), addr)
		n.ask(t, fmt.Sprintf("h%d.foobar.com", i), addr)
		conn, err := dial(t, n.client, "tcp", netip.AddrPortFrom(ip(addr), 8080))
		if err != nil {
			t.Fatalf("host %d: %v", i, err)
		}
		conn.Close()
	}
}

// A headless Service's name stands for its Pods.
func TestNameOfAHeadlessService(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	n := newNamedHosts(t)
	own := ordered("headless", "client", `egress: [{action: Drop, to: [{fqdn: "svcA.default.svc.cluster.local"}]}]`)
	set(t, n.c, n.objects, reference(t, "27-acnp-fqdn-headless-service.yaml", own))
	n.set("svca.default.svc.cluster.local", "10.9.1.2", "10.9.2.1")
	to := func(addr string, answered bool) harness.Probe {
		return harness.Probe{From: n.client, To: ip(addr), Protocol: api.ProtocolTCP, Port: 80, Answered: answered}
	}
	outcomes(t, []harness.Probe{to("10.9.1.2", true), to("10.9.2.1", true)}, harness.Allow, harness.Allow)
	n.ask(t, "svcA.default.svc.cluster.local", "10.9.1.2", "10.9.2.1")
	outcomes(t, []harness.Probe{to("10.9.1.2", false), to("10.9.2.1", false)}, harness.Drop, harness.Drop)
}

// That of a Service with a ClusterIP never matches, and the node says so.
func TestNameOfAClusterIP(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	n := newNamedHosts(t)
	set(t, n.c, n.objects, ordered("svc", "client", `egress: [{action: Drop, to: [{fqdn: "web.example"}]}]`), clusterService("web", 1, "ports: [{name: tcp, port: 80}]"),
		endpoints("web", "{name: tcp, protocol: TCP, port: 80}", entry("default/nginx", ready)))
	n.set("web.example", vip(1, false).String())
	n.ask(t, "web.example", vip(1, false).String())
	outcomes(t, []harness.Probe{{From: n.client, To: vip(1, false), Protocol: api.ProtocolTCP, Port: 80, Answered: true}}, harness.Allow)
	if log := n.c.Nodes["node-1"].Shim.Tail(); !strings.Contains(log, "stands for a Service") || !strings.Contains(log, "default/web") {
		t.Errorf("the shim says\n%s", log)
	}
}

// An address is let go when its time is over; a connection that uses it lives on.
func TestNamesHoldForTheirTime(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	n := newNamedHosts(t, "--fqdn-min-ttl", "1s")
	n.outside(t, "203.0.113.1", "203.0.113.2")
	set(t, n.c, n.objects, askDNS, allFoobar)
	n.ttl = 1
	n.set("foobar.com", "203.0.113.1")
	n.ask(t, "foobar.com", "203.0.113.1")
	older, err := harness.StartStream(n.client, ip("203.0.113.1"), 8080)
	must(t, err)
	defer older.Close()
	n.set("foobar.com", "203.0.113.2")
	shut := n.to("203.0.113.1")
	shut.Answered = false
	eventually(t, func() error {
		got, err := harness.Run(t.Context(), []harness.Probe{shut})
		if err == nil && got[0] != harness.Drop {
			err = fmt.Errorf("an address whose time is over: %s", got[0])
		}
		return err
	})
	n.ask(t, "foobar.com", "203.0.113.2")
	outcomes(t, []harness.Probe{n.to("203.0.113.2")}, harness.Allow)
	must(t, older.Lives(t.Context(), 5*time.Second))
}

// What others than the servers answer, or nobody asked, opens nothing.
func TestForgedNames(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	n := newNamedHosts(t)
	n.outside(t, "203.0.113.66")
	set(t, n.c, n.objects, askDNS, allFoobar)
	liar := newZone()
	liar.set("foobar.com", "203.0.113.66")
	liar.serve(t, n.c.Pod("default/nginx"))
	n.server = netip.AddrPortFrom(ip("10.9.1.2"), 53)
	n.ask(t, "foobar.com", "203.0.113.66") // Delivered, and not believed.
	shut := n.to("203.0.113.66")
	shut.Answered = false
	outcomes(t, []harness.Probe{shut}, harness.Drop)
}

// Without a shim answers arrive after a moment, and a new one knows what the former
// did.
func TestNamesWithoutAShim(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	n := newNamedHosts(t)
	n.outside(t, "203.0.113.1", "203.0.113.2")
	set(t, n.c, n.objects, askDNS, allFoobar)
	n.set("foobar.com", "203.0.113.1")
	n.set("www.foobar.com", "203.0.113.2")
	n.ask(t, "foobar.com", "203.0.113.1")
	node := n.c.Nodes["node-1"]
	eventually(t, func() error {
		stored, err := os.ReadFile(filepath.Join(node.OVS.Dir, "state", "names"))
		if err == nil && !strings.Contains(string(stored), "203.0.113.1") {
			err = fmt.Errorf("what is stored is %q", stored)
		}
		return err
	})
	node.Shim.Kill()
	outcomes(t, []harness.Probe{n.to("203.0.113.1")}, harness.Allow)
	n.ask(t, "www.foobar.com", "203.0.113.2") // Tries again until it gets an answer.
	must(t, node.Shim.Start())
	must(t, n.c.Applied(t.Context(), "node-1"))
	outcomes(t, []harness.Probe{n.to("203.0.113.1")}, harness.Allow)
	n.ask(t, "www.foobar.com", "203.0.113.2")
	outcomes(t, []harness.Probe{n.to("203.0.113.2")}, harness.Allow)
}

// A Pod that asks for more hosts than are kept, and has another answer in the
// server's name, opens nothing more for itself, and takes nothing from others.
func TestNamesAgainstAHostilePod(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	n := newNamedHosts(t)
	n.outside(t, "203.0.113.7", "203.0.113.8", "203.0.113.66")
	lets := func(app, name string) string {
		return ordered("lets-"+app, app, fmt.Sprintf(`egress: [{action: Allow, to: [{fqdn: %q}], ports: [{protocol: TCP, port: 8080}]}, {action: Drop}]`, name))
	}
	set(t, n.c, n.objects, askDNS, lets("client", "*.evil.com"), lets("nginx", "*.good.com"))
	nginx := n.c.Pod("default/nginx")
	n.set("www.good.com", "203.0.113.7")
	n.set("api.good.com", "203.0.113.8")
	for i := range dns.WildcardMost {
		n.set(fmt.Sprintf("h%d.evil.com", i), fmt.Sprintf("198.18.%d.%d", i/250, 1+i%250))
	}
	n.set("more.evil.com", "203.0.113.66")
	if _, err := lookup(t.Context(), nginx, n.server, "www.good.com"); err != nil {
		t.Fatal(err)
	}

	// Another Pod answers in the server's name what it asks at that time.
	forged := newZone()
	forged.set("www.evil.com", "203.0.113.66")
	question := query(t, 7, "www.evil.com")
	var own netip.AddrPort
	must(t, n.client.NS.Do(func() error {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: n.client.Addr(false).AsSlice()})
		if err != nil {
			return err
		}
		t.Cleanup(func() { conn.Close() })
		own = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		_, err = conn.WriteToUDPAddrPort(question, n.server)
		return err
	}))
	must(t, nginx.NS.Do(func() error { return sendFrom(n.server, own, forged.answer(question, true)) }))
	var asking errgroup.Group
	for part := range 4 {
		asking.Go(func() error {
			for i := part; i < dns.WildcardMost; i += 4 {
				if _, err := lookup(t.Context(), n.client, n.server, fmt.Sprintf("h%d.evil.com", i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, asking.Wait())
	n.ask(t, "more.evil.com", "203.0.113.66") // Delivered, and not taken in.
	if _, err := lookup(t.Context(), nginx, n.server, "api.good.com"); err != nil {
		t.Error(err)
	}
	shut, www, api := n.to("203.0.113.66"), n.to("203.0.113.7"), n.to("203.0.113.8")
	shut.Answered, www.From, api.From = false, nginx, nginx
	outcomes(t, []harness.Probe{shut, www, api}, harness.Drop, harness.Allow, harness.Allow)
}

// query asks for a name's address of IPv4.
func query(t *testing.T, id uint16, name string) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	must(t, err)
	return b
}

// sendFrom sends a datagram in another's name.
func sendFrom(from, to netip.AddrPort, payload []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	src, dst := from.Addr().As4(), to.Addr().As4()
	b := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, src[:]...)
	b = append(b, dst[:]...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = append(binary.BigEndian.AppendUint16(b, uint16(8+len(payload))), 0, 0)
	return unix.Sendto(fd, append(b, payload...), 0, &unix.SockaddrInet4{Addr: dst})
}
