package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/storage/faultpoint"
)

// keyBounds are the first and the last key of a table.
type keyBounds struct{ first, last []byte }

func (b keyBounds) equal(c keyBounds) bool {
	return bytes.Equal(b.first, c.first) && bytes.Equal(b.last, c.last)
}

func boundsOf(info *pebble.DataCorruptionInfo) keyBounds {
	return keyBounds{bytes.Clone(info.Bounds.Start), bytes.Clone(info.Bounds.End.Key)}
}

// damagedBounds are those of the table that an error says is damaged.
func damagedBounds(err error) (keyBounds, bool) {
	if err == nil || !pebble.IsCorruptionError(err) {
		return keyBounds{}, false
	}
	info := pebble.ExtractDataCorruptionInfo(err)
	if info == nil || len(info.Bounds.Start) != keyLen || len(info.Bounds.End.Key) != keyLen {
		return keyBounds{}, false
	}
	return boundsOf(info), true
}

// repairFile is the table that takes the place of a damaged one.
const repairFile = "repair.sst"

// mend puts another table in the place of a damaged one, at once: with what of it
// can be read, and for what cannot a loss, which so is stated exactly once. It
// goes on beside writer and readers.
func (l *local) mend(b keyBounds) error {
	l.mending.Lock()
	defer l.mending.Unlock()
	l.reading.RLock()
	defer l.reading.RUnlock()
	l.mu.RLock()
	db, newest := l.db, l.positions.newest
	l.mu.RUnlock()
	if db == nil {
		return errFenced
	}
	stated, err := l.replace(db, b, newest)
	if err != nil || len(stated) == 0 {
		return err
	}
	l.mu.Lock()
	for _, h := range stated {
		l.positions.node("").lose(h.count)
	}
	l.wakeLocked()
	l.mu.Unlock()
	l.unsaved.Store(true)
	return nil
}

// hole is where records were that cannot be read any more.
type hole struct{ first, count uint64 }

// replace mends a table, and says which losses were stated.
func (l *local) replace(db *database, b keyBounds, newest uint64) ([]hole, error) {
	s, err := l.salvage(db, b, newest)
	if err != nil {
		return nil, fmt.Errorf("mend the table of keys %x to %x: %w", b.first, b.last, err)
	}
	if !s.unreadable {
		return nil, nil // Another was faster.
	}
	span := pebble.KeyRange{Start: b.first, End: append(bytes.Clone(s.last), 0)}
	faultpoint.Reach("auditd.mend.salvaged")
	if _, err := db.IngestAndExcise(context.Background(), s.paths(), nil, nil, span); err != nil {
		return nil, fmt.Errorf("mend the table of keys %x to %x: %w", b.first, b.last, err)
	}
	faultpoint.Reach("auditd.mend.replaced")
	lost := uint64(0)
	for _, h := range s.holes {
		lost += h.count
	}
	l.cfg.Logger.Error("a table of the event log is damaged; what cannot be read is stated as lost, and the rest is kept", "count", lost, "blocks_kept", s.kept)
	return s.holes, nil
}

// lose counts damaged records.
func (n *nodeState) lose(count uint64) {
	n.lost[auditv1.LossStage_LOSS_STAGE_DAMAGED] = addClamped(n.lost[auditv1.LossStage_LOSS_STAGE_DAMAGED], count)
}

// stateLostEnd states what was read here once, as a stored cursor shows, and is
// gone from the end of the log: damage there is taken for what a crash tore. Its
// cursors are not given out again, or those who have them would miss what is new.
func (l *local) stateLostEnd(db *database, p *positions, oldest uint64) (uint64, error) {
	read, err := cursorFiles{filepath.Join(l.cfg.Dir, "cursors")}.highest()
	if err != nil || read <= p.newest {
		return oldest, err
	}
	first, now := p.newest+1, time.Now()
	h, body := damage(read-p.newest, now, now)
	b := db.NewBatch()
	defer db.release(b)
	if err := b.Set(key(first, kindBlock), body(h.append(nil)), nil); err != nil {
		return 0, err
	}
	if err := db.commit(b); err != nil {
		return 0, err
	}
	l.cfg.Logger.Error("records at the end of the event log are gone that were read before; they are stated as lost", "count", h.span)
	p.apply(&h, read)
	if oldest == 0 {
		oldest = first
	}
	return oldest, nil
}

// salvage is what can be read of a table, and where it is put.
type salvage struct {
	path       string
	last       []byte // Of the table, or of the loss behind its last readable block.
	w          *sstable.Writer
	it         *pebble.Iterator
	next       uint64    // Cursor that the next block should have.
	before     time.Time // When the block before arrived.
	unreadable bool
	failed     error  // To read, and not for damage.
	kept       uint64 // Blocks.
	holes      []hole
	wrote      bool
}

func (s *salvage) paths() []string {
	if !s.wrote {
		return nil
	}
	return []string{s.path}
}

