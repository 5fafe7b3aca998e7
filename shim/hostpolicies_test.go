package shim

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw"
	"github.com/weirnet/weir/shim/hostfw/fwtest"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/storage"
)

// fakeFirewall has in force what it was given last.
type fakeFirewall struct {
	plan    *hostpolicy.Plan
	applies int
	broken  error // Nothing works.
	changed bool  // Others were at it.
	tallies map[string]hostfw.Tally
}

func (f *fakeFirewall) Apply(_ context.Context, plan *hostpolicy.Plan) error {
	if f.broken != nil {
		return f.broken
	}
	f.plan, f.changed = plan, false
	f.applies++
	return nil
}

func (f *fakeFirewall) Count(context.Context) (map[string]hostfw.Tally, error) {
	return f.tallies, f.broken
}

func (f *fakeFirewall) LogsItself() bool { return true }

func (f *fakeFirewall) Intact(_ context.Context) (bool, error) { return !f.changed, f.broken }

// hostState is the state of a node as far as its host is concerned.
type hostState struct {
	t        testing.TB
	replica  storage.Replica
	revision uint64
}

var (
	serviceGroup  = []byte("service-group-01")
	otherGroup    = []byte("service-group-02")
	nodeScope     = storage.NewScopeID(storage.ScopeNode, "node-1")
	policiesScope = storage.NewScopeID(storage.ScopePolicies, "node-ports")
)

// cut brings scopes and says what that touched.
func (h *hostState) cut(scopes ...*policyv1.ScopeDelta) storage.Touched {
	h.t.Helper()
	h.revision++
	touched, done, err := h.replica.Apply(&policyv1.Cut{Epoch: "epoch", Revision: h.revision, Position: &policyv1.Position{}, Digest: make([]byte, 16), Scopes: scopes})
	if err != nil || !done {
		h.t.Fatal(done, err)
	}
	return touched
}

func facts(groups ...[]byte) *policyv1.ScopeDelta {
	return &policyv1.ScopeDelta{Id: nodeScope[:], Kind: storage.ScopeNode, Upserts: []*policyv1.Item{{Body: &policyv1.Item_Node{Node: &policyv1.NodeFacts{Name: "node-1", Groups: groups}}}}}
}

func policies(list ...*policyv1.Policy) *policyv1.ScopeDelta {
	d := &policyv1.ScopeDelta{Id: policiesScope[:], Kind: storage.ScopePolicies}
	for _, p := range list {
		d.Upserts = append(d.Upserts, &policyv1.Item{Body: &policyv1.Item_Policy{Policy: p}})
	}
	return d
}

func removal(p *policyv1.Policy) *policyv1.ScopeDelta {
	return &policyv1.ScopeDelta{Id: policiesScope[:], Kind: storage.ScopePolicies, Removals: []string{storage.PolicyKey(p)}}
}

// atNodePort is a policy with one rule, about a port by TCP and UDP.
func atNodePort(name string, action policyv1.Action, port uint32, blocks ...string) *policyv1.Policy {
	r := &policyv1.Rule{Direction: policyv1.Direction_DIRECTION_INGRESS, Action: action, Name: "r", LogLabel: "label", NodePorts: true,
		Services: &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: port}, {Protocol: policyv1.Protocol_PROTOCOL_UDP, Port: port}}}}
	for _, b := range blocks {
		if r.Peers == nil {
			r.Peers = &policyv1.Peers{}
		}
		r.Peers.Blocks = append(r.Peers.Blocks, &policyv1.IPBlock{Cidr: storage.PrefixToWire(netip.MustParsePrefix(b))})
	}
	return &policyv1.Policy{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: name},
		Rank: 100, Rules: []*policyv1.Rule{r}, AppliedTo: [][]byte{serviceGroup}}
}

