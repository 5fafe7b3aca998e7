package chaos

import (
	"context"
	"fmt"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/shim/pipeline"
)

func switchFaults() []Fault {
	node := func(name string, do func(ctx context.Context, a *Act, n *harness.Node) error) Fault {
		return Fault{name, func(ctx context.Context, a *Act) error {
			n := a.node()
			defer a.claim("switch of " + n.Name)()
			a.starts()
			a.tell("%s", n.Name)
			return do(ctx, a, n)
		}}
	}
	return []Fault{
		node("switch-kill", func(ctx context.Context, a *Act, n *harness.Node) error {
			a.switchDies(n)
			n.OVS.KillSwitch()
			a.last(ctx, a.between(0, time.Second))
			return a.switchBack(ctx, n)
		}),
		node("database-kill", func(ctx context.Context, a *Act, n *harness.Node) error {
			a.Holds = []string{n.Name}
			n.OVS.KillDatabase()
			a.last(ctx, a.between(0, 2*time.Second))
			return n.OVS.StartDatabase(ctx)
		}),
		node("switch-and-database-kill", func(ctx context.Context, a *Act, n *harness.Node) error {
			a.switchDies(n)
			n.OVS.KillDatabase()
			n.OVS.KillSwitch()
			a.last(ctx, a.between(0, time.Second))
			if err := n.OVS.StartDatabase(ctx); err != nil {
				return err
			}
			return a.switchBack(ctx, n)
		}),
		node("flows-deleted", func(ctx context.Context, a *Act, n *harness.Node) error {
			tables := []int{pipeline.TableClassifier, pipeline.TableConntrackState, pipeline.TableIngressRule, pipeline.TableIngressDefaultRule, pipeline.TableAntreaPolicyIngressRule, pipeline.TableForwarding, pipeline.TableOutput}
			table := tables[a.IntN(len(tables))]
			a.tell("%s, table %d", n.Name, table)
			a.Takes, a.Limit = []string{n.Name}, mendLimit
			_, err := n.OVS.Ofctl(ctx, "del-flows", harness.Bridge, fmt.Sprintf("table=%d", table))
			return err
		}),
		node("flows-added", func(ctx context.Context, a *Act, n *harness.Node) error {
			a.Takes, a.Limit = []string{n.Name}, mendLimit
			_, err := n.OVS.Ofctl(ctx, "add-flow", harness.Bridge, fmt.Sprintf("table=%d,priority=65535,udp,actions=drop", pipeline.TableForwarding))
			return err
		}),
		node("meters-deleted", func(ctx context.Context, a *Act, n *harness.Node) error {
			a.Takes, a.Limit, a.Uncounted = []string{n.Name}, mendLimit, []string{n.Name}
			_, err := n.OVS.Ofctl(ctx, "del-meters", harness.Bridge)
			return err
		}),
	}
}

// switchDies is the journal of a switch's death.
func (a *Act) switchDies(n *harness.Node) {
	a.Takes, a.Limit, a.Uncounted = []string{n.Name}, switchLimit, []string{n.Name}
}

// switchBack starts the switch, and gives the host what went with it.
func (a *Act) switchBack(ctx context.Context, n *harness.Node) error {
	if err := n.OVS.StartSwitch(ctx); err != nil {
		return err
	}
	if err := n.HostBack(ctx); err != nil {
		return err
	}
	return n.RoomySwitch()
}
