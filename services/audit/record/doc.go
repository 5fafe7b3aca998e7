// Package record is what an audit record is: how it is read from the wire,
// which packets are one line, and what a line looks like.
//
//	event (bytes) ─► Decode ─► Dedup.Add ─► Line ─► NPLog.Append, AppendJSON, Syslog.Append, AppendCEF, AppendOCSF, AppendECS
//
// It is pure: values in, values out, no clock, no files. Time comes from the
// events, and from those who call.
//
// Decode is strict, for the bytes come from nodes: an event that it takes has
// valid addresses, ports, enums and times, and bounded UTF-8 strings, so that
// nothing behind it needs to check again. It takes no event that the generated
// protobuf code would not, and reads it the same.
//
// A Line is one output: a packet event, a window of merged ones, a loss, a change
// or a test. Formats has the encoders by name.
// Names come from users, addresses and counts from packets: no encoder lets
// them begin a new line, a new field, or a new element.
//
// Read nplog_test.go first, then dedup_test.go; samples_test.go has a line of
// every kind, and encode_test.go takes them through every format.
package record
