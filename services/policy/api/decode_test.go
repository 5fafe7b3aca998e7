package api

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var addrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func ips(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestDecodeKeepsWhatIsRead(t *testing.T) {
	const text = `# A cluster in one file.
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: sales}, annotations: {networkpolicy.antrea.io/enable-logging: "true"}}
---
apiVersion: v1
kind: Node
metadata:
  name: worker
  labels: {topology.kubernetes.io/zone: east}
  annotations: {node.antrea.io/transport-addresses: "172.16.0.1, fd01::1"}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: worker}]}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: cart, namespace: shop, uid: u-1, labels: {b: two, a: one}}
  spec:
    nodeName: worker
    containers:
    - {name: main, image: cart, ports: [{name: web, containerPort: 8080}, {containerPort: 9}]}
    initContainers:
    - {name: proxy, restartPolicy: Always, ports: [{name: admin, containerPort: 15000, protocol: UDP}]}
  status: {phase: Running, podIP: 10.1.0.5, podIPs: [{ip: 10.1.0.5}, {ip: "fd00:1::5"}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: job}
  spec: {hostNetwork: true, serviceAccountName: runner}
  status: {phase: Failed}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop, generation: 4, annotations: {weir.dev/enforcement: staged}, creationTimestamp: "2024-01-02T03:04:05Z"}
spec:
  podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [x]}]}
  ingress:
  - from:
    - namespaceSelector: {}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.2.0/24]}
    ports: [{port: 80}, {port: web, protocol: UDP}, {port: 1, endPort: 9, protocol: SCTP}, {}]
`
	m, err := Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Object{
		&Namespace{Name: "shop", LogPolicies: true, Labels: Labels{{LabelAntreaNamespaceName, "shop"}, {LabelNamespaceName, "shop"}, {"team", "sales"}}},
		&Node{Name: "worker", Addresses: ips("192.0.2.1"), Gateways: ips("10.1.0.1", "fd00:1::1"), Transport: ips("172.16.0.1", "fd01::1"),
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}, Reached: ips("172.16.0.1", "fd01::1"),
			Labels: Labels{{"topology.kubernetes.io/zone", "east"}}, Zone: "east"},
		&Pod{Namespace: "shop", Name: "cart", UID: "u-1", Labels: Labels{{"a", "one"}, {"b", "two"}}, Node: "worker", ServiceAccount: "default",
			IPs: ips("10.1.0.5", "fd00:1::5"), Ports: []ContainerPort{{"web", ProtocolTCP, 8080}, {"admin", ProtocolUDP, 15000}}},
		&Pod{Namespace: "default", Name: "job", ServiceAccount: "runner", HostNetwork: true, Finished: true},
		&NetworkPolicy{Namespace: "shop", Name: "cart", Generation: 4, Created: 1704164645, Staged: true,
			PodSelector: Selector{MatchExpressions: []Requirement{{"a", OpNotIn, []string{"x"}}}},
			Ingress: []NetworkPolicyRule{{
				Peers: []NetworkPolicyPeer{
					{NamespaceSelector: &Selector{}},
					{IPBlock: &IPBlock{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}}},
				},
				Ports: []NetworkPolicyPort{{Protocol: ProtocolTCP, Port: 80}, {Protocol: ProtocolUDP, PortName: "web"}, {Protocol: ProtocolSCTP, Port: 1, EndPort: 9}, {Protocol: ProtocolTCP}},
			}},
		},
	}
	var got []Object
	for _, d := range m.Objects {
		got = append(got, d.Object)
	}
	if diff := cmp.Diff(want, got, addrs); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if m.Objects[1].Document != 2 || m.Objects[1].Line != 6 {
		t.Errorf("the Node is in document %d at line %d, want 2 at 6", m.Objects[1].Document, m.Objects[1].Line)
	}
	if len(m.Warnings) > 0 {
		t.Errorf("warnings: %v", m.Warnings)
	}
}

