package eventlog

import (
	"context"
	"time"
)

// backend is where a log has its blocks: local, a Pebble database, or stream, a
// NATS JetStream stream that several collectors write. Cursors ascend in the
// order in which readers see the records; they need not be dense.
//
// The writer alone calls ready, store, retain and ended. The rest may be called
// by anybody.
type backend interface {
	// run does what goes on beside the writer, until the context ends.
	run(ctx context.Context) error
	// ready is nil if appending works, as far as can be told without appending.
	ready(now time.Time) error
	// store makes a group durable, sets its results and takes it into the log's
	// positions; or, after an error, nobody may be told that it is durable.
	store(group []*pending) error
	// retain removes what is too old or too much, oldest first.
	retain(now time.Time)
	// ended is not nil if the log is of no use until the process begins anew.
	ended() error
	// fill copies the next blocks that a reader is to return; none at the end.
	fill(r *Reader) error
	// behind is how many records follow a cursor.
	behind(cursor uint64) (uint64, error)
	// afterTime is a cursor behind which all blocks are that arrived at t or later.
	afterTime(t time.Time) (uint64, error)
	// cursors are the durable cursors of those who project the log.
	cursors() cursorStore
	close() error
}

// cursorStore keeps cursors durably, by name, with what belongs to each: both or
// neither. Zero: there is none yet.
type cursorStore interface {
	load(name string) (cursor uint64, state []byte, err error)
	store(name string, cursor uint64, state []byte) error
}