// hosting is a shim with no side but its host's.
func hosting(edit func(*Config)) *hostPolicies {
	cfg := Defaults()
	cfg.Node, cfg.Logger, cfg.StateDir = "node-1", hclog.NewNullLogger(), "/nonexistent"
	edit(&cfg)
	return newHostPolicies(&Shim{cfg: cfg, logger: cfg.Logger, log: packetlog.NewLog(0), metrics: newMetrics()})
}

const dropAction = policyv1.Action_ACTION_DROP

func TestHostPoliciesFollowTheState(t *testing.T) {
	ctx := context.Background()
	h := hosting(func(*Config) {})
	fw := &fakeFirewall{}
	h.fw = fw
	state := &hostState{t: t}
	cut := func(what string, rules, applies int, scopes ...*policyv1.ScopeDelta) {
		t.Helper()
		if problems := h.cut(ctx, &state.replica, state.cut(scopes...)); len(problems) > 0 {
			t.Errorf("%s: %v", what, problems)
		}
		if len(fw.plan.NodePorts) != rules || fw.applies != applies {
			t.Errorf("%s: %d rules, applied %d times in all", what, len(fw.plan.NodePorts), fw.applies)
		}
	}
	p := atNodePort("p", dropAction, 30080)
	cut("the first", 0, 1, facts(), policies(p))
	cut("the Service has node ports", 1, 2, facts(serviceGroup))
	cut("nothing about the host", 1, 2, &policyv1.ScopeDelta{Id: nodeScope[:], Kind: storage.ScopeNode, Upserts: []*policyv1.Item{{Body: &policyv1.Item_Endpoint{
		Endpoint: &policyv1.Endpoint{Namespace: "x", Name: "p", Ips: [][]byte{{10, 0, 0, 1}}}}}}})
	forPods := atNodePort("pods", dropAction, 30080)
	forPods.Rules[0].NodePorts = false
	cut("a policy for Pods", 1, 2, policies(forPods))
	cut("the same from elsewhere", 1, 2, policies(proto.Clone(p).(*policyv1.Policy)))
	moved := atNodePort("p", dropAction, 30081)
	cut("another node port", 1, 3, policies(moved))
	if got := fw.plan.NodePorts[0].Ports[0].First; got != 30081 {
		t.Errorf("the rule is about port %d", got)
	}
	cut("one more", 2, 4, policies(atNodePort("q", dropAction, 30082)))
	cut("one less", 1, 5, removal(moved))
	cut("another Service", 0, 6, facts(otherGroup))
	cut("and back", 1, 7, facts(serviceGroup))
	cut("the scope is gone", 0, 8, &policyv1.ScopeDelta{Id: policiesScope[:], Gone: true})
	if len(h.policies) != 0 {
		t.Errorf("known still: %v", h.policies)
	}
}

func TestHostPoliciesThatAreNotInForce(t *testing.T) {
	ctx := context.Background()
	h := hosting(func(*Config) {})
	fw := &fakeFirewall{broken: errors.New("no nft here")}
	h.fw = fw
	state := &hostState{t: t}
	odd := atNodePort("odd", dropAction, 30081)
	odd.Rules[0].Peers = &policyv1.Peers{Groups: [][]byte{otherGroup}}
	touched := state.cut(facts(serviceGroup), policies(atNodePort("p", dropAction, 30080), odd))
	problems := func(touched storage.Touched, want ...string) {
		t.Helper()
		var got []string
		for _, p := range h.cut(ctx, &state.replica, touched) {
			got = append(got, p.GetKey()+": "+p.GetError())
		}
		if len(got) != len(want) {
			t.Fatalf("problems: %q", got)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("problem %q, not %q", got[i], want[i])
			}
		}
	}
	never := "policy/2//odd: rule 0: clients of node ports are known by address alone"
	problems(touched, never, "policy/2//odd: no nft here", "policy/2//p: no nft here")
	problems(nil, never, "policy/2//odd: no nft here", "policy/2//p: no nft here")
	fw.broken = nil
	problems(nil, never)
	if fw.applies != 1 || len(fw.plan.NodePorts) != 1 {
		t.Errorf("applied %d times, %v", fw.applies, fw.plan)
	}
	problems(nil, never)
	h.mend(ctx, time.Now())
	if fw.applies != 1 {
		t.Errorf("applied %d times though nothing changed", fw.applies)
	}
	fw.changed, h.checked = true, time.Time{}
	h.mend(ctx, time.Now())
	if n := counterOf(t, h.shim, "weir_shim_host_rules_mended_total", nil); n != 1 || fw.changed {
		t.Errorf("mended %v times", n)
	}
	fw.broken = errors.New("gone again")
	h.cut(ctx, &state.replica, state.cut(policies(atNodePort("p", dropAction, 30082))))
	fw.broken = nil
	h.retry(ctx)
	if h.failed != nil || fw.plan.NodePorts[0].Ports[0].First != 30082 {
		t.Errorf("it was not tried again: %v", h.failed)
	}
}

