// Package server is the gRPC face of the policy service: the streams of the
// nodes, and inspection.
//
//	Subscribe:  hello ─► InSync, or a snapshot ─► cuts, as the store has them
//	            acks, nacks, stats ─► what ListNodes and ListPolicies say
//
// One stream of a node is served at a time: a newer one replaces the older,
// which ends with ABORTED. A stream is one goroutine that sends and one that
// receives; between them stands the node's session, under its mutex. At most
// two cuts are unacknowledged on a stream, so that a slow node's changes gather
// in the store, where they coalesce, and not in a queue.
//
// A shim whose acknowledged digest is not the one that the cut carried gets a
// snapshot. A malformed or unexpected message ends its own stream and nothing
// else. gRPC status codes are made here and nowhere else in the policy service.
//
// Read server_test.go first.
package server
