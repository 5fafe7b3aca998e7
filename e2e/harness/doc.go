// Package harness builds small clusters for the end-to-end tests and the demo:
// the real binaries, a real Open vSwitch for each node, real packets.
//
//	netns …-fab: bridge fab0, weir-policyd, weir-auditd, the hosts outside
//	   │ veth, routed
//	netns …-n1: node: ovsdb-server, ovs-vswitchd, weir-shim, br-weir (LOCAL is the gateway)
//	   │ veth: a port of br-weir
//	netns …-p1: Pod: eth0 with its address alone, default route to the gateway
//
// Everything stays inside network namespaces that the harness makes; their
// names begin with "weir-" and the process's id. Stop removes them, their
// processes and their files; a Start sweeps what killed processes left. Pods
// reach each other by host routes, with their addresses kept.
//
// Probes tell allowed, dropped and refused apart, for TCP, UDP, SCTP (whose
// packets are made here, since kernels may lack it) and ICMP.
//
// StartKube runs a real Kubernetes API server, built by BuildKube, on the host or
// in one of the namespaces. A Container runs what a Pod's container says, on a
// Network that is no Cluster.
//
// Read the scenarios in package e2e for how it is used.
package harness
