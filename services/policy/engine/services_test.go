package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// heldServices are the Services and backends that a node holds, in words.
func heldServices(t testing.TB, store *storage.Store, node string) (lines []string) {
	t.Helper()
	ports := func(list []*policyv1.ServicePort) (words []string) {
		for _, p := range list {
			words = append(words, fmt.Sprintf("%s:%d", p.Name, p.Port))
		}
		return words
	}
	heldBy(t, store, node).Items(storage.ScopeServices, func(_ storage.ScopeID, item *policyv1.Item) {
		if s := item.GetService(); s != nil {
			lines = append(lines, fmt.Sprintf("%s/%s %v affinity %d local %v", s.Namespace, s.Name, ports(s.Ports), s.AffinitySeconds, s.Local))
			return
		}
		b := item.GetBackend()
		ip, _ := netip.AddrFromSlice(b.Ip)
		line := fmt.Sprintf("%s/%s at %s %v on %s", b.Namespace, b.Service, ip, ports(b.Ports), b.Node)
		if b.Terminating {
			line += " terminating"
		}
		for _, list := range [][]string{b.Zones, b.Nodes} {
			if len(list) > 0 {
				line += fmt.Sprint(" for ", list)
			}
		}
		lines = append(lines, line)
	})
	slices.Sort(lines)
	return lines
}

