package engine

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

func newServers(namespace, service string, addresses ...string) *api.EndpointSlice {
	s := &api.EndpointSlice{Namespace: namespace, Name: service, Service: service, Ports: []api.ServicePort{{Name: "https", Protocol: api.ProtocolTCP, Port: 8080}}}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, api.SliceEndpoint{Addresses: []netip.Addr{netip.MustParseAddr(a)}})
	}
	return s
}

// Nodes that policies apply to know where they are steered from, and who steers
// them, as these come and go.
func TestNodesKnowWhatSteersThem(t *testing.T) {
	e, store := New(), storage.New("e")
	objects := map[api.Ref]api.Object{}
	step := func(want1, want2 string, changed ...api.Object) {
		t.Helper()
		for _, o := range changed {
			e.Apply(upsert(o))
			objects[o.Ref()] = o
		}
		store.Commit(e.Flush(), nil)
		var list []api.Object
		for _, o := range objects {
			list = append(list, o)
		}
		agree(t, store, list)
		for name, want := range map[string]string{"node-1": want1, "node-2": want2} {
			facts := heldBy(t, store, name).Item(storage.NewScopeID(storage.ScopeNode, name), nodeKey).GetNode()
			got := ""
			for _, s := range facts.GetServers() {
				a, _ := netip.AddrFromSlice(s.GetIp())
				got += fmt.Sprintf("%s:%d ", a, s.GetPort())
			}
			got += "of"
			for _, c := range facts.GetClients() {
				a, _ := netip.AddrFromSlice(c)
				got += " " + a.String()
			}
			if got != want {
				t.Errorf("%s is told %q, want %q", name, got, want)
			}
		}
	}
	node := func(name, address string) *api.Node {
		return &api.Node{Name: name, Labels: labels("role", name), Addresses: []netip.Addr{netip.MustParseAddr(address)}}
	}
	deny := func(name string, lockout bool, labels ...string) *api.OrderedPolicy {
		p := antreaPolicy(name, "application", api.ActionDrop)
		p.AppliedTo, p.AllowLockout = []api.Target{{NodeSelector: matching(labels...)}}, lockout
		p.Ingress = []api.OrderedRule{{Name: "in", Action: api.ActionDrop}}
		p.Egress = []api.OrderedRule{{Name: "out", Action: api.ActionReject}}
		return p
	}
	pod := newPod("x", "a", "node-1", "10.0.0.1")
	step("of", "of", node("node-1", "192.0.2.1"), node("node-2", "192.0.2.2"), pod, newServers("default", "kubernetes", "192.0.2.1", "203.0.113.7"))
	step("192.0.2.1:8080 203.0.113.7:8080 of 192.0.2.1 192.0.2.2", "192.0.2.1:8080 203.0.113.7:8080 of", deny("p", false))
	step("192.0.2.1:8080 203.0.113.7:8080 of 192.0.2.1 192.0.2.2 192.0.2.3", "192.0.2.1:8080 203.0.113.7:8080 of", node("node-3", "192.0.2.3"))
	step("192.0.2.1:8080 192.0.2.2:8080 203.0.113.7:8080 of 192.0.2.1 192.0.2.2 192.0.2.3", "192.0.2.1:8080 192.0.2.2:8080 203.0.113.7:8080 of 192.0.2.1 192.0.2.2 192.0.2.3",
		newServers("weir-system", "weir-policyd", "192.0.2.2", "192.0.2.1"), newServers("default", "other", "192.0.2.9"))
	step("192.0.2.2:8080 of", "192.0.2.2:8080 of 192.0.2.1 192.0.2.2 192.0.2.3", newServers("default", "kubernetes"), newServers("weir-system", "weir-policyd", "192.0.2.2"))
	step("192.0.2.2:8080 of", "192.0.2.2:8080 of 192.0.2.1 192.0.2.2 192.0.2.3", deny("q", true, "role", "node-1"))
	step("192.0.2.2:8080 of", "of", deny("p", false, "role", "node-1"))
}

// A policy that would have cut Nodes off says so for as long as it would.
func TestLockoutsAreFaults(t *testing.T) {
	e := New()
	told := func(want ...string) {
		t.Helper()
		e.Flush()
		var got []string
		for _, f := range e.Policies()[0].Faults {
			if f.Reason != ReasonLockout || !f.Widens {
				t.Errorf("fault %+v", f)
			}
			got = append(got, f.Message)
		}
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("faults %q, want %q", got, want)
		}
	}
	const (
		end = ` is let through in spite of it, or Nodes would be cut off; annotation weir.dev/allow-lockout: "true" has it denied`
		in  = "ingress[0] (in): what 203.0.113.7 sends to kubelets" + end
		out = "egress[1] (out): what Nodes send to 203.0.113.7:8080" + end
	)
	p := antreaPolicy("p", "application", api.ActionDrop)
	p.AppliedTo = []api.Target{{NodeSelector: matching()}}
	p.Ingress = []api.OrderedRule{{Name: "in", Action: api.ActionDrop, Traffic: []api.Traffic{{Protocol: api.ProtocolTCP, Port: 10000, EndPort: 11000}}}}
	p.Egress = []api.OrderedRule{{Name: "udp", Action: api.ActionDrop, Traffic: []api.Traffic{{Protocol: api.ProtocolUDP}}}, {Name: "out", Action: api.ActionReject, Peers: []api.Peer{{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("203.0.113.0/24")}}}}}
	change := func(edit func(p *api.OrderedPolicy)) {
		q := *p
		edit(&q)
		p = &q
		e.Apply(upsert(p))
	}
	e.Apply(upsert(p))
	told()
	e.Apply(upsert(newServers("default", "kubernetes", "203.0.113.7", "203.0.113.8")))
	told(in, out)
	change(func(p *api.OrderedPolicy) { p.AllowLockout = true })
	told()
	change(func(p *api.OrderedPolicy) {
		p.AllowLockout, p.Egress = false, append([]api.OrderedRule{{Name: "may", Action: api.ActionAllow, Traffic: []api.Traffic{{Protocol: api.ProtocolTCP, Port: 8080}}}}, p.Egress...)
	})
	told(in)
	change(func(p *api.OrderedPolicy) { p.Ingress[0].Peers = []api.Peer{{NodeSelector: matching()}} })
	told()
	e.Apply(upsert(&api.Node{Name: "n", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.7")}}))
	told(in)
	e.Apply(api.Event{Ref: api.Ref{Kind: api.KindEndpointSlice, Namespace: "default", Name: "kubernetes"}})
	told()
}
