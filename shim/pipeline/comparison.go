package pipeline

import (
	"cmp"
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
	// changed are clauses in whose place another flow was told.
	changed map[openflow.FlowKey]bool
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
		if is && d.clause() {
			if c.changed == nil {
				c.changed = make(map[openflow.FlowKey]bool)
			}
			c.changed[f.Key()] = true
		}
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
	rest := c.rest()
	slices.SortFunc(rest, func(a, b touched) int { return CompareKeys(a.key, b.key) })
	return &Flows{rest}
}

func (c *Comparison) rest() []touched {
	var rest []touched
	for key, d := range c.flows.flows {
		if d.met == c.flows.round {
			continue
		}
		if _, is := c.wanted(key, d); is {
			rest = append(rest, touched{key, d, c.shown[key]})
		}
	}
	return rest
}

// Steps are changes of at most n flows each, to be made one after the other, that put
// the Rest in and take flows out that are not of Desired. Where they are of one table,
// each packet fares at any time as it did before or as it will in the end:
//
//   - Later tables come first, so that a flow finds what it goes on to.
//   - What is put in comes first, the highest priorities first, so that no flow decides
//     what is still to be decided by one above it; and of a priority what conjunctions
//     lead to before their clauses.
//   - What others put in goes last, the lowest priorities first, so that what was
//     beneath it never decides. So does what they put in the place of a clause: it
//     may have decided, which a clause does not.
func (c *Comparison) Steps(remove []openflow.FlowKey, n int) []Change {
	var early, late []touched
	for _, t := range c.rest() {
		if c.changed[t.key] {
			late = append(late, t)
		} else {
			early = append(early, t)
		}
	}
	slices.SortFunc(early, func(a, b touched) int {
		if a.key.Table != b.key.Table || a.key.Priority != b.key.Priority {
			return cmp.Or(cmp.Compare(b.key.Table, a.key.Table), cmp.Compare(b.key.Priority, a.key.Priority))
		}
		return cmp.Or(cmp.Compare(clauseLike(a.key), clauseLike(b.key)), a.key.Match.Compare(b.key.Match))
	})
	goesFirst := func(a, b openflow.FlowKey) int {
		return cmp.Or(cmp.Compare(b.Table, a.Table), cmp.Compare(a.Priority, b.Priority), a.Match.Compare(b.Match))
	}
	slices.SortFunc(late, func(a, b touched) int { return goesFirst(a.key, b.key) })
	remove = slices.SortedFunc(slices.Values(remove), goesFirst)
	var steps []Change
	for part := range slices.Chunk(early, n) {
		steps = append(steps, Change{More: &Flows{part}})
	}
	for len(late)+len(remove) > 0 {
		put, gone := 0, 0
		for put+gone < min(n, len(late)+len(remove)) {
			if gone == len(remove) || put < len(late) && goesFirst(late[put].key, remove[gone]) < 0 {
				put++
			} else {
				gone++
			}
		}
		steps = append(steps, Change{More: &Flows{late[:put]}, Delete: remove[:gone]})
		late, remove = late[put:], remove[gone:]
	}
	return steps
}

// clauseLike is 0 for what a conjunction leads to, and 1 for all others.
func clauseLike(key openflow.FlowKey) int {
	if _, led := key.Match.Field(openflow.FieldConjID); led {
		return 0
	}
	return 1
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
