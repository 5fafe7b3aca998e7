package pipeline

import (
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Observing reports the first packet of each new connection of the Pods of some
// Namespaces, with the verdict, whatever policies say: of an allowed one where it is
// about to be marked as such, once; of what is denied, each packet. It decides
// nothing: its flows report and have the packet looked up in their own table
// again, with a mark that makes them step aside.
//
//	EgressSession   in_port=P, not seen: report, seen, resubmit     from P, allowed
//	IngressSession  reg1=P, not seen: report, seen, resubmit        to P, allowed
//	RuleMetric      the same two, of what is denied, and marked so by what denies it
//
// What is denied on its way in was let out: so of its sender it is an allowed one.
// What a rule or an isolation that logs denies is on record anyway. Without
// Config.Observe there are no such flows, and no marks.

// ObserveController is the controller id of the connection that samples go to, and
// ObserveMeter the meter that limits them: they take nothing of what policies log.
const (
	ObserveController = 8
	ObserveMeter      = 4
)

// AllNamespaces in Config.Observe stands for every Namespace.
const AllNamespaces = "*"

func (c *Compiler) observes(namespace string) bool {
	return slices.Contains(c.cfg.Observe, namespace) || slices.Contains(c.cfg.Observe, AllNamespaces)
}

// observeFlows are those of an open port that is observed.
func (c *Compiler) observeFlows(ep *endpoint) {
	if !c.observes(ep.wire.GetNamespace()) {
		return
	}
	for _, dir := range bothDirections {
		session, seen := stepsOf[enforced][dir].session, bitSeen[dir]
		report := openflow.Controller{ControllerID: ObserveController, MaxLen: logBytes, MeterID: ObserveMeter, UserData: string([]byte{byte(dir)})}
		for table, mark := range map[uint8]uint32{session: 0, TableRuleMetric: bitDenied} {
			f := openflow.Flow{Table: table, Priority: prioTop, Match: openflow.NewMatch(targetField(dir, ep.port.OFPort), openflow.Reg(0, mark, mark|seen)),
				Cookie: cookie(KindObserve, ep.port.OFPort), Actions: actions(report, openflow.SetReg(0, seen, seen), openflow.Resubmit(table))}
			c.flows.set(ep.owner, f)
			ep.flows = append(ep.flows, f.Key())
		}
	}
}

// denyBy drops a packet and counts it for an id. Where Pods are observed it is marked as
// denied, unless it is on record anyway.
func (c *Compiler) denyBy(id uint32, recorded bool) []openflow.Action {
	acts := dropBy(id)
	if len(c.cfg.Observe) > 0 && !recorded {
		acts = append([]openflow.Action{openflow.SetReg(0, bitDenied, bitDenied)}, acts...)
	}
	return acts
}

// ObservedOf is the direction in which a packet was observed; zero for one that was not.
func ObservedOf(cookie uint64, userData []byte) policyv1.Direction {
	if kind, _, ok := ParseCookie(cookie); !ok || kind != KindObserve || len(userData) != 1 {
		return 0
	}
	return policyv1.Direction(userData[0])
}

// observedVerdict is what became of an observed packet in its direction.
func (c *Compiler) observedVerdict(h Hit) policyv1.Action {
	denied := egressDirection
	if h.OutPort != 0 { // It had come to Forwarding.
		denied = ingressDirection
	}
	if h.Table != TableRuleMetric || denied != h.Observed {
		return policyv1.Action_ACTION_ALLOW
	}
	if pt := c.partOf(h.Decision); pt != nil {
		return pt.body.action
	}
	return policyv1.Action_ACTION_DROP // By an isolation.
}
