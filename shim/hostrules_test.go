package shim

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw/fwtest"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/storage"
)

// ofHost is a policy for the node itself with one rule, about a port by TCP and UDP.
func ofHost(name string, d policyv1.Direction, action policyv1.Action, port uint32, blocks ...string) *policyv1.Policy {
	p := atNodePort(name, action, port, blocks...)
	r := p.Rules[0]
	r.Direction, r.NodePorts, r.Host, r.LogLabel = d, false, true, "a-label-of-twenty-one"
	return p
}

const (
	ingress = policyv1.Direction_DIRECTION_INGRESS
	egress  = policyv1.Direction_DIRECTION_EGRESS
)

var peersScope = storage.NewScopeID(storage.ScopeAddressGroup, "peers")

func members(ips ...string) *policyv1.ScopeDelta {
	d := &policyv1.ScopeDelta{Id: peersScope[:], Kind: storage.ScopeAddressGroup}
	for i, ip := range ips {
		d.Upserts = append(d.Upserts, &policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{Subject: &policyv1.Member_Node{Node: string(rune('a' + i))}, Ips: [][]byte{netip.MustParseAddr(ip).AsSlice()}}}})
	}
	return d
}

// The plan follows the members of groups that rules of the node name, and only
// these, and who steers the node.
func TestHostRulesFollowTheState(t *testing.T) {
	ctx := context.Background()
	h := hosting(func(c *Config) { c.PolicyServers = []string{"192.0.2.9:9740", "[2001:db8::9]:9740"} })
	fw := &fakeFirewall{}
	h.fw = fw
	state := &hostState{t: t}
	cut := func(what string, applies int, want string, scopes ...*policyv1.ScopeDelta) {
		t.Helper()
		var problems []string
		for _, p := range h.cut(ctx, &state.replica, state.cut(scopes...)) {
			problems = append(problems, p.GetKey()+": "+p.GetError())
		}
		var got []string
		for _, r := range fw.plan.Ingress {
			got = append(got, strings.Trim(strings.ReplaceAll(strings.Trim(strings.Join(texts(r.Peers), " "), "[]"), "/32", ""), " "))
		}
		got = append(got, problems...)
		if text := strings.Join(got, "; "); text != want || fw.applies != applies {
			t.Errorf("%s: %q, applied %d times in all", what, text, fw.applies)
		}
	}
	p := ofHost("p", ingress, dropAction, 22)
	p.Rules[0].Peers = &policyv1.Peers{Groups: [][]byte{peersScope[:]}}
	cut("the policy", 1, "", facts(serviceGroup), policies(p))
	cut("a member", 2, "10.0.0.1", members("10.0.0.1"))
	cut("another", 3, "10.0.0.1 10.0.0.2", members("10.0.0.1", "10.0.0.2"))
	other := storage.NewScopeID(storage.ScopeAddressGroup, "others")
	others := members("10.9.9.9")
	others.Id = other[:]
	cut("another group", 3, "10.0.0.1 10.0.0.2", others)
	cut("the group is gone", 4, "", &policyv1.ScopeDelta{Id: peersScope[:], Gone: true})
	cut("and back", 5, "10.0.0.2", members("10.0.0.2"))
	if got := len(fw.plan.Control.Servers); got != 2 {
		t.Errorf("policy services: %v", fw.plan.Control.Servers)
	}
	out := ofHost("q", egress, dropAction, 9740)
	cut("a policy that would cut the node off", 6, "10.0.0.2", policies(out))
	const lockout = `policy/2//q: rule 0 would cut the node off: its own connections to 192.0.2.9:9740 are let through in spite of it; annotation weir.dev/allow-lockout: "true" denies them`
	if len(h.lockouts) != 1 || !h.lockouts[lockout] {
		t.Errorf("lockouts: %v", h.lockouts)
	}
	out = proto.Clone(out).(*policyv1.Policy)
	out.AllowLockout = true
	cut("and says so", 7, "10.0.0.2", policies(out))
	if len(h.lockouts) != 0 {
		t.Errorf("lockouts: %v", h.lockouts)
	}

	h = hosting(func(c *Config) { c.NodePolicies = false })
	h.fw = fw
	h.begin(ctx, &state.replica)
	if !fw.plan.IsEmpty() {
		t.Errorf("in force though no policies of nodes are wanted: %v", fw.plan)
	}
}

