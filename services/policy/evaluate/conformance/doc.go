// Package conformance reads and runs conformance cases: a cluster, the policies
// in force, and which connections must be allowed, denied or refused.
//
// The form of a case (schema weir-conformance/v1) is shared by two modes. In
// evaluate mode, Evaluate asks the reference evaluator; in datapath mode, the
// end-to-end tests ask real processes and packets. What both need is here: Load,
// the World that steps change, Step.Checks that takes tables apart, and the Report.
//
//	Load ──► Case ──► NewWorld ──► World.Enter(step) ──► Events, Manifest
//	                                    │
//	                               step.Checks ──► judge ──► CaseReport ──► Report
//
// Beyond the published form a Pod may have a phase, a Node several ips, and a
// probe a sourcePort. Parsing is strict: a field that is not known is an error, since a
// condition that is overlooked would turn a failure into a pass. What a mode
// cannot judge yet is a skip with its reason, and the whole case then is no pass.
//
// Read conformance_test.go first.
package conformance
