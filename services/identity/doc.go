// Package identity says who a caller is, and sets up the mutual TLS by which it
// proves that.
//
// Certificates name their holder by URIs in the subject alternative name, under
// one CA of the installation:
//
//	weir://node/NAME    the shim of a node; NAME is the Node's name
//	weir://role/ROLE    policyd and auditd (servers), operator (people and their tools),
//	                    reader (who reads the record of some Namespaces)
//	weir://namespace/NAME    a Namespace that a reader's certificate is for
//
// A certificate has at most one node, and a reader's at least one Namespace and no
// other name; the common name is for people and decides
// nothing. Node, operator and reader certificates are good for clients alone, so that a
// node cannot pose as a server. Server certificates are good for both: the
// services talk to each other.
//
// Users of a cluster are no part of Weir, and have no such certificate: WithUsers lets
// them connect, ProofFromContext is what they show, and Users has the cluster say who
// they are and what they may see.
//
// Serving beyond loopback needs TLS, or the operator's word (CheckListen).
//
// Used by the roots of the policy service and the collector, and by weirctl,
// which makes certificates (Init) or gets one (EnrollFiles). The shim has a small
// client of its own.
//
// Read certificate_test.go and users_test.go first.
package identity
