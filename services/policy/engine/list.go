package engine

// element is what a list holds: a pointer to something that knows its hash.
// Equal keys have equal hashes; the hash of an element never changes.
type element interface {
	comparable
	sum() uint32
}

// list is a set of elements that carry their own keys. Most sets of the engine
// hold a handful, and there are hundreds of thousands of them, so a list is a
// slice as long as it is short, and gets an index beside the slice when it
// grows. Adding, finding and removing cost the same for every length.
type list[T element] struct {
	items []T
	// index is an open-addressed table of positions in items plus one; zero is
	// a free slot. Its length is a power of two. Nil while the list is short.
	index *[]uint32
}

// Up to this length a list is searched from end to end.
const shortList = 8

func (l *list[T]) len() int { return len(l.items) }

// find returns the element of a hash for which is holds.
func (l *list[T]) find(sum uint32, is func(T) bool) (found T, ok bool) {
	if i := l.position(sum, is); i >= 0 {
		return l.items[i], true
	}
	return found, false
}

func (l *list[T]) has(v T) bool { return l.positionOf(v) >= 0 }

func (l *list[T]) position(sum uint32, is func(T) bool) int {
	if l.index == nil {
		for i, v := range l.items {
			if is(v) {
				return i
			}
		}
		return -1
	}
	slots := *l.index
	for s := home(sum, slots); slots[s] != 0; s = (s + 1) & (len(slots) - 1) {
		if i := int(slots[s]) - 1; is(l.items[i]) {
			return i
		}
	}
	return -1
}

func (l *list[T]) positionOf(v T) int {
	if l.index == nil {
		for i := range l.items {
			if l.items[i] == v {
				return i
			}
		}
		return -1
	}
	slots := *l.index
	for s := home(v.sum(), slots); slots[s] != 0; s = (s + 1) & (len(slots) - 1) {
		if i := int(slots[s]) - 1; l.items[i] == v {
			return i
		}
	}
	return -1
}

// add puts in an element that is not there.
func (l *list[T]) add(v T) {
	l.items = append(l.items, v)
	n := len(l.items)
	switch {
	case l.index == nil && n <= shortList:
	case l.index == nil || n > len(*l.index)/4*3:
		l.reindex()
	default:
		l.place(v, n)
	}
}

// remove takes an element out, if it is there. The last takes its place.
func (l *list[T]) remove(v T) {
	i := l.positionOf(v)
	if i < 0 {
		return
	}
	last := len(l.items) - 1
	if l.index != nil {
		l.free(l.slot(v, i+1))
		if i != last {
			(*l.index)[l.slot(l.items[last], last+1)] = uint32(i + 1)
		}
	}
	var none T
	l.items[i] = l.items[last]
	l.items[last] = none
	l.items = l.items[:last]
	switch {
	case last == 0:
		*l = list[T]{}
	case last <= shortList/2:
		l.index = nil
	}
	if c := cap(l.items); c > 4*shortList && last < c/4 {
		l.items = append(make([]T, 0, c/2), l.items...)
		if l.index != nil {
			l.reindex()
		}
	}
}

func (l *list[T]) reindex() {
	size := 2 * shortList
	for size/2 <= len(l.items) {
		size *= 2
	}
	slots := make([]uint32, size)
	l.index = &slots
	for i, v := range l.items {
		l.place(v, i+1)
	}
}

func (l *list[T]) place(v T, position int) {
	slots := *l.index
	s := home(v.sum(), slots)
	for slots[s] != 0 {
		s = (s + 1) & (len(slots) - 1)
	}
	slots[s] = uint32(position)
}

// slot is where the index has a position, which is that of v.
func (l *list[T]) slot(v T, position int) int {
	slots := *l.index
	s := home(v.sum(), slots)
	for slots[s] != uint32(position) {
		s = (s + 1) & (len(slots) - 1)
	}
	return s
}

// free empties a slot, and moves up those behind it that would not be found
// past an empty slot.
func (l *list[T]) free(s int) {
	slots := *l.index
	mask := len(slots) - 1
	for next := (s + 1) & mask; slots[next] != 0; next = (next + 1) & mask {
		h := home(l.items[slots[next]-1].sum(), slots)
		if (next-h)&mask >= (next-s)&mask {
			slots[s] = slots[next]
			s = next
		}
	}
	slots[s] = 0
}

// home is the slot at which the search for a hash begins.
func home(sum uint32, slots []uint32) int { return int(sum) & (len(slots) - 1) }

// mix makes one hash of two.
func mix(a, b uint32) uint32 {
	h := uint64(a)<<32 | uint64(b)
	h *= 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	return uint32(h >> 32)
}
