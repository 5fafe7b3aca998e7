package churn

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api"
)

// changePod is one thing that happens to a Pod. A Pod of no tenant keeps its
// labels.
func (c *cluster) changePod(t *tenant, p *pod) {
	if p.object == nil {
		c.create(p)
		return
	}
	switch n := c.rand.IntN(10); {
	case n < 3:
		c.delete(p)
	case n < 4: // It is gone, and another of its name is there.
		c.delete(p)
		c.create(p)
	case n < 6 && t != nil:
		p.object.Labels = c.objects.Labels()
		c.set(p.object)
	case n < 8:
		c.readdress(p)
	case n < 9 && t != nil:
		c.handOver(p, pick(c, t.pods))
	default:
		c.replug(p)
	}
}

// create begins a Pod of any labels and ports somewhere. Most often it runs.
func (c *cluster) create(p *pod) {
	c.schedule(p, pick(c, p.nodes))
	if c.chance(90) {
		c.place(p, c.freeHost(p.node))
	} else { // It has no address yet.
		p.object.Status.Phase = corev1.PodPending
	}
	c.set(p.object, c.plug(p))
}

// schedule makes a new Pod of a node, without addresses and port.
func (c *cluster) schedule(p *pod, node int) {
	o := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	o.Namespace, o.Name, o.Labels = p.namespace, p.name, c.objects.Labels()
	c.objects.Containers(o)
	o.Spec.NodeName, o.Status.Phase = c.nodes[node].name, corev1.PodRunning
	p.object, p.node, p.host = o, node, -1
}

func (c *cluster) delete(p *pod) {
	ports := c.unplug(p)
	c.vacate(p)
	c.remove(api.Ref{Kind: api.KindPod, Namespace: p.namespace, Name: p.name}, ports...)
	p.object = nil
}

// readdress gives a Pod other addresses, or its first.
func (c *cluster) readdress(p *pod) {
	host := c.freeHost(p.node)
	c.vacate(p)
	c.place(p, host)
	p.object.Status.Phase = corev1.PodRunning
	c.set(p.object)
}

// handOver ends a Pod, perhaps without its object's going, and gives its
// address to another.
func (c *cluster) handOver(p, heir *pod) {
	if p.host < 0 || heir == p {
		return
	}
	node, host := p.node, p.host
	if c.chance(50) {
		c.delete(p)
	} else {
		ports := c.unplug(p)
		c.nodes[node].hosts[host] = false
		p.host = -1
		p.object.Status.Phase = corev1.PodSucceeded
		c.set(p.object, ports...)
	}
	if heir.object != nil {
		c.delete(heir)
	}
	c.schedule(heir, node)
	c.place(heir, host)
	c.set(heir.object, c.plug(heir))
}

// replug gives a Pod another port of its bridge.
func (c *cluster) replug(p *pod) {
	ports := append(c.unplug(p), c.plug(p))
	c.set(p.object, ports...)
}

// plug is a new port for a Pod.
func (c *cluster) plug(p *pod) portChange {
	c.ports++
	p.port = fmt.Sprintf("eth%d", c.ports)
	mac := fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", byte(c.ports>>24), byte(c.ports>>16), byte(c.ports>>8), byte(c.ports))
	return portChange{node: p.node, name: p.port, namespace: p.namespace, pod: p.name, mac: mac}
}

// unplug takes a Pod's port away, if it has one.
func (c *cluster) unplug(p *pod) []portChange {
	if p.port == "" {
		return nil
	}
	gone := portChange{node: p.node, name: p.port, gone: true}
	p.port = ""
	return []portChange{gone}
}

// freeHost is an address of a node that no running Pod has.
func (c *cluster) freeHost(node int) int {
	for host := c.rand.IntN(hostsPerNode); ; host = (host + 1) % hostsPerNode {
		if !c.nodes[node].hosts[host] {
			return host
		}
	}
}

// place gives a Pod an address of its node, of either family or both.
func (c *cluster) place(p *pod, host int) {
	p.host = host
	c.nodes[p.node].hosts[host] = true
	four := corev1.PodIP{IP: fmt.Sprintf("10.%d.%d.%d", 64+p.node>>8, p.node&255, host+10)}
	six := corev1.PodIP{IP: fmt.Sprintf("fd00:%x::%x", p.node+1, host+10)}
	switch c.rand.IntN(6) {
	case 0:
		p.object.Status.PodIPs = []corev1.PodIP{six}
	case 1:
		p.object.Status.PodIPs = []corev1.PodIP{four, six}
	case 2:
		p.object.Status.PodIPs = []corev1.PodIP{six, four}
	default:
		p.object.Status.PodIPs = []corev1.PodIP{four}
	}
}

// vacate takes a Pod's addresses away.
func (c *cluster) vacate(p *pod) {
	if p.host >= 0 {
		c.nodes[p.node].hosts[p.host] = false
	}
	p.host, p.object.Status.PodIPs = -1, nil
}
