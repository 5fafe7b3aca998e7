package shim

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// A check amid a cut waits for its end, and finds nothing; before the first state
// it is not told what ought to be there.
func TestCheckIsBetweenChanges(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	c := dialNode(t, s)
	ctx := context.Background()
	if _, err := c.Check(ctx, &policyv1.CheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("before the first state: %v", err)
	}
	must(t, apply(t, s, w, w.cut(objects...)))
	gate := make(chan struct{})
	sw.look(func() { sw.settle, sw.settles = gate, 0 })
	applied := make(chan error, 1)
	touched := w.cut(deny("shut", "web"))
	go func() { applied <- apply(t, s, w, touched) }()
	sw.until(t, "the cut is under way", func() (under bool) { sw.look(func() { under = sw.settles > 0 }); return under })
	answers := make(chan *policyv1.CheckResponse, 1)
	go func() {
		resp, err := c.Check(ctx, &policyv1.CheckRequest{})
		if err != nil {
			t.Error(err)
		}
		answers <- resp
	}()
	select {
	case resp := <-answers:
		t.Fatalf("answered amid a cut: %v", resp)
	default:
	}
	close(gate)
	must(t, <-applied)
	resp := <-answers
	if len(resp.GetDifferences()) > 0 || resp.GetFlows() < 60 || int(resp.GetMeters()) != 5 || resp.GetDigestDiffers() || len(resp.GetDigest()) != 16 {
		t.Errorf("a bridge that is as it ought to be: %v", resp)
	}
}

// Of many differences the first are listed, and all are counted.
func TestCheckIsBounded(t *testing.T) {
	c := pipeline.New(pipeline.Config{RuleLogRate: 1}, pipeline.Assignment{})
	state := bridge.State{Content: bridge.NewContent(), Foreign: make(map[openflow.FlowKey]openflow.Flow)}
	for i := range uint32(1500) {
		f := openflow.Flow{Table: 60, Priority: 7, Match: openflow.NewMatch(openflow.InPort(i + 1))}
		state.Foreign[f.Key()] = f
	}
	resp := compare(c, c.Compare(), state)
	if resp.GetUnexpected() != 1500 || int(resp.GetMissing()) != 4 || len(resp.GetDifferences()) != maxDifferences { // Missing: the meters, since no Update was made.
		t.Errorf("%d unexpected, %d missing, %d listed", resp.GetUnexpected(), resp.GetMissing(), len(resp.GetDifferences()))
	}
}
