package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// wire is a Pod's own link, on which it can send whatever frame.
type wire struct {
	fd  int
	mac [6]byte
	to  unix.SockaddrLinklayer
}

func openWire(t *testing.T, h *harness.Host) *wire {
	t.Helper()
	w := &wire{fd: -1}
	err := h.NS.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		w.mac, w.to.Ifindex = [6]byte(link.HardwareAddr), link.Index
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(t *testing.T, frame []byte) {
	t.Helper()
	if err := unix.Sendto(w.fd, frame, 0, &w.to); err != nil {
		t.Fatal(err)
	}
}

// What a Pod sends from another MAC, IPv4 or IPv6 address, or says in another's
// name by ARP or neighbour discovery, arrives nowhere, is counted to the packet and
// is on record with the Pod that sent it, though no policy is there and nothing is
// logged. What its stack says from its link-local address is no forgery.
func TestForgeriesAreDroppedCountedAndRecorded(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(false))
	client, node := openWire(t, c.Pod("default/client")), c.Nodes["node-1"]
	gateway, err := node.BridgeMAC()
	if err != nil {
		t.Fatal(err)
	}
	hw, err := net.ParseMAC(gateway)
	if err != nil {
		t.Fatal(err)
	}
	own, to, foreign := client.mac, [6]byte(hw), [6]byte{0x0a, 0x58, 0xff, 0xff, 0xff, 0x01}
	own4, own6, nginx4, nginx6 := ip("10.9.1.1"), ip("fd09:1::1"), ip("10.9.1.2"), ip("fd09:1::2")
	udp := func(src [6]byte, from, to4 netip.Addr) bridge.Packet {
		p := bridge.Packet{EthSrc: src, EthDst: to, EthType: openflow.EtherIPv4, IPSrc: from, IPDst: to4, IPProto: openflow.ProtoUDP, TTL: 64, SrcPort: 5555, DstPort: 80}
		if from.Is6() {
			p.EthType = openflow.EtherIPv6
		}
		return p
	}
	arp := func(sha [6]byte, spa netip.Addr) bridge.Packet {
		return bridge.Packet{EthSrc: own, EthDst: [6]byte{255, 255, 255, 255, 255, 255}, EthType: openflow.EtherARP, ARPOp: 1, ARPSHA: sha, ARPSPA: spa, ARPTPA: nginx4}
	}
	nd := func(typ uint8, from, target netip.Addr, ll [6]byte) bridge.Packet {
		p := bridge.Packet{EthSrc: own, EthDst: to, EthType: openflow.EtherIPv6, IPSrc: from, IPDst: nginx6, IPProto: openflow.ProtoICMPv6, TTL: 255, ICMPType: typ, NDTarget: target}
		if typ == openflow.NDSolicit {
			p.NDSLL = ll
		} else {
			p.NDTLL = ll
		}
		return p
	}
	redirect := bridge.Packet{EthSrc: own, EthDst: to, EthType: openflow.EtherIPv6, IPSrc: own6, IPDst: nginx6, IPProto: openflow.ProtoICMPv6, TTL: 255, ICMPType: 137}
	advertisement := redirect
	advertisement.ICMPType, advertisement.IPSrc = 134, ip("fe80::1")

	type forgery struct {
		name                  string
		packet                bridge.Packet
		source, target, claim string // Of the record.
	}
	text := func(a netip.Addr) string { return a.String() }
	mac := func(m [6]byte) string { return net.HardwareAddr(m[:]).String() }
	forgeries := []forgery{
		{"MAC", udp(foreign, own4, nginx4), text(own4), "", ""},
		{"IPv4", udp(own, ip("10.9.1.77"), nginx4), "10.9.1.77", "", ""},
		{"IPv6", udp(own, ip("fd09:1::77"), nginx6), "fd09:1::77", "", ""},
		{"MAC of IPv6", udp(foreign, own6, nginx6), text(own6), "", ""},
		{"ARP sha", arp(foreign, own4), text(own4), "", mac(foreign)},
		{"ARP spa", arp(own, ip("10.9.1.78")), "10.9.1.78", "", mac(own)},
		{"ND target", nd(openflow.NDAdvert, own6, ip("fd09:1::78"), own), text(own6), "fd09:1::78", mac(own)},
		{"ND target from a link-local address", nd(openflow.NDAdvert, ip("fe80::1234"), ip("fd09:1::79"), own), "fe80::1234", "fd09:1::79", mac(own)},
		{"ND sll", nd(openflow.NDSolicit, own6, nginx6, foreign), text(own6), text(nginx6), mac(foreign)},
		{"ND tll", nd(openflow.NDAdvert, own6, own6, foreign), text(own6), text(own6), mac(foreign)},
		{"router advertisement", advertisement, "fe80::1", "", ""},
		{"redirect", redirect, text(own6), "", ""},
	}
	quiet := []bridge.Packet{
		udp(own, ip("fe80::1234"), ip("ff02::16")),
		nd(openflow.NDSolicit, ip("fe80::1234"), nginx6, own),
		nd(openflow.NDAdvert, ip("fe80::1234"), ip("fe80::1234"), own),
		nd(openflow.NDSolicit, netip.IPv6Unspecified(), own6, [6]byte{}),
	}
	const each = 3
	for range each {
		for _, p := range quiet {
			client.send(t, p.Frame())
		}
		for _, f := range forgeries {
			client.send(t, f.packet.Frame())
		}
	}

	type forged struct {
		Packet struct {
			Direction, Action, Reason, Table, AppliedTo, SourceIP, TargetIP, SourceMAC, ClaimedMAC, Protocol string
			Policies                                                                                         []string
			Count                                                                                            int
		}
	}
	read := func() (out []forged) {
		content, err := os.ReadFile(c.JSONLog())
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			var r forged
			if json.Unmarshal([]byte(line), &r) == nil && r.Packet.Reason == "spoof" {
				out = append(out, r)
			}
		}
		return out
	}
	err = harness.Eventually(t.Context(), 20*time.Second, func() error {
		found, total := make(map[string]int), 0
		for _, r := range read() {
			p := r.Packet
			total += p.Count
			if p.Direction != "egress" || p.Action != "drop" || p.Table != "SpoofGuard" || p.AppliedTo != "default/client" || len(p.Policies) > 0 {
				t.Fatalf("a record of what is forged: %+v", p)
			}
			for _, f := range forgeries {
				wantARP := strings.HasPrefix(f.name, "ARP")
				if f.source == p.SourceIP && f.target == p.TargetIP && f.claim == p.ClaimedMAC && mac(f.packet.EthSrc) == p.SourceMAC && wantARP == (p.Protocol == "ARP") {
					found[f.name] += p.Count
				}
			}
		}
		for _, f := range forgeries {
			if found[f.name] < each {
				return fmt.Errorf("%s: on record %d times of %d: %+v", f.name, found[f.name], each, read())
			}
		}
		if want := each * len(forgeries); total != want {
			return fmt.Errorf("%d packets on record, want %d: %+v", total, want, read())
		}
		metrics, err := node.Metrics()
		if err != nil {
			return err
		}
		if want := fmt.Sprintf(`weir_shim_spoofed_packets_total{namespace="default",pod="client"} %d`+"\n", each*len(forgeries)); !strings.Contains(metrics, want) {
			return fmt.Errorf("metrics lack %s", want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// The operator sees it too, with the node's next report.
	err = harness.Eventually(t.Context(), 20*time.Second, func() error {
		resp, err := c.Inspection().ListNodes(t.Context(), &policyv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, n := range resp.GetNodes() {
			if want := map[string]uint64{"node-1": each * uint64(len(forgeries))}[n.GetName()]; n.GetSpoofedPackets() != want {
				return fmt.Errorf("node %s: %d packets are said to be forged, want %d", n.GetName(), n.GetSpoofedPackets(), want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	// Nobody was misled: the Pods still reach each other.
	outcomes(t, []harness.Probe{tcp(c.Pod("default/client"), "10.9.1.2"), tcp(c.Pod("default/client"), "fd09:1::2"), tcp(c.Pod("default/remote"), "10.9.1.1")},
		harness.Allow, harness.Allow, harness.Reject)
}
