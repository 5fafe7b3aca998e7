package differential

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weirnet/weir/services/policy/api"
)

// Generate makes the Case of a seed.
func Generate(seed uint64) Case {
	c := generate(rand.New(rand.NewPCG(seed, 0x7765697200)))
	c.Name = fmt.Sprint("seed ", seed)
	return c
}

// GenerateFrom makes a Case of bytes, each of which is one choice; where they
// end, every choice is the plainest.
func GenerateFrom(data []byte) Case {
	choices := bytesChooser(data)
	c := generate(&choices)
	c.Name = fmt.Sprintf("%d bytes", len(data))
	return c
}

// chooser makes choices: IntN returns one of 0 to n-1.
type chooser interface{ IntN(n int) int }

type bytesChooser []byte

func (b *bytesChooser) IntN(n int) int {
	if len(*b) == 0 {
		return 0
	}
	v := int((*b)[0])
	*b = (*b)[1:]
	return v % n
}

// The world of every Case. It is small, so that things meet.
const (
	maxPods   = 10
	maxPorts  = 14 // Of a bridge.
	maxNodes  = 3
	maxSteps  = 8
	probes    = 24 // That are tried in a step; later ones have half.
	firstPort = 40000
)

var (
	namespaceNames = []string{"a", "b", "c", "d"}
	labelKeys      = []string{"app", "tier", "example.com/role"}
	labelValues    = []string{"x", "y", "z", ""}
	portNames      = []string{"http", "dns", "alt"}
	portNumbers    = []int32{1, 53, 79, 80, 81, 443, 1023, 1024, 8080, 8081, 32768, 65535}
	protocols      = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	outside        = []netip.Addr{
		netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.8"), netip.MustParseAddr("203.0.113.200"),
		netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8::8"), netip.MustParseAddr("2001:db8:f::1"),
	}
)

// generator holds the cluster as it stands after the events so far.
type generator struct {
	chooser
	namespaces []string
	nodes      []string
	objects    map[api.Ref]Object
	ports      map[Pod]Port
	lastPort   uint16
	former     []Object // That were replaced or removed.
}

func generate(choices chooser) Case {
	g := &generator{chooser: choices, objects: map[api.Ref]Object{}, ports: map[Pod]Port{}, lastPort: firstPort}
	g.namespaces = namespaceNames[:1+g.IntN(len(namespaceNames))]
	for i := range 1 + g.IntN(maxNodes) {
		g.nodes = append(g.nodes, fmt.Sprint("n", i+1))
	}
	c := Case{ClauseCap: one(g, 0, 1, 2, 3), FrameLimit: one(g, 1<<20, 200)}
	steps := 1
	if g.chance(40) {
		steps += 1 + g.IntN(maxSteps-1)
	}
	for i := range steps {
		var events []Event
		if i == 0 {
			events = g.begin()
		} else {
			events = g.change()
		}
		s := Step{Events: events, Ports: maps.Clone(g.ports), Probes: g.probes(probes / min(i+1, 2))}
		if i > 0 && g.chance(15) {
			s.Restarted = one(g, g.nodes...)
		}
		c.Steps = append(c.Steps, s)
	}
	return c
}

// chance is true in so many of a hundred cases; never, where choices have ended.
func (g *generator) chance(percent int) bool { return g.IntN(100) >= 100-percent }

func one[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

func (g *generator) apply(e Event) Event {
	if o := g.objects[e.Ref]; o != nil {
		g.former = append(g.former, o)
	}
	if e.Object == nil {
		delete(g.objects, e.Ref)
	} else {
		g.objects[e.Ref] = e.Object
	}
	return e
}

// begin is the first step's cluster.
func (g *generator) begin() []Event {
	var events []Event
	for i := range g.nodes {
		if !g.chance(5) {
			events = append(events, g.apply(set(g.node(i))))
		}
	}
	for _, name := range g.namespaces {
		if !g.chance(15) {
			events = append(events, g.apply(set(g.namespace(name))))
		}
	}
	for i := range 2 + g.IntN(maxPods-1) {
		events = append(events, g.apply(set(g.pod(one(g, g.namespaces...), fmt.Sprint("p", i)))))
	}
	for range g.IntN(5) { // Before the policies, which name them.
		events = append(events, g.apply(set(g.serviceObject())))
	}
	for range g.IntN(3) {
		events = append(events, g.apply(set(g.sliceObject())))
	}
	for i := range g.IntN(7) {
		events = append(events, g.apply(set(g.policy(one(g, g.namespaces...), fmt.Sprint("np", i)))))
	}
	for range g.IntN(6) {
		events = append(events, g.apply(set(g.orderedPolicy())))
	}
	if g.chance(25) {
		for i := range 1 + g.IntN(3) {
			events = append(events, g.apply(set(g.nodePortPolicy(fmt.Sprint("ports-", i)))))
		}
	}
	if g.chance(30) {
		for i := range 1 + g.IntN(3) {
			events = append(events, g.apply(set(g.hostPolicy(fmt.Sprint("hosts-", i)))))
		}
	}
	for range g.IntN(6) {
		events = append(events, g.apply(set(g.referent())))
	}
	events = latest(events)
	if g.chance(50) { // Policies first, or Pods before their Namespaces.
		for i := len(events) - 1; i > 0; i-- {
			j := g.IntN(i + 1)
			events[i], events[j] = events[j], events[i]
		}
	}
	for _, p := range g.pods() {
		if !g.chance(7) {
			g.attach(p)
		}
	}
	return events
}

// referent is something that policies name.
func (g *generator) referent() Object {
	switch g.IntN(6) {
	case 0:
		return g.tier()
	case 1:
		return g.serviceObject()
	}
	return g.groupObject()
}

// latest are the last events of each object.
func latest(events []Event) []Event {
	var out []Event
	for i, e := range events {
		if !slices.ContainsFunc(events[i+1:], func(later Event) bool { return later.Ref == e.Ref }) {
			out = append(out, e)
		}
	}
	return out
}

// refs are those of a kind that are there, sorted.
func (g *generator) refs(kind api.Kind) []api.Ref {
	var refs []api.Ref
	for ref := range g.objects {
		if ref.Kind == kind {
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, compareRefs)
	return refs
}

// pods are those that are there, sorted.
func (g *generator) pods() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, ref := range g.refs(api.KindPod) {
		pods = append(pods, g.objects[ref].(*corev1.Pod))
	}
	return pods
}

func podOf(p *corev1.Pod) Pod { return Pod{p.Namespace, p.Name} }

// attach gives a Pod a free port of its node's bridge, in place of the one
// that it had. Finished Pods may keep theirs.
func (g *generator) attach(p *corev1.Pod) {
	delete(g.ports, podOf(p))
	if p.Spec.HostNetwork || p.Spec.NodeName == "" || g.contested(p, true) {
		return
	}
	taken := map[uint32]bool{}
	for _, port := range g.ports {
		taken[port.Number] = taken[port.Number] || port.Node == p.Spec.NodeName
	}
	number := 1 + uint32(g.IntN(maxPorts))
	for range maxPorts {
		if !taken[number] {
			g.ports[podOf(p)] = Port{p.Spec.NodeName, number}
			return
		}
		number = number%maxPorts + 1
	}
}
