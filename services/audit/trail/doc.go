// Package trail is the trail of changes: what became of policies, tiers and
// groups, as events for the log, and where in the log each change lies.
//
//	ObjectChange + what the log has ─► Event ─► the log ─► Index.Add
//	policy, time or version ─► Index.At ─► cursor of the change that was in force
//
// The log is the truth. An Index is a function of its changes and can be made
// from them again; what it holds of each is some 64 bytes. It forgets what retention
// takes from the log (Trim), and says which objects the log then tells nothing of
// any more although they are there, so that they can be told again.
//
// Pure: no clock, no files. Read trail_test.go first.
package trail
