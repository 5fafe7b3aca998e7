package eventlog

import (
	"errors"
	"time"

	"github.com/weirnet/weir/storage/faultpoint"
)

// retain removes what is too old or too much, oldest first. It is the writer's.
func (l *local) retain(now time.Time) {
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
func (l *local) keepFrom(now time.Time) (keep uint64, err error) {
	it, err := l.db.NewIter(nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	end := l.positions.newest + 1
	keep = l.oldest
	if age := l.cfg.RetentionAge; age > 0 {
		if keep, err = firstBlock(it, keep, end, arrivedFrom(now.Add(-age))); err != nil {
			return 0, err
		}
	}
	if size := l.cfg.RetentionBytes; size > 0 && keep < end {
		keep, err = firstBlock(it, keep, end, func(cursor uint64, _ []byte) (bool, error) {
			used, err := l.db.EstimateDiskUsage(key(cursor, kindBlock), key(end, kindSnapshot))
			return used <= size, err
		})
	}
	return keep, err
}

// removeBelow removes the blocks below a cursor. The positions outlive them, by
// a snapshot above.
func (l *local) removeBelow(keep uint64) error {
	if l.blocks > 0 {
		if err := l.snapshot(); err != nil {
			return err
		}
	}
	b := l.db.NewBatch()
	defer l.db.release(b)
	// A snapshot that stands at keep-1 is the newest if nothing is kept.
	if err := b.DeleteRange(key(0, kindBlock), key(keep-1, kindSnapshot), nil); err != nil {
		return err
	}
	if err := l.db.commit(b); err != nil {
		return err
	}
	faultpoint.Reach("auditd.trim.removed")
	l.mu.Lock()
	removed := keep - l.oldest
	if l.oldest = keep; keep > l.positions.newest {
		l.oldest = 0
	}
	l.mu.Unlock()
	l.cfg.Logger.Info("old records removed", "count", removed, "oldest", keep)
	return nil
}
