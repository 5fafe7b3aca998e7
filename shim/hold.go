package shim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/storage"
	"github.com/weirnet/weir/storage/faultpoint"
)

// A port of a known Pod carries traffic, but in two cases: other nodes have not
// all applied the Pod's address, which the service says and for which the shim
// waits no longer than Config.PeerBarrier; or connections that the address had
// under its former owner could not be forgotten.

// hold is a Pod whose port stays closed.
type hold struct {
	until time.Time
	was   []netip.Addr // With which its port was open when the hold began; nil where it was not.
	uid   string       // Of the Pod, as the state says it.
}

// holdRequest is the client's.
type holdRequest struct {
	endpoints []string
	release   bool
}

// Hold implements client.Handler: the loop does it, before the next Apply.
func (s *Shim) Hold(ctx context.Context, endpoints []string) {
	s.requestHold(ctx, holdRequest{endpoints: endpoints})
}

// Release implements client.Handler.
func (s *Shim) Release(ctx context.Context, endpoints []string) {
	s.requestHold(ctx, holdRequest{endpoints: endpoints, release: true})
}

func (s *Shim) requestHold(ctx context.Context, r holdRequest) {
	select {
	case s.holds <- r:
	case <-ctx.Done():
	}
}

// hold takes a request.
func (l *loop) hold(ctx context.Context, r holdRequest) {
	if r.release {
		for _, key := range r.endpoints {
			delete(l.held, key)
		}
		l.openPorts(ctx)
		return
	}
	if l.shim.cfg.PeerBarrier <= 0 {
		return
	}
	until := time.Now().Add(l.shim.cfg.PeerBarrier)
	for _, key := range r.endpoints {
		if l.held[key] != nil {
			continue
		}
		h := &hold{until: until}
		if l.compiler != nil {
			h.was = l.compiler.OpenEndpoint(key)
		}
		l.held[key] = h
	}
	l.timeHolds()
}

// sift ends the holds of Pods whose ports are open and whose addresses a state
// leaves as they were: another replica may be told late of what all nodes know.
func (l *loop) sift(state *storage.Replica) {
	if len(l.held) == 0 {
		return
	}
	state.Items(storage.ScopeNode, func(_ storage.ScopeID, item *policyv1.Item) {
		ep := item.GetEndpoint()
		if ep == nil {
			return
		}
		key := storage.PodKey(ep.GetNamespace(), ep.GetName())
		if h := l.held[key]; h != nil {
			h.uid = ep.GetUid()
		}
		if h := l.held[key]; h != nil && h.was != nil && slices.EqualFunc(h.was, ep.GetIps(), func(a netip.Addr, b []byte) bool {
			return slices.Equal(a.AsSlice(), b)
		}) {
			delete(l.held, key)
		}
	})
}

// usable are the ports that may be open.
func (l *loop) usable() []pipeline.Port {
	ports := l.adopted(l.ports)
	if len(l.held)+len(l.haunted) == 0 {
		return ports
	}
	return slices.DeleteFunc(slices.Clone(ports), func(p pipeline.Port) bool {
		return l.isHeld(p) || l.haunted[p.ID]
	})
}

// isHeld tells whether a port's Pod is.
func (l *loop) isHeld(p pipeline.Port) bool {
	if p.Name != "" {
		return l.held[storage.PodKey(p.Namespace, p.Name)] != nil
	}
	for _, h := range l.held {
		if h.uid != "" && h.uid == p.UID {
			return true
		}
	}
	return false
}

// openPorts brings to the bridge what changed in usable.
func (l *loop) openPorts(ctx context.Context) {
	if l.compiler == nil {
		return
	}
	l.share()
	change, err := l.compiler.Update(nil, nil, l.usable()) // With no policies touched it refuses none.
	if err == nil {
		err = l.tell(ctx, change)
	}
	if err != nil {
		l.failed(err)
	}
	faultpoint.Reach("shim.ports.told")
}

// timeHolds sets the timer to the end of the first hold.
func (l *loop) timeHolds() {
	var first time.Time
	for _, h := range l.held {
		if first.IsZero() || h.until.Before(first) {
			first = h.until
		}
	}
	if !first.IsZero() {
		l.holdTimer.Reset(time.Until(first))
	}
}

