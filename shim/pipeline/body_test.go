package pipeline

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
)

// A thousand rules that are alike cost what one does, and one more or less costs nothing.
func TestRulesThatAreAlikeAreOne(t *testing.T) {
	for name, policy := range map[string]func(i int) *policyv1.Policy{
		"of a tier":  func(i int) *policyv1.Policy { return tier(fmt.Sprint("policy-", i), 1, drop) },
		"Kubernetes": func(i int) *policyv1.Policy { return allowing(fmt.Sprint("policy-", i)) },
	} {
		t.Run(name, func(t *testing.T) {
			w, c := newTierWorld(t), New(config, Assignment{})
			w.add(policy(0))
			w.bring(c)
			one := len(c.Desired())
			for i := range 1000 {
				w.add(policy(i))
			}
			w.bring(c)
			if got := len(c.Desired()); got != one {
				t.Errorf("%d flows, and one rule has %d", got, one)
			}
			w.add(policy(1000))
			if ch := w.bring(c); len(ch.Upsert)+len(ch.Delete) != 0 && name != "Kubernetes" { // Their isolation counts for one more.
				t.Errorf("one more touches %v %v", ch.Upsert, ch.Delete)
			}
			if got := len(c.Desired()); got != one {
				t.Errorf("%d flows with one more, and one rule has %d", got, one)
			}
		})
	}
}

// idOf is the id by which a policy's only rule counts; zero where another does.
func idOf(c *Compiler, policy string) uint32 {
	for id := range c.counts.of {
		if s := c.Subjects(id); c.counts.live(id) && len(s) == 1 && s[0].Name == policy && !s[0].Isolation {
			return id
		}
	}
	return 0
}

// The id of rules that are alike stays, whoever of them leaves, comes back or
// changes; so do the flows.
func TestIDStaysWithTheRest(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	w.add(tier("a", 1, drop), tier("b", 1, drop), tier("c", 1, drop))
	w.bring(c)
	id := idOf(c, "a")
	if id == 0 || idOf(c, "b")+idOf(c, "c") != 0 {
		t.Fatal("not the first counts")
	}
	again := tier("a", 1, drop)
	again.Generation = 2
	w.add(again)
	if ch := w.bring(c); len(ch.Upsert)+len(ch.Delete) != 0 || idOf(c, "a") != id {
		t.Errorf("written anew, it touches %v %v", ch.Upsert, ch.Delete)
	}
	other := tier("a", 1, drop) // Not alike any more.
	other.Rules[0].Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 80}}}
	w.add(other)
	w.bring(c)
	own := idOf(c, "a")
	if idOf(c, "b") != id || own == id || own == 0 {
		t.Errorf("the id %d went to %d of a, %d of b", id, own, idOf(c, "b"))
	}
	delete(w.policies, "a")
	w.add(tier("a", 1, drop))
	w.bring(c)
	assignment, err := DecodeAssignment(c.Assignment().Encode())
	if err != nil {
		t.Fatal(err)
	}
	fresh := New(config, assignment) // The owner is not the first there.
	w.update(fresh, Whole(w.replica), w.localPorts())
	for _, at := range []*Compiler{c, fresh} {
		if idOf(at, "b") != id || idOf(at, "a") != 0 {
			t.Errorf("back among them, b has %d and a %d", idOf(at, "b"), idOf(at, "a"))
		}
	}
	if got, want := text(inForce(fresh)), text(inForce(c)); got != want {
		t.Errorf("fresh (+) and incremental (-):\n%s", difference(got, want))
	}
	delete(w.policies, "b")
	if ch := w.bring(c); idOf(c, "a") != id || !slices.Equal(ch.Recounted, []uint32{id}) {
		t.Errorf("after b, a has %d instead of %d; %v are said to count for others", idOf(c, "a"), id, ch.Recounted)
	}
	again = tier("a", 1, drop)
	again.Uid = "another"
	w.add(again)
	if ch := w.bring(c); !slices.Equal(ch.Recounted, []uint32{id}) || c.Subjects(id)[0].UID != "another" {
		t.Errorf("as another object, %d counts for %v; %v are said to count for others", id, c.Subjects(id), ch.Recounted)
	}
	for name := range w.policies {
		delete(w.policies, name)
	}
	w.update(c, w.touched(), w.localPorts())
	if !slices.Contains(c.Retired(), id) || c.Subjects(id)[0].Name != "a" {
		t.Errorf("retired: %v", c.Retired())
	}
}

