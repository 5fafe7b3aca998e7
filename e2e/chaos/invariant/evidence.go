// Package invariant judges what a chaos run left: it is pure, and a run that was
// kept can be judged again.
//
//	Evidence ─► Judge ─► a Finding for each invariant: how much was looked at, and what breaks it
//
// What holds at any time, whatever dies: nothing that policy denied arrives; what
// it allows is lost only while a fault itself takes packets, and connections live
// on; records and stated losses add up to what flows matched; numbers of events
// are unique, and gaps stated; what was acknowledged stays; files say what the
// event log says; in the end all is in sync, and nothing died by itself.
//
// Read invariant_test.go first: evidence of a run that was right, and what one
// wrong thing in it brings.
package invariant

import "time"

// Evidence is what a run left.
type Evidence struct {
	Seed    uint64
	Command string // That repeats the run.
	Begin   time.Time
	End     time.Time // Of the traffic.

	Flows    []Flow
	Streams  []Stream
	Dials    []Dial
	Rules    []Rule
	Readings []Reading
	Faults   []Fault
	Records  []Record // What the collector held in the end.
	Seen     []Key    // What readers had from it before.
	Final    Final

	// What lies beside it in the run's folder:
	Files map[string]File   `json:"-"` // By the node's name np.log, by JSONFile the JSON lines.
	Logs  map[string]string `json:"-"` // What processes wrote, by name.
}

// JSONFile is the name of the collector's JSON lines in Evidence.Files.
const JSONFile = "json"

// Interval is a span of time, both ends included.
type Interval struct{ From, To time.Time }

func (i Interval) overlaps(other Interval) bool {
	return !i.To.Before(other.From) && !other.To.Before(i.From)
}

// Verdict is what policy says of a flow, while that was in force on all nodes.
type Verdict struct {
	Interval
	Allowed bool
}

// Flow is numbered datagrams from one Pod to another.
type Flow struct {
	Name           string
	Source, Target string // Nodes.
	Policy         string // That records each packet of it, on the node Where. Empty: none.
	Where          string
	Verdicts       []Verdict
	// Sent and Received are when, in microseconds since Begin, by number. Zero in
	// Received: it never came.
	Sent, Received []int64
	Twice          int // Datagrams that came more often than once.
}

// Stream is a TCP connection that goes on all the time.
type Stream struct {
	Name           string
	Source, Target string // Nodes.
	Push           bool   // The server talks alone.
	Bytes          uint64 // That came.
	Gaps           []Interval
	Broken         string // Why it ended before the run. Empty: it did not.
}

// Dial is one new TCP connection that was tried.
type Dial struct {
	Interval
	Name           string
	Source, Target string // Nodes.
	Allowed        bool   // By policy.
	Made           bool
}

// Rule is a policy whose rules log on one node.
type Rule struct {
	Node, Policy string
	Journaled    bool // All that meets it is in Flows.
}

// Reading is what the log flows of a node had counted.
type Reading struct {
	Interval // From before it was begun until it was there.
	Node     string
	Flows    []FlowCount
}

// FlowCount is one flow's.
type FlowCount struct {
	Key     string // Table, priority and match: by which it is the same flow.
	Policy  string
	Packets uint64
	Age     time.Duration
}

// Fault is what was done to the cluster.
type Fault struct {
	Interval        // Until all that was stopped runs again.
	Name     string // Of the kind.
	Detail   string // What exactly.
	Error    string // Why it could not be done. Empty: it was.
	// Takes are nodes whose packets it takes itself, until Limit after its end.
	Takes []string
	Limit time.Duration
	// Holds are nodes that cannot recover from another fault while it lasts.
	Holds []string
	// Uncounted are nodes whose switch lost what it had counted.
	Uncounted []string
	// Shims are nodes whose shim died.
	Shims []string
	// Blind are nodes whose shim may not know what its rules mean, until it hears
	// from a policy service.
	Blind []string
}

// Key is a record's name.
type Key struct {
	Cursor     uint64
	Node, Boot string
	Sequence   uint64
}

// Record is one record of the event log.
type Record struct {
	Key
	Kind     string    // packet, loss or other.
	At       time.Time // Of packets the first, of losses the end.
	Count    uint64
	Policies []string // By name.
	// Of a packet:
	Direction, Action, Table, AppliedTo, Reason string
	// Of a loss:
	Stage string
	Over  Interval
}

// File is one file with all that was set aside of it, oldest first.
type File struct{ Lines []string }

// Final is what was found when all had come to rest.
type Final struct {
	NotInSync string            // Why the nodes are not in sync. Empty: they are.
	Unwritten string            // Why the files are behind the log. Empty: they are not.
	Check     map[string]string // What weir-shim check found, by node.
	Touched   map[string]string // Flows that a restarted shim put in or took out, by node.
	Ended     []string          // Processes that ended by themselves.
}
