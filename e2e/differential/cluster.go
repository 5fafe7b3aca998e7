package differential

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
)

// MACs of every node: of its bridge's LOCAL port, and what its host's own
// packets bear.
var (
	localMAC = [6]byte{2, 0, 0, 0, 0, 1}
	hostMAC  = [6]byte{2, 0, 0, 0, 0, 2}
)

// macOf is the address of the Pod at a port.
func macOf(port uint32) [6]byte { return [6]byte{2, 0, 0, 1, byte(port >> 8), byte(port)} }

// cluster is a Case's cluster as it stands, three times: as objects, as the
// evaluator has it, and as each node enforces it.
type cluster struct {
	objects   map[api.Ref]api.Object
	ports     map[Pod]Port
	evaluator *evaluate.State

	engine *engine.Engine
	store  *storage.Store
	nodes  map[string]*node
}

// node is a node's shim without its connections.
type node struct {
	name     string
	sub      *storage.Subscriber
	replica  *storage.Replica
	compiler *pipeline.Compiler
	fake     *bridge.Fake
	desired  bridge.Content // What the bridge should hold.
}

func newCluster(c *Case) (*cluster, error) {
	cl := &cluster{
		objects:   make(map[api.Ref]api.Object),
		evaluator: evaluate.New(),
		engine:    engine.New(),
		store:     storage.New("differential"),
		nodes:     make(map[string]*node),
	}
	for _, name := range c.nodes() {
		n := &node{name: name, fake: bridge.NewFake(bridge.Config{Name: name}), desired: bridge.NewContent()}
		n.start(c, cl.store, pipeline.Assignment{})
		for _, m := range n.compiler.Meters() {
			n.desired.Meters[m.ID] = m
		}
		if err := n.fake.Apply(context.Background(), bridge.Change{PutMeters: n.compiler.Meters()}); err != nil {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
		cl.nodes[name] = n
	}
	return cl, nil
}

// start makes the shim anew; the bridge stays as it is.
func (n *node) start(c *Case, store *storage.Store, former pipeline.Assignment) {
	if n.sub != nil {
		n.sub.Close()
	}
	n.sub, n.replica = store.Subscribe(n.name), &storage.Replica{}
	n.compiler = pipeline.New(pipeline.Config{Node: n.name, LocalMAC: localMAC, HostMAC: hostMAC, RuleLogRate: 100, RuleLogBurst: 100, MeterLimit: 1 << 18, RejectRate: 100, ClauseCap: c.ClauseCap, BalanceServices: true}, former)
}

// enter takes a step over everywhere, and returns what changed on each bridge.
func (cl *cluster) enter(c *Case, s *Step, tamper func(*pipeline.Change)) (map[string]bridge.Change, error) {
	for _, e := range s.Events {
		event := api.Event{Ref: e.Ref}
		if e.Object == nil {
			delete(cl.objects, e.Ref)
		} else {
			o, err := Convert(e.Object)
			if err != nil {
				return nil, &invalid{err}
			}
			cl.objects[e.Ref], event.Object = o, o
		}
		cl.evaluator.Apply(event)
		cl.engine.Apply(event)
	}
	cl.ports = s.Ports
	cl.store.Commit(cl.engine.Flush(), nil)
	changes := make(map[string]bridge.Change, len(cl.nodes))
	for name, n := range cl.nodes {
		if name == s.Restarted {
			n.start(c, cl.store, n.compiler.Assignment())
		}
		change, err := n.update(c, cl.portsOf(name), tamper)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
		changes[name] = change
	}
	return changes, nil
}

// update brings what was committed, and the ports, to the bridge.
func (n *node) update(c *Case, ports []pipeline.Port, tamper func(*pipeline.Change)) (bridge.Change, error) {
	var change bridge.Change
	first := n.replica.Revision() == 0
	touched, err := n.follow(c.FrameLimit)
	if err != nil {
		return change, err
	}
	ch, err := n.compiler.Update(n.replica, touched, ports)
	if err != nil {
		return change, err
	}
	if p := n.compiler.Problems(); len(p) > 0 {
		return change, fmt.Errorf("%s: %w", p[0].Key, p[0].Err)
	}
	if tamper != nil {
		tamper(&ch)
	}
	if first { // A shim that starts finds what the former left.
		n.desired.Flows, n.desired.Groups = make(map[openflow.FlowKey]openflow.Flow), make(map[uint32]openflow.Group)
	}
	for _, f := range ch.Upsert {
		n.desired.Flows[f.Key()] = f
	}
	for _, key := range ch.Delete {
		delete(n.desired.Flows, key)
	}
	for _, g := range ch.PutGroups {
		n.desired.Groups[g.ID] = g
	}
	for _, id := range ch.DeleteGroups {
		delete(n.desired.Groups, id)
	}
	change = bridge.Change{Upsert: ch.Upsert, Delete: ch.Delete, PutGroups: ch.PutGroups, DeleteGroups: ch.DeleteGroups}
	if first {
		actual, err := n.fake.Read(context.Background())
		if err != nil {
			return change, err
		}
		maps.DeleteFunc(actual.Flows, func(_ openflow.FlowKey, f openflow.Flow) bool { return pipeline.Passing(f.Cookie) })
		change = bridge.Diff(n.desired, actual)
	}
	if err := n.fake.Apply(context.Background(), change); err != nil {
		return change, err
	}
	for _, s := range ch.Unserved {
		of := bridge.Connections{Addr: s.VIP.Addr(), DstPort: s.VIP.Port(), Proto: s.Proto, Zone: pipeline.Zone, Endpoint: s.Endpoint}
		if err := n.fake.FlushConntrack(context.Background(), of); err != nil {
			return change, err
		}
	}
	return change, nil
}

// invalid is an object that validation refuses.
type invalid struct{ error }

// follow brings what was committed to the node's replica.
func (n *node) follow(limit int) (storage.Touched, error) {
	cut := n.sub.Next()
	if cut == nil {
		return nil, nil
	}
	for _, b := range cut.Frames(limit) {
		frame := &policyv1.Cut{}
		if err := proto.Unmarshal(b, frame); err != nil {
			return nil, err
		}
		touched, done, err := n.replica.Apply(frame)
		if err != nil {
			return nil, err
		}
		if done {
			if n.replica.Digest() != cut.Digest {
				return nil, fmt.Errorf("revision %d: the replica's digest is not the cut's", cut.Revision)
			}
			return touched, nil
		}
	}
	return nil, fmt.Errorf("revision %d: no frame is the last", cut.Revision)
}

func (cl *cluster) portsOf(name string) []pipeline.Port {
	var list []pipeline.Port
	for pod, p := range cl.ports {
		if p.Node == name {
			list = append(list, pipeline.Port{OFPort: p.Number, ID: fmt.Sprintf("%s/%s/%d", pod.Namespace, pod.Name, p.Number),
				Interface: fmt.Sprint("p", p.Number), Namespace: pod.Namespace, Name: pod.Name, MAC: macOf(p.Number)})
		}
	}
	slices.SortFunc(list, func(a, b pipeline.Port) int { return int(a.OFPort) - int(b.OFPort) })
	return list
}

// place is where an end of a connection is. Of what is neither a Pod nor a
// node's host, the node is empty.
type place struct {
	addr netip.Addr
	node string
	pod  Pod    // Empty: no Pod.
	port uint32 // Of the Pod. Zero: it has none that is open.
}

// locate finds an end; false where there is none such.
func (cl *cluster) locate(e evaluate.Endpoint) (place, bool) {
	at := place{addr: e.Addr}
	switch {
	case e.Pod != "":
		p, ok := cl.objects[api.Ref{Kind: api.KindPod, Namespace: e.Namespace, Name: e.Pod}].(*api.Pod)
		if !ok || p.Node == "" || !slices.Contains(p.IPs, e.Addr) {
			return at, false
		}
		at.node = p.Node
		if p.HostNetwork {
			return at, true
		}
		if p.Finished {
			return at, false
		}
		at.pod = Pod{e.Namespace, e.Pod}
		if port := cl.ports[at.pod]; port.Node == p.Node {
			at.port = port.Number
		}
	case e.Node != "":
		n, ok := cl.objects[api.Ref{Kind: api.KindNode, Name: e.Node}].(*api.Node)
		if !ok || !slices.Contains(slices.Concat(n.Addresses, n.Gateways, n.Transport), e.Addr) {
			return at, false
		}
		at.node = e.Node
	default: // An address that is nobody's: a Pod or host goes by its name.
		return at, !cl.owned(e.Addr)
	}
	return at, true
}

// owned tells whether a Pod or a host has an address.
func (cl *cluster) owned(a netip.Addr) bool {
	for _, o := range cl.objects {
		switch o := o.(type) {
		case *api.Pod:
			if !o.Finished && slices.Contains(o.IPs, a) {
				return true
			}
		case *api.Node:
			if slices.Contains(slices.Concat(o.Addresses, o.Gateways, o.Transport), a) {
				return true
			}
		}
	}
	return false
}

func (p place) isPod() bool { return p.pod != Pod{} }
