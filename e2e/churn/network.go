package churn

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// network is what lies between shims and replicas: TCP over loopback, whose
// connections can be disturbed. A replica has one address for all its lives.
type network struct {
	hold time.Duration // How long reads are held back, mostly at most.

	mu      sync.Mutex // Guards what follows.
	rand    *rand.Rand
	places  map[string]string // Where the replica of an address listens now; absent: nowhere.
	links   []*link           // That are open.
	dialled uint64
	counts  Disturbances
}

// Disturbances counts what was done to connections.
type Disturbances struct {
	Cut       uint64 // Closed between two reads or writes.
	Truncated uint64 // Closed in the middle of what was read or written.
	Held      uint64 // Not read from for a while.
}

func (d *Disturbances) total() uint64 { return d.Cut + d.Truncated + d.Held }

func newNetwork(seed uint64, hold time.Duration) *network {
	return &network{hold: hold, rand: rand.New(rand.NewPCG(seed, 0x6e6574)), places: map[string]string{}}
}

// open makes a replica reachable.
func (n *network) open(address, place string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.places[address] = place
}

// close makes a replica unreachable; what is connected stays so.
func (n *network) close(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.places, address)
}

// sever closes the connections to a replica, as its death does.
func (n *network) sever(address string) {
	n.mu.Lock()
	var of []*link
	for _, l := range n.links {
		if l.address == address {
			of = append(of, l)
		}
	}
	n.mu.Unlock()
	for _, l := range of {
		l.Close()
	}
}

// dial connects a shim to the replica of an address.
func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	place, open := n.places[address]
	n.mu.Unlock()
	if !open {
		return nil, fmt.Errorf("dial %s: nobody listens", address)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", place)
	if err != nil {
		return nil, err
	}
	l := &link{Conn: conn, network: n, address: address, closed: make(chan struct{}), reads: -1, writes: -1}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialled++
	l.index = len(n.links)
	n.links = append(n.links, l)
	return l, nil
}

// forget is told of a link that was closed.
func (n *network) forget(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last := len(n.links) - 1
	n.links[l.index] = n.links[last]
	n.links[l.index].index = l.index
	n.links[last] = nil
	n.links = n.links[:last]
}

// disturbances are what is done in turn.
var disturbances = [...]disturbance{cut, truncateReads, hold, truncateWrites, hold, cut, hold, cut, hold, hold}

type disturbance int

const (
	cut disturbance = iota
	truncateReads
	truncateWrites
	hold
)

// disturb does the next thing to some connection.
func (n *network) disturb() {
	n.mu.Lock()
	if len(n.links) == 0 {
		n.mu.Unlock()
		return
	}
	l := n.links[n.rand.IntN(len(n.links))]
	size, length := n.rand.Int64N(2000), time.Duration(n.rand.Int64N(int64(n.hold)+1))
	if n.rand.IntN(20) == 0 {
		length *= 4 // Long enough, where holds last seconds, for keepalive to end the connection.
	}
	what := disturbances[n.counts.total()%uint64(len(disturbances))]
	switch what {
	case cut:
		n.counts.Cut++
	case truncateReads, truncateWrites:
		n.counts.Truncated++
	case hold:
		n.counts.Held++
	}
	n.mu.Unlock()
	switch what {
	case cut:
		l.Close()
	case truncateReads:
		l.limit(&l.reads, size)
	case truncateWrites:
		l.limit(&l.writes, size)
	case hold:
		l.hold(length)
	}
}

// heal undoes all disturbances of connections that are open.
func (n *network) heal() {
	n.mu.Lock()
	links := append([]*link{}, n.links...)
	n.mu.Unlock()
	for _, l := range links {
		l.heal()
	}
}

func (n *network) counted() (d Disturbances, dialled uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counts, n.dialled
}

// link is a shim's end of a connection.
type link struct {
	net.Conn
	network *network
	address string
	index   int           // In network.links, guarded by its mutex.
	closed  chan struct{} // Closed with the connection.
	once    sync.Once

	mu     sync.Mutex    // Guards what follows.
	gate   chan struct{} // Reads wait for it to close; nil: they do not.
	reads  int64         // Bytes that may be read before the connection ends; below zero: any.
	writes int64         // The same of writing.
}

// Close implements net.Conn.
func (l *link) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		close(l.closed)
		l.network.forget(l)
		err = l.Conn.Close()
	})
	return err
}

func (l *link) limit(which *int64, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*which = size
}

// hold keeps reads back for so long, unless the link is healed or closed before.
func (l *link) hold(length time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate != nil {
		return
	}
	gate := make(chan struct{})
	l.gate = gate
	time.AfterFunc(length, func() { l.release(gate) })
}

// release ends a hold, if it is still the same one.
func (l *link) release(gate chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate == gate && gate != nil {
		close(gate)
		l.gate = nil
	}
}

func (l *link) heal() {
	l.mu.Lock()
	l.reads, l.writes = -1, -1
	gate := l.gate
	l.mu.Unlock()
	l.release(gate)
}

// pass waits while the link is held.
func (l *link) pass() {
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	if gate == nil {
		return
	}
	select {
	case <-gate:
	case <-l.closed:
	}
}

// spend takes n bytes of a limit, or what is left of it; the link ends with it.
func (l *link) spend(which *int64, n int) (allowed int, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if *which < 0 {
		return n, false
	}
	if int64(n) < *which {
		*which -= int64(n)
		return n, false
	}
	return int(*which), true
}

// Read implements net.Conn.
func (l *link) Read(p []byte) (int, error) {
	l.pass()
	n, err := l.Conn.Read(p)
	l.pass() // A hold that began while nothing came.
	allowed, last := l.spend(&l.reads, n)
	if !last {
		return n, err
	}
	l.Close()
	if allowed == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return allowed, nil
}

// Write implements net.Conn.
func (l *link) Write(p []byte) (int, error) {
	allowed, last := l.spend(&l.writes, len(p))
	if !last {
		return l.Conn.Write(p)
	}
	n, err := l.Conn.Write(p[:allowed])
	l.Close()
	if err == nil {
		err = io.ErrClosedPipe
	}
	return n, err
}
