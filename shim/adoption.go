package shim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
)

// A bridge with running workloads is adopted:
//
//	waiting   nothing of it is touched, until the first whole state
//	sharing   each port that the state knows is taken, in a bundle of its own;
//	          flows of others serve the rest
//	closing   one bundle: default drop, and what is not ours goes; then the
//	          bridge is made to fail closed, for which it is empty for a moment
//
// Connections may be marked allowed that a port's rules have not judged, up to
// the moment in which it is taken: so at first its packets skip no rules, then
// its connections are forgotten, and then they may (trust).
type adoption struct {
	bridge  closer
	begun   bool            // A state came: no longer waiting.
	closing bool            // Nothing is shared any more.
	taken   map[string]bool // Ports, by id; true: trusted. Nil: not read back yet.
}

// closer is the part of a bridge that ends its adoption.
type closer interface {
	// Close makes the bridge fail closed; right before that it calls empty. Flows
	// may be gone when it returns.
	Close(ctx context.Context, until time.Time, empty func(context.Context) error) error
}

// finder is a Dataplane whose bridge may be somebody else's.
type finder interface {
	closer
	Find(ctx context.Context, known bool) (bridge.Standing, error)
}

// Values of Config.Adopt.
const (
	AdoptJudge       = "judge"
	AdoptEstablished = "allow-established"
)

// waits says that nothing of the bridge may change yet.
func (l *loop) waits() bool { return l.adopting != nil && !l.adopting.begun }

// sharing says that flows of others serve ports.
func (l *loop) sharing() bool { return l.adopting != nil && !l.adopting.closing }

// share tells the compiler which ports flows of others serve.
func (l *loop) share() { l.shareBy(l.compiler) }

func (l *loop) shareBy(c *pipeline.Compiler) {
	if !l.sharing() {
		c.Share(nil)
		return
	}
	s := &pipeline.Sharing{}
	for _, p := range l.ports {
		if _, taken := l.adopting.taken[p.ID]; !taken {
			s.Others = append(s.Others, p.MAC)
		}
	}
	c.Share(s)
}

// adopted are those of the ports that are taken, or all once nothing is shared.
func (l *loop) adopted(ports []pipeline.Port) []pipeline.Port {
	if l.adopting == nil {
		return ports
	}
	var out []pipeline.Port
	for _, p := range ports {
		trusted, taken := l.adopting.taken[p.ID]
		if taken || l.adopting.closing {
			p.Doubt = !trusted
			out = append(out, p)
		}
	}
	return out
}

// recall reads back how far an adoption had come when a former shim ended.
func (l *loop) recall(ctx context.Context) error {
	a := l.adopting
	if a == nil || a.taken != nil {
		return nil
	}
	actual, err := l.sw.Read(ctx)
	if err != nil {
		return fmt.Errorf("read bridge back: %w", err)
	}
	ports, doubted := make(map[uint32]bool), make(map[uint32]bool)
	for _, f := range actual.Flows {
		if n, ok := pipeline.DividesPort(f); ok {
			ports[n] = true
		}
		if n, ok := pipeline.DoubtsPort(f); ok {
			doubted[n] = true
		}
		a.closing = a.closing || pipeline.Closes(f)
	}
	a.taken = make(map[string]bool)
	for _, p := range l.ports {
		if ports[p.OFPort] {
			a.taken[p.ID] = !doubted[p.OFPort]
		}
	}
	if len(ports) > 0 || a.closing {
		l.shim.logger.Info("adoption of the bridge goes on", "ports", len(a.taken), "closing", a.closing)
	}
	return nil
}

// coexists says whether a sharing is possible with what is on the bridge: with
// flows that would come before ours it is not, nor with none of ours where there
// were some, since the switch has restarted and forwards what was denied.
func (l *loop) coexists(actual bridge.State, held bool) bool {
	if len(l.adopting.taken) > 0 && !held {
		return false
	}
	for _, f := range actual.Foreign {
		if !pipeline.Shareable(f) {
			return false
		}
	}
	if !held {
		for id := range actual.Meters {
			if pipeline.OwnsMeter(id) {
				return false
			}
		}
	}
	return true
}

// adopt goes on with the adoption, to its end if nothing is in the way.
func (l *loop) adopt(ctx context.Context) error {
	a := l.adopting
	if a == nil || !l.complete || l.compiler == nil || l.refused != nil {
		return nil
	}
	for _, p := range slices.Clone(l.ports) {
		if trusted, taken := a.taken[p.ID]; trusted || (!taken && (!l.sharing() || !l.compiler.Fits(p))) {
			continue
		}
		if err := l.take(ctx, p); err != nil {
			return fmt.Errorf("adopt port %s: %w", p.Interface, err)
		}
	}
	if err := l.closeBridge(ctx); err != nil {
		return fmt.Errorf("adopt bridge: %w", err)
	}
	return nil
}

