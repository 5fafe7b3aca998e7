// Package dns reads what Pods ask DNS servers and hear from them, and keeps what
// the names that policies write stand for.
//
//	frames of a Pod's queries, and of answers to it
//	   │  Talks: an answer counts where the Pod asked, by id, name, type and ports
//	   ▼
//	Heard: a name, its addresses at the end of its aliases, for how long
//	   │  Cache: which names of policies it fits, with wildcards; until when
//	   ▼
//	Change: an address that a policy's name stands for from now on, or no more
//
// Who an answer is from is not looked at here: only frames from known servers are
// to be given. Limits are there against Pods that ask for much: what is past them
// is not learned, and evicts nothing.
//
// The package does no I/O and reads no clock. Read dns_test.go first.
package dns
