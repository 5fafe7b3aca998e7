// Package differential holds three accounts of the policy model against each
// other, on random clusters:
//
//	         ┌─► evaluate.State ─────────────────────────► verdict and reasons
//	Case ────┼─► engine ─► storage ─► pipeline ─► bridge.Fake ─► where packets went
//	 (seed)  └─► ······ the same changes ······ ─► Open vSwitch ─► ofproto/trace
//
// A Case is a cluster's life: Kubernetes objects that come, change and go in
// steps, ports of Pods that come and go, and connections to judge in each step.
// Generate makes one of a seed, or of any bytes. Objects are those that a user
// writes, so that conversion is tested too.
//
// One engine, one store and one compiler a node live through the whole Case:
// nothing is built anew between steps. Compare runs a Case and returns the
// first Difference:
//
//   - between what the evaluator says of each direction and where the first
//     packet went, hop by hop: out of the source's node, into the destination's;
//   - between the evaluator's policies and those that the flows are attributed to;
//   - between what the evaluator says with the staged policies enforced and what
//     the flows report of them;
//   - a reply to an allowed connection that does not arrive, a follow-up of a
//     denied one that does, an established connection that an update cuts;
//   - between the Fake's way through the tables and that of Open vSwitch, where
//     a Switch is given;
//   - between the endpoint of a Service that a node chose and those that the
//     evaluator lets the client have, and where nobody serves, whether it is refused;
//   - an endpoint's answer that does not come to the client as the Service's, or one
//     that a client with an affinity was not given before;
//   - between what a node's firewall is to do with what comes to a port of a
//     Service there, and with what its host sends and receives itself, and what the
//     evaluator says of it;
//   - a digest that differs, an item that does not compile, a refused change, a panic.
//
// Shrink takes from a failing Case whatever is not needed for a difference, and
// the Difference prints as manifests with the connection, the verdicts and the
// flows that were hit.
//
// What is told apart and what is not: a Pod without an open port receives
// nothing, whatever policies say, and its traffic is not judged. Traffic that
// never passes a bridge (a Pod's with itself but by a Service, hosts' among
// themselves but to ports of Services) is left out, and so is what hosts and the
// world send to ClusterIPs: kube-proxy balances it. A trace of Open vSwitch ends
// where a group chooses, and does not know what packets taught the Fake.
//
// Read differential_test.go first: it says how to run more, and longer.
package differential
