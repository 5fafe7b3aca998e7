package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The shim is to stay below 200 MB on a node of 10,000 rules. Most of what it
// allocates is needed for a moment: the collector may let the heap double, which is
// cheap, as long as that stays below memoryAim. What is in use may be more. Then a
// fixed limit would have the collector run all the time, and the limit rises.
const (
	memoryAim    = 144 << 20 // Without the program itself, and what else is no Go memory.
	memoryRoom   = 10        // The part of what is in use that may be garbage at the least: a tenth.
	memoryFollow = 200 * time.Millisecond
	memoryStep   = 4 << 20 // By less the limit does not move.
	memoryQuiet  = 10      // After so long without a collection, with a limit that rose, there is one more.
)

// What a limit is worked out from.
const (
	memoryLive = iota // When the collector last ran.
	memoryObjects
	memoryFree
	memoryReleased
	memoryTotal
	memoryCycles
)

var memoryMetrics = []string{
	memoryLive:     "/gc/heap/live:bytes",
	memoryObjects:  "/memory/classes/heap/objects:bytes",
	memoryFree:     "/memory/classes/heap/free:bytes",
	memoryReleased: "/memory/classes/heap/released:bytes",
	memoryTotal:    "/memory/classes/total:bytes",
	memoryCycles:   "/gc/cycles/total:gc-cycles",
}

// memoryLimit is that of the collector: room for what is in use, for garbage, and
// for what the runtime has beside objects and can do nothing about.
func memoryLimit(in []metrics.Sample) int64 {
	of := func(i int) int64 { return int64(in[i].Value.Uint64()) }
	beside := of(memoryTotal) - of(memoryReleased) - of(memoryFree) - of(memoryObjects)
	return max(memoryAim, of(memoryLive)+of(memoryLive)/memoryRoom+beside)
}

// boundMemory sets the collector's limit until the context ends, unless the
// environment has one.
func boundMemory(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetMemoryLimit(memoryAim)
	go func() {
		in := make([]metrics.Sample, len(memoryMetrics))
		for i, name := range memoryMetrics {
			in[i].Name = name
		}
		limit, cycles, quiet := int64(memoryAim), uint64(0), 0
		for tick := time.Tick(memoryFollow); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick:
			}
			metrics.Read(in)
			if now := memoryLimit(in); max(limit-now, now-limit) >= memoryStep {
				limit = now
				debug.SetMemoryLimit(limit)
			}
			if ran := in[memoryCycles].Value.Uint64(); ran != cycles {
				cycles, quiet = ran, 0
			}
			if quiet++; limit > memoryAim && quiet == memoryQuiet { // What was in use then may be no more.
				debug.FreeOSMemory()
				metrics.Read(in)
				cycles = in[memoryCycles].Value.Uint64()
			}
		}
	}()
}
