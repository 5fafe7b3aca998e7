package evaluate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weirnet/weir/services/policy/api"
)

// The cluster of the tests: two Namespaces that have objects and one that has
// none, two nodes, dual-stack Pods, and Pods of every odd sort.
const cluster = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: sales}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ops, labels: {team: sre, trusted: "yes"}}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.0.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 5353, protocol: UDP}]}]}, status: {podIPs: [{ip: 10.1.0.10}, {ip: "fd00:1::10"}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: web2, namespace: shop, labels: {app: web}}, spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}, status: {podIPs: [{ip: 10.2.0.10}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, labels: {app: client}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.2.0.11}, {ip: "fd00:2::11"}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: scraper, namespace: ops, labels: {app: client}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.2.0.12}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: stray, namespace: elsewhere, labels: {app: client}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.2.0.13}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: six, namespace: shop}, spec: {nodeName: n2}, status: {podIPs: [{ip: "fd00:2::14"}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: shop, labels: {app: client}}, spec: {nodeName: n2, hostNetwork: true}, status: {podIPs: [{ip: 192.0.2.2}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: agent1, namespace: shop, labels: {app: client}}, spec: {nodeName: n1, hostNetwork: true}}
- {apiVersion: v1, kind: Pod, metadata: {name: done, namespace: shop, labels: {app: client}}, spec: {nodeName: n2}, status: {phase: Succeeded, podIPs: [{ip: 10.2.0.20}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: reused, namespace: shop, labels: {app: client}}, spec: {nodeName: n2}, status: {phase: Failed, podIPs: [{ip: 10.2.0.12}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: pending, namespace: shop, labels: {app: web}}, status: {phase: Pending}}
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: shop}, spec: {clusterIP: 10.96.0.2, selector: {app: nobody}, ports: [{port: 80}]}}
`

func load(t *testing.T, texts ...string) *State {
	t.Helper()
	s := New()
	for _, text := range texts {
		m, err := api.Decode([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range m.Objects {
			s.Set(o.Object)
		}
	}
	return s
}

// np is a NetworkPolicy of Namespace shop.
func np(name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: shop}\nspec: %s\n", name, spec)
}

// connect reads "FROM TO PROTOCOL[/PORT]".
func connect(t *testing.T, text string) Connection {
	t.Helper()
	var from, to, service string
	if _, err := fmt.Sscan(text, &from, &to, &service); err != nil {
		t.Fatal(err)
	}
	var c Connection
	for s, e := range map[string]*Endpoint{from: &c.From, to: &c.To} {
		var err error
		if *e, err = ParseEndpoint(s); err != nil {
			t.Fatal(err)
		}
	}
	if from == to {
		c.From = c.To
	}
	protocol, port, _ := strings.Cut(service, "/")
	c.Protocol = map[string]api.Protocol{"TCP": api.ProtocolTCP, "UDP": api.ProtocolUDP, "SCTP": api.ProtocolSCTP, "ICMP": api.ProtocolICMP, "IGMP": api.ProtocolIGMP}[protocol]
	if port != "" {
		if _, err := fmt.Sscan(port, &c.Port); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestVerdicts(t *testing.T) {
	const deny = `{podSelector: {}, policyTypes: [Ingress, Egress]}`
	for _, test := range []struct {
		name, policies string
		allow, drop    []string
	}{
		{"without policies everything is allowed", "",
			[]string{"shop/client shop/web TCP/80", "203.0.113.1 shop/web UDP/1", "shop/web 203.0.113.1 SCTP/1", "shop/web shop/client ICMP"}, nil},
		{"an empty podSelector selects the Namespace, no more", np("deny", `{podSelector: {}, policyTypes: [Ingress]}`),
			[]string{"shop/web ops/scraper TCP/80", "ops/scraper elsewhere/stray TCP/80"},
			[]string{"ops/scraper shop/web TCP/80", "shop/client shop/web ICMP"}},
		{"ingress: [] isolates, ingress: [{}] opens", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: []}`) + np("b", `{podSelector: {matchLabels: {app: client}}, ingress: [{}]}`),
			[]string{"shop/web shop/client TCP/80", "203.0.113.1 shop/client ICMP"}, []string{"shop/client shop/web TCP/80"}},
		{"policyTypes default to Ingress", np("a", `{podSelector: {matchLabels: {app: web}}}`),
			[]string{"shop/web 203.0.113.1 TCP/1"}, []string{"shop/client shop/web TCP/80"}},
		{"policyTypes default to Egress too where there are egress rules", np("a", `{podSelector: {matchLabels: {app: web}}, egress: [{ports: [{port: 1}]}]}`),
			[]string{"shop/web 203.0.113.1 TCP/1"}, []string{"shop/client shop/web TCP/80", "shop/web 203.0.113.1 TCP/2"}},
		{"an empty egress list is no egress rule", np("a", `{podSelector: {matchLabels: {app: web}}, egress: []}`),
			[]string{"shop/web 203.0.113.1 TCP/1"}, []string{"shop/client shop/web TCP/80"}},
		{"rules of a direction that policyTypes leaves out are dead", np("a", `{podSelector: {}, policyTypes: [Egress], ingress: [{}]}`),
			[]string{"ops/scraper shop/web TCP/80"}, []string{"shop/web ops/scraper TCP/80"}},
		{"empty from and to mean anyone", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [], ports: [{port: 80}]}]}`),
			[]string{"shop/client shop/web TCP/80", "203.0.113.1 shop/web TCP/80"}, []string{"shop/client shop/web TCP/81"}},
		{"empty ports mean any traffic", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: []}]}`),
			[]string{"shop/client shop/web SCTP/80", "shop/client shop/web ICMP"}, []string{"ops/scraper shop/web TCP/80"}},
		{"podSelector means Pods of the policy's Namespace", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`),
			[]string{"shop/client shop/web TCP/80"}, []string{"ops/scraper shop/web TCP/80", "shop/web2 shop/web TCP/80"}},
		{"namespaceSelector means all Pods of Namespaces", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {trusted: "yes"}}}]}]}`),
			[]string{"ops/scraper shop/web TCP/80", "10.2.0.12 shop/web TCP/80"}, []string{"shop/client shop/web TCP/80", "203.0.113.1 shop/web TCP/80"}},
		{"both selectors must hold in one entry", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: sales}}, podSelector: {matchLabels: {app: client}}}]}]}`),
			[]string{"shop/client shop/web TCP/80"}, []string{"ops/scraper shop/web TCP/80", "shop/web2 shop/web TCP/80"}},
		{"either may hold in two entries", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: sre}}}, {podSelector: {matchLabels: {app: client}}}]}]}`),
			[]string{"shop/client shop/web TCP/80", "ops/scraper shop/web TCP/80"}, []string{"shop/web2 shop/web TCP/80", "elsewhere/stray shop/web TCP/80"}},
		{"an empty namespaceSelector means every Pod, but no outsider", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}]}]}`),
			[]string{"elsewhere/stray shop/web TCP/80"}, []string{"203.0.113.1 shop/web TCP/80", "node:n2 shop/web TCP/80"}},
		{"a Namespace without object is known by name", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: elsewhere}}}]}]}`),
			[]string{"elsewhere/stray shop/web TCP/80"}, []string{"ops/scraper shop/web TCP/80"}},
		{"every operator", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [sre, x]}, {key: trusted, operator: Exists}, {key: team, operator: NotIn, values: [sales]}, {key: absent, operator: DoesNotExist}, {key: absent, operator: NotIn, values: [a]}]}}]}]}`),
			[]string{"ops/scraper shop/web TCP/80"}, []string{"shop/client shop/web TCP/80", "elsewhere/stray shop/web TCP/80"}},
		{"ipBlock matches outsiders and Pods alike, less its except", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.2.0.0/16, except: [10.2.0.12/32]}}, {ipBlock: {cidr: "fd00:2::/64", except: ["fd00:2::14/128"]}}]}]}`),
			[]string{"shop/client shop/web TCP/80", "10.2.9.9 shop/web TCP/80", "fd00:2::99 shop/web TCP/80", "fd00:2::11 shop/web TCP/80"},
			[]string{"ops/scraper shop/web TCP/80", "10.3.0.1 shop/web TCP/80", "shop/six shop/web TCP/80"}},
		{"what one block excepts another may hold", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, {ipBlock: {cidr: 10.2.0.11/32}}]}]}`),
			[]string{"shop/client shop/web TCP/80", "203.0.113.1 shop/web TCP/80"}, []string{"ops/scraper shop/web TCP/80", "fd00:2::11 shop/web TCP/80"}},
		{"ports and protocols", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 1000, endPort: 1010, protocol: SCTP}, {protocol: SCTP, port: 7}]}]}`),
			[]string{"shop/client shop/web TCP/80", "shop/client shop/web UDP/53", "shop/client shop/web SCTP/1000", "shop/client shop/web SCTP/1010", "shop/client shop/web SCTP/7"},
			[]string{"shop/client shop/web UDP/80", "shop/client shop/web TCP/53", "shop/client shop/web SCTP/999", "shop/client shop/web SCTP/1011", "shop/client shop/web TCP/1005", "shop/client shop/web ICMP"}},
		{"a port entry without port means its protocol", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{protocol: UDP}]}]}`),
			[]string{"shop/client shop/web UDP/1"}, []string{"shop/client shop/web TCP/1"}},
		{"a named port is looked up at the destination, by protocol", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}, {port: dns}]}]}`),
			[]string{"shop/client shop/web TCP/8080", "shop/client shop/web2 TCP/9090"},
			[]string{"shop/client shop/web TCP/9090", "shop/client shop/web2 TCP/8080", "shop/client shop/web UDP/8080", "shop/client shop/web TCP/5353", "shop/client shop/web UDP/5353"}},
		{"a named port in egress is each destination's own, and no outsider's", np("a", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`),
			[]string{"shop/client shop/web TCP/8080", "shop/client shop/web2 TCP/9090", "shop/client 10.2.0.10 TCP/9090"},
			[]string{"shop/client shop/web TCP/9090", "shop/client 203.0.113.1 TCP/8080", "shop/client node:n1 TCP/8080"}},
		{"both directions must allow", np("deny", deny) + np("out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}`) + np("in", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]}`),
			[]string{"shop/client shop/web TCP/80"}, []string{"shop/client shop/web TCP/81", "shop/web shop/client TCP/80", "shop/client ops/scraper TCP/80"}},
		{"a Pod reaches itself", np("deny", deny), []string{"shop/web shop/web TCP/80", "10.1.0.10 shop/web TCP/80"}, []string{"shop/web2 shop/web TCP/80"}},
		{"a host reaches its own Pods, and not others", np("deny", deny),
			[]string{"node:n1 shop/web TCP/80", "192.0.2.1 shop/web TCP/80", "10.1.0.1 shop/web ICMP", "shop/agent1 shop/web TCP/80", "shop/agent shop/client TCP/80"},
			[]string{"node:n2 shop/web TCP/80", "192.0.2.2 shop/web TCP/80", "shop/agent shop/web TCP/80"}},
		{"a Pod's way to its own node is judged", np("deny", deny), nil, []string{"shop/web node:n1 TCP/80", "shop/web shop/agent1 TCP/80"}},
		{"hostNetwork Pods are no targets", np("deny", deny), []string{"203.0.113.1 shop/agent TCP/80", "shop/agent 203.0.113.1 TCP/80", "ops/scraper shop/agent TCP/80"}, nil},
		{"hostNetwork Pods are no peers, save by address", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}, {from: [{ipBlock: {cidr: 192.0.2.2/32}}], ports: [{port: 81}]}]}`),
			[]string{"shop/agent shop/web TCP/81", "shop/client shop/web TCP/80"}, []string{"shop/agent shop/web TCP/80"}},
		{"finished Pods are neither targets nor peers", np("a", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`),
			[]string{"203.0.113.1 10.2.0.20 TCP/80", "203.0.113.1 shop/done TCP/80"}, []string{"10.2.0.20 shop/web TCP/80", "shop/done shop/web TCP/80", "shop/reused shop/web TCP/80"}},
		{"two families are two connections", np("a", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}`),
			[]string{"shop/client shop/web TCP/80", "10.2.0.11 10.1.0.10 TCP/80"}, []string{"fd00:2::11 shop/web TCP/80", "shop/client fd00:1::10 TCP/80", "shop/six shop/web TCP/80"}},
		{"staged policies do not act", strings.Replace(np("deny", deny), "namespace: shop", "namespace: shop, annotations: {weir.dev/enforcement: staged}", 1),
			[]string{"ops/scraper shop/web TCP/80"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := load(t, cluster, test.policies)
			for want, list := range map[Verdict][]string{Allow: test.allow, Drop: test.drop} {
				for _, c := range list {
					r, err := s.Evaluate(connect(t, c))
					if err != nil {
						t.Errorf("%s: %v", c, err)
					} else if r.Verdict != want {
						t.Errorf("%s: got %s, want %s\negress: %s\ningress: %s", c, r.Verdict, want, r.Egress.Reason, r.Ingress.Reason)
					}
				}
			}
		})
	}
}

