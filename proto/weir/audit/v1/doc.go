// Package auditv1 is the wire of the audit path (audit.proto): events from nodes
// to the collector, and records from the collector to those who read them. The
// code is generated from that file by make generate.
package auditv1
