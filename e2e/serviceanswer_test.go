package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// listen has a wire keep what comes to the Pod.
func (w *wire) listen(t *testing.T) {
	t.Helper()
	must(t, unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}))
	must(t, unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8&0xffff | unix.ETH_P_ALL>>8, Ifindex: w.to.Ifindex}))
}

// next is the next packet that comes to a port of the Pod's.
func (w *wire) next(t *testing.T, port uint16) (p bridge.Packet) {
	t.Helper()
	buf := make([]byte, 2048)
	must(t, harness.Eventually(t.Context(), 10*time.Second, func() error {
		for {
			n, _, err := unix.Recvfrom(w.fd, buf, 0)
			if err != nil {
				return fmt.Errorf("nothing comes to port %d: %w", port, err)
			}
			if p, err = bridge.ParseFrame(buf[:n]); err == nil && p.EthDst == w.mac && p.DstPort == port {
				return nil
			}
		}
	}))
	return p
}

// What a client sends to a Service is known to conntrack before it is judged. If it
// is denied, and the endpoint sends from the port where the Service led to the port
// that it came from, that is no answer, and does not pass by the Service's address:
// here a rule keeps the endpoint from the client, and none speaks of the Service.
func TestNoAnswersByAServiceToWhatIsDenied(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	client := openWire(t, c.Pod("default/client"))
	client.listen(t)
	toHost := make(map[string][6]byte) // By node.
	for name, n := range c.Nodes {
		text, err := n.BridgeMAC()
		must(t, err)
		mac, err := net.ParseMAC(text)
		must(t, err)
		toHost[name] = [6]byte(mac)
	}
	port := uint16(20000)
	for _, tc := range []struct{ name, server, node, denied string }{
		{"denied at the endpoint", "nginx", "node-1", ordered("shut", "nginx", "ingress: [{action: Drop, from: [{podSelector: {matchLabels: {app: client}}}]}]")},
		{"denied at the client", "nginx", "node-1", ordered("shut", "client", "egress: [{action: Drop, to: [{podSelector: {matchLabels: {app: nginx}}}]}]")},
		{"denied at the client, and the endpoint is elsewhere", "remote", "node-2", ordered("shut", "client", "egress: [{action: Drop, to: [{podSelector: {matchLabels: {app: remote}}}]}]")},
	} {
		server := tc.server
		set(t, c, smallObjects(false), clusterService("web", 1, webPorts), endpoints("web", webTargets, entry("default/"+server, ready)), tc.denied,
			ordered("keep-off", "client", "ingress: [{action: Drop, from: [{podSelector: {matchLabels: {app: "+server+"}}}], ports: [{protocol: TCP, sourcePort: 8080}, {protocol: UDP, sourcePort: 8080}]}]"))
		endpoint := openWire(t, c.Pod("default/"+server))
		for f, v6 := range families {
			for network, vipPort := range webNetworks {
				port++
				own, theirs := c.Pod("default/client").Addr(v6), c.Pod("default/"+server).Addr(v6)
				asks := bridge.Packet{EthSrc: client.mac, EthDst: toHost["node-1"], EthType: openflow.EtherIPv4, IPSrc: own, IPDst: vip(1, v6), IPProto: openflow.ProtoUDP, TTL: 64, SrcPort: port, DstPort: vipPort}
				answers := bridge.Packet{EthSrc: endpoint.mac, EthDst: toHost[tc.node], EthType: openflow.EtherIPv4, IPSrc: theirs, IPDst: own, IPProto: openflow.ProtoUDP, TTL: 64, SrcPort: 8080, DstPort: port}
				if v6 {
					asks.EthType, answers.EthType = openflow.EtherIPv6, openflow.EtherIPv6
				}
				if network == "tcp" {
					asks.IPProto, asks.TCPFlags, answers.IPProto, answers.TCPFlags = openflow.ProtoTCP, bridge.TCPSyn, openflow.ProtoTCP, bridge.TCPSyn|bridge.TCPAck
				}
				client.send(t, asks.Frame())
				known := fmt.Sprintf("reply=(src=%s,dst=%s,sport=8080,dport=%d)", theirs, own, port)
				eventually(t, func() error {
					out, err := c.Nodes["node-1"].OVS.Appctl(t.Context(), "dpctl/dump-conntrack")
					if err == nil && !strings.Contains(string(out), known) {
						err = errors.New("conntrack does not know " + known + ":\n" + string(out))
					}
					return err
				})
				other := answers // From a port that no rule speaks of: it comes behind the former.
				other.TCPFlags &^= bridge.TCPAck
				for other.SrcPort = 9000; other.SrcPort < 9003; other.SrcPort++ {
					endpoint.send(t, answers.Frame())
					endpoint.send(t, other.Frame())
					for p := client.next(t, port); p.SrcPort != other.SrcPort; p = client.next(t, port) {
						t.Errorf("%s, %s %s: it is answered, from %s, port %d", tc.name, f, network, p.IPSrc, p.SrcPort)
					}
				}
			}
		}
	}
}
