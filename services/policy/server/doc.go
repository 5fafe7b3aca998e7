// Package server is the gRPC face of the policy service: the streams of the
// nodes, inspection, and what the replicas tell each other.
//
//	Subscribe:  hello ─► InSync, a repair, or a snapshot ─► cuts, as the store has them
//	            acks, nacks, stats ─► what ListNodes and ListPolicies say
//	List…:      asked at any replica, answered for all (elsewhere.go)
//	Watch…:     every object and then what changes, to those who name records by it (watch.go)
//	Await:      another replica's new Pods ─► those that our nodes know (barrier.go)
//
// Run drives the streams: it hands on what changed, in waves where it concerns
// many nodes (pace.go).
//
// One stream of a node is served at a time: a newer one replaces the older,
// which ends with ABORTED. A stream is one goroutine that sends and one that
// receives; between them stands the node's session, under its mutex. At most
// two cuts are unacknowledged on a stream, so that a slow node's changes gather
// in the store, where they coalesce, and not in a queue.
//
// A shim whose acknowledged digest is not the one that the cut carried is asked
// what it holds, and gets what differs. A malformed or unexpected message ends
// its own stream and nothing else. gRPC status codes are made here and nowhere
// else in the policy service.
//
// Read server_test.go first.
package server