// endHolds opens the ports that have waited long enough.
func (l *loop) endHolds(ctx context.Context, now time.Time) {
	ended := 0
	for key, h := range l.held {
		if now.Before(h.until) {
			continue
		}
		delete(l.held, key)
		if l.compiler != nil && l.compiler.Knows(key) {
			ended++
			l.shim.logger.Warn("port opens although not all nodes concerned are known to have the Pod's address", "endpoint", key, "waited", l.shim.cfg.PeerBarrier)
		}
	}
	l.timeHolds()
	if ended > 0 {
		l.shim.metrics.barrierTimeouts.Add(float64(ended))
		l.openPorts(ctx)
	}
}

// exorcise forgets what connections the addresses of newly open ports have from
// former owners. A port for which that fails is closed again before the bridge
// knows of it, and tried again later.
func (l *loop) exorcise(ctx context.Context, before map[netip.Addr]string) {
	again := false
	for addr, port := range l.open {
		if before[addr] == port {
			continue
		}
		if err := l.forget(ctx, addr); err != nil {
			l.failed(fmt.Errorf("port stays closed: %w", err))
			l.haunted[port] = true
			again = true
		}
	}
	if !again {
		return
	}
	if _, err := l.compiler.Update(nil, nil, l.usable()); err != nil {
		l.failed(err)
	}
	l.open = l.compiler.OpenAddresses()
	l.stale = true // What the two updates change comes to the bridge by reading it back.
}

// retryHaunted tries the ports again whose connections could not be forgotten.
func (l *loop) retryHaunted(ctx context.Context) {
	if len(l.haunted) > 0 {
		clear(l.haunted)
		l.openPorts(ctx)
	}
}

// forgetPassedOn forgets the old connections of addresses that have another
// owner by now. It is part of applying a cut: what the former owner was allowed
// must not carry the new one.
func (l *loop) forgetPassedOn(ctx context.Context) error {
	for addr := range l.vacated {
		if !l.compiler.Owned(addr) {
			continue
		}
		if err := l.forget(ctx, addr); err != nil {
			return err
		}
		delete(l.vacated, addr)
	}
	return nil
}

// forgetTime bounds how long the loop is kept by addresses that nobody here is
// known to have, with a cut and with each retry: forgetting them reads the whole
// connection table. On most nodes that is enough for all, and before the cut is
// acknowledged, so that an heir that only other nodes know of waits for it too.
const forgetTime = 20 * time.Millisecond

// forgetVacated forgets the connections of addresses that nobody has any more,
// as far as the time goes.
func (l *loop) forgetVacated(ctx context.Context) {
	if !l.complete || l.compiler == nil {
		return // A former shim may have ended before the addresses were vacated.
	}
	defer l.keepOwners()
	for start := time.Now(); len(l.vacated) > 0 && time.Since(start) < forgetTime; {
		for addr := range l.vacated {
			if err := l.forget(ctx, addr); err != nil {
				l.failed(err)
				return
			}
			delete(l.vacated, addr)
			break
		}
	}
}

// forgetUnserved forgets the connections to endpoints that serve a Service no
// more, of protocols by which a client would go on.
func (l *loop) forgetUnserved(ctx context.Context) error {
	for s := range l.unserved {
		of := bridge.Connections{Addr: s.VIP.Addr(), DstPort: s.VIP.Port(), Proto: s.Proto, Zone: pipeline.Zone, Endpoint: s.Endpoint}
		if err := l.sw.FlushConntrack(ctx, of); err != nil {
			return err
		}
		delete(l.unserved, s)
	}
	return nil
}

// forget drops the connections of an address, in all zones that it may be in.
func (l *loop) forget(ctx context.Context, addr netip.Addr) error {
	for _, of := range []bridge.Connections{
		{Addr: addr, Zone: pipeline.Zone},
		{Addr: addr, Peer: addr, Zone: pipeline.HairpinZone},
		{Addr: addr, AnyZone: true, Proto: openflow.ProtoSCTP},
	} {
		if err := l.sw.FlushConntrack(ctx, of); err != nil {
			return err
		}
	}
	faultpoint.Reach("shim.apply.forgotten")
	return nil
}
