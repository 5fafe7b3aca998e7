// Package bridge makes one Open vSwitch bridge hold exactly what it is given,
// and tells what happens on it. It is the only owner of os/exec, of the
// go-openvswitch client and of the OpenFlow connections.
//
//	             ┌ change session ─ bundles ─────────────┐
//	Bridge ──────┼ read session ─── flow stats, groups ──┼─► RUNDIR/NAME.mgmt ─► ovs-vswitchd
//	 (Run)       └ one a controller id ─ packet-ins ◄────┘
//	   └ database ─ ports, monitored ────────────────────► RUNDIR/db.sock
//
// In go a Change (flows to put and to remove, groups, meters) and questions;
// out come the bridge's State, counters, packets and ports. A Change is one
// atomic, ordered bundle: no packet sees a half of it. Only meters, which Open
// vSwitch refuses in bundles, are made before and removed after.
//
// The bridge does not remember what it was given. Whoever owns the desired
// Content reads the State after each Reconnected signal, since a restarted
// switch has forgotten all, and applies what Diff says; what was right is not
// touched and keeps its counters.
//
// When the switch is gone, every call returns ErrDisconnected at once and Run
// reconnects. When the outcome of a Change is unknown, because the connection
// broke while it was committed, the error says ErrOutcomeUnknown; read back.
// When the switch refuses a part, nothing of the bundle is applied, and the
// ChangeError names the part.
//
// Methods may be called from any goroutine. Package openflow holds the values
// and the encoding; Fake is a bridge in memory with the same semantics, and a
// table walker. Read suite_test.go first: it holds both to the same behaviour.
package bridge
