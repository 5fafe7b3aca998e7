package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	"github.com/weirnet/weir/e2e/harness"
)

// kind of datagrams.
type kind uint8

const (
	steady kind = iota // One connection, at an even pace.
	blast              // Bursts, from a few ports.
	fresh              // A new connection each.
)

// datagrams are sent from one Pod to another, numbered.
type datagrams struct {
	from, to       string // Roles.
	source, target int    // Nodes.
	v6             bool
	kind           kind
	policy         string // That records each. Empty: none.
	allowed        bool
	turning        bool // allowed is that of now.
}

// flows are the datagrams of a run.
func flows() []datagrams {
	return []datagrams{
		{from: "client", to: "server", source: 0, target: 1, kind: steady, allowed: true},
		{from: "client", to: "server", source: 1, target: 0, kind: steady, allowed: true, v6: true},
		{from: "client", to: "server", source: 0, target: 0, kind: steady, allowed: true, v6: true},
		{from: "client", to: "server", source: 1, target: 1, kind: fresh, allowed: true},
		{from: "client", to: "shut", source: 0, target: 1, kind: blast, policy: policyShut},
		{from: "client", to: "shut", source: 1, target: 0, kind: steady, policy: policyShut, v6: true},
		{from: "client", to: "guarded", source: 1, target: 0, kind: blast, policy: policyGuarded},
		{from: "client", to: "guarded", source: 0, target: 1, kind: fresh, policy: policyGuarded, v6: true},
		{from: "mute", to: "server", source: 0, target: 1, kind: fresh, policy: policyMute},
		{from: "mute", to: "server", source: 1, target: 0, kind: steady, policy: policyMute, v6: true},
		{from: "client", to: "hushed", source: 0, target: 1, kind: blast},
		{from: "client", to: "hushed", source: 1, target: 0, kind: steady, v6: true},
		{from: "client", to: "turning", source: 0, target: 1, kind: fresh, turning: true, allowed: true},
		{from: "client", to: "turning", source: 1, target: 0, kind: fresh, turning: true, allowed: true, v6: true},
	}
}

// journal is of one flow's sender and receiver.
type journal struct {
	datagrams
	begin time.Time

	mu   sync.Mutex // Guards flow.
	flow invariant.Flow
}

// firstPort is the first of the ports that datagrams are sent to, each flow's its own.
const firstPort = 7000

func (d *datagrams) name() string {
	family := "v4"
	if d.v6 {
		family = "v6"
	}
	return fmt.Sprintf("UDP %s %s to %s", family, podName(d.from, d.source), podName(d.to, d.target))
}

// start begins to send and receive; the journal is whole once both have ended.
func (d datagrams) start(ctx context.Context, w *World, index int, wait *sync.WaitGroup) (*journal, error) {
	j := &journal{datagrams: d, begin: w.begin, flow: invariant.Flow{Name: d.name(), Source: nodeNames[d.source], Target: nodeNames[d.target], Policy: d.policy}}
	switch d.policy {
	case "":
	case policyMute:
		j.flow.Where = j.flow.Source
	default:
		j.flow.Where = j.flow.Target
	}
	sender, from := w.address(d.from, d.source, d.v6)
	receiver, to := w.address(d.to, d.target, d.v6)
	target := netip.AddrPortFrom(to, firstPort+uint16(index))
	var in *net.UDPConn
	err := receiver.NS.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(target))
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := roomy(in); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	wait.Go(func() { j.receive(in) })
	wait.Go(func() {
		j.send(ctx, sender, netip.AddrPortFrom(from, 0), target)
		// What is under way has come by then, or never does.
		in.SetReadDeadline(time.Now().Add(time.Second))
	})
	return j, nil
}

// roomy gives a socket a buffer of some seconds, so that it loses nothing itself.
func roomy(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) })
	return errors.Join(err, failed)
}

func (j *journal) receive(in *net.UDPConn) {
	defer in.Close()
	buf := make([]byte, 64)
	for {
		n, err := in.Read(buf)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return
		}
		if err != nil || n != 8 {
			continue
		}
		now := time.Since(j.begin).Microseconds()
		j.mu.Lock()
		if number := binary.BigEndian.Uint64(buf); number < uint64(len(j.flow.Received)) {
			if j.flow.Received[number] != 0 {
				j.flow.Twice++
			} else {
				j.flow.Received[number] = now
			}
		}
		j.mu.Unlock()
	}
}

// pace is how often a kind sends, and how many at a time.
func (k kind) pace() (every time.Duration, burst, ports int) {
	switch k {
	case blast:
		return 250 * time.Millisecond, 50, 8
	case fresh:
		return 25 * time.Millisecond, 1, 0
	}
	return 10 * time.Millisecond, 1, 1
}

func (j *journal) send(ctx context.Context, from *harness.Host, source, target netip.AddrPort) {
	every, burst, ports := j.kind.pace()
	var sockets []*net.UDPConn
	dial := func() *net.UDPConn {
		var conn *net.UDPConn
		err := from.NS.Do(func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(source))
			return err
		})
		if err != nil {
			return nil
		}
		return conn
	}
	for range ports {
		sockets = append(sockets, dial())
	}
	defer func() {
		for _, s := range sockets {
			s.Close()
		}
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		for i := range burst {
			if ports > 0 {
				j.one(sockets[i%ports], target)
			} else if conn := dial(); conn != nil {
				j.one(conn, target)
				conn.Close()
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// one sends the next datagram. What the sender's own kernel refuses was not sent.
func (j *journal) one(conn *net.UDPConn, target netip.AddrPort) {
	j.mu.Lock()
	number := uint64(len(j.flow.Sent))
	j.flow.Sent = append(j.flow.Sent, time.Since(j.begin).Microseconds())
	j.flow.Received = append(j.flow.Received, 0)
	j.mu.Unlock()
	if _, err := conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, number), target); err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		if number == uint64(len(j.flow.Sent)-1) {
			j.flow.Sent, j.flow.Received = j.flow.Sent[:number], j.flow.Received[:number]
		}
	}
}

// judged says from when to when a verdict was in force everywhere.
func (j *journal) judged(over invariant.Interval, allowed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flow.Verdicts = append(j.flow.Verdicts, invariant.Verdict{Interval: over, Allowed: allowed})
}
