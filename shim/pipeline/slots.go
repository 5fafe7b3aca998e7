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
	// stride is how far from its neighbour a slot is put that continues a rank,
	// so that policies which come in the order of their priorities do not halve
	// one gap again and again.
	stride = 32
	// window is the least range of priorities that is spread anew.
	window = 64
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
	continues := func(j int, by *slot) bool {
		return j >= 0 && j < len(s.list) && s.list[j].level.at.Rank == by.level.at.Rank
	}
	switch after, before := continues(i-1, run[0]), continues(i, run[len(run)-1]); {
	case after && !before:
		below = max(below, above-stride*(len(run)+1))
	case before && !after:
		above = min(above, below+stride*(len(run)+1))
	}
	s.list = slices.Insert(s.list, i, run...)
	s.spread(s.list[i:i+len(run)], above, below)
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

// crowd is the least part of the list around a full gap that, spread anew with
// n more, is not as crowded as halfway from the whole range to none free.
func (s *slots) crowd(i, n int) (from, to, above, below int) {
	centre, _ := s.bounds(i, i)
	whole := float64(len(s.list)+n) / float64(s.size())
	for size := window; size < 2*s.size(); size *= 2 {
		top, bottom := min(s.high, centre+size/2), max(s.low, centre-size/2)
		from, _ = slices.BinarySearchFunc(s.list, top, byPriority)
		to, _ = slices.BinarySearchFunc(s.list, bottom-1, byPriority)
		if float64(to-from+n) <= float64(top-bottom+1)*(1+whole)/2 {
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
