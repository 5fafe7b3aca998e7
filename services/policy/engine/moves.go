package engine

import (
	"net/netip"
	"slices"

	"github.com/weirnet/weir/storage"
)

// Moves are the addresses that a Flush gave to endpoints and took from them.
// Who serves the nodes keeps a new Pod's port closed until its address has
// arrived where a rule waits for it, and its former owner's has left.
type Moves struct {
	Arrivals   []Arrival
	Departures []Departure
}

// Arrival is an endpoint that has addresses which it did not have before.
type Arrival struct {
	Node      string
	Key       string // Of the endpoint's item.
	Addresses []netip.Addr
	// Awaited are the address groups that have it as a member and that rules
	// name which do more than allow: before its address is there, such a rule
	// does not hold it back.
	Awaited []storage.ScopeID
}

// Departure is addresses that an endpoint had and has no more.
type Departure struct {
	Addresses []netip.Addr
	// Scopes are where they were told: that of the endpoint's node, and its
	// address groups. The changes of the Flush may end these scopes.
	Scopes []storage.ScopeID
}

// moves finds Moves during a Flush.
type moves struct {
	Moves
	wanted bool
	told   map[*pod][]storage.ScopeID // Groups in which the store has members that may have gone.
}

// member takes note of a member that has come, changed or gone.
func (m *moves) member(gm groupMember) {
	if !m.wanted || !gm.group.told || gm.pod.told == nil {
		return
	}
	if m.told == nil {
		m.told = make(map[*pod][]storage.ScopeID)
	}
	m.told[gm.pod] = append(m.told[gm.pod], gm.group.id)
}

// pod compares an endpoint with what the last Flush told of it.
func (m *moves) pod(p *pod) {
	if !m.wanted {
		return
	}
	now := p.obj
	if p.class == nil {
		now = nil
	}
	if p.told != nil && now != nil && p.told.UID == now.UID && p.told.Node == now.Node && slices.Equal(p.told.IPs, now.IPs) {
		return
	}
	if p.told != nil {
		scopes := append(m.told[p], storage.NewScopeID(storage.ScopeNode, p.told.Node))
		m.Departures = append(m.Departures, Departure{Addresses: p.told.IPs, Scopes: scopes})
	}
	if now != nil {
		a := Arrival{Node: now.Node, Key: p.key, Addresses: now.IPs}
		for _, g := range p.class.groups.items {
			if g.awaited > 0 {
				a.Awaited = append(a.Awaited, g.id)
			}
		}
		m.Arrivals = append(m.Arrivals, a)
	}
}
