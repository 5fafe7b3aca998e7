package evaluate

import (
	"net/netip"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// kubelet is the port at which a node's own agent is asked.
const kubelet = 10250

// overrules says whether a rule for Nodes does not count since it would deny what
// it takes to steer a node, and its policy does not say that it may.
func (q *question) overrules(r *orderedRule) bool {
	denies := r.rule.Layer7 || r.rule.Action == api.ActionDrop || r.rule.Action == api.ActionReject
	return q.subject.pod == nil && q.nodePort == nil && denies && !r.policy.AllowLockout && q.steers(q.flow)
}

// steers says whether a flow is a Node's to an API server or a policy service, or
// from these to a Node's kubelet.
func (s *State) steers(f *flow) bool {
	if f.protocol != api.ProtocolTCP {
		return false
	}
	for _, slice := range s.slices {
		if !slice.Controls() {
			continue
		}
		servers := slice.Servers()
		if f.from.node != "" && slices.Contains(servers, netip.AddrPortFrom(f.to.addr, f.port)) {
			return true
		}
		if f.to.node != "" && f.port == kubelet && slices.ContainsFunc(servers, func(a netip.AddrPort) bool { return a.Addr() == f.from.addr }) {
			return true
		}
	}
	return false
}
