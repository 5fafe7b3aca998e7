package chaos

import (
	"context"
	"fmt"
	"time"

	"github.com/weirnet/weir/e2e/harness"
)

func shimFaults() []Fault {
	shim := func(name string, do func(ctx context.Context, a *Act, n *harness.Node) error) Fault {
		return Fault{name, func(ctx context.Context, a *Act) error {
			n := a.node()
			defer a.claim(n.Shim.Name)()
			a.starts()
			a.tell("%s", n.Name)
			a.Holds, a.Shims = []string{n.Name}, []string{n.Name}
			return do(ctx, a, n)
		}}
	}
	return []Fault{
		shim("shim-kill", func(ctx context.Context, a *Act, n *harness.Node) error {
			return a.dead(ctx, n.Shim, (*harness.Process).Kill, a.between(0, 1500*time.Millisecond))
		}),
		shim("shim-restart", func(ctx context.Context, a *Act, n *harness.Node) error {
			return a.dead(ctx, n.Shim, (*harness.Process).Terminate, 0)
		}),
		shim("shim-pause", func(ctx context.Context, a *Act, n *harness.Node) error {
			a.Shims = nil
			return a.paused(ctx, n.Shim, a.between(500*time.Millisecond, 3*time.Second))
		}),
	}
}

func policyFaults() []Fault {
	one := func(name string, do func(ctx context.Context, a *Act, p *harness.Process) error) Fault {
		return Fault{name, func(ctx context.Context, a *Act) error {
			p := a.Policyds[a.IntN(len(a.Policyds))]
			defer a.claim(p.Name)()
			a.starts()
			a.tell("%s", p.Name)
			return do(ctx, a, p)
		}}
	}
	return []Fault{
		one("policyd-kill", func(ctx context.Context, a *Act, p *harness.Process) error {
			return a.dead(ctx, p, (*harness.Process).Kill, a.between(0, 2*time.Second))
		}),
		one("policyd-pause", func(ctx context.Context, a *Act, p *harness.Process) error {
			return a.paused(ctx, p, a.between(500*time.Millisecond, 4*time.Second))
		}),
		{"policyds-kill", func(ctx context.Context, a *Act) error {
			defer a.claim(a.Policyds[0].Name, a.Policyds[1].Name)()
			a.starts()
			for _, p := range a.Policyds {
				a.Stop(p, (*harness.Process).Kill)
			}
			a.nudge()
			a.last(ctx, a.between(500*time.Millisecond, 2*time.Second))
			for _, p := range a.Policyds {
				if err := a.Start(p); err != nil {
					return err
				}
			}
			return nil
		}},
		partition("partition-policyd", "198.18.0.1-198.18.0.3", 9740),
		partition("partition-auditd", "198.18.0.1", 9741),
	}
}

// partition keeps a node from a service.
func partition(name, addresses string, port int) Fault {
	return Fault{name, func(ctx context.Context, a *Act) error {
		n := a.node()
		defer a.claim(name + n.Name)()
		a.starts()
		a.tell("%s", n.Name)
		table := fmt.Sprintf("inet chaos-%d", port)
		rules := fmt.Sprintf("add table %[1]s\nadd chain %[1]s out { type filter hook output priority 0; }\nadd rule %[1]s out ip daddr %[2]s tcp dport %[3]d drop\n"+
			"add chain %[1]s in { type filter hook input priority 0; }\nadd rule %[1]s in ip saddr %[2]s tcp sport %[3]d drop\n", table, addresses, port)
		if err := a.nft(ctx, n, rules); err != nil {
			return err
		}
		a.nudge()
		a.last(ctx, a.between(time.Second, 4*time.Second))
		return a.nft(context.WithoutCancel(ctx), n, "delete table "+table+"\n")
	}}
}

func collectorFaults() []Fault {
	auditd := func(name string, do func(ctx context.Context, a *Act) error) Fault {
		return Fault{name, func(ctx context.Context, a *Act) error {
			defer a.claim(a.Auditd.Name)()
			a.starts()
			return do(ctx, a)
		}}
	}
	return []Fault{
		auditd("auditd-kill", func(ctx context.Context, a *Act) error {
			return a.dead(ctx, a.Auditd, (*harness.Process).Kill, a.between(0, 2*time.Second))
		}),
		auditd("auditd-restart", func(ctx context.Context, a *Act) error {
			return a.dead(ctx, a.Auditd, (*harness.Process).Terminate, 0)
		}),
		auditd("auditd-pause", func(ctx context.Context, a *Act) error {
			return a.paused(ctx, a.Auditd, a.between(500*time.Millisecond, 3*time.Second))
		}),
		auditd("rotation", func(ctx context.Context, a *Act) error { return a.rotate(ctx) }),
		auditd("disk-full", func(ctx context.Context, a *Act) error {
			free, err := fill(a.disk)
			if err != nil {
				return err
			}
			a.last(ctx, a.between(time.Second, 3*time.Second))
			return free()
		}),
	}
}

// dead ends a process and starts it again after a while.
func (a *Act) dead(ctx context.Context, p *harness.Process, end func(*harness.Process), d time.Duration) error {
	a.Stop(p, end)
	if d > 0 {
		a.last(ctx, d)
	}
	return a.Start(p)
}

// paused stops a process for a while where it stands.
func (a *Act) paused(ctx context.Context, p *harness.Process, d time.Duration) error {
	if err := p.Pause(); err != nil {
		return err
	}
	a.last(ctx, d)
	return p.Resume()
}
