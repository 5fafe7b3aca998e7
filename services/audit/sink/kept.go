package sink

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/weirnet/weir/services/audit/record"
)

// kept is what is stored of a sink.
type kept struct {
	// Every record up to cursor is written. Up to read, a record is either written
	// or in one of the windows.
	cursor, read uint64
	windows      []record.Saved // In the order of their opening, and so of their cursors.
	output       []byte         // The output's own.
}

// keptVersion begins an encoded kept.
const keptVersion = 1

// encode leaves out the cursor, which is stored beside it.
func (k *kept) encode() []byte {
	b := []byte{keptVersion}
	b = binary.AppendUvarint(b, k.read)
	b = binary.AppendUvarint(b, uint64(len(k.windows)))
	cursor, at := k.cursor, int64(0)
	for i := range k.windows {
		w := &k.windows[i]
		b = binary.AppendUvarint(b, w.Cursor-cursor)
		b = binary.AppendUvarint(b, w.Packets)
		b = append(b, byte(w.Fold))
		b = binary.AppendVarint(b, w.First.UnixNano()-at)
		b = binary.AppendVarint(b, int64(w.Last.Sub(w.First)))
		cursor, at = w.Cursor, w.First.UnixNano()
	}
	return append(b, k.output...)
}

var errKept = errors.New("what is stored with its cursor is of another version")

// decodeKept reads what encode wrote. Nothing is of a cursor alone.
func decodeKept(cursor uint64, b []byte) (kept, error) {
	k := kept{cursor: cursor, read: cursor}
	if len(b) == 0 {
		return k, nil
	}
	if b[0] != keptVersion {
		return k, errKept
	}
	d := varints{rest: b[1:]}
	k.read = d.unsigned()
	n := d.unsigned()
	at := int64(0)
	for range n {
		w := record.Saved{Cursor: cursor + d.unsigned(), Packets: d.unsigned(), Fold: record.Fold(d.byte())}
		at += d.signed()
		w.First = time.Unix(0, at).UTC()
		w.Last = w.First.Add(time.Duration(d.signed()))
		if d.bad || w.Fold > record.FoldRule {
			return k, errKept
		}
		cursor = w.Cursor
		k.windows = append(k.windows, w)
	}
	if d.bad {
		return k, errKept
	}
	k.output = d.rest
	return k, nil
}

// varints reads numbers until one is bad.
type varints struct {
	rest []byte
	bad  bool
}

func (d *varints) unsigned() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *varints) signed() int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *varints) byte() byte {
	if len(d.rest) == 0 {
		d.bad = true
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *varints) text() string {
	n := d.unsigned()
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}
