package engine

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// state is a named set of objects.
type state struct {
	name    string
	objects []api.Object
}

// but is a state with some objects in the place of those of the same name, and
// some gone.
func (s state) but(name string, in []api.Object, gone ...api.Object) state {
	objects := slices.DeleteFunc(slices.Clone(s.objects), func(o api.Object) bool {
		same := func(other api.Object) bool { return other.Ref() == o.Ref() }
		return slices.ContainsFunc(in, same) || slices.ContainsFunc(gone, same)
	})
	return state{name, append(objects, in...)}
}

func routed(name string, prefixes ...string) *api.Node {
	n := &api.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	for _, p := range prefixes {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(p))
	}
	return n
}

func these(o ...api.Object) []api.Object { return o }

// chains are sequences of states, each of which differs from the one before in
// what its name says.
func chains() [][]state {
	empty := state{name: "nothing"}
	base := state{"the base state", baseState()}
	web1, client := newPod("x", "web-1", "node-1", "10.0.0.2", "app", "web"), newPod("x", "client", "node-1", "10.0.0.3", "app", "client")
	moved := newPod("x", "web-1", "node-2", "10.0.1.9", "app", "web")
	hostNetwork, finished := *client, *client
	hostNetwork.HostNetwork, finished.Finished = true, true
	dual := *web1
	dual.IPs = append(slices.Clone(dual.IPs), netip.MustParseAddr("fd00::2"))
	named := *web1
	named.Ports = []api.ContainerPort{{Name: "sql", Protocol: api.ProtocolTCP, Port: 80}}
	renamed, headless := *newService("x", "web", "app", "web"), *newService("x", "web", "app", "web")
	renamed.Ports = []api.ServicePort{{Name: "http", Protocol: api.ProtocolTCP, Port: 80}, {Name: "web", Protocol: api.ProtocolTCP, Port: 81}}
	headless.Headless, headless.ClusterIPs = true, nil
	policy := func(name string) api.Object {
		for _, o := range base.objects {
			if o.Ref().Name == name && o.Ref().Kind >= api.KindNetworkPolicy {
				return o
			}
		}
		panic(name)
	}
	variant := variants()
	return [][]state{
		{empty, base, empty},
		{base, base.but("a Pod goes", nil, web1), base, base.but("a Pod moves to another node", these(moved)), base},
		{base, base.but("a Pod gets other labels", these(newPod("x", "client", "node-1", "10.0.0.3", "app", "web"))),
			base.but("and none", these(newPod("x", "client", "node-1", "10.0.0.3"))), base},
		{base, base.but("a Pod loses its address", these(newPod("x", "client", "node-1", "", "app", "client"))), base.but("and gets another", these(newPod("x", "client", "node-1", "10.0.0.7", "app", "client")))},
		{base, base.but("an address passes on", these(newPod("x", "heir", "node-2", "10.0.0.3", "app", "db")), client),
			base.but("and back, before the heir is gone", these(newPod("x", "heir", "node-2", "10.0.0.3", "app", "db"))), base},
		{base, base.but("a Pod on the host's network", these(&hostNetwork)), base.but("a finished Pod", these(&finished)), base},
		{base, base.but("a second address", these(&dual)), base.but("a named port", these(&named)), base},
		{base, base.but("a Namespace gets other labels", these(newNamespace("x", "team", "b"))), base.but("and none", these(newNamespace("x"))),
			base.but("and goes, before its Pods", nil, newNamespace("x")), base},
		{base, base.but("a Namespace comes after its Pods", these(newNamespace("z", "team", "b"))), base},
		{base, base.but("a Namespace is logged", these(&api.Namespace{Name: "x", Labels: newNamespace("x", "team", "a").Labels, LogPolicies: true})), base},
		{base, base.but("a Node goes, before its Pods", nil, &api.Node{Name: "node-1"}), base},
		{base, base.but("a policy goes", nil, policy("web")), base.but("and another", nil, policy("web"), policy("all-of-b")), base},
		{base, base.but("a policy guards others", these(variant[5])), base.but("and names others", these(variant[6])), base.but("and isolates another way", these(variant[7])), base},
		{base, base.but("an admin policy passes", these(variant[8])), base.but("an admin policy goes", nil, policy("admin")), base.but("the baseline drops", these(variant[9])), base},
		{base, base.but("a tier goes", nil, &api.Tier{Name: "mine"}), base.but("and comes with another priority", these(variant[10])), base},
		{base, base.but("a group gets other members", these(variant[11])), base.but("and goes", nil, variant[11]), base},
		{base, base.but("a child goes", nil, &api.Group{Kind: api.KindClusterGroup, Name: "blocks"}), base.but("and the parent", nil, &api.Group{Kind: api.KindClusterGroup, Name: "parent"}), base},
		{base, base.but("a Service serves others", these(variant[12])), base.but("and goes", nil, variant[12]), base},
		{base, base.but("a Namespace becomes another's like", these(newNamespace("y", "team", "a"))), base.but("and has no labels", these(newNamespace("y"))), base},
		{base, base.but("a relation of labels becomes one of names", these(variant[13])), base.but("and a Namespace comes", these(variant[13], newNamespace("z", "team", "a"))), base},
		{base, base.but("a Node has another address", these(&api.Node{Name: "node-2", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}})), base.but("and goes", nil, &api.Node{Name: "node-2"}), base},
		{base, base.but("no Node has Pods' prefixes", these(&api.Node{Name: "node-1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})), base},
		{base, base.but("another Node has prefixes too", these(routed("node-2", "10.0.1.0/24", "fd00:1::/64"))), base.but("other ones", these(routed("node-2", "10.0.2.0/24"))),
			base.but("and a Node comes", these(routed("node-2", "10.0.2.0/24"), routed("node-3", "10.0.3.0/24"))), base},
		{base, base.but("a slice says otherwise", these(variant[14])), base.but("and another says it, too", these(variant[14], variant[15])), base.but("which alone is left", these(variant[15]), variant[14])},
		{base, base.but("a Service gets slices", these(variant[16])), base, base.but("a slice passes to another Service", these(newSlice("x", "web-a", "other", serving("10.0.0.2", "node-1"))))},
		{base, base.but("a Service's port is renamed", these(&renamed)), base.but("a Service is headless", these(&headless)), base.but("and goes, before its slices", nil, &renamed), base},
		{base, base.but("a backend moves to another node", these(newPod("y", "named", "node-1", "10.0.1.3", "app", "db"))), base},
		{base, base.but("no Service is left", nil, &renamed, newService("y", "db")), base},
		{base, base.but("a node loses its last Pod", nil, newPod("x", "web-1", "", ""), client), base},
		{base, base.but("everything at once", variant), empty, base},
	}
}

// An expander makes other ways from state to state, which end in the same.
type expander func(rng *rand.Rand, from, to state) [][]api.Event // Events, by Flush.

// delta is what turns one state into another.
func delta(from, to state) (events []api.Event) {
	before := make(map[api.Ref]api.Object)
	for _, o := range from.objects {
		before[o.Ref()] = o
	}
	for _, o := range to.objects {
		if before[o.Ref()] != o {
			events = append(events, upsert(o))
		}
		delete(before, o.Ref())
	}
	for _, ref := range slices.SortedFunc(maps.Keys(before), func(a, b api.Ref) int { return compareRefs(a, b) }) {
		events = append(events, api.Event{Ref: ref})
	}
	return events
}

func each(events []api.Event) (flushes [][]api.Event) {
	for _, ev := range events {
		flushes = append(flushes, []api.Event{ev})
	}
	return flushes
}

func shuffled(rng *rand.Rand, events []api.Event) []api.Event {
	out := slices.Clone(events)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

var expanders = map[string]expander{
	"as it is":      func(_ *rand.Rand, from, to state) [][]api.Event { return [][]api.Event{delta(from, to)} },
	"one at a time": func(_ *rand.Rand, from, to state) [][]api.Event { return each(delta(from, to)) },
	"backwards": func(_ *rand.Rand, from, to state) [][]api.Event {
		events := delta(from, to)
		slices.Reverse(events)
		return each(events)
	},
	"in any order": func(rng *rand.Rand, from, to state) [][]api.Event { return each(shuffled(rng, delta(from, to))) },
	"in any order, at once": func(rng *rand.Rand, from, to state) [][]api.Event {
		return [][]api.Event{shuffled(rng, delta(from, to))}
	},
	"twice": func(_ *rand.Rand, from, to state) [][]api.Event {
		events := delta(from, to)
		return [][]api.Event{events, events}
	},
	"every one twice": func(_ *rand.Rand, from, to state) (flushes [][]api.Event) {
		for _, ev := range delta(from, to) {
			flushes = append(flushes, []api.Event{ev, ev})
		}
		return flushes
	},
	"with everything said again": func(rng *rand.Rand, from, to state) [][]api.Event {
		return [][]api.Event{delta(from, to), shuffled(rng, delta(state{}, to))}
	},
	"there and back": func(_ *rand.Rand, from, to state) [][]api.Event {
		return [][]api.Event{slices.Concat(delta(from, to), delta(to, from), delta(from, to))}
	},
	"there, back, and there": func(_ *rand.Rand, from, to state) [][]api.Event {
		return [][]api.Event{delta(from, to), delta(to, from), delta(from, to)}
	},
	"over nothing": func(rng *rand.Rand, from, to state) [][]api.Event {
		return [][]api.Event{shuffled(rng, delta(from, state{})), shuffled(rng, delta(state{}, to))}
	},
	"over nothing, at once": func(rng *rand.Rand, from, to state) [][]api.Event {
		return [][]api.Event{slices.Concat(delta(from, state{}), shuffled(rng, delta(state{}, to)))}
	},
	"with a policy said first that names what comes": func(_ *rand.Rand, from, to state) [][]api.Event {
		events := delta(from, to)
		slices.SortStableFunc(events, func(a, b api.Event) int { return int(b.Ref.Kind) - int(a.Ref.Kind) })
		return each(events)
	},
}

// Whatever way leads to a state, the store is that of an engine that was given
// the state's objects and nothing else, and says what the evaluator says.
func TestNamedStates(t *testing.T) {
	for i, chain := range chains() {
		want := make([]map[string]string, len(chain))
		for j, s := range chain {
			fresh, store := New(), storage.New("e")
			for _, o := range s.objects {
				fresh.Apply(upsert(o))
			}
			store.Commit(fresh.Flush(), nil)
			agree(t, store, s.objects)
			want[j] = dump(t, store)
		}
		for _, name := range slices.Sorted(maps.Keys(expanders)) {
			t.Run(fmt.Sprintf("%d/%s", i, name), func(t *testing.T) {
				chance := rand.NewPCG(uint64(i), 5)
				rng, unused := rand.New(chance), *chance
				for round := 0; round == 0 || round < 3 && *chance != unused; round++ { // Without chance they are the same each time.
					e, store := New(), storage.New("e")
					at := state{}
					for j, next := range chain {
						for _, events := range expanders[name](rng, at, next) {
							for _, ev := range events {
								e.Apply(ev)
							}
							changes, _ := e.FlushMoves()
							store.Commit(changes, nil)
						}
						got := dump(t, store)
						for node := range want[j] {
							if got[node] != want[j][node] {
								t.Fatalf("from %q to %q: %s holds\n%s\nwant\n%s", at.name, next.name, node, got[node], want[j][node])
							}
						}
						at = next
					}
				}
			})
		}
		// States may be skipped.
		t.Run(fmt.Sprintf("%d/squashed", i), func(t *testing.T) {
			e, store := New(), storage.New("e")
			at := state{}
			for _, next := range chain {
				for _, ev := range delta(at, next) {
					e.Apply(ev)
				}
				at = next
			}
			store.Commit(e.Flush(), nil)
			if got := dump(t, store); !maps.Equal(got, want[len(chain)-1]) {
				t.Errorf("at the end the nodes hold\n%v\nwant\n%v", got, want[len(chain)-1])
			}
		})
	}
}
