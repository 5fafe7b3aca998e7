package record

import "time"

// Saved is what has to be kept of an open window, beside the log, to go on with
// it in another life: the record that opened it is in the log.
type Saved struct {
	Cursor      uint64 // Of that record.
	Packets     uint64
	First, Last time.Time
	Fold        Fold
}

// Save appends the open windows, in the order of their opening.
func (d *Dedup) Save(to []Saved) []Saved {
	for i := d.order.head; i != none; i = d.windows[i].next {
		l := &d.windows[i].line
		to = append(to, Saved{Cursor: l.Cursor, Packets: l.Packets, First: l.Packet.First, Last: l.Packet.Last, Fold: d.windows[i].fold})
	}
	return to
}

// Resume opens a window again, as it was saved, with the record that had opened
// it. Windows come in the order in which they were saved, before any Add.
func (d *Dedup) Resume(r *Record, s Saved, now time.Time) {
	n := d.nodeOf(r.Node)
	n.now = max(n.now, r.Packet.First.UnixNano())
	opener := s.Fold.fold(r)
	h := d.hash(&opener.Packet)
	if s.Fold != FoldNone {
		h = d.hashFolded(&opener)
	}
	d.begin(h, &opener, n, now, s.Fold)
	l := &d.windows[d.order.tail].line
	l.Packets, l.Packet.Count, l.Packet.First, l.Packet.Last = s.Packets, s.Packets, s.First, s.Last
}
