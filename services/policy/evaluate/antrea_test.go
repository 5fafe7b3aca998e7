package evaluate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// More Namespaces and Pods than those of cluster, for policies of the whole
// cluster: tenants with labels of their own, accounts, Nodes with labels.
const tenants = cluster + `---
{apiVersion: v1, kind: Namespace, metadata: {name: acc1, labels: {org: acc, region: west}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: acc2, labels: {org: acc, region: east}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: sales1, labels: {org: sales, region: west}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bare}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: acc1, labels: {app: a}}, spec: {nodeName: n1, serviceAccountName: robot}, status: {podIPs: [{ip: 10.1.1.1}, {ip: "fd00:1::1:1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: acc1, labels: {app: b}}, spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.1.1.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: acc2, labels: {app: a}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.2.1.1}, {ip: "fd00:2::1:1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: sales1, labels: {app: a}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.2.1.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: bare, labels: {app: a}}, spec: {nodeName: n2}, status: {podIPs: [{ip: 10.2.1.3}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n3, labels: {role: master}, annotations: {weir.dev/gateway-addresses: 10.3.0.1, weir.dev/transport-addresses: 198.51.100.3}}, status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: b, namespace: acc1}, spec: {clusterIP: 10.96.1.1, selector: {app: b}, ports: [{port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: loose, namespace: acc1}, spec: {clusterIP: 10.96.1.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: acc1}, spec: {clusterIP: None, selector: {app: b}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: outer, namespace: acc1}, spec: {type: NodePort, clusterIP: 10.96.1.3, selector: {app: b}, ports: [{port: 80, targetPort: http, nodePort: 30080}]}}
`

// antrea is an object of crd.antrea.io/v1beta1.
func antrea(kind, meta, spec string) string {
	return fmt.Sprintf("---\napiVersion: crd.antrea.io/v1beta1\nkind: %s\nmetadata: {%s}\nspec: {%s}\n", kind, meta, spec)
}

// acnp applies to Pods that are a.
func acnp(name, spec string) string {
	return antrea("ClusterNetworkPolicy", "name: "+name, "appliedTo: [{podSelector: {matchLabels: {app: a}}}], "+spec)
}

// all applies to every Pod.
func all(name, spec string) string {
	return antrea("ClusterNetworkPolicy", "name: "+name, "appliedTo: [{namespaceSelector: {}}], "+spec)
}

func annp(name, spec string) string {
	return antrea("NetworkPolicy", "namespace: acc1, name: "+name, spec)
}

func staged(policy string) string {
	return strings.Replace(policy, "metadata: {", "metadata: {annotations: {weir.dev/enforcement: staged}, ", 1)
}

// expect checks verdicts: "FROM TO PROTOCOL[/PORT] VERDICT".
func expect(t *testing.T, s *State, list ...string) {
	t.Helper()
	for _, line := range list {
		connection, want, _ := cutLast(line)
		r, err := s.Evaluate(connect(t, connection))
		if err != nil {
			t.Errorf("%s: %v", line, err)
		} else if r.Verdict.String() != want {
			t.Errorf("%s: got %s: %s", line, r.Verdict, r.Deciding().Reason)
		}
	}
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndex(s, " ")
	return s[:i], s[i+1:], i >= 0
}

// apiServers are one outside of the cluster and one on n3, and a policy service.
const apiServers = `---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}, addressType: IPv4, ports: [{name: https, port: 6443, protocol: TCP}],
  endpoints: [{addresses: [203.0.113.6]}, {addresses: [192.0.2.3]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: weir-policyd-x, namespace: weir-system, labels: {kubernetes.io/service-name: weir-policyd}}, addressType: IPv4, ports: [{name: grpc, port: 9740, protocol: TCP}],
  endpoints: [{addresses: [203.0.113.8]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: weir-policyd-y, namespace: acc1, labels: {kubernetes.io/service-name: weir-policyd}}, addressType: IPv4, ports: [{name: grpc, port: 6443, protocol: TCP}],
  endpoints: [{addresses: [203.0.113.9]}]}
`

// shutNodes lets nothing in or out of n3.
func shutNodes(meta string) string {
	return antrea("ClusterNetworkPolicy", "name: x"+meta, "priority: 1, appliedTo: [{nodeSelector: {matchLabels: {role: master}}}], ingress: [{action: Drop}], egress: [{action: Drop}]")
}

