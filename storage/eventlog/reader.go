package eventlog

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// chunkBytes is how much a reader takes from the database at a time. It holds
// nothing of the database between: a slow reader pins no disk space.
const chunkBytes = 1 << 20

// Entry is one record. Its data are good until the next call of Next.
type Entry struct {
	Cursor     uint64
	Node, Boot string
	Sequence   uint64 // Zero: stated by the collector.
	Received   time.Time
	Data       []byte // An encoded auditv1.Event.
}

// Reader reads the log in order. It belongs to one goroutine.
type Reader struct {
	log     *Log
	after   uint64 // Cursor of the last entry that was returned, or removed.
	skipped uint64
	only    string

	chunk  []byte  // Blocks' values, one behind the other.
	blocks []block // Of chunk, still to be begun.
	head   header  // Of the block that is being read;
	cursor uint64  // the cursor of its next event,
	left   uint64  // how many there are,
	seq    uint64  // and its sequence.
	events decoder
}

// block is one value in a chunk.
type block struct {
	cursor uint64
	size   int
}

// NewReader reads what comes after a cursor.
func (l *Log) NewReader(after uint64) *Reader { return &Reader{log: l, after: after} }

// Only leaves out the records of other nodes, block by block.
func (r *Reader) Only(node string) *Reader {
	r.only = node
	return r
}

// After is the cursor of the last entry that was read, or left out.
func (r *Reader) After() uint64 { return r.after }

// Skipped is how many records were removed by retention before they were read.
func (r *Reader) Skipped() uint64 { return r.skipped }

// Next returns the next record. It is false at the end; there may be more
// later.
func (r *Reader) Next() (Entry, bool, error) {
	for {
		for r.left > 0 {
			data := r.events.bytes()
			if r.events.err != nil {
				return Entry{}, false, fmt.Errorf("read event log: record %d: %w", r.cursor, r.events.err)
			}
			e := Entry{Cursor: r.cursor, Node: r.head.node, Boot: r.head.boot, Sequence: r.seq, Received: r.head.received, Data: data}
			r.cursor++
			r.left--
			if r.seq > 0 {
				r.seq++
			}
			if e.Cursor <= r.after {
				continue // Of a block in whose middle we begin.
			}
			r.skipped += e.Cursor - r.after - 1
			r.after = e.Cursor
			return e, true, nil
		}
		if len(r.blocks) == 0 {
			if err := r.fill(); err != nil {
				return Entry{}, false, fmt.Errorf("read event log: %w", err)
			}
			if len(r.blocks) == 0 {
				return Entry{}, false, nil
			}
		}
		b := r.blocks[0]
		r.blocks = r.blocks[1:]
		h, rest, err := decodeHeader(r.chunk[:b.size])
		r.chunk = r.chunk[b.size:]
		if err != nil {
			return Entry{}, false, fmt.Errorf("read event log: block %d: %w", b.cursor, err)
		}
		if r.only != "" && h.node != r.only {
			if b.cursor > r.after {
				r.skipped += b.cursor - r.after - 1
			}
			r.after = max(r.after, b.cursor+h.count-1)
			continue
		}
		r.head, r.events, r.cursor, r.left, r.seq = h, decoder{rest: rest}, b.cursor, h.count, h.first
	}
}

// fill copies the next chunk of blocks.
func (r *Reader) fill() (err error) {
	l := r.log
	l.reading.RLock()
	defer l.reading.RUnlock()
	l.mu.RLock()
	db, newest, empty := l.db, l.positions.newest, l.oldest == 0
	l.mu.RUnlock()
	if r.after >= newest || empty {
		return nil
	}
	if db == nil {
		return errFenced
	}
	it, err := db.NewIter(&pebble.IterOptions{UpperBound: key(newest, kindSnapshot)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	r.chunk, r.blocks = r.chunk[:0:0], nil
	valid := r.seek(it)
	for ; valid && len(r.chunk) < chunkBytes; valid = it.Next() {
		cursor, kind, err := parseKey(it.Key())
		if err != nil {
			return err
		}
		if kind != kindBlock {
			continue
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		r.chunk = append(r.chunk, value...)
		r.blocks = append(r.blocks, block{cursor, len(value)})
	}
	return it.Error()
}

// seek goes to the block that holds the first cursor after r.after, or to the
// next that there is.
func (r *Reader) seek(it *pebble.Iterator) bool {
	next := key(r.after+1, kindBlock)
	if it.SeekGE(next) && string(it.Key()) == string(next) {
		return true
	}
	for valid := it.SeekLT(next); valid; valid = it.Prev() {
		if it.Key()[keyLen-1] == kindBlock {
			return true
		}
	}
	return it.SeekGE(next)
}
