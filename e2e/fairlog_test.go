package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// What becomes of the packets that one rule logs, or of samples.
type account struct{ kept, lost uint64 }

// accounts adds records and stated losses up by name: of one policy its own, of
// several policies, or of nobody known, nobody's.
func accounts(t *testing.T, c *harness.Cluster) (map[string]account, []*auditv1.Event, error) {
	stream, err := c.Audit().Tail(t.Context(), &auditv1.TailRequest{})
	if err != nil {
		return nil, nil, err
	}
	sums, events := make(map[string]account), []*auditv1.Event(nil)
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return sums, events, nil
		}
		if err != nil {
			return nil, nil, err
		}
		e := resp.GetRecord().GetEvent()
		if e.GetPacket() != nil || e.GetLoss() != nil { // Not how policies changed.
			events = append(events, e)
		}
		if p := e.GetPacket(); p != nil {
			name := p.GetReason()
			if len(p.GetPolicies()) > 0 {
				name = p.GetPolicies()[0].GetName()
			}
			a := sums[name]
			a.kept += max(1, p.GetCount())
			sums[name] = a
		}
		if l := e.GetLoss(); l != nil {
			if l.GetStage() == auditv1.LossStage_LOSS_STAGE_UNKNOWN {
				return nil, nil, errors.New("a loss of unknown size is stated")
			}
			name := l.GetReason()
			if l.GetPolicy() != nil {
				name = l.GetPolicy().GetName()
			}
			a := sums[name]
			a.lost += l.GetCount()
			sums[name] = a
		}
	}
}

var toPort = regexp.MustCompile(`reg1=(0x[0-9a-f]+)`)

// matched is what flows counted that log, by the port that they guard.
func matched(t *testing.T, n *harness.Node, table int) (map[string]uint64, error) {
	out, err := n.OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, fmt.Sprintf("table=%d", table))
	if err != nil {
		return nil, err
	}
	counts := make(map[string]uint64)
	for line := range strings.Lines(out) {
		if at := toPort.FindStringSubmatch(line); at != nil && strings.Contains(line, "controller(") {
			counts[at[1]] += countPackets(line)
		}
	}
	return counts, nil
}

// registerOf is how a Pod's port stands in the output register.
func registerOf(t *testing.T, n *harness.Node, pod string) string {
	t.Helper()
	out, err := n.OVS.Vsctl(t.Context(), "--bare", "--columns=ofport", "find", "interface", "external_ids:pod-name="+pod)
	must(t, err)
	var number int
	_, err = fmt.Sscanf(out, "%d", &number)
	must(t, err)
	return fmt.Sprintf("%#x", number)
}

const twoDrops = `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: flooded}
spec:
  tier: securityops
  priority: 5
  appliedTo: [{podSelector: {matchLabels: {app: nginx}}}]
  ingress: [{name: no-udp, action: Drop, enableLogging: true, ports: [{protocol: UDP}]}]
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: modest}
spec:
  tier: securityops
  priority: 6
  appliedTo: [{podSelector: {matchLabels: {app: calm}}}]
  ingress: [{name: no-udp-either, action: Drop, enableLogging: true, ports: [{protocol: UDP}]}]
`

