package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// A policy for a NodePort Service reaches every Node, whether it holds Pods or
// not, follows the Service's ports, and is one for all Nodes, which say so.
func TestPoliciesForNodePorts(t *testing.T) {
	e, store := New(), storage.New("e")
	service := func(ports ...uint16) *api.Service {
		s := &api.Service{Namespace: "x", Name: "s", Type: "NodePort"}
		for i, p := range ports {
			s.Ports = append(s.Ports, api.ServicePort{Name: fmt.Sprint(i), Protocol: []api.Protocol{api.ProtocolTCP, api.ProtocolSCTP}[i], Port: 80, NodePort: p})
		}
		return s
	}
	p := antreaPolicy("p", "application", api.ActionDrop, api.Peer{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8")}})
	p.AppliedTo = []api.Target{{Service: &api.NamespacedName{Namespace: "x", Name: "s"}}}
	p.Ingress = append(p.Ingress, api.OrderedRule{Action: api.ActionReject, Traffic: []api.Traffic{
		{Protocol: api.ProtocolTCP, Port: 30000, EndPort: 30001, SourcePort: 7}, {Protocol: api.ProtocolUDP}, {Protocol: api.ProtocolTCP, PortName: "web"}, {}}})
	node := func(name string) *api.Node { return &api.Node{Name: name} }
	expect := func(when, on string, want ...string) {
		t.Helper()
		store.Commit(e.Flush(), nil)
		h := heldBy(t, store, on)
		groups := h.Item(storage.NewScopeID(storage.ScopeNode, on), nodeKey).GetNode().GetGroups()
		var got []string
		h.Items(storage.ScopePolicies, func(_ storage.ScopeID, item *policyv1.Item) {
			pol := item.GetPolicy()
			if len(pol.AppliedTo) != 1 || len(groups) != 1 || string(pol.AppliedTo[0]) != string(groups[0]) {
				t.Errorf("%s: applied to %x, and %s is in %x", when, pol.AppliedTo, on, groups)
			}
			for _, r := range pol.Rules {
				if !r.NodePorts || r.Direction != policyv1.Direction_DIRECTION_INGRESS || (r.Index == 0) != (r.Peers != nil) {
					t.Errorf("%s: %v", when, r)
				}
				for _, s := range r.Services.Services {
					got = append(got, fmt.Sprint(r.Index, " ", api.Protocol(map[policyv1.Protocol]api.Protocol{policyv1.Protocol_PROTOCOL_TCP: api.ProtocolTCP, policyv1.Protocol_PROTOCOL_SCTP: api.ProtocolSCTP}[s.Protocol]), "/", s.Port, " from ", s.SourcePort))
				}
			}
		})
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s holds %q, want %q", when, on, got, want)
		}
		if len(want) == 0 && len(groups) > 0 {
			t.Errorf("%s: %s is still in %x", when, on, groups)
		}
	}
	e.Apply(upsert(node("n1")))
	e.Apply(upsert(newPod("x", "a", "n2", "10.0.0.1"))) // On a node without an object.
	e.Apply(upsert(p))
	expect("no Service", "n1")
	e.Apply(upsert(service(30001)))
	ports := []string{"0 TCP/30001 from 0", "1 TCP/30001 from 7", "1 TCP/30001 from 0"}
	expect("a Service", "n1", ports...)
	expect("a Service", "n2")
	e.Apply(upsert(node("n2")))
	expect("a Node comes", "n2", ports...)
	e.Apply(upsert(service(30002, 30003)))
	expect("other ports", "n2", "0 TCP/30002 from 0", "0 SCTP/30003 from 0", "1 TCP/30002 from 0", "1 SCTP/30003 from 0")
	e.Apply(api.Event{Ref: node("n1").Ref()})
	expect("a Node goes", "n1")
	e.Apply(upsert(service()))
	expect("no port", "n2")
}
