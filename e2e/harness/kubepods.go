package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// What a kubelet and its container runtime do with Pods, for clusters with an
// API server.

// attach gives a Pod of the API server its network by the CNI plugin: with the
// addresses that the test chose, or, where it chose none, those of the node's own
// network, as the shim configured it. The plugin returns once the Pod's port is
// open.
func (c *Cluster) attach(ctx context.Context, p PodConfig, uid string) (*Host, error) {
	node := c.Nodes[p.Node]
	if node == nil {
		return nil, fmt.Errorf("no node %q", p.Node)
	}
	c.mu.Lock()
	c.podSerial++
	serial := c.podSerial
	c.mu.Unlock()
	ns, err := newNetNS(ctx, fmt.Sprintf("%sp%d", c.prefix, serial))
	if err != nil {
		return nil, err
	}
	h := &Host{NS: ns, IPs: p.IPs, pod: &p, remove: ns.remove}
	conf, err := node.podNetwork(p.IPs)
	if err != nil {
		return h, err
	}
	h.call = &CNICall{ContainerID: fmt.Sprintf("c%d-%s", serial, uid), NetNS: "/run/netns/" + ns.Name, Config: conf,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + p.Namespace + ";K8S_POD_NAME=" + p.Name + ";K8S_POD_UID=" + uid}
	for _, ip := range p.IPs {
		if err := node.NS.IP(ctx, fmt.Sprintf("route replace %s/%d dev %s", ip, ip.BitLen(), Bridge)); err != nil {
			return h, err
		}
		if err := c.route(ctx, ip, node, "replace"); err != nil {
			return h, err
		}
	}
	add := *h.call
	add.Command = "ADD"
	out, err := node.CNI(ctx, add)
	if err != nil {
		return h, fmt.Errorf("%w\n%s", err, node.Shim.Tail())
	}
	result := &current.Result{}
	if err := json.Unmarshal(out, result); err != nil {
		return h, err
	}
	h.link = result.Interfaces[0].Name
	if len(p.IPs) == 0 {
		for _, ip := range result.IPs {
			a, _ := netip.AddrFromSlice(ip.Address.IP)
			h.IPs = append(h.IPs, a.Unmap())
		}
	}
	return h, h.Serve(p.Serves...)
}

// podNetwork is a configuration of the plugin, for fixed addresses or for the
// node's own prefixes.
func (n *Node) podNetwork(ips []netip.Addr) (map[string]any, error) {
	if len(ips) == 0 {
		return n.CNIConfig()
	}
	var addresses []any
	for _, ip := range ips {
		gateway := Gateway
		if ip.Is6() {
			gateway = gateLL
		}
		addresses = append(addresses, map[string]any{"address": netip.PrefixFrom(ip, ip.BitLen()).String(), "gateway": gateway})
	}
	return map[string]any{"cniVersion": "1.1.0", "name": "weir", "type": "weir-cni", "bridge": Bridge, "socket": n.Socket(), "ovsRunDir": n.OVS.Dir, "timeout": "20s",
		"ipam": map[string]any{"type": "static", "addresses": addresses}}, nil
}

// detach takes a Pod's network away, and then the Pod's object.
func (c *Cluster) detach(ctx context.Context, name string, h *Host) error {
	node := c.Nodes[h.pod.Node]
	delete(c.pods, name)
	del := *h.call
	del.Command = "DEL"
	_, err := node.CNI(ctx, del)
	if err != nil {
		return err
	}
	for _, ip := range h.pod.IPs {
		if err := node.NS.IP(ctx, fmt.Sprintf("route del %s/%d dev %s", ip, ip.BitLen(), Bridge)); err != nil {
			return err
		}
		if err := c.route(ctx, ip, node, "del"); err != nil {
			return err
		}
	}
	if err := h.close(); err != nil {
		return err
	}
	return c.objects.remove(ctx, objectKey{podsResource, h.pod.Namespace, h.pod.Name})
}

// attachesAtOnce is how many Pods a test brings up at a time.
const attachesAtOnce = 4

// SetObjects makes the text all that there is in the API server, but for what is
// always there, and waits for nothing. Pods that SetPods asked for get their
// network by the CNI plugin, and their status afterwards, as a kubelet has it.
func (c *Cluster) SetObjects(ctx context.Context, text []byte) error {
	list, err := decodeObjects(text)
	if err != nil {
		return err
	}
	if err := c.objects.only(ctx, list); err != nil {
		return err
	}
	slices.SortStableFunc(list, func(a, b *unstructured.Unstructured) int { return rankOf(a) - rankOf(b) })
	var arrivals []arrival
	for _, o := range list {
		name := o.GetNamespace() + "/" + o.GetName()
		now, err := c.objects.apply(ctx, o)
		if apierrors.IsInvalid(err) && o.GetKind() == "Pod" { // What cannot change in a Pod makes another of it.
			if err := c.removePodObject(ctx, name, o); err != nil {
				return err
			}
			now, err = c.objects.apply(ctx, o)
		}
		if err != nil {
			return err
		}
		p, wanted := c.wanted[name]
		if o.GetKind() != "Pod" || !wanted || c.pods[name] != nil {
			if err := c.objects.applyStatus(ctx, o); err != nil {
				return err
			}
			continue
		}
		arrivals = append(arrivals, arrival{name, p, now})
	}
	return c.arrive(ctx, arrivals)
}

