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
	for _, kind := range []storage.ScopeKind{storage.ScopeNode, storage.ScopeAddressGroup} {
		state.Items(kind, func(id storage.ScopeID, item *policyv1.Item) {
			if kind == storage.ScopeNode {
				id = storage.ScopeID{}
			}
			key, ips := podAddresses(item)
			if len(ips) == 0 {
				return
			}
			if out[id] == nil {
				out[id] = make(map[string][]netip.Addr)
			}
			out[id][key] = ips
		})
	}
	return out
}

// podAddresses are those of an item that is a Pod's, with the Pod's key.
func podAddresses(item *policyv1.Item) (key string, ips []netip.Addr) {
	if ep := item.GetEndpoint(); ep != nil {
		return storage.PodKey(ep.GetNamespace(), ep.GetName()), addrs(ep.GetIps())
	}
	m := item.GetMember()
	if pod := m.GetPod(); pod != nil {
		return storage.PodKey(pod.GetNamespace(), pod.GetName()), addrs(m.GetIps())
	}
	return "", nil
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
