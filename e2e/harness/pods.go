package harness

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// PodConfig is one Pod.
type PodConfig struct {
	Namespace, Name string
	Node            string
	IPs             []netip.Addr
	Serves          []Service
}

// Service is a port that a host answers on.
type Service struct {
	Protocol api.Protocol
	Port     uint16
}

// Host is something that sends and answers: a Pod, a node, or a host outside.
type Host struct {
	NS  *NetNS
	IPs []netip.Addr

	pod    *PodConfig // Nil: no Pod.
	link   string     // Of a Pod: its port's name.
	call   *CNICall   // Of a Pod whose network the CNI plugin made.
	served []closer
	remove func() error
}

type closer interface{ Close() error }

func (h *Host) stopServing() {
	for _, s := range h.served {
		s.Close()
	}
	h.served = nil
}

func (h *Host) close() error {
	h.stopServing()
	if h.remove != nil {
		return h.remove()
	}
	return nil
}

// Addr is the host's address of a family; the zero Addr where it has none.
func (h *Host) Addr(v6 bool) netip.Addr {
	for _, ip := range h.IPs {
		if ip.Is6() == v6 {
			return ip
		}
	}
	return netip.Addr{}
}

// Pod is a Pod of the cluster, by NAMESPACE/NAME.
func (c *Cluster) Pod(name string) *Host { return c.pods[name] }

