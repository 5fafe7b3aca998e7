package chaos

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

// checkpointFaults do something to a shim's checkpoint while that is dead.
func checkpointFaults() []Fault {
	fault := func(name string, do func(ctx context.Context, a *Act, n *harness.Node, path string) error) Fault {
		return Fault{name, func(ctx context.Context, a *Act) error {
			n := a.node()
			defer a.claim(n.Shim.Name)()
			a.starts()
			a.tell("%s", n.Name)
			a.Holds, a.Shims, a.Blind = []string{n.Name}, []string{n.Name}, []string{n.Name}
			path := filepath.Join(n.StateDir(), "checkpoint")
			if err := harness.Eventually(ctx, 5*time.Second, func() error { _, err := os.Stat(path); return err }); err != nil {
				return err // It is written within a second of the first cut.
			}
			// Until it has heard from a policy service, it cannot bring back what another fault
			// takes from the switch.
			return errors.Join(do(ctx, a, n, path), a.Start(n.Shim), a.settled(ctx))
		}}
	}
	return []Fault{
		fault("checkpoint-removed", func(_ context.Context, a *Act, n *harness.Node, path string) error {
			a.World.Stop(n.Shim, (*harness.Process).Kill)
			return os.Remove(path)
		}),
		fault("checkpoint-torn", func(_ context.Context, a *Act, n *harness.Node, path string) error {
			a.World.Stop(n.Shim, (*harness.Process).Kill)
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, a.Int64N(int64(len(text))))
		}),
		fault("checkpoint-stale", func(ctx context.Context, a *Act, n *harness.Node, path string) error {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			err = a.settled(ctx) // There is another since.
			a.World.Stop(n.Shim, (*harness.Process).Kill)
			return errors.Join(err, os.WriteFile(path, text, 0o600))
		}),
	}
}
