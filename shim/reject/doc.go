// Package reject makes the answers to rejected packets: the beginning of an
// Ethernet frame in, a whole frame for its sender out.
//
//	TCP             RST, so that the sender's connection ends at once (RFC 9293, 3.10.7)
//	anything else   ICMP destination unreachable, host administratively prohibited,
//	                or ICMPv6 destination unreachable, administratively prohibited,
//	                which quote the packet as far as RFC 1812 and RFC 4443 allow
//	SCTP, beside    ABORT, where the sender may know the destination by another address:
//	                where it was translated elsewhere (RFC 9260, 8.4)
//
// An answer is in the name of whom the packet was for, so that the sender, and
// connection tracking on the way, take it for a part of the connection. Where
// the destination was translated it is in the name of the one that was asked for.
//
// No answer is made to what is, or may be, an answer or is for many: an RST, an
// ABORT, an ICMP error, a later fragment, anything from or to a group, and what comes from
// no address that could be answered. So an answer is never answered, and two
// that reject each other's packets fall silent (FuzzAnswer holds that).
//
// The package does no I/O. Who calls it limits the rate. Read answer_test.go
// first.
package reject
