package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// startJudge holds what was received, and what was not, to what the sets of
// objects allow.
type startJudge struct {
	*startRun
	verdicts map[verdictKey]directions

	sent, heard, denied int
	gaps                []gap
	losses              []string
	inherited           int // Steady ones that a forerunner's connection let through on a node that is not told of its leaving.
	behind              int // That a node let through by a set before the Pod's; see unheard.
	early               int // Not received while a node may not have known an address yet.
	lost                int
	overflow            int
	excused             int
	delays              []time.Duration // From ADD's begin to its end.
}

// gap is something that must not be. From and to are nil where no datagram shows it.
type gap struct {
	from, to *startingPod
	at       time.Duration
	steady   bool
	what     string
}

type verdictKey struct {
	set      int
	from, to *startingPod
	v6       bool
}

// directions are what a connection's ends decide, each on its node.
type directions struct{ egress, ingress bool }

// lateness bounds how long a datagram that was not received was on its way.
const lateness = 500 * time.Millisecond

// judge looks at all that was sent and heard; nothing is any more.
func (r *startRun) judge() *startJudge {
	r.ledger.mu.Lock()
	defer r.ledger.mu.Unlock()
	j := &startJudge{startRun: r, verdicts: make(map[verdictKey]directions)}
	came := make([][]bool, len(r.pods))
	for i, p := range r.pods {
		came[i] = make([]bool, len(p.sent))
		if !p.old && p.opened.Load() > 0 {
			j.delays = append(j.delays, time.Duration(p.opened.Load())-p.begun)
		}
		j.overflow += int(p.overflow)
	}
	for _, to := range r.pods {
		for _, h := range to.heard {
			if int(h.from) >= len(r.pods) || int(h.index) >= len(r.pods[h.from].sent) {
				j.gaps = append(j.gaps, gap{what: fmt.Sprintf("%s heard what nobody sent", to.name)})
				continue
			}
			from := r.pods[h.from]
			came[h.from][h.index] = true
			j.heard++
			j.received(from, to, from.sent[h.index], h.at)
		}
	}
	for i, p := range r.pods {
		for k, d := range p.sent {
			j.sent++
			if !d.steady && !came[i][k] {
				j.missed(p, d)
			}
		}
	}
	slices.Sort(j.delays)
	return j
}

// received judges a datagram that came.
func (j *startJudge) received(from, to *startingPod, d sentDatagram, at time.Duration) {
	since := d.at
	if d.steady { // Its connection may have been allowed before.
		since = max(from.begun, to.begun)
	}
	egress, ingress := false, false
	first, last := j.possible(from.node, since, at)
	for set := max(first, from.born); set <= last && from.born >= 0; set++ {
		egress = egress || j.verdict(set, from, to, d.v6).egress
	}
	first, last = j.possible(to.node, since, at)
	for set := max(first, to.born); set <= last && to.born >= 0; set++ {
		ingress = ingress || j.verdict(set, from, to, d.v6).ingress
	}
	if egress && ingress {
		return
	}
	if d.steady && from.node != to.node && (!egress && ingress && j.hadForerunner(to) || egress && !ingress && j.hadForerunner(from)) {
		j.inherited++
		return
	}
	if egress && j.unheard(to, from, d, since, at, false) || ingress && j.unheard(from, to, d, since, at, true) {
		j.behind++
		return
	}
	f1, l1 := j.possible(from.node, since, at)
	j.gaps = append(j.gaps, gap{from, to, at, d.steady, fmt.Sprintf("%s → %s (meant for %s, v6 %t, steady %t), sent at %s, received at %s: egress %t by sets %d to %d of %s, ingress %t by sets %d to %d of %s",
		from, to, d.to, d.v6, d.steady, d.at, at, egress, f1, l1, from.node, ingress, first, last, to.node)})
}

// excuse takes out gaps that are accounted for, and counts them.
func (j *startJudge) excuse(which func(gap) bool) {
	j.gaps = slices.DeleteFunc(j.gaps, func(g gap) bool {
		if g.from == nil || !which(g) {
			return false
		}
		j.excused++
		return true
	})
}

// unheard says whether a node may have been at a set before a Pod's, in which the
// Pod's addresses are nobody's and may be spoken with, while what denies that in
// the Pod's first set is isolation, for which no port waits.
func (j *startJudge) unheard(guarded, peer *startingPod, d sentDatagram, since, at time.Duration, egress bool) bool {
	from, to := peer, guarded
	if egress {
		from, to = guarded, peer
	}
	of := func(r evaluate.Result) evaluate.Decision {
		if egress {
			return r.Egress
		}
		return r.Ingress
	}
	first, _ := j.possible(guarded.node, since, at)
	if first >= peer.born {
		return false
	}
	now, err := j.with(j.sets[peer.born], from, to).Evaluate(startConnection(from.end(d.v6), to.end(d.v6)))
	if err != nil || of(now).Policy != nil {
		return false
	}
	for set := max(first, guarded.born); set < peer.born; set++ {
		ends := []evaluate.Endpoint{from.end(d.v6), to.end(d.v6)}
		ends[map[bool]int{false: 0, true: 1}[egress]] = evaluate.Endpoint{Addr: peer.end(d.v6).Addr}
		state := evaluate.New(j.objects(j.sets[set], peer)...)
		if then, err := state.Evaluate(startConnection(ends[0], ends[1])); err == nil && of(then).Action == evaluate.Allow {
			return true
		}
	}
	return false
}

func startConnection(from, to evaluate.Endpoint) evaluate.Connection {
	return evaluate.Connection{From: from, To: to, Protocol: api.ProtocolUDP, Port: earPort}
}

