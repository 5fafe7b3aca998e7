// Package hostpolicy works out what policies say of a node's own host: rules in
// the order in which its firewall is to ask them. It does no I/O; hostfw makes
// nftables of a Plan.
//
//	Policy items, members of groups, facts of the node ─► New ─► Plan ─► hostfw
//	                                                              └─► Judge: what a recorded packet means
//
// A Plan has a list for NodePort Services (Rule.node_ports: what clients send to
// ports of the node's own addresses), and two for the node itself (Rule.host: what
// its host receives, and what it sends). Each is asked in the same order.
//
// What it takes to steer the node (Control) is not denied by rules of the node
// itself, unless their policy allows a lock-out. A policy that would have denied
// it is one of the plan's Lockouts.
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
