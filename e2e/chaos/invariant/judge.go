package invariant

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Finding is what became of one invariant.
type Finding struct {
	Invariant  string
	Checked    int    // How many things were looked at.
	Unit       string // Which.
	Violations []string
	Note       string // Figures worth telling. Empty: none.
}

// Judge says of each invariant whether the evidence keeps it.
func Judge(e *Evidence) []Finding {
	j := &judge{Evidence: e, takes: takes(e.Faults)}
	return []Finding{j.denied(), j.lost(), j.lives(), j.accounts(), j.numbers(), j.kept(), j.json(), j.npLog(), j.rest(), j.ended()}
}

// judge is evidence, and when faults took packets, by node.
type judge struct {
	*Evidence
	takes map[string][]Interval
}

func (f *Finding) violation(format string, args ...any) {
	f.Violations = append(f.Violations, fmt.Sprintf(format, args...))
}

// flight is how long a packet may have been under way when a fault takes it.
const flight = 100 * time.Millisecond

// takes are the intervals in which packets of a node may be lost: while a fault
// takes them, and as long after it as recovery may take, which begins anew when
// what kept the node from recovering has ended.
func takes(faults []Fault) map[string][]Interval {
	out := make(map[string][]Interval)
	for _, f := range faults {
		for _, node := range f.Takes {
			at := Interval{f.From.Add(-flight), f.To.Add(f.Limit)}
			for grown := true; grown; {
				grown = false
				for _, h := range faults {
					if end := h.To.Add(f.Limit); slices.Contains(h.Holds, node) && at.overlaps(h.Interval) && end.After(at.To) {
						at.To, grown = end, true
					}
				}
			}
			out[node] = append(out[node], at)
		}
	}
	return out
}

// excused says whether a fault took packets between two nodes in an interval.
func (j *judge) excused(from, to string, at Interval) bool {
	return slices.ContainsFunc(slices.Concat(j.takes[from], j.takes[to]), at.overlaps)
}

// since is a moment of the run.
func (j *judge) since(t time.Time) string { return fmt.Sprintf("%.3fs", t.Sub(j.Begin).Seconds()) }

// span says which span of the run an interval is.
func (j *judge) span(i Interval) string { return j.since(i.From) + " to " + j.since(i.To) }

// during names the faults about an interval, for whoever looks for a cause.
func (j *judge) during(at Interval) string {
	var names []string
	for _, f := range j.Faults {
		if at.overlaps(Interval{f.From, f.To.Add(f.Limit)}) {
			names = append(names, fmt.Sprintf("%s %s (%s)", f.Name, f.Detail, j.span(f.Interval)))
		}
	}
	if names == nil {
		return "no fault"
	}
	return strings.Join(names, ", ")
}

// verdict is what policy said of a flow at a moment; known says whether it is.
func (f *Flow) verdict(at time.Time) (allowed, known bool) {
	for _, v := range f.Verdicts {
		if !at.Before(v.From) && !at.After(v.To) {
			return v.Allowed, true
		}
	}
	return false, false
}

func (j *judge) at(micros int64) time.Time {
	return j.Begin.Add(time.Duration(micros) * time.Microsecond)
}

// denied: no packet that policy denied is received, ever. A packet may wait in a
// switch that stands still, and is judged by what is in force when that goes on.
func (j *judge) denied() Finding {
	out := Finding{Invariant: "no denied packet arrives", Unit: "denied packets and connections"}
	for _, f := range j.Flows {
		first, came := -1, 0
		for n, sent := range f.Sent {
			if allowed, known := f.verdict(j.at(sent)); !known || allowed {
				continue
			}
			out.Checked++
			if at := f.Received[n]; at != 0 {
				if allowed, known := f.verdict(j.at(at)); !known || allowed {
					continue
				}
				if came++; first < 0 {
					first = n
				}
			}
		}
		if came > 0 {
			at := j.at(f.Sent[first])
			out.violation("%s: %d denied datagrams came, the first is number %d of %s; %s", f.Name, came, first, j.since(at), j.during(Interval{at, at}))
		}
	}
	for _, d := range j.Dials {
		if d.Allowed {
			continue
		}
		if out.Checked++; d.Made {
			out.violation("%s: a denied connection was made at %s; %s", d.Name, j.span(d.Interval), j.during(d.Interval))
		}
	}
	return out
}

