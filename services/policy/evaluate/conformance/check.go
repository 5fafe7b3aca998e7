package conformance

import (
	"maps"
	"slices"
)

// What a probe is expected to meet, and what it met. A probe that was denied
// met Deny if nothing came back, and Reject if the connection was refused.
const (
	Allow  = "allow"
	Deny   = "deny"
	Reject = "reject"
)

// Checks are the connections whose verdicts a step states: its tables taken
// apart, row by row, and its probes.
func (s *Step) Checks() []Probe {
	var list []Probe
	for _, t := range s.Tables {
		for _, f := range t.Flows {
			for _, from := range t.sources() {
				for i, letter := range t.Rows[from] {
					expected := map[rune]string{'a': Allow, 'd': Deny, 'r': Reject}[letter]
					if expected == "" {
						continue
					}
					list = append(list, Probe{From: from, To: t.Order[i], Port: f.Port, Protocol: f.Protocol, Expected: expected})
				}
			}
		}
	}
	return append(list, s.Probes...)
}

// sources are the rows in the order of the columns, others behind them.
func (t *Table) sources() []string {
	var list []string
	for _, name := range t.Order {
		if _, ok := t.Rows[name]; ok && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Rows)) {
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// Meets reports whether what a probe met is what was expected of it. Where the
// case's denyMode is "any", silence and refusal both count as denied.
func (c *Case) Meets(expected, got string) bool {
	if c.DenyMode == "any" && expected != Allow {
		return got == Deny || got == Reject
	}
	return expected == got
}
