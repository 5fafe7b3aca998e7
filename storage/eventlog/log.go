package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"
)

// Defaults of Config.
const (
	DefaultMinFree       = 256 << 20
	DefaultMemTableBytes = 64 << 20
)

// Limits of the writer.
const (
	queueBytes      = 64 << 20 // Events that wait to be written.
	queueBatches    = 4096
	groupBytes      = 8 << 20 // Events of one commit.
	snapshotBlocks  = 4096    // At most so many blocks between two snapshots,
	snapshotBytes   = 64 << 20
	healInterval    = time.Second
	retainInterval  = time.Minute
	freeCheckPeriod = 50 * time.Millisecond
	reopenMin       = 50 * time.Millisecond
	reopenMax       = 30 * time.Second
	maxFailures     = 100 // What a database leaves behind when it fails is not much, but is never freed.
)

// Config of a Log.
type Config struct {
	Dir string // Made if it is absent.
	// Older records and records beyond the size are removed, oldest first. Zero:
	// no limit. The size is of what is on disk, and is kept within some
	// megabytes.
	RetentionAge   time.Duration
	RetentionBytes uint64
	// MinFree is how much room on the disk is left to others and to compaction:
	// with less, appending is refused. Zero: DefaultMinFree.
	MinFree       uint64
	MemTableBytes uint64 // Zero: DefaultMemTableBytes.
	Logger        hclog.Logger

	fs vfs.FS // Of tests. Nil: the disk.
}

// Log is a durable log. Open, Run, Close; Submit and Append wait for Run.
type Log struct {
	cfg   Config
	lock  io.Closer
	queue chan *pending
	room  *semaphore.Weighted // Bytes in the queue.
	done  chan struct{}       // Closed when Run ended.

	// reading is held by readers of the database, so that it is not closed
	// meanwhile. It is taken before mu.
	reading sync.RWMutex

	// mu guards what follows; the writer alone changes it.
	mu        sync.RWMutex
	db        *database // Nil: failed, and not opened again yet.
	positions *positions
	oldest    uint64 // Cursor of the oldest record. Zero: none.
	health    error  // Why appending does not work. Nil: it does.
	followers map[chan struct{}]struct{}

	// The writer's.
	blocks, bytes int // Since the last snapshot.
	freeChecked   time.Time
	failure       error // Of the database that is gone.
	failures      int   // Databases that failed, in all.
	reopenAt      time.Time
	pause         time.Duration
}

