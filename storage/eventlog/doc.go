// Package eventlog is the collector's durable log: what nodes report is stored
// here before it is acknowledged, and everything that is printed, forwarded or
// replayed is read from here.
//
//	Submit ─► queue ─► writer ─► backend: blocks, durable ─► done(Result)
//	                     │                  └─► wake-ups of followers
//	                     └─ positions: (node, boot) → highest sequence
//	Reader ◄── blocks of records, by cursor
//
// The blocks are in a Pebble database in a folder of the collector's own (local),
// or in a NATS JetStream stream that several collectors share (stream; how it works
// is told there). What follows is of the first.
//
// One goroutine (Run) writes. It takes all that waits, gives every record the
// next cursor, and commits the lot with one sync, so that many streams share
// its cost; only then is anybody told. A batch is one key, its block: the
// cursor of its first record. Events that the log holds already are recognised
// by node, boot and sequence, and not stored again; where numbers were left
// out, a loss is stored in their place. What that needs is in the blocks'
// headers, and so is durable exactly when the events are.
//
// All keys ascend in the order in which they are written, the snapshots of the
// positions among them, so that compaction moves tables and rewrites none.
// Snapshots bound what Open must read. The cursors of those who project the log
// (Cursors) lie in small files beside it.
//
// Cursors count from one without gaps; those of a stream only ascend. A reader
// that meets a gap knows how many records retention took from under it, and
// Behind how many follow a cursor.
//
// When the disk is nearly full, appending is refused before anything breaks,
// and goes on once there is room. When a write or sync fails, the database is
// fenced off (nothing that it still does reaches the disk), everything that
// waited gets the error, and the database is opened again, which also finds
// out what did become durable. Health says whether appending works.
//
// When a table is damaged, it is mended: what cannot be read any more is stated as
// a loss in its place, once, and the rest is served.
//
// The package knows what an event is only as far as its loss counts; what
// events must look like is for services/audit. It is used by the collector alone.
//
// Read suite_test.go first, then crash_test.go, damage_test.go,
// full_test.go and cluster_test.go.
package eventlog