// take brings a port under our tables. It is never less strict than to leave it:
// so the port is not held.
func (l *loop) take(ctx context.Context, p pipeline.Port) error {
	a := l.adopting
	if _, again := a.taken[p.ID]; !again {
		delete(l.held, l.compiler.EndpointKey(p))
		a.taken[p.ID] = false
		if err := l.hidePorts(ctx); err != nil {
			delete(a.taken, p.ID)
			return err
		}
	}
	if err := l.updatePorts(ctx); err != nil {
		return err
	}
	if l.haunted[p.ID] {
		return errors.New("connections of its addresses cannot be forgotten")
	}
	return l.trust(ctx, p)
}

// trust lets connections of ports skip the rules, once those that they may have
// from before are forgotten.
func (l *loop) trust(ctx context.Context, ports ...pipeline.Port) error {
	for _, p := range ports {
		for _, addr := range l.compiler.Addresses(p) {
			if err := l.forget(ctx, addr); err != nil {
				return err
			}
		}
	}
	for _, p := range ports {
		l.adopting.taken[p.ID] = true
	}
	return l.updatePorts(ctx)
}

// updatePorts brings to the bridge what changed in the ports and the sharing.
func (l *loop) updatePorts(ctx context.Context) error {
	l.share()
	change, err := l.compiler.Update(nil, nil, l.usable())
	if err != nil {
		return err
	}
	return l.tell(ctx, change)
}

// endSharing has the compiler want the bridge for itself.
func (l *loop) endSharing(ctx context.Context) error {
	l.adopting.closing = true
	clear(l.held)
	if err := l.hidePorts(ctx); err != nil {
		l.adopting.closing = false
		return err
	}
	l.share()
	_, err := l.compiler.Update(nil, nil, l.usable())
	l.open, l.stale = l.compiler.OpenAddresses(), true // What they may have inherited is forgotten before they are trusted.
	return err
}

// closeBridge ends the adoption.
func (l *loop) closeBridge(ctx context.Context) error {
	a := l.adopting
	if !a.closing {
		if err := l.endSharing(ctx); err != nil {
			return err
		}
	}
	l.settled = false
	if err := l.reconcileIfStale(ctx); err != nil {
		return err
	}
	var doubted []pipeline.Port
	for _, p := range l.ports {
		if !a.taken[p.ID] && l.compiler.Open(p.OFPort) {
			doubted = append(doubted, p)
		}
	}
	if len(doubted) > 0 {
		if err := l.trust(ctx, doubted...); err != nil {
			return err
		}
	}
	if l.shim.cfg.Adopt == AdoptEstablished {
		l.until = time.Now().Add(l.shim.cfg.AdoptWindow)
	}
	l.stale, l.settled = true, false // Whatever becomes of it, the bridge may be empty.
	if err := a.bridge.Close(ctx, l.until, l.empty); err != nil {
		return err
	}
	l.adopting = nil
	if err := l.updatePorts(ctx); err != nil {
		return err
	}
	cut := slices.Clone(l.nobodys)
	for _, p := range l.ports {
		if !l.compiler.Open(p.OFPort) {
			cut = append(cut, p.Interface)
		}
	}
	if len(cut) > 0 {
		l.shim.logger.Warn("ports that the policy service has no Pod for are closed", "interfaces", cut)
	}
	l.shim.logger.Info("bridge adopted", "ports", len(l.ports))
	return nil
}

// empty takes all flows off the bridge in one bundle: nothing passes.
func (l *loop) empty(ctx context.Context) error {
	actual, err := l.sw.Read(ctx)
	if err != nil {
		return err
	}
	keys := append(slices.Collect(maps.Keys(actual.Flows)), slices.Collect(maps.Keys(actual.Foreign))...)
	return l.put(ctx, bridge.Change{Delete: keys})
}

func (l *loop) reconcileIfStale(ctx context.Context) error {
	if !l.stale {
		return nil
	}
	return l.reconcile(ctx)
}

// lets says whether older connections may go on unjudged.
func (l *loop) lets(now time.Time) bool {
	return now.Before(l.until) || (l.adopting != nil && l.shim.cfg.Adopt == AdoptEstablished)
}

// endEstablished judges what is left of older connections, when their time is over.
func (l *loop) endEstablished(ctx context.Context, now time.Time) {
	if l.until.IsZero() || l.compiler == nil || l.lets(now) {
		return
	}
	l.until = time.Time{}
	l.compiler.LetEstablished(false)
	if err := l.updatePorts(ctx); err != nil {
		l.failed(err)
		return
	}
	l.shim.logger.Info("connections that are older than the bridge's adoption are judged from now on")
}
