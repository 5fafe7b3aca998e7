package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
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
	Dir  string      // Made if it is absent. Not for NATS.
	NATS *NATSConfig // The log is in a JetStream stream. Nil: in Dir.
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

// where names the log in errors.
func (c *Config) where() string {
	if c.NATS != nil {
		return fmt.Sprintf("%s in NATS", c.NATS.Stream)
	}
	return c.Dir
}

// Log is a durable log. Open, Run, Close; Submit and Append wait for Run.
type Log struct {
	cfg   Config
	store backend
	queue chan *pending
	room  *semaphore.Weighted // Bytes in the queue.
	done  chan struct{}       // Closed when Run ended.

	// mu guards what follows; the backend alone changes it, but for followers and
	// health.
	mu        sync.RWMutex
	positions *positions
	oldest    uint64   // Cursor of the oldest record. Zero: none.
	aside     []string // Databases that were damaged. At most a few.
	health    error    // Why appending does not work. Nil: it does.
	followers map[chan struct{}]struct{}
}

// Open opens or makes the log in a folder, which nobody else may have open, or in
// a stream of NATS, which other collectors may share.
func Open(cfg Config) (*Log, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	l := &Log{cfg: cfg, queue: make(chan *pending, queueBatches), room: semaphore.NewWeighted(queueBytes),
		done: make(chan struct{}), positions: newPositions(), followers: make(map[chan struct{}]struct{})}
	var err error
	if cfg.NATS != nil {
		l.store, err = openStream(l)
	} else {
		l.store, err = openLocal(l)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Run writes until the context ends; then it writes what waits.
func (l *Log) Run(ctx context.Context) error {
	defer close(l.done)
	heal := time.NewTicker(healInterval)
	defer heal.Stop()
	retain := time.NewTicker(retainInterval)
	defer retain.Stop()
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error { return l.store.run(inner) })
	begun := time.Now()
	clock := ageClock{age: l.cfg.RetentionAge}
	l.store.retain(clock.at(begun, 0))
	for l.store.ended() == nil {
		select {
		case p := <-l.queue:
			l.write(l.gather(p))
		case <-heal.C:
			l.heal()
		case <-retain.C:
			now := time.Now()
			l.store.retain(clock.at(now, now.Sub(begun)))
		case <-inner.Done():
			l.drain()
			return errors.Join(ctx.Err(), g.Wait())
		}
	}
	l.drain()
	return l.store.ended()
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
	l.mu.Lock()
	l.health = errClosed
	l.mu.Unlock()
	return l.store.close()
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

// Behind is how many records follow a cursor.
func (l *Log) Behind(cursor uint64) (uint64, error) {
	n, err := l.store.behind(cursor)
	if err != nil {
		return 0, fmt.Errorf("count what follows record %d in the event log: %w", cursor, err)
	}
	return n, nil
}

// timeSlack is how far blocks may stand out of the order in which they arrived:
// they are dated before they wait to be written.
const timeSlack = time.Minute

// AfterTime is a cursor behind which are all records that arrived at a time or
// later, and maybe some that arrived up to about a minute before it.
func (l *Log) AfterTime(t time.Time) (uint64, error) {
	cursor, err := l.store.afterTime(t.Add(-timeSlack))
	if err != nil {
		return 0, fmt.Errorf("find %s in the event log: %w", t.Format(time.RFC3339), err)
	}
	return cursor, nil
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