func TestAntreaPolicies(t *testing.T) {
	drop := func(peers string) string { return "ingress: [{action: Drop" + peers + "}]" }
	for _, tc := range []struct {
		name, policies string
		want           []string
	}{
		{"no isolation by itself", acnp("x", `priority: 1, ingress: [{action: Allow, from: [{podSelector: {matchLabels: {app: b}}}]}]`), []string{"shop/client acc1/a TCP/1 allow"}},
		{"an empty list of peers is everyone", acnp("x", `priority: 1, ingress: [{action: Drop, from: []}]`), []string{"203.0.113.1 acc1/a TCP/1 drop", "shop/client acc1/b TCP/1 allow"}},
		{"Reject", acnp("x", `priority: 1, ingress: [{action: Reject}]`), []string{"203.0.113.1 acc1/a TCP/1 reject", "203.0.113.1 acc1/a ICMP reject"}},
		{"Deny is Drop", acnp("x", `priority: 1, ingress: [{action: Deny}]`), []string{"203.0.113.1 acc1/a TCP/1 drop"}},
		{"tiers by their priority, a later one does not undo", acnp("x", "tier: emergency, priority: 9, "+drop("")) + acnp("w", "tier: securityops, priority: 1, ingress: [{action: Allow}]"), []string{"shop/client acc1/a TCP/1 drop"}},
		{"a tier of our own, before the application's", antrea("Tier", "name: mine", "priority: 249") + acnp("x", "tier: mine, priority: 9, ingress: [{action: Allow}]") + acnp("w", "priority: 1, "+drop("")), []string{"shop/client acc1/a TCP/1 allow"}},
		{"a tier that is not there holds the policy back", acnp("x", "tier: mine, priority: 9, "+drop("")), []string{"shop/client acc1/a TCP/1 allow"}},
		{"static tiers by their former names", acnp("x", "tier: Emergency, priority: 9, "+drop("")) + acnp("w", "tier: platform, priority: 1, ingress: [{action: Allow}]"), []string{"shop/client acc1/a TCP/1 drop"}},
		{"fractions of priorities count, and not the kind", acnp("x", "priority: 1.5, "+drop("")) + annp("w", "priority: 1.4, appliedTo: [{podSelector: {}}], ingress: [{action: Allow}]"), []string{"shop/client acc1/a TCP/1 allow"}},
		{"Pass skips later tiers and upstream admin policies, and not the Kubernetes step", acnp("x", "tier: emergency, priority: 1, ingress: [{action: Pass}]") + acnp("w", "priority: 1, "+drop("")) +
			strings.Replace(anp("z", 1, "", "ingress: ["+from("Deny")+"]"), "{matchLabels: {team: sales}}", "{}", 1) +
			strings.Replace(np("iso", `{podSelector: {}, ingress: [{ports: [{port: 1}]}]}`), "namespace: shop", "namespace: acc1", 1),
			[]string{"shop/client acc1/a TCP/1 allow", "shop/client acc1/a TCP/2 drop"}},
		{"what passes and is not isolated comes to the baseline", acnp("x", "priority: 1, ingress: [{action: Pass}]") + acnp("w", "tier: baseline, priority: 1, "+drop("")), []string{"shop/client acc1/a TCP/1 drop"}},
		{"the baseline tier comes before upstream baselines", acnp("x", "tier: baseline, priority: 1, ingress: [{action: Allow}]") + banp("ingress: ["+from("Deny")+"]"), []string{"shop/client acc1/a TCP/1 allow", "shop/client acc1/b TCP/1 drop"}},
		{"rules as written", acnp("x", "priority: 1, ingress: [{action: Allow, ports: [{protocol: TCP, port: 80, endPort: 90}]}, {action: Drop}]"), []string{"shop/client acc1/a TCP/85 allow", "shop/client acc1/a TCP/91 drop"}},
		{"one place: Drop before Reject before Pass before Allow", acnp("a", "priority: 1, ingress: [{action: Allow}]") + acnp("b", "priority: 1, ingress: [{action: Reject}]") + acnp("c", "priority: 1, ingress: [{action: Drop, ports: [{port: 80}]}]"),
			[]string{"shop/client acc1/a TCP/80 drop", "shop/client acc1/a TCP/81 reject"}},

		{"several entries of appliedTo are their union", antrea("ClusterNetworkPolicy", "name: x", "priority: 1, appliedTo: [{podSelector: {matchLabels: {app: b}}}, {namespaceSelector: {matchLabels: {org: sales}}}], "+drop("")),
			[]string{"shop/client acc1/b TCP/1 drop", "shop/client sales1/a TCP/1 drop", "shop/client acc1/a TCP/1 allow"}},
		{"appliedTo on each rule", antrea("ClusterNetworkPolicy", "name: x", "priority: 1, ingress: [{action: Drop, appliedTo: [{podSelector: {matchLabels: {app: b}}}]}, {action: Reject, appliedTo: [{podSelector: {matchLabels: {app: a}}, namespaceSelector: {matchLabels: {org: acc}}}]}]"),
			[]string{"shop/client acc1/b TCP/1 drop", "shop/client acc1/a TCP/1 reject", "shop/client sales1/a TCP/1 allow"}},
		{"both selectors", acnp("x", "priority: 1, "+drop(", from: [{podSelector: {matchLabels: {app: b}}, namespaceSelector: {matchLabels: {org: sales}}}]")), []string{"acc1/b acc1/a TCP/1 allow"}},
		{"a Namespace's policy sees its own Pods alone where no Namespaces are named", annp("x", "priority: 1, appliedTo: [{podSelector: {}}], "+drop(", from: [{podSelector: {matchLabels: {app: a}}}]")),
			[]string{"acc1/a acc1/b TCP/1 drop", "acc2/a acc1/b TCP/1 allow", "acc1/a acc2/a TCP/1 allow"}},
		{"and others where they are", annp("x", "priority: 1, appliedTo: [{podSelector: {}}], "+drop(", from: [{namespaceSelector: {matchLabels: {org: acc}}}]")), []string{"acc2/a acc1/b TCP/1 drop", "sales1/a acc1/b TCP/1 allow"}},
		{"a service account", antrea("ClusterNetworkPolicy", "name: x", "priority: 1, appliedTo: [{serviceAccount: {name: default, namespace: acc1}}], "+drop(", from: [{serviceAccount: {name: robot, namespace: acc1}}]")),
			[]string{"acc1/a acc1/b TCP/1 drop", "acc2/a acc1/b TCP/1 allow", "acc1/b acc1/a TCP/1 allow"}},
		{"a block less some", acnp("x", "priority: 1, "+drop(", from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.1.0/30]}}]")), []string{"shop/client acc1/a TCP/1 drop", "sales1/a acc1/a TCP/1 allow"}},
		{"a peer's Nodes, by all their addresses", acnp("x", "priority: 1, egress: [{action: Drop, to: [{nodeSelector: {matchLabels: {role: master}}}]}]"),
			[]string{"acc1/a 192.0.2.3 TCP/1 drop", "acc1/a 10.3.0.1 TCP/1 drop", "acc1/a 198.51.100.3 TCP/1 drop", "acc1/a 192.0.2.2 TCP/1 allow", "acc1/a sales1/a TCP/1 allow"}},

		{"Self", all("x", "priority: 1, ingress: [{action: Allow, from: [{namespaces: {match: Self}}]}, {action: Drop}]"), []string{"acc1/a acc1/b TCP/1 allow", "acc2/a acc1/b TCP/1 drop", "shop/client shop/web TCP/1 allow", "203.0.113.1 acc1/a TCP/1 drop"}},
		{"Self with Pods", all("x", "priority: 1, ingress: [{action: Drop, from: [{namespaces: {match: Self}, podSelector: {matchLabels: {app: a}}}]}]"), []string{"acc1/a acc1/b TCP/1 drop", "acc2/a acc1/b TCP/1 allow", "acc1/b acc1/a TCP/1 allow"}},
		{"sameLabels", all("x", "priority: 1, ingress: [{action: Allow, from: [{namespaces: {sameLabels: [org]}}]}, {action: Drop}]"),
			[]string{"acc2/a acc1/a TCP/1 allow", "sales1/a acc1/a TCP/1 drop", "bare/a acc1/a TCP/1 drop", "acc1/a bare/a TCP/1 allow", "acc1/a shop/web TCP/1 allow"}},
		{"sameLabels of several keys", all("x", "priority: 1, ingress: [{action: Allow, from: [{namespaces: {sameLabels: [org, region]}}]}, {action: Drop}]"), []string{"acc1/b acc1/a TCP/1 allow", "acc2/a acc1/a TCP/1 drop", "sales1/a acc1/a TCP/1 drop"}},
		{"sameLabels of a key that nobody has: no effect", all("x", "priority: 1, ingress: [{action: Allow, from: [{namespaces: {sameLabels: [org, env]}}]}, {action: Drop, from: [{namespaceSelector: {}}]}]"),
			[]string{"sales1/a acc1/a TCP/1 allow", "acc1/a bare/a TCP/1 allow"}},
		{"a Namespace that lacks a key, and a rule for anyone", all("x", "priority: 1, ingress: [{action: Allow, from: [{namespaces: {sameLabels: [org, env]}}]}, {action: Drop}]"),
			[]string{"sales1/a acc1/a TCP/1 drop", "acc1/a bare/a TCP/1 allow"}},

		{"a port by name, in either direction", acnp("x", "priority: 1, egress: [{action: Drop, ports: [{protocol: TCP, port: http}]}]"), []string{"acc1/a acc1/b TCP/8080 drop", "acc1/a acc1/b TCP/8081 allow", "acc1/a shop/web TCP/8080 drop", "acc1/a sales1/a TCP/8080 allow"}},
		{"ICMP by type", acnp("x", "priority: 1, ingress: [{action: Drop, protocols: [{icmp: {icmpType: 8, icmpCode: 0}}]}]"), []string{"shop/client 10.1.1.1 ICMP drop", "shop/client fd00:1::1:1 ICMP allow", "shop/client acc1/a TCP/1 allow"}},
		{"ICMP of every type", acnp("x", "priority: 1, ingress: [{action: Drop, protocols: [{icmp: {}}]}]"), []string{"shop/client acc1/a ICMP drop", "shop/client fd00:1::1:1 ICMP drop"}},
		{"ports and protocols are one list", acnp("x", "priority: 1, ingress: [{action: Drop, protocols: [{icmp: {}}], ports: [{port: 80}]}]"), []string{"shop/client acc1/a ICMP drop", "shop/client acc1/a TCP/80 drop", "shop/client acc1/a TCP/81 allow"}},
		{"layer 7 is nothing that can be let through", acnp("x", "priority: 1, ingress: [{action: Allow, l7Protocols: [{http: {path: /x}}], from: [{podSelector: {matchLabels: {app: b}}}]}]"), []string{"acc1/b acc1/a TCP/80 drop", "shop/client acc1/a TCP/80 allow"}},
		{"and is as strict as a drop", acnp("x", "priority: 1, ingress: [{action: Allow, l7Protocols: [{http: {path: /x}}]}]") + acnp("w", "priority: 1, ingress: [{action: Pass}]"), []string{"acc1/b acc1/a TCP/80 drop"}},

		{"a Service, by its ClusterIP", acnp("x", "priority: 1, egress: [{action: Drop, toServices: [{name: b, namespace: acc1}]}]"), []string{"sales1/a service:acc1/b TCP/80 drop", "sales1/a 10.96.1.1 TCP/80 drop", "sales1/a acc1/b TCP/8080 allow", "shop/client service:acc1/b TCP/80 allow"}},
		{"a Service's Pods, at their ports", acnp("x", "priority: 1, egress: [{action: Drop, ports: [{port: 8080}]}]"), []string{"sales1/a service:acc1/b TCP/80 drop"}},
		{"a headless Service is none of toServices", acnp("x", "priority: 1, egress: [{action: Drop, toServices: [{name: headless, namespace: acc1}]}]"), []string{"sales1/a service:acc1/headless TCP/80 allow"}},
		{"a NodePort Service", antrea("ClusterNetworkPolicy", "name: x", "priority: 1, appliedTo: [{service: {name: outer, namespace: acc1}}], "+drop(", from: [{ipBlock: {cidr: 203.0.113.0/24}}]")),
			[]string{"203.0.113.1 node:n1 TCP/30080 drop", "198.51.100.77 node:n1 TCP/30080 allow", "203.0.113.1 192.0.2.3 TCP/30080 drop", "203.0.113.1 192.0.2.99 TCP/30080 allow", "203.0.113.1 node:n1 TCP/22 allow", "203.0.113.1 acc1/b TCP/8080 allow"}},
		{"a NodePort Service, from everywhere but its node", antrea("ClusterNetworkPolicy", "name: x", "priority: 1, appliedTo: [{service: {name: outer, namespace: acc1}}], "+drop("")),
			[]string{"node:n1 node:n1 TCP/30080 allow", "node:n2 node:n1 TCP/30080 drop", "acc1/a node:n1 TCP/30080 drop"}},
		{"Nodes themselves", antrea("ClusterNetworkPolicy", "name: x", "priority: 1, appliedTo: [{nodeSelector: {matchLabels: {role: master}}}], ingress: [{action: Drop, from: [{podSelector: {matchLabels: {app: a}}}]}], egress: [{action: Reject, to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]"),
			[]string{"acc1/a node:n3 TCP/22 drop", "acc1/b node:n3 TCP/22 allow", "acc1/a node:n2 TCP/22 allow", "node:n3 203.0.113.1 TCP/80 reject", "node:n3 203.0.113.1 UDP/80 drop", "node:n3 203.0.113.1 SCTP/80 drop", "node:n3 203.0.113.1 ICMP reject", "node:n3 node:n3 TCP/80 allow"}},

		{"what steers Nodes is overruled by none of their policies", apiServers + shutNodes(""),
			[]string{"node:n3 203.0.113.6 TCP/6443 allow", "node:n3 203.0.113.6 TCP/6444 drop", "node:n3 203.0.113.6 UDP/6443 drop", "node:n3 203.0.113.9 TCP/6443 drop", "node:n3 203.0.113.8 TCP/9740 allow",
				"203.0.113.6 node:n3 TCP/10250 allow", "203.0.113.8 node:n3 TCP/10250 allow", "203.0.113.9 node:n3 TCP/10250 drop", "203.0.113.6 node:n3 TCP/22 drop",
				"node:n1 node:n3 TCP/6443 allow", "acc1/a node:n3 TCP/6443 drop", "203.0.113.6 node:n3 TCP/6443 drop"}},
		{"unless they say that they may", apiServers + shutNodes(", annotations: {weir.dev/allow-lockout: 'true'}"), []string{"node:n3 203.0.113.6 TCP/6443 drop", "203.0.113.6 node:n3 TCP/10250 drop", "node:n1 node:n3 TCP/6443 drop"}},
		{"and what steers Nodes is no matter of Pods", apiServers + all("x", "priority: 1, egress: [{action: Drop}]"), []string{"acc1/a 203.0.113.6 TCP/6443 drop"}},

		{"a domain name", acnp("x", `priority: 1, egress: [{action: Allow, to: [{fqdn: "*Foobar.com"}]}, {action: Drop}]`),
			[]string{"acc1/a fqdn:foobar.com TCP/80 allow", "acc1/a fqdn:test.uswest.FOOBAR.com. TCP/80 allow", "acc1/a fqdn:foobar.org TCP/80 drop", "acc1/a 203.0.113.1 TCP/80 drop"}},
		{"the name of a headless Service, and not of another", acnp("x", `priority: 1, egress: [{action: Drop, to: [{fqdn: "*.svc.cluster.local"}]}]`),
			[]string{"sales1/a fqdn:headless.acc1.svc.cluster.local TCP/80 drop", "sales1/a fqdn:b.acc1.svc.cluster.local TCP/80 allow"}},

		{"a group that is not there: an Allow lets nothing in, and other peers count", acnp("x", "priority: 1, ingress: [{action: Allow, from: [{group: none}, {podSelector: {matchLabels: {app: b}}}]}, {action: Drop}]"), []string{"acc1/b acc1/a TCP/1 allow", "acc2/a acc1/a TCP/1 drop"}},
		{"a group that is not there is not everyone", acnp("x", "priority: 1, "+drop(", from: [{group: none}]")), []string{"acc1/b acc1/a TCP/1 allow"}},
		{"a group of Pods", antrea("ClusterGroup", "name: g", "podSelector: {matchLabels: {app: b}}, namespaceSelector: {matchLabels: {org: acc}}") + acnp("x", "priority: 1, "+drop(", from: [{group: g}]")), []string{"acc1/b acc1/a TCP/1 drop", "acc2/a acc1/a TCP/1 allow"}},
		{"a group of blocks", antrea("ClusterGroup", "name: g", "ipBlocks: [{cidr: 10.2.0.0/16, except: [10.2.1.0/24]}, {cidr: 203.0.113.0/24}]") + acnp("x", "priority: 1, "+drop(", from: [{group: g}]")),
			[]string{"shop/client acc1/a TCP/1 drop", "203.0.113.1 acc1/a TCP/1 drop", "acc2/a acc1/a TCP/1 allow"}},
		{"the former ipBlock", antrea("ClusterGroup", "name: g", "ipBlock: {cidr: 203.0.113.0/24}") + acnp("x", "priority: 1, "+drop(", from: [{group: g}]")), []string{"203.0.113.1 acc1/a TCP/1 drop", "shop/client acc1/a TCP/1 allow"}},
		{"a group of a Service's Pods, without its port", antrea("ClusterGroup", "name: g", "serviceReference: {name: b, namespace: acc1}") + acnp("x", "priority: 1, "+drop(", from: [{group: g}]")), []string{"acc1/b acc1/a UDP/9 drop", "shop/client acc1/a UDP/9 allow"}},
		{"a Service without selector has none", antrea("ClusterGroup", "name: g", "serviceReference: {name: loose, namespace: acc1}") + acnp("x", "priority: 1, "+drop(", from: [{group: g}]")), []string{"acc1/b acc1/a UDP/9 allow"}},
		{"children, one level deep", antrea("ClusterGroup", "name: g", "childGroups: [p, q, none]") + antrea("ClusterGroup", "name: p", "podSelector: {matchLabels: {app: b}}") + antrea("ClusterGroup", "name: q", "ipBlocks: [{cidr: 203.0.113.0/24}]") +
			acnp("x", "priority: 1, "+drop(", from: [{group: g}]")), []string{"acc1/b acc1/a TCP/1 drop", "203.0.113.1 acc1/a TCP/1 drop", "shop/client acc1/a TCP/1 allow"}},
		{"a Group is its own Namespace's", antrea("Group", "name: g, namespace: acc1", "podSelector: {matchLabels: {app: a}}") + antrea("Group", "name: g, namespace: acc2", "podSelector: {}") + annp("x", "priority: 1, appliedTo: [{podSelector: {}}], "+drop(", from: [{group: g}]")),
			[]string{"acc1/a acc1/b TCP/1 drop", "acc2/a acc1/b TCP/1 allow"}},
		{"blocks in appliedTo add nothing", antrea("ClusterGroup", "name: g", "ipBlocks: [{cidr: 0.0.0.0/0}]") + antrea("ClusterNetworkPolicy", "name: x", "priority: 1, appliedTo: [{group: g}], "+drop("")), []string{"shop/client acc1/a TCP/1 allow"}},
		{"a Group of Namespaces in appliedTo adds nothing", antrea("Group", "name: g, namespace: acc1", "podSelector: {}, namespaceSelector: {}") + annp("x", "priority: 1, appliedTo: [{group: g}], "+drop("")), []string{"shop/client acc1/a TCP/1 allow"}},
		{"a Group of another Namespace's Service in appliedTo adds nothing", antrea("Group", "name: g, namespace: acc2", "serviceReference: {name: b, namespace: acc1}") + antrea("NetworkPolicy", "namespace: acc2, name: x", "priority: 1, appliedTo: [{group: g}], "+drop("")),
			[]string{"shop/client acc1/b TCP/1 allow"}},
		{"a group in appliedTo", antrea("ClusterGroup", "name: g", "serviceReference: {name: b, namespace: acc1}") + antrea("ClusterNetworkPolicy", "name: x", "priority: 1, appliedTo: [{group: g}], "+drop("")), []string{"shop/client acc1/b TCP/1 drop", "shop/client acc1/a TCP/1 allow"}},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, load(t, tenants, tc.policies), tc.want...) })
	}
}

