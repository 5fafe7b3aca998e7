// Package policy is the policy service: the wiring of its parts.
//
//	source/manifests ─► batch ─► engine ─► storage.Store ─► server ══gRPC══► shims
//	                      └────► evaluate ◄── Explain ────────┘
//
// The service's one writer takes a batch of the source, applies it to engine
// and evaluator under one lock, and commits what it changed as one revision
// with the source's position. Inspection takes the same lock for reading.
//
// DESIGN.md has the flow, the invariants and the figures; service_test.go is
// the test to read first.
package policy
