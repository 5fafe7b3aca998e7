// Package pipeline turns what a node must hold into the flows of its bridge:
// node state, local ports and the former assignment in; desired flows, meters
// and the new assignment out. It does no I/O and reads no clock.
//
//	storage.Replica ─┐
//	local ports ─────┼─► Compiler.Update ─► openflow changes (one bundle)
//	assignment ──────┘                      Assignment, Problems, attribution
//
// Desired flows are a function of state, ports and assignment. The Compiler
// keeps them up to date in steps whose cost is that of the change: each local
// Pod and each rule contributes flows, and a contribution is taken back by the
// same code that made it. TestIncrementalEqualsFresh holds that to account.
//
// A rule is a conjunctive match: a flow for every target, every peer address
// and every service, and one for the conjunction. Rules share these clause
// flows: a flow lists the conjunctions to which it belongs. Where it would list
// more than a cap, the rule moves to the next lane, which is the next lower
// priority of its step. Where the rules of a priority multiply to few, each
// combination is one flow instead: form.go says when.
//
// Kubernetes rules need no order. All others have a precedence, and those of one
// precedence, which do the same with a packet, share a level of their table's
// ladder. The ladder gives levels, and their lanes, OpenFlow priorities in order
// and with gaps. Ids, lanes and priorities are the assignment: any ids that are
// distinct and priorities that are in order are good, and a restarted shim takes
// up those it finds, which leaves every flow as it is.
//
// Staged policies are compiled by the same code to tables of their own, beside
// the enforced rules of the endpoints that they apply to; they mark packets, and
// act nowhere. world.go and stage.go say how.
//
// What the tables do, and which registers they use, stands in layout.go. Fail
// closed: a packet of a port that is not open, from an address that is not the
// port's, or to a Pod that has no open port, is dropped; a rule that cannot be
// compiled is a Problem, and an isolation stands without its allow rules. A state
// with a deny that cannot be read, or would be past the limit of its table, is refused as a whole.
//
// Read compiler_test.go first, then interpreter_test.go and staged_test.go.
package pipeline
