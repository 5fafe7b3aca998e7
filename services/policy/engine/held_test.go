package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/storage"
)

// held reads what the items of a node say, as a shim would have to: it knows
// nothing of selectors, and the evaluator knows nothing of items.
type held struct{ *storage.Replica }

// heldBy is what a node holds, over the wire.
func heldBy(t testing.TB, store *storage.Store, node string) held {
	t.Helper()
	sub := store.Subscribe(node)
	defer sub.Close()
	replica := &storage.Replica{}
	for _, b := range sub.Next().Frames(1 << 20) {
		frame := &policyv1.Cut{}
		if err := proto.Unmarshal(b, frame); err != nil {
			t.Fatal(err)
		}
		if _, _, err := replica.Apply(frame); err != nil {
			t.Fatal(err)
		}
	}
	return held{replica}
}

// packet is a connection as a node sees it, in one direction.
type packet struct {
	dir      policyv1.Direction
	peer     netip.Addr
	protocol policyv1.Protocol
	port     uint32
}

// verdict judges a packet of an endpoint of the node.
func (h held) verdict(ep *policyv1.Endpoint, p packet) policyv1.Action {
	var policies []*policyv1.Policy
	h.Items(storage.ScopePolicies, func(_ storage.ScopeID, item *policyv1.Item) {
		if pol := item.GetPolicy(); !pol.Staged && slices.ContainsFunc(pol.AppliedTo, func(g []byte) bool {
			return slices.ContainsFunc(ep.Groups, func(own []byte) bool { return string(g) == string(own) })
		}) {
			policies = append(policies, pol)
		}
	})
	if a := h.ordered(policies, rankAdmin, ep, p); a == policyv1.Action_ACTION_ALLOW || a == policyv1.Action_ACTION_DROP {
		return a
	}
	isolated := false
	for _, pol := range policies {
		if pol.Rank != rankK8s {
			continue
		}
		isolated = isolated || pol.IsolatesIngress && p.dir == policyv1.Direction_DIRECTION_INGRESS || pol.IsolatesEgress && p.dir == policyv1.Direction_DIRECTION_EGRESS
		for _, r := range pol.Rules {
			if h.matches(r, ep, p) {
				return policyv1.Action_ACTION_ALLOW
			}
		}
	}
	if isolated {
		return policyv1.Action_ACTION_DROP
	}
	if a := h.ordered(policies, rankBaseline, ep, p); a != 0 {
		return a
	}
	return policyv1.Action_ACTION_ALLOW
}

// ordered is the action of the first rule of a rank that matches; zero for none.
func (h held) ordered(policies []*policyv1.Policy, rank uint32, ep *policyv1.Endpoint, p packet) policyv1.Action {
	type candidate struct {
		policy *policyv1.Policy
		rule   *policyv1.Rule
	}
	var matching []candidate
	for _, pol := range policies {
		for _, r := range pol.Rules {
			if pol.Rank == rank && h.matches(r, ep, p) {
				matching = append(matching, candidate{pol, r})
			}
		}
	}
	if len(matching) == 0 {
		return 0
	}
	strict := map[policyv1.Action]int{policyv1.Action_ACTION_DROP: 0, policyv1.Action_ACTION_PASS: 1, policyv1.Action_ACTION_ALLOW: 2}
	first := slices.MinFunc(matching, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.policy.Priority, b.policy.Priority), cmp.Compare(a.rule.Index, b.rule.Index),
			cmp.Compare(strict[a.rule.Action], strict[b.rule.Action]), strings.Compare(a.policy.Ref.Name, b.policy.Ref.Name))
	})
	return first.rule.Action
}

func (h held) matches(r *policyv1.Rule, ep *policyv1.Endpoint, p packet) bool {
	if r.Direction != p.dir {
		return false
	}
	if r.Peers != nil && len(h.members(r.Peers.Groups, p.peer)) == 0 && !slices.ContainsFunc(r.Peers.Blocks, func(b *policyv1.IPBlock) bool { return inBlock(b, p.peer) }) {
		return false
	}
	if r.Services == nil {
		return true
	}
	destinations := [][]*policyv1.NamedPort{ep.Ports}
	if p.dir == policyv1.Direction_DIRECTION_EGRESS {
		destinations = nil
		for _, m := range h.members(slices.Concat(r.Peers.GetGroups(), r.PortNameGroups), p.peer) {
			destinations = append(destinations, m.Ports)
		}
	}
	return slices.ContainsFunc(r.Services.Services, func(s *policyv1.Service) bool {
		switch {
		case s.Protocol != p.protocol:
			return false
		case s.PortName != "":
			return slices.ContainsFunc(slices.Concat(destinations...), func(n *policyv1.NamedPort) bool {
				return n.Name == s.PortName && n.Protocol == p.protocol && n.Port == p.port
			})
		}
		return s.Port == 0 || p.port == s.Port || s.Port <= p.port && p.port <= s.EndPort
	})
}

