// Package policyv1 is the wire between the policy service and those who talk to
// it: what a node holds (state.proto), its stream (service.proto), what people
// ask (inspection.proto), and what replicas tell each other (replica.proto).
// The code is generated from these files by make generate.
package policyv1