func (p *startingPod) end(v6 bool) evaluate.Endpoint {
	e := evaluate.Endpoint{Namespace: p.space, Pod: p.name, Addr: p.addr.v4}
	if v6 {
		e.Addr = p.addr.v6
	}
	return e
}

// hadForerunner says whether another Pod had a Pod's addresses before.
func (j *startJudge) hadForerunner(p *startingPod) bool {
	return slices.ContainsFunc(j.pods, func(q *startingPod) bool { return q.addr == p.addr && q.serial < p.serial })
}

func (p *startingPod) String() string {
	return fmt.Sprintf("%s/%s (app %s, %s, %s, set %d, ADD from %s to %s)", p.space, p.name, p.app, p.node, p.addr.v4, p.born, p.begun, time.Duration(p.opened.Load()))
}

// missed judges a datagram that did not come.
func (j *startJudge) missed(from *startingPod, d sentDatagram) {
	to := d.to
	open := func(p *startingPod) bool {
		opened := time.Duration(p.opened.Load())
		return opened > 0 && opened <= d.at && (p.closed == 0 || p.closed > d.at+lateness)
	}
	if !open(from) || !open(to) {
		j.denied++
		return
	}
	early := false
	for _, p := range []*startingPod{from, to} {
		first, last := j.possible(p.node, d.at, d.at+lateness)
		for set := first; set <= last; set++ {
			v := j.verdict(set, from, to, d.v6)
			if p == from && !v.egress || p == to && !v.ingress {
				j.denied++
				return
			}
			early = early || set < max(from.born, to.born)
		}
	}
	if early {
		j.early++
		return
	}
	j.lost++
	if len(j.losses) < 20 {
		j.losses = append(j.losses, fmt.Sprintf("%s → %s, v6 %t, sent at %s", from, to, d.v6, d.at))
	}
}

// verdict is what a set says of a connection of two Pods. Where it has not one of
// them yet, it is judged as if it had, and nobody else its addresses.
func (j *startJudge) verdict(number int, from, to *startingPod, v6 bool) directions {
	key := verdictKey{number, from, to, v6}
	if v, known := j.verdicts[key]; known {
		return v
	}
	set := j.sets[number]
	state := set.state
	for _, p := range []*startingPod{from, to} {
		if set.objects[p.key()] == nil {
			if number > p.born {
				j.verdicts[key] = directions{} // It is gone.
				return directions{}
			}
			state = nil
		}
	}
	if state == nil {
		state = j.with(set, from, to)
	}
	v := directions{}
	result, err := state.Evaluate(startConnection(from.end(v6), to.end(v6)))
	if err != nil {
		j.gaps = append(j.gaps, gap{what: fmt.Sprintf("set %d cannot be evaluated: %v", number, err)})
	} else {
		v = directions{result.Egress.Action == evaluate.Allow, result.Ingress.Action == evaluate.Allow}
	}
	j.verdicts[key] = v
	return v
}

// with is a set with Pods that come later in it.
func (j *startJudge) with(set *objectSet, pods ...*startingPod) *evaluate.State {
	all := j.objects(set, pods...)
	for _, p := range pods {
		if set.objects[p.key()] == nil {
			all = append(all, j.sets[p.born].objects[p.key()]...)
		}
	}
	return evaluate.New(all...)
}

// objects are those of a set, without the Pods that have the addresses of Pods
// that come later and do not share them.
func (j *startJudge) objects(set *objectSet, later ...*startingPod) (all []api.Object) {
	gone := make(map[string]bool)
	for _, p := range later {
		if set.objects[p.key()] != nil {
			continue
		}
		for _, other := range j.pods {
			if other.addr == p.addr && j.sets[p.born].objects[other.key()] == nil {
				gone[other.key()] = true
			}
		}
	}
	for key, list := range set.objects {
		if !gone[key] {
			all = append(all, list...)
		}
	}
	return all
}

// report says what was found.
func (j *startJudge) report(t *testing.T) {
	t.Helper()
	quantile := func(q float64) time.Duration { return j.delays[min(len(j.delays)-1, int(q*float64(len(j.delays))))] }
	if len(j.delays) > 0 {
		t.Logf("from ADD's begin to the open port: p50 %s, p99 %s, of %d Pods", quantile(0.5).Round(time.Millisecond), quantile(0.99).Round(time.Millisecond), len(j.delays))
	}
	t.Logf("%d sets of objects; %d datagrams sent, %d received, %d not allowed all the time, %d lost while an address was not known everywhere, %d lost, %d found a full buffer, %d of connections of forerunners elsewhere, %d by a node behind",
		len(j.sets), j.sent, j.heard, j.denied, j.early, j.lost, j.overflow, j.inherited, j.behind)
	for i, g := range j.gaps {
		if i < 10 {
			t.Errorf("gap: %s", g.what)
		}
	}
	if len(j.gaps) > 0 {
		t.Errorf("%d datagrams came through that nothing allowed", len(j.gaps))
	}
	if j.excused > 0 {
		t.Logf("%d datagrams came through after a barrier's counted timeout", j.excused)
	}
	if j.lost > j.overflow {
		t.Errorf("%d datagrams that everything allowed did not come, and %d found a full buffer", j.lost, j.overflow)
		for _, loss := range j.losses {
			t.Log("lost: ", loss)
		}
	}
	if j.heard < 200 || j.denied < 200 {
		t.Errorf("of %d datagrams %d came and %d were denied: nothing is shown", j.sent, j.heard, j.denied)
	}
}
