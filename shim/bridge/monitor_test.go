package bridge_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// The switch tells of flows that others change, and not of those that we do or that go by
// themselves.
func TestOthersChangesAreTold(t *testing.T) {
	t.Parallel()
	in := ovstest.New(t)
	const passing = 0x99
	b, err := bridge.New(bridge.Config{Name: "br-weir", RunDir: in.Dir, DatapathType: "netdev", Passing: func(cookie uint64) bool { return cookie == passing }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := b.SetUp(ctx); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() { b.Run(ctx) })
	t.Cleanup(func() { cancel(); wait.Wait() })
	if err := b.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	var change bridge.Change
	for i := range uint32(1000) {
		change.Upsert = append(change.Upsert, openflow.Flow{Table: 3, Priority: 7, Match: openflow.NewMatch(openflow.InPort(i + 1)), Actions: openflow.NewActions(openflow.GotoTable(4))})
	}
	silent := func(what string) {
		t.Helper()
		if err := b.Apply(ctx, bridge.Change{PutMeters: []openflow.Meter{{ID: 9, Rate: 1, Burst: 1}}}); err != nil { // What was to be told has come by the answer.
			t.Fatal(err)
		}
		select {
		case <-b.Disturbed():
			t.Errorf("%s is told as others' doing", what)
		default:
		}
	}
	for range 2 {
		if err := b.Apply(ctx, change); err != nil {
			t.Fatal(err)
		}
		silent("what we put in")
	}
	if err := b.Apply(ctx, bridge.Change{Delete: []openflow.FlowKey{change.Upsert[0].Key()}}); err != nil {
		t.Fatal(err)
	}
	silent("what we take out")
	if err := b.Apply(ctx, bridge.Change{Upsert: []openflow.Flow{{Table: 5, Cookie: passing, HardTimeout: 1}}}); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, func() bool {
		counts, err := b.FlowCounts(ctx)
		return err == nil && counts[5] == 0
	})
	silent("what goes by itself")
	for _, by := range [][]string{
		{"add-flow", "br-weir", "table=3,priority=8,actions=drop"},
		{"mod-flows", "--strict", "br-weir", "table=3,priority=7,in_port=5,actions=drop"},
		{"del-flows", "--strict", "br-weir", "table=3,priority=7,in_port=6"},
	} {
		if _, err := in.Ofctl(ctx, by...); err != nil {
			t.Fatal(err)
		}
		select {
		case <-b.Disturbed():
		case <-time.After(5 * time.Second):
			t.Errorf("%v is not told", by)
		}
	}
}
