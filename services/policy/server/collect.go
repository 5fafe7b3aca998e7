package server

import (
	"runtime"
	"runtime/metrics"
	"sync/atomic"
)

// collector runs garbage collections that are half due in the rest after a
// wave. Thousands of streams are some hundred megabytes of stacks and heap, and
// a collection that falls into a wave makes it half as long again. Without a
// rest, collections come as the runtime has them.
type collector struct {
	sample  []metrics.Sample
	running atomic.Bool
}

func newCollector() *collector {
	return &collector{sample: []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/goal:bytes"}}}
}

// rest is called when nothing is under way.
func (c *collector) rest() {
	metrics.Read(c.sample)
	objects, live, goal := c.sample[0].Value.Uint64(), c.sample[1].Value.Uint64(), c.sample[2].Value.Uint64()
	if !halfDue(objects, live, goal) || !c.running.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer c.running.Store(false)
		runtime.GC()
	}()
}

// halfDue says whether the heap has grown half of the way to its next
// collection. What was live at the last is beside the goal while the runtime
// gathers experience.
func halfDue(objects, live, goal uint64) bool {
	return goal > live && objects > live && objects-live > (goal-live)/2
}