func ref(name string) api.Ref {
	return api.Ref{Kind: api.KindNetworkPolicy, Namespace: "shop", Name: name}
}

func TestReasons(t *testing.T) {
	s := load(t, cluster,
		np("b-deny", `{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]}`)+
			np("a-web", `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {}}], ports: [{port: 80}]}, {ports: [{port: 80}]}]}`)+
			np("c-web", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}`))
	web, deny, also := ref("a-web"), ref("b-deny"), ref("c-web")
	for _, test := range []struct {
		name, connection string
		want             Result
	}{
		{"every policy that allows is named, the first decides", "shop/client shop/web TCP/80", Result{Verdict: Allow,
			Egress: Decision{Action: Allow, Policy: &deny, Rule: "egress[0]", IsolatedBy: []api.Ref{deny}, AllowedBy: []RuleRef{{deny, "egress[0]"}},
				Reason: "isolated by shop/b-deny; egress[0] of shop/b-deny allows it"},
			Ingress: Decision{Action: Allow, Policy: &web, Rule: "ingress[1]", IsolatedBy: []api.Ref{web, deny, also}, AllowedBy: []RuleRef{{web, "ingress[1]"}, {also, "ingress[0]"}},
				Reason: "isolated by shop/a-web, shop/b-deny, shop/c-web; ingress[1] of shop/a-web allows it"},
		}},
		{"every policy that isolates is named", "203.0.113.1 shop/web TCP/443", Result{Verdict: Drop,
			Egress: Decision{Action: Allow, Reason: "203.0.113.1 is no Pod, so that no policy of Pods applies to it"},
			Ingress: Decision{Action: Drop, IsolatedBy: []api.Ref{web, deny, also},
				Reason: "isolated by shop/a-web, shop/b-deny, shop/c-web; no rule allows TCP/443 from 203.0.113.1"},
		}},
		{"nothing isolates", "ops/scraper elsewhere/stray ICMP", Result{Verdict: Allow,
			Egress:  Decision{Action: Allow, Reason: "no rule decides on egress of ops/scraper, and no policy isolates it"},
			Ingress: Decision{Action: Allow, Reason: "no rule decides on ingress of elsewhere/stray, and no policy isolates it"},
		}},
		{"the host of the Pod", "node:n1 shop/web TCP/443", Result{Verdict: Allow,
			Egress:  Decision{Action: Allow, Reason: "no policy of Nodes decides on egress of node n1 (192.0.2.1)"},
			Ingress: Decision{Action: Allow, Reason: "node n1 (192.0.2.1) is the node of shop/web, and a node's host always reaches its own Pods"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := s.Evaluate(connect(t, test.connection))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestEvaluateRefuses(t *testing.T) {
	s := load(t, cluster)
	for connection, want := range map[string]string{
		"shop/nobody shop/web TCP/80":      "source: there is no Pod shop/nobody",
		"shop/web node:n9 TCP/80":          "destination: there is no Node n9",
		"shop/web shop/pending TCP/80":     "destination: the Pod shop/pending has no address yet",
		"shop/six shop/web2 TCP/80":        "shop/six and shop/web2 have no address of one family",
		"shop/client 10.96.0.1 TCP/81":     "Service shop/web has no port 81 of TCP",
		"node:n2 10.96.0.2 TCP/80":         "Service shop/nobody has no endpoint that the source could reach",
		"shop/web service:shop/x TCP/80":   "destination: there is no Service shop/x",
		"shop/web shop/client TCP":         "a TCP connection needs a destination port",
		"shop/web shop/client ESP":         "protocol 0 is not one of TCP, UDP, SCTP, ICMP, IGMP",
		"203.0.113.1 fd00:1::10 UDP/53":    "203.0.113.1 and fd00:1::10 have no address of one family",
		"shop/client shop/client2 SCTP/80": "there is no Pod shop/client2",
	} {
		if _, err := s.Evaluate(connect(t, connection)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", connection, err, want)
		}
	}
}

// old and new claim one address.
const ofOneAddress = `
{apiVersion: v1, kind: Pod, metadata: {name: old, namespace: shop, labels: {app: old}}, spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}, status: {podIPs: [{ip: 10.1.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.1.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: shop, labels: {app: other}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.1.0.2}]}}
`

// Where two Pods claim one address, a policy guards each for itself, and its
// port names are those of the one that it guards. As a peer the address is either.
func TestPodsOfOneAddress(t *testing.T) {
	s := load(t, ofOneAddress, np("in", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`),
		np("out", `{podSelector: {matchLabels: {app: other}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: old}}}]}], egress: [{ports: [{port: http}]}]}`))
	for connection, want := range map[string][2]Verdict{
		"shop/other shop/old TCP/80": {Allow, Allow},
		"shop/other shop/new TCP/80": {Allow, Drop},
		"shop/new shop/other TCP/80": {Allow, Allow},
	} {
		r, err := s.Evaluate(connect(t, connection))
		if got := [2]Verdict{r.Egress.Action, r.Ingress.Action}; err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", connection, got, err, want)
		}
	}
}

