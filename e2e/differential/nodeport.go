package differential

import (
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/storage"
)

// plan is what a node's firewall is to do.
func (n *node) plan() (*hostpolicy.Plan, []hostpolicy.Problem) {
	var s hostpolicy.State
	n.replica.Items(storage.ScopePolicies, func(id storage.ScopeID, item *policyv1.Item) {
		if p := item.GetPolicy(); hostpolicy.Concerns(p) {
			s.Items = append(s.Items, hostpolicy.Item{Scope: id, Key: storage.PolicyKey(p), Policy: p})
		}
	})
	n.replica.Items(storage.ScopeNode, func(_ storage.ScopeID, item *policyv1.Item) {
		if facts := item.GetNode(); facts != nil {
			s.Facts = facts
		}
	})
	s.Members = func(group []byte, fn func(*policyv1.Member)) {
		if id, ok := storage.ScopeIDFromBytes(group); ok {
			n.replica.Scope(id, func(_ string, item *policyv1.Item) { fn(item.GetMember()) })
		}
	}
	return hostpolicy.New(s)
}

// toNodePort judges a connection to a port that a Service has on every node: what
// the node's firewall is to do with it is what the evaluator says of ingress. What
// a host sends to itself comes by its loopback, where no firewall of ours is.
func (r *run) toNodePort(probe evaluate.Connection, from, to place) *Difference {
	if !r.cluster.nodePort(probe) {
		return nil
	}
	result, err := r.cluster.evaluator.Explain(probe)
	if err != nil {
		return r.differ("the evaluator refuses the connection: %v", err)
	}
	r.stats.NodePorts++
	r.setResult(&result)
	if why := unexplained(&result); why != "" {
		return r.differ("the explanation is not that of the verdict: %s", why)
	}
	if !from.isPod() && from.node == to.node {
		if result.Ingress.Action != evaluate.Allow || r.staged.Ingress.Action != evaluate.Allow {
			return r.differ("ingress: the evaluator says %s of what a host sends to itself", result.Ingress.Action)
		}
		return nil
	}
	plan, problems := r.cluster.nodes[to.node].plan()
	if len(problems) > 0 {
		return r.differ("node %s: %s: %v", to.node, problems[0].Key, problems[0].Err)
	}
	for staged, want := range map[bool]*evaluate.Decision{false: &r.result.Ingress, true: &r.staged.Ingress} {
		v := plan.Judge(hostpolicy.NodePorts, hostpolicy.Connection{Peer: probe.From.Addr, Protocol: uint8(probe.Protocol), Port: probe.Port, SourcePort: probe.SourcePort}, staged)
		var got []string
		if v.Rule >= 0 {
			got = append(got, nameOf(plan.NodePorts[v.Rule].Policy))
		}
		told := !staged || result.Staged != nil // Who would decide the same is not told.
		if v.Action != wireActions[want.Action] || told && !slices.Equal(got, deciders(want)) {
			return r.differ("ingress, staged %t: the evaluator says %s by %v, the firewall of %s is to %s by %v", staged, want.Action, deciders(want), to.node, v.Action, got)
		}
	}
	return nil
}

// nodePort says whether a Service has the port on every node.
func (cl *cluster) nodePort(probe evaluate.Connection) bool {
	for _, o := range cl.objects {
		if svc, is := o.(*api.Service); is && slices.ContainsFunc(svc.Ports, func(p api.ServicePort) bool {
			return p.NodePort != 0 && p.NodePort == probe.Port && p.Protocol == probe.Protocol
		}) {
			return true
		}
	}
	return false
}
