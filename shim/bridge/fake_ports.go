package bridge

import (
	"cmp"
	"context"
	"fmt"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"maps"
	"slices"
)

// AddPort puts an interface on the bridge, with the next free number; that it
// is there already only sets its external ids.
func (f *Fake) AddPort(_ context.Context, name string, externalIDs map[string]string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer signal(f.changed)
	if i := slices.IndexFunc(f.ports, func(p Port) bool { return p.Name == name }); i >= 0 {
		ids := maps.Clone(f.ports[i].ExternalIDs)
		if ids == nil {
			ids = map[string]string{}
		}
		maps.Copy(ids, externalIDs)
		f.ports[i].ExternalIDs = ids
		return nil
	}
	f.portCount++
	number := uint32(1)
	for slices.ContainsFunc(f.ports, func(p Port) bool { return p.Number == number }) {
		number++
	}
	f.ports = append(f.ports, Port{
		ID:          fmt.Sprintf("row-%d", f.portCount),
		Name:        name,
		Number:      number,
		MAC:         [6]byte{2, 0xff, 0, 0, byte(f.portCount >> 8), byte(f.portCount)},
		ExternalIDs: maps.Clone(externalIDs),
		AdminUp:     true,
		LinkUp:      true,
	})
	return nil
}

// SetPortIDs sets the external ids of the row of an interface's port, as others
// than us write them.
func (f *Fake) SetPortIDs(name string, ids map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer signal(f.changed)
	for i := range f.ports {
		if f.ports[i].Name == name {
			f.ports[i].PortIDs = maps.Clone(ids)
		}
	}
}

// RemovePort takes an interface off the bridge.
func (f *Fake) RemovePort(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer signal(f.changed)
	f.ports = slices.DeleteFunc(f.ports, func(p Port) bool { return p.Name == name })
	return nil
}

// PortsChanged is as Bridge.PortsChanged.
func (f *Fake) PortsChanged() <-chan struct{} { return f.changed }

// Ports is as Bridge.Ports.
func (f *Fake) Ports(context.Context) ([]Port, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := slices.Clone(f.ports)
	slices.SortFunc(out, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Local is as Bridge.Local.
func (f *Fake) Local(context.Context) (Port, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.ports {
		if p.Local() {
			return p, nil
		}
	}
	return Port{}, fmt.Errorf("bridge %s has no interface of its own", f.cfg.Name)
}

// FlushConntrack is as Bridge.FlushConntrack.
func (f *Fake) FlushConntrack(_ context.Context, of Connections) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.connected {
		return ErrDisconnected
	}
	f.conns.flush(func(c *connection) bool {
		if !of.AnyZone && c.orig.zone != of.Zone || of.Proto != 0 && c.orig.proto != of.Proto {
			return false
		}
		switch {
		case of.Endpoint.IsValid():
			return c.orig.dst == of.Addr && c.orig.dport == of.DstPort && c.reply.src == of.Endpoint
		case of.Peer.IsValid():
			return c.orig.src == of.Addr && c.orig.dst == of.Peer && (of.Proto == 0 || of.ports(c.orig))
		}
		return c.orig.src == of.Addr || c.orig.dst == of.Addr || c.reply.src == of.Addr || c.reply.dst == of.Addr
	})
	return nil
}

// ports says whether a tuple has the ports that are asked for.
func (c Connections) ports(t tuple) bool {
	switch t.proto {
	case openflow.ProtoTCP, openflow.ProtoUDP:
		return t.sport == c.SrcPort && t.dport == c.DstPort
	case openflow.ProtoICMP, openflow.ProtoICMPv6:
		return t.sport == c.SrcPort
	}
	return true
}

// Settle returns at once: the fake has no cache between its packets and its flows.
func (f *Fake) Settle(ctx context.Context, touch openflow.Flow) error {
	return f.Apply(ctx, Change{Upsert: []openflow.Flow{touch}})
}