func TestDecodeServicesAndSlices(t *testing.T) {
	m, err := Decode([]byte(`
apiVersion: v1
kind: Service
metadata: {name: s}
spec:
  clusterIP: 10.96.0.9
  selector: {app: a}
  ports: [{name: x, port: 80, targetPort: web}, {name: z, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {clusterIP: 10.96.0.10, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: hours}
spec: {clusterIP: fd00::10, sessionAffinity: ClientIP, internalTrafficPolicy: Cluster, ports: [{port: 80, protocol: SCTP}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIPs: [None]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: ServiceAccountList
items: [{metadata: {name: sa}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.5], nodeName: node}, {addresses: [10.1.0.6], conditions: {ready: false, serving: true, terminating: true}},
  {addresses: [10.1.0.7], conditions: {ready: false}}, {addresses: [10.1.0.8], hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: node}]}}]
ports: [{name: x, port: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, labels: {kubernetes.io/service-name: s}}
addressType: FQDN
endpoints: [{addresses: [example.com]}]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Object{
		&Service{Namespace: "default", Name: "s", Type: "ClusterIP", ClusterIPs: ips("10.96.0.9"), Selector: Labels{{"app", "a"}},
			Ports: []ServicePort{{Name: "x", Protocol: ProtocolTCP, Port: 80, TargetName: "web"}, {Name: "z", Protocol: ProtocolUDP, Port: 53, TargetPort: 5353}}},
		&Service{Namespace: "default", Name: "sticky", Type: "ClusterIP", ClusterIPs: ips("10.96.0.10"), AffinitySeconds: 60, InternalLocal: true,
			Ports: []ServicePort{{Protocol: ProtocolTCP, Port: 80}}},
		&Service{Namespace: "default", Name: "hours", Type: "ClusterIP", ClusterIPs: ips("fd00::10"), AffinitySeconds: 3 * 60 * 60, Ports: []ServicePort{{Protocol: ProtocolSCTP, Port: 80}}},
		&Service{Namespace: "default", Name: "headless", Type: "ClusterIP", Headless: true},
		&Service{Namespace: "default", Name: "elsewhere", Type: "ExternalName"},
		&ServiceAccount{Namespace: "default", Name: "sa"},
		&EndpointSlice{Namespace: "default", Name: "s-1", Service: "s", Ports: []ServicePort{{Name: "x", Protocol: ProtocolTCP, Port: 8080}},
			Endpoints: []SliceEndpoint{
				{Addresses: ips("10.1.0.5"), Node: "node", Ready: true, Serving: true},
				{Addresses: ips("10.1.0.6"), Serving: true, Terminating: true},
				{Addresses: ips("10.1.0.7")},
				{Addresses: ips("10.1.0.8"), Ready: true, Serving: true, Zones: []string{"a", "b"}, Nodes: []string{"node"}},
			}},
		&EndpointSlice{Namespace: "default", Name: "names"},
	}
	var got []Object
	for _, d := range m.Objects {
		got = append(got, d.Object)
	}
	if diff := cmp.Diff(want, got, addrs); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

// policy is a NetworkPolicy default/p with the given spec.
func policy(spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: " + spec + "\n"
}

func object(kind, rest string) string {
	return "apiVersion: v1\nkind: " + kind + "\n" + rest + "\n"
}

func TestDecodeRefuses(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string // Each a part of one violation, in order.
	}{
		{"broken YAML", "a: [", []string{"document 1: not valid YAML: line 1"}},
		{"broken YAML in a later document", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nb: c: d\n", []string{"document 2: not valid YAML: line 5"}},
		{"duplicate key", "kind: Pod\nkind: Pod\n", []string{`not valid YAML: line 2: key "kind" already set`}},
		{"a scalar", "hello", []string{"document 1: not an object"}},
		{"no kind", "apiVersion: v1\nmetadata: {name: x}", []string{"object x: kind: missing"}},
		{"no apiVersion", "kind: NetworkPolicy\nmetadata: {name: x}", []string{"NetworkPolicy x: apiVersion: missing; write apiVersion: networking.k8s.io/v1"}},
		{"old apiVersion", "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: x}", []string{"apiVersion: extensions/v1beta1 is not a version in which NetworkPolicy is read; write networking.k8s.io/v1"}},
		{"unknown kind without apiVersion", "kind: Oops", []string{"Oops (no name): apiVersion: missing; write the API version"}},
		{"unknown kind", "apiVersion: apps/v1\nkind: Deploymnt\nmetadata: {name: x, namespace: ns}", []string{"Deploymnt ns/x: kind: Deploymnt of apps/v1 is unknown; write one of AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterGroup, ClusterNetworkPolicy, EndpointSlice, Group,"}},
		{"another version of a kind of two groups", "apiVersion: crd.antrea.io/v1alpha1\nkind: ClusterNetworkPolicy\nmetadata: {name: x}", []string{"ClusterNetworkPolicy x: apiVersion: crd.antrea.io/v1alpha1 is not a version in which ClusterNetworkPolicy is read; write crd.antrea.io/v1beta1"}},
		{"unknown fields, all of them", policy(`{podSelectr: {}, ingress: [{from: [{podSelector: {matchLabel: {}}}]}]}`),
			[]string{"NetworkPolicy p: spec.ingress[0].from[0].podSelector.matchLabel: unknown field", "NetworkPolicy p: spec.podSelectr: unknown field"}},
		{"wrong type", policy(`{podSelector: {matchLabels: {a: true}}}`), []string{"NetworkPolicy p: spec.podSelector.matchLabels: is a bool; write a string: put it in quotes"}},
		{"a name that YAML reads as a boolean", object("Pod", "metadata: {name: y}"), []string{"metadata.name: is a bool; write a string: put it in quotes (YAML reads"}},
		{"string for a list", policy(`{podSelector: {}, policyTypes: Ingress}`), []string{"spec.policyTypes: is a string; write a list"}},
		{"a bad item of a list", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: UPPER}\n", []string{`Namespace UPPER: metadata.name: "UPPER"`}},
		{"the same object twice", object("Namespace", "metadata: {name: a}") + "---\n" + object("Namespace", "metadata: {name: a}"), []string{"Namespace a: defined already by document 1"}},

		{"no name", object("Pod", "metadata: {}"), []string{"metadata.name: missing"}},
		{"generated name", object("Pod", "metadata: {generateName: x-}"), []string{"metadata.name: missing; generateName needs"}},
		{"bad label key and value", object("Pod", `metadata: {name: p, labels: {"a b": c, d: "e f"}}`), []string{`metadata.labels: key "a b"`, `metadata.labels.d: value "e f"`}},
		{"bad annotation key", object("Pod", `metadata: {name: p, annotations: {"a b": c}}`), []string{`metadata.annotations: key "a b"`}},
		{"Node with Namespace", object("Node", "metadata: {name: node, namespace: x}"), []string{"Node node: metadata.namespace: Node has no Namespace"}},
		{"bad Namespace", object("Pod", "metadata: {name: node, namespace: x.y}"), []string{`metadata.namespace: "x.y"`}},

		{"Pod addresses", object("Pod", "metadata: {name: p}\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}, {ip: x}]}"),
			[]string{"status.podIPs[1].ip: 10.0.0.2 is a second address", `status.podIPs[2].ip: "x" is no IP address`}},
		{"Pod IP with leading zero", object("Pod", "metadata: {name: p}\nstatus: {podIP: 010.0.0.1}"), []string{`"010.0.0.1" has leading zeros; write "10.0.0.1"`}},
		{"Pod phase", object("Pod", "metadata: {name: p}\nstatus: {phase: Done}"), []string{`status.phase: "Done" is unknown`}},
		{"container ports", object("Pod", "metadata: {name: p}\nspec: {containers: [{name: c, ports: [{name: web, containerPort: 0}, {name: web, containerPort: 1, protocol: tcp}, {name: \"80\", containerPort: 70000}]}, {name: c}]}"),
			[]string{"spec.containers[0].ports[0].containerPort: 0 is no port", `ports[1].protocol: "tcp" is unknown; write TCP, UDP or SCTP`, `ports[1].name: "web" names two ports`,
				"ports[2].containerPort: 70000 is no port", `ports[2].name: "80" is a string`, `spec.containers[1].name: "c" names two containers`}},
		{"Node facts", object("Node", "metadata: {name: node, annotations: {weir.dev/gateway-addresses: \"10.0.0.1,x\"}}\nspec: {podCIDR: 10.0.0.0}\nstatus: {addresses: [{type: InternalIP, address: host}, {type: Funny, address: a}]}"),
			[]string{`status.addresses[0].address: "host" is no IP`, `status.addresses[1].type: "Funny"`, `spec.podCIDR: "10.0.0.0" is no CIDR; write 10.0.0.0/32`, `weir.dev/gateway-addresses: "x" is no IP`}},
		{"Service", object("Service", "metadata: {name: s}\nspec: {type: Cluster, clusterIP: x, ports: [{port: 80}, {port: 80, targetPort: -1, nodePort: 99999}]}"),
			[]string{`spec.type: "Cluster"`, `spec.clusterIP: "x"`, "ports[0].name: missing", "ports[1].name: missing", "ports[1]: TCP port 80 is there twice", "ports[1].targetPort: -1", "ports[1].nodePort: 99999"}},
		{"where a Service's clients go", object("Service", "metadata: {name: s}\nspec: {clusterIP: 10.96.0.9, sessionAffinity: Client, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}, internalTrafficPolicy: Near, ports: [{port: 80}]}"),
			[]string{`spec.sessionAffinity: "Client"`, "timeoutSeconds: 86401; write 1 to 86400", `spec.internalTrafficPolicy: "Near"`}},
		{"EndpointSlice", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv6\nendpoints: [{addresses: []}, {addresses: [10.0.0.1], hints: {forZones: [{name: \"\"}], forNodes: [{}]}}]\nports: [{port: 0}]\n",
			[]string{"endpoints[0].addresses: missing", "endpoints[1].hints.forZones[0].name: missing", "endpoints[1].hints.forNodes[0].name: missing", "endpoints[1].addresses[0]: 10.0.0.1 is not of the slice's addressType IPv6", "ports[0].port: 0 is no port"}},

		{"selectors", policy(`{podSelector: {matchExpressions: [{key: a, operator: Within}, {key: a, operator: In}, {key: a, operator: Exists, values: [b]}, {operator: Exists}, {key: "a/b/c", operator: NotIn, values: ["-"]}, {key: x}]}}`),
			[]string{`podSelector.matchExpressions[0].operator: "Within" is unknown; write In, NotIn`, "[1].values: missing; In needs", "[2].values: Exists takes no values", "[3].key: missing", `[4].key: "a/b/c"`, `[4].values[0]: "-"`, "[5].operator: missing"}},
		{"peers", policy(`{podSelector: {}, ingress: [{from: [{}, {podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}`),
			[]string{"NetworkPolicy default/p: spec.ingress[0].from[0]: names no peer; write", "spec.ingress[0].from[1]: ipBlock stands together"}},
		{"ipBlocks", policy(`{podSelector: {}, egress: [{to: [{ipBlock: {}}, {ipBlock: {cidr: 10.0.0.0}}, {ipBlock: {cidr: 10.0.0.0/33}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8, 11.0.0.0/16, 10.0.0.0/7, "fd00::/64", x]}}]}]}`),
			[]string{"to[0].ipBlock.cidr: missing", `to[1].ipBlock.cidr: "10.0.0.0" is no CIDR; write 10.0.0.0/32`, `to[2].ipBlock.cidr: "10.0.0.0/33"`, "to[3].ipBlock.except[0]: 10.0.0.0/8 is not strictly inside",
				"except[1]: 11.0.0.0/16 is not", "except[2]: 10.0.0.0/7 is not", "except[3]: fd00::/64 is not", `except[4]: "x" is no CIDR`}},
		{"ports", policy(`{podSelector: {}, egress: [{ports: [{port: 0}, {port: 65536}, {port: "80"}, {port: a_b}, {protocol: ICMP}, {endPort: 9}, {port: web, endPort: 9}, {port: 10, endPort: 9}, {port: 10, endPort: 70000}, {protocol: ""}]}]}`),
			[]string{"ports[0].port: 0 is no port", "ports[1].port: 65536", `ports[2].port: "80" is a string; write the number 80 without quotes`, `ports[3].port: "a_b" is no port name`,
				`ports[4].protocol: "ICMP"`, "ports[5].endPort: stands without port", `ports[6].endPort: stands with the named port "web"`, "ports[7].endPort: 9 is below port 10", "ports[8].endPort: 70000", "ports[9].protocol: empty"}},
		{"policy types", policy(`{podSelector: {}, policyTypes: [ingress, Egress, Egress]}`), []string{`policyTypes[0]: "ingress" is unknown`, "policyTypes: more than two"}},
		{"enforcement", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, annotations: {weir.dev/enforcement: audit}}\nspec: {podSelector: {}}\n", []string{`weir.dev/enforcement: "audit" is unknown; write staged or enforced`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Decode([]byte(test.text))
			var inv *Invalid
			if !errors.As(err, &inv) {
				t.Fatalf("got error %v, want violations", err)
			}
			for i, v := range inv.Violations {
				if i >= len(test.want) || !strings.Contains(v.String(), test.want[i]) {
					t.Errorf("violation %d: %s", i, v)
				}
			}
			if len(inv.Violations) < len(test.want) {
				t.Errorf("missing: %q", test.want[len(inv.Violations):])
			}
		})
	}
}

func TestDecodeWarns(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"a kind that is not read", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}", "Deployment d: skipped: Deployment is not read"},
		{"host bits", policy(`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}]}`), `from[0].ipBlock.cidr: "10.1.2.3/8" has bits behind the prefix length and is read as 10.0.0.0/8; write that, or 10.1.2.3/32`},
		{"leading zeros", policy(`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}`), `"010.0.0.0/8" is read as 10.0.0.0/8`},
		{"rules without effect", policy(`{podSelector: {}, policyTypes: [Ingress], egress: [{}]}`), "spec.egress: has no effect; add Egress"},
		{"a dash too many", policy(`{podSelector: {}, ingress: [null]}`), "spec.ingress[0]: list entry without content"},
		{"a Namespace that calls itself otherwise", object("Namespace", "metadata: {name: a, labels: {kubernetes.io/metadata.name: b}}"), `"b" is replaced by the Namespace's name`},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := Decode([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0].String(), test.want) {
				t.Errorf("got %v, want %q", m.Warnings, test.want)
			}
		})
	}
}

