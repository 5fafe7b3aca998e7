package pipeline

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

var update = flag.Bool("update", false, "write the goldens anew")

var config = Config{LocalMAC: [6]byte{2, 0, 0, 0, 0, 1}, HostMAC: [6]byte{2, 0, 0, 0, 0, 2}, RuleLogRate: 100, RuleLogBurst: 100, MeterLimit: 1 << 18, RejectRate: 50, Node: "node-1", BalanceServices: true}

// feed is an engine, its store and one node's replica.
type feed struct {
	t       testing.TB
	engine  *engine.Engine
	store   *storage.Store
	sub     *storage.Subscriber
	replica *storage.Replica
}

func newFeed(t testing.TB, node string) *feed {
	s := storage.New("epoch")
	return &feed{t: t, engine: engine.New(), store: s, sub: s.Subscribe(node), replica: &storage.Replica{}}
}

// sync brings what was applied to the replica, and says what it touched.
func (w *feed) sync() storage.Touched {
	w.t.Helper()
	w.store.Commit(w.engine.Flush(), nil)
	cut := w.sub.Next()
	if cut == nil {
		return nil
	}
	var touched storage.Touched
	for _, b := range cut.Frames(1 << 20) {
		frame := &policyv1.Cut{}
		if err := proto.Unmarshal(b, frame); err != nil {
			w.t.Fatal(err)
		}
		var err error
		if touched, _, err = w.replica.Apply(frame); err != nil {
			w.t.Fatal(err)
		}
	}
	return touched
}

// update brings a compiler up to date, where nothing is refused.
// update is Update; of the flow that notes the revision only the first is there.
func (w *feed) update(c *Compiler, touched storage.Touched, ports []Port) Change {
	w.t.Helper()
	first := c.Revision() == 0
	ch, err := c.Update(w.replica, touched, ports)
	if err != nil {
		w.t.Fatal(err)
	}
	ch.Upsert = slices.DeleteFunc(ch.Upsert, func(f openflow.Flow) bool { return f.Table == TableRevision && !first })
	return ch
}

func (w *feed) apply(objects ...api.Object) {
	for _, o := range objects {
		w.engine.Apply(api.Event{Ref: o.Ref(), Object: o})
	}
}

func labels(pairs ...string) api.Labels {
	var l api.Labels
	for i := 0; i < len(pairs); i += 2 {
		l = append(l, api.Label{Key: pairs[i], Value: pairs[i+1]})
	}
	return l
}

func pod(name, node, label string, ips ...string) *api.Pod {
	p := &api.Pod{Namespace: "x", Name: name, Node: node, ServiceAccount: "default", Labels: labels("app", label)}
	for _, ip := range ips {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip))
	}
	return p
}

func port(n uint32, name string) Port {
	return Port{OFPort: n, ID: fmt.Sprint("row-", n), Interface: fmt.Sprint("if", n), Namespace: "x", Name: name, MAC: [6]byte{2, 0, 0, 0, 1, byte(n)}}
}

func app(label string) *api.Selector { return &api.Selector{MatchLabels: labels("app", label)} }

// text is one flow a line, with the same revision noted whichever it is.
func text(flows []openflow.Flow) string {
	var lines []string
	for _, f := range flows {
		lines = append(lines, line(f))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func line(f openflow.Flow) string {
	return fmt.Sprintf("%-24s %s", TableName(f.Table), anyRevision.ReplaceAllString(f.String(), "REVISION/0xffff0000->reg7"))
}

var anyRevision = regexp.MustCompile("0x[0-9a-f]+/0xffff0000->reg7")

// The whole of a small node's flows, as ovs-ofctl would print them.
func TestFlowsOfASmallNode(t *testing.T) {
	w := newFeed(t, "node-1")
	named := pod("named", "node-2", "db", "10.0.1.3")
	named.Ports = []api.ContainerPort{{Name: "sql", Protocol: api.ProtocolTCP, Port: 5432}}
	web := pod("web", "node-1", "web", "10.0.0.2", "fd00::2")
	web.Ports = []api.ContainerPort{{Name: "http", Protocol: api.ProtocolTCP, Port: 8080}}
	w.apply(
		&api.Namespace{Name: "x", LogPolicies: true, Labels: labels("kubernetes.io/metadata.name", "x")},
		web, named,
		pod("client", "node-1", "client", "10.0.0.3"),
		pod("closed", "node-1", "web", "10.0.0.4"),
		&api.NetworkPolicy{Namespace: "x", Name: "web", PodSelector: *app("web"), PolicyTypes: []api.PolicyType{api.PolicyTypeIngress, api.PolicyTypeEgress},
			Ingress: []api.NetworkPolicyRule{{
				Peers: []api.NetworkPolicyPeer{{PodSelector: app("client")}, {IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("192.0.2.0/24"), Except: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}}}},
				Ports: []api.NetworkPolicyPort{{Protocol: api.ProtocolTCP, Port: 80}, {Protocol: api.ProtocolTCP, PortName: "http"}},
			}},
			Egress: []api.NetworkPolicyRule{{
				Peers: []api.NetworkPolicyPeer{{PodSelector: app("db")}},
				Ports: []api.NetworkPolicyPort{{Protocol: api.ProtocolTCP, PortName: "sql"}, {Protocol: api.ProtocolUDP, Port: 53, EndPort: 55}},
			}},
		},
		&api.NetworkPolicy{Namespace: "x", Name: "client", PodSelector: *app("client"), Ingress: []api.NetworkPolicyRule{{}}},
	)
	c := New(config, Assignment{})
	w.update(c, w.sync(), []Port{port(1, "web"), port(2, "client"), port(3, "stranger")})
	if p := c.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	overlaps(t, c.Desired())
	got := text(c.Desired())
	golden(t, "small-node.flows", got)
}

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("flows differ from %s (write it anew with -update); got\n%s", file, got)
	}
}

