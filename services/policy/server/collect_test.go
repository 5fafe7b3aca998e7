package server

import "testing"

func TestACollectionIsHalfDue(t *testing.T) {
	for _, tc := range []struct {
		objects, live, goal uint64
		want                bool
	}{
		{100, 100, 200, false},
		{150, 100, 200, false},
		{151, 100, 200, true},
		{250, 100, 200, true},
		{90, 100, 200, false}, // Swept since.
		{150, 100, 90, false}, // Nothing is known yet.
	} {
		if got := halfDue(tc.objects, tc.live, tc.goal); got != tc.want {
			t.Errorf("%d objects, %d live, goal %d: %t", tc.objects, tc.live, tc.goal, got)
		}
	}
}
