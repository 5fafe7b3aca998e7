package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirnet/weir/storage/faultpoint"
)

// local is a log in a Pebble database of our own.
type local struct {
	*Log
	lock io.Closer

	// reading is held by readers of the database, so that it is not closed
	// meanwhile. It is taken before mu.
	reading sync.RWMutex
	db      *database // Guarded by mu. Nil: failed, and not opened again yet.

	mending sync.Mutex     // Held by who mends a table. It is taken before reading.
	damaged chan keyBounds // Found by compactions. One slot: they find it again.
	unsaved atomic.Bool    // The positions have changed beside the writer.

	// The writer's.
	blocks, bytes int // Since the last snapshot.
	freeChecked   time.Time
	failure       error // Of the database that is gone.
	failures      int   // Databases that failed, in all.
	reopenAt      time.Time
	pause         time.Duration
}

// openLocal opens or makes the database of a log.
func openLocal(log *Log) (*local, error) {
	l := &local{Log: log, damaged: make(chan keyBounds, 1)}
	cfg := &log.cfg
	if cfg.Dir == "" {
		return nil, errors.New("open event log: no folder given")
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = DefaultMinFree
	}
	if cfg.MemTableBytes == 0 {
		cfg.MemTableBytes = DefaultMemTableBytes
	}
	if cfg.fs == nil {
		cfg.fs = vfs.Default
	}
	if err := cfg.fs.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("open event log: make folder: %w", err)
	}
	var err error
	if l.lock, err = cfg.fs.Lock(filepath.Join(cfg.Dir, "LOCK")); err != nil {
		return nil, fmt.Errorf("open event log %s: lock: %w", cfg.Dir, err)
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.lock.Close())
	}
	return l, nil
}

