package hostfw

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw/fwtest"
	"github.com/weirnet/weir/shim/hostpolicy"
)

// memberships are groups of addresses, some with a port that has a name.
type memberships map[string]map[netip.Addr]uint32

func (m memberships) of(group []byte, fn func(*policyv1.Member)) {
	for a, port := range m[string(group)] {
		fn(&policyv1.Member{Ips: [][]byte{a.AsSlice()}, Ports: []*policyv1.NamedPort{{Name: "http", Protocol: tcp, Port: port}}})
	}
}

// memberRule is a rule of the host that names groups, and blocks.
func memberRule(d policyv1.Direction, action policyv1.Action, blocks []string, groups ...string) *policyv1.Rule {
	r := hostRule(d, action, true, blocks...)
	if r.Peers == nil {
		r.Peers = &policyv1.Peers{}
	}
	for _, g := range groups {
		r.Peers.Groups = append(r.Peers.Groups, []byte(g))
	}
	return r
}

// written is nftables, of which the last transaction is known.
type written struct {
	knftables.Interface
	last string
}

func (w *written) Run(ctx context.Context, tx *knftables.Transaction) error {
	w.last = tx.String()
	return w.Interface.Run(ctx, tx)
}

func writing(t testing.TB) (*Policies, *written) {
	t.Helper()
	nft, err := knftables.New(knftables.InetFamily, table)
	if err != nil {
		t.Fatal(err)
	}
	w := &written{Interface: nft}
	return &Policies{nft: w, read: readPolicies}, w
}

// listed is what the table has by "nft -j list", less handles and what was
// counted; rules are in order, and what has none is sorted.
func listed(t *testing.T) string {
	var all struct {
		Nftables []map[string]map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(run(t, "nft", "-j", "list", "table", "inet", table)), &all); err != nil {
		t.Fatal(err)
	}
	var rules, rest []string
	for _, o := range all.Nftables {
		for kind, fields := range o {
			for _, f := range []string{"handle", "packets", "bytes"} {
				delete(fields, f)
			}
			if elements, is := fields["elem"].([]any); is {
				var texts []string
				for _, e := range elements {
					text, _ := json.Marshal(e)
					texts = append(texts, string(text))
				}
				slices.Sort(texts)
				fields["elem"] = texts
			}
			text, err := json.Marshal(fields)
			switch {
			case err != nil:
				t.Fatal(err)
			case kind == "rule":
				rules = append(rules, fmt.Sprint(fields["chain"], " ", string(text)))
			default:
				rest = append(rest, kind+" "+string(text))
			}
		}
	}
	slices.SortStableFunc(rules, func(a, b string) int { return strings.Compare(strings.Fields(a)[0], strings.Fields(b)[0]) })
	slices.Sort(rest)
	return strings.Join(append(rest, rules...), "\n")
}

// anew is the table of a plan that is written whole, in a namespace of its own.
func anew(t *testing.T, plan *hostpolicy.Plan) (text string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // Never given back: the thread ends.
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = NewPolicies().Apply(context.Background(), plan)
		}
		if err == nil {
			text = listed(t)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return text
}

// TestTheTableIsThatOfTheLastPlan puts plans one after the other, and has others
// at it in between: the kernel has what one that is written whole would have.
func TestTheTableIsThatOfTheLastPlan(t *testing.T) {
	isolate(t)
	ctx := context.Background()
	p, nft := writing(t)
	random := rand.New(rand.NewPCG(3, 4))
	names, groups := []string{"a", "b", "c"}, memberships{"a": {}, "b": {}, "c": {}}
	toggle := func() {
		g, n := groups[names[random.IntN(3)]], random.IntN(24)
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) // Next to each other, and in blocks.
		if random.IntN(3) == 0 {
			a = netip.MustParseAddr(fmt.Sprintf("fd00::%x", n))
		}
		if _, is := g[a]; is {
			delete(g, a)
		} else {
			g[a] = 8080 + uint32(random.IntN(2))
		}
	}
	edition, elements := 0, 0
	for step := range 60 {
		for range 1 + random.IntN(4) {
			toggle()
		}
		if random.IntN(12) == 0 {
			edition++
		}
		named := memberRule(out, reject, nil, "b")
		named.Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: tcp, PortName: "http"}}}
		staged := of(70, memberRule(in, drop, nil, "c"))
		staged.Staged = true
		list := []*policyv1.Policy{
			of(50, memberRule(in, drop, nil, "a"), logged(memberRule(in, reject, []string{"10.0.0.0/30", "fd00::/126"}, "a", "b"))),
			staged, of(100, memberRule(out, drop, nil, "a"), named, memberRule(in, pass, []string{"10.0.0.16/29"}, "c")),
			of(253, hostRule(in, drop, true, "10.0.0.0/31", "10.0.0.4/31")),
		}
		list = list[:4-edition%3]
		plan := hostPlan(t, hostpolicy.State{Members: groups.of}, list...)
		if err := p.Apply(ctx, plan); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(nft.last, "add rule") && strings.Contains(nft.last, " element ") {
			elements++
		}
		if _, err := p.Count(ctx); err != nil { // Takes counters away that no rule has.
			t.Fatal(err)
		}
		if got, want := listed(t), anew(t, plan); got != want {
			t.Fatalf("step %d, after\n%s\nthere is\n%s\nand not\n%s", step, nft.last, got, want)
		}
		if intact, err := p.Intact(ctx); err != nil || !intact {
			t.Fatalf("step %d: intact: %v, %v", step, intact, err)
		}
		sets := slices.DeleteFunc(slices.Sorted(maps.Keys(p.sets)), func(name string) bool { return p.sets[name].hosts == nil })
		if len(sets) == 0 || random.IntN(6) > 0 {
			continue
		}
		name := sets[random.IntN(len(sets))] // Others' doing.
		run(t, "nft", "flush", "set", "inet", table, name)
		if intact, err := p.Intact(ctx); err != nil || intact {
			t.Fatalf("step %d: without %s: intact: %v, %v", step, name, intact, err)
		}
	}
	if elements < 10 {
		t.Errorf("%d transactions were of elements alone", elements)
	}
}