// overlaps looks for flows of one table and priority that a packet could both
// match: a switch may take either, and their counters would say nothing. Clause
// flows are meant to overlap, and direct flows of rules of one level may.
func overlaps(t *testing.T, flows []openflow.Flow) {
	t.Helper()
	disjoint := func(a, b openflow.Match) bool {
		for _, x := range a.Fields() {
			for _, y := range b.Fields() {
				if both := x.Mask.And(y.Mask); x.ID == y.ID && x.Value.And(both) != y.Value.And(both) {
					return true
				}
			}
		}
		return false
	}
	for i, a := range flows {
		for _, b := range flows[i+1:] {
			kind, _, _ := ParseCookie(a.Cookie)
			other, _, _ := ParseCookie(b.Cookie)
			if a.Table == b.Table && a.Priority == b.Priority && kind != KindClause && other != KindClause && !Tied(a, b) && !disjoint(a.Match, b.Match) {
				t.Errorf("one packet may match both\n%s\n%s", a, b)
			}
		}
	}
}

// bigRule is a state with one rule of so many peers, targets and ports.
func bigRule(t testing.TB, peers, targets, services int) (*feed, []Port) {
	w := newFeed(t, "node-1")
	var ports []Port
	for i := range targets {
		name := fmt.Sprint("target-", i)
		w.apply(pod(name, "node-1", "target", fmt.Sprintf("10.1.%d.%d", i/256, i%256)))
		ports = append(ports, port(uint32(i+1), name))
	}
	for i := range peers {
		w.apply(pod(fmt.Sprint("peer-", i), "node-2", "peer", fmt.Sprintf("10.2.%d.%d", i/256, i%256)))
	}
	rule := api.NetworkPolicyRule{Peers: []api.NetworkPolicyPeer{{PodSelector: app("peer")}}}
	for i := range services {
		rule.Ports = append(rule.Ports, api.NetworkPolicyPort{Protocol: api.ProtocolTCP, Port: uint16(1000 + 2*i)})
	}
	w.apply(&api.NetworkPolicy{Namespace: "x", Name: "big", PodSelector: *app("target"), Ingress: []api.NetworkPolicyRule{rule}})
	return w, ports
}

// A rule costs the sum of its clauses, not their product.
func TestRuleCostsTheSumOfItsClauses(t *testing.T) {
	w, ports := bigRule(t, 1000, 100, 10)
	c := New(config, Assignment{})
	w.update(c, w.sync(), ports)
	flows := 0
	for _, f := range c.Desired() {
		if f.Table == TableIngressRule && f.Priority != prioMiss {
			flows++
		}
	}
	if want := 1000 + 100 + 10 + 1; flows != want {
		t.Errorf("the rule costs %d flows, want %d", flows, want)
	}
}

