package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// Who is at a node's ports: a stand-in for kube-proxy, in one of its modes, or
// servers of the host itself.
var atNodePorts = map[string]func(t *testing.T, c *harness.Cluster, ports ...uint16){
	"nftables": func(t *testing.T, c *harness.Cluster, ports ...uint16) {
		var list []harness.Proxied
		for _, port := range ports {
			for _, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP} {
				list = append(list, harness.Proxied{Protocol: p, Port: port, Endpoints: behindWeb})
			}
		}
		for _, n := range c.Nodes {
			must(t, n.SetProxied(t.Context(), list))
		}
	},
	"iptables": func(t *testing.T, c *harness.Cluster, ports ...uint16) {
		for i, tool := range []string{"iptables", "ip6tables"} {
			rules := "*nat\n"
			for _, port := range ports {
				for _, p := range []string{"tcp", "udp"} {
					at := fmt.Sprintf("-A PREROUTING -m addrtype --dst-type LOCAL -p %s --dport %d ", p, port)
					rules += at + "-j MARK --set-xmark 0x4000/0x4000\n" +
						at + "-m statistic --mode random --probability 0.5 -j DNAT --to-destination " + behindWeb[2*i].String() + "\n" +
						at + "-j DNAT --to-destination " + behindWeb[2*i+1].String() + "\n"
				}
			}
			for _, n := range c.Nodes {
				restore := n.NS.Command(t.Context(), tool+"-restore")
				restore.Stdin = strings.NewReader(rules + "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\nCOMMIT\n")
				if out, err := restore.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
		}
	},
	"the host": func(t *testing.T, c *harness.Cluster, ports ...uint16) {
		for _, n := range c.Nodes {
			h := &harness.Host{NS: n.NS, IPs: nodeAddresses(n)}
			for _, port := range ports {
				must(t, h.Serve(harness.Service{Protocol: api.ProtocolTCP, Port: port}, harness.Service{Protocol: api.ProtocolUDP, Port: port}))
			}
		}
	},
}

// behindWeb are the endpoints of the Service that is on nodes.
var behindWeb = []netip.AddrPort{netip.MustParseAddrPort("10.9.1.2:8080"), netip.MustParseAddrPort("10.9.2.1:8080"), netip.MustParseAddrPort("[fd09:1::2]:8080"), netip.MustParseAddrPort("[fd09:2::1]:8080")}

func nodeAddresses(n *harness.Node) []netip.Addr { return append(n.Vias(), n.IPs...) }

// webOnNodes is the Service web with a port on nodes, of TCP and UDP.
func webOnNodes(port int) string {
	return clusterService("web", 1, fmt.Sprintf("type: NodePort, ports: [{name: http, port: 80, targetPort: 8080, nodePort: %[1]d}, {name: dns, port: 53, protocol: UDP, targetPort: 8080, nodePort: %[1]d}]", port)) +
		endpoints("web", webTargets, entry("default/nginx", ready), entry("default/remote", ready))
}

// forNodePorts is a policy for the Service web.
func forNodePorts(rules string) string {
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: guard}\nspec: {priority: 1, appliedTo: [{service: {name: web, namespace: default}}], ingress: [%s]}\n", rules)
}

// strangers are sources that policies name, and neighbours that they do not.
const strangers = "from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}}, {ipBlock: {cidr: '2001:db8:66::/64'}}]"

// clients are hosts outside: strangers and neighbours by family.
type clients struct{ stranger, neighbour map[bool]*harness.Host }

func outsideClients(t *testing.T, c *harness.Cluster) (out clients) {
	t.Helper()
	at := func(v4, v6 string) map[bool]*harness.Host {
		hosts := make(map[bool]*harness.Host)
		for _, text := range []string{v4, v6} {
			h, err := c.Outside(t.Context(), ip(text))
			must(t, err)
			hosts[ip(text).Is6()] = h
		}
		return hosts
	}
	return clients{at("198.51.100.7", "2001:db8:66::7"), at("198.51.100.200", "2001:db8:67::7")}
}

