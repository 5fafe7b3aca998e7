// Package openflow holds the values that a bridge is made of (matches, actions,
// flows, groups, meters) and a codec for the messages that install and read
// them: OpenFlow 1.5 with the Nicira extensions, as Open vSwitch speaks them.
//
// The package is pure: it imports no I/O, reads no clock and keeps no state. Its
// values are immutable and comparable, because they hold their own canonical
// wire encoding: two matches are equal exactly when Open vSwitch takes them for
// the same match, and what was read back compares equal with what was installed
// (Open vSwitch merges pairs of registers into one field, reorders fields and
// drops redundant masks; the decoder undoes that). A FlowKey is therefore a map
// key, and comparing the Actions of two flows tells whether one must be sent.
//
//	NewMatch(fields…) ─► Match ─┐
//	NewActions(list…) ─► Actions ┴► Flow ─► AppendFlowMod ─► bytes on the wire
//	bytes ─► DecodeFlowStats ─► Flow   (Match.Fields, Actions.List walk it)
//
// Encoders append to a slice that the caller owns. Decoders take one message or
// part of one, treat it as hostile, check every length against what is there
// before using it, never panic and never allocate by a length that they have
// only been told. What they do not know (foreign fields, actions, properties)
// they keep as bytes or skip; what contradicts itself is an error.
//
// String gives the text form of ovs-ofctl, which accepts it; goldens use it.
//
// Package bridge does the talking. Read match_test.go first, then
// actions_test.go.
package openflow