// recorded takes what the log has until it has n events.
func recorded(t *testing.T, log *packetlog.Log, n int) (events []*auditv1.Event) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(events) < n; time.Sleep(10 * time.Millisecond) {
		log.Flush(time.Now().Add(time.Second))
		events = append(events, log.Take(100)...)
		if time.Now().After(deadline) {
			t.Fatalf("%d events of %d: %v", len(events), n, events)
		}
	}
	return events
}

// recordedTo takes what the log has until there is an event by a protocol to an
// address, and returns that beside all: the clients' kernel may have said
// something again that was not answered before.
func recordedTo(t *testing.T, log *packetlog.Log, protocol uint32, to string) (it *auditv1.PacketEvent, all []*auditv1.Event) {
	t.Helper()
	for it == nil {
		for _, e := range recorded(t, log, 1) {
			all = append(all, e)
			if p := e.GetPacket(); p.GetProtocol() == protocol && addr(p.GetDestinationIp()) == to {
				it = p
			}
		}
	}
	return it, all
}

// TestNodePortRecords sends real packets through the host's firewall.
func TestNodePortRecords(t *testing.T) {
	n := fwtest.New(t)
	n.ServeHost(30080)
	h := hosting(func(c *Config) { c.Reconcile = time.Hour })
	state := &hostState{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	cut := func(list ...*policyv1.Policy) {
		t.Helper()
		for _, p := range list {
			p.Rules[0].Log = !p.Staged
		}
		h.cut(ctx, &state.replica, state.cut(&policyv1.ScopeDelta{Id: policiesScope[:], Gone: true}))
		if problems := h.cut(ctx, &state.replica, state.cut(facts(serviceGroup), policies(list...))); len(problems) > 0 {
			t.Fatal(problems)
		}
	}
	strangers := []string{"192.0.2.20/32", "2001:db8:1::20/128"}
	cut(atNodePort("p", dropAction, 30080, strangers...), atNodePort("q", policyv1.Action_ACTION_ALLOW, 30080))
	go func() { ended <- h.run(ctx) }()
	defer func() { cancel(); <-ended }()

	for i, to := range []string{fwtest.Host[0], fwtest.Host[3]} {
		if got := n.Try("tcp", fwtest.Stranger[i], to, 30080, fwtest.Silence); got != fwtest.Silence {
			t.Errorf("stranger: %s", got)
		}
		e, _ := recordedTo(t, h.shim.log, hostpolicy.TCP, to)
		if e.GetAction() != dropAction || e.GetTable() != "NodePort" || e.GetReason() != "rule" || e.GetDirection() != policyv1.Direction_DIRECTION_INGRESS ||
			len(e.GetPolicies()) != 1 || e.GetPolicies()[0].GetName() != "p" || e.GetRule() != "r" || e.GetLogLabel() != "label" || e.GetAppliedTo() != "node:node-1" ||
			addr(e.GetSourceIp()) != fwtest.Stranger[i] || addr(e.GetDestinationIp()) != to || e.GetProtocol() != hostpolicy.TCP ||
			e.GetDestinationPort() != 30080 || e.GetSourcePort() == 0 || e.GetTcpFlags() != 2 || e.GetLength() < 40 || e.GetLength() > 100 {
			t.Errorf("record: %v", e)
		}
	}

	c, err := n.Dial("tcp", fwtest.Client[0], fwtest.Host[1], 30080)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 5 {
		if err := fwtest.Echo(c); err != nil {
			t.Fatal(err)
		}
	}
	n.Try("udp", fwtest.Stranger[0], fwtest.Host[0], 30080, fwtest.Silence) // Is recorded after all that.
	_, all := recordedTo(t, h.shim.log, hostpolicy.UDP, fwtest.Host[0])
	allowed := packetsOf(all, policyv1.Action_ACTION_ALLOW)
	if len(allowed) != 1 || allowed[0].GetCount() != 1 || allowed[0].GetPolicies()[0].GetName() != "q" || allowed[0].GetTcpFlags() != 2 {
		t.Errorf("records of a connection: %v", allowed)
	}

	staged := atNodePort("s", policyv1.Action_ACTION_PASS, 30080, "192.0.2.0/24")
	staged.Staged, staged.Priority = true, -1
	cut(atNodePort("p", dropAction, 30080, strangers...), staged)
	if got := n.Try("udp", fwtest.Stranger[0], fwtest.Host[0], 30080, fwtest.Silence); got != fwtest.Silence {
		t.Errorf("stranger, with a staged policy: %s", got)
	}
	if got := n.Try("udp", fwtest.Client[0], fwtest.Host[0], 30080, fwtest.Open); got != fwtest.Open {
		t.Errorf("client, with a staged policy: %s", got)
	}
	e := recorded(t, h.shim.log, 1)
	if p := e[0].GetPacket(); len(e) != 1 || p.GetReason() != "rule" || p.GetStaged().GetAction() != policyv1.Action_ACTION_ALLOW || p.GetStaged().GetPolicy().GetName() != "s" {
		t.Errorf("records with a staged policy: %v", e)
	}
	staged = proto.Clone(staged).(*policyv1.Policy)
	staged.Rules[0].Action = policyv1.Action_ACTION_REJECT
	cut(staged)
	if got := n.Try("udp", fwtest.Client[0], fwtest.Host[0], 30080, fwtest.Open); got != fwtest.Open {
		t.Errorf("client, with a staged reject: %s", got)
	}
	if p := recorded(t, h.shim.log, 1)[0].GetPacket(); p.GetReason() != "staged" || p.GetAction() != policyv1.Action_ACTION_ALLOW || len(p.GetPolicies()) != 0 ||
		p.GetStaged().GetAction() != policyv1.Action_ACTION_REJECT || p.GetStaged().GetPolicy().GetName() != "s" {
		t.Errorf("record of a staged reject: %v", p)
	}
}

// TestNodePortRecordsOverTheirRate has more reported than the budget allows: all
// is on record, or stated as lost.
func TestNodePortRecordsOverTheirRate(t *testing.T) {
	overRate(t, atNodePort("p", dropAction, 30080))
}

// overRate is the test, for a policy that drops what is sent to port 30080.
func overRate(t *testing.T, p *policyv1.Policy) {
	t.Helper()
	n := fwtest.New(t)
	h := hosting(func(c *Config) { c.LogRate, c.RuleLogRate, c.Reconcile = 10, 10, time.Hour })
	state := &hostState{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	p.Rules[0].Log = true
	if problems := h.cut(ctx, &state.replica, state.cut(facts(serviceGroup), policies(p))); len(problems) > 0 {
		t.Fatal(problems)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.run(ctx) }()
	defer func() { cancel(); <-ended }()
	c, err := n.Dial("udp", fwtest.Client[0], fwtest.Host[0], 30080)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const sent = 500
	for range sent {
		if _, err := c.Write([]byte("x")); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
	var recordedPackets, lost uint64
	for deadline := time.Now().Add(10 * time.Second); recordedPackets+lost < sent; {
		if time.Now().After(deadline) {
			t.Fatalf("%d recorded, %d stated as lost, of %d", recordedPackets, lost, sent)
		}
		for _, e := range recorded(t, h.shim.log, 1) {
			recordedPackets += e.GetPacket().GetCount()
			lost += e.GetLoss().GetCount()
			if l := e.GetLoss(); l != nil && (l.GetStage() != auditv1.LossStage_LOSS_STAGE_RULE_METER || l.GetPolicy().GetName() != p.GetRef().GetName() || l.GetRule() != p.GetRules()[0].GetName()) {
				t.Errorf("lost: %v", l)
			}
		}
	}
	if recordedPackets < 10 || lost == 0 || recordedPackets+lost != sent {
		t.Errorf("%d recorded, %d stated as lost, of %d", recordedPackets, lost, sent)
	}
	if n := counterOf(t, h.shim, "weir_shim_log_events_lost_total", map[string]string{"stage": "LOSS_STAGE_RULE_METER"}); n != float64(lost) {
		t.Errorf("counted as lost: %v, not %d", n, lost)
	}
}

var _ firewall = (*hostfw.Policies)(nil)

func addr(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

func packetsOf(events []*auditv1.Event, action policyv1.Action) (out []*auditv1.PacketEvent) {
	for _, e := range events {
		if e.GetPacket().GetAction() == action {
			out = append(out, e.GetPacket())
		}
	}
	return out
}

// One rule's flood of reports takes no other's share, neither of its rate nor of all
// rules'; all is on record or stated as its rule's.
func TestHostReportsAreShared(t *testing.T) {
	h := hosting(func(c *Config) { c.LogRate, c.RuleLogRate, c.LogBurst = 1000, 900, 1000 })
	start := time.Unix(1000, 0)
	meaning := func(name string) packetlog.Meaning {
		return packetlog.Meaning{Direction: policyv1.Direction_DIRECTION_INGRESS, Policies: []*policyv1.PolicyRef{{Name: name}}, Rule: "r"}
	}
	sent := make(map[string]uint64)
	report := func(now time.Time, name string) {
		m := meaning(name)
		sent[name]++
		if class, within := h.records.allow(now, ruleOf(hostpolicy.Ingress, &m)); within {
			key := packetlog.Key{Table: hostTable, InPort: uint32(sent[name]), Class: hostClasses | class}
			h.records.reports.Put(now, class, hostReport{key, packetlog.Packet{}, m, true})
		}
	}
	var now time.Time
	for ms := range 10000 {
		now = start.Add(time.Duration(ms) * time.Millisecond)
		for range 5 {
			report(now, "flood")
			report(now, "other flood")
		}
		if ms%20 == 0 {
			report(now, "modest")
		}
		if ms%25 == 0 {
			h.records.take(now)
		}
	}
	h.records.take(now.Add(time.Second))
	h.records.countLosses(nil, now)
	h.shim.log.Flush(now.Add(time.Hour))
	kept, lost := make(map[string]uint64), make(map[string]uint64)
	for _, e := range h.shim.log.Take(100000) {
		for _, ref := range e.GetPacket().GetPolicies() {
			kept[ref.GetName()] += e.GetPacket().GetCount()
		}
		lost[e.GetLoss().GetPolicy().GetName()] += e.GetLoss().GetCount()
	}
	for name, n := range sent {
		if kept[name]+lost[name] != n || (name == "modest") != (lost[name] == 0) {
			t.Errorf("%s: %d on record and %d lost, of %d", name, kept[name], lost[name], n)
		}
	}
	if lost[""] != 0 {
		t.Errorf("nobody's: %d", lost[""])
	}
}
