// Package api holds the objects that the policy service reads, in the compact
// form in which it keeps them, and the validation of what users write.
//
// A value here mirrors its Kubernetes object field by field, without what no
// component reads: nothing is defaulted, resolved or compiled. What a spec
// leaves out stays absent (nil), so that engine and evaluate, which read the
// same values, each apply the semantics by themselves and can be held against
// each other.
//
// Values are immutable once they are handed over. Strings that recur in many
// objects (label keys and values, Namespace and node names) may be shared.
//
// Decode reads manifests; the From functions convert typed Kubernetes objects,
// for sources that have those already. Decoding and validation name the object
// and the field in every error, and report all violations of a text at once.
// They refuse what an API server would refuse, in the fields that are read:
// a Pod without containers or a container without an image is taken as it is.
// The package does no I/O.
//
// Read decode_test.go first.
package api