// agreeOnServices compares what nodes hold of Services with what the objects say,
// worked out in the plainest way.
func agreeOnServices(t testing.TB, store *storage.Store, objects []api.Object) {
	t.Helper()
	want := servicesOf(objects)
	for _, node := range someNodes {
		holds := slices.ContainsFunc(objects, func(o api.Object) bool { p, _ := o.(*api.Pod); return isEndpoint(p) && p.Node == node })
		got := heldServices(t, store, node)
		if !holds {
			if len(got) > 0 {
				t.Fatalf("%s has no Pod, and holds %v", node, got)
			}
		} else if !slices.Equal(got, want) {
			t.Fatalf("%s holds\n%s\nwant\n%s", node, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func servicesOf(objects []api.Object) (lines []string) {
	for _, o := range objects {
		if s, is := o.(*api.Service); is && !s.Headless && s.Type != "ExternalName" && len(s.ClusterIPs) > 0 {
			var words []string
			for _, p := range s.Ports {
				words = append(words, fmt.Sprintf("%s:%d", p.Name, p.Port))
			}
			lines = append(lines, fmt.Sprintf("%s/%s %v affinity %d local %v", s.Namespace, s.Name, words, s.AffinitySeconds, s.InternalLocal))
			lines = append(lines, backendsOf(s, objects)...)
		}
	}
	slices.Sort(lines)
	return lines
}

// claim is that an address serves some ports.
type claim struct {
	by, node string
	ip       netip.Addr
	ready    bool
	hints    string
	port     func(api.ServicePort) uint16
}

func backendsOf(s *api.Service, objects []api.Object) (lines []string) {
	claims := claimsOf(s, objects)
	slices.SortStableFunc(claims, func(a, b claim) int {
		if a.ready != b.ready {
			if a.ready {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.by, b.by)
	})
	seen := map[netip.Addr]bool{}
	for _, c := range claims {
		four := slices.ContainsFunc(s.ClusterIPs, func(ip netip.Addr) bool { return ip.Is4() })
		six := slices.ContainsFunc(s.ClusterIPs, func(ip netip.Addr) bool { return ip.Is6() })
		if seen[c.ip] || c.ip.Is4() && !four || c.ip.Is6() && !six {
			continue
		}
		seen[c.ip] = true
		var words []string
		for _, p := range s.Ports {
			for _, other := range claims {
				if n := other.port(p); n != 0 && other.ip == c.ip && other.ready == c.ready {
					words = append(words, fmt.Sprintf("%s:%d", p.Name, n))
					break
				}
			}
		}
		if len(words) == 0 {
			continue
		}
		line := fmt.Sprintf("%s/%s at %s %v on %s", s.Namespace, s.Name, c.ip, words, c.node)
		if !c.ready {
			line += " terminating"
		}
		lines = append(lines, line+c.hints)
	}
	return lines
}

func claimsOf(s *api.Service, objects []api.Object) (claims []claim) {
	sliced := false
	for _, o := range objects {
		slice, is := o.(*api.EndpointSlice)
		if !is || slice.Namespace != s.Namespace || slice.Service != s.Name {
			continue
		}
		sliced = true
		seen := map[netip.Addr]bool{}
		for _, e := range slice.Endpoints {
			if len(e.Addresses) == 0 || seen[e.Addresses[0]] {
				continue
			}
			seen[e.Addresses[0]] = true
			if !e.Ready && !(e.Serving && e.Terminating) {
				continue
			}
			c := claim{by: slice.Name, ip: e.Addresses[0], node: e.Node, ready: e.Ready, port: func(p api.ServicePort) uint16 {
				for _, own := range slice.Ports {
					if own.Name == p.Name {
						return own.Port
					}
				}
				return 0
			}}
			for _, list := range [][]string{e.Zones, e.Nodes} {
				if len(list) > 0 {
					c.hints += fmt.Sprint(" for ", list)
				}
			}
			claims = append(claims, c)
		}
	}
	for _, o := range objects {
		pod, is := o.(*api.Pod)
		if !is || sliced || len(s.Selector) == 0 || !isEndpoint(pod) || pod.Namespace != s.Namespace {
			continue
		}
		if slices.ContainsFunc(s.Selector, func(l api.Label) bool { return !slices.Contains(pod.Labels, l) }) {
			continue
		}
		for _, ip := range pod.IPs {
			claims = append(claims, claim{by: pod.Name, ip: ip, node: pod.Node, ready: true, port: func(p api.ServicePort) uint16 {
				if p.TargetName == "" {
					return cmp.Or(p.TargetPort, p.Port)
				}
				for _, own := range pod.Ports {
					if own.Name == p.TargetName {
						return own.Port
					}
				}
				return 0
			}})
		}
	}
	return claims
}

func TestBackends(t *testing.T) {
	named := newPod("x", "a", "node-1", "10.0.0.1", "app", "web")
	named.Ports = []api.ContainerPort{{Name: "sql", Protocol: api.ProtocolTCP, Port: 5432}}
	dual := newPod("x", "b", "node-2", "10.0.0.2", "app", "web")
	dual.IPs = append(dual.IPs, netip.MustParseAddr("fd00::2"))
	service := newService("x", "web", "app", "web")
	both, renamed, external, sticky := *service, *service, *service, *service
	both.ClusterIPs = append(slices.Clone(both.ClusterIPs), netip.MustParseAddr("fd96::1"))
	renamed.Ports = []api.ServicePort{{Name: "http", Protocol: api.ProtocolTCP, Port: 80}}
	external.Type = "ExternalName"
	sticky.AffinitySeconds, sticky.InternalLocal = 60, true
	hinted := serving("10.0.0.9", "node-9")
	hinted.Zones, hinted.Nodes = []string{"east"}, []string{"node-1"}
	lingering := api.SliceEndpoint{Addresses: hinted.Addresses, Node: "node-9", Serving: true, Terminating: true}
	sql := newSlice("x", "web-2", "web", serving("10.0.0.9", "node-9"))
	sql.Ports = []api.ServicePort{{Name: "web", Protocol: api.ProtocolTCP, Port: 1}, {Name: "sql", Protocol: api.ProtocolTCP, Port: 2}}
	udp := newSlice("x", "web-1", "web", serving("10.0.0.9", "node-9"))
	udp.Ports = []api.ServicePort{{Name: "web", Protocol: api.ProtocolUDP, Port: 1}}
	const item = "x/web [web:80 sql:90] affinity 0 local false"
	for _, tc := range []struct {
		name    string
		objects []api.Object
		want    []string
	}{
		{"Pods of the selector", these(service), []string{item, "x/web at 10.0.0.1 [web:8080 sql:5432] on node-1", "x/web at 10.0.0.2 [web:8080] on node-2"}},
		{"of both families", these(&both), []string{item, "x/web at 10.0.0.1 [web:8080 sql:5432] on node-1", "x/web at 10.0.0.2 [web:8080] on node-2", "x/web at fd00::2 [web:8080] on node-2"}},
		{"a slice counts before the selector", these(service, newSlice("x", "web-1", "web")), []string{item}},
		{"a slice of another Service does not", these(service, newSlice("x", "web-1", "other", serving("10.0.0.9", "n"))), []string{item, "x/web at 10.0.0.1 [web:8080 sql:5432] on node-1", "x/web at 10.0.0.2 [web:8080] on node-2"}},
		{"hints", these(service, newSlice("x", "web-1", "web", hinted)), []string{item, "x/web at 10.0.0.9 [web:8080] on node-9 for [east] for [node-1]"}},
		{"two slices share out ports", these(service, newSlice("x", "web-1", "web", hinted), sql), []string{item, "x/web at 10.0.0.9 [web:8080 sql:2] on node-9 for [east] for [node-1]"}},
		{"of an address that lingers in one", these(service, newSlice("x", "web-1", "web", lingering), sql), []string{item, "x/web at 10.0.0.9 [web:1 sql:2] on node-9"}},
		{"one that lingers", these(service, newSlice("x", "web-1", "web", lingering)), []string{item, "x/web at 10.0.0.9 [web:8080] on node-9 terminating"}},
		{"one that does not serve", these(service, newSlice("x", "web-1", "web", api.SliceEndpoint{Addresses: hinted.Addresses, Terminating: true})), []string{item}},
		{"one that does not serve yet", these(service, newSlice("x", "web-1", "web", api.SliceEndpoint{Addresses: hinted.Addresses, Serving: true})), []string{item}},
		{"a port of another name", these(&renamed, newSlice("x", "web-1", "web", hinted)), []string{"x/web [http:80] affinity 0 local false"}},
		{"a port of another protocol", these(service, udp), []string{item}},
		{"what else there is to say", these(&sticky, newSlice("x", "web-1", "web")), []string{"x/web [web:80 sql:90] affinity 60 local true"}},
		{"ExternalName", these(&external, newSlice("x", "web-1", "web", hinted)), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, store := New(), storage.New("e")
			for _, o := range append(these(named, dual), tc.objects...) {
				e.Apply(upsert(o))
			}
			store.Commit(e.Flush(), nil)
			if got := heldServices(t, store, "node-1"); !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
			if got := heldServices(t, store, "node-9"); len(got) > 0 {
				t.Errorf("a node without a Pod holds %v", got)
			}
		})
	}
}

// What changes in a slice is told, and nothing else; so is a Pod of the selector.
func TestAnEndpointIsOneChange(t *testing.T) {
	many := func(ready bool) []api.SliceEndpoint {
		var list []api.SliceEndpoint
		for i := range 100 {
			list = append(list, serving(fmt.Sprintf("10.1.0.%d", i), "node-1"))
		}
		list[50].Ready = ready
		return list
	}
	e := New()
	for _, o := range these(newPod("x", "a", "node-1", "10.0.0.1", "app", "web"), newService("x", "web", "app", "web"), newSlice("x", "web-1", "web", many(true)...), newService("x", "by-selector", "app", "web")) {
		e.Apply(upsert(o))
	}
	e.Flush()
	for _, tc := range []struct {
		name  string
		event api.Event
		want  string
	}{
		{"an endpoint is not ready", upsert(newSlice("x", "web-1", "web", many(false)...)), "remove backend/x/web/10.1.0.50"},
		{"and is again", upsert(newSlice("x", "web-1", "web", many(true)...)), "upsert backend/x/web/10.1.0.50"},
		{"one goes, and others move up", upsert(newSlice("x", "web-1", "web", many(true)[1:]...)), "remove backend/x/web/10.1.0.0"},
		{"nothing changes", upsert(newSlice("x", "web-1", "web", many(true)[1:]...)), ""},
		{"a Pod comes", upsert(newPod("x", "b", "node-1", "10.0.0.2", "app", "web")), "upsert backend/x/by-selector/10.0.0.2"},
		{"a Pod has other labels", upsert(newPod("x", "b", "node-1", "10.0.0.2", "app", "db")), "remove backend/x/by-selector/10.0.0.2"},
	} {
		e.Apply(tc.event)
		var got []string
		for _, c := range e.Flush() {
			if c.Scope == e.services.id {
				got = append(got, map[storage.Op]string{storage.OpUpsert: "upsert ", storage.OpRemove: "remove "}[c.Op]+c.Item.Key)
			}
		}
		if strings.Join(got, ", ") != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, got, tc.want)
		}
	}
}
