// Package packetlog turns the packets that log flows report into audit events,
// and brings them to the collector.
//
//	packet-in ─► Parse ─► Intake ─► attribution (by the pipeline) ─► Log.Add ─► coalesce ≤ 100 ms ─► queue ─► Reporter ══► collector
//	meters' and intake's counters ─► Losses ─► a loss event ──────────────────────────────────────────┘
//
// Identical packets of a hundred milliseconds are one event with their count.
// Both queues are bounded, and shared by the rules that report (see fair): when one
// is full the oldest of the rule that has most is dropped, and its packets are counted into a
// loss event. Events get their sequence number when they are first sent;
// from then on they are kept until the collector says that they are durable,
// and sent again after a reconnect. What was sent is noted in the Ledger, so that the
// next life can state what died with this one. The log is not in the packets' way: nothing
// here can delay or drop a user's packet.
//
// Read log_test.go first.
package packetlog
