package shim

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// A shim without a checkpoint, that hears of no policy service, says of what the flows of
// the life before report whose they are and what they do.
func TestReportsOfAFormerLifeAreAttributed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	sw, w, objects := twoPods(t)
	dir := t.TempDir()
	rejects := rejecting("rejects", "client", true, false)
	rejects.Ingress = []api.OrderedRule{{Name: "r", Action: api.ActionReject, Log: true}}
	first := newShim(t, sw, w, dir)
	first.loop.refreshPorts(ctx)
	must(t, first.loop.apply(ctx, w.replica, w.cut(append(objects, deny("web", "web"), rejects)...)).err)
	must(t, os.RemoveAll(first.cfg.checkpoint()))
	w.renew()
	second := newShim(t, sw, w, dir)
	heard := func() (got []string) {
		sw.Send(syn(1, 2))
		sw.Send(syn(2, 1))
		second.loop.hear()
		second.log.Flush(time.Now().Add(time.Hour))
		for _, e := range second.log.Take(10) {
			p := e.GetPacket()
			got = append(got, fmt.Sprint(p.GetReason(), p.GetPolicies()[0].GetName(), p.GetRule(), p.GetDirection(), p.GetAction(), p.GetTable(), len(p.GetPolicies()), p.GetCount()))
		}
		return got
	}
	if got := heard(); len(got) != 0 {
		t.Errorf("before the bridge is read, reports mean %q", got)
	}
	want := []string{
		fmt.Sprint("isolation", "web", "", policyv1.Direction_DIRECTION_INGRESS, policyv1.Action_ACTION_DROP, "IngressDefaultRule", 1, 1),
		fmt.Sprint("rule", "rejects", "r", policyv1.Direction_DIRECTION_INGRESS, policyv1.Action_ACTION_REJECT, "AntreaPolicyIngressRule", 1, 1),
	}
	second.loop.refreshPorts(ctx)
	if got := heard(); !slices.Equal(got, slices.Concat(want, want)) { // With those that waited.
		t.Errorf("without a state:\n%q, want twice\n%q", got, want)
	}
	must(t, second.loop.apply(ctx, w.replica, w.cut()).err)
	must(t, second.loop.reconcile(ctx))
	if got := heard(); !slices.Equal(got, want) {
		t.Errorf("with the state:\n%q, want\n%q", got, want)
	}
}
