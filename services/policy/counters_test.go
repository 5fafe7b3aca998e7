package policy

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

const countedManifest = manifest + `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: open, uid: u1}
spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 443}]}]}
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard, uid: u2}
spec: {priority: 5, tier: securityops, appliedTo: [{namespaceSelector: {}}], egress: [{name: dns, action: Allow, ports: [{port: 53}]}, {name: rest, action: Drop}]}
`

// counts is a report of what a rule of open, or guard, or the isolation by open
// matched.
func (n *node) counts(reading uint64, uncountedMs uint64, open, isolation, guard uint64) {
	n.t.Helper()
	k8s := &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "x", Name: "open"}
	acnp := &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "guard"}
	in, eg := policyv1.Direction_DIRECTION_INGRESS, policyv1.Direction_DIRECTION_EGRESS
	for i, rules := range [][]*policyv1.RuleCounter{
		{{Policy: k8s, Uid: "u1", Direction: in, Index: 1, Sessions: open, Packets: 10 * open, Bytes: 100 * open},
			{Policy: k8s, Uid: "another", Direction: in, Index: 1, Sessions: 1000}},
		{{Policy: k8s, Uid: "u1", Direction: in, Isolation: true, Sessions: isolation, Packets: isolation, Bytes: 60 * isolation},
			{Policy: acnp, Uid: "u2", Direction: eg, Rule: "rest", Sessions: guard, Packets: guard, Bytes: 60 * guard}},
	} {
		m := &policyv1.NodeStats{Rules: rules, Reading: reading, More: i == 0, CountedSinceMs: 1_700_000_000_000 + int64(reading), UncountedMs: uncountedMs}
		if err := n.stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Stats{Stats: m}}); err != nil {
			n.t.Fatal(err)
		}
	}
}

// matched says what a service knows of what rules matched, that of policies with
// nothing left out.
func (f *fixture) matched(ctx context.Context, c policyv1.InspectionServiceClient) (lines []string) {
	f.t.Helper()
	list, err := c.ListPolicies(ctx, &policyv1.ListPoliciesRequest{Stats: true})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range list.GetPolicies() {
		for _, r := range p.GetRules() {
			rule := r.GetRule()
			switch {
			case r.GetIsolation():
				rule = "isolation"
			case rule == "":
				rule = strconv.Itoa(int(r.GetIndex()))
			}
			lines = append(lines, fmt.Sprint(p.GetRef().GetName(), " ", rule, ": ", r.GetSessions(), " ", r.GetPackets(), " ", r.GetBytes()))
		}
		if p.GetUncountedMs() > 0 {
			lines = append(lines, fmt.Sprint(p.GetRef().GetName(), " uncounted ", p.GetUncountedMs(), " of ", p.GetNodesCounted()))
		}
	}
	return lines
}

