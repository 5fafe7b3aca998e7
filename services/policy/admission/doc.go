// Package admission answers an API server's admission webhooks
// (admission.k8s.io/v1) for policies, tiers and groups.
//
//	API server ─ HTTPS ─► /validate     every violation at once, or warnings
//	                      /default      tier, rule names
//	                      /changed-by   who changed it, for the change trail
//	                      /mutate/namespace   label antrea.io/metadata.name
//	Webhooks ─► caBundle of the webhook configurations
//
// What is refused and warned of is decided by packages api and validate, for the
// command line as for the API server; this package is their protocol. It judges by
// what this replica has read. Two requests that are under way at the same time, be
// it at two replicas, may so each be right by itself and wrong together: a priority
// that two new tiers take, a group that becomes a child while it is given children.
// Then both objects are there, and the source hands on what of them can stand together
// (package validate decides what, the same everywhere); the fault of the other is
// reported.
//
// Read webhook_test.go first.
package admission
