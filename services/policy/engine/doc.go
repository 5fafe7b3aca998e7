// Package engine works out what each node must hold: objects in, store changes
// out. It is single-threaded and deterministic, and does no I/O.
//
//	Apply(api.Event)…  ──►  classes ── index ──► groups ──► scopes  ──►  Flush() []storage.Change
//	                        (Pods)               (selectors)  (spans)
//
// All Pods of one Namespace with the same labels are a class. A group is one
// normalised selector; rules that say the same share it. Selectors are matched
// against classes, through an index by label, when a class or a group begins
// or a Namespace's labels change, and never against Pods. A group is used as
// peer of rules (an address group, with a scope of its own whose items are its
// members) or as what rules guard (an applied-to group, named by the endpoint
// items of its Pods), or both.
//
// A policy item lives in the scope of the set of applied-to groups of its
// policy. That scope reaches the nodes that hold an active Pod of these
// groups; the address groups of its policies reach at least the same nodes.
// All three are counted, so that an event costs what it changes.
//
// Output is a function of the objects that are there: any order, repetition or
// splitting of events ends in the same store. Objects are taken as valid: the
// sources see to that. Events of kinds that the engine does not use are ignored.
//
// Kubernetes semantics that are easy to get wrong, and where they stand:
// policy types and empty lists in networkpolicy.go, who is an endpoint in
// pod.go, normalised selectors in selector.go.
//
// Read states_test.go first.
package engine
