// Package churn lets a whole cluster change without rest, with everything
// around it failing, and compares what comes of it in the end.
//
//	cluster ─► changes ─┬─► record ─► watch ─► policy.Service ─┐
//	 (seed)             │        └──► watch ─► policy.Service ─┤ network (TCP, disturbed)
//	                    │                                      ├─► shim.Shim ─► bridge.Fake
//	                    └─► ports of the bridges ··············┴─► shim.Shim ─► bridge.Fake …
//
// Real are: two replicas of the policy service, each from its composition root
// down; every shim, with client, loop, pipeline and checkpoint; gRPC over TCP.
// Stand-ins are the Fake bridge, and the record in place of an API server. A
// folder of manifests would not do: it is read when it has rested for 50 ms,
// and with 200 changes a second it never does. Of a record each replica reads
// at its own pace, kinds overtake and stall, and waiting changes are coalesced,
// as with informers; a replica that starts lists what there is.
//
// Meanwhile connections are cut, truncated in the middle of what is written or
// read, or not read from for seconds; shims are started anew, from their
// checkpoints; one replica at a time is stopped, gracefully or not, and another
// life with another epoch begins in its place. A stop is that of the service, not
// of a process: nothing of it stays, and connections are severed as by a death.
//
// After a quarter of the changes and after all of them everything is healed.
// Then every replica, every shim and a fresh service that is given the final
// objects alone must come to say the same digest of every node, and every shim
// must have acknowledged it. In the end the shims are stopped, and what bridges
// hold is compared with what a fresh compiler makes of the fresh service's
// state, flow by flow. No state may have had to be repaired for its digest, no
// flow mended, no call refused for what it said. Heap and goroutines must be
// flat between the two rests.
//
// The changes depend on the seed alone. When they meet what, does not.
//
// Read churn_test.go first.
package churn
