// Package chaos runs a cluster of real processes through random faults, under
// traffic, and keeps what it saw for package invariant to judge.
//
//	seed ─► rounds of faults ──────────► World: 2 nodes, 2 policy services, a collector
//	            │                            │ real packets
//	            │      numbered datagrams, TCP streams, new connections: allowed and denied
//	            │                            │
//	         journal of faults    journals of senders and receivers
//	            │                            │         readings of log flows, every half second
//	            │                            │         what readers had from the collector
//	            └───────────┬────────────────┴───────────┬──────────┐
//	                     Evidence      the collector's log and files in the end
//	                        └──► invariant.Judge ─► violations
//
// A Fault is a value: what it is called, and how it is done to a World. The seed
// of a run determines which come when, and with what parameters; what processes do
// meanwhile it does not. A run's folder is kept where something was violated:
//
//	go run ./e2e/chaos/judge DIR
//	go test ./e2e/chaos -run TestChaos -chaos.rounds 100 -chaos.seed 7 -chaos.dir DIR
//
// One cluster lives through all rounds of a run. In each, faults are done, the
// cluster is given time to come to rest, and the next round begins; all are judged
// together in the end.
package chaos
