package eventlog

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// maxBoots of a node are remembered; the boot that was silent longest is
// forgotten first.
const maxBoots = 32

// positions is what the log knows of the nodes: it is a function of the blocks.
type positions struct {
	newest     uint64    // Cursor of the newest record. Zero: there was none yet.
	arrived    time.Time // When the newest event of a node did.
	duplicates uint64
	nodes      map[string]*nodeState
}

type nodeState struct {
	kept  uint64
	last  time.Time // When its last event arrived.
	lost  map[auditv1.LossStage]uint64
	boots map[string]*bootState
}

type bootState struct {
	high uint64    // Highest sequence stored.
	last time.Time // When it was.
}

func newPositions() *positions { return &positions{nodes: make(map[string]*nodeState)} }

func (p *positions) node(name string) *nodeState {
	n := p.nodes[name]
	if n == nil {
		n = newNodeState()
		p.nodes[name] = n
	}
	return n
}

func newNodeState() *nodeState {
	return &nodeState{lost: make(map[auditv1.LossStage]uint64), boots: make(map[string]*bootState)}
}

// high is the highest sequence that is stored of a boot, and when it was.
func (p *positions) high(node, boot string) (uint64, time.Time) {
	if n := p.nodes[node]; n != nil {
		return n.high(boot)
	}
	return 0, time.Time{}
}

func (n *nodeState) high(boot string) (uint64, time.Time) {
	if b := n.boots[boot]; b != nil {
		return b.high, b.last
	}
	return 0, time.Time{}
}

// apply takes in a block that ends at a cursor.
func (p *positions) apply(h *header, newest uint64) {
	p.newest = newest
	p.node(h.node).apply(h)
	if h.first > 0 {
		p.arrived = h.received
	}
}

func (n *nodeState) apply(h *header) {
	for _, l := range h.lost {
		n.lost[l.stage] = addClamped(n.lost[l.stage], l.count)
	}
	if h.first == 0 {
		return // Stated here: nothing arrived.
	}
	n.kept += h.count
	n.last = h.received
	b := n.boots[h.boot]
	if b == nil {
		n.forget()
		b = &bootState{}
		n.boots[h.boot] = b
	}
	b.high, b.last = h.first+h.count-1, h.received
}

// clone is a copy that may be changed.
func (n *nodeState) clone() *nodeState {
	c := &nodeState{kept: n.kept, last: n.last, lost: maps.Clone(n.lost), boots: make(map[string]*bootState, len(n.boots)+1)}
	for boot, b := range n.boots {
		copied := *b
		c.boots[boot] = &copied
	}
	return c
}

// forget makes room for one more boot.
func (n *nodeState) forget() {
	for len(n.boots) >= maxBoots {
		oldest := ""
		for name, b := range n.boots {
			if oldest == "" || b.last.Before(n.boots[oldest].last) || b.last.Equal(n.boots[oldest].last) && name < oldest {
				oldest = name
			}
		}
		delete(n.boots, oldest)
	}
}

// append encodes a snapshot.
func (p *positions) append(b []byte) []byte {
	b = append(b, blockVersion)
	b = binary.AppendUvarint(b, p.newest)
	b = binary.AppendUvarint(b, p.duplicates)
	b = binary.AppendUvarint(b, uint64(len(p.nodes)))
	for name, n := range p.nodes {
		b = n.append(appendString(b, name))
	}
	return b
}

func (n *nodeState) append(b []byte) []byte {
	b = binary.AppendUvarint(b, n.kept)
	b = appendTime(b, n.last)
	b = binary.AppendUvarint(b, uint64(len(n.lost)))
	for stage, count := range n.lost {
		b = binary.AppendUvarint(b, uint64(stage))
		b = binary.AppendUvarint(b, count)
	}
	b = binary.AppendUvarint(b, uint64(len(n.boots)))
	for boot, s := range n.boots {
		b = appendString(b, boot)
		b = binary.AppendUvarint(b, s.high)
		b = appendTime(b, s.last)
	}
	return b
}

// appendTime encodes the zero time, of a node of which nothing arrived, as 1970.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return binary.AppendUvarint(b, 0)
	}
	return binary.AppendUvarint(b, uint64(t.UnixNano()))
}

func decodePositions(value []byte) (*positions, error) {
	if len(value) == 0 || value[0] != blockVersion {
		return nil, errCorrupt
	}
	d := decoder{rest: value[1:]}
	p := newPositions()
	p.newest, p.duplicates = d.uvarint(), d.uvarint()
	for i := d.uvarint(); i > 0 && d.err == nil; i-- {
		n := p.node(string(d.bytes()))
		if n.decode(&d); n.last.After(p.arrived) {
			p.arrived = n.last
		}
	}
	return p, d.err
}

func (n *nodeState) decode(d *decoder) {
	n.kept, n.last = d.uvarint(), d.optionalTime()
	for j := d.uvarint(); j > 0 && d.err == nil; j-- {
		stage := auditv1.LossStage(d.uvarint())
		n.lost[stage] = d.uvarint()
	}
	for j := d.uvarint(); j > 0 && d.err == nil; j-- {
		boot := string(d.bytes())
		n.boots[boot] = &bootState{high: d.uvarint(), last: d.optionalTime()}
	}
}

func (d *decoder) optionalTime() time.Time {
	if v := d.uvarint(); v != 0 {
		return time.Unix(0, int64(v))
	}
	return time.Time{}
}

// Stats are the log's counts. Those of nodes are of the log's whole life, what
// retention took included.
type Stats struct {
	Oldest, Newest uint64 // Cursors. Zero: the log is empty.
	Kept           uint64 // Events stored, without the losses that the log itself stated.
	Duplicates     uint64 // Events that were stored before. A crash may forget the latest.
	Nodes          []NodeStats
}

// NodeStats are the counts of one node.
type NodeStats struct {
	Node string
	Kept uint64
	Last time.Time // When its last event arrived.
	Lost []Loss    // By stage, ascending.
}

// Loss is how much was lost at a stage.
type Loss struct {
	Stage auditv1.LossStage
	Count uint64
}

func (p *positions) stats() Stats {
	s := Stats{Newest: p.newest, Duplicates: p.duplicates}
	for name, n := range p.nodes {
		s.Kept += n.kept
		ns := NodeStats{Node: name, Kept: n.kept, Last: n.last}
		for stage, count := range n.lost {
			ns.Lost = append(ns.Lost, Loss{stage, count})
		}
		slices.SortFunc(ns.Lost, func(a, b Loss) int { return cmp.Compare(a.Stage, b.Stage) })
		s.Nodes = append(s.Nodes, ns)
	}
	slices.SortFunc(s.Nodes, func(a, b NodeStats) int { return cmp.Compare(a.Node, b.Node) })
	return s
}
