package pipeline

import (
	"cmp"
	"slices"
)

// slot is one OpenFlow priority of a level: a lane.
type slot struct {
	level    *level
	lane     int
	priority uint16
	parts    map[*part]struct{} // That have it.
}

// slots gives priorities to an ordered list, from high to low. It leaves gaps:
// most of what is inserted moves nothing. Where a gap is full, the slots around
// it are spread anew, the fewest that make room for as many again. There is
// always room: the ladder sees to it that there are no more slots than
// priorities.
type slots struct {
	low, high int // Both included.
	list      []*slot
	move      func(s *slot, to uint16)
}

const (
	// reserve is the part of a gap that a slot leaves on the far side where it
	// continues the rank of the near side alone: 63 of 64. So policies that come
	// in the order of their priorities do not halve one gap again and again.
	reserve = 64
	// window is the least range of priorities that is spread anew, and easing
	// how much emptier a range of twice the size must be to be taken.
	window = 16
	easing = 1.3
)

func (s *slots) size() int { return s.high - s.low + 1 }

func compareSlots(a, b *slot) int {
	return cmp.Or(compareLevels(a.level, b.level), cmp.Compare(a.lane, b.lane))
}

// remove takes a level's slots out.
func (s *slots) remove(lv *level) {
	if len(lv.lanes) == 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(s.list, lv.lanes[0], compareSlots)
	s.list = slices.Delete(s.list, i, i+len(lv.lanes))
	lv.lanes = nil
}

// insert brings slots in, those that fall into one gap together.
func (s *slots) insert(fresh []*slot) {
	slices.SortFunc(fresh, compareSlots)
	for len(fresh) > 0 {
		i, _ := slices.BinarySearchFunc(s.list, fresh[0], compareSlots)
		n := len(fresh)
		if i < len(s.list) {
			n, _ = slices.BinarySearchFunc(fresh, s.list[i], compareSlots)
		}
		s.insertRun(i, fresh[:n])
		fresh = fresh[n:]
	}
}

// insertRun brings a run in before the i-th slot.
func (s *slots) insertRun(i int, run []*slot) {
	above, below := s.bounds(i, i)
	if above-below-1 < len(run) {
		from, to, top, bottom := s.crowd(i, len(run))
		s.list = slices.Insert(s.list, i, run...)
		s.spread(s.list[from:to+len(run)], top, bottom)
		return
	}
	above, below = s.within(i, run, above, below)
	s.list = slices.Insert(s.list, i, run...)
	s.spread(s.list[i:i+len(run)], above, below)
}

// within is the part of a gap, before the i-th slot, that a run should take.
// Inside a rank a policy stands as far between its neighbours as its priority
// does; beside one, it leaves most of the gap to those that follow.
func (s *slots) within(i int, run []*slot, above, below int) (top, bottom int) {
	first, last := run[0].level.at, run[len(run)-1].level.at
	after := i > 0 && s.list[i-1].level.at.Rank == first.Rank
	before := i < len(s.list) && s.list[i].level.at.Rank == last.Rank
	stride := max(1, (above-below)/reserve)
	switch half := len(run) + 1; {
	case after && before && first.Priority == last.Priority:
		from, to := s.list[i-1].level.at.Priority, s.list[i].level.at.Priority
		part := 0.5
		if to > from {
			part = min(max((first.Priority-from)/(to-from), 1./8), 7./8)
		}
		centre := above - int(part*float64(above-below))
		above = min(above, max(centre+half, below+2*half))
		below = max(below, above-2*half)
	case after && !before:
		below = max(below, above-stride*half)
	case before && !after:
		above = min(above, below+stride*half)
	}
	return above, below
}

// bounds are the priorities next to a part of the list, which are taken or just
// out of range.
func (s *slots) bounds(from, to int) (above, below int) {
	above, below = s.high+1, s.low-1
	if from > 0 {
		above = int(s.list[from-1].priority)
	}
	if to < len(s.list) {
		below = int(s.list[to].priority)
	}
	return above, below
}

// crowd is the least part of the list around a full gap that may be spread anew
// with n more. The larger the part, the less it may be crowded, down to as much
// as the whole range is: so what is moved together with much is not moved soon
// again.
func (s *slots) crowd(i, n int) (from, to, above, below int) {
	centre, _ := s.bounds(i, i)
	whole := float64(len(s.list)+n) / float64(s.size())
	for size, least := window, 1.0; size < 2*s.size(); size, least = size*2, least/easing {
		top, bottom := min(s.high, centre+size/2), max(s.low, centre-size/2)
		from, _ = slices.BinarySearchFunc(s.list, top, byPriority)
		to, _ = slices.BinarySearchFunc(s.list, bottom-1, byPriority)
		if float64(to-from+n) <= float64(top-bottom+1)*(whole+(1-whole)*least/easing) {
			return from, to, top + 1, bottom - 1
		}
	}
	return 0, len(s.list), s.high + 1, s.low - 1
}

// byPriority finds the first slot that is not above a priority.
func byPriority(s *slot, priority int) int { return cmp.Compare(priority, int(s.priority)) }

// spread gives a part of the list even places between two priorities.
func (s *slots) spread(part []*slot, above, below int) {
	for i, at := range part {
		to := uint16(above - (i+1)*(above-below)/(len(part)+1))
		if at.priority != to {
			s.move(at, to)
			at.priority = to
		}
	}
}