// lost: allowed packets are lost only while a fault takes packets itself.
func (j *judge) lost() Finding {
	out := Finding{Invariant: "allowed packets are lost to faults alone", Unit: "allowed packets and connections"}
	excused := 0
	for _, f := range j.Flows {
		var gap Interval
		gone := 0
		report := func() {
			if gone > 0 {
				out.violation("%s: %d allowed datagrams sent in %s were lost; %s", f.Name, gone, j.span(gap), j.during(gap))
			}
			gone = 0
		}
		for n, sent := range f.Sent {
			at := j.at(sent)
			if allowed, known := f.verdict(at); !known || !allowed {
				continue
			}
			out.Checked++
			switch {
			case f.Received[n] != 0:
				report()
			case j.excused(f.Source, f.Target, Interval{at, at}):
				excused++
				report()
			default:
				if gone++; gone == 1 {
					gap.From = at
				}
				gap.To = at
			}
		}
		report()
		if f.Twice > 0 {
			out.violation("%s: %d datagrams came twice", f.Name, f.Twice)
		}
	}
	for _, d := range j.Dials {
		if !d.Allowed {
			continue
		}
		switch out.Checked++; {
		case d.Made:
		case j.excused(d.Source, d.Target, d.Interval):
			excused++
		default:
			out.violation("%s: an allowed connection was not made in %s; %s", d.Name, j.span(d.Interval), j.during(d.Interval))
		}
	}
	longest := time.Duration(0)
	for _, list := range j.takes {
		for _, i := range list {
			longest = max(longest, i.To.Sub(i.From))
		}
	}
	out.Note = fmt.Sprintf("%d lost to faults, longest interval allowed %s", excused, longest.Round(time.Millisecond))
	return out
}

// rememberedRTT is how long TCP's time-out remembers a long round trip, at the least.
const rememberedRTT = 10 * time.Second

// union are intervals that do not overlap and cover the same.
func union(list []Interval) []Interval {
	var out []Interval
	for _, i := range slices.SortedFunc(slices.Values(list), func(a, b Interval) int { return a.From.Compare(b.From) }) {
		if n := len(out); n > 0 && !i.From.After(out[n-1].To) {
			if i.To.After(out[n-1].To) {
				out[n-1].To = i.To
			}
			continue
		}
		out = append(out, i)
	}
	return out
}

// lives: established connections live on, and stall no longer than a fault takes
// packets and TCP then takes to try again: at most as long as it was without an
// answer, and a second. That is how long faults of the last rememberedRTT were, not
// this one alone: what a switch that stands still delivers once it goes on counts
// with TCP as a round trip, and its time-out (RFC 6298, section 2) grows with each.
func (j *judge) lives() Finding {
	out := Finding{Invariant: "connections live on", Unit: "connections"}
	for _, s := range j.Streams {
		out.Checked++
		switch {
		case s.Broken != "":
			out.violation("%s broke: %s", s.Name, s.Broken)
		case s.Bytes == 0:
			out.violation("%s: nothing came", s.Name)
		}
		for _, gap := range s.Gaps {
			faults := union(slices.Concat(j.takes[s.Source], j.takes[s.Target]))
			fits := func(i Interval) bool {
				patience := time.Second
				for _, f := range faults {
					if !f.From.After(i.To) && f.To.After(i.From.Add(-rememberedRTT)) {
						patience += f.To.Sub(f.From)
					}
				}
				return gap.overlaps(i) && !gap.To.After(i.To.Add(patience))
			}
			if !slices.ContainsFunc(faults, fits) {
				out.violation("%s stalled for %s at %s; %s", s.Name, gap.To.Sub(gap.From).Round(time.Millisecond), j.span(gap), j.during(gap))
			}
		}
	}
	return out
}

