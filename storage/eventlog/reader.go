package eventlog

import (
	"fmt"
	"time"
)

// DefaultChunkBytes is how much a reader takes from the database at a time. It holds
// nothing of the database between: a slow reader pins no disk space.
const DefaultChunkBytes = 1 << 20

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
	size    int    // Of a chunk, which may be larger by a block.
	after   uint64 // Cursor of the last entry that was returned, or removed.
	skipped uint64
	only    string

	chunk  []byte  // Blocks' values, one behind the other.
	blocks []block // Of chunk;
	begun  int     // so many of them were begun,
	offset int     // and the next is here.
	at     place   // Of a stream's reader.
	head   header  // Of the block that is being read;
	cursor uint64  // the cursor of its next event,
	left   uint64  // how many there are,
	seq    uint64  // and its sequence.
	events decoder
}

// block is one value in a chunk.
type block struct {
	cursor  uint64
	size    int
	skipped uint64 // Records that were removed between the block before and this one.
}

// NewReader reads what comes after a cursor.
func (l *Log) NewReader(after uint64) *Reader { return l.NewReaderSize(after, DefaultChunkBytes) }

// NewReaderSize is NewReader for one who reads little, or keeps many readers.
func (l *Log) NewReaderSize(after uint64, chunkBytes int) *Reader {
	return &Reader{log: l, size: chunkBytes, after: after}
}

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
			r.after = e.Cursor
			return e, true, nil
		}
		if r.begun == len(r.blocks) {
			r.chunk, r.blocks, r.begun, r.offset = r.chunk[:0], r.blocks[:0], 0, 0
			if err := r.log.store.fill(r); err != nil {
				return Entry{}, false, fmt.Errorf("read event log: %w", err)
			}
			if len(r.blocks) == 0 {
				return Entry{}, false, nil
			}
		}
		b := r.blocks[r.begun]
		rest, err := r.head.decode(r.chunk[r.offset : r.offset+b.size])
		r.begun++
		r.offset += b.size
		if err != nil {
			return Entry{}, false, fmt.Errorf("read event log: block %d: %w", b.cursor, err)
		}
		r.skipped += b.skipped
		if r.only != "" && r.head.node != r.only {
			r.after = max(r.after, b.cursor+r.head.cursors()-1)
			r.left = 0
			continue
		}
		// Of a block that stands for damaged records, the last cursor counts.
		r.events, r.cursor, r.left, r.seq = decoder{rest: rest}, b.cursor+r.head.cursors()-r.head.count, r.head.count, r.head.first
	}
}

// add is for fill: a block, and how many records are gone before it.
func (r *Reader) add(cursor uint64, value []byte, skipped uint64) {
	r.chunk = append(r.chunk, value...)
	r.blocks = append(r.blocks, block{cursor, len(value), skipped})
}
