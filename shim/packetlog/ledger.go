package packetlog

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/weirnet/weir/storage/faultpoint"
)

// Ledger is what became of the reports of each class, where the next life of the
// shim finds it. A class is a meter of the bridge: what it has counted less what
// the ledger accounts for is what died with the shim, and the next life states it.
//
//	account = base + the shares of all events that the collector has
//
// A share is written before its event is sent. Which of those of a former life
// arrived only the collector knows; until it has said so the ledger is not settled,
// nothing is sent, and no account is known.
//
// The file is not synced: what it is about is lost with the machine. It is
// appended to, and written anew where it gets long. One that cannot be written is
// removed, so that the next life knows that it knows nothing. It is safe for
// concurrent use.
type Ledger struct {
	path, machine string
	logger        hclog.Logger
	since         time.Time // When a former life read meters last. Zero: there is nothing of one.
	elsewhere     bool      // The file is of another start of the machine.
	settled       chan struct{}

	mu      sync.Mutex // Guards what follows.
	file    *os.File   // Nil: it cannot be written.
	size    int
	read    time.Time // When meters were read last, by whichever life.
	failing bool
	boot    string // Whose numbers acked and tail have. Empty: nobody's yet.
	acked   uint64
	tail    [][]share // Of the events from acked+1 on.
	classes map[uint32]*Account
	former  map[uint32]Account  // As settled.
	life    map[uint32]*Account // What of this life has arrived, in all.
}

// Account is what is accounted for of what a meter has counted.
type Account struct {
	Born      time.Duration // The meter, by the machine's monotonic clock. Negative: gone with the machine.
	Base      int64         // Reports on record or stated as lost, but for OverRate.
	OverRate  int64         // Reports that the meter held back, and that are stated.
	Discarded bool          // It was about to be taken out, and everything was stated; the rest is of what came in its place.
}

// share is what an event says of a class.
type share struct {
	class    uint32
	overRate bool // The meter held them back.
	count    uint64
}

func (a *Account) add(s share) {
	if s.overRate {
		a.OverRate += int64(s.count)
	} else {
		a.Base += int64(s.count)
	}
}

func addShare(to map[uint32]*Account, s share) {
	a := to[s.class]
	if a == nil {
		a = new(Account)
		to[s.class] = a
	}
	a.add(s)
}

// ledgerMost is how long the file gets before it is written anew.
const ledgerMost = 1 << 20

// BornSlack is by how much two births of one meter may be apart, as they are read.
const BornSlack = time.Second

// SameMeter says whether two times of birth are one meter's.
func SameMeter(a, b time.Duration) bool { return max(a, b)-min(a, b) < BornSlack && a >= 0 && b >= 0 }

// NewLedger returns a ledger of a file. The machine is named by what it gets anew
// with each start.
func NewLedger(path, machine string, logger hclog.Logger) *Ledger {
	return &Ledger{path: path, machine: machine, logger: logger, settled: make(chan struct{}), classes: make(map[uint32]*Account), life: make(map[uint32]*Account)}
}

// Open reads what a former life left. Nobody else may have the file.
func (l *Ledger) Open() {
	l.mu.Lock()
	defer l.mu.Unlock()
	info, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = l.load()
	}
	if err != nil {
		l.boot, l.acked, l.tail, l.classes, l.read = "", 0, nil, make(map[uint32]*Account), time.Time{}
		l.logger.Warn("what a former shim had recorded cannot be read: how much was lost with it is not known", "file", l.path, "err", err)
		return
	}
	if l.since = l.read; l.since.IsZero() {
		l.since = info.ModTime()
	}
}

// Since is when a former life read meters last, or where it never did, when it wrote.
// Zero: nothing is left of one.
func (l *Ledger) Since() time.Time { return l.since }

// Settled says whether it is known what the collector has of a former life.
func (l *Ledger) Settled() bool {
	select {
	case <-l.settled:
		return true
	default:
		return false
	}
}

// Formers are the accounts when this life began, by class. They are not changed.
func (l *Ledger) Formers() map[uint32]Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.former
}

// nothingSent says whether no former life sent anything that it had no answer to.
func (l *Ledger) nothingSent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.tail) == 0
}

// formerBoot is under which boot a former life reported.
func (l *Ledger) formerBoot() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.boot
}

// settle begins this life: what a former one sent up to a number has arrived, and
// nothing else of it will.
func (l *Ledger) settle(high uint64, boot string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ackLocked(high)
	l.boot, l.acked, l.tail, l.life = boot, 0, nil, make(map[uint32]*Account)
	l.former = make(map[uint32]Account, len(l.classes))
	for id, a := range l.classes {
		l.former[id] = *a
	}
	l.rewriteLocked()
	close(l.settled)
}

// Begin opens the account of a meter that is there now, in the place of what there
// was of its number. It counts from the base on all that this life records.
func (l *Ledger) Begin(id uint32, a Account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if arrived := l.life[id]; arrived != nil {
		a.Base += arrived.Base
		a.OverRate += arrived.OverRate
	}
	l.classes[id] = &a
	l.putLocked(l.appendAccount(nil, id, a))
}

// Read notes that meters are read.
func (l *Ledger) Read(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read = at
	l.putLocked(appendRead(nil, at))
}

// Awaits says whether an event of a class was sent and has not arrived yet.
func (l *Ledger) Awaits(id uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.tail, func(shares []share) bool {
		return slices.ContainsFunc(shares, func(s share) bool { return s.class == id })
	})
}

// Discard notes that meters are about to be taken out. What an account gets from then
// on is of another meter of that number.
func (l *Ledger) Discard(ids []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b []byte
	for _, id := range ids {
		if c := l.classes[id]; c != nil {
			*c = Account{Born: c.Born, Discarded: true}
			b = l.appendAccount(b, id, *c)
		}
	}
	l.putLocked(b)
}

// send notes events that are about to be sent for the first time.
func (l *Ledger) send(events []logged) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lists := make([][]share, len(events))
	for i := range events {
		lists[i] = events[i].shares
	}
	l.tail = append(l.tail, lists...)
	l.putLocked(l.appendShares(nil, lists))
	faultpoint.Reach("shim.log.journaled")
}

// ack notes that events have arrived.
func (l *Ledger) ack(high uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ackLocked(high)
}

func (l *Ledger) ackLocked(high uint64) {
	for ; l.acked < high && len(l.tail) > 0; l.acked++ {
		for _, s := range l.tail[0] {
			addShare(l.classes, s)
			addShare(l.life, s)
		}
		l.tail = l.tail[1:]
	}
}
