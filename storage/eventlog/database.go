package eventlog

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/go-hclog"
)

// database is one opening of the Pebble database. Pebble takes a failed write
// of its write-ahead log or manifest for the end of the process; here it is
// the end of the database: it is fenced off from the disk and left, stuck
// goroutines and all, and another is opened in its place.
type database struct {
	*pebble.DB
	commits chan *pebble.Batch
	results chan error
	logger  hclog.Logger

	fenced atomic.Bool
	once   sync.Once
	dead   chan struct{} // Closed when the database failed; err is then set.
	err    error
}

const fencedReadDelay = 100 * time.Millisecond

var errFenced = errors.New("the database has failed and is closed to the disk")

// fencedFS is the disk as one database sees it. The folder's lock is the log's,
// which outlives its databases.
type fencedFS struct{ *errorfs.FS }

// Lock implements vfs.FS.
func (fencedFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

// openDatabase opens or makes the database in a folder whose lock is held.
func openDatabase(cfg Config, damaged chan<- keyBounds) (*database, error) {
	d := &database{commits: make(chan *pebble.Batch), results: make(chan error, 1), dead: make(chan struct{}), logger: cfg.Logger}
	fs := fencedFS{errorfs.Wrap(cfg.fs, errorfs.InjectorFunc(d.fence))}
	opts := &pebble.Options{
		FS:     fs,
		Logger: d,
		EventListener: &pebble.EventListener{BackgroundError: d.background, DataCorruption: func(info pebble.DataCorruptionInfo) {
			select {
			case damaged <- boundsOf(&info):
			default: // It is found again.
			}
		}},
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                cfg.MemTableBytes,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       8,
		L0StopWritesThreshold:       1000,
		LBaseMaxBytes:               512 << 20,
		CacheSize:                   8 << 20,
	}
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	for i := range opts.TargetFileSizes {
		opts.TargetFileSizes[i] = 32 << 20
	}
	opened := make(chan error, 1)
	go func() {
		var err error
		d.DB, err = pebble.Open(cfg.Dir, opts)
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			return nil, err
		}
	case <-d.dead:
		return nil, d.err
	}
	go d.commitLoop()
	return d, nil
}

// commitLoop is a goroutine of its own since Pebble never returns from a
// commit that fails.
func (d *database) commitLoop() {
	for b := range d.commits {
		d.results <- b.Commit(pebble.Sync)
	}
}

// commit makes a batch durable. After an error the database is of no use.
func (d *database) commit(b *pebble.Batch) error {
	d.commits <- b
	var err error
	select {
	case err = <-d.results:
	case <-d.dead:
		return d.err
	}
	if err != nil {
		d.fail(err)
		return err
	}
	return nil
}

// release lets go of a batch, unless the database failed: that may be writing it
// still, and never ends.
func (d *database) release(b *pebble.Batch) {
	if d.failed() == nil {
		_ = b.Close() // It only gives back memory.
	}
}

// fence comes before every operation on the disk. Pebble tries failed work again
// without end: of a database that was left, writing stops for good, and
// reading is slow to fail.
func (d *database) fence(op errorfs.Op) error {
	if !d.fenced.Load() {
		return nil
	}
	if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
		select {}
	}
	time.Sleep(fencedReadDelay)
	return errFenced
}

// fail ends the database. Failed flushes and compactions do it too.
func (d *database) fail(err error) {
	d.once.Do(func() {
		d.fenced.Store(true)
		d.err = err
		close(d.dead)
	})
}

// background takes the errors of flushes and compactions. A damaged table is
// mended while the database goes on.
func (d *database) background(err error) {
	if !pebble.IsCorruptionError(err) {
		d.fail(err)
	}
}

// flush writes what is in memory to tables.
func (d *database) flush() error {
	flushed := make(chan error, 1)
	go func() { flushed <- d.DB.Flush() }()
	select {
	case err := <-flushed:
		return err
	case <-d.dead:
		return d.err
	}
}

// failed is the error by which the database ended. Nil: it works.
func (d *database) failed() error {
	select {
	case <-d.dead:
		return d.err
	default:
		return nil
	}
}

// shut closes a database that works; one that failed is left alone.
func (d *database) shut() error {
	if d.failed() != nil {
		return nil
	}
	close(d.commits)
	closed := make(chan error, 1)
	go func() { closed <- d.DB.Close() }()
	select {
	case err := <-closed:
		return err
	case <-d.dead:
		return d.err
	}
}

// Infof implements pebble.Logger.
func (d *database) Infof(format string, args ...any) {
	if d.logger.IsTrace() {
		d.logger.Trace("pebble", "message", fmt.Sprintf(format, args...))
	}
}

// Errorf implements pebble.Logger.
func (d *database) Errorf(format string, args ...any) {
	if !d.fenced.Load() {
		d.logger.Error("pebble reports an error", "err", fmt.Sprintf(format, args...))
	}
}

// Fatalf implements pebble.Logger. Its callers, who may hold locks, rely on it
// not to return.
func (d *database) Fatalf(format string, args ...any) {
	d.fail(fmt.Errorf(format, args...))
	select {}
}