func TestDecodeReturnsTheGoodObjectsBesideViolations(t *testing.T) {
	m, err := Decode([]byte(object("Namespace", "metadata: {name: good}") + "---\n" + object("Namespace", "metadata: {name: Bad}")))
	if err == nil || len(m.Objects) != 1 || m.Objects[0].Object.Ref().Name != "good" {
		t.Errorf("got %v and %v", m.Objects, err)
	}
}

// Every example of the reference must load: each holds an object that is read,
// but for one of a kind that is skipped.
func TestExamples(t *testing.T) {
	dir := os.Getenv("WEIR_EXAMPLES_DIR")
	if dir == "" {
		t.Skip("WEIR_EXAMPLES_DIR is not set")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples in %s: %v", dir, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Decode(text)
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
		skipped := len(m.Warnings) == 1 && strings.Contains(m.Warnings[0].Message, "skipped")
		if len(m.Objects) == 0 && !skipped {
			t.Errorf("%s: no object is read; warnings %v", filepath.Base(file), m.Warnings)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(policy(`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80, endPort: 90}]}]}`)))
	f.Add([]byte("--- {kind: Pod}\n...\n%YAML 1.1\n---\n- a"))
	f.Add([]byte(aTier("mine", 10)))
	f.Add([]byte(clusterGroup("ipBlocks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}, {cidr: 'ff02::/16'}]") + "---\n" + ownGroup("childGroups: [a, b/c], nodeSelector: {}")))
	f.Add([]byte(allowOut("to: [{namespaces: {sameLabels: [a]}}, {ipBlock: {cidr: 225.0.0.0/8}}, {fqdn: '*.a.b'}, {nodeSelector: {}}, {serviceAccount: {name: a, namespace: b}}], ports: [{port: web}, {port: 1, endPort: 2, sourcePort: 3, sourceEndPort: 4}], l7Protocols: [{http: {method: GET}}, {tls: {}}]")))
	f.Add([]byte(in("protocols: [{igmp: {igmpType: 0x11, groupAddress: 224.0.0.1}}, {icmp: {icmpType: 8, icmpCode: 0}}], appliedTo: [{service: {name: a, namespace: b}}]")))
	f.Add([]byte(annp("tier: Baseline, egress: [{action: Deny, toServices: [{name: a, namespace: b}], logLabel: x}]")))
	f.Fuzz(func(t *testing.T, text []byte) {
		if named, err := Default(text); err == nil {
			if again, err := Default(named); err != nil || string(again) != string(named) {
				t.Fatalf("defaulted once: %s; twice: %s, %v", named, again, err)
			}
		}
		m, err := Decode(text)
		if err != nil {
			var inv *Invalid
			if !errors.As(err, &inv) || len(inv.Violations) == 0 {
				t.Fatalf("error without violations: %v", err)
			}
		}
		var inv *Invalid
		if errors.As(err, &inv) {
			for _, v := range inv.Violations {
				// What passes validation can be converted: conversion says so without a field.
				if v.Field == "" && strings.Contains(v.Message, ": spec") {
					t.Fatalf("valid, and cannot be converted: %s", v)
				}
			}
		}
		for _, d := range m.Objects {
			if d.Object.Ref().Name == "" {
				t.Fatalf("object without name: %#v", d.Object)
			}
		}
	})
}

// An unknown field does not hide what else is wrong.
func TestAllViolationsComeAtOnce(t *testing.T) {
	_, err := Decode([]byte(policy(`{podSelector: {}, ingress: [{foo: 1, from: [{ipBlock: {cidr: 10.0.0.0/99}}], ports: [{port: 70000}]}]}`)))
	var invalid *Invalid
	if !errors.As(err, &invalid) || len(invalid.Violations) != 3 {
		t.Errorf("got %v, want the unknown field, the CIDR and the port", err)
	}
}