// While one rule denies tens of thousands of distinct flows a second, another
// rule's records and an isolation's are all there, but for one in a hundred. What the flooded
// rule lost is stated as that rule's; records and losses are what the flows matched.
func TestFloodOfOneRuleSparesTheOthers(t *testing.T) {
	c := startCluster(t, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1")}}, {Name: "node-2", IPs: []netip.Addr{ip("192.0.2.2")}}}})
	var pods []harness.PodConfig
	objects := smallObjects(true)
	for i, name := range []string{"client", "nginx", "calm", "shut", "other"} {
		addr := fmt.Sprintf("10.9.1.%d", i+1)
		pods = append(pods, harness.PodConfig{Namespace: "default", Name: name, Node: "node-1", IPs: []netip.Addr{ip(addr)}})
		if i > 1 {
			objects += fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec: {nodeName: node-1, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: %s}]}\n", name, name, addr)
		}
	}
	must(t, c.SetPods(t.Context(), pods))
	set(t, c, objects, twoDrops, policy("isolated", "{podSelector: {matchLabels: {app: shut}}, ingress: []}"))
	node := c.Nodes["node-1"]
	must(t, node.RoomySwitch())

	const floodRate, modestRate, seconds = 25000, 50, 6
	open := func(pod string) *net.UDPConn {
		var conn *net.UDPConn
		must(t, c.Pod(pod).NS.Do(func() (err error) { conn, err = net.ListenUDP("udp", nil); return err }))
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	flood, calm := open("default/client"), open("default/other")
	send := func(conn *net.UDPConn, to string, port int) {
		if _, err := conn.WriteToUDPAddrPort([]byte("denied"), netip.AddrPortFrom(ip(to), uint16(1024+port%60000))); err != nil {
			t.Error(err)
		}
	}
	const tick = 10 * time.Millisecond
	ticker, sent := time.NewTicker(tick), 0
	defer ticker.Stop()
	begin := time.Now()
	for i := 0; time.Since(begin) < seconds*time.Second; i++ {
		for ; sent < int(floodRate*time.Since(begin).Seconds()); sent++ {
			send(flood, "10.9.1.2", sent)
		}
		if i%int(time.Second/modestRate/tick) == 0 {
			send(calm, "10.9.1.3", i)
			send(calm, "10.9.1.4", i)
		}
		<-ticker.C
	}
	registers := map[string]string{"flooded": registerOf(t, node, "nginx"), "modest": registerOf(t, node, "calm"), "isolated": registerOf(t, node, "shut")}
	eventually(t, func() error {
		sums, events, err := accounts(t, c)
		if err != nil {
			return err
		}
		rules, err := matched(t, node, 20)
		if err != nil {
			return err
		}
		isolations, err := matched(t, node, 22)
		if err != nil {
			return err
		}
		for name, at := range registers {
			flows, got := rules[at]+isolations[at], sums[name]
			if got.kept+got.lost != flows {
				return fmt.Errorf("%s: %d packets on record and %d stated as lost; its flows matched %d", name, got.kept, got.lost, flows)
			}
			t.Logf("%s: matched %d, on record %d, stated as lost %d", name, flows, got.kept, got.lost)
			if name == "flooded" {
				if flows < floodRate*seconds/2 || got.lost == 0 {
					return fmt.Errorf("no flood: %d packets of %d sent, %d lost", flows, sent, got.lost)
				}
			} else if flows < modestRate*seconds/2 || got.lost*100 > flows {
				return fmt.Errorf("%s: %d of %d packets are lost", name, got.lost, flows)
			}
		}
		if nobody := sums[""]; nobody != (account{}) {
			return fmt.Errorf("nobody's: %+v", nobody)
		}
		for _, e := range events {
			if l := e.GetLoss(); l.GetStage() == auditv1.LossStage_LOSS_STAGE_RULE_METER && l.GetPolicy().GetName() == "flooded" {
				if l.GetRule() != "no-udp" || l.GetDirection() != policyv1.Direction_DIRECTION_INGRESS || l.GetPolicy().GetKind() != policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY {
					return fmt.Errorf("the loss is %v", l)
				}
			}
		}
		return nil
	})
}

// What an observed Namespace's Pods begin is on record once for each direction, whatever
// policies say, with the verdict, and no more often than the rate allows; what is over that
// is stated. Nothing else is.
func TestObservedConnections(t *testing.T) {
	const rate = 20
	c := smallCluster(t, "--observe", "default", "--observe-rate", fmt.Sprint(rate))
	set(t, c, smallObjects(false), policy("shut-client", "{podSelector: {matchLabels: {app: client}}, ingress: []}"))
	client, nginx := c.Pod("default/client"), c.Pod("default/nginx")
	outcomes(t, []harness.Probe{tcp(client, "10.9.1.2"), {From: nginx, To: ip("10.9.1.1"), Protocol: api.ProtocolUDP, Port: 7777}}, harness.Allow, harness.Drop)
	type seen struct{ direction, action, appliedTo, peer string }
	eventually(t, func() error {
		_, events, err := accounts(t, c)
		if err != nil {
			return err
		}
		got := make(map[seen]int)
		for _, e := range events {
			p := e.GetPacket()
			if p.GetReason() != "observed" || len(p.GetPolicies()) > 0 || p.GetStaged() != nil {
				return fmt.Errorf("the record has %v", e)
			}
			got[seen{p.GetDirection().String(), p.GetAction().String(), p.GetAppliedTo(), p.GetPeer()}] += int(max(1, p.GetCount()))
		}
		for s, once := range map[seen]bool{
			{"DIRECTION_EGRESS", "ACTION_ALLOW", "default/client", "default/nginx"}:  true,
			{"DIRECTION_INGRESS", "ACTION_ALLOW", "default/nginx", "default/client"}: true,
			{"DIRECTION_EGRESS", "ACTION_ALLOW", "default/nginx", "default/client"}:  false,
			{"DIRECTION_INGRESS", "ACTION_DROP", "default/client", "default/nginx"}:  false,
		} {
			if n := got[s]; n == 0 || once && n != 1 {
				return fmt.Errorf("%+v is on record %d times: %v", s, n, got)
			}
			delete(got, s)
		}
		if len(got) > 0 {
			return fmt.Errorf("also on record: %v", got)
		}
		return nil
	})

	var conn *net.UDPConn
	must(t, client.NS.Do(func() (err error) { conn, err = net.ListenUDP("udp", nil); return err }))
	defer conn.Close()
	for i := range 2000 {
		_, err := conn.WriteToUDPAddrPort([]byte("allowed"), netip.AddrPortFrom(ip("10.9.1.2"), uint16(1024+i)))
		must(t, err)
		if i%100 == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	eventually(t, func() error {
		sums, _, err := accounts(t, c)
		if err != nil {
			return err
		}
		out, err := c.Nodes["node-1"].OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, "cookie=0x5700100000000000/0xff00ff0000000000")
		if err != nil {
			return err
		}
		got := sums["observed"]
		if flows := countPackets(out); got.kept+got.lost != flows || flows < 2000 || got.lost == 0 || got.kept > 20*rate {
			return fmt.Errorf("%d samples on record, %d stated as lost; the flows matched %d", got.kept, got.lost, flows)
		}
		return nil
	})
}
