package policy

import (
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

func tierEvent(name string, priority uint8) api.Event {
	t := &api.Tier{Name: name, Priority: priority}
	return api.Event{Ref: t.Ref(), Object: t}
}

// What was told before a question counts for its answer, also where nobody has
// asked for long, and while others ask.
func TestJudgeKnowsWhatItWasTold(t *testing.T) {
	j := newJudge(true)
	const most = 3 * mostTold
	var g errgroup.Group
	for range 2 {
		g.Go(func() error {
			for range 100 {
				j.ask(func(x *validate.Index) { x.Get(api.Ref{Kind: api.KindTier, Name: "t"}) })
			}
			return nil
		})
	}
	for i := range most {
		j.tell([]api.Event{tierEvent("t", uint8(i%40)), {Ref: api.Ref{Kind: api.KindTier, Name: fmt.Sprint("gone-", i-1)}}, tierEvent(fmt.Sprint("gone-", i), 41)})
		if i%500 != 0 {
			continue
		}
		j.ask(func(x *validate.Index) {
			tier, is := x.Get(api.Ref{Kind: api.KindTier, Name: "t"}).(*api.Tier)
			if !is || tier.Priority != uint8(i%40) {
				t.Errorf("after %d changes the tier is %v", i, tier)
			}
			if i > 0 && x.Get(api.Ref{Kind: api.KindTier, Name: fmt.Sprint("gone-", i-1)}) != nil {
				t.Errorf("what went is there")
			}
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	j.told.Lock()
	defer j.told.Unlock()
	if n := len(j.told.events); n > mostTold+3 {
		t.Errorf("%d changes wait for a question", n)
	}
}

// Pods, and Kubernetes NetworkPolicies, cost memory, and only webhooks ask for them.
func TestJudgeKeepsPodsForWebhooksAlone(t *testing.T) {
	for _, whole := range []bool{false, true} {
		j := newJudge(whole)
		np := &api.NetworkPolicy{Namespace: "a", Name: "b"}
		j.tell([]api.Event{{Ref: np.Ref(), Object: np}, {Ref: api.Ref{Kind: api.KindServiceAccount, Namespace: "a", Name: "b"}, Object: &api.ServiceAccount{}}})
		j.ask(func(x *validate.Index) {
			if there := x.Get(np.Ref()) != nil; there != whole {
				t.Errorf("whole %t: there %t", whole, there)
			}
		})
	}
}