// One member more or less touches one flow.
func TestMemberChangeTouchesOneFlow(t *testing.T) {
	w, ports := bigRule(t, 1000, 100, 10)
	c := New(config, Assignment{})
	w.update(c, w.sync(), ports)
	extra := pod("extra", "node-2", "peer", "10.3.0.1")
	w.apply(extra)
	if ch := w.update(c, w.sync(), ports); len(ch.Upsert) != 1 || len(ch.Delete) != 0 {
		t.Errorf("a new member changes %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
	}
	w.engine.Apply(api.Event{Ref: extra.Ref()})
	if ch := w.update(c, w.sync(), ports); len(ch.Upsert) != 0 || len(ch.Delete) != 1 {
		t.Errorf("a member's end changes %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
	}
}

func randomObject(rng *rand.Rand) api.Object {
	app := func() *api.Selector { return app(fmt.Sprint(rng.IntN(3))) }
	if rng.IntN(2) == 0 {
		i := rng.IntN(8)
		p := pod(fmt.Sprint("pod-", i), fmt.Sprint("node-", 1+rng.IntN(2)), fmt.Sprint(rng.IntN(3)), fmt.Sprintf("10.0.0.%d", rng.IntN(10)+1))
		if rng.IntN(2) == 0 {
			p.IPs = append(p.IPs, netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1)))
		}
		if rng.IntN(2) == 0 {
			p.Ports = []api.ContainerPort{{Name: "http", Protocol: api.ProtocolTCP, Port: uint16(80 + rng.IntN(2))}}
		}
		return p
	}
	p := &api.NetworkPolicy{Namespace: "x", Name: fmt.Sprint("policy-", rng.IntN(6)), PodSelector: *app()}
	rules := func() []api.NetworkPolicyRule {
		var out []api.NetworkPolicyRule
		for range rng.IntN(3) {
			r := api.NetworkPolicyRule{}
			for range rng.IntN(3) {
				switch rng.IntN(3) {
				case 0:
					r.Peers = append(r.Peers, api.NetworkPolicyPeer{IPBlock: &api.IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/28"), Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.4/30")}}})
				default:
					r.Peers = append(r.Peers, api.NetworkPolicyPeer{PodSelector: app()})
				}
			}
			for range rng.IntN(3) {
				switch rng.IntN(3) {
				case 0:
					r.Ports = append(r.Ports, api.NetworkPolicyPort{Protocol: api.ProtocolTCP, PortName: "http"})
				default:
					r.Ports = append(r.Ports, api.NetworkPolicyPort{Protocol: api.ProtocolUDP, Port: 53, EndPort: uint16(53 + rng.IntN(4))})
				}
			}
			out = append(out, r)
		}
		return out
	}
	p.Staged = rng.IntN(3) == 0
	p.Ingress, p.Egress = rules(), rules()
	if rng.IntN(2) == 0 {
		p.PolicyTypes = []api.PolicyType{api.PolicyTypeIngress, api.PolicyTypeEgress}
	}
	return p
}

// difference lists the lines that one text has and the other has not.
// inForce are the desired flows but those that are retired.
func inForce(c *Compiler) []openflow.Flow {
	return slices.DeleteFunc(c.Desired(), func(f openflow.Flow) bool {
		n, counts := CountOf(f)
		return counts && !c.counts.live(n.ID)
	})
}

// differing is how flows differ, whichever revision they note; empty where they do not.
// Texts are made only then: they take most of the time of a random test.
func differing(got, want []openflow.Flow) string {
	left := make(map[openflow.FlowKey]openflow.Flow, len(want))
	for _, f := range want {
		left[f.Key()] = f
	}
	same := len(got) == len(left)
	for _, f := range got {
		w, there := left[f.Key()]
		same = same && there && (w.Same(f) || line(w) == line(f))
		delete(left, f.Key())
	}
	if same {
		return ""
	}
	return fmt.Sprintf("%d flows (+), %d wanted (-)\n%s", len(got), len(want), difference(text(got), text(want)))
}

func difference(got, want string) string {
	var out []string
	for _, l := range strings.Split(got, "\n") {
		if !strings.Contains(want, l+"\n") {
			out = append(out, "+ "+l)
		}
	}
	for _, l := range strings.Split(want, "\n") {
		if !strings.Contains(got, l+"\n") {
			out = append(out, "- "+l)
		}
	}
	return strings.Join(out, "\n")
}

