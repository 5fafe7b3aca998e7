// Package cni is the CNI plugin weir-cni: how a Pod of a node gets onto the
// bridge.
//
//	kubelet ─► ADD ─► IPAM (host-local) ─► veth ─► port on the bridge, with external_ids
//	                                                 └─► shim ─► policy service ─► shim: the port opens
//	             ◄──────────────── AwaitPort ◄────────────────────────┘
//
// The port's external_ids name the Pod, its UID and its addresses, so that the
// shim can tell the policy service of them before kubelet has them from ADD. ADD
// returns once the shim says that the port is open, which is when policies
// cover the Pod on this node and others; otherwise it fails, with the shim's
// reason, and takes back all that it made.
//
// The host end's name is made from the container's id and the interface's
// name, so that DEL needs neither the Pod's namespace nor a former result. DEL
// takes the port off first, since an address must not be given away while a port
// claims it. What no DEL came for, GC removes, by the ids of ports.
//
// The package runs in a process of its own, in the host's network namespace,
// and keeps nothing. It imports of Weir the bridge, veth and the shim's client;
// IPAM plugins are run as the CNI specification says. Conflist is what the shim
// writes for the container runtime; e2e/cni_test.go is the test to read first.
package cni
