package eventlog

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
	"github.com/cockroachdb/pebble/v2/wal"
)

// Folders of a rescue, in the log's. Each is renamed to the next when what it is
// for is done, so that a crash at any point is gone on from.
const (
	rescueMaking  = "rescue"         // Another database, in the making.
	rescueMade    = "rescue.made"    // It is whole; the damaged one is to be set aside.
	rescuePlacing = "rescue.placing" // It is to take its place.
	asidePrefix   = "damaged-"       // Then when it was set aside.
)

const rescueBatch = 4 << 20 // Bytes of a commit.

// openOrRescue opens the database. Where its manifest is damaged nobody knows which
// tables it has: another is then made of all that there are, and of the write-ahead
// logs.
func (l *local) openOrRescue() (*database, error) {
	if err := l.finishRescue(); err != nil {
		return nil, fmt.Errorf("finish what makes up for a damaged database: %w", err)
	}
	if err := l.findAside(); err != nil {
		return nil, err
	}
	damage := checkManifest(l.cfg.fs, l.cfg.Dir)
	if damage == nil {
		db, err := openDatabase(l.cfg, l.damaged)
		if err == nil || !pebble.IsCorruptionError(err) && !wrongNames(err) {
			return db, err
		}
		damage = err
	}
	l.cfg.Logger.Error("the database of the event log is damaged; another is made of what can be read of it", "dir", l.cfg.Dir, "err", damage)
	if err := l.rescue(); err != nil {
		return nil, fmt.Errorf("%w; make another database of what can be read: %w", damage, err)
	}
	if err := l.findAside(); err != nil {
		return nil, err
	}
	return openDatabase(l.cfg, l.damaged)
}

// wrongNames says of an error of opening that an OPTIONS file names another order of
// keys than all databases of ours have: it is damaged.
func wrongNames(err error) bool { return strings.Contains(err.Error(), "name from file") }

