package churn

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// Every watch leads to the objects of the record, whenever it began and
// whatever it was told at once.
func TestWatchesLeadToTheRecord(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, c := newRecord(), newCluster(1, 8)
	enter := func(changes []change, err error) {
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			r.apply(c.event)
		}
	}
	enter(c.begin())
	var watches []*watch
	for seed := range uint64(4) {
		watches = append(watches, r.watch(seed, 10*time.Millisecond))
		for range 200 {
			enter(c.next())
		}
	}
	end := storage.Position{}
	for kind, at := range r.sequence {
		end[kind.String()] = at
	}
	for i, w := range watches {
		objects, synced := map[api.Ref]api.Object{}, false
		for position := (storage.Position{}); !synced || !maps.Equal(position, end); {
			b, err := w.Next(ctx)
			if err != nil {
				t.Fatalf("watch %d ends at %v of %v: %v", i, position, end, err)
			}
			for _, e := range b.Events {
				if e.Object == nil {
					delete(objects, e.Ref)
				} else {
					objects[e.Ref] = e.Object
				}
			}
			if synced && !b.Synced || !b.Position.Reaches(position) {
				t.Fatalf("watch %d goes back from %v to %v", i, position, b.Position)
			}
			position, synced = b.Position, b.Synced
		}
		want := map[api.Ref]api.Object{}
		for _, kind := range kinds {
			maps.Copy(want, r.objects[kind])
		}
		if !maps.Equal(objects, want) {
			t.Errorf("watch %d has %d objects, not the %d of the record", i, len(objects), len(want))
		}
	}
}
