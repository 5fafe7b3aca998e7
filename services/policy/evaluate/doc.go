// Package evaluate is the reference semantics of the policy model: given a set
// of objects and one connection, it says whether the connection is allowed,
// which policy and rule decided in each direction, and why.
//
// It is the definition that everything else is held against: the engine with
// the shim's pipeline, `weirctl explain` and the conformance cases. So it is
// written to be read beside the documentation of the API, on plain label maps
// and addresses, without indexes or compiled forms, and shares no code with the
// engine. A question costs time in proportion to the Namespace's policies and
// to the Pods; it is not meant for the data path.
//
// How a connection is judged:
//
//	Connection ──► resolve ──► flow ──► egress steps of the source  ──► Decision ─┐
//	                                ──► ingress steps of the target ──► Decision ─┴─► Verdict
//
// Each direction is an ordered list of steps (steps.go). A step decides, or
// leaves the flow to the next; what none decides is allowed. Kubernetes
// NetworkPolicies are one step; tiers and baselines are steps before and after it
// (ordered.go). Explain tells of each step that was gone through. Staged policies
// make a second world, and a Result says where its verdict is another. Diff
// compares two States over all connections that could differ.
//
// Only the first packet of a connection is judged: replies belong to it.
//
// Facts that the API leaves open, as settled here: a Pod that talks to itself
// is always allowed, since that traffic never leaves it; so is a host, on its own
// node ports too. A Pod is reached from its own node's host whatever policies
// say. hostNetwork Pods are their Node.
// Finished Pods and Pods without an address are neither targets nor peers. A
// Namespace without an object has the labels that bear its name, and no others.
// Where two Pods claim one address, a peer matches it if it selects either, by
// the port names of that one, and each is guarded with the port names that are its
// own. A named port stands for every container port of that name and protocol. ICMP is
// matched by rules without ports, and by those that name it. A connection to a
// Service is judged for each of its endpoints to which it may go from the Pod's
// node (backends.go): the source's egress by the endpoint and by toServices. Where
// there is none, nothing decides, and that is an error. A group, Service or tier that is not there is nothing: its
// policy is held back for a tier, and a peer of that name matches nobody. What a
// rule for layer 7 matches is dropped. Namespaces that lack keys of sameLabels:
// see concerns. Rules of Nodes that would deny what it takes to steer a node do not
// count unless their policy allows a lock-out (control.go).
//
// The package is pure. Read evaluate_test.go first.
package evaluate
