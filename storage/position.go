package storage

import "maps"

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

// since is the position without what is as it was.
func (p Position) since(former Position) Position {
	if former == nil {
		return p
	}
	out := make(Position, len(p))
	for source, at := range p {
		if was, had := former[source]; !had || was != at {
			out[source] = at
		}
	}
	return out
}

// merge is a position brought forward by what since left.
func (p Position) merge(changes Position) Position {
	out := maps.Clone(p)
	if out == nil {
		out = make(Position, len(changes))
	}
	maps.Copy(out, changes)
	return out
}

// latest is the position, and where another is further in a source that both
// read, that.
func (p Position) latest(other Position) Position {
	out := make(Position, len(p))
	for source, at := range p {
		out[source] = max(at, other[source])
	}
	return out
}
