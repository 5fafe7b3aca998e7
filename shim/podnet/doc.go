// Package podnet makes a node's Pod network, where Weir is to make it: how
// packets get from the bridge's LOCAL port to the Pods of other nodes and back.
//
//	routes of all nodes, from the stream ─► plan ─► what the kernel is to hold
//	                                                 └─ diff with what it holds ─► netlink
//
// On every node the host has a gateway address of each of the node's own Pod
// prefixes on the bridge's device, forwards, and (if told so) masquerades what
// Pods send out of the cluster. To the Pods of other nodes it has, by mode:
//
//   - Routed: a route through the node's address, where it is on a link of ours.
//   - VXLAN: one device weir-vx0, and for each node a route through the first
//     address of its prefix, a permanent neighbour and a forwarding entry. MACs of
//     devices are made from the nodes' names, so that nobody has to be asked.
//
// The plan is a function of the routes and of facts of the host; nothing is
// remembered. Ours are the device weir-vx0 with its neighbours and forwarding
// entries, and routes of our protocol number; nothing else is removed, and a
// foreign route is never replaced. The Pod network decides nothing: what a Pod may
// say to whom stands in the bridge's flows.
//
// Set may be called from any goroutine; Run owns the kernel's state, and looks at
// it again with each Set, each Kick and at intervals. What cannot be made is
// logged once and tried again; it never stops what else can.
//
// Read plan_test.go first, then kernel_test.go, which has two nodes.
package podnet
