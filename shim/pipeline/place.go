package pipeline

import "github.com/weirnet/weir/shim/bridge/openflow"

// nextID is an id that was never given.
func (c *Compiler) nextID() uint32 {
	c.assignment.Next++
	return c.assignment.Next - 1
}

// place gives a part its id and lane: those that it has in the assignment, or
// a new id and the first lane in which none of its clause flows is full. A part
// whose level is direct has the level's first priority, and no lane yet.
func (c *Compiler) place(pt *part, first *endpoint) {
	pt.key = pt.body.owner.partKey(pt)
	place, had := c.assignment.Rules[pt.key]
	if had = had && c.byConj[place.Conj] == nil; !had { // What was like its rule once may still have it.
		place = RulePlace{Conj: c.nextID(), Direct: true}
	}
	pt.place = place
	c.byConj[place.Conj] = pt
	c.seat(pt, func(do emit) {
		c.targetClauses(pt.body, first, do)
		for f, has := range first.families {
			if has {
				c.familyClauses(pt.body, f, do)
			}
		}
	})
}

// seat gives a part a priority. Its clauses are those that it is to have there.
func (c *Compiler) seat(pt *part, clauses func(do emit)) {
	switch {
	case pt.body.direct():
		c.enterLane(pt, 0) // Until the Update ends it is not said that it has no lane: see settleForms.
	case pt.place.Direct || !c.enterLane(pt, pt.place.Lane):
		pt.place = RulePlace{Conj: pt.place.Conj, Lane: c.freeLane(pt, clauses)}
		c.enterLane(pt, pt.place.Lane)
	}
	c.assignment.Rules[pt.key] = pt.place
	if pt.slot != nil {
		pt.slot.parts[pt] = struct{}{}
	}
}

// unseat undoes seat, but for the place.
func (pt *part) unseat() {
	if pt.slot != nil {
		delete(pt.slot.parts, pt)
		pt.slot = nil
	}
}

// unplace undoes place. The part's id and lane are its own, or its
// successor's, until the Update ends.
func (c *Compiler) unplace(pt *part) {
	delete(c.byConj, pt.place.Conj)
	c.vacated[pt.key] = struct{}{}
	pt.unseat()
	pt.direct, pt.terms = nil, nil
}

// enterLane gives a part the priority of a lane; false where there is none. The
// lanes of Kubernetes rules are there always, those of a level as needed.
func (c *Compiler) enterLane(pt *part, lane int) bool {
	if pt.body.level == nil {
		pt.priority = prioK8s - uint16(lane)
		return lane < lanesMax
	}
	s := c.ladders[pt.table].lane(pt.body.level, lane)
	if s == nil {
		return false
	}
	pt.slot, pt.priority = s, s.priority
	return true
}

// freeLane is the first lane with room for a part, or the last that there is.
func (c *Compiler) freeLane(pt *part, clauses func(do emit)) int {
	for lane := 0; ; lane++ {
		if !c.enterLane(pt, lane) {
			return lane - 1
		}
		full := false
		clauses(func(of *part, _ uint8, _ int, match openflow.Match) {
			if of == pt && !full {
				full = c.flows.shared(pt.flowKey(match)) >= c.cfg.ClauseCap
			}
		})
		if !full {
			return lane
		}
	}
}

// move takes the flows of a slot's parts to another priority.
func (c *Compiler) move(s *slot, to uint16) {
	for pt := range s.parts {
		c.unform(pt)
		pt.priority = to
		c.form(pt)
	}
}

// clausesOf are all that a part contributes at present.
func (c *Compiler) clausesOf(pt *part, do emit) {
	only := func(of *part, clause uint8, f int, match openflow.Match) {
		if of == pt {
			do(of, clause, f, match)
		}
	}
	for ep := range pt.body.guarded {
		c.targetClauses(pt.body, ep, only)
	}
	for f, n := range pt.body.in {
		if n > 0 {
			c.familyClauses(pt.body, f, only)
		}
	}
}

// forgetPlaces drops the places of parts that are not installed any more.
func (c *Compiler) forgetPlaces() {
	for key := range c.vacated {
		if id := c.assignment.Rules[key].Conj; !c.counts.live(id) {
			c.meters.release(id, c.soleSubject(id))
			delete(c.assignment.Rules, key)
		}
	}
	clear(c.vacated)
}
