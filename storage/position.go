package storage

import (
	"fmt"
	"maps"
	"slices"
)

// Position is how far each source had been read: a sequence or a
// resourceVersion by source or kind. A value handed over is not changed.
type Position map[string]uint64

// Reaches reports whether a position is as far as another in every source that
// both read.
func (p Position) Reaches(other Position) bool {
	for source, at := range other {
		if own, reads := p[source]; reads && own < at {
			return false
		}
	}
	return true
}

// since is what is to be told of a position to who knows a former one: the
// whole where the sources are others, and else pairs of a source, as its place
// in the order of names, and where it is now.
func (p Position) since(former Position) (whole Position, moved []uint64) {
	if len(p) != len(former) {
		return p, nil
	}
	changed := false
	for source, at := range p {
		was, had := former[source]
		if !had {
			return p, nil
		}
		changed = changed || was != at
	}
	if !changed {
		return nil, nil
	}
	for i, source := range p.sources() {
		if at := p[source]; at != former[source] {
			moved = append(moved, uint64(i), at)
		}
	}
	return nil, moved
}

// move is a position brought forward by what since told of moves.
func (p Position) move(moved []uint64) (Position, error) {
	if len(moved)%2 != 0 {
		return nil, fmt.Errorf("moves of the position are no pairs: there are %d numbers", len(moved))
	}
	out, sources := maps.Clone(p), p.sources()
	for ; len(moved) > 0; moved = moved[2:] {
		if moved[0] >= uint64(len(sources)) {
			return nil, fmt.Errorf("source %d of the position moved, of %d", moved[0], len(sources))
		}
		out[sources[moved[0]]] = moved[1]
	}
	return out, nil
}

func (p Position) sources() []string { return slices.Sorted(maps.Keys(p)) }

// latest is the position, and where another is further in a source that both
// read, that.
func (p Position) latest(other Position) Position {
	out := make(Position, len(p))
	for source, at := range p {
		out[source] = max(at, other[source])
	}
	return out
}
