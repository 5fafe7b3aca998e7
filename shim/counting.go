package shim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/counters"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage/atomicfile"
)

// Files of the accounts in the state folder. The journal has what was learned
// since the accounts were written. It is not synced: when the machine itself
// fails, the flows are gone that it is about.
const (
	countersName = "counters"
	journalName  = "counters.learned"
)

var countersFormat = atomicfile.Format{Magic: "WEIRCNTR", Version: counters.Version}

// counting keeps the accounts of what rules matched, and their files. It is safe
// for concurrent use.
type counting struct {
	dir    string
	logger hclog.Logger
	now    func() counters.Stamp
	host   *hostCounts // What is told beside the books. Nil: nothing is.

	writing sync.Mutex // One reading at a time is entered; taken before the others.
	mu      sync.Mutex // Guards books and serial; taken before learnedMu.
	books   *counters.Books
	serial  uint64 // Readings entered, or overtaken.
	unsaved bool   // The books differ from their file. Guarded by writing.

	learnedMu sync.Mutex // Guards what follows.
	known     map[uint32][]pipeline.Subject
	learned   []counters.Learned // And not in the books yet.
	journal   *os.File           // Nil: it cannot be written.
	failing   bool
}

// openCounting reads the accounts in a folder, or begins new ones, where there
// are none or they cannot be read.
func openCounting(dir, node string, logger hclog.Logger) *counting {
	c := &counting{dir: dir, logger: logger, now: clock()}
	c.books = c.load(node)
	if err := c.openJournal(); err != nil {
		logger.Error("a shim that ends now may lose counts of new rules", "err", err)
	}
	c.known = c.books.Known()
	return c
}

// openJournal takes over what the journal has that the accounts have not, and
// goes on from its end.
func (c *counting) openJournal() error {
	f, err := os.OpenFile(filepath.Join(c.dir, journalName), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	content, err := io.ReadAll(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	list, length := counters.ReadLearned(content)
	for _, l := range list {
		c.books.Learn(l)
	}
	if err := f.Truncate(int64(length)); err != nil {
		return errors.Join(err, f.Close())
	}
	c.journal = f
	return nil
}

func (c *counting) load(node string) *counters.Books {
	path := filepath.Join(c.dir, countersName)
	content, err := atomicfile.Read(path, countersFormat)
	if err == nil {
		books, err := counters.Decode(content, node)
		if err == nil {
			return books
		}
		c.logger.Warn("the accounts of what rules matched cannot be used; they begin with what flows have counted", "err", err)
	} else if errors.Is(err, fs.ErrNotExist) {
		return counters.New(node, c.now().Wall)
	} else {
		c.logger.Warn("the accounts of what rules matched cannot be read; they begin with what flows have counted", "err", err)
	}
	now := c.now().Wall
	books := counters.New(node, now)
	if info, err := os.Stat(path); err == nil { // What was lost is what the last reading there had, and what no flow has.
		books.Uncounted(info.ModTime(), now)
	}
	return books
}

// clock is the present moment by the clocks of a machine.
func clock() func() counters.Stamp {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = nil // All flows are then taken for the same machine's.
	}
	return func() counters.Stamp {
		var up unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
			panic("shim: no monotonic clock: " + err.Error())
		}
		return counters.Stamp{Wall: time.Now(), Up: time.Duration(up.Nano()), Boot: string(boot)}
	}
}

// learn takes over what the flows of an id count for, before there is one.
func (c *counting) learn(id uint32, subjects []pipeline.Subject) {
	c.learnedMu.Lock()
	defer c.learnedMu.Unlock()
	if known, is := c.known[id]; is && slices.Equal(known, subjects) {
		return
	}
	l := counters.Learned{ID: id, Subjects: subjects}
	c.known[id] = subjects
	c.learned = append(c.learned, l)
	if c.journal == nil {
		return
	}
	_, err := c.journal.Write(counters.AppendLearned(nil, l))
	if err != nil && !c.failing {
		c.logger.Error("a shim that ends now may lose counts of new rules", "err", err)
	}
	c.failing = err != nil
}

// subjects are those that the flows of an id count for, as was learned.
func (c *counting) subjects(id uint32) []pipeline.Subject {
	c.learnedMu.Lock()
	defer c.learnedMu.Unlock()
	return c.known[id]
}

// entered is how many readings there were, for one that begins now.
func (c *counting) entered() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.serial
}

// overtake has a reading that is under way come to nothing, and returns how many
// there were, for one that begins now.
func (c *counting) overtake() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	return c.serial
}

// errOvertaken says that a reading is older than another that was entered.
var errOvertaken = errors.New("another reading was entered meanwhile")

