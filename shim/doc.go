// Package shim is the node agent: it holds the wiring and the one event loop,
// and takes no policy decision of its own.
//
//	client ── cut ──────┐
//	bridge ── ports ────┼─► loop ─► pipeline.Compiler ─► bridge.Apply (one bundle)
//	       ── reconnect ┤      │
//	       ── packet-in ┘      ├─► packetlog ══► collector
//	                           └─► checkpoint, counters
//
// Packets that Reject rules drop are answered apart from it (answer.go).
//
// The loop's goroutine owns the compiler and the knowledge of the bridge. It
// starts from the checkpoint, if there is one; it reads the bridge back and
// changes only what differs. Flows that it finds and does not know are left
// alone until it has a complete state: from the checkpoint or from the stream.
// After that the bridge holds what the compiler wants and nothing else: it is
// read back at intervals, and after every reconnect to the switch, and what
// differs is mended and counted.
//
// What rules matched is read at intervals and kept on disk (readings.go,
// counting.go, package counters).
//
// Beside the loop a shim serves NodeService on its node (node.go), by which the
// CNI plugin waits for a port to open, and, where told to, makes the node's Pod
// network and configures the container runtime (pods.go, package podnet).
//
// Policies for the node itself, and for ports of its own addresses, go into the
// host's firewall (hostpolicies.go, hostplan.go, hostrecords.go, hostcounts.go,
// packages hostpolicy, hostfw and nflog).
//
// When the policy service is away, the collector is away, or the shim itself
// ends, what is in force stays. An error of the bridge refuses the cut with
// that error; the loop tries again until the bridge holds the state.
//
// DESIGN.md has the invariants and the figures; loop_test.go is the test to
// read first.
package shim
