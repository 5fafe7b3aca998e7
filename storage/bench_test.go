package storage

import (
	"fmt"
	"testing"
)

// wideScope is a store with one address group of 1,000 members, whose span is
// so many nodes, each in 100 further scopes.
func wideScope(b *testing.B, nodes int) (*Store, ScopeID) {
	b.Helper()
	s, id := New("e"), NewScopeID(ScopeAddressGroup, "wide")
	var changes []Change
	for i := range nodes {
		node := fmt.Sprint("node-", i)
		changes = append(changes, Change{Op: OpJoin, Scope: id, Kind: ScopeAddressGroup, Node: node})
		for k := range 100 {
			changes = append(changes, Change{Op: OpJoin, Scope: NewScopeID(ScopePolicies, fmt.Sprint((i+k)%500)), Kind: ScopePolicies, Node: node})
		}
	}
	for i := range 1000 {
		changes = append(changes, Change{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member(fmt.Sprint(i), i))})
	}
	s.Commit(changes, nil)
	s.Dispatch(1 << 30)
	return s, id
}

// flips are two versions of one item.
func flips() [2]Encoded { return [2]Encoded{Encode(member("0", 1)), Encode(member("0", 2))} }

// What one change of one item costs the store, by the span of its scope: the
// digest and the mark, without waking anybody.
func BenchmarkDigest(b *testing.B) {
	for _, span := range []int{1, 100, 5000} {
		b.Run(fmt.Sprint(span), func(b *testing.B) {
			s, id := wideScope(b, span)
			items := flips()
			changes := []Change{{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup}}
			before, _ := s.Revision()
			was := s.Node("node-0").Digest
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				changes[0].Item = items[i%2]
				s.Commit(changes, nil)
			}
			b.StopTimer()
			if after, _ := s.Revision(); after-before != uint64(b.N) {
				b.Fatalf("%d revisions for %d changes", after-before, b.N)
			}
			if b.N%2 == 1 && s.Node("node-0").Digest == was || len(s.pending) != 1 {
				b.Fatal("the digest is as it was, or the scope not marked")
			}
		})
	}
}

// What one change of one item costs until every subscriber has its cut.
func BenchmarkDispatch(b *testing.B) {
	for _, n := range []int{1, 1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, id := wideScope(b, n)
			subs := make([]*Subscriber, n)
			for i := range subs {
				subs[i] = s.Subscribe(fmt.Sprint("node-", i))
				subs[i].Next()
			}
			items := flips()
			changes := []Change{{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup}}
			cuts := 0
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				changes[0].Item = items[i%2]
				s.Commit(changes, nil)
				if marks, _ := s.Dispatch(n); marks != n {
					b.Fatalf("%d marks for %d subscribers", marks, n)
				}
				for _, sub := range subs {
					<-sub.Wake()
					if cut := sub.Next(); len(cut.Scopes) == 1 && len(cut.Scopes[0].Upserts) == 1 {
						cuts++
					}
				}
			}
			b.StopTimer()
			if cuts != n*b.N {
				b.Fatalf("%d cuts of one item, want %d", cuts, n*b.N)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/subscriber")
		})
	}
}
