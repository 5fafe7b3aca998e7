// Package validate judges objects by each other: what api.Validate, which sees
// one object, cannot. It is one for the command line, folders of manifests and
// the admission webhook.
//
// Set judges all that there is, in any order. An Index holds what exists, kept
// up to date by Set and Remove, and its Change judges one change before it
// happens. Both return violations, for which an object must be refused, and
// warnings, which name the object, the field, and what to write instead. The
// package is pure, and takes objects that api.Validate has passed.
//
// Whether one rule makes another idle is found on an algebra, and not by
// samples. What a rule matches is a region, a union of boxes; a box holds
// independent dimensions to sets: the subject's and the peer's kind, Namespace
// name, Namespace, Pod and Node labels and account, the peer's address, its names
// and the Service that was addressed, whether two Namespaces share a label,
// protocol, ports and types. Sets of strings are those of a list or all but
// those, so that intersecting, subtracting and covering are exact for every
// cluster that there could be, and not only for the one that is. A block of addresses
// matches Pods that have them, and a selected Pod may have any address. A group
// is what it selects; one that is not there is nothing.
//
// A rule is covered where the rules that precede it in its direction and step
// (tiers and upstream admin policies before Kubernetes NetworkPolicies, the
// baselines after them) leave nothing of it; any action counts, Pass included,
// since it skips the rest of its step. Two rules contradict each other where tier,
// priority and index are equal, the actions differ and some packet is in both;
// which wins is the order of ties: Drop, Reject, Pass, Allow. Staged policies
// are compared as in the staged world, with all that precede them; enforced ones
// with enforced ones alone.
//
// Cost. A rule is compared with those that share a value of a label, Namespace or
// Service which they need, and with those that need none. A rule of more than
// mostBoxes boxes is compared with none, and after looksOfSet or looksOfChange
// comparisons the rest goes unjudged: what is said is then still right, but not
// all is said.
//
// Read set_test.go first, then algebra_test.go, which holds the algebra against
// every packet of small universes.
package validate
