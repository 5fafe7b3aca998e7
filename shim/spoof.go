package shim

import (
	"context"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// spoofCounts is what was read of the flows that count what is forged, and what
// comes from no open port.
type spoofCounts struct {
	last   map[openflow.FlowKey]uint64
	owners map[uint32]pipeline.Pod // Of ports, as the flows on the bridge are for them.
}

// countSpoofs reads what was forged since the last reading.
func (l *loop) countSpoofs(ctx context.Context) {
	var flows []openflow.Flow
	for _, filter := range []openflow.FlowFilter{pipeline.SpoofFilter(), pipeline.StrangerFilter()} {
		if err := l.sw.Counters(ctx, filter, func(f openflow.Flow) { flows = append(flows, f) }); err != nil {
			return // The bridge is away; reconcile says so.
		}
	}
	former := l.spoofs.last
	l.spoofs.last = make(map[openflow.FlowKey]uint64, len(flows))
	fresh := func(f openflow.Flow) uint64 {
		key, was := f.Key(), former[f.Key()]
		if l.spoofs.last[key] = f.Packets; f.Packets < was { // The switch forgot it, and it was put in again.
			was = 0
		}
		return f.Packets - was
	}
	for _, f := range flows {
		if pipeline.Closes(f) {
			l.shim.metrics.strangers.Add(float64(fresh(f)))
			continue
		}
		port, ok := pipeline.SpoofedPort(f)
		if !ok {
			continue
		}
		// Of a flow that a former shim left it is not known yet whose it was.
		if pod, ok := l.spoofs.owners[port]; ok {
			n := fresh(f)
			l.shim.metrics.spoofed.WithLabelValues(pod.Namespace, pod.Name).Add(float64(n))
			l.shim.node.addSpoofed(pod, n)
		}
	}
}

// guardChanges says whether a change is about SpoofGuard: then what its flows
// counted is read before they go, or are another Pod's.
func guardChanges(c pipeline.Change) bool {
	return c.More != nil || slices.ContainsFunc(c.Upsert, func(f openflow.Flow) bool { return f.Table == pipeline.TableSpoofGuard }) ||
		slices.ContainsFunc(c.Delete, func(k openflow.FlowKey) bool { return k.Table == pipeline.TableSpoofGuard })
}

// guarded takes over whose the flows of SpoofGuard are after a change.
func (l *loop) guarded(c pipeline.Change) {
	l.spoofs.owners = l.compiler.Owners()
	for _, key := range c.Delete {
		delete(l.spoofs.last, key)
	}
}
