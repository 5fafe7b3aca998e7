package differential

import (
	"context"
	"iter"
	"maps"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// Shrink takes away from a failing Case what is not needed for a difference,
// any difference, and returns the one of what is left. It stops early where the
// context ends or the Switch fails.
func (cmp *Comparer) Shrink(ctx context.Context, d *Difference) *Difference {
	better := func(c Case) bool {
		if ctx.Err() != nil {
			return false
		}
		_, found, err := cmp.Compare(ctx, &c)
		if err != nil || found == nil || found.Invalid {
			return false
		}
		d = found
		return true
	}
	better(essential(d))
	for again := true; again; {
		again = false
		for _, pass := range []func(Case) iter.Seq[Case]{mergeSteps, dropEvents, dropPorts, dropProbes, reduceObjects, plainer} {
			for progress := true; progress; {
				progress = false
				for c := range pass(*d.Case) {
					if better(c) {
						again, progress = true, true
						break
					}
				}
			}
		}
	}
	return d
}

// essential leaves what came after the difference, and other connections of its step.
func essential(d *Difference) Case {
	c := *d.Case
	c.Steps = slices.Clone(c.Steps[:d.Step+1])
	last := &c.Steps[d.Step]
	if d.Connection != nil && slices.Contains(last.Probes, *d.Connection) {
		last.Probes = []evaluate.Connection{*d.Connection}
	}
	return c
}

// with is a copy of the Case in which a step is another.
func (c Case) with(i int, s Step) Case {
	c.Steps = slices.Clone(c.Steps)
	c.Steps[i] = s
	return c
}

func without[T any](list []T, i int) []T { return slices.Delete(slices.Clone(list), i, i+1) }

// mergeSteps are the Case with all steps in one, and with two in one.
func mergeSteps(c Case) iter.Seq[Case] {
	merge := func(steps []Step) Step {
		last := steps[len(steps)-1]
		var order []api.Ref
		latest := map[api.Ref]Event{}
		for _, s := range steps {
			for _, e := range s.Events {
				if _, there := latest[e.Ref]; !there {
					order = append(order, e.Ref)
				}
				latest[e.Ref] = e
			}
		}
		last.Events = nil
		for _, ref := range order {
			last.Events = append(last.Events, latest[ref])
		}
		return last
	}
	return func(yield func(Case) bool) {
		if len(c.Steps) < 2 {
			return
		}
		whole := c
		whole.Steps = []Step{merge(c.Steps)}
		if !yield(whole) {
			return
		}
		for i := range len(c.Steps) - 1 {
			fewer := c
			fewer.Steps = without(c.Steps, i)
			fewer.Steps[i] = merge(c.Steps[i : i+2])
			if !yield(fewer) {
				return
			}
		}
	}
}

func dropEvents(c Case) iter.Seq[Case] {
	return func(yield func(Case) bool) {
		for i, s := range c.Steps {
			all := s.Events
			for j := range all {
				s.Events = without(all, j)
				if !yield(c.with(i, s)) {
					return
				}
			}
		}
	}
}

// dropPorts takes a Pod's port away from a step on, or in it alone.
func dropPorts(c Case) iter.Seq[Case] {
	return func(yield func(Case) bool) {
		for i, s := range c.Steps {
			for _, pod := range slices.SortedFunc(maps.Keys(s.Ports), comparePods) {
				fewer, alone := c, s
				fewer.Steps = slices.Clone(c.Steps)
				for j := i; j < len(fewer.Steps); j++ {
					fewer.Steps[j].Ports = maps.Clone(fewer.Steps[j].Ports)
					delete(fewer.Steps[j].Ports, pod)
				}
				alone.Ports = maps.Clone(s.Ports)
				delete(alone.Ports, pod)
				if !yield(fewer) || !yield(c.with(i, alone)) {
					return
				}
			}
		}
	}
}

func dropProbes(c Case) iter.Seq[Case] {
	return func(yield func(Case) bool) {
		for i, s := range c.Steps {
			all := s.Probes
			if s.Probes = nil; len(all) > 1 && !yield(c.with(i, s)) {
				return
			}
			for j := range all {
				s.Probes = without(all, j)
				if !yield(c.with(i, s)) {
					return
				}
			}
		}
	}
}

func reduceObjects(c Case) iter.Seq[Case] {
	return func(yield func(Case) bool) {
		for i, s := range c.Steps {
			all := s.Events
			for j, e := range all {
				for o := range reduce(e.Object) {
					s.Events = slices.Clone(all)
					s.Events[j] = set(o)
					if !yield(c.with(i, s)) {
						return
					}
				}
			}
		}
	}
}

// plainer takes away restarts, and what is odd about how the Case is enforced.
func plainer(c Case) iter.Seq[Case] {
	return func(yield func(Case) bool) {
		for i, s := range c.Steps {
			if s.Restarted != "" {
				s.Restarted = ""
				if !yield(c.with(i, s)) {
					return
				}
			}
		}
		if c.ClauseCap != 0 {
			p := c
			p.ClauseCap = 0
			if !yield(p) {
				return
			}
		}
		if c.FrameLimit != 1<<20 {
			c.FrameLimit = 1 << 20
			yield(c)
		}
	}
}
