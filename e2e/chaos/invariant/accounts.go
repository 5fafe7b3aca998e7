package invariant

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// lag is how much later than it happened a flow's counter may show it.
const lag = time.Second

// matched is what the flows of one rule have counted.
type matched struct {
	by []step // In the order of time.
	// unsure are intervals in which flows went, so that what they counted last is
	// not known.
	unsure []Interval
}

type step struct {
	Interval
	packets uint64
}

type ruleKey struct{ node, policy string }

// matches adds up what flows counted, reading by reading. A flow that went counts
// from zero when it comes again; one that is put in its own place counts on, and
// begins its age anew.
func matches(readings []Reading) map[ruleKey]*matched {
	out := make(map[ruleKey]*matched)
	of := func(node, policy string) *matched {
		m := out[ruleKey{node, policy}]
		if m == nil {
			m = new(matched)
			out[ruleKey{node, policy}] = m
		}
		return m
	}
	last := make(map[string]*Reading)
	for i := range readings {
		r := &readings[i]
		before := make(map[string]FlowCount)
		from := r.From
		if p := last[r.Node]; p != nil {
			from = p.From
			for _, f := range p.Flows {
				before[f.Key] = f
			}
		}
		over := Interval{from.Add(-lag), r.To}
		for _, f := range r.Flows {
			m, was := of(r.Node, f.Policy), before[f.Key]
			_, there := before[f.Key]
			delete(before, f.Key)
			packets := f.Packets - was.Packets
			switch {
			case f.Packets < was.Packets: // It is another.
				packets, m.unsure = f.Packets, append(m.unsure, over)
			case there && f.Age+100*time.Millisecond < was.Age: // Or the same in its own place, which counts on.
				m.unsure = append(m.unsure, over)
			}
			if packets > 0 {
				m.by = append(m.by, step{over, packets})
			}
		}
		for _, gone := range before {
			m := of(r.Node, gone.Policy)
			m.unsure = append(m.unsure, over)
		}
		last[r.Node] = r
	}
	return out
}

// accounts: of each rule, records and stated losses are what its log flows
// matched. Where flows went, it may be as much more as was sent then; where a loss
// of unknown size is stated, as much less as was matched then. Such a loss is
// stated only where the switch lost its counters.
func (j *judge) accounts() Finding {
	out := Finding{Invariant: "records and losses are what log flows matched", Unit: "packets matched"}
	kept, lost := make(map[ruleKey]uint64), make(map[ruleKey]uint64)
	unknown := make(map[string][]Interval)
	for _, r := range j.Records {
		switch key := (ruleKey{r.Node, one(r.Policies)}); {
		case r.Kind == "packet" && r.Reason == "unattributed" && j.blind(r.Node):
			lost[ruleKey{node: r.Node}] += r.Count // Of whichever rule.
		case r.Kind == "packet":
			kept[key] += r.Count
		case r.Kind != "loss":
		case r.Stage == StageUnknown, r.Stage == StageTransport, r.Stage == StageDamaged:
			unknown[r.Node] = append(unknown[r.Node], r.Over)
			if r.Stage == StageUnknown && !j.uncounted(r.Node, r.Over) {
				out.violation("%s: a loss of unknown size is stated of %s, and the switch lost no counters; %s", r.Node, j.span(r.Over), j.during(r.Over))
			}
		default:
			lost[key] += r.Count
		}
	}
	counts := matches(j.Readings)
	var stated uint64
	for _, rule := range j.Rules {
		key := ruleKey{rule.Node, rule.Policy}
		m := counts[key]
		if m == nil {
			m = new(matched)
		}
		var total, doubtful, more uint64
		for _, s := range m.by {
			total += s.packets
			if slices.ContainsFunc(unknown[rule.Node], s.overlaps) {
				doubtful += s.packets
			}
		}
		bounded := rule.Journaled || len(m.unsure) == 0
		for _, f := range j.Flows {
			if f.Policy != rule.Policy || f.Where != rule.Node {
				continue
			}
			for _, sent := range f.Sent {
				at := j.at(sent)
				if slices.ContainsFunc(m.unsure, Interval{at, at}.overlaps) {
					more++
				}
			}
		}
		nobody := lost[ruleKey{node: rule.Node}] // May be of any rule.
		got := kept[key] + lost[key]
		out.Checked += int(total)
		stated += lost[key]
		if got+nobody+doubtful < total || bounded && got > total+more {
			out.violation("%s: of %s %d packets are on record and %d are stated as lost (%d of no one rule); its flows matched %d (%d at times of unknown losses, at most %d more unseen)",
				rule.Node, rule.Policy, kept[key], lost[key], nobody, total, doubtful, more)
		}
	}
	for key := range maps.Keys(kept) {
		if !slices.ContainsFunc(j.Rules, func(r Rule) bool { return r.Node == key.node && r.Policy == key.policy }) {
			out.violation("%s: %d packets are on record of %q, which does not log there", key.node, kept[key], key.policy)
		}
	}
	out.Note = fmt.Sprintf("%d stated as lost", stated)
	return out
}

// blind says whether a node's shim may have reported what it did not understand.
func (j *judge) blind(node string) bool {
	return slices.ContainsFunc(j.Faults, func(f Fault) bool { return slices.Contains(f.Blind, node) })
}

// one is the policy that several are, if they are one.
func one(policies []string) string { return strings.Join(policies, ",") }

// uncounted says whether a node's switch lost its counters in an interval, or so
// shortly before that this shows in it.
func (j *judge) uncounted(node string, at Interval) bool {
	return slices.ContainsFunc(j.Faults, func(f Fault) bool {
		return slices.Contains(f.Uncounted, node) && at.overlaps(Interval{f.From, f.To.Add(f.Limit + lag)})
	})
}
