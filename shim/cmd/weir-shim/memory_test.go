package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// The collector's limit is memoryAim, rises above what is in use, and falls again
// though nothing is allocated any more.
func TestMemoryLimitFollowsWhatIsInUse(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	former := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(former) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	boundMemory(ctx)
	until := func(what string, is func(limit int64) bool) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for !is(debug.SetMemoryLimit(-1)) {
			if time.Now().After(deadline) {
				t.Fatalf("the limit is %d MiB and not %s", debug.SetMemoryLimit(-1)>>20, what)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	until("the aim", func(limit int64) bool { return limit == memoryAim })
	much := make([]byte, 2*memoryAim)
	runtime.GC()
	until("above what is in use", func(limit int64) bool { return limit > 2*memoryAim+2*memoryAim/memoryRoom })
	runtime.KeepAlive(much)
	much = nil
	until("the aim again", func(limit int64) bool { return limit == memoryAim })
}

// Where the environment has a limit, it stays.
func TestMemoryLimitOfTheEnvironmentStays(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "123MiB")
	former := debug.SetMemoryLimit(123 << 20) // As the runtime does it at the start.
	t.Cleanup(func() { debug.SetMemoryLimit(former) })
	boundMemory(t.Context())
	if got := debug.SetMemoryLimit(-1); got != 123<<20 {
		t.Errorf("the limit is %d", got)
	}
}
