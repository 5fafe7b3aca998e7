package differential

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// What once differed. Each is a Case as Shrink left it, or nearly; connections
// are judged in their order.
func TestNoLongerDiffers(t *testing.T) {
	for _, test := range []struct {
		name, manifests string
		ports           map[string]Port // By NAMESPACE/NAME.
		connections     []string        // "FROM TO PROTOCOL/PORT[ SOURCEPORT]", by NAMESPACE/POD, node:NAME, service:NAMESPACE/NAME or address.
	}{
		{
			// The second association's reply was taken for a packet of the first.
			name: "two Pods that call each other at one SCTP port",
			manifests: `
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p0}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.11}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1}, spec: {nodeName: n2, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.2.19}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: a, name: np}, spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: SCTP, port: 79}]}]}}
`,
			ports:       map[string]Port{"a/p0": {"n1", 8}, "a/p1": {"n2", 5}},
			connections: []string{"a/p1 a/p0 SCTP/79", "a/p0 a/p1 SCTP/79"},
		},
		{
			name: "who may call an SCTP port may not call others from it",
			manifests: `
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p0}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.11}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.12}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: a, name: np}, spec: {podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 79}]}]}}
`,
			ports:       map[string]Port{"a/p0": {"n1", 1}, "a/p1": {"n1", 2}},
			connections: []string{"a/p0 a/p1 SCTP/79", "a/p0 a/p1 SCTP/79 79", "a/p0 a/p1 SCTP/80 79"},
		},
		{
			// Two flows of one priority skipped the ingress rules.
			name: "the host answers its own Pod",
			manifests: `
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.12}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
`,
			ports:       map[string]Port{"a/p": {"n1", 12}},
			connections: []string{"a/p node:n1 TCP/80"},
		},
		{
			// Conntrack knew the connection, which was denied, and took what answered
			// it for allowed: it came from the Service, whom no rule names.
			name: "an endpoint that answers what it never got",
			manifests: `
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p0}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.11}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1, labels: {app: x}}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.12}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: s0}, spec: {clusterIPs: [10.96.0.1], selector: {app: x}, ports: [{port: 80}]}}
---
{apiVersion: crd.antrea.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: apart}, spec: {priority: 1, appliedTo: [{namespaceSelector: {}}],
  ingress: [{action: Drop, from: [{namespaceSelector: {}}]}]}}
`,
			ports:       map[string]Port{"a/p0": {"n1", 8}, "a/p1": {"n1", 5}},
			connections: []string{"a/p0 service:a/s0 TCP/80", "a/p1 service:a/s0 TCP/80"},
		},
		{
			// A node that has no object took those that are on none for its own.
			name: "endpoints that are on no node, and one that is on this",
			manifests: `
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p0, labels: {app: x}}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.11}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: s0}, spec: {clusterIPs: [10.96.0.1], internalTrafficPolicy: Local, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: a, name: s0-0, labels: {kubernetes.io/service-name: s0}}, addressType: IPv4,
  ports: [{port: 80}], endpoints: [{addresses: [198.51.100.7]}, {addresses: [198.51.100.8], nodeName: n1}]}
`,
			ports:       map[string]Port{"a/p0": {"n1", 8}},
			connections: []string{"a/p0 service:a/s0 TCP/80", "a/p0 service:a/s0 TCP/80", "a/p0 service:a/s0 TCP/80", "a/p0 service:a/s0 TCP/80"},
		},
		{
			// The evaluator had the one for the peer, and the other's name for its port.
			name: "two Pods that claim one address, of which one names the port",
			manifests: `
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p0}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.11}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1, labels: {app: x}}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIPs: [{ip: 10.244.1.12}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p2}, spec: {nodeName: n1, containers: [{name: c, ports: [{name: alt, containerPort: 79}]}]}, status: {podIPs: [{ip: 10.244.1.12}]}}
---
{apiVersion: crd.antrea.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: apart}, spec: {priority: 1, appliedTo: [{namespaceSelector: {}}],
  egress: [{action: Drop, to: [{podSelector: {matchLabels: {app: x}}}], ports: [{protocol: TCP, port: alt}]}]}}
`,
			ports:       map[string]Port{"a/p0": {"n1", 8}, "a/p1": {"n1", 5}},
			connections: []string{"a/p0 a/p1 TCP/79"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := Case{Name: test.name, FrameLimit: 1 << 20, Steps: []Step{{Events: decode(t, test.manifests), Ports: map[Pod]Port{}}}}
			s := &c.Steps[0]
			for name, port := range test.ports {
				namespace, pod, _ := strings.Cut(name, "/")
				s.Ports[Pod{namespace, pod}] = port
			}
			for i, text := range test.connections {
				s.Probes = append(s.Probes, connect(t, s.Events, text, uint16(firstPort+i)))
			}
			stats, d, err := new(Comparer).Compare(t.Context(), &c)
			if err != nil {
				t.Fatal(err)
			}
			if d != nil {
				t.Errorf("%s", d)
			}
			if stats.Connections != len(test.connections) {
				t.Errorf("%d of %d connections were judged", stats.Connections, len(test.connections))
			}
		})
	}
}

