// Package storage is the versioned, scoped store between the engine and the
// streams: what each node must hold, and what changed since it was last told.
//
//	engine ── Commit([]Change) ──► Store ── Subscriber.Next() ──► Cut ──► stream
//	                                                                       │
//	                                            Replica ◄── Apply(Cut) ◄───┘ (in the shim)
//
// State is a set of scopes; a scope is a set of items and a set of nodes, and
// every node of a scope holds all of its items. An item's key and bytes are
// content: two stores that were given the same state hold the same scopes,
// items and digests, whatever order they were given it in.
//
// A change moves its entry to the end of its scope's list, which is ordered by
// the revision of the last change. What a subscriber has not seen is therefore
// the tail of the lists of its dirty scopes: a set of dirty keys, shared by all
// subscribers, marked in O(1) for any span. Memory is bounded by the state: a
// subscriber that never reads costs nothing, and a key that changes a thousand
// times in between is sent once. A removed entry stays in the list as a
// tombstone until there are more of them than live items; a subscriber from
// before a dropped tombstone gets that scope afresh.
//
// Cut and Next give consistent cuts: everything that one Commit changed is in
// the same cut. Nothing here reads a clock or does I/O. A Store is safe for
// concurrent use; one goroutine commits. Broken invariants panic.
//
// Read model_test.go first: it holds a Store and its Replicas to a naive model.
package storage
