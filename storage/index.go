package storage

// index finds positions in a list by hash. It is an open-addressed table of
// positions plus one, of four bytes each, and holds neither keys nor hashes:
// the list that it belongs to knows them. A list that is short has none.
type index struct {
	slots []uint32 // Zero is free. Their number is a power of two.
	used  int
}

// scanned is up to how many entries a list is searched from end to end.
const scanned = 8

// home is where the search for a hash begins.
func (x *index) home(hash uint32) int { return int(hash) & (len(x.slots) - 1) }

func (x *index) next(s int) int { return (s + 1) & (len(x.slots) - 1) }

// find is the position of a hash for which is holds; -1 for none.
func (x *index) find(hash uint32, is func(position int32) bool) int32 {
	for s := x.home(hash); x.slots[s] != 0; s = x.next(s) {
		if p := int32(x.slots[s] - 1); is(p) {
			return p
		}
	}
	return -1
}

// add puts in a position that is not there. It asks for the hashes of the
// others when the table grows.
func (x *index) add(hash uint32, position int32, hashOf func(int32) uint32) {
	if x.used >= len(x.slots)/4*3 {
		old := x.slots
		x.slots = make([]uint32, max(2*len(old), 2*scanned))
		for _, p := range old {
			if p != 0 {
				x.place(hashOf(int32(p-1)), int32(p-1))
			}
		}
	}
	x.place(hash, position)
	x.used++
}

func (x *index) place(hash uint32, position int32) {
	s := x.home(hash)
	for x.slots[s] != 0 {
		s = x.next(s)
	}
	x.slots[s] = uint32(position + 1)
}

// slot is where a position that is there stands.
func (x *index) slot(hash uint32, position int32) int {
	s := x.home(hash)
	for x.slots[s] != uint32(position+1) {
		if x.slots[s] == 0 {
			panic("storage: a position is not in its index")
		}
		s = x.next(s)
	}
	return s
}

// remove takes a position out, and moves up those behind it that would not be
// found past a free slot.
func (x *index) remove(hash uint32, position int32, hashOf func(int32) uint32) {
	mask := len(x.slots) - 1
	free := x.slot(hash, position)
	for s := x.next(free); x.slots[s] != 0; s = x.next(s) {
		h := x.home(hashOf(int32(x.slots[s] - 1)))
		if (s-h)&mask >= (s-free)&mask {
			x.slots[free] = x.slots[s]
			free = s
		}
	}
	x.slots[free] = 0
	x.used--
}

// move says that what was at a position is at another now.
func (x *index) move(hash uint32, from, to int32) { x.slots[x.slot(hash, from)] = uint32(to + 1) }
