package shim

import (
	"context"
	"time"

	"github.com/weirnet/weir/shim/hostfw"
)

// within asks something else of the machine, which the loop does not wait for without end.
func within(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return ask(ctx)
}

// markOwn has the host's own packets carry a source MAC, which it returns; none
// where that is not wanted or could not be done, which is tried again.
func (l *loop) markOwn(ctx context.Context, local [6]byte) [6]byte {
	mac := hostMAC(local)
	if !l.shim.cfg.MarkOwnTraffic || l.config.HostMAC == mac {
		return l.config.HostMAC
	}
	if err := within(ctx, func(ctx context.Context) error { return l.shim.markOwn(ctx, l.shim.cfg.Bridge, mac) }); err != nil {
		if !l.unmarked {
			l.shim.logger.Warn("the host's own traffic to its Pods cannot be told from what it forwards, and is judged too until it can", "err", err)
		}
		l.unmarked = true
		return [6]byte{}
	}
	if l.unmarked {
		l.shim.logger.Info("the host's own traffic to its Pods is told from what it forwards")
	}
	l.unmarked = false
	return mac
}

// hidePorts keeps the host's stack away from the ports, where the datapath
// leaves them to it.
func (l *loop) hidePorts(ctx context.Context) error {
	if l.shim.cfg.Datapath != "netdev" {
		return nil
	}
	if l.sharing() && l.adopting.taken == nil {
		return nil // Nothing is known to be ours yet.
	}
	var fresh []string
	now := make(map[string]bool)
	for _, p := range l.adopted(l.ports) {
		now[p.ID] = true
		if !l.hidden[p.ID] {
			fresh = append(fresh, p.Interface)
		}
	}
	if len(fresh) > 0 {
		if err := hostfw.HideFromHost(ctx, fresh); err != nil {
			return err
		}
	}
	l.hidden = now
	return nil
}

// hostMAC is the source address by which the host's own packets are known.
func hostMAC(local [6]byte) [6]byte {
	local[0] = local[0]&^1 | 2
	local[1] ^= 0x57
	return local
}