// Three elementary questions, of which antctl's own evaluation of policies
// answers two wrong: it does not look at ports, nor at the other direction.
func TestElementaryQuestions(t *testing.T) {
	open := np("open", `{podSelector: {}, ingress: [{}]}`)
	t.Run("ingress that allows all", func(t *testing.T) { expect(t, load(t, cluster, open), "ops/scraper shop/web TCP/80 allow") })
	t.Run("egress that allows against ingress that isolates", func(t *testing.T) {
		out := np("out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{}]}`)
		shut := np("shut", `{podSelector: {matchLabels: {app: web}}}`)
		expect(t, load(t, cluster, out, shut), "shop/client shop/web TCP/80 drop")
	})
	t.Run("a port that is not allowed", func(t *testing.T) {
		expect(t, load(t, cluster, np("http", `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`)), "ops/scraper shop/web TCP/443 drop", "ops/scraper shop/web TCP/80 allow")
	})
}

func TestStagedPolicies(t *testing.T) {
	for _, tc := range []struct {
		name, policies, connection, enforced, staged string
	}{
		{"a drop that would be", staged(acnp("x", "priority: 1, ingress: [{action: Drop}]")), "shop/client acc1/a TCP/1", "allow", "drop by AntreaClusterNetworkPolicy x"},
		{"one that changes nothing", staged(acnp("x", "priority: 2, ingress: [{action: Drop}]")) + acnp("w", "priority: 1, ingress: [{action: Allow}]"), "shop/client acc1/a TCP/1", "allow", ""},
		{"an allow over a drop", staged(acnp("x", "priority: 1, ingress: [{action: Allow}]")) + acnp("w", "priority: 2, ingress: [{action: Drop}]"), "shop/client acc1/a TCP/1", "drop", "allow by AntreaClusterNetworkPolicy x"},
		{"isolation that would be", staged(np("x", `{podSelector: {}}`)), "ops/scraper shop/web TCP/1", "allow", "drop"},
		{"a pass to isolation", staged(anp("x", 1, "", "ingress: ["+from("Pass")+"]")) + anp("w", 2, "", "ingress: ["+from("Allow")+"]") + np("z", `{podSelector: {}}`), "ops/scraper shop/web TCP/1", "allow", "drop"},
		{"a drop in place of a reject", staged(acnp("x", "priority: 1, ingress: [{action: Drop}]")) + acnp("w", "priority: 2, ingress: [{action: Reject}]"), "shop/client acc1/a TCP/1", "reject", "drop by AntreaClusterNetworkPolicy x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := load(t, tenants, tc.policies).Evaluate(connect(t, tc.connection))
			if err != nil {
				t.Fatal(err)
			}
			staged := ""
			if r.Staged != nil {
				staged = r.Staged.Verdict.String()
				if by := r.Staged.Deciding().Policy; by != nil {
					staged += " by " + by.String()
				}
			}
			if r.Verdict.String() != tc.enforced || staged != tc.staged {
				t.Errorf("%s, staged %q: %s", r.Verdict, staged, r.Deciding().Reason)
			}
		})
	}
}

