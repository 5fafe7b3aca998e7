// Package hostpolicy works out what policies say of a node's own host: rules in
// the order in which its firewall is to ask them. It does no I/O; hostfw makes
// nftables of a Plan.
//
//	Policy items, groups of the node ─► New ─► Plan ─► hostfw
//	                                            └─► Judge: what a recorded packet means
//
// So far it is about NodePort Services (Rule.node_ports): what clients send to
// ports of the node's own addresses. Policies of Nodes are to be another list of
// the Plan, of the same order.
//
// The order is that of policies for Pods: by rank, priority, position in the
// policy, the strictest action first, one that is recorded before one that is not,
// the older policy, and by kind, Namespace and name. A Pass goes on with the
// baseline. What no rule decides is allowed.
//
// A rule that cannot be put as it is written is left out, or the part of it that
// cannot, and is a Problem of its item.
//
// Read plan_test.go first.
package hostpolicy