// TestAMemberIsAnElement has members come and go: that costs elements alone, and
// what rules have counted stays.
func TestAMemberIsAnElement(t *testing.T) {
	isolate(t) // Says what is missing.
	n := fwtest.New(t)
	n.ServeHost(8080)
	n.ServeHost(8081)
	ctx := context.Background()
	p, nft := writing(t)
	addr := netip.MustParseAddr
	client, stranger := addr(fwtest.Client[0]), addr(fwtest.Stranger[0])
	groups := memberships{"a": {addr("10.0.0.1"): 80, stranger: 80}}
	apply := func(want ...string) {
		t.Helper()
		if err := p.Apply(ctx, hostPlan(t, hostpolicy.State{Members: groups.of}, of(100, logged(memberRule(in, reject, []string{"198.51.100.0/24", "203.0.113.0/24"}, "a"))))); err != nil {
			t.Fatal(err)
		}
		got := strings.Split(strings.TrimSpace(nft.last), "\n")
		if len(want) != len(got) && want != nil {
			t.Fatalf("written:\n%s", nft.last)
		}
		for i, w := range want {
			if !strings.HasPrefix(got[i], w[:strings.Index(w, "{")]) || !strings.HasSuffix(got[i], w[strings.Index(w, "{"):]) {
				t.Errorf("written is %q and not %q", got[i], w)
			}
		}
	}
	try := func(from netip.Addr, want string) {
		t.Helper()
		if got := n.Try("tcp", from.String(), fwtest.Host[0], 8080, want); got != want {
			t.Errorf("from %s: %s, not %s", from, got, want)
		}
	}
	counted := func(want uint64) {
		t.Helper()
		tallies, err := p.Count(ctx)
		if err != nil || len(tallies) != 1 {
			t.Fatal(tallies, err)
		}
		for _, tally := range tallies {
			if tally.Packets != want {
				t.Errorf("counted: %d, not %d", tally.Packets, want)
			}
		}
	}
	apply()
	try(stranger, fwtest.Refused)
	try(client, fwtest.Open)
	counted(1)
	groups["a"][client] = 80
	apply("add element inet weir np-ip-of-{ 192.0.2.10 }")
	try(client, fwtest.Refused)
	counted(2)
	delete(groups["a"], stranger)
	groups["a"][addr("10.0.0.2")], groups["a"][addr("10.0.0.3")] = 80, 80
	apply("delete element inet weir np-ip-of-{ 192.0.2.20 }", "add element inet weir np-ip-of-{ 10.0.0.2, 10.0.0.3 }")
	try(stranger, fwtest.Open)
	try(client, fwtest.Refused)
	counted(3)
	run(t, "nft", "delete", "element", "inet", table, setOf(t, "np-ip-of-"), "{ 192.0.2.10 }") // By others.
	delete(groups["a"], client)
	groups["a"][stranger] = 80
	apply() // It cannot be taken away, so all is written.
	if !strings.Contains(nft.last, "add rule") {
		t.Errorf("written:\n%s", nft.last)
	}
	try(stranger, fwtest.Refused)
	try(client, fwtest.Open)
	counted(4)
}

// A rule's members and its blocks are in sets of their own, and each rule's apart.
func TestVerdictsAreOfMembersAndBlocks(t *testing.T) {
	isolate(t) // Says what is missing.
	n := fwtest.New(t)
	n.ServeHost(8080)
	n.ServeHost(8081)
	groups := memberships{"a": {}, "b": {}, "c": {netip.MustParseAddr("10.0.0.1"): 80}}
	for family := range 2 {
		groups["a"][netip.MustParseAddr(fwtest.Stranger[family])] = 80
		groups["b"][netip.MustParseAddr(fwtest.Client[family])] = 80
	}
	other := memberRule(in, reject, []string{"192.0.2.16/28", "2001:db8:1::20/124"}, "b")
	other.Services.Services[0].Port = 8081
	plan := hostPlan(t, hostpolicy.State{Members: groups.of}, of(50, memberRule(in, allow, nil, "b", "c")), of(100, memberRule(in, reject, []string{"192.0.2.8/29", "2001:db8:1::/123"}, "a"), other))
	if err := NewPolicies().Apply(context.Background(), plan); err != nil {
		t.Fatal(err)
	}
	for family, to := range []string{fwtest.Host[0], fwtest.Host[3]} {
		for _, c := range []struct {
			from string
			port uint16
			want string
		}{
			{fwtest.Client[family], 8080, fwtest.Open}, {fwtest.Stranger[family], 8080, fwtest.Refused}, // Allowed as of b; rejected as of a.
			{fwtest.Client[family], 8081, fwtest.Refused}, {fwtest.Stranger[family], 8081, fwtest.Refused}, // Of b; of the block.
		} {
			if got := n.Try("tcp", c.from, to, c.port, c.want); got != c.want {
				t.Errorf("from %s to %d: %s, not %s", c.from, c.port, got, c.want)
			}
		}
	}
}
