// Package kubernetes is the source of objects that a Kubernetes API server has.
//
//	API server ═ list, watch ═► reflector ─► cache (converts) ─┐
//	                                one each kind              ├─► dirty set ─► Next: Batch
//	  CustomResourceDefinitions ─► which kinds there are ──────┤
//	  NodeEndpoints ─► addresses of Pods that have just begun ─┘
//	                        ▲
//	  shims ─► Announce ─► writer
//
// What goes in: Pods, Namespaces, Nodes, Services, EndpointSlices,
// ServiceAccounts, NetworkPolicies, and every kind of policy, tier and group of
// package api. What comes out: the same Batches as a folder gives. Objects are
// converted as they come, before anything holds them: what is kept is what the
// engine holds too, by the same pointers, and no typed object.
//
// Invariants. Nothing is handed out before all kinds have been read; a kind
// whose CustomResourceDefinition is not there, or does not serve the version
// that we read, counts as read and empty, and is taken up when it is. What is
// handed out depends on the objects that there are, and not on how they came: an
// object that cannot be read, or cannot stand beside others (package validate),
// is not in force, whatever it was before, and is a problem. Next gives what
// differs since the last time, each object once; while nobody calls it, changes
// gather in a set of names.
//
// With Config.Versions a batch says of policies, tiers and groups also what
// they are as they were written, in force or not, and who wrote them: made as the
// object is read, and compared with what it was.
//
// An API server that is away, a watch that ends and a list that is taken anew
// change nothing but what differs. Errors are logged once for as long as they
// last, and counted.
//
// The position of a batch is the resourceVersion of the newest change in it. How
// far has been read may be further: lists and bookmarks say so.
//
// A Pod's address is in its status only after the CNI plugin has returned, and
// the plugin returns when its port is open. So the addresses that shims report
// for their ports are written to an object of each node (NodeEndpoints,
// weir.dev/v1alpha1), which all replicas read, and which counts before a Pod's
// status. It is taken for Pods of that node alone.
//
// Called by the root of the policy service. Read cache_test.go first, and
// e2e/kubernetes_test.go for all of it against a real API server.
package kubernetes
