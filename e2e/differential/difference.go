package differential

import (
	"fmt"
	"strings"

	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/pipeline"
)

// Difference is where the accounts part.
type Difference struct {
	Case       *Case
	Step       int // In which it shows, from zero.
	Problem    string
	Connection *evaluate.Connection // Nil: the step itself fails.
	Result     *evaluate.Result     // The evaluator's. Nil: it was not asked.
	Walks      []Walked             // Packets of the connection, as they were sent.
	Trace      string               // Open vSwitch's account of the last packet. Empty: it was not asked.
	Invalid    bool                 // The Case is not one that a user could have.
}

// Walked is a packet's way through a bridge.
type Walked struct {
	Node   string
	Packet bridge.Packet
	Walk   bridge.Walk
}

// String is all that one needs to see what differs and why.
func (d *Difference) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, step %d: %s\n", d.Case.Name, d.Step+1, d.Problem)
	if d.Connection != nil {
		fmt.Fprintf(&b, "connection: %s\n", describe(*d.Connection))
	}
	if r := d.Result; r != nil {
		fmt.Fprintf(&b, "evaluator: %s\n  egress %s: %s\n  ingress %s: %s\n", r.Verdict, r.Egress.Action, r.Egress.Reason, r.Ingress.Action, r.Ingress.Reason)
	}
	for _, w := range d.Walks {
		fmt.Fprintf(&b, "bridge of %s: %s leaves by %v\n", w.Node, w.Packet.String(), w.Walk.Ports())
		for _, h := range w.Walk.Trail {
			if h.Miss {
				fmt.Fprintf(&b, "  %-24s nothing\n", pipeline.TableName(h.Table))
				continue
			}
			fmt.Fprintf(&b, "  %-24s %s\n", pipeline.TableName(h.Table), h.Flow)
		}
	}
	if d.Trace != "" {
		fmt.Fprintf(&b, "ofproto/trace of the last:\n%s\n", d.Trace)
	}
	fmt.Fprintf(&b, "clause cap %d, frames of %d bytes\n%s", d.Case.ClauseCap, d.Case.FrameLimit, d.Case)
	return b.String()
}
