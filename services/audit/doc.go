// Package audit is the collector: the wiring of its parts, and its gRPC face.
//
//	shims ══Report══► Collector ─► eventlog (durable) ─► ack
//	                                  ├─► sink np.log  ─► files
//	                                  ├─► sink JSON    ─► file
//	                                  ├─► sink syslog  ─► udp, tcp
//	                                  ├─► forward ══Report══► another collector
//	                                  └─► Tail ══gRPC══► weirctl, subscribers
//
// A stream of Report has two goroutines: one reads batches, checks every event
// and hands them to the log; the other sends the acknowledgements that the
// log's writer has made possible. So a stream has many batches under way, and
// all streams share the syncs. What bounds them is the log's queue, counted in
// bytes: when it is full, streams are read no further, and the shims' queues
// and counters take over.
//
// A batch is stored whole or not at all. A malformed one ends its stream with
// INVALID_ARGUMENT and touches nothing else. While the log cannot be written,
// streams end with UNAVAILABLE, the health service says NOT_SERVING, and
// nothing is acknowledged; Tail and Stats go on.
//
// DESIGN.md has the flow, the invariants, the formats and the figures. Read
// report_test.go first.
package audit
