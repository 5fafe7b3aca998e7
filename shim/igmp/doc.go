// Package igmp reads what Pods say in IGMP of the multicast groups that they join
// and leave, writes the query by which they are asked, and keeps who is a member
// of what. It does no I/O and reads no clock.
package igmp
