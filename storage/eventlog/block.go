package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// Keys are a cursor, big-endian, and a kind. A block's cursor is that of its
// first record, a snapshot's that of the last record before it: so the keys
// ascend as they are written.
const (
	kindBlock    = 0
	kindSnapshot = 1
	keyLen       = 9
)

func key(cursor uint64, kind byte) []byte {
	k := make([]byte, keyLen)
	putKey(k, cursor, kind)
	return k
}

func putKey(k []byte, cursor uint64, kind byte) {
	binary.BigEndian.PutUint64(k, cursor)
	k[8] = kind
}

func parseKey(k []byte) (cursor uint64, kind byte, err error) {
	if len(k) != keyLen || k[8] > kindSnapshot {
		return 0, 0, fmt.Errorf("key %x: %w", k, errCorrupt)
	}
	return binary.BigEndian.Uint64(k), k[8], nil
}

var errCorrupt = errors.New("is not of an event log")

// Versions begin a block's value.
const (
	blockVersion   = 1
	damagedVersion = 2 // The same, with the span before the losses.
)

// header is what precedes the events of a block:
//
//	version, node, boot, first sequence, received (ns since 1970), count,
//	span (of a damagedVersion), number of losses, each: stage, count
//
// in uvarints and length-prefixed strings. Then each event, length-prefixed.
type header struct {
	node, boot string
	first      uint64 // Sequence of the first event. Zero: stated by the collector.
	received   time.Time
	count      uint64
	span       uint64      // Cursors that it takes, if more than count: records that were here are damaged.
	lost       []lossCount // What the losses among the events sum up to.
}

// cursors is how many the block takes.
func (h *header) cursors() uint64 { return max(h.span, h.count) }

type lossCount struct {
	stage auditv1.LossStage
	count uint64
}

func (h *header) append(b []byte) []byte {
	if h.span == 0 {
		b = append(b, blockVersion)
	} else {
		b = append(b, damagedVersion)
	}
	b = appendString(b, h.node)
	b = appendString(b, h.boot)
	b = binary.AppendUvarint(b, h.first)
	b = binary.AppendUvarint(b, uint64(h.received.UnixNano()))
	b = binary.AppendUvarint(b, h.count)
	if h.span > 0 {
		b = binary.AppendUvarint(b, h.span)
	}
	b = binary.AppendUvarint(b, uint64(len(h.lost)))
	for _, l := range h.lost {
		b = binary.AppendUvarint(b, uint64(l.stage))
		b = binary.AppendUvarint(b, l.count)
	}
	return b
}

// lose adds a loss to the header's sums.
func (h *header) lose(stage auditv1.LossStage, count uint64) {
	for i := range h.lost {
		if h.lost[i].stage == stage {
			h.lost[i].count = addClamped(h.lost[i].count, count)
			return
		}
	}
	h.lost = append(h.lost, lossCount{stage, count})
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// addClamped stops at the largest number: counts are claims of nodes.
func addClamped(a, b uint64) uint64 {
	if a+b < a {
		return ^uint64(0)
	}
	return a + b
}

// decoder reads a value from its front; after an error all that it returns is
// zero.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.fail()
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) time() time.Time { return time.Unix(0, int64(d.uvarint())) }

func (d *decoder) fail() {
	d.rest = nil
	d.err = errCorrupt
}

// decode reads the header of a block, and returns the events behind it. Names
// that are the same as those of the header before are not made again.
func (h *header) decode(value []byte) ([]byte, error) {
	if len(value) == 0 || value[0] != blockVersion && value[0] != damagedVersion {
		return nil, errCorrupt
	}
	d := decoder{rest: value[1:]}
	if node := d.bytes(); string(node) != h.node {
		h.node = string(node)
	}
	if boot := d.bytes(); string(boot) != h.boot {
		h.boot = string(boot)
	}
	h.first, h.received, h.count, h.span, h.lost = d.uvarint(), d.time(), d.uvarint(), 0, h.lost[:0]
	if value[0] == damagedVersion {
		h.span = d.uvarint()
	}
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		h.lost = append(h.lost, lossCount{auditv1.LossStage(d.uvarint()), d.uvarint()})
	}
	return d.rest, d.err
}
