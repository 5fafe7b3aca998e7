package bridge

import (
	"cmp"
	"maps"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Content is what a bridge holds, or should hold.
type Content struct {
	Flows  map[openflow.FlowKey]openflow.Flow
	Groups map[uint32]openflow.Group
	Meters map[uint32]openflow.Meter
}

// NewContent makes empty Content.
func NewContent() Content {
	return Content{
		Flows:  map[openflow.FlowKey]openflow.Flow{},
		Groups: map[uint32]openflow.Group{},
		Meters: map[uint32]openflow.Meter{},
	}
}

// State is what was read back from a bridge.
type State struct {
	// Content are the flows that bear our mark, and all groups and meters.
	Content
	// Foreign are the flows whose cookie lacks our mark, by their keys.
	Foreign map[openflow.FlowKey]openflow.Flow
}

// Change is what is to change on a bridge. No flow may be both upserted and
// deleted.
type Change struct {
	Upsert       []openflow.Flow    // added, or put in place of the flow with their key
	More         Flows              // upserted too; nil: none
	Delete       []openflow.FlowKey // removed if they are there
	PutGroups    []openflow.Group   // added or replaced, before the flows
	DeleteGroups []uint32           // removed after the flows, with what still refers to them
	PutMeters    []openflow.Meter   // added or changed, before everything
	DeleteMeters []uint32           // removed after everything, with what still refers to them
}

// Flows are very many flows: they are made one by one, as they are written, and never
// in memory as a whole.
type Flows interface {
	Len() int
	At(i int) openflow.Flow
}

// Upserts is how many flows are upserted.
func (c Change) Upserts() int {
	if c.More == nil {
		return len(c.Upsert)
	}
	return len(c.Upsert) + c.More.Len()
}

// EachUpsert yields the flows that are upserted.
func (c Change) EachUpsert(yield func(openflow.Flow) bool) {
	for i := range c.Upserts() {
		if !yield(c.upsert(i)) {
			return
		}
	}
}

func (c *Change) upsert(i int) openflow.Flow {
	if i < len(c.Upsert) {
		return c.Upsert[i]
	}
	return c.More.At(i - len(c.Upsert))
}

// IsEmpty tells whether nothing is to change.
func (c Change) IsEmpty() bool {
	return c.bundled() == 0 && len(c.PutMeters)+len(c.DeleteMeters) == 0
}

// bundled is the number of messages that belong into the bundle.
func (c Change) bundled() int {
	return c.Upserts() + len(c.Delete) + len(c.PutGroups) + len(c.DeleteGroups)
}

// Diff is the change that turns what a bridge holds into what it should hold,
// touching only what differs, in the order of the keys. Foreign flows are left
// alone, unless one stands where one of ours belongs.
func Diff(desired Content, actual State) Change {
	var c Change
	for key, want := range desired.Flows {
		have, ok := actual.Flows[key]
		if !ok {
			have, ok = actual.Foreign[key]
		}
		if !ok || !want.Same(have) {
			c.Upsert = append(c.Upsert, want)
		}
	}
	for key := range actual.Flows {
		if _, ok := desired.Flows[key]; !ok {
			c.Delete = append(c.Delete, key)
		}
	}
	for id, want := range desired.Groups {
		if have, ok := actual.Groups[id]; !ok || !want.Same(have) {
			c.PutGroups = append(c.PutGroups, want)
		}
	}
	for id, want := range desired.Meters {
		if have, ok := actual.Meters[id]; !ok || want != have {
			c.PutMeters = append(c.PutMeters, want)
		}
	}
	c.DeleteGroups = missing(actual.Groups, desired.Groups)
	c.DeleteMeters = missing(actual.Meters, desired.Meters)
	slices.SortFunc(c.Upsert, func(a, b openflow.Flow) int { return compareKeys(a.Key(), b.Key()) })
	slices.SortFunc(c.Delete, compareKeys)
	slices.SortFunc(c.PutGroups, func(a, b openflow.Group) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(c.PutMeters, func(a, b openflow.Meter) int { return cmp.Compare(a.ID, b.ID) })
	return c
}

// missing are the ids of from that are not in other, ascending.
func missing[V any](from, other map[uint32]V) []uint32 {
	var out []uint32
	for _, id := range slices.Sorted(maps.Keys(from)) {
		if _, ok := other[id]; !ok {
			out = append(out, id)
		}
	}
	return out
}

func compareKeys(a, b openflow.FlowKey) int {
	return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(b.Priority, a.Priority), a.Match.Compare(b.Match))
}
