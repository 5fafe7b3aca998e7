package record

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"slices"
	"time"
)

// Defaults of DedupConfig.
const (
	DefaultWindow     = time.Second
	DefaultMaxWindows = 32768
)

// maxOverflows is how many rules may have an overflow record open.
const maxOverflows = 1024

// clockSlack is how far a node's time may go back without being taken for a
// clock that was set.
const clockSlack = 5 * time.Second

// Key says which packets are alike.
type Key int

// The keys.
const (
	KeyAll     Key = iota // All fields but times and counts.
	KeyPrinted            // The fields that np.log prints, and whether it does.
	KeyNamed              // These, with the policies that isolate.
)

// DedupConfig of a Dedup.
type DedupConfig struct {
	Key        Key
	Window     time.Duration // Zero: DefaultWindow.
	MaxWindows int           // Open at a time. Zero: DefaultMaxWindows.
	// Emit takes each line when its window ends; what does not merge, at once.
	// The line is only good during the call.
	Emit func(*Line)
}

// Dedup merges records that are alike into one line per window. A window is as
// long as configured from its first packet, in the time of the node, which its
// events carry forward. So the same records always make the same lines. Only
// when a node falls silent the caller's clock ends its windows (Tick).
//
// Beyond MaxWindows a record that would open another window is folded into one
// record of its rule, marked as overflow, so that a scan cannot exhaust memory
// and no packet goes uncounted.
type Dedup struct {
	cfg     DedupConfig
	secret  [8]uint64 // Of hash.
	heads   []int32   // Of the chains, by hash.
	windows []window
	free    int32 // Head of the chain of unused windows.
	open    int
	order   list // All, in the order of their opening: the first has the lowest cursor.
	nodes   map[string]*nodeTime
	node    *nodeTime // Of the record before.
	merged  uint64
	scratch Line
}

// nodeTime is one node's clock, and its windows in the order of their opening.
type nodeTime struct {
	name  string
	now   time.Time
	order list
}

type list struct{ head, tail int32 }

const none = -1

type window struct {
	line         Line
	hash         uint64
	end          time.Time
	opened       time.Time // By the caller's clock.
	node         *nodeTime
	chain        int32
	next, prev   int32 // In Dedup.order.
	nnext, nprev int32 // In node.order.
}

// NewDedup returns an empty one.
func NewDedup(cfg DedupConfig) *Dedup {
	if cfg.Window == 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.MaxWindows == 0 {
		cfg.MaxWindows = DefaultMaxWindows
	}
	size := 64
	for size < cfg.MaxWindows+maxOverflows {
		size *= 2
	}
	d := &Dedup{cfg: cfg, heads: make([]int32, size), free: none, order: list{none, none}, nodes: make(map[string]*nodeTime)}
	for i := range d.heads {
		d.heads[i] = none
	}
	seed := maphash.MakeSeed()
	for i := range d.secret {
		d.secret[i] = maphash.Comparable(seed, i) | 1
	}
	return d
}

// Open is how many windows are open.
func (d *Dedup) Open() int { return d.open }

// Merged is how many packets are in lines that were written for another.
func (d *Dedup) Merged() uint64 { return d.merged }

// Oldest is the lowest cursor of an open window: what comes before is all
// emitted.
func (d *Dedup) Oldest() (cursor uint64, ok bool) {
	if d.order.head == none {
		return 0, false
	}
	return d.windows[d.order.head].line.Cursor, true
}

// Add takes the next record. The time is the caller's, for Tick.
func (d *Dedup) Add(r *Record, now time.Time) {
	if r.Kind != KindPacket {
		d.scratch = Line{Record: *r}
		d.cfg.Emit(&d.scratch)
		return
	}
	n := d.advance(r)
	if !r.Packet.merges() {
		d.emitAlone(r, false)
		return
	}
	h := d.hash(&r.Packet)
	if d.merge(h, r, n, false) {
		return
	}
	if d.open < d.cfg.MaxWindows {
		d.begin(h, r, n, now, false)
		return
	}
	folded := fold(r)
	h = d.hash(&folded.Packet)
	switch {
	case d.merge(h, &folded, n, true):
	case d.open < d.cfg.MaxWindows+maxOverflows:
		d.begin(h, &folded, n, now, true)
	default:
		d.emitAlone(&folded, true)
	}
}

