package evaluate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

func addresses(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// endpoint is one at an address of a node: "ready", "terminating" or "failing",
// with "zone:NAME" and "node:NAME" as hints.
func endpoint(address, node, words string) api.SliceEndpoint {
	e := api.SliceEndpoint{Addresses: addresses(address), Node: node}
	for _, word := range strings.Fields(words) {
		hint, name, _ := strings.Cut(word, ":")
		switch hint {
		case "ready":
			e.Ready, e.Serving = true, true
		case "terminating":
			e.Serving, e.Terminating = true, true
		case "failing":
		case "zone":
			e.Zones = append(e.Zones, name)
		case "node":
			e.Nodes = append(e.Nodes, name)
		}
	}
	return e
}

func sliceOf(name string, port uint16, endpoints ...api.SliceEndpoint) *api.EndpointSlice {
	return &api.EndpointSlice{Namespace: "x", Name: name, Service: "s", Endpoints: endpoints, Ports: []api.ServicePort{{Name: "web", Protocol: api.ProtocolTCP, Port: port}}}
}

// Which endpoints a client may get is what kube-proxy would let it have.
func TestEndpointsThatAClientMayGet(t *testing.T) {
	service := func(change func(*api.Service)) *api.Service {
		s := &api.Service{Namespace: "x", Name: "s", Type: "ClusterIP", ClusterIPs: addresses("10.96.0.1", "fd96::1"), Selector: api.Labels{{Key: "app", Value: "web"}},
			Ports: []api.ServicePort{{Name: "web", Protocol: api.ProtocolTCP, Port: 80, TargetPort: 8080}, {Name: "sctp", Protocol: api.ProtocolSCTP, Port: 81, TargetName: "assoc"}}}
		if change != nil {
			change(s)
		}
		return s
	}
	local := service(func(s *api.Service) { s.InternalLocal = true })
	pod := func(name, node string, app string, ips ...string) *api.Pod {
		return &api.Pod{Namespace: "x", Name: name, Node: node, ServiceAccount: "default", IPs: addresses(ips...), Labels: api.Labels{{Key: "app", Value: app}}}
	}
	web := pod("web", "n2", "web", "10.2.0.1", "fd02::1")
	web.Ports = []api.ContainerPort{{Name: "assoc", Protocol: api.ProtocolSCTP, Port: 9000}}
	base := []api.Object{&api.Node{Name: "n1", Zone: "east", Addresses: addresses("192.0.2.1")}, &api.Node{Name: "n2", Zone: "west"}, &api.Node{Name: "n3"},
		pod("c1", "n1", "client", "10.1.0.1", "fd01::1"), pod("c2", "n2", "client", "10.2.0.9"), pod("c3", "n3", "client", "10.3.0.9"), web, pod("web-1", "n1", "web", "10.1.0.2")}
	for _, tc := range []struct {
		name    string
		objects []api.Object
		flow    string
		want    string // Endpoints, or what the error says.
	}{
		{"Pods of the selector", []api.Object{service(nil)}, "x/c1 service:x/s TCP/80", "10.1.0.2:8080 10.2.0.1:8080"},
		{"by a ClusterIP of IPv6", []api.Object{service(nil)}, "x/c1 fd96::1 TCP/80", "[fd02::1]:8080"},
		{"a named port of SCTP", []api.Object{service(nil)}, "x/c1 service:x/s SCTP/81", "10.2.0.1:9000"},
		{"a port that is not there", []api.Object{service(nil)}, "x/c1 service:x/s UDP/80", "has no port 80 of UDP"},
		{"slices instead", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready"), endpoint("10.9.0.2", "", "failing"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1"},
		{"slices instead, of which none has any", []api.Object{service(nil), sliceOf("a", 1)}, "x/c1 service:x/s TCP/80", "has no endpoint"},
		{"a slice without the port", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready"))}, "x/c1 service:x/s SCTP/81", "has no endpoint"},
		{"one that terminates, beside one that does not", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready"), endpoint("10.9.0.2", "", "terminating"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1"},
		{"those that terminate alone", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "terminating zone:west"), endpoint("10.9.0.2", "", "terminating zone:east"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1 10.9.0.2:1"},
		{"one address in two slices: the ready one", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "terminating")), sliceOf("b", 2, endpoint("10.9.0.1", "", "ready"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:2"},
		{"and of two the first", []api.Object{service(nil), sliceOf("b", 2, endpoint("10.9.0.1", "", "ready")), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1"},
		{"Local", []api.Object{local}, "x/c1 service:x/s TCP/80", "10.1.0.2:8080"},
		{"Local, from a node without any", []api.Object{local}, "x/c3 service:x/s TCP/80", "has no endpoint on node n3, and its internalTrafficPolicy is Local"},
		{"Local, and there are none anywhere", []api.Object{local, sliceOf("a", 1)}, "x/c1 service:x/s TCP/80", "has no endpoint that the source could reach"},
		{"Local, one that terminates before one elsewhere", []api.Object{local, sliceOf("a", 1, endpoint("10.9.0.1", "n1", "terminating"), endpoint("10.9.0.2", "n2", "ready"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1"},
		{"Local, from beyond Pods", []api.Object{local}, "203.0.113.1 service:x/s TCP/80", "10.1.0.2:8080 10.2.0.1:8080"},
		{"Local knows no hints", []api.Object{local, sliceOf("a", 1, endpoint("10.9.0.1", "n1", "ready zone:west"), endpoint("10.9.0.2", "n1", "ready zone:east"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1 10.9.0.2:1"},
		{"hints of zones", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready zone:west zone:east"), endpoint("10.9.0.2", "", "ready zone:west"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1"},
		{"of which one has none", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready zone:east"), endpoint("10.9.0.2", "", "ready"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1 10.9.0.2:1"},
		{"none for the zone", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready zone:west"), endpoint("10.9.0.2", "", "ready zone:north"))}, "x/c1 service:x/s TCP/80", "10.9.0.1:1 10.9.0.2:1"},
		{"the node has no zone", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready zone:west"), endpoint("10.9.0.2", "", "ready zone:east"))}, "x/c3 service:x/s TCP/80", "10.9.0.1:1 10.9.0.2:1"},
		{"one that terminates has no say", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready zone:west"), endpoint("10.9.0.2", "", "ready zone:east"), endpoint("10.9.0.3", "", "terminating"))}, "x/c2 service:x/s TCP/80", "10.9.0.1:1"},
		{"hints of nodes before zones", []api.Object{service(nil), sliceOf("a", 1, endpoint("10.9.0.1", "", "ready zone:east node:n2"), endpoint("10.9.0.2", "", "ready zone:west node:n1"))}, "x/c1 service:x/s TCP/80", "10.9.0.2:1"},
		{"a headless one, as it stands", []api.Object{service(func(s *api.Service) { s.Headless, s.ClusterIPs = true, nil })}, "x/c2 service:x/s TCP/80", "10.1.0.2:80 10.2.0.1:80"},
		{"ExternalName", []api.Object{service(func(s *api.Service) { s.Type = api.ServiceExternalName })}, "x/c2 service:x/s TCP/80", "is a name for another host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := New(slices.Concat(base, tc.objects)...)
			reached, err := s.ExplainEach(connect(t, tc.flow))
			var got []string
			for _, r := range reached {
				got = append(got, r.Endpoint.String())
			}
			slices.Sort(got)
			if said := strings.Join(got, " "); err == nil && said != tc.want || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s, %v, want %s", said, err, tc.want)
			}
			for _, o := range tc.objects { // What goes is forgotten.
				s.Remove(o.Ref())
			}
			if len(s.slices)+len(s.services) > 0 {
				t.Errorf("left over: %v, %v", s.slices, s.services)
			}
		})
	}
}

// A Pod that is an endpoint of the Service which it calls is always let in, and
// what it sends to the Service is judged.
func TestAPodThatIsItsOwnEndpoint(t *testing.T) {
	web := &api.Pod{Namespace: "x", Name: "web", Node: "n1", ServiceAccount: "default", IPs: addresses("10.1.0.1")}
	svc := &api.Service{Namespace: "x", Name: "s", Type: "ClusterIP", ClusterIPs: addresses("10.96.0.1"), Ports: []api.ServicePort{{Name: "web", Protocol: api.ProtocolTCP, Port: 80}}}
	shut := &api.NetworkPolicy{Namespace: "x", Name: "shut", PolicyTypes: []api.PolicyType{api.PolicyTypeIngress}}
	out := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: "out", Tier: api.TierApplication, AppliedTo: []api.Target{{PodSelector: &api.Selector{}}},
		Egress: []api.OrderedRule{{Action: api.ActionDrop, ToServices: []api.NamespacedName{{Namespace: "x", Name: "s"}}}}}
	for _, tc := range []struct {
		policy api.Object
		want   Verdict
	}{{shut, Allow}, {out, Drop}} {
		t.Run(fmt.Sprint(tc.policy.Ref()), func(t *testing.T) {
			r, err := New(web, svc, sliceOf("a", 8080, endpoint("10.1.0.1", "n1", "ready")), tc.policy).Evaluate(connect(t, "x/web service:x/s TCP/80"))
			if err != nil || r.Verdict != tc.want {
				t.Errorf("%v, %v, want %s", r, err, tc.want)
			}
		})
	}
}
