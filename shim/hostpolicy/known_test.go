package hostpolicy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// What is kept from plan to plan makes no difference, and saves the reading of
// what did not change.
func TestPlansOfWhatIsKnown(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	tcp := policyv1.Protocol_PROTOCOL_TCP
	groups := map[string]map[int]uint32{"a": {}, "b": {}, "c": {}} // Members by number: their port.
	read := make(map[string]int)
	members := func(group []byte, fn func(*policyv1.Member)) {
		read[string(group)]++
		for n, port := range groups[string(group)] {
			fn(&policyv1.Member{Ips: [][]byte{{10, 0, 0, byte(n)}, netip.MustParseAddr(fmt.Sprintf("fd00::%x", n)).AsSlice()},
				Ports: []*policyv1.NamedPort{{Name: "http", Protocol: tcp, Port: port}, {Name: "web", Protocol: tcp, Port: port + 1}}})
		}
	}
	of := func(names ...string) (ids [][]byte) {
		for _, n := range names {
			ids = append(ids, []byte(n))
		}
		return ids
	}
	var known Known
	for range 300 {
		name := string("abc"[random.IntN(3)])
		if n := random.IntN(20); groups[name][n] != 0 {
			delete(groups[name], n)
		} else {
			groups[name][n] = 80 + uint32(random.IntN(3))
		}
		known.Forget([]byte(name))
		var policies []*policyv1.Policy
		for i := range 6 {
			r := hostRule(out, policyv1.Action_ACTION_DROP)
			r.Peers = &policyv1.Peers{Groups: [][][]byte{of("a"), of("b"), of("a", "c"), of("c", "a"), nil, of("b")}[i]}
			if i%2 == 0 {
				r.Peers.Blocks = hostRule(out, r.Action, fmt.Sprintf("10.0.0.%d/30", 4*random.IntN(2))).Peers.Blocks
			}
			if i > 2 {
				r.Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: tcp, PortName: "http"}, {PortName: "web"}}}
				r.PortNameGroups = of("b")
			}
			if random.IntN(10) > 0 {
				policies = append(policies, policy(string(rune('a'+i)), 100, 0, r))
			}
		}
		state := hostState(policies...)
		state.Members = members
		want, _ := New(state)
		clear(read)
		state.Known = &known
		got, _ := New(state)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("of what is known:\n%+v\nanew:\n%+v", got, want)
		}
		clear(read)
		if again, _ := New(state); again.ID != got.ID || len(read) != 0 {
			t.Fatalf("once more it is %x, not %x, and reads %v", again.ID, got.ID, read)
		}
	}
}

// A member that comes changes a plan and not its shape; a rule that changes both.
func TestShape(t *testing.T) {
	var ips [][]byte
	plan := func(action policyv1.Action) *Plan {
		r := hostRule(in, action)
		r.Peers = &policyv1.Peers{Groups: [][]byte{[]byte("a")}}
		s := hostState(policy("a", 100, 0, r))
		s.Members = func(_ []byte, fn func(*policyv1.Member)) { fn(&policyv1.Member{Ips: ips}) }
		p, _ := New(s)
		return p
	}
	ips = [][]byte{{10, 0, 0, 1}}
	first := plan(policyv1.Action_ACTION_DROP)
	ips = append(ips, []byte{10, 0, 0, 2})
	second, third := plan(policyv1.Action_ACTION_DROP), plan(policyv1.Action_ACTION_REJECT)
	if first.Shape != second.Shape || first.ID == second.ID {
		t.Errorf("with a member more: shape %x, %x; id %x, %x", first.Shape, second.Shape, first.ID, second.ID)
	}
	if second.Shape == third.Shape || second.ID == third.ID {
		t.Errorf("with another action: shape %x, %x; id %x, %x", second.Shape, third.Shape, second.ID, third.ID)
	}
}

// Two names may stand for one port, each at members of its own.
func TestNamesOfOnePort(t *testing.T) {
	tcp := policyv1.Protocol_PROTOCOL_TCP
	r := hostRule(out, policyv1.Action_ACTION_DROP)
	r.Peers = &policyv1.Peers{Groups: [][]byte{[]byte("a")}}
	services(&policyv1.Service{Protocol: tcp, PortName: "http"}, &policyv1.Service{Protocol: tcp, PortName: "web"})(r)
	s := hostState(policy("a", 100, 0, r))
	s.Members = func(_ []byte, fn func(*policyv1.Member)) {
		for i, name := range []string{"web", "http", "other"} {
			fn(&policyv1.Member{Ips: [][]byte{{10, 0, 0, byte(i)}}, Ports: []*policyv1.NamedPort{{Name: name, Protocol: tcp, Port: 80}}})
		}
	}
	p, _ := New(s)
	if got := fmt.Sprint(p.Egress[0].Named); got != "[{{6 80 80 0 0} [10.0.0.0/32 10.0.0.1/32]}]" {
		t.Errorf("named: %s", got)
	}
}