func texts(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

func TestWhereTheKernelLogs(t *testing.T) {
	setting := filepath.Join(t.TempDir(), "nf_log_all_netns")
	if kernelLogs(setting) {
		t.Error("in a namespace without the setting")
	}
	if err := os.WriteFile(setting, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !kernelLogs(setting) {
		t.Error("not in the first one")
	}
}

func TestHostRecordsOverTheirRate(t *testing.T) {
	overRate(t, ofHost("p", ingress, dropAction, 30080))
}

// TestHostRecords sends real packets to the host and from it.
func TestHostRecords(t *testing.T) {
	n := fwtest.New(t)
	n.ServeHost(8080)
	n.ServeClients(8080)
	h := hosting(func(c *Config) { c.Reconcile = time.Hour })
	state := &hostState{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	rejected := ofHost("out", egress, policyv1.Action_ACTION_REJECT, 8080)
	allowed := ofHost("in", ingress, policyv1.Action_ACTION_ALLOW, 8080)
	dropped := ofHost("shut", ingress, dropAction, 8081)
	dropped.Rules[0].Services = nil
	dropped.Rank = 110
	for _, p := range []*policyv1.Policy{rejected, allowed, dropped} {
		p.Rules[0].Log = true
	}
	if problems := h.cut(ctx, &state.replica, state.cut(facts(serviceGroup), policies(rejected, allowed, dropped))); len(problems) > 0 {
		t.Fatal(problems)
	}
	go func() { ended <- h.run(ctx) }()
	defer func() { cancel(); <-ended }()
	check := func(what, got, want string, protocol uint32, to, from, policy string, action policyv1.Action, d policyv1.Direction, table string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s", what, got)
		}
		e, _ := recordedTo(t, h.shim.log, protocol, to)
		if e.GetAction() != action || e.GetTable() != table || e.GetReason() != "rule" || e.GetDirection() != d || len(e.GetPolicies()) != 1 || e.GetPolicies()[0].GetName() != policy ||
			e.GetRule() != "r" || e.GetLogLabel() != "a-label-of-twenty-one" || e.GetAppliedTo() != "node:node-1" || addr(e.GetSourceIp()) != from {
			t.Errorf("%s: %v", what, e)
		}
		if protocol == hostpolicy.TCP && (e.GetDestinationPort() == 0 || e.GetSourcePort() == 0) {
			t.Errorf("%s: without ports: %v", what, e)
		}
	}
	const drop, reject, allow = dropAction, policyv1.Action_ACTION_REJECT, policyv1.Action_ACTION_ALLOW
	for f := range 2 {
		host, client := fwtest.Host[3*f], fwtest.Client[f]
		check("a connection", n.Try("tcp", client, host, 8080, fwtest.Open), fwtest.Open, hostpolicy.TCP, host, client, "in", allow, ingress, "NodeIngress")
		check("another port", n.Try("tcp", client, host, 8081, fwtest.Silence), fwtest.Silence, hostpolicy.TCP, host, client, "shut", drop, ingress, "NodeIngress")
		check("a ping", n.Ping(client, host, fwtest.Silence), fwtest.Silence, []uint32{1, 58}[f], host, client, "shut", drop, ingress, "NodeIngress")
		check("a call", n.TryFromHost("tcp", client, 8080, fwtest.Refused), fwtest.Refused, hostpolicy.TCP, client, host, "out", reject, egress, "NodeEgress")
		check("a datagram", n.TryFromHost("udp", client, 8080, fwtest.Silence), fwtest.Silence, hostpolicy.UDP, client, host, "out", reject, egress, "NodeEgress")
	}
}
