package eventlog

import (
	"errors"
	"math"
	"sort"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// retain removes what is too old or too much, oldest first. It is the writer's.
func (l *Log) retain(now time.Time) {
	if l.db == nil || l.oldest == 0 || l.cfg.RetentionAge == 0 && l.cfg.RetentionBytes == 0 {
		return
	}
	keep, err := l.keepFrom(now)
	if err == nil && keep > l.oldest {
		err = l.removeBelow(keep)
	}
	if err != nil {
		if failed := l.db.failed(); failed != nil {
			l.drop(failed)
		}
		l.cfg.Logger.Error("cannot remove old records", "err", err)
	}
}

// keepFrom is the cursor of the first block that stays; one behind the newest
// if none does.
func (l *Log) keepFrom(now time.Time) (keep uint64, err error) {
	it, err := l.db.NewIter(nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	end := l.positions.newest + 1
	keep = l.oldest
	// search finds the first cursor for which stays is true of the block that
	// begins there or next.
	search := func(stays func(cursor uint64, value []byte) (bool, error)) error {
		var failed error
		n := sort.Search(int(min(end-keep, math.MaxInt)), func(i int) bool {
			cursor, value, ok, err := blockAt(it, keep+uint64(i))
			if err == nil && ok {
				ok, err = stays(cursor, value)
				failed = errors.Join(failed, err)
				return ok
			}
			failed = errors.Join(failed, err)
			return true
		})
		cursor, _, ok, err := blockAt(it, keep+uint64(n))
		if keep = end; ok {
			keep = cursor
		}
		return errors.Join(failed, err)
	}
	if age := l.cfg.RetentionAge; age > 0 {
		err := search(func(_ uint64, value []byte) (bool, error) {
			h, _, err := decodeHeader(value)
			return !h.received.Before(now.Add(-age)), err
		})
		if err != nil {
			return 0, err
		}
	}
	if size := l.cfg.RetentionBytes; size > 0 && keep < end {
		err := search(func(cursor uint64, _ []byte) (bool, error) {
			used, err := l.db.EstimateDiskUsage(key(cursor, kindBlock), key(end, kindSnapshot))
			return used <= size, err
		})
		if err != nil {
			return 0, err
		}
	}
	return keep, nil
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

// removeBelow removes the blocks below a cursor. The positions outlive them, by
// a snapshot above.
func (l *Log) removeBelow(keep uint64) error {
	if l.blocks > 0 {
		if err := l.snapshot(); err != nil {
			return err
		}
	}
	b := l.db.NewBatch()
	defer b.Close()
	// A snapshot that stands at keep-1 is the newest if nothing is kept.
	if err := b.DeleteRange(key(0, kindBlock), key(keep-1, kindSnapshot), nil); err != nil {
		return err
	}
	if err := l.db.commit(b); err != nil {
		return err
	}
	l.mu.Lock()
	removed := keep - l.oldest
	if l.oldest = keep; keep > l.positions.newest {
		l.oldest = 0
	}
	l.mu.Unlock()
	l.cfg.Logger.Info("old records removed", "count", removed, "oldest", keep)
	return nil
}
