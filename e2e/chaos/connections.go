package chaos

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/weirnet/weir/e2e/chaos/invariant"
	"github.com/weirnet/weir/e2e/harness"
)

// Ports of servers.
const (
	echoPort = 80 // Answers what it is told.
	pushPort = 81 // Talks, once it was told something.
)

const (
	talkEvery = 10 * time.Millisecond
	// stall is from when on a pause is on record.
	stall = 700 * time.Millisecond
	// dialTimeout has room for two repeats of a SYN.
	dialTimeout = 3500 * time.Millisecond
)

// serve answers on a Pod's ports until the context ends.
func serve(ctx context.Context, h *harness.Host) error {
	for _, ip := range h.IPs {
		for port, answer := range map[uint16]func(net.Conn){echoPort: echo, pushPort: push, refusedPort: echo} {
			var l net.Listener
			err := h.NS.Do(func() (err error) {
				l, err = net.Listen("tcp", netip.AddrPortFrom(ip, port).String())
				return err
			})
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					stop := context.AfterFunc(ctx, func() { conn.Close() })
					go func() { defer stop(); defer conn.Close(); answer(conn) }()
				}
			}()
		}
	}
	return nil
}

func echo(conn net.Conn) { io.Copy(conn, conn) }

func push(conn net.Conn) {
	buf := make([]byte, 64)
	if _, err := conn.Read(buf); err != nil {
		return
	}
	tick := time.NewTicker(talkEvery)
	defer tick.Stop()
	for range tick.C {
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}

func dial(ctx context.Context, from *harness.Host, to netip.AddrPort) (conn net.Conn, err error) {
	err = from.NS.Do(func() error {
		d := net.Dialer{Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: from.Addr(to.Addr().Is6()).AsSlice()}}
		conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}

// stream is a connection that goes on until the run's traffic ends.
type stream struct {
	invariant.Stream
	done chan struct{} // Closed when Stream is whole.
}

// startStream connects, and reads what comes; unless the server pushes, it talks.
func startStream(ctx context.Context, name string, from *harness.Host, to netip.AddrPort, s invariant.Stream) (*stream, error) {
	conn, err := dial(ctx, from, to)
	if err != nil {
		return nil, err
	}
	out := &stream{Stream: s, done: make(chan struct{})}
	out.Name = name
	context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	if s.Push {
		if _, err := conn.Write([]byte("go")); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	} else {
		go talk(ctx, conn)
	}
	go func() {
		defer close(out.done)
		defer conn.Close()
		last, buf := time.Now(), make([]byte, 4096)
		pause := func() {
			if now := time.Now(); now.Sub(last) >= stall {
				out.Gaps = append(out.Gaps, invariant.Interval{From: last, To: now})
			}
		}
		for {
			n, err := conn.Read(buf)
			pause()
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() == nil {
					out.Broken = err.Error()
				}
				return
			}
			last, out.Bytes = time.Now(), out.Bytes+uint64(n)
		}
	}()
	return out, nil
}

func talk(ctx context.Context, conn net.Conn) {
	tick := time.NewTicker(talkEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		if _, err := conn.Write([]byte("weir")); err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// dials are new connections, one every so often, each on its own.
type dials struct {
	mu   sync.Mutex // Guards list.
	list []invariant.Dial
}

func (d *dials) run(ctx context.Context, w *World, random *rand.Rand) {
	var wait sync.WaitGroup
	defer wait.Wait()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		source, target, v6 := random.IntN(len(nodeNames)), random.IntN(len(nodeNames)), random.IntN(2) == 0
		role, port, allowed := "server", uint16(echoPort), true
		switch random.IntN(6) {
		case 0:
			role, allowed = "shut", false
		case 1:
			role, allowed = "hushed", false
		case 2:
			port, allowed = refusedPort, false
		}
		from, _ := w.address("client", source, v6)
		_, to := w.address(role, target, v6)
		wait.Go(func() {
			out := invariant.Dial{Name: podName("client", source) + " to " + netip.AddrPortFrom(to, port).String(), Source: nodeNames[source], Target: nodeNames[target], Allowed: allowed}
			out.Interval.From = time.Now()
			conn, err := dial(context.WithoutCancel(ctx), from, netip.AddrPortFrom(to, port))
			out.Interval.To, out.Made = time.Now(), err == nil
			if err == nil {
				conn.Close()
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.list = append(d.list, out)
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
