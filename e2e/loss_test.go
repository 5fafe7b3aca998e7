package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// What the record holds and the losses that it states add up to the packets
// that were denied, to the packet, where far more come than may be recorded.
func TestRecordAndLossesAddUp(t *testing.T) {
	c := startCluster(t, harness.Config{Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{ip("192.0.2.1")}}, {Name: "node-2", IPs: []netip.Addr{ip("192.0.2.2")}}},
		ShimArgs: []string{"--log-rate", "100"}})
	err := c.SetPods(t.Context(), []harness.PodConfig{
		{Namespace: "default", Name: "client", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.1")}},
		{Namespace: "default", Name: "nginx", Node: "node-1", IPs: []netip.Addr{ip("10.9.1.2")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	set(t, c, smallObjects(true), policy("deny-all", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}"))
	const sockets, each = 20, 250
	for range sockets {
		var conn net.Conn
		err := c.Pod("default/client").NS.Do(func() error {
			conn, err = net.Dial("udp", "10.9.1.2:80")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for range each {
			if _, err := conn.Write([]byte("denied")); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
	}
	// Not every packet that is sent comes to the bridge; what its flow counted
	// did. It must be far more than the rate lets through, or nothing was shown.
	denied := func() (n uint64) {
		out, err := c.Nodes["node-1"].OVS.Ofctl(t.Context(), "dump-flows", harness.Bridge, "table=22,cookie=0x5700050000000000/0xff00ff0000000000")
		if err != nil {
			t.Fatal(err)
		}
		return countPackets(out)
	}
	err = harness.Eventually(t.Context(), 25*time.Second, func() error {
		kept, lost, err := tally(t, c)
		if err != nil {
			return err
		}
		if want := denied(); kept+lost != want || want < 400 || lost == 0 {
			return fmt.Errorf("the record holds %d packets and states %d as lost; the flow counted %d of %d sent", kept, lost, want, sockets*each)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tally adds up all records.
func tally(t *testing.T, c *harness.Cluster) (kept, lost uint64, err error) {
	stream, err := c.Audit().Tail(t.Context(), &auditv1.TailRequest{})
	if err != nil {
		return 0, 0, err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return kept, lost, nil
		}
		if err != nil {
			return 0, 0, err
		}
		switch e := resp.GetRecord().GetEvent().GetKind().(type) {
		case *auditv1.Event_Packet:
			kept += max(1, e.Packet.GetCount())
		case *auditv1.Event_Loss:
			if e.Loss.GetStage() == auditv1.LossStage_LOSS_STAGE_UNKNOWN {
				return 0, 0, status.Error(codes.DataLoss, "a loss of unknown size is stated")
			}
			lost += e.Loss.GetCount()
		}
	}
}

// Probes tell refused from dropped and allowed, for every protocol.
func TestProbesTellOutcomesApart(t *testing.T) {
	c := smallCluster(t)
	set(t, c, smallObjects(false), policy("shut-client", "{podSelector: {matchLabels: {app: client}}, ingress: []}"))
	remote, nginx := c.Pod("default/remote"), c.Pod("default/nginx")
	for _, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP} {
		for _, family := range []struct{ nginx, client string }{{"10.9.1.2", "10.9.1.1"}, {"fd09:1::2", "fd09:1::1"}} {
			outcomes(t, []harness.Probe{
				{From: remote, To: ip(family.nginx), Protocol: p, Port: 80},
				{From: remote, To: ip(family.nginx), Protocol: p, Port: 81}, // Nobody listens.
				{From: nginx, To: ip(family.client), Protocol: p, Port: 80},
			}, harness.Allow, harness.Reject, harness.Drop)
		}
	}
	outcomes(t, []harness.Probe{
		{From: remote, To: ip("10.9.1.2"), Protocol: api.ProtocolICMP}, {From: remote, To: ip("fd09:1::2"), Protocol: api.ProtocolICMP},
		{From: remote, To: ip("10.9.1.1"), Protocol: api.ProtocolICMP}, {From: nginx, To: ip("fd09:1::1"), Protocol: api.ProtocolICMP},
	}, harness.Allow, harness.Allow, harness.Drop, harness.Drop)
}

// countPackets adds up the packets of flows that ovs-ofctl printed.
func countPackets(dump string) (sum uint64) {
	for _, part := range strings.Split(dump, "n_packets=")[1:] {
		var n uint64
		fmt.Sscanf(part, "%d", &n)
		sum += n
	}
	return sum
}
