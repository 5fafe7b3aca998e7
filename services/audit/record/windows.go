package record

import "math/bits"

// places is an open-addressed table of windows' numbers by hash: one word a
// place, probed in a line, so that a hit costs one cache line and a look at the
// window. Removal moves what follows back: there are no tombstones, and a table
// that was full is as good as new when it is empty.
type places struct {
	slots []place
	shift uint8 // Of hashes, for their home.
}

// place is a window's number, from one, and half of its hash. Zero: free.
type place struct {
	tag, number uint32
}

// newPlaces has room for so many, at most half full.
func newPlaces(most int) places {
	n := max(6, bits.Len(uint(2*most-1)))
	return places{slots: make([]place, 1<<n), shift: uint8(64 - n)}
}

func (t *places) home(hash uint64) uint32 { return uint32(hash >> t.shift) }

func (t *places) next(i uint32) uint32 { return (i + 1) & uint32(len(t.slots)-1) }

// find calls same for the windows with a hash until it is true.
func (t *places) find(hash uint64, same func(window int32) bool) (window int32, ok bool) {
	for i := t.home(hash); t.slots[i].number != 0; i = t.next(i) {
		if s := t.slots[i]; s.tag == uint32(hash) && same(int32(s.number-1)) {
			return int32(s.number - 1), true
		}
	}
	return none, false
}

func (t *places) add(hash uint64, window int32) {
	i := t.home(hash)
	for t.slots[i].number != 0 {
		i = t.next(i)
	}
	t.slots[i] = place{uint32(hash), uint32(window) + 1}
}

// remove takes a window out; hashOf tells the others' hashes.
func (t *places) remove(hash uint64, window int32, hashOf func(window int32) uint64) {
	i := t.home(hash)
	for t.slots[i].number != uint32(window)+1 {
		i = t.next(i)
	}
	mask := uint32(len(t.slots) - 1)
	for j := t.next(i); t.slots[j].number != 0; j = t.next(j) {
		// What is at j may go to i unless its home lies between them.
		if home := t.home(hashOf(int32(t.slots[j].number - 1))); (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = place{}
}