// Sums are over all nodes, with every replica; a node that moves, or is gone, or a
// replica that is, does not take from them; and a service that begins has them
// again from another, or once nodes have told.
func TestCountsAreSummedByAllReplicas(t *testing.T) {
	f := newFixture(t)
	f.write(countedManifest)
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, l.Addr().String())
		l.Close()
	}
	var stop [2]func()
	ask := make([]policyv1.InspectionServiceClient, 2)
	var ctx context.Context
	start := func(i int) {
		_, stop[i] = f.start(addresses[i], addresses...)
		f.addr = addresses[i]
		conn, c := f.dial("operator")
		ask[i], ctx = policyv1.NewInspectionServiceClient(conn), c
	}
	start(0)
	start(1)
	connect := func(name string, replica int) *node {
		f.addr = addresses[replica]
		n := f.subscribe("node-"+name, name)
		n.until("policies", func() bool { return len(n.policies()) > 1 })
		return n
	}
	want := func(when string, lines ...string) {
		t.Helper()
		all := append([]string{"closed isolation: 0 0 0", "open 0: 0 0 0"}, lines...)
		for i, c := range ask {
			var got []string
			for deadline := time.Now().Add(8 * time.Second); !slices.Equal(got, all); got = f.matched(ctx, c) {
				if time.Now().After(deadline) {
					t.Fatalf("%s, replica %d says\n%s\nwant\n%s", when, i, strings.Join(got, "\n"), strings.Join(all, "\n"))
				}
			}
		}
	}
	want("before anyone reported", "open 1: 0 0 0", "open isolation: 0 0 0", "guard dns: 0 0 0", "guard rest: 0 0 0")
	n1, n2 := connect("n1", 0), connect("n2", 1)
	n1.counts(1, 0, 1, 2, 3)
	n2.counts(1, 1500, 10, 20, 30)
	sums := []string{"open 1: 11 110 1100", "open isolation: 22 22 1320", "open uncounted 1500 of 2", "guard dns: 0 0 0", "guard rest: 33 33 1980", "guard uncounted 1500 of 2"}
	want("one at each", sums...)
	n1.counts(2, 0, 5, 2, 3)
	sums[0] = "open 1: 15 150 1500"
	want("one reports again", sums...)
	n1.stream.CloseSend()
	n1 = connect("n1", 1)
	want("it moves, and has not reported", sums...)
	n1.counts(3, 0, 6, 2, 3)
	sums[0] = "open 1: 16 160 1600"
	want("it has", sums...)
	stop[1]()
	ask = ask[:1]
	want("its replica is gone", sums...)
	ask = ask[:2]
	start(1)
	want("it is back, and nobody has come to it", sums...)
	stop[0]()
	stop[1]()
	start(0)
	start(1)
	want("all begin anew", "open 1: 0 0 0", "open isolation: 0 0 0", "guard dns: 0 0 0", "guard rest: 0 0 0")
	connect("n1", 0).counts(9, 0, 6, 2, 3)
	connect("n2", 0).counts(9, 1500, 10, 20, 30)
	want("nodes have come", sums...)
}

// Each rule has metrics, unless it is asked for that none has.
func TestRulesHaveMetrics(t *testing.T) {
	for _, on := range []bool{true, false} {
		f := newFixture(t)
		f.write(countedManifest)
		s, _ := f.run(Config{Listen: "127.0.0.1:0", RuleMetrics: on})
		f.addr = s.Addr()
		n := f.subscribe("node-n1", "n1")
		n.until("policies", func() bool { return len(n.policies()) > 1 })
		n.counts(1, 0, 1, 2, 3)
		conn, ctx := f.dial("operator")
		c := policyv1.NewInspectionServiceClient(conn)
		for deadline := time.Now().Add(8 * time.Second); !slices.Contains(f.matched(ctx, c), "guard rest: 3 3 180"); {
			if time.Now().After(deadline) {
				t.Fatal("the report never came")
			}
		}
		families, err := s.Metrics().Gather()
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, fam := range families {
			if !strings.HasPrefix(fam.GetName(), "weir_policy_rule_") && !strings.HasPrefix(fam.GetName(), "weir_policy_isolation_") {
				continue
			}
			for _, m := range fam.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, l.GetName()+"="+l.GetValue())
				}
				lines = append(lines, fmt.Sprint(fam.GetName(), "{", strings.Join(labels, ","), "} ", m.GetCounter().GetValue()+m.GetGauge().GetValue()))
			}
		}
		got := strings.Join(lines, "\n")
		want := `weir_policy_isolation_drops_total{direction=ingress,kind=K8sNetworkPolicy,namespace=x,policy=open} 2
weir_policy_rule_bytes_total{direction=egress,kind=AntreaClusterNetworkPolicy,namespace=,policy=guard,rule=rest} 180
weir_policy_rule_bytes_total{direction=ingress,kind=K8sNetworkPolicy,namespace=x,policy=open,rule=1} 100
weir_policy_rule_metrics_left_out{} 0
weir_policy_rule_packets_total{direction=egress,kind=AntreaClusterNetworkPolicy,namespace=,policy=guard,rule=rest} 3
weir_policy_rule_packets_total{direction=ingress,kind=K8sNetworkPolicy,namespace=x,policy=open,rule=1} 10
weir_policy_rule_sessions_total{direction=egress,kind=AntreaClusterNetworkPolicy,namespace=,policy=guard,rule=rest} 3
weir_policy_rule_sessions_total{direction=ingress,kind=K8sNetworkPolicy,namespace=x,policy=open,rule=1} 1`
		if !on {
			want = ""
		}
		if got != want {
			t.Errorf("metrics of rules %v:\n%s\nwant\n%s", on, got, want)
		}
	}
}