func decode(t *testing.T, manifests string) []Event {
	t.Helper()
	var events []Event
	for text := range strings.SplitSeq(manifests, "---\n") {
		var o Object
		switch {
		case strings.Contains(text, "kind: NetworkPolicy"):
			o = &networkingv1.NetworkPolicy{}
		case strings.Contains(text, "kind: Namespace"):
			o = &corev1.Namespace{}
		case strings.Contains(text, "kind: ClusterNetworkPolicy"):
			o = &antreav1beta1.ClusterNetworkPolicy{}
		case strings.Contains(text, "kind: Service,"):
			o = &corev1.Service{}
		case strings.Contains(text, "kind: EndpointSlice"):
			o = &discoveryv1.EndpointSlice{}
		case strings.Contains(text, "kind: Node,"):
			o = &corev1.Node{}
		default:
			o = &corev1.Pod{}
		}
		if err := yaml.UnmarshalStrict([]byte(text), o); err != nil {
			t.Fatal(err)
		}
		events = append(events, set(o))
	}
	return events
}

// connect reads a connection. Of Pods and nodes it takes the first address.
func connect(t *testing.T, events []Event, text string, sourcePort uint16) evaluate.Connection {
	t.Helper()
	c := evaluate.Connection{SourcePort: sourcePort}
	var from, to, service, protocol string
	if _, err := fmt.Sscan(text, &from, &to, &service); err != nil {
		t.Fatal(err)
	}
	protocol, port, _ := strings.Cut(service, "/")
	c.Protocol = map[string]api.Protocol{"TCP": api.ProtocolTCP, "UDP": api.ProtocolUDP, "SCTP": api.ProtocolSCTP, "ICMP": api.ProtocolICMP}[protocol]
	_, _ = fmt.Sscan(port, &c.Port)                             // ICMP has none.
	_, _ = fmt.Sscan(text, &from, &to, &service, &c.SourcePort) // Where it is given.
	end := func(name string) evaluate.Endpoint {
		for _, e := range events {
			switch o := e.Object.(type) {
			case *corev1.Pod:
				if name == o.Namespace+"/"+o.Name {
					return evaluate.Endpoint{Namespace: o.Namespace, Pod: o.Name, Addr: podAddresses(o)[0]}
				}
			case *corev1.Service:
				if name == "service:"+o.Namespace+"/"+o.Name {
					return evaluate.Endpoint{Namespace: o.Namespace, Service: o.Name, Addr: api.FromService(o).ClusterIPs[0]}
				}
			case *corev1.Node:
				if name == "node:"+o.Name {
					return evaluate.Endpoint{Node: o.Name, Addr: hostAddresses(o)[0]}
				}
			}
		}
		return evaluate.Endpoint{Addr: netip.MustParseAddr(name)}
	}
	c.From, c.To = end(from), end(to)
	return c
}