// meet tries every address of both nodes from everybody, by TCP and UDP.
func (cl clients) meet(t *testing.T, c *harness.Cluster, port uint16, stranger, neighbour string) {
	t.Helper()
	var probes []harness.Probe
	var want []string
	for _, n := range c.Nodes {
		for _, to := range nodeAddresses(n) {
			for _, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP} {
				probes = append(probes, harness.Probe{From: cl.stranger[to.Is6()], To: to, Protocol: p, Port: port}, harness.Probe{From: cl.neighbour[to.Is6()], To: to, Protocol: p, Port: port})
				want = append(want, stranger, neighbour)
			}
		}
	}
	outcomes(t, probes, want...)
}

// A policy for a NodePort Service judges who sends to its ports on any address of
// any node, whoever translates them; it follows the Service's ports, leaves
// connections be that were there before, and is on record.
func TestNodePorts(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	for name, serve := range atNodePorts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := smallCluster(t)
			named(t, c, 8080, "default/nginx", "default/remote")
			cl := outsideClients(t, c)
			serve(t, c, 30080, 30090)
			set(t, c, smallObjects(false), webOnNodes(30080), forNodePorts("{action: Drop, from: [{ipBlock: {cidr: 203.0.113.0/24}}]}"))
			cl.meet(t, c, 30080, harness.Allow, harness.Allow)
			before, err := dialFrom(t, cl.stranger[false], netip.AddrPortFrom(c.Nodes["node-1"].IPs[0], 30080))
			must(t, err)
			if name != "the host" { // It is a Pod that answers.
				if server, _, err := ask(before); err != nil || !strings.HasPrefix(server, "default/") {
					t.Fatalf("%q answers, %v", server, err)
				}
			}

			set(t, c, smallObjects(false), webOnNodes(30080), forNodePorts("{name: out, action: Drop, enableLogging: true, "+strangers+"}"))
			cl.meet(t, c, 30080, harness.Drop, harness.Allow)
			cl.meet(t, c, 30090, harness.Allow, harness.Allow)
			echoes(t, "a connection from before the policy", before)
			for v6, stranger := range cl.stranger {
				source := uint16(22000)
				if v6 {
					source++
				}
				to := c.Nodes["node-2"].Host().Addr(v6)
				outcomes(t, []harness.Probe{{From: stranger, To: to, Protocol: api.ProtocolTCP, Port: 30080, SourcePort: source}}, harness.Drop)
				r := recordOf(t, c, int(source))
				if p := r.Packet; r.Node != "node-2" || p.Table != "NodePort" || p.Action != "drop" || p.AppliedTo != "node:node-2" || p.Direction != "ingress" || p.DestinationPort != 30080 ||
					p.SourceIP != stranger.IPs[0].String() || p.DestinationIP != to.String() || fmt.Sprint(p.Policies) != "[AntreaClusterNetworkPolicy:guard]" {
					t.Errorf("record %+v", r)
				}
				logged(t, c, "node-2", fmt.Sprintf(" node:node-2 %s %d %s 30080 TCP ", stranger.IPs[0], source, to))
			}

			set(t, c, smallObjects(false), webOnNodes(30080), forNodePorts("{action: Reject, "+strangers+"}"))
			cl.meet(t, c, 30080, harness.Reject, harness.Allow)
			set(t, c, smallObjects(false), webOnNodes(30090), forNodePorts("{action: Drop, "+strangers+"}"))
			cl.meet(t, c, 30080, harness.Allow, harness.Allow)
			cl.meet(t, c, 30090, harness.Drop, harness.Allow)
			set(t, c, smallObjects(false), webOnNodes(30090), forNodePorts("{action: Allow, "+strangers+"}, {action: Drop}"))
			cl.meet(t, c, 30090, harness.Allow, harness.Drop)
			set(t, c, smallObjects(false), webOnNodes(30090))
			cl.meet(t, c, 30090, harness.Allow, harness.Allow)
		})
	}
}

// dialFrom connects by TCP from a host's own address.
func dialFrom(t *testing.T, from *harness.Host, to netip.AddrPort) (conn net.Conn, err error) {
	t.Helper()
	err = from.NS.Do(func() (err error) {
		d := net.Dialer{Timeout: 6 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.Addr(to.Addr().Is6()), 0))}
		conn, err = d.Dial("tcp", to.String())
		return err
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}
