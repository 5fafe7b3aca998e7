package differential

import (
	"fmt"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
)

var wireActions = map[evaluate.Verdict]policyv1.Action{
	evaluate.Allow: policyv1.Action_ACTION_ALLOW, evaluate.Drop: policyv1.Action_ACTION_DROP, evaluate.Reject: policyv1.Action_ACTION_REJECT,
}

// answered holds it against the evaluator whether the flows ask for an answer to
// the packet.
func answered(w bridge.Walk, dir policyv1.Direction, is *evaluate.Decision) string {
	asked := 0
	for _, in := range w.PacketIns {
		if in.ControllerID == pipeline.RejectController && (in.Table <= pipeline.TableEgressMetric) == (dir == policyv1.Direction_DIRECTION_EGRESS) {
			asked++
		}
	}
	want := 0
	if is.Action == evaluate.Reject {
		want = 1
	}
	if asked != want {
		return fmt.Sprintf("it is %v, and the flows ask for %d answers", is.Action, asked)
	}
	return ""
}

// recorded holds what the flows report of staged policies against what the
// evaluator says with and without them: nothing where that is the same, or one
// report that names both.
func (r *run) recorded(h *hop, w bridge.Walk, dir policyv1.Direction, is, would *evaluate.Decision) string {
	var got []pipeline.Attribution
	for _, in := range w.PacketIns {
		if in.ControllerID != pipeline.LogController || (in.Table <= pipeline.TableEgressMetric) != (dir == policyv1.Direction_DIRECTION_EGRESS) {
			continue
		}
		p := h.judged()
		a, ok := r.cluster.nodes[h.node].compiler.Attribute(pipeline.Hit{Table: in.Table, Cookie: in.Cookie, InPort: p.InPort, OutPort: h.want,
			Src: p.IPSrc, Dst: p.IPDst, Proto: p.IPProto, SrcPort: p.SrcPort, DstPort: p.DstPort, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode,
			Service: pipeline.ServiceOf(in.Metadata), Mark: pipeline.MarkOf(in.Table, in.Metadata.Reg), Reported: pipeline.Reported(in.UserData)})
		if !ok {
			return "a report is attributed to nothing"
		}
		if a.Staged != nil || a.Unlogged {
			got = append(got, a)
		}
	}
	if is.Action == would.Action {
		if len(got) > 0 {
			return fmt.Sprintf("staged policies change nothing, and the flows report %+v", got)
		}
		return ""
	}
	r.stats.Staged++
	if len(got) != 1 {
		return fmt.Sprintf("with the staged policies it is %v, and the flows report %+v", would, got)
	}
	var names []string
	for _, ref := range got[0].Staged.GetPolicies() {
		names = append(names, nameOf(ref))
	}
	slices.Sort(names)
	if got[0].Staged.GetAction() != wireActions[would.Action] || !slices.Equal(names, deciders(would)) {
		return fmt.Sprintf("with the staged policies the evaluator says %+v, the flows say %v", would, got[0].Staged)
	}
	return ""
}
