// Package status tells the users of an API server which of their policies are in
// force, and why others are not.
//
//	Model.Policies ─► Policy.next ─► JSON patches of the status subresource
//	(what all replicas know)     └─► Events about Kubernetes NetworkPolicies
//	Lease weir-policyd: one replica does it
//
// What is written is a function of what the replicas know and of the status that is
// there: a condition's lastTransitionTime moves when its truth does, and at no other
// time. So a holder of the Lease that has just begun goes on where the former one
// ended. It says of nothing that it is not in force before it knows: of nodes of which
// nobody has told yet, the former status holds (Policy.undecided).
//
// Once a second, and a moment after a policy has changed, everything is looked at.
// What differs is written: truths before mere numbers, a policy at most once a second,
// its numbers alone every five seconds, and a hundred objects a second in all; what
// remains is looked at again the next time. So nothing is queued, and a failed write
// is no more than a difference that stays.
//
// The package decides nothing about policies: what is realised is for package server
// to say, what is wrong with an object for the engine and the source. Read
// policy_test.go first.
package status