// Explain goes through the steps until one decides, and says why the rules
// before it did not.
func TestExplain(t *testing.T) {
	s := load(t, tenants, all("x", "tier: emergency, priority: 1, ingress: [{name: web, action: Drop, ports: [{port: 80}]}, {name: b, action: Pass, from: [{podSelector: {matchLabels: {app: b}}}]}]")+
		acnp("w", "priority: 1, ingress: [{name: never, action: Drop}]")+
		antrea("ClusterNetworkPolicy", "name: other", "tier: emergency, priority: 2, appliedTo: [{podSelector: {matchLabels: {app: c}}}], ingress: [{name: c, action: Drop}]")+
		strings.Replace(np("iso", `{podSelector: {}, ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {matchLabels: {app: b}}}]}]}`), "namespace: shop", "namespace: acc1", 1))
	r, err := s.Explain(connect(t, "acc1/b acc1/a TCP/81"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, step := range r.Ingress.Steps {
		got = append(got, step.Name+": "+step.Outcome)
		for _, rule := range step.Rules {
			got = append(got, fmt.Sprintf("  %s %s %v %s", rule.Policy, rule.Rule, rule.Decides, rule.Why))
		}
		for _, other := range step.Others {
			got = append(got, "  not "+other.String())
		}
	}
	want := `tier emergency (50): b of AntreaClusterNetworkPolicy x passes it to the Kubernetes NetworkPolicies
  AntreaClusterNetworkPolicy x web false TCP/81 is none of its ports or protocols
  AntreaClusterNetworkPolicy x b true matches, and passes it to the Kubernetes NetworkPolicies
Kubernetes NetworkPolicies: isolated by acc1/iso; ingress[1] of acc1/iso allows it
  NetworkPolicy acc1/iso ingress[0] false TCP/81 is none of its ports
  NetworkPolicy acc1/iso ingress[1] true allows it`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if plain, err := s.Evaluate(connect(t, "acc1/b acc1/a TCP/81")); err != nil || plain.Ingress.Steps != nil || plain.Verdict != r.Verdict {
		t.Errorf("%+v, %v", plain, err)
	}
}

// Policies follow their Namespaces, groups, tiers and Services as these come and go.
func TestReferentsComeAndGo(t *testing.T) {
	s := load(t, tenants, all("x", "tier: mine, priority: 1, ingress: [{action: Drop, from: [{group: g}]}]"))
	expect(t, s, "acc1/b acc1/a TCP/1 allow")
	add := func(text string) {
		for _, o := range load(t, text).objects() {
			s.Set(o)
		}
	}
	add(antrea("Tier", "name: mine", "priority: 7"))
	expect(t, s, "acc1/b acc1/a TCP/1 allow")
	add(antrea("ClusterGroup", "name: g", "serviceReference: {name: new, namespace: acc1}"))
	expect(t, s, "acc1/b acc1/a TCP/1 allow")
	add(`{apiVersion: v1, kind: Service, metadata: {name: new, namespace: acc1}, spec: {selector: {app: b}, ports: [{port: 1}]}}`)
	expect(t, s, "acc1/b acc1/a TCP/1 drop")
	s.Remove(api.Ref{Kind: api.KindTier, Name: "mine"})
	expect(t, s, "acc1/b acc1/a TCP/1 allow")
}

// objects are those of the kinds that the test above adds.
func (s *State) objects() []api.Object {
	var list []api.Object
	for _, o := range s.tiers {
		list = append(list, o)
	}
	for _, o := range s.groups {
		list = append(list, o)
	}
	for _, o := range s.services {
		list = append(list, o)
	}
	return list
}

// Rules that name IGMP decide on its messages, and nothing else does: a query is
// from the Pod's own node, a report for the group that it is sent to.
func TestIGMP(t *testing.T) {
	acnp := func(spec string) string {
		return "---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: igmp}\nspec: {priority: 5, appliedTo: [{podSelector: {}}], " + spec + "}\n"
	}
	octet := func(n uint8) *uint8 { return &n }
	const v2, v3 = 0x16, 0x22
	for _, tc := range []struct {
		name, policies, flow string
		typ                  *uint8
		want                 Verdict
	}{
		{"isolation does not deny a report", np("deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`), "shop/client 225.1.2.3 IGMP", octet(v2), Allow},
		{"nor a query", np("deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`), "203.0.113.1 shop/client IGMP", nil, Allow},
		{"nor does a rule for any traffic", acnp("egress: [{action: Drop}], ingress: [{action: Drop}]"), "shop/client 225.1.2.3 IGMP", octet(v2), Allow},
		{"a report of the type and group", acnp("egress: [{action: Drop, protocols: [{igmp: {igmpType: 0x16, groupAddress: 225.1.2.3}}]}]"), "shop/client 225.1.2.3 IGMP", octet(v2), Drop},
		{"of another group", acnp("egress: [{action: Drop, protocols: [{igmp: {igmpType: 0x16, groupAddress: 225.1.2.3}}]}]"), "shop/client 225.1.2.4 IGMP", octet(v2), Allow},
		{"of another type", acnp("egress: [{action: Drop, protocols: [{igmp: {igmpType: 0x16, groupAddress: 225.1.2.3}}]}]"), "shop/client 225.1.2.3 IGMP", octet(v3), Allow},
		{"every report", acnp("egress: [{action: Drop, protocols: [{igmp: {}}]}]"), "shop/client 225.1.2.4 IGMP", octet(v3), Drop},
		{"multicast is no IGMP", acnp("egress: [{action: Drop, protocols: [{igmp: {}}]}]"), "shop/client 225.1.2.4 UDP/5000", nil, Allow},
		{"a block is no rule for IGMP", acnp("egress: [{action: Drop, to: [{ipBlock: {cidr: 225.1.2.3/32}}]}]"), "shop/client 225.1.2.3 IGMP", octet(v2), Allow},
		{"but for multicast", acnp("egress: [{action: Drop, to: [{ipBlock: {cidr: 225.1.2.3/32}}]}]"), "shop/client 225.1.2.3 UDP/5000", nil, Drop},
		{"a query", acnp("ingress: [{action: Drop, protocols: [{igmp: {igmpType: 0x11, groupAddress: 224.0.0.1}}]}]"), "203.0.113.1 shop/client IGMP", nil, Drop},
		{"from the own node", acnp("ingress: [{action: Drop, protocols: [{igmp: {}}]}]"), "node:n1 shop/web IGMP", nil, Drop},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := connect(t, tc.flow)
			c.ICMPType = tc.typ
			r, err := load(t, cluster, tc.policies).Evaluate(c)
			if err != nil || r.Verdict != tc.want {
				t.Errorf("%s, %v; want %s", r.Verdict, err, tc.want)
			}
		})
	}
}
