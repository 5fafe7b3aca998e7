package packetlog

import (
	"maps"
	"sync"
	"time"
)

// Intake is where reports wait until they are made into events: that takes
// longer than they take to come, and the loop may be busy with a bundle. It
// gives out so many a second, in the order in which they came; what is over that
// goes, from the class of which most waits. So each class gets as much as it
// wants or its share of the rate, whichever is less. It is safe for concurrent
// use.
type Intake[T any] struct {
	rate, burst float64
	wake        chan struct{}

	mu     sync.Mutex // Guards what follows.
	queue  *fair[arrival[T]]
	level  float64   // Reports that may be taken at once, as of filled.
	filled time.Time // Zero: nothing was asked for yet.
	came   map[uint32]uint64
	lost   map[uint32]IntakeLoss
}

type arrival[T any] struct {
	at    time.Time
	value T
}

// IntakeLoss is what was lost of a class.
type IntakeLoss struct {
	OverRate uint64 // More came than may be recorded a second.
	Dropped  uint64 // There was no room, or it could not be read.
}

const (
	intakeMost = 8192 // Reports that wait at the most.
	// intakeWaits is how long reports may wait for their turn while more come than
	// the rate lets through: what they mean is known for a second and more.
	intakeWaits = time.Second / 8
	// intakeGathers is how long reports gather before anybody is woken: it costs more
	// to be woken for a report than to make an event of it.
	intakeGathers = 2 * time.Millisecond
)

// NewIntake returns an empty intake that gives out so many reports a second, and
// at once.
func NewIntake[T any](rate, burst uint32) *Intake[T] {
	return &Intake[T]{rate: float64(rate), burst: float64(burst), wake: make(chan struct{}, 1), queue: newFair[arrival[T]](),
		came: make(map[uint32]uint64), lost: make(map[uint32]IntakeLoss)}
}

// Put takes a report. It waits for nothing, and wakes who takes them soon.
func (i *Intake[T]) Put(now time.Time, class uint32, v T) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.queue.push(class, arrival[T]{now, v})
	if i.queue.n > intakeMost {
		from, _, _ := i.queue.shed()
		i.loseLocked(from, IntakeLoss{Dropped: 1})
	}
	// Last: what became of it stands in the other counters before it is counted.
	i.came[class]++
	switch i.queue.n {
	case 1:
		time.AfterFunc(intakeGathers, i.signal)
	case intakeMost / 8:
		i.signal()
	}
}

// Spoil counts a report that cannot be read.
func (i *Intake[T]) Spoil(class uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.loseLocked(class, IntakeLoss{Dropped: 1})
	i.came[class]++
}

func (i *Intake[T]) loseLocked(class uint32, by IntakeLoss) {
	l := i.lost[class]
	i.lost[class] = IntakeLoss{l.OverRate + by.OverRate, l.Dropped + by.Dropped}
}

// Wake has a token when there may be something to Take.
func (i *Intake[T]) Wake() <-chan struct{} { return i.wake }

func (i *Intake[T]) signal() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// Take takes up to n reports, as far as the rate allows, and lets go of those that
// would wait too long. Each says when it came.
func (i *Intake[T]) Take(now time.Time, n int, use func(at time.Time, v T)) {
	i.mu.Lock()
	i.fillLocked(now)
	n = max(0, min(n, int(i.level), i.queue.n))
	i.level -= float64(n)
	if i.level < 1 {
		for i.queue.n-n > max(1, int(i.rate*intakeWaits.Seconds())) {
			from, _, _ := i.queue.shed()
			i.loseLocked(from, IntakeLoss{OverRate: 1})
		}
	} else if i.queue.n > n {
		i.signal()
	}
	i.mu.Unlock()
	i.give(n, use)
}

func (i *Intake[T]) fillLocked(now time.Time) {
	if i.level = min(i.burst, i.level+now.Sub(i.filled).Seconds()*i.rate); i.filled.IsZero() {
		i.level = i.burst
	}
	i.filled = now
}

// TakeAll takes all that waits, and has the rate make up for it.
func (i *Intake[T]) TakeAll(now time.Time, use func(at time.Time, v T)) {
	i.mu.Lock()
	i.fillLocked(now)
	n := i.queue.n
	i.level -= float64(n)
	i.mu.Unlock()
	i.give(n, use)
}

// give takes reports that were paid for. It does not keep others from putting.
func (i *Intake[T]) give(n int, use func(at time.Time, v T)) {
	for range n {
		i.mu.Lock()
		_, a, ok := i.queue.pop()
		i.mu.Unlock()
		if !ok {
			return
		}
		use(a.at, a.value)
	}
}

// Came is how many reports came in all, by class.
func (i *Intake[T]) Came() map[uint32]uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.came)
}

// TakeLost is what was lost since it was called last, by class.
func (i *Intake[T]) TakeLost() map[uint32]IntakeLoss {
	i.mu.Lock()
	defer i.mu.Unlock()
	lost := i.lost
	i.lost = make(map[uint32]IntakeLoss)
	return lost
}
