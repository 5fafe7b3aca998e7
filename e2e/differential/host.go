package differential

import (
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/hostpolicy"
)

// ofHosts judges the ends of a connection that are hosts of nodes: what the node's
// firewall is to do is what the evaluator says of that end.
func (r *run) ofHosts(probe evaluate.Connection, from, to place) *Difference {
	if from.node == to.node && !from.isPod() && !to.isPod() || r.cluster.nodePort(probe) {
		return nil // It never leaves the host, or is not the host's.
	}
	packet := first(probe)
	c := hostpolicy.Connection{Protocol: packet.IPProto, Port: packet.DstPort, SourcePort: packet.SrcPort, ICMPType: packet.ICMPType, ICMPCode: packet.ICMPCode}
	for _, end := range []struct {
		at               place
		list             hostpolicy.List
		own, peer        evaluate.Endpoint
		enforced, staged *evaluate.Decision
	}{
		{from, hostpolicy.Egress, probe.From, probe.To, &r.result.Egress, &r.staged.Egress},
		{to, hostpolicy.Ingress, probe.To, probe.From, &r.result.Ingress, &r.staged.Ingress},
	} {
		if end.at.isPod() || r.cluster.nodes[end.at.node] == nil {
			continue
		}
		plan, problems := r.cluster.nodes[end.at.node].plan()
		if len(problems) > 0 {
			return r.differ("node %s: %s: %v", end.at.node, problems[0].Key, problems[0].Err)
		}
		c.Own, c.Peer = end.own.Addr, end.peer.Addr
		r.stats.Hosts++
		for staged, want := range map[bool]*evaluate.Decision{false: end.enforced, true: end.staged} {
			v := plan.Judge(end.list, c, staged)
			var got []string
			if v.Rule >= 0 {
				got = append(got, nameOf(plan.Rules(end.list)[v.Rule].Policy))
			}
			told := !staged || r.staged != r.result // Who would decide the same is not told.
			if unanswered := probe.Protocol == api.ProtocolUDP || probe.Protocol == api.ProtocolSCTP; end.list == hostpolicy.Egress && unanswered && v.Action == policyv1.Action_ACTION_REJECT {
				v.Action = policyv1.Action_ACTION_DROP // What it comes to; the record says Reject.
			}
			if v.Action != wireActions[want.Action] || told && !slices.Equal(got, deciders(want)) {
				return r.differ("%v of the host, staged %t: the evaluator says %s by %v, the firewall of %s is to %s by %v", end.list.Direction(), staged, want.Action, deciders(want), end.at.node, v.Action, got)
			}
			if !staged && v.Rule >= 0 {
				r.stats.HostsJudged++
			}
		}
	}
	return nil
}