// SetPods makes exactly these Pods exist. Those that are as they should be stay.
//
// With an API server, a Pod that is to come gets its network once SetManifests
// has its object.
func (c *Cluster) SetPods(ctx context.Context, pods []PodConfig) error {
	if c.Kube != nil {
		return c.setWanted(ctx, pods)
	}
	want := make(map[string]PodConfig)
	for _, p := range pods {
		want[p.Namespace+"/"+p.Name] = p
	}
	for name, h := range c.pods {
		if p, keep := want[name]; keep && samePod(p, *h.pod) {
			continue
		}
		if err := c.removePod(ctx, name, h); err != nil {
			return err
		}
	}
	vsctl := make(map[*Node][]string)
	for _, p := range pods {
		name := p.Namespace + "/" + p.Name
		if c.pods[name] != nil {
			continue
		}
		args, err := c.addPod(ctx, p)
		if err != nil {
			return fmt.Errorf("pod %s: %w", name, err)
		}
		node := c.Nodes[p.Node]
		vsctl[node] = append(vsctl[node], args...)
	}
	for node, args := range vsctl {
		if _, err := node.OVS.Vsctl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func samePod(a, b PodConfig) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// addPod makes a Pod's namespace and link; the arguments returned plug it in.
func (c *Cluster) addPod(ctx context.Context, p PodConfig) ([]string, error) {
	node := c.Nodes[p.Node]
	if node == nil {
		return nil, fmt.Errorf("no node %q", p.Node)
	}
	c.podSerial++
	ns, err := newNetNS(ctx, fmt.Sprintf("%sp%d", c.prefix, c.podSerial))
	if err != nil {
		return nil, err
	}
	h := &Host{NS: ns, IPs: p.IPs, pod: &p, link: fmt.Sprintf("pod%d", c.podSerial), remove: ns.remove}
	c.pods[p.Namespace+"/"+p.Name] = h
	mac := fmt.Sprintf("0a:58:%02x:%02x:%02x:%02x", c.podSerial>>24&0xff, c.podSerial>>16&0xff, c.podSerial>>8&0xff, c.podSerial&0xff)
	lines := []string{
		fmt.Sprintf("link add eth0 address %s type veth peer name %s netns %s", mac, h.link, node.NS.Name),
		"link set eth0 up",
		"route add " + Gateway + " dev eth0 scope link", "route add default via " + Gateway + " dev eth0",
		"route add default via " + gateLL + " dev eth0",
	}
	var routes []string
	for _, ip := range p.IPs {
		lines = append(lines, fmt.Sprintf("addr add %s/%d dev eth0%s", ip, ip.BitLen(), nodad(ip)))
		routes = append(routes, fmt.Sprintf("route replace %s/%d dev %s", ip, ip.BitLen(), Bridge))
	}
	if err := ns.IP(ctx, lines...); err != nil {
		return nil, err
	}
	if err := run(ctx, nil, "ip", "netns", "exec", ns.Name, "ethtool", "-K", "eth0", "tx", "off"); err != nil {
		return nil, err
	}
	if err := node.NS.IP(ctx, append(routes, "link set "+h.link+" up")...); err != nil {
		return nil, err
	}
	for _, ip := range p.IPs {
		if err := c.route(ctx, ip, node, "replace"); err != nil {
			return nil, err
		}
	}
	if err := h.Serve(p.Serves...); err != nil {
		return nil, err
	}
	return []string{"--", "add-port", Bridge, h.link, "--", "set", "Interface", h.link,
		"external_ids:pod-namespace=" + p.Namespace, "external_ids:pod-name=" + p.Name, `external_ids:attached-mac="` + mac + `"`}, nil
}

func (c *Cluster) removePod(ctx context.Context, name string, h *Host) error {
	node := c.Nodes[h.pod.Node]
	delete(c.pods, name)
	if _, err := node.OVS.Vsctl(ctx, "--if-exists", "del-port", Bridge, h.link); err != nil {
		return err
	}
	for _, ip := range h.IPs {
		if err := c.route(ctx, ip, node, "del"); err != nil {
			return err
		}
	}
	return h.close()
}

// Outside is a host beyond the nodes that has an address; it is made with the
// first use.
func (c *Cluster) Outside(ctx context.Context, ip netip.Addr) (*Host, error) {
	if h := c.outside[ip]; h != nil {
		return h, nil
	}
	if err := c.Fabric.IP(ctx, fmt.Sprintf("addr add %s/%d dev fab0%s", ip, ip.BitLen(), nodad(ip))); err != nil {
		return nil, err
	}
	h := &Host{NS: c.Fabric, IPs: []netip.Addr{ip}}
	c.outside[ip] = h
	return h, nil
}

// Host is the node's own host.
func (n *Node) Host() *Host { return &Host{NS: n.NS, IPs: n.IPs} }

// Via is the node's IPv4 address on the fabric, to route through.
func (n *Node) Via() netip.Addr { return n.via[0] }

// Vias are the node's addresses on the fabric, of either family.
func (n *Node) Vias() []netip.Addr { return n.via[:] }

// SetManifests makes the text the whole content of the manifest folder, and
// waits until every node with a shim holds what follows from it and every Pod
// of the cluster that ought to has an open port.
//
// With an API server, the objects are put there instead.
func (c *Cluster) SetManifests(ctx context.Context, text []byte) error {
	if c.Kube != nil {
		if err := c.SetObjects(ctx, text); err != nil {
			return err
		}
		return c.Settled(ctx)
	}
	if err := c.WriteManifests(ctx, text); err != nil {
		return err
	}
	return c.Settled(ctx)
}

// WriteManifests makes the text the whole content of the manifest folder, and
// waits for nothing.
func (c *Cluster) WriteManifests(ctx context.Context, text []byte) error {
	err := Eventually(ctx, 10*time.Second, func() error {
		resp, err := c.Inspection().ListNodes(ctx, &policyv1.ListNodesRequest{})
		c.sequence = resp.GetPosition().GetSources()["manifests"] + 1
		return err
	})
	if err != nil {
		return fmt.Errorf("list nodes: %w\n%s", err, c.Policyd.Tail())
	}
	// Something that changes each time, so that the position tells when it was read.
	c.markers++
	marker := fmt.Sprintf("\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: weir-e2e-marker\n  labels: {sequence: %q}\n", strconv.Itoa(c.markers))
	return c.PutManifests(append(text, marker...))
}

// Applied waits until a node has what follows from the last WriteManifests in
// force, or as much of it as its ports may carry.
func (c *Cluster) Applied(ctx context.Context, node string) error {
	return Eventually(ctx, 30*time.Second, func() error {
		resp, err := c.Inspection().ListNodes(ctx, &policyv1.ListNodesRequest{})
		if err != nil {
			return fmt.Errorf("list nodes: %w\n%s", err, c.Policyd.Tail())
		}
		if seq := resp.GetPosition().GetSources()["manifests"]; seq < c.sequence {
			return fmt.Errorf("manifests are read up to %d of %d", seq, c.sequence)
		}
		for _, n := range resp.GetNodes() {
			if n.GetName() == node && n.GetInSync() {
				return nil
			}
		}
		return fmt.Errorf("node %s is not in sync: %v", node, resp.GetNodes())
	})
}

// Settled waits until the last SetManifests, or with an API server whatever it
// has by now, is in force everywhere.
func (c *Cluster) Settled(ctx context.Context) error {
	if c.Kube != nil {
		return c.settledByServer(ctx)
	}
	return Eventually(ctx, 30*time.Second, func() error {
		resp, err := c.Inspection().ListNodes(ctx, &policyv1.ListNodesRequest{})
		if err != nil {
			return fmt.Errorf("list nodes: %w\n%s", err, c.Policyd.Tail())
		}
		if seq := resp.GetPosition().GetSources()["manifests"]; seq < c.sequence {
			return fmt.Errorf("manifests are read up to %d of %d\n%s", seq, c.sequence, c.Policyd.Tail())
		}
		for _, n := range resp.GetNodes() {
			if node := c.Nodes[n.GetName()]; node != nil {
				if !n.GetInSync() {
					return fmt.Errorf("node %s is not in sync: %v\n%s", n.GetName(), n, node.Shim.Tail())
				}
				if err := node.portsOpen(int(n.GetEndpoints())); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// portsOpen compares the node's open ports with its Pods in the state and here.
func (n *Node) portsOpen(endpoints int) error {
	here := 0
	for _, h := range n.cluster.pods {
		if h.pod.Node == n.Name {
			here++
		}
	}
	text, err := n.Metrics()
	if err != nil {
		return err
	}
	want := fmt.Sprintf("weir_shim_ports_open %d", min(here, endpoints))
	if !strings.Contains(text, want+"\n") {
		return fmt.Errorf("node %s: ports are not open yet: want %q\n%s", n.Name, want, n.Shim.Tail())
	}
	return nil
}

// Port is the name of the Pod's port on the node's bridge.
func (h *Host) Port() string { return h.link }
