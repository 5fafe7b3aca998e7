package pipeline

import (
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// Addresses are those that Pods have by a state, by the address group that
// tells of them; Pods of this node under the zero id.
type Addresses map[storage.ScopeID][]podAddress

type podAddress struct {
	key  string // Of the Pod.
	addr netip.Addr
}

// AddressesOf reads them from a state.
func AddressesOf(state *storage.Replica) Addresses {
	out := make(Addresses)
	state.Scopes(func(id storage.ScopeID) {
		in := id
		switch kind, _ := state.Kind(id); kind {
		case storage.ScopeNode:
			in = storage.ScopeID{}
		case storage.ScopeAddressGroup:
		default:
			return
		}
		pods := 0
		state.Keys(id, func(string) { pods++ })
		list := slices.Grow(out[in], pods) // Most have one address.
		state.Scope(id, func(key string, item *policyv1.Item) {
			for _, a := range podAddresses(item) {
				list = append(list, podAddress{key, a})
			}
		})
		out[in] = list
	})
	return out
}

// podAddresses are those of an item that is a Pod's.
func podAddresses(item *policyv1.Item) []netip.Addr {
	if ep := item.GetEndpoint(); ep != nil {
		return addrs(ep.GetIps())
	}
	if m := item.GetMember(); m.GetPod() != nil {
		return addrs(m.GetIps())
	}
	return nil
}

// Departed are addresses that Pods had by an earlier state than the compiler's, and
// have no more, as far as this one tells: see Change.Vacated.
func (c *Compiler) Departed(former Addresses) (out []netip.Addr) {
	for id, pods := range former {
		if _, held := c.groups[id]; !held && id != (storage.ScopeID{}) { // Its members may well be elsewhere.
			continue
		}
		for _, p := range pods {
			if !slices.ContainsFunc(c.names[p.addr], func(n nameCount) bool { return n.key == p.key }) {
				out = append(out, p.addr)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
