package storage

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// A store of many nodes and items, with their indexes, holds what a map holds
// through every coming and going; spans and items are far more than what is
// searched from end to end, and numbers of nodes are used again.
func TestIndexes(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	s := New("epoch")
	ids := [3]ScopeID{}
	for i := range ids {
		ids[i] = NewScopeID(ScopeAddressGroup, fmt.Sprint(i))
	}
	type in struct{ scope, n int }
	joined, items := map[in]bool{}, map[in]bool{}
	flip := func(of map[in]bool, k in) bool { of[k] = !of[k]; return of[k] }
	for step := range 40000 {
		k := in{rng.IntN(len(ids)), rng.IntN(120)}
		c := Change{Scope: ids[k.scope], Kind: ScopeAddressGroup}
		// Waves, so that all grow and shrink to almost nothing.
		few := step/5000%2 == 1
		if rng.IntN(2) == 0 {
			if few && !joined[k] && rng.IntN(10) > 0 {
				continue
			}
			c.Op, c.Node = OpLeave, fmt.Sprint("node-", k.n)
			if flip(joined, k) {
				c.Op = OpJoin
			}
		} else {
			if few && !items[k] && rng.IntN(10) > 0 {
				continue
			}
			c.Op, c.Item = OpRemove, Encode(member(fmt.Sprint(k.n), 1))
			if flip(items, k) {
				c.Op = OpUpsert
			}
		}
		s.Commit([]Change{c}, nil)
		if step%500 != 499 {
			continue
		}
		for i, id := range ids {
			span := s.Span(id)
			for n := range 120 {
				node, item := fmt.Sprint("node-", n), Encode(member(fmt.Sprint(n), 1))
				if _, has := span[node]; has != joined[in{i, n}] {
					t.Fatalf("step %d: %s in span %d is %t", step, node, i, has)
				}
				if has := s.ItemRevision(id, item.Key) > 0; has != items[in{i, n}] {
					t.Fatalf("step %d: %s in scope %d is %t", step, item.Key, i, has)
				}
			}
		}
	}
	want := map[string]Digest{}
	for k, is := range joined {
		if is {
			node := fmt.Sprint("node-", k.n)
			want[node] = want[node].Plus(s.scopes[ids[k.scope]].digest)
		}
	}
	for n := range 120 {
		node := fmt.Sprint("node-", n)
		if got := s.Node(node).Digest; got != want[node] {
			t.Fatalf("%s: digest %v, want %v", node, got, want[node])
		}
	}
	if len(s.numbered) > 120 {
		t.Fatalf("%d numbers for 120 nodes", len(s.numbered))
	}
}
