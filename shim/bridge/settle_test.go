package bridge_test

import (
	"context"
	"encoding/binary"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/shim/bridge"
	of "github.com/weirnet/weir/shim/bridge/openflow"
)

// kinds is of how many kinds the packets are, each with a cached flow of its own.
const kinds = 120

// manySteps counts packets of each kind, and sends them on by so many tables
// that a pass over the cache takes long.
func manySteps(in, out uint32) (flows []of.Flow, last of.FlowKey) {
	const first, end = 20, 120
	for i := range uint16(kinds) {
		flows = append(flows, flow(1, 1, of.NewMatch(of.IPv4(), of.IPProto(of.ProtoUDP), of.L4Dst(of.ProtoUDP, 1000+i, 0xffff)), of.GotoTable(first)))
	}
	for table := uint8(first); table < end; table++ {
		flows = append(flows, flow(table, 1, of.NewMatch(), of.SetReg(0, uint32(table), 0xffffffff), of.Resubmit(200), of.GotoTable(table+1)))
	}
	for i := range uint32(50) {
		flows = append(flows, flow(200, 1, of.NewMatch(of.Reg(0, first+i, 0xffffffff)), of.SetReg(1, 1, 0xffffffff)))
	}
	all := flow(end, 1, of.NewMatch(), of.OutputPort(out))
	return append(flows, all, flow(0, 1, of.NewMatch(of.InPort(in)), of.GotoTable(1))), all.Key()
}

// steady sends a packet of each kind by a device again and again, until the
// context ends, and says so each time.
func steady(ctx context.Context, netns, device string, sent chan<- struct{}) error {
	defer close(sent)
	fd := -1
	if err := ns.WithNetNSPath(netns, func(ns.NetNS) error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index})
	}); err != nil {
		return err
	}
	defer unix.Close(fd)
	frame := append(append([]byte{}, macB[:]...), macA[:]...)
	frame = append(frame, 0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0x66, 0xcf, 10, 0, 0, 1, 10, 0, 0, 2)
	frame = append(frame, 0x0f, 0xa0, 0, 0, 0, 8, 0, 0)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		for i := range uint16(kinds) {
			binary.BigEndian.PutUint16(frame[36:], 1000+i)
			if _, err := unix.Write(fd, frame); err != nil && err != unix.ENOBUFS {
				return err
			}
		}
		select {
		case sent <- struct{}{}:
		default:
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// Flows count each packet once, and settling leaves no cached flow, however
// often the cache is emptied while the switch goes over it.
func TestSettlingCountsOnce(t *testing.T) {
	s := newReal(t)
	b, in := s.api.(*bridge.Bridge), shared.instance
	ports, err := b.Ports(s.ctx)
	s.must(err)
	device := func(number uint32) string {
		for _, p := range ports {
			if p.Number == number {
				return p.Name
			}
		}
		t.Fatalf("no port %d", number)
		return ""
	}
	for _, number := range []uint32{1, 2} {
		_, err := in.Run(s.ctx, "ip", "link", "set", device(number), "addrgenmode", "none", "up")
		s.must(err)
	}
	flows, last := manySteps(1, 2)
	s.put(flows...)

	ctx, stop := context.WithCancel(s.ctx)
	var traffic sync.WaitGroup
	var failed error
	round := make(chan struct{})
	traffic.Go(func() { failed = steady(ctx, "/run/netns/"+in.NetNS, device(1), round) })
	plain := flow(9, 1, of.NewMatch())
	traffic.Go(func() { // So the switch hardly rests.
		for unchanged := error(nil); ctx.Err() == nil && unchanged == nil; {
			unchanged = b.Apply(s.ctx, bridge.Change{Upsert: []of.Flow{plain}})
		}
	})
	for range 100 {
		for range 3 { // Cached flows have counted.
			<-round
		}
		if err := b.Settle(s.ctx, plain); err != nil {
			t.Error(err)
			break
		}
	}
	stop()
	traffic.Wait()
	s.must(failed)

	var counted, sent uint64
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := in.Run(s.ctx, "cat", filepath.Join("/sys/class/net", device(2), "statistics/rx_packets"))
		s.must(err)
		if sent, err = strconv.ParseUint(strings.TrimSpace(out), 10, 64); err != nil {
			t.Fatal(err)
		}
		counted = s.read().Flows[last].Packets
		if counted == sent && sent > 10*kinds {
			return
		}
		if time.Now().After(limit) {
			break
		}
	}
	t.Errorf("%d packets were counted of %d", counted, sent)
}

// After the cache was emptied it may soon hold as many flows as before.
func TestSettlingLeavesTheLimitOfTheCache(t *testing.T) {
	s := newReal(t)
	b, in := s.api.(*bridge.Bridge), shared.instance
	plain := flow(9, 1, of.NewMatch())
	ctx, stop := context.WithCancel(s.ctx)
	var changes sync.WaitGroup
	changes.Go(func() { // So passes follow each other.
		for unchanged := error(nil); ctx.Err() == nil && unchanged == nil; {
			unchanged = b.Apply(s.ctx, bridge.Change{Upsert: []of.Flow{plain}})
		}
	})
	defer changes.Wait()
	defer stop()
	ask := func(words ...string) string {
		out, err := in.Appctl(s.ctx, words...)
		s.must(err)
		return out
	}
	for round := range 10 {
		s.must(b.Settle(s.ctx, plain))
		out := ""
		for passes, lifted := 0, 0; lifted < 3; passes++ {
			if passes == 100 {
				t.Fatalf("round %d: the limit is not lifted:\n%s", round, out)
			}
			ask("revalidator/wait")
			if out = ask("upcall/show"); strings.Contains(out, "(limit 10000)") {
				lifted++
			} else {
				lifted = 0
			}
		}
	}
}
