package storage

import (
	"fmt"
	"math/bits"

	"github.com/zeebo/xxh3"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Where a node's digest is not what it must be, the two ends find out what
// differs instead of sending everything:
//
//	service                                 shim
//	InventoryRequest{}            ──►
//	                              ◄──  Inventory{every scope: id, digest}
//	InventoryRequest{large scopes ──►
//	 that differ: id, buckets}
//	                              ◄──  Inventory{these scopes: id, digest, sums of the buckets}
//	Cut{what differs}             ──►
//
// An item's bucket comes from its key, a bucket's sum from its items' hashes.
// The digests and sums are cut to 64 bits: the digest of the cut, of 128 bits,
// tells in the end whether the repair was complete.

// maxBuckets bounds what a shim is asked for of one scope, wholeItems is up to
// how many items a scope that differs is sent whole, and bucketItems is how many
// items a bucket holds on average.
const (
	maxBuckets  = 1 << 16
	wholeItems  = 32
	bucketItems = 8
)

func bucketOf(key string, buckets int) int {
	return int(xxh3.HashString(key) & uint64(buckets-1))
}

// Inventory is what a replica holds, in short.
type Inventory map[ScopeID]*held

type held struct {
	digest  uint64
	buckets []uint64 // Nil: not asked for.
}

// Add takes in a message of the other end. It fails on what was not asked for
// or is malformed; first says that it answers a request for every scope.
func (inv Inventory) Add(m *policyv1.Inventory, asked *policyv1.InventoryRequest) error {
	want := make(map[ScopeID]int, len(asked.GetScopes()))
	for _, r := range asked.GetScopes() {
		id, _ := ScopeIDFromBytes(r.GetId())
		want[id] = int(r.GetBuckets())
	}
	every := len(want) == 0
	for i, s := range m.GetScopes() {
		id, ok := ScopeIDFromBytes(s.GetId())
		if !ok {
			return fmt.Errorf("inventory.scopes[%d].id has %d bytes, not 16", i, len(s.GetId()))
		}
		n, asked := want[id]
		switch {
		case !every && !asked:
			return fmt.Errorf("inventory.scopes[%d]: scope %s was not asked for", i, id)
		case len(s.GetBuckets()) != n:
			return fmt.Errorf("inventory.scopes[%d].buckets: %d sums, not %d", i, len(s.GetBuckets()), n)
		case every && inv[id] != nil:
			return fmt.Errorf("inventory.scopes[%d]: scope %s a second time", i, id)
		}
		inv[id] = &held{digest: s.GetDigest(), buckets: s.GetBuckets()}
		delete(want, id)
	}
	if !every && len(want) > 0 {
		return fmt.Errorf("inventory: %d scopes that were asked for are missing", len(want))
	}
	return nil
}

// Compare says which scopes of the node differ, are too large to be sent whole,
// and have told no buckets yet; nil for none. So each scope is asked for once,
// whatever is committed meanwhile.
func (sub *Subscriber) Compare(inv Inventory) *policyv1.InventoryRequest {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	var req *policyv1.InventoryRequest
	for _, sc := range sub.node.scopes {
		h := inv[sc.id]
		n := int(sc.entries.live.len)
		if h == nil || h.digest == sc.digest.lo || n <= wholeItems || len(h.buckets) > 0 {
			continue
		}
		if req == nil {
			req = &policyv1.InventoryRequest{}
		}
		buckets := min(1<<bits.Len(uint(n/bucketItems)), maxBuckets)
		req.Scopes = append(req.Scopes, &policyv1.ScopeBuckets{Id: sc.id[:], Buckets: uint32(buckets)})
	}
	return req
}

// Repair is the cut that turns what the inventory tells of into what the node
// must hold. Next goes on from there.
func (sub *Subscriber) Repair(inv Inventory) *Cut {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	sub.begun = false // The other end is told everything anew.
	cut := sub.cutLocked()
	cut.Digest = sub.node.digestLocked()
	known := make(map[ScopeID]struct{}, len(sub.node.scopes))
	for _, sc := range sub.node.scopes {
		known[sc.id] = struct{}{}
		h := inv[sc.id]
		switch {
		case h == nil:
			cut.Scopes = append(cut.Scopes, sc.whole())
		case h.digest == sc.digest.lo:
		case len(h.buckets) == 0:
			cut.Scopes = append(cut.Scopes, sc.whole())
		default:
			cut.Scopes = append(cut.Scopes, sc.differing(h.buckets))
		}
	}
	for id := range inv {
		if _, ok := known[id]; !ok {
			cut.Scopes = append(cut.Scopes, ScopeChange{ID: id, Gone: true})
		}
	}
	sub.tellLocked(cut.Digest)
	return cut
}

// differing is the scope's items in the buckets whose sums are not the given.
func (s *scope) differing(sums []uint64) ScopeChange {
	own := make([]uint64, len(sums))
	s.entries.each(func(e *entry) { own[bucketOf(e.key, len(own))] += e.hash.lo })
	c := ScopeChange{ID: s.id, Kind: s.kind, Buckets: &BucketReset{Of: len(sums)}}
	for i := range own {
		if own[i] != sums[i] {
			c.Buckets.Numbers = append(c.Buckets.Numbers, i)
		}
	}
	s.entries.each(func(e *entry) {
		if i := bucketOf(e.key, len(own)); own[i] != sums[i] {
			c.Upserts = append(c.Upserts, e.body)
		}
	})
	return c
}

// Inventory answers a request of the service.
func (r *Replica) Inventory(req *policyv1.InventoryRequest) (*policyv1.Inventory, error) {
	m := &policyv1.Inventory{}
	if len(req.GetScopes()) == 0 {
		for id, sc := range r.scopes {
			m.Scopes = append(m.Scopes, &policyv1.ScopeInventory{Id: id.slice(), Digest: sc.sum.lo})
		}
		return m, nil
	}
	for _, asked := range req.GetScopes() {
		id, ok := ScopeIDFromBytes(asked.GetId())
		n := asked.GetBuckets()
		if !ok || n == 0 || n > maxBuckets || n&(n-1) != 0 {
			return nil, fmt.Errorf("inventory request for scope %x in %d buckets", asked.GetId(), n)
		}
		sc := r.scopes[id]
		if sc == nil {
			return nil, fmt.Errorf("inventory request for scope %s, which is not held", id)
		}
		sums := make([]uint64, n)
		for key, item := range sc.items {
			sums[bucketOf(key, len(sums))] += itemHash(id, string(item)).lo
		}
		m.Scopes = append(m.Scopes, &policyv1.ScopeInventory{Id: id.slice(), Digest: sc.sum.lo, Buckets: sums})
	}
	return m, nil
}

func (id ScopeID) slice() []byte { return id[:] }
