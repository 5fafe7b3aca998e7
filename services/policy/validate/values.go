package validate

import (
	"slices"
)

// absent stands for a label that is not there, among a label's values. No
// value holds the character.
const absent = "\x00"

// values is a set of strings: those of a list, or all but those. There are
// infinitely many, so that what is all but some is never empty.
type values struct {
	except bool
	list   []string // Sorted, each once.
}

func oneOf(list ...string) values {
	list = slices.Clone(list)
	slices.Sort(list)
	return values{list: slices.Compact(list)}
}

func noneOf(list ...string) values {
	v := oneOf(list...)
	v.except = true
	return v
}

func (v values) not(dimension) set { return values{!v.except, v.list} }

func (v values) empty() bool { return !v.except && len(v.list) == 0 }

func (v values) and(other set) set {
	o := other.(values)
	switch {
	case v.except && o.except:
		return noneOf(append(slices.Clone(v.list), o.list...)...)
	case v.except:
		v, o = o, v
	}
	var list []string
	for _, s := range v.list {
		if o.has(s) {
			list = append(list, s)
		}
	}
	return values{list: list}
}

func (v values) has(s string) bool {
	if len(v.list) == 1 { // As most are.
		return (v.list[0] == s) != v.except
	}
	_, found := slices.BinarySearch(v.list, s)
	return found != v.except
}

func (v values) within(other set) bool {
	o := other.(values)
	if v.except {
		// What o leaves out must be what v leaves out too.
		return o.except && !slices.ContainsFunc(o.list, v.has)
	}
	return !slices.ContainsFunc(v.list, func(s string) bool { return !o.has(s) })
}

func (v values) meets(other set) bool {
	o := other.(values)
	switch {
	case v.except && o.except:
		return true
	case v.except:
		v, o = o, v
	}
	for _, s := range v.list {
		if o.has(s) {
			return true
		}
	}
	return false
}

// only reports whether two sets are one and the same value.
func (v values) only(o values) bool {
	return !v.except && !o.except && len(v.list) == 1 && len(o.list) == 1 && v.list[0] == o.list[0]
}