// run implements backend: it mends what compactions find damaged.
func (l *local) run(ctx context.Context) error {
	for {
		select {
		case bounds := <-l.damaged:
			if err := l.mend(bounds); err != nil {
				l.cfg.Logger.Error("cannot mend a damaged table", "err", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ended implements backend.
func (l *local) ended() error {
	if l.failures < maxFailures {
		return nil
	}
	return fmt.Errorf("event log %s: the database failed %d times; the last time: %w", l.cfg.Dir, l.failures, l.failure)
}

// high is the highest sequence stored of a boot, and when it was.
func (l *local) high(node, boot string) (uint64, time.Time) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.positions.high(node, boot)
}

// cursors implements backend.
func (l *local) cursors() cursorStore { return cursorFiles{filepath.Join(l.cfg.Dir, "cursors")} }

// close implements backend.
func (l *local) close() error {
	var err error
	if l.db != nil && l.db.failed() == nil && (l.blocks > 0 || l.unsaved.Load()) {
		err = l.snapshot() // It is the last key, and so tells where the log ends.
	}
	l.reading.Lock()
	defer l.reading.Unlock()
	l.mu.Lock()
	db := l.db
	l.db = nil
	l.mu.Unlock()
	if db != nil {
		// All in tables, whose every block has a checksum. Where there is no room for
		// it, it stays in the write-ahead log.
		_ = db.flush()
		err = errors.Join(err, db.shut())
	}
	return errors.Join(err, l.lock.Close())
}

// open opens the database and reads the positions.
func (l *local) open() error {
	db, err := l.openOrRescue()
	if err != nil {
		return fmt.Errorf("open event log %s: %w", l.cfg.Dir, err)
	}
	p, oldest, blocks, err := l.recover(db)
	if err != nil {
		_ = db.shut() // The error to tell is the first.
		return fmt.Errorf("open event log %s: read positions: %w", l.cfg.Dir, err)
	}
	if oldest, err = l.stateLostEnd(db, p, oldest); err != nil {
		_ = db.shut()
		return fmt.Errorf("open event log %s: %w", l.cfg.Dir, err)
	}
	l.mu.Lock()
	l.db, l.positions, l.oldest, l.health = db, p, oldest, nil
	l.wakeLocked()
	l.mu.Unlock()
	l.blocks, l.bytes = blocks, 0
	return nil
}

// recover reads the positions, and mends the tables that are damaged there.
func (l *local) recover(db *database) (p *positions, oldest uint64, blocks int, err error) {
	var stated []hole
	for mended := (keyBounds{}); ; {
		snapshot := uint64(0)
		p, snapshot, oldest, blocks, err = recoverPositions(db)
		bounds, ok := damagedBounds(err)
		if err == nil {
			for _, h := range stated {
				if h.first <= snapshot { // Those behind it are counted.
					p.node("").lose(h.count)
				}
			}
			l.unsaved.Store(len(stated) > 0)
			return p, oldest, blocks, nil
		}
		if !ok || mended.equal(bounds) {
			return nil, 0, 0, err
		}
		holes, err := l.replace(db, bounds, 0)
		if err != nil {
			return nil, 0, 0, err
		}
		stated, mended = append(stated, holes...), bounds
	}
}

// recoverPositions reads back to the last snapshot, and the blocks since.
func recoverPositions(db *database) (p *positions, snapshot, oldest uint64, blocks int, err error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return nil, 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	p = newPositions()
	valid := it.Last()
	for ; valid; valid = it.Prev() {
		cursor, kind, err := parseKey(it.Key())
		if err != nil {
			return nil, 0, 0, 0, err
		}
		if kind == kindSnapshot {
			value, err := it.ValueAndErr()
			if err != nil {
				return nil, 0, 0, 0, err
			}
			if p, err = decodePositions(value); err != nil {
				return nil, 0, 0, 0, fmt.Errorf("snapshot %x: %w", it.Key(), err)
			}
			snapshot = cursor
			break
		}
	}
	if err := it.Error(); err != nil {
		return nil, 0, 0, 0, err
	}
	if valid {
		valid = it.Next()
	} else {
		valid = it.First()
	}
	for ; valid; valid = it.Next() {
		cursor, _, err := parseKey(it.Key())
		if err != nil {
			return nil, 0, 0, 0, err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, 0, 0, 0, err
		}
		var h header
		if _, err := h.decode(value); err != nil {
			return nil, 0, 0, 0, fmt.Errorf("block %d: %w", cursor, err)
		}
		p.apply(&h, cursor+h.cursors()-1)
		blocks++
	}
	if err := it.Error(); err != nil {
		return nil, 0, 0, 0, err
	}
	oldest, err = oldestBlock(it)
	return p, snapshot, oldest, blocks, errors.Join(err, it.Error())
}

// oldestBlock is the cursor of the first block. Zero: there is none.
func oldestBlock(it *pebble.Iterator) (uint64, error) {
	for valid := it.First(); valid; valid = it.Next() {
		cursor, kind, err := parseKey(it.Key())
		if err != nil {
			return 0, err
		}
		if kind == kindBlock {
			return cursor, nil
		}
	}
	return 0, nil
}

// ready opens the database again if it failed, and looks whether there is room.
func (l *local) ready(now time.Time) error {
	if l.db != nil {
		if err := l.db.failed(); err != nil {
			l.drop(err)
		}
	}
	if l.db == nil {
		if now.Before(l.reopenAt) {
			return l.failure
		}
		if err := l.open(); err != nil {
			l.drop(err)
			return err
		}
	}
	if now.Sub(l.freeChecked) < freeCheckPeriod && l.health == nil {
		return nil
	}
	usage, err := l.cfg.fs.GetDiskUsage(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("look for free space: %w", err)
	}
	if usage.AvailBytes < l.cfg.MinFree {
		return fmt.Errorf("disk nearly full: %d MiB free, %d MiB are kept free", usage.AvailBytes>>20, l.cfg.MinFree>>20)
	}
	l.freeChecked = now
	return nil
}

// drop leaves a database that failed; ready opens it anew after a pause, which
// doubles until something was stored.
func (l *local) drop(err error) {
	l.mu.Lock()
	l.db = nil
	l.mu.Unlock()
	l.failures++
	l.failure = err
	l.pause = min(max(2*l.pause, reopenMin), reopenMax)
	l.reopenAt = time.Now().Add(l.pause)
}

// store implements backend.
func (l *local) store(group []*pending) (err error) {
	if err := l.ready(time.Now()); err != nil {
		return err
	}
	b := l.db.NewBatch()
	defer l.db.release(b)
	// What the group changes; the log's own positions follow when it is durable.
	next := commitGroup{newest: l.positions.newest, arrived: l.positions.arrived, high: make(map[[2]string]uint64)}
	put := func(h header, body func([]byte) []byte) error {
		cursor := next.newest + 1
		next.newest += h.count
		next.buf = body(h.append(next.buf[:0]))
		op := b.SetDeferred(keyLen, len(next.buf))
		putKey(op.Key, cursor, kindBlock)
		copy(op.Value, next.buf)
		next.headers = append(next.headers, h)
		next.size += len(next.buf)
		return op.Finish()
	}
	for _, p := range group {
		id := [2]string{p.batch.Node, p.batch.Boot}
		p.batch.Received = arrival(p.batch.Received, next.arrived)
		next.arrived = p.batch.Received
		stored, last := l.high(p.batch.Node, p.batch.Boot)
		high, ok := next.high[id]
		if !ok {
			high = stored
		}
		if p.result, err = p.batch.place(high, last, put); err != nil {
			return err
		}
		next.high[id] = p.result.High
		next.duplicates += uint64(p.result.Repeated)
	}
	if len(next.headers) > 0 {
		faultpoint.Reach("auditd.store.checked")
		if err := l.db.commit(b); err != nil {
			l.drop(err)
			return err
		}
		faultpoint.Reach("auditd.store.synced")
	}
	l.pause = 0
	l.stored(&next)
	if l.blocks >= snapshotBlocks || l.bytes >= snapshotBytes || l.unsaved.Swap(false) {
		if err := l.snapshot(); err != nil {
			l.drop(err)
			return fmt.Errorf("write positions: %w", err)
		}
	}
	return nil
}

// commitGroup is a group on its way to the disk.
type commitGroup struct {
	newest     uint64
	arrived    time.Time            // When the newest did.
	high       map[[2]string]uint64 // By node and boot.
	headers    []header             // Of the blocks, in order.
	duplicates uint64
	size       int
	buf        []byte
}

// stored takes in what is durable, and wakes the followers.
func (l *local) stored(next *commitGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.positions.duplicates += next.duplicates
	if len(next.headers) == 0 {
		return
	}
	cursor := l.positions.newest
	if l.oldest == 0 {
		l.oldest = cursor + 1
	}
	for i := range next.headers {
		h := &next.headers[i]
		cursor += h.count
		l.positions.apply(h, cursor)
	}
	l.blocks += len(next.headers)
	l.bytes += next.size
	l.wakeLocked()
}

// snapshot writes the positions behind the newest block.
func (l *local) snapshot() error {
	b := l.db.NewBatch()
	defer l.db.release(b)
	l.mu.RLock()
	value := l.positions.append(nil)
	l.mu.RUnlock()
	if err := b.Set(key(l.positions.newest, kindSnapshot), value, nil); err != nil {
		return err
	}
	if err := l.db.commit(b); err != nil {
		return err
	}
	l.blocks, l.bytes = 0, 0
	faultpoint.Reach("auditd.store.snapshot")
	return nil
}
