// Package upgrade holds the present services and shims to the streams of the
// version before: what they said and were told, as it was on the wire, is in
// testdata/VERSION, with the descriptors of the messages.
//
//	recorded service ─► present shim     testdata, replayed by a player
//	recorded shim    ─► present service  the same, the other way
//	present messages ─► recorded descriptors: no field that changes a meaning is lost
//
// What is promised is one version apart: services and shims of a version work with
// those of the one before, in either order of their upgrade.
//
// To record the streams of a version that is released, set recorded in
// recording_test.go to its name, and run `make upgrade-recordings` at its tag. The
// folder of the version before goes.
//
// Read upgrade_test.go first.
package upgrade
