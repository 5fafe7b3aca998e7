package api

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func admin(kind, name, spec string) string {
	return "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: " + kind + "\nmetadata: {name: " + name + ", annotations: {weir.dev/enable-logging: \"true\"}}\nspec: " + spec + "\n"
}

func TestDecodeAdminPolicies(t *testing.T) {
	m, err := Decode([]byte(admin("AdminNetworkPolicy", "a", `{priority: 7, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}},
  ingress: [{name: dns, action: Deny, from: [{namespaces: {matchLabels: {team: x}}}], ports: [{portNumber: {protocol: UDP, port: 53}}, {portRange: {start: 80, end: 90}}, {namedPort: http}]}],
  egress: [{action: Pass, to: [{networks: [10.0.0.0/8, "fd00::/8"]}, {pods: {namespaceSelector: {}, podSelector: {}}}, {nodes: {}}]}, {action: Allow, to: [{domainNames: ["*.Example.com."]}]}]}`) + "---\n" +
		admin("BaselineAdminNetworkPolicy", "default", `{subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.1.0.0/16]}]}]}`) + "---\n" +
		"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {tier: Baseline, priority: 3, subject: {namespaces: {}}, " +
		"ingress: [{action: Pass, from: [{namespaces: {}}]}], egress: [{name: r, action: Accept, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 5, end: 6}}}}, {sctp: {}}]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	selector := func(key, value string) Selector { return Selector{MatchLabels: Labels{{key, value}}} }
	web, all := selector("app", "web"), Selector{}
	block := func(s string) *IPBlock { return &IPBlock{CIDR: netip.MustParsePrefix(s)} }
	teamX := selector("team", "x")
	want := []*OrderedPolicy{
		{Kind: KindAdminNetworkPolicy, Name: "a", Priority: 7, AppliedTo: []Target{{NamespaceSelector: &all, PodSelector: &web}},
			Ingress: []OrderedRule{{Name: "dns", Action: ActionDrop, Log: true, Peers: []Peer{{NamespaceSelector: &teamX}},
				Traffic: []Traffic{{Protocol: ProtocolUDP, Port: 53}, {Protocol: ProtocolTCP, Port: 80, EndPort: 90},
					{Protocol: ProtocolTCP, PortName: "http"}, {Protocol: ProtocolUDP, PortName: "http"}, {Protocol: ProtocolSCTP, PortName: "http"}}}},
			Egress: []OrderedRule{{Action: ActionPass, Log: true, Peers: []Peer{{IPBlock: block("10.0.0.0/8")}, {IPBlock: block("fd00::/8")},
				{NamespaceSelector: &all, PodSelector: &all}, {NodeSelector: &all}}}, {Action: ActionAllow, Log: true, Peers: []Peer{{FQDN: "*.example.com"}}}}},
		{Kind: KindBaselineAdminNetworkPolicy, Name: "default", Baseline: true, AppliedTo: []Target{{NamespaceSelector: &all}},
			Egress: []OrderedRule{{Action: ActionDrop, Log: true, Peers: []Peer{{IPBlock: block("10.1.0.0/16")}}}}},
		{Kind: KindClusterNetworkPolicy, Name: "c", Priority: 3, Baseline: true, AppliedTo: []Target{{NamespaceSelector: &all}},
			Ingress: []OrderedRule{{Action: ActionAllow, Peers: []Peer{{NamespaceSelector: &all}}}}, // It passes to the default.
			Egress: []OrderedRule{{Name: "r", Action: ActionAllow, Peers: []Peer{{NodeSelector: &all}}, Traffic: []Traffic{
				{Protocol: ProtocolTCP, Port: 80}, {Protocol: ProtocolUDP, Port: 5, EndPort: 6}, {Protocol: ProtocolSCTP}}}}},
	}
	for i, w := range want {
		if diff := cmp.Diff(w, m.Objects[i].Object, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
			t.Errorf("object %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestDecodeRefusesAdminPolicies(t *testing.T) {
	rule := func(s string) string { return `{priority: 1, subject: {namespaces: {}}, egress: [` + s + `]}` }
	peer := `to: [{namespaces: {}}]`
	for _, tc := range []struct{ name, text, want string }{
		{"priority", admin("AdminNetworkPolicy", "a", `{priority: 1001, subject: {namespaces: {}}}`), "AdminNetworkPolicy a: spec.priority: 1001 is no priority"},
		{"no subject", admin("AdminNetworkPolicy", "a", `{priority: 1, subject: {}}`), "spec.subject: empty; write one of namespaces, pods"},
		{"two subjects", admin("AdminNetworkPolicy", "a", `{priority: 1, subject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}}`), "spec.subject: namespaces, pods stand together"},
		{"action", admin("AdminNetworkPolicy", "a", rule(`{action: Drop, `+peer+`}`)), `spec.egress[0].action: "Drop" is unknown; write Allow, Deny or Pass`},
		{"a baseline that passes", admin("BaselineAdminNetworkPolicy", "default", `{subject: {namespaces: {}}, egress: [{action: Pass, `+peer+`}]}`), "spec.egress[0].action: a baseline has nothing to pass to"},
		{"a second baseline", admin("BaselineAdminNetworkPolicy", "other", `{subject: {namespaces: {}}}`), `metadata.name: "other"; a cluster has one baseline`},
		{"no peers", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, to: []}`)), "spec.egress[0].to: missing"},
		{"an empty peer", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, to: [{}]}`)), "spec.egress[0].to[0]: empty; write one of domainNames, namespaces, networks, nodes, pods"},
		{"two in one peer", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, to: [{namespaces: {}, networks: [10.0.0.0/8]}]}`)), "spec.egress[0].to[0]: namespaces, networks stand together"},
		{"no networks", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, to: [{networks: []}]}`)), "spec.egress[0].to[0].networks: empty"},
		{"a bad network", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, to: [{networks: [10.0.0.1]}]}`)), `spec.egress[0].to[0].networks[0]: "10.0.0.1" is no CIDR`},
		{"a name for a port of nodes", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, to: [{nodes: {}}], ports: [{namedPort: http}]}`)), "spec.egress[0]: names a port, which nodes, networks and domainNames do not have"},
		{"no domain name", admin("AdminNetworkPolicy", "a", rule(`{action: Allow, to: [{domainNames: ["a*.com"]}]}`)), `spec.egress[0].to[0].domainNames[0]: "a*.com" is no domain name`},
		{"a port without protocol", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, `+peer+`, ports: [{portNumber: {port: 80}}]}`)), "spec.egress[0].ports[0].portNumber.protocol: missing"},
		{"a range that ends before it begins", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, `+peer+`, ports: [{portRange: {protocol: TCP, start: 80, end: 79}}]}`)), "spec.egress[0].ports[0].portRange.end: 79 is below start 80"},
		{"two in one port", admin("AdminNetworkPolicy", "a", rule(`{action: Deny, `+peer+`, ports: [{namedPort: http, portNumber: {protocol: TCP, port: 80}}]}`)), "spec.egress[0].ports[0]: namedPort, portNumber stand together"},
		{"a Namespace", strings.Replace(admin("AdminNetworkPolicy", "a", `{priority: 1, subject: {namespaces: {}}}`), "{name: a,", "{name: a, namespace: x,", 1), "metadata.namespace: AdminNetworkPolicy has no Namespace"},
		{"too many rules", admin("AdminNetworkPolicy", "a", rule(strings.Repeat(`{action: Deny, `+peer+`},`, 101))), "spec.egress: 101 entries; write at most 100"},
		{"another version", strings.Replace(admin("AdminNetworkPolicy", "a", `{}`), "v1alpha1", "v1alpha2", 1), "AdminNetworkPolicy is read; write policy.networking.k8s.io/v1alpha1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Decode([]byte(tc.text))
			var invalid *Invalid
			if !errors.As(err, &invalid) {
				t.Fatalf("error %v", err)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v\nwant %s", err, tc.want)
			}
		})
	}
}