// arrival is a Pod that is to get its network.
type arrival struct {
	name   string
	pod    PodConfig
	object *unstructured.Unstructured
}

// arrive gives Pods their networks and then their status, several at a time.
func (c *Cluster) arrive(ctx context.Context, arrivals []arrival) error {
	var work sync.WaitGroup
	slots := make(chan struct{}, attachesAtOnce)
	var mu sync.Mutex // Guards errs and c.pods.
	var errs []error
	for _, a := range arrivals {
		work.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			h, err := c.attach(ctx, a.pod, string(a.object.GetUID()))
			if err == nil {
				err = c.writeStatus(ctx, a.object, h)
			}
			mu.Lock()
			defer mu.Unlock()
			if h != nil {
				c.pods[a.name] = h
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("pod %s: %w", a.name, err))
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// removePodObject takes away a Pod, with its network if it has one.
func (c *Cluster) removePodObject(ctx context.Context, name string, o *unstructured.Unstructured) error {
	if h := c.pods[name]; h != nil {
		return c.detach(ctx, name, h)
	}
	return c.objects.remove(ctx, objectKey{podsResource, o.GetNamespace(), o.GetName()})
}

// writeStatus writes what a kubelet does once a Pod's sandbox is there.
func (c *Cluster) writeStatus(ctx context.Context, o *unstructured.Unstructured, h *Host) error {
	var ips []any
	for _, ip := range h.IPs {
		ips = append(ips, map[string]any{"ip": ip.String()})
	}
	o = o.DeepCopy()
	o.Object["status"] = map[string]any{"phase": "Running", "podIP": h.IPs[0].String(), "podIPs": ips}
	return c.objects.applyStatus(ctx, o)
}

// rankOf puts first what others need: Namespaces, and policies before the Pods
// that they cover.
func rankOf(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "Namespace":
		return 0
	case "Pod":
		return 2
	}
	return 1
}

// setWanted takes over which Pods are to have a network, and takes those down
// that are not among them any more.
func (c *Cluster) setWanted(ctx context.Context, pods []PodConfig) error {
	c.wanted = make(map[string]PodConfig)
	for _, p := range pods {
		c.wanted[p.Namespace+"/"+p.Name] = p
	}
	for name, h := range c.pods {
		if p, keep := c.wanted[name]; keep && samePod(p, *h.pod) {
			continue
		}
		if err := c.detach(ctx, name, h); err != nil {
			return err
		}
	}
	return nil
}

// readBy waits until every policy service has read what was written.
func (c *Cluster) readBy(ctx context.Context) error {
	c.markers++
	return c.objects.mark(ctx, c.markers, func(version uint64) error {
		for i, conn := range c.conns {
			err := Eventually(ctx, 30*time.Second, func() error {
				resp, err := policyv1.NewInspectionServiceClient(conn).ListNodes(ctx, &policyv1.ListNodesRequest{Local: true})
				if err != nil {
					return fmt.Errorf("list nodes: %w\n%s", err, c.Policyds[i].Tail())
				}
				if at := resp.GetPosition().GetSources()["kubernetes"]; at < version {
					return fmt.Errorf("policy service %d has read up to %d of %d", i, at, version)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// nodesNow are the nodes as the policy services see them, each by the one that it
// is connected to.
func (c *Cluster) nodesNow(ctx context.Context) (map[string]*policyv1.NodeSummary, error) {
	out := make(map[string]*policyv1.NodeSummary)
	for _, conn := range c.conns {
		resp, err := policyv1.NewInspectionServiceClient(conn).ListNodes(ctx, &policyv1.ListNodesRequest{Local: true})
		if err != nil {
			return nil, err
		}
		for _, n := range resp.GetNodes() {
			if other := out[n.GetName()]; other == nil || n.GetConnected() {
				out[n.GetName()] = n
			}
		}
	}
	return out, nil
}

// settledByServer waits until what the API server has is in force everywhere.
func (c *Cluster) settledByServer(ctx context.Context) error {
	if err := c.readBy(ctx); err != nil {
		return err
	}
	return c.inForce(ctx, (*Node).portsOpen)
}

// InSync waits until every node is in sync with a policy service.
func (c *Cluster) InSync(ctx context.Context) error {
	return c.inForce(ctx, func(*Node, int) error { return nil })
}

// inForce waits until every node is in sync, and also is satisfied with it and
// its number of endpoints.
func (c *Cluster) inForce(ctx context.Context, also func(*Node, int) error) error {
	return Eventually(ctx, 30*time.Second, func() error {
		nodes, err := c.nodesNow(ctx)
		if err != nil {
			return err
		}
		for name, n := range c.Nodes {
			if !nodes[name].GetInSync() {
				return fmt.Errorf("node %s is not in sync: %v\n%s", name, nodes[name], n.Shim.Tail())
			}
			if err := also(n, int(nodes[name].GetEndpoints())); err != nil {
				return err
			}
		}
		return nil
	})
}
