package churn

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weirnet/weir/e2e/differential"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// quiet is a small cluster in which nothing happens by itself.
func quiet(t *testing.T) *run {
	t.Helper()
	r := newRun(Config{Seed: 1, Shims: 4, Sample: 4, Hold: time.Millisecond, Stall: time.Millisecond, Dir: t.TempDir()})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	if err := r.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// A replica that has not heard of an object is not taken for right.
func TestAMissedChangeIsFound(t *testing.T) {
	r := quiet(t)
	policy := &networkingv1.NetworkPolicy{}
	policy.Namespace, policy.Name = r.cluster.tenants[0].spaces[0], "unheard-of"
	object, err := differential.Convert(policy)
	if err != nil {
		t.Fatal(err)
	}
	r.record.mu.Lock()
	r.record.objects[object.Ref().Kind][object.Ref()] = object
	r.record.mu.Unlock()
	want, err := r.want(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if missing, err := r.differs(t.Context(), want); err != nil || !strings.HasPrefix(missing, "replica ") {
		t.Errorf("differs says %q, %v", missing, err)
	}
}

// Nor is a bridge that lacks a flow.
func TestAMissingFlowIsFound(t *testing.T) {
	r := quiet(t)
	if flows, err := r.verify(t.Context()); err != nil || flows == 0 {
		t.Fatalf("%d flows are right: %v", flows, err)
	}
	fake := r.nodes[1].bridge
	state, err := fake.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys := slices.SortedFunc(maps.Keys(state.Flows), func(a, b openflow.FlowKey) int { return strings.Compare(a.String(), b.String()) })
	if err := fake.Apply(t.Context(), bridge.Change{Delete: keys[:1]}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.verify(t.Context()); err == nil || !strings.Contains(err.Error(), "1 are missing or differ") {
		t.Errorf("verify says %v", err)
	}
}
