package ovstest

import (
	"context"
	"syscall"
)

// KillDatabase ends ovsdb-server as a crash would. The switch goes on.
func (in *Instance) KillDatabase() { in.database.stop(syscall.SIGKILL) }

// StartDatabase starts ovsdb-server after a KillDatabase, with what it held.
func (in *Instance) StartDatabase(ctx context.Context) error { return in.startDatabase(ctx) }
