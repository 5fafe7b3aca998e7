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

// Overflow records that may be open beside the windows: so many that name the Pod
// and the rule; beyond, so many that name neither.
const (
	maxOverflows = 1024
	maxRests     = 64
)

// Fold is how much of a record is left out, so that others are one with it.
type Fold uint8

// The folds.
const (
	FoldNone   Fold = iota
	FoldFlow        // Who talked to whom: the rule and the Pod that it is applied to are left.
	FoldRule        // These, too: the node, direction and action are left.
	foldsCount = iota
)

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
// The table of windows is shared by dynamic thresholds: what belongs together, the
// packets that one rule meets at one Pod, may open a window while it has fewer than
// are free. So one scan takes half of the table at most, two a third each, and
// there is always room for what is new. A record that may not open a window is
// folded into a record of its rule and Pod, marked as overflow; where these are too
// many, into one of its node, direction and action. So a scan cannot exhaust memory,
// what goes on beside it keeps its lines, and no packet goes uncounted.
type Dedup struct {
	cfg     DedupConfig
	secret  [8]uint64    // Of hash,
	seed    maphash.Seed // and of hashFolded.
	places  places
	windows []window
	free    int32 // Head of the chain of unused windows.
	open    [foldsCount]int
	order   list // All, in the order of their opening: the first has the lowest cursor.
	nodes   map[string]*nodeTime
	node    *nodeTime // Of the record before.
	shares  map[shareKey]*share
	share   *share // Looked for last.
	merged  uint64
	scratch Line
}

// share is what belongs together, and how many windows it has open.
type share struct {
	key  shareKey
	open int
}

type shareKey struct {
	node, appliedTo, table, rule string
	policy                       Policy // The first.
	isolation                    bool
}

// nodeTime is one node's clock, and its windows in the order of their opening.
type nodeTime struct {
	name  string
	now   int64 // Unix nanoseconds.
	order list
}

type list struct{ head, tail int32 }

const none = -1

type window struct {
	line         Line
	hash         uint64
	end          int64 // Unix nanoseconds,
	opened       int64 // and by the caller's clock.
	node         *nodeTime
	share        *share // Nil: folded.
	fold         Fold
	next, prev   int32 // In Dedup.order; of an unused one, next is the next unused.
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
	d := &Dedup{cfg: cfg, places: newPlaces(cfg.MaxWindows + maxOverflows + maxRests), free: none, order: list{none, none}, nodes: make(map[string]*nodeTime),
		shares: make(map[shareKey]*share)}
	d.seed = maphash.MakeSeed()
	for i := range d.secret {
		d.secret[i] = maphash.Comparable(d.seed, i) | 1
	}
	return d
}

// Open is how many windows are open.
func (d *Dedup) Open() int { return d.open[FoldNone] + d.open[FoldFlow] + d.open[FoldRule] }

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
	if d.merge(h, r, n, FoldNone) {
		return
	}
	if sh := d.shareOf(r); sh.open < d.cfg.MaxWindows-d.open[FoldNone] {
		d.begin(h, r, n, now, FoldNone)
		return
	}
	for f, most := range [...]int{FoldFlow: maxOverflows, FoldRule: maxRests} {
		if most == 0 {
			continue
		}
		folded := Fold(f).fold(r)
		h := d.hashFolded(&folded)
		if d.merge(h, &folded, n, Fold(f)) {
			return
		}
		if d.open[f] < most {
			d.begin(h, &folded, n, now, Fold(f))
			return
		}
	}
	folded := FoldRule.fold(r) // Of hundreds of nodes at once.
	d.emitAlone(&folded, true)
}

// fold leaves out what a fold does.
func (f Fold) fold(r *Record) Record {
	if f == FoldNone {
		return *r
	}
	folded := *r
	p := &r.Packet
	folded.Context = nil
	folded.Packet = Packet{First: p.First, Last: p.Last, Count: p.Count, Direction: p.Direction, Action: p.Action, Redirected: p.Redirected, Reason: "overflow"}
	if !p.printed() { // Which np.log must still know.
		folded.Packet.Reason = p.Reason
	}
	if f == FoldFlow {
		q := &folded.Packet
		q.Table, q.Policies, q.Isolation, q.Rule, q.LogLabel, q.Priority, q.AppliedTo, q.Staged = p.Table, p.Policies, p.Isolation, p.Rule, p.LogLabel, p.Priority, p.AppliedTo, p.Staged
	}
	return folded
}