// The name of a port at such an address is that of a Pod that the peers select,
// whichever the connection is said to be for.
func TestPortNamesOfOneAddress(t *testing.T) {
	const old, nameless, block = "{podSelector: {matchLabels: {app: old}}}", "{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}", "{ipBlock: {cidr: 10.1.0.1/32}}"
	for peers, want := range map[string]Verdict{old: Allow, nameless: Drop, old + ", " + nameless: Allow, nameless + ", " + block: Allow} {
		s := load(t, ofOneAddress, np("out", "{podSelector: {matchLabels: {app: other}}, policyTypes: [Egress], egress: [{to: ["+peers+"], ports: [{port: http}]}]}"), `
{apiVersion: crd.antrea.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: first}, spec: {priority: 1, appliedTo: [{podSelector: {matchLabels: {app: other}}}],
  egress: [{action: Drop, to: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}], ports: [{protocol: TCP, port: http}]}]}}`)
		for _, pod := range []string{"old", "new"} {
			r, err := s.Evaluate(connect(t, "shop/other shop/"+pod+" TCP/80"))
			if err != nil || r.Egress.Action != want {
				t.Errorf("to %s at %s: %v, %v, want %v", peers, pod, r.Egress.Action, err, want)
			}
		}
	}
}

func TestStateFollowsEvents(t *testing.T) {
	s := load(t, cluster, np("deny", `{podSelector: {}}`))
	c := connect(t, "ops/scraper shop/web TCP/80")
	verdict := func() Verdict {
		t.Helper()
		r, err := s.Evaluate(c)
		if err != nil {
			t.Fatal(err)
		}
		return r.Verdict
	}
	if got := verdict(); got != Drop {
		t.Errorf("isolated: %s", got)
	}
	s.Apply(api.Event{Ref: ref("deny")})
	if got := verdict(); got != Allow {
		t.Errorf("after the policy went: %s", got)
	}
	s.Apply(api.Event{Ref: ref("deny"), Object: &api.NetworkPolicy{Namespace: "shop", Name: "deny", Ingress: []api.NetworkPolicyRule{{
		Peers: []api.NetworkPolicyPeer{{NamespaceSelector: &api.Selector{MatchLabels: api.Labels{{Key: "team", Value: "sre"}}}}}}}}})
	if got := verdict(); got != Allow {
		t.Errorf("allowed by the Namespace's label: %s", got)
	}
	s.Apply(api.Event{Ref: api.Ref{Kind: api.KindNamespace, Name: "ops"}, Object: &api.Namespace{Name: "ops"}})
	if got := verdict(); got != Drop {
		t.Errorf("after the label went: %s", got)
	}
	s.Remove(api.Ref{Kind: api.KindPod, Namespace: "shop", Name: "web"})
	if _, err := s.Evaluate(c); err == nil {
		t.Error("a removed Pod is still there")
	}
}

// An empty peer or an unknown operator, which validation refuses, must not
// open anything.
func TestWhatIsInvalidMatchesNothing(t *testing.T) {
	s := load(t, cluster)
	s.Set(&api.NetworkPolicy{Namespace: "shop", Name: "odd", Ingress: []api.NetworkPolicyRule{
		{Peers: []api.NetworkPolicyPeer{{}}},
		{Peers: []api.NetworkPolicyPeer{{PodSelector: &api.Selector{MatchExpressions: []api.Requirement{{Key: "app"}}}}}},
	}})
	r, err := s.Evaluate(connect(t, "shop/client shop/web TCP/80"))
	if err != nil || r.Verdict != Drop {
		t.Errorf("got %v, %v", r.Verdict, err)
	}
}
