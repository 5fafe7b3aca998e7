package pipeline

import (
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Comparison is of Desired with flows that are told one after the other, as they
// are read, so that neither side is ever in memory as a whole. It is about the
// flows as of the last Update, and ends with the next one and the next Compare.
type Comparison struct {
	flows *flowSet
	met   int                                 // Flows.
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
	return &Comparison{flows: s, shown: shown}
}

// Meets says whether a flow is one of Desired, and is as it is to be. No two may be
// told at once.
func (c *Comparison) Meets(f openflow.Flow) bool {
	d := c.flows.flows[f.Key()]
	if d == nil {
		return false
	}
	if want, is := c.wanted(f.Key(), d); !is || !want.Same(f) {
		return false
	}
	if d.met != c.flows.round {
		d.met = c.flows.round
		c.met++
	}
	return true
}

// Wants says whether Desired has a flow of a key.
func (c *Comparison) Wants(key openflow.FlowKey) bool {
	d := c.flows.flows[key]
	if d == nil {
		return false
	}
	_, is := c.wanted(key, d)
	return is
}

// HasMet says whether a flow met that of a key.
func (c *Comparison) HasMet(key openflow.FlowKey) bool {
	d := c.flows.flows[key]
	return d != nil && d.met == c.flows.round
}

// Met is how many flows of Desired were met.
func (c *Comparison) Met() int { return c.met }

// Rest are those of Desired that no flow met so far, in the order of the keys.
func (c *Comparison) Rest() *Flows {
	var rest []touched
	for key, d := range c.flows.flows {
		if d.met == c.flows.round {
			continue
		}
		if _, is := c.wanted(key, d); is {
			rest = append(rest, touched{key, d, c.shown[key]})
		}
	}
	slices.SortFunc(rest, func(a, b touched) int { return CompareKeys(a.key, b.key) })
	return &Flows{rest}
}

func (c *Comparison) wanted(key openflow.FlowKey, d *desired) (openflow.Flow, bool) {
	if d.dirty {
		if f := c.shown[key]; f != nil {
			return *f, true
		}
		return openflow.Flow{}, false
	}
	return d.flow(key)
}
