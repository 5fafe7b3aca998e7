package server

import "testing"

// A wave passes when nine tenths of the streams have taken a cut, however many
// marks it made and whether they were quicker than the dispatcher.
func TestAWavePasses(t *testing.T) {
	for name, tc := range map[string]struct {
		marks, early, late int
		passes             bool
	}{
		"one scope":                           {marks: 100, late: 90, passes: true},
		"one scope, too few yet":              {marks: 100, late: 89},
		"taken before the dispatcher is back": {marks: 100, early: 100, passes: true},
		"taken before and after":              {marks: 100, early: 50, late: 40, passes: true},
		"three scopes of every stream":        {marks: 300, late: 90, passes: true},
		"a scope of some streams":             {marks: 70, late: 63, passes: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := pace{passed: make(chan struct{}, 1)}
			p.streams.Store(100)
			p.cuts.Store(1000)
			before := p.cuts.Load()
			for range tc.early {
				p.taken()
			}
			p.begin(before, tc.marks)
			for range tc.late {
				p.taken()
			}
			passed := false
			select {
			case <-p.passed:
				passed = true
			default:
			}
			if passed != tc.passes {
				t.Errorf("passed: %t, want %t", passed, tc.passes)
			}
		})
	}
}
