package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// wireCounters has a Pod's own kernel count what it sends and receives, by what
// is to decide on it.
const wireCounters = `
table inet counts {
	counter datagrams {}
	counter segments {}
	counter shut {}
	counter isolated {}
	chain out {
		type filter hook output priority 0;
		ip daddr { 10.9.1.2, 10.9.2.1 } udp dport 80 counter name datagrams
		# Of answers that come after the socket has gone; of an allowed connection, so they count.
		ip daddr { 10.9.1.2, 10.9.2.1 } icmp type destination-unreachable counter name datagrams
		ip daddr 10.9.1.2 tcp dport 80 counter name segments
		ip daddr 10.9.1.2 udp dport 443 counter name shut
		ip daddr 10.9.1.2 udp dport 81 counter name isolated
	}
	chain in {
		type filter hook input priority 0;
		ip saddr { 10.9.1.2, 10.9.2.1 } udp sport 80 counter name datagrams
		ip saddr 10.9.1.2 tcp sport 80 counter name segments
	}
}
`

// countedPolicies are the policies that decide on it.
const countedPolicies = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, uid: u-open}
spec: {podSelector: {matchExpressions: [{key: app, operator: In, values: [nginx, remote]}]}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80, protocol: UDP}]}, {ports: [{port: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, uid: u-closed}
spec: {podSelector: {matchLabels: {app: nginx}}, ingress: []}
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard, uid: u-guard}
spec:
  priority: 5
  tier: securityops
  ingress: [{name: shut, action: Drop, ports: [{port: 443, protocol: UDP}], appliedTo: [{podSelector: {matchLabels: {app: nginx}}}]}]
  egress: [{name: out, action: Allow, ports: [{port: 80, protocol: UDP}], appliedTo: [{podSelector: {matchLabels: {app: client}}}]}]
`

// onWire are packets, and bytes of the frames that carried them.
type onWire struct{ packets, bytes uint64 }

func readWire(t *testing.T, h *harness.Host) map[string]onWire {
	t.Helper()
	out, err := h.NS.Command(t.Context(), "nft", "-j", "list", "counters", "table", "inet", "counts").Output()
	must(t, err)
	var list struct {
		Nftables []struct {
			Counter *struct {
				Name           string
				Packets, Bytes uint64
			}
		}
	}
	must(t, json.Unmarshal(out, &list))
	counted := make(map[string]onWire)
	for _, e := range list.Nftables {
		if c := e.Counter; c != nil {
			counted[c.Name] = onWire{c.Packets, c.Bytes + 14*c.Packets} // An Ethernet header each.
		}
	}
	return counted
}

// What rules matched, summed over nodes, is what was sent, to the packet and the
// byte, through ten deaths of the shims, with policies coming and going.
func TestCountersAreWhatWasSent(t *testing.T) {
	t.Parallel()
	c := smallCluster(t, "--stats-interval=300ms")
	client := c.Pod("default/client")
	nft := client.NS.Command(t.Context(), "nft", "-f", "-")
	nft.Stdin = strings.NewReader(wireCounters)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	other := func(i int) string {
		return policy(fmt.Sprint("other-", i), fmt.Sprintf("{podSelector: {matchLabels: {app: nginx}}, ingress: [{ports: [{port: %d}]}]}", 5000+i))
	}
	set(t, c, smallObjects(false), countedPolicies)
	talk := stream(t, client, "10.9.1.2")
	udp := func(to string, port uint16) harness.Probe {
		return harness.Probe{From: client, To: ip(to), Protocol: api.ProtocolUDP, Port: port}
	}
	const rounds, conversations = 10, 4
	for round := range rounds {
		probes, want := []harness.Probe{udp("10.9.1.2", 443), udp("10.9.1.2", 81)}, []string{harness.Drop, harness.Drop}
		for range conversations {
			probes, want = append(probes, udp("10.9.1.2", 80), udp("10.9.2.1", 80)), append(want, harness.Allow, harness.Allow)
		}
		traffic := make(chan struct{})
		go func() { defer close(traffic); outcomes(t, probes, want...) }()
		// They die at whatever they are about, but for one thing: right after a bundle
		// the userspace datapath of Open vSwitch 3.1 may count packets twice until its
		// cache has been emptied. So policies change before the deaths or after them.
		extra := ""
		if round%3 != 2 {
			extra = other(round)
		}
		change := func() {
			must(t, c.WriteManifests(t.Context(), []byte(smallObjects(false)+countedPolicies+extra)))
			must(t, c.ManifestsRead(t.Context()))
		}
		nodes := []string{"node-1", "node-2"}[:1+round%2]
		if round%2 == 0 {
			change()
			must(t, c.Settled(t.Context()))
		}
		for _, name := range nodes {
			c.Nodes[name].Shim.Kill()
		}
		if round%2 == 1 {
			change()
		}
		for _, name := range nodes {
			must(t, c.Nodes[name].Shim.Start())
		}
		must(t, c.Settled(t.Context()))
		lives(t, fmt.Sprintf("after death %d", round+1), talk)
		<-traffic
	}
	talk.Close()
	got := func() (map[string]*policyv1.RuleStats, uint64) {
		list, err := c.Inspection().ListPolicies(t.Context(), &policyv1.ListPoliciesRequest{Stats: true})
		must(t, err)
		rules, uncounted := make(map[string]*policyv1.RuleStats), uint64(0)
		for _, p := range list.GetPolicies() {
			uncounted += p.GetUncountedMs()
			for _, r := range p.GetRules() {
				name := fmt.Sprint(p.GetRef().GetName(), " ", r.GetRule(), r.GetIndex())
				if r.GetIsolation() {
					name = p.GetRef().GetName() + " isolation"
				}
				rules[name] = r
			}
		}
		return rules, uncounted
	}
	equal := func() error {
		wire := readWire(t, client)
		rules, uncounted := got()
		if uncounted > 0 {
			return fmt.Errorf("%d ms are uncounted", uncounted)
		}
		for name, want := range map[string]struct {
			wire     string
			sessions uint64
		}{
			"open 0":           {"datagrams", 2 * rounds * conversations},
			"open 1":           {"segments", 1},
			"guard out0":       {"datagrams", 2 * rounds * conversations},
			"guard shut0":      {"shut", wire["shut"].packets},
			"open isolation":   {"isolated", wire["isolated"].packets},
			"closed isolation": {"isolated", wire["isolated"].packets},
		} {
			sent, r := wire[want.wire], rules[name]
			if r.GetPackets() != sent.packets || r.GetBytes() != sent.bytes || r.GetSessions() != want.sessions || sent.packets == 0 {
				return fmt.Errorf("%s counted %d packets, %d bytes, %d sessions; sent were %+v in %d", name, r.GetPackets(), r.GetBytes(), r.GetSessions(), sent, want.sessions)
			}
		}
		return nil
	}
	if err := harness.Eventually(t.Context(), 20*time.Second, equal); err != nil {
		for name, n := range c.Nodes {
			log, err := os.ReadFile(n.Shim.Log)
			must(t, err)
			for line := range strings.Lines(string(log)) {
				if strings.Contains(line, "counted") {
					t.Logf("%s: %s", name, line)
				}
			}
			for _, table := range []string{"13", "23", "27"} {
				out, err := n.OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, "table="+table)
				must(t, err)
				t.Logf("what flows of %s counted:\n%s", name, out)
			}
		}
		t.Fatal(err)
	}
	wire := readWire(t, client)
	t.Logf("sent and counted: %+v", wire)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // Several readings, and passes of the switch over its cache.
	defer cancel()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for ctx.Err() == nil {
		if err := equal(); err != nil {
			t.Fatalf("not equal any more: %v", err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
		}
	}
}