// Whatever a compiler went through, it wants the flows that a new one would
// want with its assignment, and what it told the bridge adds up to them.
func TestIncrementalEqualsFresh(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 4))
		cfg := config
		cfg.ClauseCap = 1 + rng.IntN(3)
		w := newFeed(t, "node-1")
		c := New(cfg, Assignment{})
		bridge := make(map[openflow.FlowKey]openflow.Flow)
		for range 25 {
			for range rng.IntN(4) {
				o := randomObject(rng)
				if rng.IntN(3) == 0 {
					w.engine.Apply(api.Event{Ref: o.Ref()})
				} else {
					w.apply(o)
				}
			}
			var ports []Port
			for i := range 8 {
				if rng.IntN(4) > 0 {
					ports = append(ports, port(uint32(i+1+8*rng.IntN(2)), fmt.Sprint("pod-", i)))
				}
			}
			ch := w.update(c, w.sync(), ports)
			if rng.IntN(2) == 0 { // Or some update later.
				ch.Delete = append(ch.Delete, c.Drop(c.Retired()).Delete...)
			}
			for _, f := range ch.Upsert {
				bridge[f.Key()] = f
			}
			for _, k := range ch.Delete {
				if _, there := bridge[k]; !there {
					t.Fatalf("seed %d: removes what is not there: %s", seed, k)
				}
				delete(bridge, k)
			}
			fresh := New(cfg, c.Assignment())
			w.update(fresh, Whole(w.replica), ports)
			if d := differing(inForce(c), fresh.Desired()); d != "" {
				t.Fatalf("seed %d: incremental (+) and fresh (-): %s", seed, d)
			}
			var told []openflow.Flow
			for _, f := range bridge {
				told = append(told, f)
			}
			if d := differing(told, c.Desired()); d != "" {
				t.Fatalf("seed %d: what the bridge was told (+) and the state (-): %s", seed, d)
			}
			if _, err := DecodeAssignment(c.Assignment().Encode()); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
}

func TestSubtract(t *testing.T) {
	for _, tc := range []struct {
		cidr   string
		except []string
		want   string
	}{
		{"10.0.0.0/8", nil, "10.0.0.0/8"},
		{"10.0.0.0/24", []string{"10.0.0.0/25"}, "10.0.0.128/25"},
		{"10.0.0.0/24", []string{"10.0.0.64/26", "10.0.0.128/26"}, "10.0.0.0/26 10.0.0.192/26"},
		{"10.0.0.0/30", []string{"10.0.0.0/31", "10.0.0.2/31"}, ""},
		{"0.0.0.0/0", []string{"0.0.0.0/1"}, "128.0.0.0/1"},
		{"fd00::/126", []string{"fd00::1/128"}, "fd00::/128 fd00::2/127"},
	} {
		var except []netip.Prefix
		for _, x := range tc.except {
			except = append(except, netip.MustParsePrefix(x))
		}
		var got []string
		for _, p := range subtract(nil, netip.MustParsePrefix(tc.cidr), except) {
			got = append(got, p.String())
		}
		if s := strings.Join(got, " "); s != tc.want {
			t.Errorf("%s without %v: %q, want %q", tc.cidr, tc.except, s, tc.want)
		}
	}
}

func TestPortMasksCoverExactlyTheRange(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		first := uint16(rng.IntN(65536))
		last := first + uint16(rng.IntN(65536-int(first)))
		masks := portMasks(first, last)
		for p := range 65536 {
			n := 0
			for _, m := range masks {
				if uint16(p)&m.mask == m.value {
					n++
				}
			}
			if in := p >= int(first) && p <= int(last); (n == 1) != in || n > 1 {
				t.Fatalf("%d to %d: port %d is covered %d times", first, last, p, n)
			}
		}
	}
}

// BenchmarkRule compiles the rule of 1,000 peers, 100 targets and 10 ports from
// nothing, and reports its flows.
func BenchmarkRule(b *testing.B) {
	w, ports := bigRule(b, 1000, 100, 10)
	w.sync()
	flows := 0
	for b.Loop() {
		flows = 0
		c := New(config, Assignment{})
		for _, f := range w.update(c, Whole(w.replica), ports).Upsert {
			if f.Table == TableIngressRule && f.Priority != prioMiss {
				flows++
			}
		}
	}
	if flows != 1111 {
		b.Fatalf("the rule costs %d flows", flows)
	}
	b.ReportMetric(float64(flows), "flows/op")
}

// BenchmarkMember takes one member in and out again.
func BenchmarkMember(b *testing.B) {
	w, ports := bigRule(b, 1000, 100, 10)
	c := New(config, Assignment{})
	w.update(c, w.sync(), ports)
	extra := pod("extra", "node-2", "peer", "10.3.0.1")
	changes := 0
	for b.Loop() {
		w.apply(extra)
		up := w.update(c, w.sync(), ports)
		w.engine.Apply(api.Event{Ref: extra.Ref()})
		down := w.update(c, w.sync(), ports)
		changes = len(up.Upsert) + len(down.Delete)
	}
	if changes != 2 {
		b.Fatalf("a member costs %d flow changes", changes)
	}
}
