package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// clusterService is a Service of both families, and what its ports are.
func clusterService(name string, number int, spec string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIPs: [10.96.0.%d, 'fd96::%d'], ipFamilies: [IPv4, IPv6], %s}\n", name, number, number, spec)
}

// vip is a Service's address of a family.
func vip(number int, v6 bool) netip.Addr {
	if v6 {
		return ip(fmt.Sprint("fd96::", number))
	}
	return ip(fmt.Sprint("10.96.0.", number))
}

// endpoints are the slices of a Service, one of each family, with a line an
// endpoint.
func endpoints(service, ports string, list ...string) string {
	var b strings.Builder
	for _, f := range []string{"IPv4", "IPv6"} {
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s-%s, labels: {kubernetes.io/service-name: %s}}\naddressType: %s\nports: [%s]\nendpoints:\n",
			service, strings.ToLower(f), service, f, ports)
		for _, e := range list {
			addrs, rest, _ := strings.Cut(e, " ")
			v4, v6, _ := strings.Cut(addrs, ",")
			addr := v4
			if f == "IPv6" {
				addr = v6
			}
			fmt.Fprintf(&b, "- {addresses: ['%s'], %s}\n", addr, rest)
		}
	}
	return b.String()
}

// Endpoints of smallCluster, as a slice has them.
const (
	clientAddrs = "10.9.1.1,fd09:1::1"
	nginxAddrs  = "10.9.1.2,fd09:1::2"
	remoteAddrs = "10.9.2.1,fd09:2::1"
	onNode1     = " nodeName: node-1, conditions: {ready: true}"
	onNode2     = " nodeName: node-2, conditions: {ready: true}"
)

const tcp8080 = "{name: http, protocol: TCP, port: 8080}"

