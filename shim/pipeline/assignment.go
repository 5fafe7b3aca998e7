package pipeline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Assignment is which ids, lanes and priorities the rules have. It is output and
// input of a Compiler: a shim that starts takes up the one that its flows were
// made with. It is good if the priorities are in order, and not only if it is
// the one that a compiler would choose that begins with nothing.
type Assignment struct {
	// Next is the next conjunction id to be given. Ids are not given twice,
	// since connections carry them.
	Next  uint32               `json:"next"`
	Rules map[string]RulePlace `json:"rules"` // By the key of a part of a rule: see newPart.
	// Services are the ids of Services' ports, out of the same numbers.
	Services map[string]uint32 `json:"services,omitempty"`
	// Meters are those of what logs, by the id of a part of a rule or of an isolation.
	Meters map[uint32]uint32 `json:"meters,omitempty"`
	// Revision is that of the last Update: see past.go. Zero: none.
	Revision uint64 `json:"revision,omitempty"`
	// Levels are the priorities of the rules that have an order, by table.
	Levels map[uint8][]LevelPlace `json:"levels,omitempty"`
}

// heldMeters are the meters of an assignment whose ids it has places for.
func heldMeters(a Assignment) map[uint32]uint32 {
	held := make(map[uint32]uint32)
	for _, p := range a.Rules {
		if meter, has := a.Meters[p.Conj]; has {
			held[p.Conj] = meter
		}
	}
	return held
}

// RulePlace is where a part of a rule stands.
type RulePlace struct {
	Conj uint32 `json:"conj"`
	Lane int    `json:"lane"`
	// Direct says that the part has no lane: its flows are direct.
	Direct bool `json:"direct,omitempty"`
}

// Encode writes the assignment for a checkpoint.
func (a Assignment) Encode() []byte {
	b, err := json.Marshal(a)
	if err != nil {
		panic("pipeline: encode assignment: " + err.Error())
	}
	return b
}

// DecodeAssignment reads what Encode wrote and refuses ids that are given twice
// and priorities that are out of order.
func DecodeAssignment(b []byte) (Assignment, error) {
	var a Assignment
	if err := json.Unmarshal(b, &a); err != nil {
		return Assignment{}, fmt.Errorf("decode assignment: %w", err)
	}
	seen := make(map[uint32]string)
	for key, p := range a.Rules {
		if p.Conj == 0 || p.Conj >= a.Next || p.Lane < 0 || p.Lane >= lanesMax || p.Direct && p.Lane != 0 {
			return Assignment{}, fmt.Errorf("decode assignment: rule %s has id %d of %d and lane %d", key, p.Conj, a.Next, p.Lane)
		}
		if other, twice := seen[p.Conj]; twice {
			keys := []string{key, other}
			slices.Sort(keys)
			return Assignment{}, fmt.Errorf("decode assignment: rules %s have one id %d", strings.Join(keys, " and "), p.Conj)
		}
		seen[p.Conj] = key
	}
	for key, id := range a.Services {
		if other, twice := seen[id]; id == 0 || id >= a.Next || twice {
			return Assignment{}, fmt.Errorf("decode assignment: port %s has id %d of %d, which is also that of %q", key, id, a.Next, other)
		}
		seen[id] = key
	}
	ladders := newLadders(nil)
	for table, places := range a.Levels {
		l := ladders[table]
		if l == nil {
			return Assignment{}, fmt.Errorf("decode assignment: table %d has no levels", table)
		}
		if slices.ContainsFunc(places, func(p LevelPlace) bool { return !p.At.in(table) }) {
			return Assignment{}, fmt.Errorf("decode assignment: table %d has a level of another", table)
		}
		if err := l.check(places); err != nil {
			return Assignment{}, fmt.Errorf("decode assignment: table %d: %w", table, err)
		}
	}
	return a, nil
}