// fold leaves of a record what tells its rule.
func fold(r *Record) Record {
	f := *r
	p := &r.Packet
	f.Packet = Packet{First: p.First, Last: p.Last, Count: p.Count, Direction: p.Direction, Action: p.Action, Table: p.Table, Policies: p.Policies,
		Isolation: p.Isolation, Rule: p.Rule, LogLabel: p.LogLabel, Priority: p.Priority, Redirected: p.Redirected, Reason: "overflow",
		Staged: p.Staged}
	if !p.printed() { // Which np.log must still know.
		f.Packet.Reason = p.Reason
	}
	return f
}

func (d *Dedup) emitAlone(r *Record, overflow bool) {
	d.scratch = Line{Record: *r, Packets: r.Packet.Count, Overflow: overflow}
	d.merged += r.Packet.Count - 1
	d.cfg.Emit(&d.scratch)
}

func (d *Dedup) nodeOf(name string) *nodeTime {
	n := d.node
	if n == nil || n.name != name {
		if n = d.nodes[name]; n == nil {
			n = &nodeTime{name: name, order: list{none, none}}
			d.nodes[name] = n
		}
		d.node = n
	}
	return n
}

// advance carries the node's time forward and ends the windows that it passes.
func (d *Dedup) advance(r *Record) *nodeTime {
	n := d.nodeOf(r.Node)
	if t := r.Packet.First; t.After(n.now) || n.now.Sub(t) > clockSlack {
		n.now = t
		for n.order.head != none && !d.windows[n.order.head].end.After(t) {
			d.finish(n.order.head)
		}
	}
	return n
}

// merge adds a record to the open window of its like. One that has passed ends.
func (d *Dedup) merge(h uint64, r *Record, n *nodeTime, overflow bool) bool {
	for i := d.heads[h&uint64(len(d.heads)-1)]; i != none; i = d.windows[i].chain {
		w := &d.windows[i]
		if w.hash != h || w.node != n || w.line.Overflow != overflow || !d.cfg.Key.same(&w.line.Packet, &r.Packet) {
			continue
		}
		if !r.Packet.First.Before(w.end) {
			d.finish(i)
			return false
		}
		p := &w.line.Packet
		w.line.Packets += r.Packet.Count
		p.Count = w.line.Packets
		if r.Packet.Last.After(p.Last) {
			p.Last = r.Packet.Last
		}
		if r.Packet.First.Before(p.First) {
			p.First = r.Packet.First
		}
		return true
	}
	return false
}

func (d *Dedup) begin(h uint64, r *Record, n *nodeTime, now time.Time, overflow bool) {
	i := d.free
	if i == none {
		d.windows = append(d.windows, window{})
		i = int32(len(d.windows) - 1)
	} else {
		d.free = d.windows[i].chain
	}
	w := &d.windows[i]
	head := &d.heads[h&uint64(len(d.heads)-1)]
	*w = window{line: Line{Record: *r, Packets: r.Packet.Count, Overflow: overflow}, hash: h, end: r.Packet.First.Add(d.cfg.Window), opened: now, node: n,
		chain: *head, next: none, prev: d.order.tail, nnext: none, nprev: n.order.tail}
	*head = i
	if d.order.tail == none {
		d.order.head = i
	} else {
		d.windows[d.order.tail].next = i
	}
	d.order.tail = i
	if n.order.tail == none {
		n.order.head = i
	} else {
		d.windows[n.order.tail].nnext = i
	}
	n.order.tail = i
	d.open++
}