// enter takes a reading that was begun after so many were entered, and returns
// once what it changed is on disk. One of a part of the flows has no effect on
// the others.
func (c *counting) enter(serial uint64, r counters.Reading, part bool) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	if c.serial != serial {
		c.mu.Unlock()
		return errOvertaken
	}
	c.serial++
	c.learnedMu.Lock()
	took := len(c.learned)
	for _, l := range c.learned {
		c.books.Learn(l)
	}
	c.learned = nil
	c.learnedMu.Unlock()
	lost := c.books.Totals().Lost
	changed := false
	if part {
		changed = c.books.TakePart(r)
	} else {
		changed = c.books.Take(r)
	}
	if now := c.books.Totals(); now.Lost > lost {
		c.logger.Warn("what matched may not have been counted for a while", "for", now.Lost-lost, "why", now.Why)
	}
	c.learnedMu.Lock()
	c.forgetUnknownLocked()
	c.learnedMu.Unlock()
	c.unsaved = c.unsaved || changed || took > 0
	var content []byte
	if c.unsaved {
		content = c.books.Encode()
	}
	c.mu.Unlock()
	if content == nil {
		return nil
	}
	if err := atomicfile.Write(filepath.Join(c.dir, countersName), countersFormat, content); err != nil {
		return fmt.Errorf("store what rules matched: %w", err)
	}
	c.unsaved = false
	c.learnedMu.Lock()
	defer c.learnedMu.Unlock()
	if len(c.learned) == 0 && c.journal != nil { // Else it has what the books have not.
		if err := c.journal.Truncate(0); err != nil {
			return fmt.Errorf("store what rules matched: %w", err)
		}
	}
	return nil
}

// keep forgets ids that have had no flow for long and are not wanted.
func (c *counting) keep(wanted map[uint32]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learnedMu.Lock()
	defer c.learnedMu.Unlock()
	c.books.Keep(func(id uint32) bool { return wanted[id] }, c.now())
	c.forgetUnknownLocked()
}

// forgetUnknownLocked forgets ids that the books do not know, and will not with
// the next reading: both mutexes are held.
func (c *counting) forgetUnknownLocked() {
	pending := make(map[uint32]bool, len(c.learned))
	for _, l := range c.learned {
		pending[l.ID] = true
	}
	for id := range c.known {
		if !pending[id] && !c.books.Knows(id) {
			delete(c.known, id)
		}
	}
}

// quietFor is after how long without a packet the flows of an id that is in force
// no more, though connections carry it, are taken out.
const quietFor = 10 * time.Minute

// counts says whether connections carry an id, and its flows have counted lately.
func (c *counting) counts(id uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	quiet, carried, known := c.books.Quiet(id, c.now())
	return known && carried && quiet < quietFor
}

// lost states that what matched since then may not have been counted.
func (c *counting) lost(since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.books.Uncounted(since, c.now().Wall)
}

// next is an id above all that the accounts ever knew.
func (c *counting) next() uint32 {
	c.mu.Lock()
	next := c.books.Highest() + 1
	c.mu.Unlock()
	c.learnedMu.Lock()
	defer c.learnedMu.Unlock()
	for id := range c.known {
		next = max(next, id+1)
	}
	return next
}

// totals are what is known of the accounts as a whole.
func (c *counting) totals() counters.Totals {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.books.Totals()
}

// reportedRules is how many counters a message tells of: some 300 KB.
const reportedRules = 2000

// report tells the service of what changed after a reading, in messages of which
// the first has the rest of what is reported, and says which reading it told of.
func (c *counting) report(after uint64, stats func() *policyv1.NodeStats) ([]*policyv1.NodeStats, uint64) {
	c.mu.Lock()
	lines, totals := c.books.Changed(after), c.books.Totals()
	c.mu.Unlock()
	if c.host != nil && totals.Reading > after {
		lines = append(lines, c.host.changedAfter(after, totals.Reading)...)
	}
	if len(lines) == 0 && after != 0 || totals.Last.IsZero() {
		return []*policyv1.NodeStats{stats()}, after
	}
	var out []*policyv1.NodeStats
	for more := true; more; {
		n := min(len(lines), reportedRules)
		m := stats()
		for _, line := range lines[:n] {
			m.Rules = append(m.Rules, ruleCounter(line))
		}
		lines = lines[n:]
		more = len(lines) > 0
		m.More, m.Reading, m.CountedSinceMs, m.UncountedMs = more, totals.Reading, totals.Began.UnixMilli(), uint64(totals.Lost.Milliseconds())
		for _, i := range totals.Uncounted {
			m.Uncounted = append(m.Uncounted, &policyv1.Interval{FromMs: i.From.UnixMilli(), ToMs: i.To.UnixMilli()})
		}
		out = append(out, m)
	}
	return out, totals.Reading
}

func ruleCounter(line counters.Line) *policyv1.RuleCounter {
	s, t := line.Subject, line.Tally
	return &policyv1.RuleCounter{Policy: &policyv1.PolicyRef{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name}, Uid: s.UID, Direction: s.Direction,
		Rule: s.Rule, Index: s.Index, Isolation: s.Isolation, Sessions: t.Sessions, Packets: t.Packets, Bytes: t.Bytes}
}
