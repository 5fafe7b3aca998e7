package pipeline

import (
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// Addresses are those that Pods have by a state, by the Pod's key and the address
// group that tells of them; Pods of this node under the zero id.
type Addresses map[storage.ScopeID]map[string][]netip.Addr

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
		state.Scope(id, func(key string, item *policyv1.Item) {
			ips := podAddresses(item)
			if len(ips) == 0 {
				return
			}
			if out[in] == nil {
				out[in] = make(map[string][]netip.Addr)
			}
			out[in][key] = ips
		})
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
		for key, ips := range pods {
			for _, a := range ips {
				if !slices.ContainsFunc(c.names[a], func(n nameCount) bool { return n.key == key }) {
					out = append(out, a)
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
