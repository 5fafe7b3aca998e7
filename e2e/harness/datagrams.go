package harness

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
)

// Datagrams are numbered datagrams that one host sends to others at a pace, and
// their answers.
type Datagrams struct {
	stop  context.CancelFunc
	ended chan error // One slot.
	conns []*net.UDPConn

	mu       sync.Mutex // Guards what follows.
	to       []netip.AddrPort
	sent     uint64
	arrived  map[uint64]bool
	answered map[uint64]bool
	last     map[netip.AddrPort]time.Time // When the last was sent of those that arrived at an address.
}

// DatagramsConfig says what is sent, and how.
type DatagramsConfig struct {
	From, To *Host
	Ports    []uint16 // Of To, of each of its addresses of the families.
	V4, V6   bool
	Every    time.Duration
	// Fresh has each sent from a port of its own, so that each begins a connection.
	Fresh bool
}

// StartDatagrams has the receiver listen and answer, and the sender send, to each
// address and port in turn.
func StartDatagrams(cfg DatagramsConfig) (*Datagrams, error) {
	ctx, stop := context.WithCancel(context.Background())
	d := &Datagrams{stop: stop, ended: make(chan error, 1), arrived: make(map[uint64]bool), answered: make(map[uint64]bool), last: make(map[netip.AddrPort]time.Time)}
	for _, a := range cfg.To.IPs {
		if a.Is4() && !cfg.V4 || a.Is6() && !cfg.V6 {
			continue
		}
		for _, port := range cfg.Ports {
			at := netip.AddrPortFrom(a, port)
			conn, err := cfg.To.listen(at)
			if err != nil {
				d.ended <- nil
				return nil, errors.Join(err, d.Close())
			}
			d.conns, d.to = append(d.conns, conn), append(d.to, at)
			go d.answer(conn, at)
		}
	}
	go func() { d.ended <- cfg.From.NS.Do(func() error { return d.send(ctx, cfg) }) }()
	return d, nil
}

func (h *Host) listen(at netip.AddrPort) (conn *net.UDPConn, err error) {
	err = h.NS.Do(func() error {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	return conn, err
}

// datagramSize is that of one: its number and when it was sent.
const datagramSize = 16

// answer sends back what arrives at an address, until the socket is closed.
func (d *Datagrams) answer(conn *net.UDPConn, at netip.AddrPort) {
	for buf := make([]byte, datagramSize); ; {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if n != datagramSize {
			continue
		}
		sent := time.Unix(0, int64(binary.BigEndian.Uint64(buf[8:])))
		d.mu.Lock()
		d.arrived[binary.BigEndian.Uint64(buf)] = true
		if sent.After(d.last[at]) {
			d.last[at] = sent
		}
		d.mu.Unlock()
		_, _ = conn.WriteToUDPAddrPort(buf, from) // One that is lost shows.
	}
}

// hear takes answers in until the socket is closed.
func (d *Datagrams) hear(conn *net.UDPConn) {
	for buf := make([]byte, datagramSize); ; {
		n, err := conn.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || n != datagramSize: // Refused, maybe.
			continue
		}
		d.mu.Lock()
		d.answered[binary.BigEndian.Uint64(buf)] = true
		d.mu.Unlock()
	}
}

// lowestPort is the least that fresh connections are from.
const lowestPort = 10000

// lives is how long a socket of one datagram stays for its answer.
const lives = 2 * time.Second

func (d *Datagrams) send(ctx context.Context, cfg DatagramsConfig) error {
	known, port := make(map[netip.AddrPort]*net.UDPConn), uint16(0)
	defer func() {
		for _, conn := range known {
			conn.Close()
		}
	}()
	pace := time.NewTicker(cfg.Every)
	defer pace.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-pace.C:
		}
		d.mu.Lock()
		to := d.to[i%len(d.to)]
		number := d.sent
		d.sent++
		d.mu.Unlock()
		conn := known[to]
		if conn == nil {
			local := &net.UDPAddr{IP: cfg.From.Addr(to.Addr().Is6()).AsSlice()}
			for err := error(unix.EADDRINUSE); errors.Is(err, unix.EADDRINUSE); {
				if cfg.Fresh { // One that comes again would meet its own connection.
					port = max(port+1, lowestPort)
					local.Port = int(port)
				}
				if conn, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to)); err != nil && !errors.Is(err, unix.EADDRINUSE) {
					return fmt.Errorf("send to %s: %w", to, err)
				}
			}
			go d.hear(conn)
			if cfg.Fresh {
				time.AfterFunc(lives, func() { conn.Close() })
			} else {
				known[to] = conn
			}
		}
		b := binary.BigEndian.AppendUint64(nil, number)
		_, _ = conn.Write(binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixNano()))) // One that is lost shows.
	}
}

// Complete waits until all that was sent so far has arrived and was answered, and
// fails unless it is within a time. The sender goes on.
func (d *Datagrams) Complete(ctx context.Context, limit time.Duration) error {
	d.mu.Lock()
	sent := d.sent
	d.mu.Unlock()
	return Eventually(ctx, limit, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		var lost, unanswered []uint64
		for n := range sent {
			if !d.arrived[n] {
				lost = append(lost, n)
			} else if !d.answered[n] {
				unanswered = append(unanswered, n)
			}
		}
		if len(lost)+len(unanswered) > 0 {
			return fmt.Errorf("of %d datagrams %v did not arrive, and %v have no answer", sent, lost, unanswered)
		}
		return nil
	})
}

// Sent is how many were.
func (d *Datagrams) Sent() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sent
}

// Arrived is how many did, and when the last of those to a port was sent.
func (d *Datagrams) Arrived(port uint16) (total int, last time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, t := range d.last {
		if at.Port() == port && t.After(last) {
			last = t
		}
	}
	return len(d.arrived), last
}

// Close stops the sender, and then the receiver.
func (d *Datagrams) Close() error {
	d.stop()
	err := <-d.ended
	for _, conn := range d.conns {
		conn.Close()
	}
	return err
}