// numbers: each event's number is its own, and none is left out without a loss.
func (j *judge) numbers() Finding {
	out := Finding{Invariant: "events are numbered without gaps", Unit: "events"}
	type boot struct{ node, boot string }
	have, stated := make(map[boot][]uint64), make(map[string]uint64)
	cursors := make(map[uint64]bool)
	for _, r := range j.Records {
		if cursors[r.Cursor] {
			out.violation("two records have the cursor %d", r.Cursor)
		}
		cursors[r.Cursor] = true
		if r.Kind == "loss" && (r.Stage == StageTransport || r.Stage == StageDamaged) {
			stated[r.Node] += r.Count
		}
		if r.Sequence != 0 {
			have[boot{r.Node, r.Boot}] = append(have[boot{r.Node, r.Boot}], r.Sequence)
		}
	}
	missing := make(map[string]uint64)
	for _, at := range slices.SortedFunc(maps.Keys(have), func(a, b boot) int { return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.boot, b.boot)) }) {
		last := uint64(0)
		list := have[at]
		slices.Sort(list)
		for _, n := range list {
			out.Checked++
			switch {
			case n == last:
				out.violation("%s: boot %s has number %d twice", at.node, at.boot, n)
			case n > last+1:
				missing[at.node] += n - last - 1
			}
			last = n
		}
	}
	for node, n := range missing {
		if n > stated[node] {
			out.violation("%s: %d numbers are missing, and %d are stated", node, n, stated[node])
		}
	}
	return out
}

// Stages of losses whose count is of events, or unknown.
const (
	StageTransport = "TRANSPORT"
	StageDamaged   = "DAMAGED"
	StageUnknown   = "UNKNOWN"
)

// kept: what a reader has had, and so was acknowledged, is there in the end.
func (j *judge) kept() Finding {
	out := Finding{Invariant: "what was acknowledged stays", Unit: "records read before"}
	have := make(map[Key]bool, len(j.Records))
	for _, r := range j.Records {
		have[r.Key] = true
	}
	for _, k := range j.Seen {
		if out.Checked++; !have[k] {
			out.violation("record %+v is gone", k)
		}
	}
	return out
}

// rest: in the end all are in sync, no flow differs, and a restart touches none.
func (j *judge) rest() Finding {
	out := Finding{Invariant: "all come to rest", Checked: len(j.Final.Check), Unit: "nodes"}
	if j.Final.NotInSync != "" {
		out.violation("not in sync: %s", j.Final.NotInSync)
	}
	for node, found := range j.Final.Check {
		if found != "" {
			out.violation("%s: weir-shim check found\n%s", node, found)
		}
	}
	for node, flows := range j.Final.Touched {
		if flows != "" {
			out.violation("%s: the restarted shim touched flows:\n%s", node, flows)
		}
	}
	for _, f := range j.Faults {
		if f.Error != "" {
			out.violation("%s %s: %s", f.Name, f.Detail, f.Error)
		}
	}
	return out
}

// trouble is what a process writes that is in trouble by its own fault.
var trouble = regexp.MustCompile(`(?m)^(panic:|fatal error:|goroutine \d+ \[|WARNING: DATA RACE|\x{0}*runtime error).*$`)

// ended: no process ended by itself, or wrote that it is in trouble.
func (j *judge) ended() Finding {
	out := Finding{Invariant: "no process ends by itself", Checked: len(j.Logs), Unit: "processes"}
	for _, name := range j.Final.Ended {
		out.violation("%s", name)
	}
	for name, text := range j.Logs {
		if line := trouble.FindString(text); line != "" {
			out.violation("%s wrote %q", name, line)
		}
	}
	return out
}