// finish ends a window: its line goes out.
func (d *Dedup) finish(i int32) {
	w := &d.windows[i]
	head := &d.heads[w.hash&uint64(len(d.heads)-1)]
	for *head != i {
		head = &d.windows[*head].chain
	}
	*head = w.chain
	if w.prev == none {
		d.order.head = w.next
	} else {
		d.windows[w.prev].next = w.next
	}
	if w.next == none {
		d.order.tail = w.prev
	} else {
		d.windows[w.next].prev = w.prev
	}
	n := w.node
	if w.nprev == none {
		n.order.head = w.nnext
	} else {
		d.windows[w.nprev].nnext = w.nnext
	}
	if w.nnext == none {
		n.order.tail = w.nprev
	} else {
		d.windows[w.nnext].nprev = w.nprev
	}
	d.open--
	p := &w.line.Packet
	w.line.Window = max(d.cfg.Window, p.Last.Sub(p.First))
	d.merged += w.line.Packets - 1
	d.cfg.Emit(&w.line)
	*w = window{chain: d.free}
	d.free = i
}

// Tick ends the windows that were opened a window's length ago by the caller's
// clock: no more of their packets are to be expected. It is called only when
// there are no more records to Add for now.
func (d *Dedup) Tick(now time.Time) {
	for d.order.head != none && now.Sub(d.windows[d.order.head].opened) >= d.cfg.Window {
		d.finish(d.order.head)
	}
	if d.open == 0 {
		// Nodes come and go; their clocks are not kept for ever.
		clear(d.nodes)
		d.node = nil
	}
}

// Flush ends all windows.
func (d *Dedup) Flush() {
	for d.order.head != none {
		d.finish(d.order.head)
	}
}

// hash is over what packets differ in, with secrets of its own: senders must not
// be able to choose collisions. It multiplies words as they come: a hash over
// bytes would wait for them to be laid out in memory.
func (d *Dedup) hash(p *Packet) uint64 {
	src, dst := p.Source.As16(), p.Destination.As16()
	h := fold128(binary.BigEndian.Uint64(src[:8])^d.secret[0], binary.BigEndian.Uint64(src[8:])^d.secret[1])
	h ^= fold128(binary.BigEndian.Uint64(dst[:8])^d.secret[2], binary.BigEndian.Uint64(dst[8:])^d.secret[3])
	ports := uint64(p.SourcePort.Value)<<32 | uint64(p.DestPort.Value)
	rest := uint64(p.Length)<<32 | uint64(p.Protocol)<<24 | uint64(p.Direction&0xff)<<16 | uint64(p.Action&0xff)<<8 | uint64(len(p.AppliedTo)&0xff)
	h ^= fold128(ports^d.secret[4], rest^d.secret[5])
	return fold128(h^d.secret[6], d.secret[7])
}

// fold128 multiplies, and folds the product.
func fold128(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func (k Key) same(a, b *Packet) bool {
	if a.Source != b.Source || a.Destination != b.Destination || a.SourcePort != b.SourcePort || a.DestPort != b.DestPort ||
		a.Protocol != b.Protocol || a.Length != b.Length || a.Direction != b.Direction || a.Action != b.Action || a.Redirected != b.Redirected ||
		a.Isolation != b.Isolation || a.Priority != b.Priority || a.AppliedTo != b.AppliedTo || a.Rule != b.Rule || a.LogLabel != b.LogLabel || a.Table != b.Table ||
		a.printed() != b.printed() {
		return false
	}
	switch {
	case k == KeyPrinted && a.Isolation:
		return true
	case k != KeyAll && !a.Isolation:
		return len(a.Policies) == 0 && len(b.Policies) == 0 || len(a.Policies) > 0 && len(b.Policies) > 0 && a.Policies[0] == b.Policies[0]
	case !samePolicies(a.Policies, b.Policies):
		return false
	case k == KeyNamed:
		return true
	}
	return a.Peer == b.Peer && a.Service == b.Service && a.Reason == b.Reason && a.TCPFlags == b.TCPFlags && a.ICMPType == b.ICMPType && a.ICMPCode == b.ICMPCode &&
		sameStaged(a.Staged, b.Staged) && (a.Forged == nil) == (b.Forged == nil) && (a.Forged == nil || *a.Forged == *b.Forged)
}

func sameStaged(a, b *Staged) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Action == b.Action && a.Policy == b.Policy && a.Rule == b.Rule && samePolicies(a.Policies, b.Policies)
}

// samePolicies knows lists that a Decoder shared by their place.
func samePolicies(a, b []Policy) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}
