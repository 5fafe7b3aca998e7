// Package faultpoint lets a process die at a chosen step of what it does, so that
// tests can show what another life of it makes of what it left.
//
//	faultpoint.Reach("shim.apply.committed")   // does nothing, unless built for it
//
// Only binaries that are built with the tag "faultpoints" heed it: there the
// environment variable WEIR_FAULTPOINT names a point, and where the process
// reaches that for the nth time ("NAME" or "NAME:n") it kills itself as by
// kill -9: nothing is flushed, no deferred function runs. Released binaries have
// neither the variable nor the call.
//
// A point's name is COMPONENT.OPERATION.STEP, in the order in which they are
// passed; the step says what was done last.
package faultpoint