// Open opens or makes the log in a folder, which nobody else may have open.
func Open(cfg Config) (*Log, error) {
	if cfg.Dir == "" {
		return nil, errors.New("open event log: no folder given")
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = DefaultMinFree
	}
	if cfg.MemTableBytes == 0 {
		cfg.MemTableBytes = DefaultMemTableBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.fs == nil {
		cfg.fs = vfs.Default
	}
	if err := cfg.fs.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("open event log: make folder: %w", err)
	}
	lock, err := cfg.fs.Lock(filepath.Join(cfg.Dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("open event log %s: lock: %w", cfg.Dir, err)
	}
	l := &Log{cfg: cfg, lock: lock, queue: make(chan *pending, queueBatches), room: semaphore.NewWeighted(queueBytes),
		done: make(chan struct{}), followers: make(map[chan struct{}]struct{})}
	if err := l.open(); err != nil {
		lock.Close()
		return nil, err
	}
	return l, nil
}

// open opens the database and reads the positions.
func (l *Log) open() error {
	db, err := openDatabase(l.cfg)
	if err != nil {
		return fmt.Errorf("open event log %s: %w", l.cfg.Dir, err)
	}
	p, oldest, blocks, err := recoverPositions(db)
	if err != nil {
		_ = db.shut() // The error to tell is the first.
		return fmt.Errorf("open event log %s: read positions: %w", l.cfg.Dir, err)
	}
	l.mu.Lock()
	l.db, l.positions, l.oldest, l.health = db, p, oldest, nil
	l.wakeLocked()
	l.mu.Unlock()
	l.blocks, l.bytes = blocks, 0
	return nil
}

// recoverPositions reads back to the last snapshot, and the blocks since.
func recoverPositions(db *database) (p *positions, oldest uint64, blocks int, err error) {
	it, err := db.NewIter(nil)
	if err != nil {
		return nil, 0, 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	p = newPositions()
	valid := it.Last()
	for ; valid; valid = it.Prev() {
		_, kind, err := parseKey(it.Key())
		if err != nil {
			return nil, 0, 0, err
		}
		if kind == kindSnapshot {
			value, err := it.ValueAndErr()
			if err != nil {
				return nil, 0, 0, err
			}
			if p, err = decodePositions(value); err != nil {
				return nil, 0, 0, fmt.Errorf("snapshot %x: %w", it.Key(), err)
			}
			break
		}
	}
	if valid {
		valid = it.Next()
	} else {
		valid = it.First()
	}
	for ; valid; valid = it.Next() {
		cursor, _, err := parseKey(it.Key())
		if err != nil {
			return nil, 0, 0, err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, 0, 0, err
		}
		h, _, err := decodeHeader(value)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("block %d: %w", cursor, err)
		}
		p.apply(&h, cursor+h.count-1)
		blocks++
	}
	oldest, err = oldestBlock(it)
	return p, oldest, blocks, errors.Join(err, it.Error())
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

// Run writes until the context ends; then it writes what waits.
func (l *Log) Run(ctx context.Context) error {
	defer close(l.done)
	heal := time.NewTicker(healInterval)
	defer heal.Stop()
	retain := time.NewTicker(retainInterval)
	defer retain.Stop()
	l.retain(time.Now())
	for l.failures < maxFailures {
		select {
		case p := <-l.queue:
			l.write(l.gather(p))
		case <-heal.C:
			l.heal()
		case <-retain.C:
			l.retain(time.Now())
		case <-ctx.Done():
			l.drain()
			return ctx.Err()
		}
	}
	l.drain()
	return fmt.Errorf("event log %s: the database failed %d times; the last time: %w", l.cfg.Dir, l.failures, l.failure)
}

// drain writes what waits, or fails it.
func (l *Log) drain() {
	for {
		select {
		case p := <-l.queue:
			l.write(l.gather(p))
		default:
			return
		}
	}
}

// Close closes the log, after Run.
func (l *Log) Close() error {
	l.reading.Lock()
	defer l.reading.Unlock()
	l.mu.Lock()
	db := l.db
	l.db, l.health = nil, errClosed
	l.mu.Unlock()
	var err error
	if db != nil {
		err = db.shut()
	}
	return errors.Join(err, l.lock.Close())
}

var errClosed = errors.New("the event log is closed")

// Health is nil if appending works, as far as is known; otherwise why not.
func (l *Log) Health() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.health
}

// Stats returns the log's counts.
func (l *Log) Stats() Stats {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s := l.positions.stats()
	if s.Oldest = l.oldest; s.Oldest == 0 {
		s.Newest = 0
	}
	return s
}

// Range is the cursors of the oldest and the newest record. The oldest is
// zero if there are none; the newest is then that of the last there was.
func (l *Log) Range() (oldest, newest uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.oldest, l.positions.newest
}

// High is the highest sequence that is durable of a boot. Zero: none.
func (l *Log) High(node, boot string) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	high, _ := l.positions.high(node, boot)
	return high
}

// Follow returns a channel that has a token when there are new records. Stop
// gives it back.
func (l *Log) Follow() (wake <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	l.mu.Lock()
	l.followers[c] = struct{}{}
	l.mu.Unlock()
	return c, func() {
		l.mu.Lock()
		delete(l.followers, c)
		l.mu.Unlock()
	}
}

func (l *Log) wakeLocked() {
	for c := range l.followers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
