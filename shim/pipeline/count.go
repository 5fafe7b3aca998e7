package pipeline

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Subject is what packets are counted for: a rule of a policy, or the isolation
// of Pods by a policy in a direction.
type Subject struct {
	Kind            policyv1.PolicyKind
	Namespace, Name string
	UID             string // Of the policy's object. Empty: the source has none.
	Direction       policyv1.Direction
	Rule            string // Name of the rule. Empty: the kind has none; Index says which.
	Index           uint32 // Position of the rule among the policy's of its direction. Zero where Rule says which.
	Isolation       bool   // Neither Rule nor Index says anything.
}

// Count is what one counting flow counts. Flows of one id count for the same
// subjects.
type Count struct {
	ID       uint32
	Packets  bool // What the flow matched are packets of the subjects, with their bytes.
	Sessions bool // And sessions: connections begun, or of what denies or passes on, packets.
	Carried  bool // Connections carry the id: the flow may count on after its rule has gone.
}

// CountFilter is by what the counting flows of a bridge are read.
func CountFilter() openflow.FlowFilter {
	return openflow.FlowFilter{Table: openflow.AllTables, Cookie: cookie(KindCount, 0), CookieMask: ^uint64(0xffffffff)}
}

// CountOf says what a flow counts; false for a flow that does not.
func CountOf(f openflow.Flow) (Count, bool) { return Count{}, false }

// Subjects are those that the flows of an id count for: of a rule one, of an
// isolation each policy that isolates. They are known until the id is dropped.
func (c *Compiler) Subjects(id uint32) []Subject { return nil }

// Retired are the ids whose rules are not in force any more, or not by this id,
// and whose flows are kept so that what they counted last can be read.
func (c *Compiler) Retired() []uint32 { return nil }

// Drop takes the counting flows of retired ids out.
func (c *Compiler) Drop(ids []uint32) Change { return Change{} }

// Holds says whether the state has a policy, in whichever parts.
func (c *Compiler) Holds(s Subject) bool { return false }
