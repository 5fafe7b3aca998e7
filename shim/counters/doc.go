// Package counters keeps the accounts of what the rules of policies matched on a
// node: Books, which readings of the bridge's counting flows go into.
//
//	counting flows ─► Reading ─► Books.Take ─► tallies by pipeline.Subject ─► Report
//	                                └─► Encode ─► disk
//
// A flow's counters begin anew when it is put in anew; a tally does not. So Books
// know of each flow what it counted when it was last read, and a reading adds to
// the tallies what it counted since. A flow that is another than the one last
// read counts from zero, and the time from the last reading to its birth is
// stated as uncounted. Books that are stored with each reading lose and double
// nothing, whenever the process that has them ends: the flows count on, and the
// next reading's difference is to what is stored.
//
// What the flows of an id count for is learned before there is such a flow, and
// is kept beside the Books until they are stored: see Learned.
//
// The package does no I/O and reads no clock; Books belong to whoever holds them,
// and are not safe for concurrent use. Read model_test.go first.
package counters
