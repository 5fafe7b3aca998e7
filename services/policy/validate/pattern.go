package validate

import (
	"slices"
	"strings"
)

// patternWithin reports whether every name that a pattern matches is matched
// by one of the others. In a pattern, * is any run of characters. It walks
// through all that may be read of a name: where in the pattern one may be, and
// where in all of the others.
func patternWithin(pattern string, others []string) bool {
	if len(others) == 0 {
		return false
	}
	if !strings.Contains(pattern, "*") {
		return slices.ContainsFunc(others, func(o string) bool { return matches(o, pattern) })
	}
	type state struct {
		at    int
		there string // Of each other pattern, the places that may have been reached.
	}
	places := func(p string, reached []bool) []bool {
		for i := range p { // What may be skipped.
			if reached[i] && p[i] == '*' {
				reached[i+1] = true
			}
		}
		return reached
	}
	start := make([][]bool, len(others))
	for i, o := range others {
		start[i] = make([]bool, len(o)+1)
		start[i][0] = true
		places(o, start[i])
	}
	letters := alphabet(append([]string{pattern}, others...))
	seen := map[state]bool{}
	type step struct {
		at      int
		reached [][]bool
	}
	queue := []step{{0, start}}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		key := state{s.at, encode(s.reached)}
		if seen[key] {
			continue
		}
		seen[key] = true
		if s.at == len(pattern) {
			if !slices.ContainsFunc(s.reached, func(r []bool) bool { return r[len(r)-1] }) {
				return false // A name that ends here is matched by none.
			}
			continue
		}
		if pattern[s.at] == '*' {
			queue = append(queue, step{s.at + 1, s.reached})
		}
		for _, c := range letters {
			if pattern[s.at] != '*' && pattern[s.at] != c {
				continue
			}
			to := step{s.at, make([][]bool, len(others))}
			if pattern[s.at] != '*' {
				to.at++
			}
			for i, o := range others {
				to.reached[i] = places(o, read(o, s.reached[i], c))
			}
			queue = append(queue, to)
		}
	}
	return true
}

// read is where one may be after a character.
func read(p string, reached []bool, c byte) []bool {
	out := make([]bool, len(p)+1)
	for i := range p {
		if reached[i] && p[i] == '*' {
			out[i] = true
		}
		if reached[i] && p[i] == c {
			out[i+1] = true
		}
	}
	return out
}

// alphabet is the characters of some patterns, and one that stands for all others.
func alphabet(patterns []string) []byte {
	var list []byte
	for _, p := range patterns {
		list = append(list, strings.ReplaceAll(p, "*", "")...)
	}
	list = append(list, 0)
	slices.Sort(list)
	return slices.Compact(list)
}

func encode(reached [][]bool) string {
	var b strings.Builder
	for _, list := range reached {
		for _, r := range list {
			if r {
				b.WriteByte('1')
			} else {
				b.WriteByte('0')
			}
		}
	}
	return b.String()
}

// matches reports whether a name, without *, is one of a pattern's.
func matches(pattern, name string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == name
	}
	name, found := strings.CutPrefix(name, first)
	if !found {
		return false
	}
	for {
		if matches(rest, name) {
			return true
		}
		if name == "" {
			return false
		}
		name = name[1:]
	}
}
