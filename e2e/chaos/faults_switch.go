package chaos

import (
	"context"
	"errors"
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
			a.Takes, a.Limit = []string{n.Name}, time.Second // The datapath stands still.
			n.OVS.KillDatabase()
			a.last(ctx, a.between(0, 2*time.Second))
			return errors.Join(n.OVS.StartDatabase(ctx), n.OVS.Followed(ctx))
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
			return a.tamper(ctx, n, "del-flows", harness.Bridge, fmt.Sprintf("table=%d", table))
		}),
		node("flows-added", func(ctx context.Context, a *Act, n *harness.Node) error {
			return a.tamper(ctx, n, "add-flow", harness.Bridge, fmt.Sprintf("cookie=0xc4a05,table=%d,priority=65535,udp,actions=drop", pipeline.TableForwarding))
		}),
		node("meters-deleted", func(ctx context.Context, a *Act, n *harness.Node) error {
			a.Uncounted = []string{n.Name} // Until they are back: flows that name them stay, and report under none.
			return a.tamper(ctx, n, "del-meters", harness.Bridge)
		}),
	}
}

// tamper does something to the bridge with ovs-ofctl, and waits until the shim has
// put that right: what it checks is what it wants.
func (a *Act) tamper(ctx context.Context, n *harness.Node, args ...string) error {
	a.Takes, a.Limit = []string{n.Name}, time.Second
	if _, err := n.OVS.Ofctl(ctx, args...); err != nil {
		return err
	}
	began, held := time.Now(), a.claimed(n.Shim.Name)
	err := harness.Eventually(ctx, settleLimit, func() error {
		held = held || a.claimed(n.Shim.Name)
		differs, err := n.Check(ctx)
		if err == nil && differs != "" {
			err = errors.New("the bridge is not mended: " + differs)
		}
		return err
	})
	if took := time.Since(began); err == nil && !held && took > mendLimit {
		err = fmt.Errorf("the bridge was mended after %s", took)
	}
	return err
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
