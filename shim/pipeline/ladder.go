package pipeline

import (
	"fmt"
	"maps"
	"slices"
)

// ladder orders the precedences that the rules of one table have, its levels,
// and gives them OpenFlow priorities. These are sparse, so that a level that
// comes between two others moves neither: see slots.
type ladder struct {
	slots  slots
	limit  int // Levels that may have priorities; what the range has beyond it is for lanes.
	levels map[precedence]*level
	// changed are the levels that rules came to or left since the last settle.
	changed map[*level]struct{}
	beyond  int // Levels that are past the limit.
}

// level is one precedence and the rules that have it.
type level struct {
	at     precedence
	rules  map[*rule]struct{}
	lanes  []*slot            // In order. Empty: not settled yet, or past the limit.
	beyond bool               // Past the limit: its rules have no flows.
	bodies map[*body]struct{} // Of its rules, that guard something.
	weight weight             // Of its bodies.
	direct bool               // The form of their flows: see form.go.
}

// newLadder makes one for the priorities from low to high. What is called with
// each slot whose priority changes while it is in use is move.
func newLadder(low, high uint16, limit int, move func(s *slot, to uint16)) *ladder {
	return &ladder{slots: slots{low: int(low), high: int(high), move: move}, limit: limit,
		levels: make(map[precedence]*level), changed: make(map[*level]struct{})}
}

// enter brings a rule to its level; settle places a level that is new.
func (l *ladder) enter(r *rule) {
	r.level = l.at(r.at)
	r.level.rules[r] = struct{}{}
	l.changed[r.level] = struct{}{}
}

// exit undoes enter. A level that is left empty keeps its priorities until
// settle, for the rule's successor.
func (l *ladder) exit(r *rule) {
	delete(r.level.rules, r)
	l.changed[r.level] = struct{}{}
}

func (l *ladder) at(at precedence) *level {
	lv := l.levels[at]
	if lv == nil {
		lv = &level{at: at, rules: make(map[*rule]struct{}), bodies: make(map[*body]struct{}), direct: true}
		l.levels[at] = lv
	}
	return lv
}

// settle drops the levels that have no rules and places the new ones. Where
// there are more than the limit, the last in order have no place: fell are
// those that lost theirs, and rose those that have one again. The rules of
// what fell must give up their flows before place is called.
func (l *ladder) settle() (fell, rose []*level) {
	for lv := range l.changed {
		if len(lv.rules) == 0 {
			l.slots.remove(lv)
			delete(l.levels, lv.at)
			if lv.beyond {
				l.beyond--
			}
		}
	}
	if len(l.levels) <= l.limit && l.beyond == 0 {
		return nil, nil
	}
	all := slices.SortedFunc(maps.Values(l.levels), compareLevels)
	l.beyond = max(0, len(all)-l.limit)
	for i, lv := range all {
		switch beyond := i >= l.limit; {
		case beyond && !lv.beyond:
			fell = append(fell, lv)
		case !beyond && lv.beyond:
			rose = append(rose, lv)
			l.changed[lv] = struct{}{}
		}
		lv.beyond = i >= l.limit
	}
	return fell, rose
}

// place gives priorities to the levels that have none and may have one.
func (l *ladder) place(fell []*level) {
	for _, lv := range fell {
		l.slots.remove(lv)
	}
	var fresh []*slot
	for lv := range l.changed {
		if len(lv.rules) > 0 && len(lv.lanes) == 0 && !lv.beyond {
			fresh = append(fresh, lv.newLane())
		}
	}
	clear(l.changed)
	l.slots.insert(fresh)
}

// lane is a lane of a level; it is made where it is the next. It is nil where
// there can be none: what is kept for levels is not given to lanes.
func (l *ladder) lane(lv *level, n int) *slot {
	switch {
	case n < len(lv.lanes):
		return lv.lanes[n]
	case n >= lanesMax || len(l.slots.list)-(len(l.levels)-l.beyond) >= l.slots.size()-l.limit:
		return nil
	}
	s := lv.newLane()
	l.slots.insert([]*slot{s})
	return s
}

func (lv *level) newLane() *slot {
	s := &slot{level: lv, lane: len(lv.lanes), parts: make(map[*part]struct{})}
	lv.lanes = append(lv.lanes, s)
	return s
}

func compareLevels(a, b *level) int { return a.at.compare(b.at) }

// fits says whether the ladder could take rules that come for those that go,
// and if not, which precedences would be past the limit.
func (l *ladder) fits(come, gone map[precedence]int) (past map[precedence]struct{}) {
	n := len(l.levels)
	stays := func(at precedence) bool {
		held := 0
		if lv := l.levels[at]; lv != nil {
			held = len(lv.rules)
		}
		return held-gone[at]+come[at] > 0
	}
	for at := range come {
		if l.levels[at] == nil {
			n++
		}
	}
	for at := range gone {
		if !stays(at) {
			n--
		}
	}
	if n <= l.limit {
		return nil
	}
	var all []precedence
	for at := range l.levels {
		if stays(at) {
			all = append(all, at)
		}
	}
	for at := range come {
		if l.levels[at] == nil {
			all = append(all, at)
		}
	}
	slices.SortFunc(all, precedence.compare)
	past = make(map[precedence]struct{})
	for _, at := range all[min(l.limit, len(all)):] {
		past[at] = struct{}{}
	}
	return past
}

// LevelPlace is one level's part of an Assignment.
type LevelPlace struct {
	At         precedence `json:"at"`
	Priorities []uint16   `json:"priorities"` // By lane.
}

// save are the places of all levels, in order.
func (l *ladder) save() []LevelPlace {
	var out []LevelPlace
	for _, s := range l.slots.list {
		if s.lane == 0 {
			out = append(out, LevelPlace{At: s.level.at})
		}
		p := &out[len(out)-1]
		p.Priorities = append(p.Priorities, s.priority)
	}
	return out
}

// restore takes up what save gave, as levels whose rules are still to come.
// Those that do not come are dropped by the next settle.
func (l *ladder) restore(places []LevelPlace) {
	for _, p := range places {
		lv := l.at(p.At)
		l.changed[lv] = struct{}{}
		for _, priority := range p.Priorities {
			s := lv.newLane()
			s.priority = priority
			l.slots.list = append(l.slots.list, s)
		}
	}
}

// check refuses places that restore could not take up.
func (l *ladder) check(places []LevelPlace) error {
	last, n := l.slots.high+1, 0
	for i, p := range places {
		if i > 0 && places[i-1].At.compare(p.At) >= 0 {
			return fmt.Errorf("level %v after %v", p.At, places[i-1].At)
		}
		if err := p.At.check(); err != nil {
			return err
		}
		if len(p.Priorities) == 0 || len(p.Priorities) > lanesMax {
			return fmt.Errorf("level %v with %d lanes", p.At, len(p.Priorities))
		}
		for _, priority := range p.Priorities {
			if n++; int(priority) >= last || int(priority) < l.slots.low {
				return fmt.Errorf("level %v with priority %d after %d", p.At, priority, last)
			}
			last = int(priority)
		}
	}
	if len(places) > l.limit || n-len(places) > l.slots.size()-l.limit {
		return fmt.Errorf("%d levels with %d priorities", len(places), n)
	}
	return nil
}
