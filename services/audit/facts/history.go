package facts

import "slices"

// history is what one key had, span by span. The last span lasts. Times are Unix
// nanoseconds, in the order of spans.
type history struct {
	spans []span
}

// span begins at a time and ends where the next begins.
type span struct {
	from  int64
	value string // Empty: nothing.
}

// now is what the key has; empty for nothing.
func (h *history) now() string {
	if len(h.spans) == 0 {
		return ""
	}
	return h.spans[len(h.spans)-1].value
}

// set begins a span. It reports how many there are more or less of than before.
func (h *history) set(at int64, value string) (more int) {
	n := len(h.spans)
	if h.now() == value {
		return 0
	}
	if n > 0 && at <= h.spans[n-1].from { // The clock of who tells went back: the order counts.
		h.spans[n-1].value = value
		if n > 1 && h.spans[n-2].value == value {
			h.spans = h.spans[:n-1]
			return -1
		}
		return 0
	}
	h.spans = append(h.spans, span{at, value})
	return 1
}

// at is what the key had at a time; empty if that is not known. Just outside of
// what is known, by at most slack, the nearest span counts.
func (h *history) at(t, slack int64) string {
	i, _ := slices.BinarySearchFunc(h.spans, t, func(s span, t int64) int {
		if s.from > t {
			return 1
		}
		return -1
	})
	if i == 0 { // Before all spans.
		if len(h.spans) > 0 && h.spans[0].from-t <= slack {
			return h.spans[0].value
		}
		return ""
	}
	s := h.spans[i-1]
	if s.value == "" && i > 1 && t-s.from <= slack {
		return h.spans[i-2].value
	}
	if s.value == "" && i < len(h.spans) && h.spans[i].from-t <= slack {
		return h.spans[i].value
	}
	return s.value
}

// prune forgets spans that ended before a time, and says how many.
func (h *history) prune(before int64) (dropped int) {
	for dropped < len(h.spans)-1 && h.spans[dropped+1].from < before {
		dropped++
	}
	if dropped == len(h.spans)-1 && h.now() == "" && h.spans[dropped].from < before {
		dropped++
	}
	h.spans = slices.Delete(h.spans, 0, dropped)
	return dropped
}