// members are those of groups that have an address.
func (h held) members(groups [][]byte, a netip.Addr) (found []*policyv1.Member) {
	for _, g := range groups {
		id, _ := storage.ScopeIDFromBytes(g)
		h.Scope(id, func(_ string, item *policyv1.Item) {
			if slices.ContainsFunc(item.GetMember().Ips, func(ip []byte) bool { return slices.Equal(ip, a.AsSlice()) }) {
				found = append(found, item.GetMember())
			}
		})
	}
	return found
}

func inBlock(b *policyv1.IPBlock, a netip.Addr) bool {
	in := func(p *policyv1.Prefix) bool {
		prefix, err := storage.PrefixFromWire(p)
		return err == nil && prefix.Contains(a)
	}
	return in(b.Cidr) && !slices.ContainsFunc(b.Except, in)
}

// probes are what is tried between every two endpoints.
var probes = []struct {
	protocol api.Protocol
	port     uint16
}{{api.ProtocolTCP, 80}, {api.ProtocolTCP, 5432}, {api.ProtocolUDP, 7}}

// agree compares what the nodes hold with the evaluator, for every connection
// between endpoints, on both of its ends.
func agree(t testing.TB, store *storage.Store, objects []api.Object) {
	t.Helper()
	state := evaluate.New(objects...)
	nodes, endpoints := make(map[string]held), make(map[string]*policyv1.Endpoint)
	var pods []*api.Pod
	for _, o := range objects {
		p, ok := o.(*api.Pod)
		if !ok || !isEndpoint(p) {
			continue
		}
		if _, ok := nodes[p.Node]; !ok {
			nodes[p.Node] = heldBy(t, store, p.Node)
		}
		ep := nodes[p.Node].Item(storage.NewScopeID(storage.ScopeNode, p.Node), storage.PodKey(p.Namespace, p.Name)).GetEndpoint()
		if ep == nil {
			t.Fatalf("node %s does not hold its Pod %s", p.Node, p.Ref())
		}
		pods, endpoints[p.Ref().String()] = append(pods, p), ep
	}
	claims := make(map[netip.Addr]int) // An address that two claim is on its way from one to the other.
	for _, p := range pods {
		for _, a := range p.IPs {
			claims[a]++
		}
	}
	actions := map[evaluate.Verdict]policyv1.Action{evaluate.Allow: policyv1.Action_ACTION_ALLOW, evaluate.Drop: policyv1.Action_ACTION_DROP}
	for _, from := range pods {
		for _, to := range pods {
			if from == to || claims[from.IPs[0]] > 1 || claims[to.IPs[0]] > 1 {
				continue
			}
			for _, probe := range probes {
				r, err := state.Evaluate(evaluate.Connection{From: evaluate.Endpoint{Namespace: from.Namespace, Pod: from.Name},
					To: evaluate.Endpoint{Namespace: to.Namespace, Pod: to.Name}, Protocol: probe.protocol, Port: probe.port})
				if err != nil {
					t.Fatal(err)
				}
				p := packet{protocol: wireProtocol(probe.protocol), port: uint32(probe.port)}
				p.dir, p.peer = policyv1.Direction_DIRECTION_EGRESS, to.IPs[0]
				egress := nodes[from.Node].verdict(endpoints[from.Ref().String()], p)
				p.dir, p.peer = policyv1.Direction_DIRECTION_INGRESS, from.IPs[0]
				ingress := nodes[to.Node].verdict(endpoints[to.Ref().String()], p)
				what := fmt.Sprintf("%s to %s, %s/%d", from.Ref(), to.Ref(), probe.protocol, probe.port)
				if want := actions[r.Egress.Action]; egress != want {
					t.Fatalf("%s: %s on egress, want %s: %s", what, egress, want, r.Egress.Reason)
				}
				if want := actions[r.Ingress.Action]; ingress != want {
					t.Fatalf("%s: %s on ingress, want %s: %s", what, ingress, want, r.Ingress.Reason)
				}
			}
		}
	}
}
