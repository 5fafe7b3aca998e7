package policy

import (
	"sync"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

// judge compares objects with each other: for conflicts, and for changes that a
// webhook is asked about. It may take long over a question (package validate says
// how long), and the service's writer does not wait for it: what it tells is taken
// over before the next question.
type judge struct {
	whole bool // Pods, Nodes and Kubernetes NetworkPolicies are judged by, too.

	told struct {
		sync.Mutex
		events []api.Event // Not taken over yet.
	}
	mu    sync.Mutex // Guards index; it is taken before told.
	index *validate.Index
}

func newJudge(whole bool) *judge { return &judge{whole: whole, index: validate.NewIndex()} }

// tell takes changes into account, as far as they matter to it.
func (j *judge) tell(events []api.Event) {
	j.told.Lock()
	defer j.told.Unlock()
	for _, ev := range events {
		switch ev.Ref.Kind {
		case api.KindServiceAccount, api.KindEndpointSlice:
			continue
		case api.KindPod, api.KindNetworkPolicy, api.KindNode:
			if !j.whole {
				continue
			}
		}
		j.told.events = append(j.told.events, ev)
	}
	if len(j.told.events) > mostTold && j.mu.TryLock() { // Nobody asks: so that they do not gather.
		j.takeOverLocked()
		j.mu.Unlock()
	}
}

// mostTold is how many changes wait for a question, while none is being answered.
const mostTold = 1024

// takeOverLocked needs both locks.
func (j *judge) takeOverLocked() {
	for _, ev := range j.told.events {
		if ev.Object == nil {
			j.index.Remove(ev.Ref)
		} else {
			j.index.Set(ev.Object)
		}
	}
	j.told.events = nil
}

// ask calls fn with everything that was told.
func (j *judge) ask(fn func(*validate.Index)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.told.Lock()
	j.takeOverLocked()
	j.told.Unlock()
	fn(j.index)
}