// checkManifest reads the manifest. Pebble takes damage for its end, and what the
// rest says it has for garbage.
func checkManifest(fs vfs.FS, dir string) error {
	name, err := atomicfs.ReadMarker(fs, dir, "manifest")
	if err != nil || name == "" {
		return err // There is none yet.
	}
	f, err := fs.Open(fs.PathJoin(dir, name))
	if err != nil {
		return fmt.Errorf("open the manifest: %w", err)
	}
	defer func() { _ = f.Close() }()
	block := make([]byte, 32<<10) // No chunk crosses its end.
	for {
		n, err := io.ReadFull(f, block)
		if n == 0 && err == io.EOF {
			return nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if !wholeChunks(block[:n], err != nil) {
			return fmt.Errorf("read %s: a checksum does not hold", name)
		}
	}
}

// chunkHeader is a checksum, a length and a type.
const chunkHeader = 4 + 2 + 1

// wholeChunks says whether the checksums of a block of a manifest hold, but for a
// last one that was not written to its end, as on a full disk: what was not synced
// has had no consequences.
func wholeChunks(b []byte, last bool) bool {
	for len(b) >= chunkHeader {
		length := int(binary.LittleEndian.Uint16(b[4:]))
		if !chunkHolds(b, length) {
			if len(bytes.TrimLeft(b, "\x00")) == 0 {
				return true
			}
			if !last || chunkHeader+length <= len(b) {
				return false
			}
			for bit := range 16 { // It is whole, if it is its length that is damaged.
				if chunkHolds(b, length^1<<bit) {
					return false
				}
			}
			return true
		}
		b = b[chunkHeader+length:]
	}
	return true
}

// chunkHolds says whether a chunk of a length is whole.
func chunkHolds(b []byte, length int) bool {
	if chunkHeader+length > len(b) {
		return false
	}
	c := crc32.Checksum(b[6:chunkHeader+length], crc32.MakeTable(crc32.Castagnoli))
	return binary.LittleEndian.Uint32(b) == (c>>15|c<<17)+0xa282ead8 // Masked, as Pebble does it.
}

// rescue makes another database of what can be read of a damaged one, and puts it in
// its place. What is missing between the records that are there is stated.
func (l *local) rescue() error {
	fs := l.cfg.fs
	names, size, err := databaseFiles(fs, l.cfg.Dir)
	if err != nil {
		return err
	}
	usage, err := fs.GetDiskUsage(l.cfg.Dir)
	if err != nil {
		return err
	}
	if need := size + l.cfg.MinFree; usage.AvailBytes < need {
		return fmt.Errorf("%d MiB must be free for it, and %d are: make room and start again", need>>20+1, usage.AvailBytes>>20)
	}
	cfg := l.cfg
	cfg.Dir = fs.PathJoin(l.cfg.Dir, rescueMaking)
	if err := errors.Join(fs.RemoveAll(cfg.Dir), fs.MkdirAll(cfg.Dir, 0o750)); err != nil {
		return err
	}
	db, err := openDatabase(cfg, nil)
	if err != nil {
		return err
	}
	w := &rescuer{fs: fs, dir: l.cfg.Dir, db: db, batch: db.NewBatch()}
	if err := w.run(names, l.cfg.RetentionAge == 0 && l.cfg.RetentionBytes == 0); err != nil {
		return errors.Join(err, db.shut())
	}
	if err := errors.Join(db.flush(), db.shut()); err != nil {
		return err
	}
	if err := l.renamed(rescueMaking, rescueMade); err != nil {
		return err
	}
	l.cfg.Logger.Error("another database is made; what could not be read is stated as lost, and the rest is kept", "count", w.lost, "blocks_kept", w.kept, "unreadable", w.unreadable)
	return l.finishRescue()
}

// renamed renames something in the log's folder, durably.
func (l *local) renamed(from, to string) error {
	fs := l.cfg.fs
	if err := fs.Rename(fs.PathJoin(l.cfg.Dir, from), fs.PathJoin(l.cfg.Dir, to)); err != nil {
		return err
	}
	return syncDir(fs, l.cfg.Dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// finishRescue does what is left to do of a rescue whose database is made.
func (l *local) finishRescue() error {
	fs, dir := l.cfg.fs, l.cfg.Dir
	if _, err := fs.Stat(fs.PathJoin(dir, rescueMade)); err == nil {
		aside := fs.PathJoin(dir, asidePrefix+time.Now().UTC().Format("2006-01-02T15-04-05"))
		if err := moveDatabase(fs, dir, aside); err != nil {
			return err
		}
		if err := l.renamed(rescueMade, rescuePlacing); err != nil {
			return err
		}
	}
	placing := fs.PathJoin(dir, rescuePlacing)
	if _, err := fs.Stat(placing); err == nil {
		if err := moveDatabase(fs, placing, dir); err != nil {
			return err
		}
		return fs.RemoveAll(placing)
	}
	return nil
}

// moveDatabase moves the files of a database into another folder.
func moveDatabase(fs vfs.FS, from, to string) error {
	names, _, err := databaseFiles(fs, from)
	if err != nil {
		return err
	}
	if err := fs.MkdirAll(to, 0o750); err != nil {
		return err
	}
	for _, name := range names {
		if err := fs.Rename(fs.PathJoin(from, name), fs.PathJoin(to, name)); err != nil {
			return err
		}
	}
	return errors.Join(syncDir(fs, to), syncDir(fs, from))
}

// databaseFiles are the names of a database's files, ascending, and their size.
func databaseFiles(fs vfs.FS, dir string) (names []string, size uint64, err error) {
	all, err := fs.List(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, name := range all {
		ext := filepath.Ext(name)
		if ext != ".sst" && ext != ".log" && !strings.HasPrefix(name, "MANIFEST-") && !strings.HasPrefix(name, "OPTIONS-") && !strings.HasPrefix(name, "marker.") {
			continue
		}
		info, err := fs.Stat(fs.PathJoin(dir, name))
		if err != nil {
			return nil, 0, err
		}
		names, size = append(names, name), size+uint64(info.Size())
	}
	slices.Sort(names)
	return names, size, nil
}

// SetAside are the folders of databases that were damaged, and have been set aside
// for another, as far as they are still there.
func (l *Log) SetAside() []string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var there []string
	for _, dir := range l.aside {
		if _, err := os.Stat(dir); err == nil {
			there = append(there, dir)
		}
	}
	return there
}

// findAside looks for what was set aside, in this life or another.
func (l *local) findAside() error {
	names, err := l.cfg.fs.List(l.cfg.Dir)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aside = nil
	for _, name := range names {
		if strings.HasPrefix(name, asidePrefix) {
			l.aside = append(l.aside, filepath.Join(l.cfg.Dir, name))
		}
	}
	return nil
}

// rescuer copies what it can read of a damaged database into another.
type rescuer struct {
	fs         vfs.FS
	dir        string
	db         *database // The other.
	batch      *pebble.Batch
	floor      []byte // What is below was removed for its age or size.
	kept       int    // Blocks.
	lost       uint64
	unreadable []string // Files of which not all could be read.
}

func (w *rescuer) run(names []string, all bool) error {
	for _, collect := range []bool{false, true} { // First what was removed.
		for _, name := range names {
			if filepath.Ext(name) != ".sst" || name == repairFile {
				continue
			}
			if err := w.table(name, collect); err != nil {
				return fmt.Errorf("copy %s: %w", name, err)
			}
		}
		if err := w.writeAheadLogs(collect); err != nil {
			return err
		}
	}
	if err := w.commit(); err != nil {
		return err
	}
	next := uint64(0)
	if w.floor != nil {
		cursor, _, err := parseKey(w.floor)
		if err != nil {
			return err
		}
		next = cursor + 1
	} else if all { // Nothing is ever removed.
		next = 1
	}
	return w.stateHoles(next)
}

// bad notes a file of which not all can be read.
func (w *rescuer) bad(name string) {
	if !slices.Contains(w.unreadable, name) {
		w.unreadable = append(w.unreadable, name)
	}
}

// removed takes in that everything below a key was removed.
func (w *rescuer) removed(end []byte) {
	if len(end) == keyLen && string(end) > string(w.floor) {
		w.floor = slices.Clone(end)
	}
}

// table reads a table: what it says was removed, or its blocks.
func (w *rescuer) table(name string, collect bool) error {
	f, err := w.fs.Open(w.fs.PathJoin(w.dir, name))
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	opts := &pebble.Options{}
	opts.EnsureDefaults()
	r, err := sstable.NewReader(context.Background(), readable, opts.MakeReaderOptions())
	if err != nil { // Its end is damaged, and that tells where the rest is.
		w.bad(name)
		return nil
	}
	defer func() { _ = r.Close() }()
	if !collect {
		return w.rangesOf(r, name)
	}
	it, err := r.NewIter(sstable.NoTransforms, nil, nil, sstable.AssertNoBlobHandles)
	if err != nil {
		w.bad(name)
		return nil
	}
	defer func() { _ = it.Close() }() // It tells the damage again.
	for kv, from := it.First(), uint64(0); ; {
		if kv == nil {
			if it.Error() == nil {
				return nil
			}
			w.bad(name)
			kv = it.SeekGE(key(behindDamage(it, from), kindBlock), 0)
			if kv == nil {
				return nil
			}
		}
		cursor, _, err := parseKey(kv.K.UserKey)
		if err != nil {
			return err
		}
		from = cursor
		if value, _, err := kv.Value(nil); err != nil {
			w.bad(name)
		} else if kv.K.Kind() == pebble.InternalKeyKindSet || kv.K.Kind() == pebble.InternalKeyKindSetWithDelete {
			if err := w.put(kv.K.UserKey, value); err != nil {
				return err
			}
		}
		kv = it.Next()
	}
}

// behindDamage is the first cursor behind another from which on a table can be read,
// as far as steps that grow by the way find it.
func behindDamage(it sstable.Iterator, from uint64) uint64 {
	readable := func(cursor uint64) bool { return it.SeekGE(key(cursor, kindBlock), 0) != nil || it.Error() == nil }
	const most = 1 << 40
	for c := from; c-from < most; {
		step := max(1, (c-from)/4)
		if c += step; readable(c) {
			// That, or one before it within the last step.
			n := sort.Search(int(step)-1, func(i int) bool { return readable(c - step + 1 + uint64(i)) })
			return c - step + 1 + uint64(n)
		}
	}
	return from + most
}

// rangesOf reads what a table says was removed.
func (w *rescuer) rangesOf(r *sstable.Reader, name string) error {
	it, err := r.NewRawRangeDelIter(context.Background(), sstable.NoFragmentTransforms, sstable.NoReadEnv)
	if err != nil {
		w.bad(name)
		return nil
	}
	if it == nil {
		return nil
	}
	defer it.Close()
	span, err := it.First()
	for ; span != nil && err == nil; span, err = it.Next() {
		w.removed(span.End)
	}
	if err != nil {
		w.bad(name)
	}
	return nil
}

// writeAheadLogs reads what was not in a table yet, or still is here too.
func (w *rescuer) writeAheadLogs(collect bool) error {
	logs, err := wal.Scan(wal.Dir{FS: w.fs, Dirname: w.dir})
	if err != nil {
		return err
	}
	for _, log := range logs {
		if err := w.writeAheadLog(log, collect); err != nil {
			return err
		}
	}
	return nil
}

func (w *rescuer) writeAheadLog(log wal.LogicalLog, collect bool) error {
	r := log.OpenForRead()
	defer func() { _ = r.Close() }()
	for {
		rec, _, err := r.NextRecord()
		if err != nil {
			return nil // The end, be it torn: what comes behind was not synced.
		}
		repr, err := io.ReadAll(rec)
		if err != nil {
			return err
		}
		for b := batchrepr.Read(repr); ; {
			kind, k, value, ok, err := b.Next()
			if err != nil {
				return fmt.Errorf("read write-ahead log %s: %w", log.Num, err)
			}
			if !ok {
				break
			}
			switch {
			case kind == pebble.InternalKeyKindRangeDelete && !collect:
				w.removed(value)
			case kind == pebble.InternalKeyKindSet && collect:
				if err := w.put(k, value); err != nil {
					return err
				}
			}
		}
	}
}

// put copies a block or a snapshot, unless it had been removed.
func (w *rescuer) put(k, value []byte) error {
	if string(k) < string(w.floor) {
		return nil
	}
	if err := w.batch.Set(k, value, nil); err != nil {
		return err
	}
	if w.batch.Len() < rescueBatch {
		return nil
	}
	return w.commit()
}

func (w *rescuer) commit() error {
	if w.batch.Empty() {
		return nil
	}
	if err := w.db.commit(w.batch); err != nil {
		return err
	}
	w.db.release(w.batch)
	w.batch = w.db.NewBatch()
	return nil
}

// stateHoles states what is missing between the blocks that are there, the first of
// which should be at a cursor. Zero: that is not known.
func (w *rescuer) stateHoles(next uint64) (err error) {
	it, err := w.db.NewIter(nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	var holes []hole
	var before time.Time
	state := func(end uint64, to time.Time) error {
		h, body := damage(end-next, cmp.Or(before, to), to)
		holes = append(holes, hole{next, end - next})
		w.lost += end - next
		return w.put(key(next, kindBlock), body(h.append(nil)))
	}
	for valid := it.First(); valid; valid = it.Next() {
		cursor, kind, err := parseKey(it.Key())
		if err != nil {
			return err
		}
		if kind == kindSnapshot {
			if next > 0 && cursor >= next {
				if err := state(cursor+1, before); err != nil {
					return err
				}
			}
			next = max(next, cursor+1)
			continue
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		var h header
		if _, err := h.decode(value); err != nil {
			return fmt.Errorf("block %d: %w", cursor, err)
		}
		switch {
		case cursor < next: // It is stated as damaged, and so it has been told to readers.
			if err := w.batch.Delete(it.Key(), nil); err != nil {
				return err
			}
			continue
		case cursor > next && next > 0:
			if err := state(cursor, h.received); err != nil {
				return err
			}
		}
		next, before = cursor+h.cursors(), h.received
		w.kept++
	}
	if err := errors.Join(it.Error(), w.commit()); err != nil {
		return err
	}
	return w.count(holes)
}

// count puts what was stated into the positions.
func (w *rescuer) count(holes []hole) error {
	p, snapshot, _, _, err := recoverPositions(w.db)
	if err != nil {
		return err
	}
	for _, h := range holes {
		if h.first <= snapshot { // Those behind it are counted.
			p.node("").lose(h.count)
		}
	}
	if err := w.batch.Set(key(p.newest, kindSnapshot), p.append(nil), nil); err != nil {
		return err
	}
	return w.commit()
}