// shareOf is what a record belongs to.
func (d *Dedup) shareOf(r *Record) *share {
	p := &r.Packet
	k := shareKey{node: r.Node, appliedTo: p.AppliedTo, table: p.Table, rule: p.Rule, isolation: p.Isolation}
	if len(p.Policies) > 0 {
		k.policy = p.Policies[0]
	}
	if d.share != nil && d.share.key == k {
		return d.share
	}
	s := d.shares[k]
	if s == nil {
		s = &share{key: k} // In the map while it has windows.
	}
	d.share = s
	return s
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
	if t := r.Packet.First.UnixNano(); t > n.now || n.now-t > int64(clockSlack) {
		n.now = t
		for n.order.head != none && d.windows[n.order.head].end <= t {
			d.finish(n.order.head)
		}
	}
	return n
}

// merge adds a record to the open window of its like. One that has passed ends.
func (d *Dedup) merge(h uint64, r *Record, n *nodeTime, f Fold) bool {
	i, ok := d.places.find(h, func(i int32) bool {
		w := &d.windows[i]
		return w.hash == h && w.node == n && w.fold == f && d.cfg.Key.same(&w.line.Packet, &r.Packet)
	})
	if !ok {
		return false
	}
	w := &d.windows[i]
	if r.Packet.First.UnixNano() >= w.end {
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

func (d *Dedup) begin(h uint64, r *Record, n *nodeTime, now time.Time, f Fold) {
	i := d.free
	if i == none {
		d.windows = append(d.windows, window{})
		i = int32(len(d.windows) - 1)
	} else {
		d.free = d.windows[i].next
	}
	w := &d.windows[i]
	w.line.Record, w.line.Packets, w.line.Window, w.line.Overflow = *r, r.Packet.Count, 0, f != FoldNone
	w.hash, w.end, w.opened, w.node, w.fold, w.share = h, r.Packet.First.Add(d.cfg.Window).UnixNano(), now.UnixNano(), n, f, nil
	if f == FoldNone {
		w.share = d.shareOf(r)
		if w.share.open++; w.share.open == 1 {
			d.shares[w.share.key] = w.share
		}
	}
	w.next, w.prev, w.nnext, w.nprev = none, d.order.tail, none, n.order.tail
	d.places.add(h, i)
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
	d.open[f]++
}

// finish ends a window: its line goes out.
func (d *Dedup) finish(i int32) {
	w := &d.windows[i]
	d.places.remove(w.hash, i, func(i int32) uint64 { return d.windows[i].hash })
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
	d.open[w.fold]--
	if s := w.share; s != nil {
		if s.open--; s.open == 0 {
			delete(d.shares, s.key)
		}
	}
	p := &w.line.Packet
	w.line.Window = max(d.cfg.Window, p.Last.Sub(p.First))
	d.merged += w.line.Packets - 1
	d.cfg.Emit(&w.line)
	w.line.Event = Event{} // What it points to is let go.
	w.next = d.free
	d.free = i
}

// Tick ends the windows that were opened a window's length ago by the caller's
// clock: no more of their packets are to be expected. It is called only when
// there are no more records to Add for now.
func (d *Dedup) Tick(now time.Time) {
	for d.order.head != none {
		open := now.UnixNano() - d.windows[d.order.head].opened
		if 0 <= open && open < int64(d.cfg.Window) {
			break
		}
		d.finish(d.order.head) // One of the future is of before the clock was set back.
	}
	if d.Open() == 0 {
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

// hashFolded is over what folded records differ in, which is none of what hash
// looks at first.
func (d *Dedup) hashFolded(r *Record) uint64 {
	p := &r.Packet
	h := d.hash(p)
	for i, s := range [...]string{r.Node, p.AppliedTo, p.Rule, p.Table} {
		h = fold128(h^maphash.String(d.seed, s), d.secret[i])
	}
	if len(p.Policies) > 0 {
		h = fold128(h^maphash.Comparable(d.seed, p.Policies[0]), d.secret[7])
	}
	return h
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