// salvage reads what it can within bounds, and writes it to a file.
func (l *local) salvage(db *database, b keyBounds, newest uint64) (_ *salvage, err error) {
	s := &salvage{path: l.cfg.fs.PathJoin(l.cfg.Dir, repairFile), last: b.last}
	if s.next, err = firstOf(b.first); err != nil {
		return nil, err
	}
	end, err := nextTable(db, b.last, newest)
	if err != nil {
		return nil, err
	}
	f, err := l.cfg.fs.Create(s.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	opts := &pebble.Options{}
	opts.EnsureDefaults()
	s.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), opts.MakeWriterOptions(0, db.TableFormat()))
	defer func() { err = errors.Join(err, s.w.Close()) }()
	upper := append(bytes.Clone(b.last), 0)
	if s.it, err = db.NewIter(&pebble.IterOptions{LowerBound: b.first, UpperBound: upper}); err != nil {
		return nil, err
	}
	defer func() { _ = s.it.Close() }() // It tells the damage again.
	valid := s.it.SeekGE(b.first)
	for k := b.first; ; valid = s.it.Next() {
		if !valid && s.it.Error() != nil {
			valid = s.skip(k, b.last)
		}
		if !valid {
			break
		}
		k = bytes.Clone(s.it.Key())
		if err := s.take(k); err != nil {
			return nil, err
		}
	}
	if s.failed != nil {
		return nil, s.failed
	}
	if s.unreadable && end > s.next { // The last of the table.
		if err := s.hole(end, s.before); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// firstOf is the cursor of the first block at or after a key.
func firstOf(k []byte) (uint64, error) {
	cursor, kind, err := parseKey(k)
	if kind == kindSnapshot {
		cursor++
	}
	return cursor, err
}

// nextTable is the cursor of what follows a table: the first block of the tables
// behind it, or of what is in memory.
func nextTable(db *database, last []byte, newest uint64) (uint64, error) {
	next := newest + 1
	if newest == 0 { // Not known yet: at least the last key's.
		cursor, _, err := parseKey(last)
		if err != nil {
			return 0, err
		}
		next = cursor + 1
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: append(bytes.Clone(last), 0)})
	if err != nil {
		return 0, err
	}
	if it.First() {
		next, err = firstOf(it.Key())
	}
	if closed := it.Close(); err != nil || closed == nil {
		return next, err
	}
	// That one is damaged too.
	tables, err := db.SSTables()
	if err != nil {
		return 0, err
	}
	for _, level := range tables {
		for i := range level {
			if bytes.Compare(level[i].Smallest.UserKey, last) > 0 {
				first, err := firstOf(level[i].Smallest.UserKey)
				if err != nil {
					return 0, err
				}
				next = min(next, first)
			}
		}
	}
	return next, nil
}

// skip goes to the next block that can be read behind a key.
func (s *salvage) skip(from, last []byte) bool {
	s.unreadable = true
	start, _, _ := parseKey(from) // They are a table's.
	stop, _, _ := parseKey(last)
	// The steps grow by the way: what cannot be read may be a block, or the table.
	for c := start; c < stop; {
		step := min(max(1, (c-start)/4), stop-c)
		c += step
		if s.readable(c) {
			return s.back(c-step+1, c)
		}
	}
	return s.it.SeekGE(last) // It may be a snapshot.
}

// readable says whether what is at a cursor or behind it can be read.
func (s *salvage) readable(cursor uint64) bool {
	s.it.SeekGE(key(cursor, kindBlock))
	err := s.it.Error()
	if err != nil && !pebble.IsCorruptionError(err) {
		s.failed = err
	}
	return err == nil
}

// back goes from a place that can be read to the first such behind lo.
func (s *salvage) back(lo, hi uint64) bool {
	for lo < hi {
		mid := lo + (hi-lo)/2
		if s.readable(mid) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return s.it.SeekGE(key(hi, kindBlock))
}

// take copies the block or snapshot that the iterator is at.
func (s *salvage) take(k []byte) error {
	value, err := s.it.ValueAndErr()
	if err != nil {
		s.unreadable = true
		if !pebble.IsCorruptionError(err) {
			s.failed = err
		}
		return nil
	}
	cursor, kind, err := parseKey(k)
	if err != nil {
		return err
	}
	if kind == kindBlock {
		var h header
		if _, err := h.decode(value); err != nil {
			return err
		}
		if cursor > s.next {
			if err := s.hole(cursor, h.received); err != nil {
				return err
			}
		}
		s.next, s.before = cursor+h.cursors(), h.received
		s.kept++
	} else if cursor >= s.next {
		if err := s.hole(cursor+1, s.before); err != nil {
			return err
		}
	}
	s.wrote = true
	return s.w.Set(k, value)
}

// hole states what was up to a cursor.
func (s *salvage) hole(end uint64, to time.Time) error {
	count := end - s.next
	from := s.before
	if from.IsZero() {
		from = to
	}
	h, body := damage(count, from, to)
	k := key(s.next, kindBlock)
	if bytes.Compare(k, s.last) > 0 {
		s.last = k
	}
	s.holes = append(s.holes, hole{s.next, count})
	s.next = end
	s.wrote = true
	return s.w.Set(k, body(h.append(nil)))
}

// damage is the block that states how many records, which arrived between two
// times, cannot be read any more. It is of no node, since it is not known of which.
func damage(count uint64, from, to time.Time) (header, func([]byte) []byte) {
	if from.After(to) {
		from, to = to, from
	}
	loss := &auditv1.LossEvent{From: timestamppb.New(from), To: timestamppb.New(to), Count: count, Stage: auditv1.LossStage_LOSS_STAGE_DAMAGED}
	h := header{received: to, count: 1, span: count}
	h.lose(loss.Stage, count)
	return h, func(b []byte) []byte { return appendEvent(b, &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: loss}}) }
}

// appendEvent is for events that are stated here.
func appendEvent(b []byte, e *auditv1.Event) []byte {
	data, err := proto.Marshal(e)
	if err != nil {
		panic(fmt.Sprintf("encode a loss: %v", err)) // It has no strings that could be wrong.
	}
	return appendString(b, string(data))
}