// named has a Pod say its name to whoever asks at a port, by TCP and UDP.
func named(t *testing.T, c *harness.Cluster, port int, pods ...string) {
	t.Helper()
	for _, name := range pods {
		h := c.Pod(name)
		for _, own := range h.IPs {
			at := netip.AddrPortFrom(own, uint16(port)).String()
			err := h.NS.Do(func() error {
				l, err := net.Listen("tcp", at)
				if err != nil {
					return err
				}
				p, err := net.ListenPacket("udp", at)
				if err != nil {
					return err
				}
				t.Cleanup(func() { l.Close(); p.Close() })
				go sayName(l, name)
				go sendName(p, name)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func sayName(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprintf(conn, "%s to %s\n", name, conn.RemoteAddr())
			io.Copy(conn, conn)
		}()
	}
}

func sendName(p net.PacketConn, name string) {
	buf := make([]byte, 2048)
	for {
		_, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		fmt.Fprint(writerTo{p, from}, name+" to "+from.String())
	}
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

// dial begins a connection from a Pod. Of UDP nothing is sent yet.
func dial(t *testing.T, from *harness.Host, network string, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	var conn net.Conn
	err := from.NS.Do(func() (err error) { conn, err = net.DialTimeout(network, to.String(), 6*time.Second); return err })
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// ask says who answers on a connection: the name, and whom it sees.
func ask(conn net.Conn) (name, sees string, err error) {
	buf := make([]byte, 256)
	for range 8 {
		if conn.RemoteAddr().Network() == "udp" {
			if _, err = conn.Write([]byte("who")); err != nil {
				return "", "", err
			}
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = conn.Read(buf); err == nil {
			name, sees, _ = strings.Cut(strings.TrimSpace(string(buf[:n])), " to ")
			return name, sees, nil
		}
		var late net.Error
		if !errors.As(err, &late) || !late.Timeout() {
			return "", "", err
		}
	}
	return "", "", err
}

// served says who serves one new connection.
func served(t *testing.T, from *harness.Host, network string, to netip.AddrPort) (name, sees string) {
	t.Helper()
	conn, err := dial(t, from, network, to)
	if err != nil {
		t.Fatalf("%s to %s: %v", network, to, err)
	}
	defer conn.Close()
	if name, sees, err = ask(conn); err != nil {
		t.Fatalf("%s to %s: %v", network, to, err)
	}
	return name, sees
}

// spread counts who serves some new connections.
func spread(t *testing.T, from *harness.Host, network string, to netip.AddrPort, number int) map[string]int {
	t.Helper()
	return spreadOver(t, from, network, to, number, 0)
}

// spreadOver is spread of so many connections, and of more until so many endpoints
// have served: not for ever, but for so long that no chance explains the lack.
func spreadOver(t *testing.T, from *harness.Host, network string, to netip.AddrPort, number, endpoints int) map[string]int {
	t.Helper()
	out := make(map[string]int)
	for i := 0; i < number || len(out) < endpoints && i < number+50; i++ {
		name, _ := served(t, from, network, to)
		out[name]++
	}
	return out
}

var families = map[string]bool{"IPv4": false, "IPv6": true}

// What Pods send to a Service reaches its endpoints, here and on another node,
// with the sender's own address.
func TestServicesAreBalanced(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/nginx", "default/remote", "default/client")
	client := c.Pod("default/client")
	ports := "ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP, targetPort: 8080}]"
	both := "{name: http, protocol: TCP, port: 8080}, {name: dns, protocol: UDP, port: 8080}"
	set(t, c, smallObjects(false), clusterService("web", 1, ports), endpoints("web", both, nginxAddrs+onNode1, remoteAddrs+onNode2))
	for f, v6 := range families {
		for network, port := range map[string]uint16{"tcp": 80, "udp": 53} {
			got := spread(t, client, network, netip.AddrPortFrom(vip(1, v6), port), 30)
			if len(got) != 2 || got["default/nginx"] < 3 || got["default/remote"] < 3 {
				t.Errorf("%s %s: 30 connections were served by %v", f, network, got)
			}
			if _, sees := served(t, client, network, netip.AddrPortFrom(vip(1, v6), port)); netip.MustParseAddrPort(sees).Addr() != client.Addr(v6) {
				t.Errorf("%s %s: the endpoint sees %s, want the client's own address %s", f, network, sees, client.Addr(v6))
			}
		}
	}
}

// A Pod reaches itself by way of a Service, whatever its ingress rules say.
func TestPodReachesItselfByAService(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/client")
	client := c.Pod("default/client")
	set(t, c, smallObjects(false), clusterService("web", 1, "ports: [{name: http, port: 80, targetPort: 8080}]"), endpoints("web", tcp8080, clientAddrs+onNode1),
		policy("shut", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress]}"))
	for f, v6 := range families {
		to := netip.AddrPortFrom(vip(1, v6), 80)
		conn, err := dial(t, client, "tcp", to)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if name, _, err := ask(conn); err != nil || name != "default/client" {
			t.Fatalf("%s: %q answers, %v", f, name, err)
		}
		for i := range 20 { // Both directions, once the connection is known.
			line := fmt.Sprintf("line %d\n", i)
			fmt.Fprint(conn, line)
			buf := make([]byte, len(line))
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != line {
				t.Fatalf("%s: %q comes back, %v", f, buf, err)
			}
		}
	}
}

// Nobody who serves: refused, as nobody who listens is. Of a Service for its own
// node alone, dropped where another node has endpoints.
func TestServicesWithoutEndpoints(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	client := c.Pod("default/client")
	all := "ports: [{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}, {name: sctp, port: 80, protocol: SCTP}]"
	allPorts := "{name: tcp, protocol: TCP, port: 80}, {name: udp, protocol: UDP, port: 80}, {name: sctp, protocol: SCTP, port: 80}"
	set(t, c, smallObjects(false), clusterService("none", 1, all), endpoints("none", allPorts),
		clusterService("local", 2, "internalTrafficPolicy: Local, "+all), endpoints("local", allPorts, remoteAddrs+onNode2))
	for f, v6 := range families {
		for _, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP} {
			t.Run(fmt.Sprint(f, " ", p), func(t *testing.T) {
				outcomes(t, []harness.Probe{{From: client, To: vip(1, v6), Protocol: p, Port: 80, Answered: true}, {From: client, To: vip(2, v6), Protocol: p, Port: 80}}, harness.Reject, harness.Drop)
			})
		}
	}
}

// SCTP reaches the endpoints, and what they answer comes from the Service.
func TestServicesOfSCTP(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	client := c.Pod("default/client")
	if err := client.Serve(harness.Service{Protocol: api.ProtocolSCTP, Port: 80}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []string{remoteAddrs + onNode2, nginxAddrs + onNode1, clientAddrs + onNode1} {
		set(t, c, smallObjects(false), clusterService("assoc", 1, "ports: [{name: s, port: 3868, protocol: SCTP, targetPort: 80}]"),
			endpoints("assoc", "{name: s, protocol: SCTP, port: 80}", e),
			policy("shut", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress]}"))
		for f, v6 := range families {
			t.Run(fmt.Sprint(f, " ", e), func(t *testing.T) {
				for range 3 {
					outcomes(t, []harness.Probe{{From: client, To: vip(1, v6), Protocol: api.ProtocolSCTP, Port: 3868, Answered: true}}, harness.Allow)
				}
			})
		}
	}
}
