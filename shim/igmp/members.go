package igmp

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// Most groups that one port, and that a node may have members of, and most
// members of a group.
const (
	GroupsOfPort = 64
	GroupsOfNode = 1024
	PortsOfGroup = 256
)

// Interval is the time between queries, Startup that between the first two to a
// port, and Lifetime how long a member is one that does not say so again: RFC 2236,
// section 8.
const (
	Interval = 125 * time.Second
	Startup  = Interval / 4
	Lifetime = 260 * time.Second
)

// ErrFull says that there is no room for a member.
var ErrFull = errors.New("too many multicast groups")

// Port is a port of the bridge: its OpenFlow number, and the id of the row, by
// which a port that comes later by that number is another.
type Port struct {
	Number uint32
	ID     string
}

// Member is a port that is a member of a group.
type Member struct {
	Group netip.Addr
	Port  Port
}

// state is how a member became one.
type state struct {
	until time.Time
	typ   uint8 // Of the message.
}

// Members are those of the groups of a node. The zero value has none.
type Members struct {
	groups map[netip.Addr]map[Port]state
	held   map[Port]int // Groups, by port.
}

// Forwarded says whether what is sent to an address is forwarded to members: to a
// multicast group that is not of the link alone.
func Forwarded(group netip.Addr) bool {
	return group.Is4() && group.IsMulticast() && !group.IsLinkLocalMulticast()
}

// Join makes a port a member until its time is over, and says whether it was none
// before. Of a group of the link alone there are no members.
func (m *Members) Join(now time.Time, member Member, typ uint8) (fresh bool, err error) {
	if !Forwarded(member.Group) {
		return false, nil
	}
	in := m.groups[member.Group]
	_, is := in[member.Port]
	if !is && (m.held[member.Port] >= GroupsOfPort || in == nil && len(m.groups) >= GroupsOfNode || len(in) >= PortsOfGroup) {
		return false, ErrFull
	}
	if m.groups == nil {
		m.groups, m.held = make(map[netip.Addr]map[Port]state), make(map[Port]int)
	}
	if in == nil {
		in = make(map[Port]state)
		m.groups[member.Group] = in
	}
	in[member.Port] = state{now.Add(Lifetime), typ}
	if !is {
		m.held[member.Port]++
	}
	return !is, nil
}

// Leave makes a port no member, and says whether it was one.
func (m *Members) Leave(member Member) bool {
	in := m.groups[member.Group]
	if _, is := in[member.Port]; !is {
		return false
	}
	if delete(in, member.Port); len(in) == 0 {
		delete(m.groups, member.Group)
	}
	if m.held[member.Port]--; m.held[member.Port] == 0 {
		delete(m.held, member.Port)
	}
	return true
}

// Keep has those leave whose time is over, and those that stays is false for, with
// the type of the message by which they joined. It says whether any did.
func (m *Members) Keep(now time.Time, stays func(member Member, typ uint8) bool) (changed bool) {
	for group, in := range m.groups {
		for port, s := range in {
			if member := (Member{group, port}); !now.Before(s.until) || !stays(member, s.typ) {
				m.Leave(member)
				changed = true
			}
		}
	}
	return changed
}

// All are the members, in order.
func (m *Members) All() (out []Member) {
	for group, in := range m.groups {
		for port := range in {
			out = append(out, Member{group, port})
		}
	}
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(a.Group.Compare(b.Group), cmp.Compare(a.Port.Number, b.Port.Number), cmp.Compare(a.Port.ID, b.Port.ID))
	})
	return out
}
