package engine

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// entry is an element whose hash is as bad as the test likes.
type entry struct {
	id   int
	hash uint32
}

func (e *entry) sum() uint32 { return e.hash }

// A list is a set, whatever its hashes are worth: it holds what a map holds
// after the same steps, through every growing and shrinking.
func TestListIsASet(t *testing.T) {
	for _, hashes := range []uint32{1, 3, 16, 1 << 20} {
		rng := rand.New(rand.NewPCG(1, uint64(hashes)))
		var all []*entry
		for id := range 200 {
			all = append(all, &entry{id: id, hash: rng.Uint32N(hashes)})
		}
		var l list[*entry]
		held := map[*entry]bool{}
		// The list grows and shrinks between these sizes, over and over,
		// and most often around the size at which it gets its index.
		for round := range 400 {
			target := rng.IntN(2 * shortList)
			if round%10 == 0 {
				target = rng.IntN(len(all) / 2)
			}
			for len(held) != target {
				e := all[rng.IntN(len(all))]
				switch {
				case rng.IntN(8) == 0: // A removal of what is not there does nothing.
					l.remove(e)
					delete(held, e)
				case held[e] && len(held) > target:
					l.remove(e)
					delete(held, e)
				case !held[e] && len(held) < target:
					l.add(e)
					held[e] = true
				}
			}
			if l.len() != len(held) {
				t.Fatalf("%d hashes, round %d: the list has %d elements, want %d", hashes, round, l.len(), len(held))
			}
			for _, e := range all {
				if l.has(e) != held[e] {
					t.Fatalf("%d hashes, round %d: has(%d) is %t", hashes, round, e.id, l.has(e))
				}
				if found, ok := l.find(e.hash, func(o *entry) bool { return o.id == e.id }); ok != held[e] || ok && found != e {
					t.Fatalf("%d hashes, round %d: find(%d) gives %v, %t", hashes, round, e.id, found, ok)
				}
				if held[e] != slices.Contains(l.items, e) {
					t.Fatalf("%d hashes, round %d: items hold %d: %t", hashes, round, e.id, !held[e])
				}
			}
		}
	}
}
