package pipeline

import (
	"net/netip"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// A port is open for the Pod that it was made for, and for no other of its name.
func TestPortsFitTheirPods(t *testing.T) {
	of := func(p Port, uid string, ips ...string) Port {
		p.UID = uid
		for _, ip := range ips {
			p.IPs = append(p.IPs, netip.MustParseAddr(ip))
		}
		return p
	}
	byUID := func(n uint32, uid string) Port { p := port(n, ""); p.Namespace = ""; return of(p, uid) }
	web := port(1, "web")
	for _, tc := range []struct {
		name string
		port Port
		uid  string // Of the Pod in the state.
		want string // Why it is closed.
	}{
		{"neither says more than the name", web, "", ""},
		{"the port says nothing", web, "u", ""},
		{"the state has no UID", of(web, "u"), "", ""},
		{"the same UID", of(web, "u"), "u", ""},
		{"another UID", of(web, "old"), "u", "its external_ids say Pod UID old, the state has UID u"},
		{"the same addresses, in another order", of(web, "", "fd00::1", "10.0.0.1"), "u", ""},
		{"an address less", of(web, "", "10.0.0.1"), "u", "addresses 10.0.0.1 of the interface are not those of the Pod's state: 10.0.0.1, fd00::1"},
		{"another Pod", port(1, "other"), "u", "the policy service does not know Pod x/other on this node yet"},
		{"a Pod by its UID", byUID(1, "u"), "u", ""},
		{"a Pod by a UID that nobody has", byUID(1, "v"), "u", "the policy service does not know Pod of UID v on this node yet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, c := newFeed(t, "node-1"), New(Config{}, Assignment{})
			p := pod("web", "node-1", "web", "10.0.0.1", "fd00::1")
			p.UID = tc.uid
			w.apply(&api.Namespace{Name: "x"}, p)
			w.update(c, w.sync(), []Port{tc.port})
			if got := c.Closed(tc.port); got != tc.want || c.Open(1) != (tc.want == "") {
				t.Errorf("closed for %q, open %v; want %q", got, c.Open(1), tc.want)
			}
			if ns, name, ok := c.PodOf(tc.port); ok && (ns != "x" || name != "web") {
				t.Errorf("of Pod %s/%s", ns, name)
			}
		})
	}
}

// A port closes when its Pod is another, and opens when that has a port.
func TestPortOfAFormerPodCloses(t *testing.T) {
	w, c := newFeed(t, "node-1"), New(Config{}, Assignment{})
	old, fresh := port(1, "web-0"), port(2, "web-0")
	old.UID, fresh.UID = "u1", "u2"
	ports := []Port{old, fresh}
	p := pod("web-0", "node-1", "web", "10.0.0.1")
	p.UID = "u1"
	w.apply(&api.Namespace{Name: "x"}, p)
	w.update(c, w.sync(), ports)
	if !c.Open(1) || c.Open(2) {
		t.Fatalf("first: %q, %q", c.Closed(old), c.Closed(fresh))
	}
	next := *p
	next.UID = "u2"
	w.apply(&next)
	w.update(c, w.sync(), ports)
	if c.Open(1) || !c.Open(2) {
		t.Errorf("then: %q, %q", c.Closed(old), c.Closed(fresh))
	}
	w.engine.Apply(api.Event{Ref: next.Ref()})
	w.update(c, w.sync(), ports)
	if c.Open(1) || c.Open(2) {
		t.Error("a Pod that is gone has an open port")
	}
}
