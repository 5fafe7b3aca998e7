package audit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
	"github.com/weirnet/weir/shim/pipeline"
)

const packetInObjects = `---
apiVersion: v1
kind: Namespace
metadata: {name: default, annotations: {networkpolicy.antrea.io/enable-logging: "true"}}
---
apiVersion: v1
kind: Node
metadata: {name: node-1, annotations: {weir.dev/gateway-addresses: '169.254.1.1'}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {nodeName: node-1, containers: [{name: c, image: c}]}
status: {podIPs: [{ip: 10.9.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: node-1, containers: [{name: c, image: c}]}
status: {podIPs: [{ip: 10.9.1.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut}
spec: {podSelector: {matchLabels: {app: web}}, ingress: []}
`

// floodFor sends packets of distinct flows for a time, as fast as it can.
func floodFor(ns *harness.NetNS, to netip.Addr, d time.Duration) error {
	return ns.Do(func() error {
		conn, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		for i, end := 0, time.Now().Add(d); i%64 != 0 || time.Now().Before(end); i++ {
			if _, err := conn.WriteToUDPAddrPort([]byte("denied"), netip.AddrPortFrom(to, uint16(1024+i%60000))); err != nil {
				return err
			}
		}
		return nil
	})
}

// sink counts the packet-ins of the node's log while something is done, and does nothing
// else with them.
func sink(ctx context.Context, n *harness.Node, during func() error) (received uint64, took time.Duration, err error) {
	br, err := bridge.New(bridge.Config{Name: harness.Bridge, RunDir: n.OVS.Dir, OVSDB: n.OVS.OVSDB(), DatapathType: "netdev", Controllers: []bridge.Controller{{ID: pipeline.LogController}}})
	if err != nil {
		return 0, 0, err
	}
	var count atomic.Uint64
	br.Deliver(pipeline.LogController, func(openflow.PacketIn) { count.Add(1) })
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = br.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if err := br.WaitConnected(ctx); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	err = during()
	return count.Load(), time.Since(start), err
}

// matched is what the flow counted that denies and logs.
func matched(ctx context.Context, n *harness.Node) (packets uint64, err error) {
	out, err := n.OVS.Ofctl(ctx, "dump-flows", harness.Bridge, fmt.Sprintf("table=%d,cookie=%#x/%#x", pipeline.TableIngressDefaultRule,
		pipeline.CookieMark|pipeline.LayoutVersion<<48|uint64(pipeline.KindIsolation)<<40, uint64(0xffffff)<<40))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(out, "n_packets=")
	if _, err := fmt.Sscanf(after, "%d", &packets); err != nil {
		return 0, fmt.Errorf("flow: %w: %s", err, out)
	}
	return packets, nil
}

// settled is what the flow matched, once that stays the same: the switch brings it up to
// date now and then.
func settled(ctx context.Context, n *harness.Node) (packets uint64, err error) {
	last := uint64(1<<64 - 1)
	err = harness.Eventually(ctx, 30*time.Second, func() error {
		if packets, err = matched(ctx, n); err != nil {
			return err
		}
		if packets != last {
			last = packets
			time.Sleep(time.Second)
			return errors.New("the flow's counters go up")
		}
		return nil
	})
	return packets, err
}

// record is what the collector holds: packets and losses, and when it had the last
// packet.
type record struct {
	kept, lost uint64
	last       time.Time
}

func recordOf(ctx context.Context, c *harness.Cluster) (r record, err error) {
	stream, err := c.Audit().Tail(ctx, &auditv1.TailRequest{})
	if err != nil {
		return r, err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		e := resp.GetRecord().GetEvent()
		if p := e.GetPacket(); p != nil {
			r.kept += max(1, p.GetCount())
			r.last = resp.GetRecord().GetReceived().AsTime()
		}
		if l := e.GetLoss(); l.GetStage() == auditv1.LossStage_LOSS_STAGE_UNKNOWN {
			return r, errors.New("a loss of unknown size is stated")
		} else {
			r.lost += l.GetCount()
		}
	}
}

// BenchmarkPacketIn has an isolation deny as many flows as can be sent, for two seconds an
// operation: from the Pod's packet by Open vSwitch and the shim to the collector's disk, all of
// them real processes. The ratio is to the packet-ins a second that a bare sink receives of
// the same flood by the same flows, while the shim is away. No loss is left unstated. The
// collector has no sinks: what is durable is measured, not what is printed of it.
func BenchmarkPacketIn(b *testing.B) {
	ovstest.Require(b)
	bin, err := harness.Build(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(bin) })
	const noLimit = "1000000"
	c, err := harness.Start(b.Context(), harness.Config{Bin: bin, Nodes: []harness.NodeConfig{{Name: "node-1", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}},
		ShimArgs: []string{"--log-rate", noLimit, "--log-rate-per-rule", noLimit}, AuditdArgs: []string{"--np-log-dir", "", "--json-file", ""}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Stop(); err != nil {
			b.Error(err)
		}
	})
	web := netip.MustParseAddr("10.9.1.2")
	err = c.SetPods(b.Context(), []harness.PodConfig{{Namespace: "default", Name: "client", Node: "node-1", IPs: []netip.Addr{netip.MustParseAddr("10.9.1.1")}},
		{Namespace: "default", Name: "web", Node: "node-1", IPs: []netip.Addr{web}}})
	if err != nil {
		b.Fatal(err)
	}
	if err := c.SetManifests(b.Context(), []byte(packetInObjects)); err != nil {
		b.Fatal(err)
	}
	node := c.Nodes["node-1"]
	flood := func() error { return floodFor(c.Pod("default/client").NS, web, 2*time.Second) }
	var sunk, durable, sunkFor, durableFor float64
	had := record{}
	for b.Loop() {
		node.Shim.Terminate()
		n, took, err := sink(b.Context(), node, flood)
		if err != nil {
			b.Fatal(err)
		}
		sunk, sunkFor = sunk+float64(n), sunkFor+took.Seconds()
		before, err := settled(b.Context(), node)
		if err != nil {
			b.Fatal(err)
		}
		if err := node.Shim.Start(); err != nil {
			b.Fatal(err)
		}
		if err := c.Settled(b.Context()); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := flood(); err != nil {
			b.Fatal(err)
		}
		now := had
		err = harness.Eventually(b.Context(), 60*time.Second, func() error {
			flows, err := matched(b.Context(), node)
			if err != nil {
				return err
			}
			if now, err = recordOf(b.Context(), c); err != nil {
				return err
			}
			if kept, lost := now.kept-had.kept, now.lost-had.lost; kept+lost != flows-before || kept == 0 {
				return fmt.Errorf("%d packets are on record and %d stated as lost; the flow matched %d", kept, lost, flows-before)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		durable, durableFor = durable+float64(now.kept-had.kept), durableFor+now.last.Sub(start).Seconds()
		had = now
	}
	b.ReportMetric(durable/durableFor, "events/s")
	b.ReportMetric(durable/durableFor/(sunk/sunkFor), "ratio")
	b.ReportMetric(sunk/sunkFor, "sink/s")
	b.ReportMetric(float64(had.lost)/float64(had.kept+had.lost), "stated-lost")
	b.ReportMetric(0, "ns/op")
}
