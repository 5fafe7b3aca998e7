package validate

import (
	"fmt"
	"maps"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// Conflicts says of every policy which of its rules contradict rules of equal
// precedence in other policies, and who wins. A policy without any has no entry.
// It looks at policies, tiers, groups, Services and Namespaces alone. Several
// may ask at once, while nothing changes the index.
func (x *Index) Conflicts() map[api.Ref][]string {
	out := make(map[api.Ref][]string)
	looks := budget{looksOfSet}
	// In order, so that it is always the same that goes unsaid where that does not do.
	for _, ref := range slices.SortedFunc(maps.Keys(x.policies), compareRefs) {
		for _, r := range x.policies[ref].rules {
			others := x.contradicting(r, true, &looks)
			if len(others) == 0 {
				continue
			}
			first := others[0]
			outcome := "loses to"
			if x.compare(r, first) < 0 {
				outcome = "wins over"
			}
			text := fmt.Sprintf("%s%s (%s) %s rule %s (%s), which matches some of the same traffic with equal precedence",
				r.field(), quoted(r), r.spec().Action, outcome, first.name(ref), first.spec().Action)
			if n := len(others) - 1; n > 0 {
				text += fmt.Sprintf(", and %d more rules contradict it", n)
			}
			out[ref] = append(out[ref], text)
		}
	}
	return out
}