// Flows that count stay as they are when their rule moves, and once it has gone,
// until they are dropped.
func TestRetiredFlowsStayUntilDropped(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	w.add(tier("open", 1, allow), tier("shut", 2, drop), isolates("closed"))
	w.bring(c)
	counting := func() (out []openflow.Flow) {
		for _, f := range c.Desired() {
			if _, counts := CountOf(f); counts {
				out = append(out, f)
			}
		}
		return out
	}
	before := text(counting())
	if n := len(counting()); n != 3+1+1 {
		t.Fatalf("%d flows count:\n%s", n, before)
	}
	for table := range c.ladders { // Everything moves.
		l := c.ladders[table]
		for _, s := range l.slots.list {
			c.move(s, s.priority-1)
			s.priority--
		}
	}
	c.flows.take()
	if got := text(counting()); got != before {
		t.Errorf("after a move:\n%s", difference(got, before))
	}
	clear(w.policies)
	if ch := w.update(c, w.touched(), w.localPorts()); text(counting()) != before || len(ch.Upsert) != 0 {
		t.Errorf("with its policy gone:\n%s", difference(text(counting()), before))
	}
	for _, id := range c.Retired() {
		s := c.Subjects(id)
		if len(s) != 1 || c.Holds(s[0]) {
			t.Errorf("retired %d: %v", id, s)
		}
	}
	ids := c.Retired()
	if ch := c.Drop(ids[:2]); len(ids) != 3 || len(c.Retired()) != 1 || len(ch.Delete) == 0 {
		t.Errorf("of %v %v are left", ids, c.Retired())
	}
	c.Drop(ids)
	if n := len(counting()); n != 0 {
		t.Errorf("%d flows count after all", n)
	}
}

// What was reported before a bundle is read after it: it names what decided then.
func TestHitOfWhatHasGone(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	w.add(logged(tier("shut", 1, drop)), logged(isolates("closed")), logged(isolates("tight")))
	w.bring(c)
	hits := make(map[CookieKind]Hit)
	for _, f := range c.Desired() {
		kind, _, _ := ParseCookie(f.Cookie)
		h := Hit{Table: f.Table, Cookie: f.Cookie, OutPort: 1, Src: netip.MustParseAddr("10.1.0.1"), Dst: netip.MustParseAddr("10.0.0.1")}
		for _, a := range f.Actions.List() {
			if set, is := a.(openflow.SetField); is && set.ID == openflow.FieldReg(regDecision) {
				h.Decision = DecisionOf(f.Cookie, func(int) uint32 { return uint32(set.Value.Uint64()) })
			}
		}
		if kind == KindRule || kind == KindIsolation {
			hits[kind] = h
		}
	}
	check := func(when string, known bool) {
		t.Helper()
		for kind, policies := range map[CookieKind][]string{KindRule: {"shut"}, KindIsolation: {"closed", "tight"}} {
			a, ok := c.Attribute(hits[kind])
			var names []string
			for _, ref := range a.Policies {
				names = append(names, ref.GetName())
			}
			if ok != known || known && (a.Action != drop || a.AppliedTo != "x/web" || !slices.Equal(names, policies)) {
				t.Errorf("%s: %v: %t, %v", when, policies, ok, a.Policies)
			}
		}
	}
	check("in force", true)
	delete(w.policies, "closed")
	w.update(c, w.touched(), w.localPorts())
	check("one of two isolates", true)
	clear(w.policies)
	w.update(c, w.touched(), w.localPorts())
	check("gone", true)
	w.update(c, nil, nil)
	check("gone, and the port", true)
	c.Drop(c.Retired())
	check("dropped", false)
}
