package eventlog

import (
	"errors"
	"math"
	"sort"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// fill implements backend. A damaged table is mended when it is met.
func (l *local) fill(r *Reader) error {
	for mended := (keyBounds{}); ; {
		err := l.read(r)
		bounds, ok := damagedBounds(err)
		if !ok || mended.equal(bounds) {
			return err
		}
		if err := l.mend(bounds); err != nil {
			return err
		}
		mended = bounds
		r.chunk, r.blocks = r.chunk[:0], r.blocks[:0] // Those before the damage are read again.
	}
}

// read takes the next blocks from the database.
func (l *local) read(r *Reader) (err error) {
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
	for valid := l.seekBlock(it, r.after+1); valid && len(r.chunk) < r.size; valid = it.Next() {
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
		skipped := uint64(0)
		if len(r.blocks) == 0 && cursor > r.after+1 {
			skipped = cursor - r.after - 1
		}
		r.add(cursor, value, skipped)
	}
	return it.Error()
}

// behind implements backend. Cursors count from one without gaps.
func (l *local) behind(cursor uint64) (uint64, error) {
	oldest, newest := l.Range()
	if oldest == 0 || cursor >= newest {
		return 0, nil
	}
	return newest - max(cursor, oldest-1), nil
}

// afterTime implements backend.
func (l *local) afterTime(t time.Time) (cursor uint64, err error) {
	l.reading.RLock()
	defer l.reading.RUnlock()
	l.mu.RLock()
	db, oldest, newest := l.db, l.oldest, l.positions.newest
	l.mu.RUnlock()
	if oldest == 0 {
		return newest, nil
	}
	if db == nil {
		return 0, errFenced
	}
	it, err := db.NewIter(&pebble.IterOptions{UpperBound: key(newest, kindSnapshot)})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	first, err := firstBlock(it, oldest, newest+1, arrivedFrom(t))
	return first - 1, err
}

// arrivedFrom is true of blocks that arrived at a time or later.
func arrivedFrom(t time.Time) func(uint64, []byte) (bool, error) {
	return func(_ uint64, value []byte) (bool, error) {
		var h header
		_, err := h.decode(value)
		return !h.received.Before(t), err
	}
}

// firstBlock is the cursor of the first block from first on for which something
// is true, which is then true of all that follow; end if of none.
func firstBlock(it *pebble.Iterator, first, end uint64, is func(cursor uint64, value []byte) (bool, error)) (uint64, error) {
	var failed error
	n := sort.Search(int(min(end-first, math.MaxInt)), func(i int) bool {
		cursor, value, ok, err := blockAt(it, first+uint64(i))
		if err == nil && ok {
			ok, err = is(cursor, value)
			failed = errors.Join(failed, err)
			return ok
		}
		failed = errors.Join(failed, err)
		return true
	})
	cursor, _, ok, err := blockAt(it, first+uint64(n))
	if !ok {
		cursor = end
	}
	return cursor, errors.Join(failed, err)
}

// seekBlock goes to the block that holds a cursor, or to the next that there is.
func (l *local) seekBlock(it *pebble.Iterator, cursor uint64) bool {
	next := key(cursor, kindBlock)
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

// blockAt is the first block that begins at or after a cursor.
func blockAt(it *pebble.Iterator, cursor uint64) (uint64, []byte, bool, error) {
	for valid := it.SeekGE(key(cursor, kindBlock)); valid; valid = it.Next() {
		c, kind, err := parseKey(it.Key())
		if err != nil {
			return 0, nil, false, err
		}
		if kind == kindBlock {
			value, err := it.ValueAndErr()
			return c, value, err == nil, err
		}
	}
	return 0, nil, false, it.Error()
}
