package ovstest

import (
	"context"
	"fmt"
	"syscall"
)

// KillDatabase ends ovsdb-server as a crash would. A userspace datapath stands
// still from then on, until the switch has the database again: the thread that
// reads ports waits for it.
func (in *Instance) KillDatabase() { in.database.stop(syscall.SIGKILL) }

// StartDatabase starts ovsdb-server after a KillDatabase, with what it held.
func (in *Instance) StartDatabase(ctx context.Context) error { return in.startDatabase(ctx) }

// Followed returns when the switch has applied what the database says, which it
// looks for after 1 s, 2 s, 4 s and 8 s.
func (in *Instance) Followed(ctx context.Context) error {
	_, err := in.Vsctl(ctx, "set", "Open_vSwitch", ".", fmt.Sprintf("external_ids:weir-followed=%d", counter.Add(1)))
	return err
}
