package pipeline

import "github.com/weirnet/weir/shim/bridge/openflow"

// Comparison is of Desired with flows that are told one after the other, as they
// are read, so that neither side is ever in memory as a whole. It is about the
// flows as of the last Update, and ends with the next one and the next Compare.
type Comparison struct {
	flows *flowSet
	shown map[openflow.FlowKey]*openflow.Flow // Of flows that were touched since the last Update.
}

// Compare begins a comparison.
func (c *Compiler) Compare() *Comparison {
	s := &c.flows
	s.round++
	shown := make(map[openflow.FlowKey]*openflow.Flow, len(s.dirty))
	for _, d := range s.dirty {
		shown[d.key] = d.shown
	}
	return &Comparison{s, shown}
}

// Meets says whether a flow is one of Desired, and is as it is to be. No two may be
// told at once.
func (c *Comparison) Meets(f openflow.Flow) bool {
	d := c.flows.flows[f.Key()]
	if d == nil {
		return false
	}
	want := c.wanted(f.Key(), d)
	if want == nil || !want.Same(f) {
		return false
	}
	d.met = c.flows.round
	return true
}

// Rest are those of Desired that no flow met so far, in no order.
func (c *Comparison) Rest() (rest []openflow.Flow) {
	for key, d := range c.flows.flows {
		if d.met == c.flows.round {
			continue
		}
		if f := c.wanted(key, d); f != nil {
			rest = append(rest, *f)
		}
	}
	return rest
}

func (c *Comparison) wanted(key openflow.FlowKey, d *desired) *openflow.Flow {
	if d.dirty {
		return c.shown[key]
	}
	return d.flow(key)
}
