package nflog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/hostfw/fwtest"
)

const group = 77

func nft(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil && os.Getenv("WEIR_REQUIRE_DATAPLANE") != "1" {
		t.Skip(err)
	}
	if out, err := exec.Command("nft", fmt.Sprintf(format, args...)).CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

// send sends datagrams to the host, which reports them.
func send(t *testing.T, n *fwtest.Network, count int) {
	t.Helper()
	c, err := n.Dial("udp", fwtest.Client[0], fwtest.Host[0], 5000)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range count {
		if _, err := c.Write(make([]byte, 100)); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
}

func TestReports(t *testing.T) {
	n := fwtest.New(t)
	nft(t, "add table inet test; add chain inet test in { type filter hook prerouting priority 0 ; }; add rule inet test in udp dport 5000 log prefix \"here:1\" group %d snaplen 40 drop", group)
	r, err := Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if other, err := Open(group); err == nil {
		other.Close()
		t.Error("two have the group")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type report struct {
		prefix string
		packet []byte
	}
	reports, ended := make(chan report, 10), make(chan error, 1)
	go func() {
		ended <- r.Run(ctx, func(prefix string, packet []byte) { reports <- report{prefix, packet} })
	}()
	send(t, n, 2)
	for range 2 {
		select {
		case got := <-reports:
			src, _ := netip.AddrFromSlice(got.packet[12:16])
			if got.prefix != "here:1" || len(got.packet) != 40 || src.String() != fwtest.Client[0] {
				t.Errorf("%q of %s, %d bytes", got.prefix, src, len(got.packet))
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no report")
		}
	}
	if lost := r.TakeLost(); lost != 0 {
		t.Errorf("%d lost", lost)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended by %v", err)
	}
}

// TestLossesAreCounted has more reported than the socket has room for, with
// nobody reading.
func TestLossesAreCounted(t *testing.T) {
	n := fwtest.New(t)
	nft(t, "add table inet test; add chain inet test in { type filter hook prerouting priority 0 ; }; add rule inet test in udp dport 5000 log prefix \"here:1\" group %d snaplen 64 drop", group)
	r, err := Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.conn.SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	sent := 20_000
	send(t, n, sent)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	arrived, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- r.Run(ctx, func(string, []byte) { arrived <- struct{}{} }) }()
	got, lost := 0, 0
	for deadline := time.After(20 * time.Second); got+lost < sent; {
		select {
		case <-arrived:
			got++
		case <-time.After(300 * time.Millisecond): // The next report tells what is missing before it.
			send(t, n, 1)
			sent++
		case <-deadline:
			t.Fatalf("%d arrived, %d lost, of %d", got, lost, sent)
		}
		lost += int(r.TakeLost())
	}
	if got+lost > sent {
		t.Errorf("%d arrived, %d lost, of %d", got, lost, sent)
	}
	if lost == 0 {
		t.Error("none was lost: the test shows nothing")
	}
	cancel()
	<-ended
}
