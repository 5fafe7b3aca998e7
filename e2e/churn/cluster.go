package churn

import (
	"fmt"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/e2e/differential"
	"github.com/weirnet/weir/services/policy/api"
)

// The cluster's shape. A tenant is a few Namespaces whose Pods run on a few
// nodes and whose policies name each other's, so that spans are small, as in a
// cluster of a thousand nodes they mostly are. Two things are wider: Pods of
// one Namespace that many tenants' policies name, so that their changes reach
// hundreds of nodes, and one policy that names all Pods.
const (
	tenantNodes    = 4
	podsPerNode    = 10
	policySlots    = 2 // Policies of a Namespace, at most.
	sharedPods     = 10
	hostsPerNode   = 200
	sharedSpace    = "shared"
	tenantLabel    = "example.com/tenant"
	sharedLabel    = "example.com/shared"
	widePolicyName = "wide"
)

// change is one change of the cluster: of an object, and where it is of a Pod,
// of its node's bridge too.
type change struct {
	event api.Event
	ports []portChange
}

// portChange adds a Pod's port to a node's bridge, or takes it off.
type portChange struct {
	node int
	name string // Of the interface.
	gone bool

	namespace, pod, mac string
}

// cluster makes changes. What it draws depends on the seed alone.
type cluster struct {
	rand    *rand.Rand
	objects *differential.Objects
	nodes   []*site
	tenants []*tenant
	shared  []*pod
	ports   uint64 // That were ever made.

	out []change // Of the call under way.
	err error
}

// site is a node as Pods see it.
type site struct {
	name  string
	there bool               // Its Node object.
	hosts [hostsPerNode]bool // Addresses that running Pods have.
}

type tenant struct {
	name     string
	spaces   []string // Its Namespaces.
	nodes    []int
	pods     []*pod
	policies []*policySlot
	there    map[string]bool // Namespaces whose object is there.
}

// pod is a name for a Pod, and the Pod that bears it, if there is one.
type pod struct {
	namespace, name string
	nodes           []int // Where it may run.

	object *corev1.Pod
	node   int
	host   int    // Address on its node; -1: none.
	port   string // Interface on the node's bridge; empty: none.
}

type policySlot struct {
	namespace, name string
	there           bool
}

func newCluster(seed uint64, nodes int) *cluster {
	r := rand.New(rand.NewPCG(seed, 0x636c7573746572))
	c := &cluster{rand: r, objects: differential.NewObjects(r)}
	for i := range nodes {
		c.nodes = append(c.nodes, &site{name: fmt.Sprintf("node-%04d", i)})
	}
	for first := 0; first < nodes; first += tenantNodes {
		t := &tenant{name: fmt.Sprintf("t%03d", first/tenantNodes), there: map[string]bool{}}
		for i := first; i < min(first+tenantNodes, nodes); i++ {
			t.nodes = append(t.nodes, i)
		}
		for _, suffix := range differential.NamespaceNames() {
			space := t.name + "-" + suffix
			t.spaces = append(t.spaces, space)
			for i := range policySlots {
				t.policies = append(t.policies, &policySlot{namespace: space, name: fmt.Sprint("np", i)})
			}
		}
		for i := range podsPerNode * len(t.nodes) {
			t.pods = append(t.pods, &pod{namespace: t.spaces[i%len(t.spaces)], name: fmt.Sprint("p", i), nodes: t.nodes})
		}
		c.tenants = append(c.tenants, t)
	}
	everywhere := make([]int, nodes)
	for i := range everywhere {
		everywhere[i] = i
	}
	for i := range sharedPods {
		c.shared = append(c.shared, &pod{namespace: sharedSpace, name: fmt.Sprint("s", i), nodes: everywhere})
	}
	return c
}

// begin is the cluster at the start: most of what there may be.
func (c *cluster) begin() ([]change, error) {
	shared := c.objects.Namespace(sharedSpace)
	shared.Labels = map[string]string{sharedLabel: "true"}
	c.set(shared)
	c.set(widePolicy(c.tenants[0].spaces[0]))
	for i := range c.nodes {
		c.setNode(i)
	}
	c.setTier()
	for _, t := range c.tenants {
		for _, space := range t.spaces {
			c.setNamespace(t, space)
		}
		for _, p := range t.pods {
			if c.chance(70) {
				c.create(p)
			}
		}
		for _, p := range t.policies {
			if c.chance(75) {
				c.setPolicy(t, p)
			}
		}
		c.setGroup(t)
		c.setOrdered(t, 0)
	}
	for _, p := range c.shared {
		c.create(p)
	}
	return c.take()
}

// next is what happens next: one change, or a few that belong together.
func (c *cluster) next() ([]change, error) {
	t := pick(c, c.tenants)
	switch n := c.rand.IntN(100); {
	case n < 70:
		c.changePod(t, pick(c, t.pods))
	case n < 72:
		c.changePod(nil, pick(c, c.shared))
	case n < 86:
		p := pick(c, t.policies)
		if p.there && c.chance(30) {
			p.there = false
			c.remove(api.Ref{Kind: api.KindNetworkPolicy, Namespace: p.namespace, Name: p.name})
		} else {
			c.setPolicy(t, p)
		}
	case n < 89:
		c.changeOrdered(t)
	case n < 94:
		space := pick(c, t.spaces)
		if t.there[space] && c.chance(15) {
			t.there[space] = false
			c.remove(api.Ref{Kind: api.KindNamespace, Name: space})
		} else {
			c.setNamespace(t, space)
		}
	default:
		i := c.rand.IntN(len(c.nodes))
		if site := c.nodes[i]; site.there && c.chance(30) {
			site.there = false
			c.remove(api.Ref{Kind: api.KindNode, Name: site.name})
		} else {
			c.setNode(i)
		}
	}
	return c.take()
}

func (c *cluster) take() ([]change, error) {
	out := c.out
	c.out = nil
	return out, c.err
}

func pick[T any](c *cluster, list []T) T { return list[c.rand.IntN(len(list))] }

// chance is true in so many of a hundred cases.
func (c *cluster) chance(percent int) bool { return c.rand.IntN(100) < percent }

func (c *cluster) set(o differential.Object, ports ...portChange) {
	object, err := differential.Convert(o)
	if err != nil {
		c.err = fmt.Errorf("an object that validation refuses: %w", err)
		return
	}
	c.out = append(c.out, change{event: api.Event{Ref: object.Ref(), Object: object}, ports: ports})
}

func (c *cluster) remove(ref api.Ref, ports ...portChange) {
	c.out = append(c.out, change{event: api.Event{Ref: ref}, ports: ports})
}

func (c *cluster) setNamespace(t *tenant, name string) {
	t.there[name] = true
	o := c.objects.Namespace(name)
	o.Labels[tenantLabel] = t.name
	c.set(o)
}

// setNode gives a node its object, with gateways and addresses that change.
func (c *cluster) setNode(i int) {
	site := c.nodes[i]
	site.there = true
	o := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
	o.Name = site.name
	o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.16.%d.%d", i>>8, i&255)}}
	if c.chance(50) {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd01::%x", i+1)})
	}
	o.Spec.PodCIDRs = []string{fmt.Sprintf("10.%d.%d.0/24", 64+i>>8, i&255)}
	if c.chance(50) {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, fmt.Sprintf("fd00:%x::/64", i+1))
	}
	if c.chance(15) {
		o.Annotations = map[string]string{api.AnnotationTransport: fmt.Sprintf("192.168.%d.%d", i>>8, i&255)}
	}
	c.set(o)
}
