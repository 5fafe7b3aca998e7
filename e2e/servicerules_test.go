package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// toService is an egress rule of the client for Services of Namespace default.
func toService(action string, names ...string) string {
	var list []string
	for _, n := range names {
		list = append(list, "{name: "+n+", namespace: default}")
	}
	return fmt.Sprintf("{name: %s-it, action: %s, enableLogging: true, toServices: [%s]}", strings.ToLower(action), action, strings.Join(list, ", "))
}

// through is a probe to a Service.
func through(from *harness.Host, number int, v6 bool, p api.Protocol, port, source uint16) harness.Probe {
	return harness.Probe{From: from, To: vip(number, v6), Protocol: p, Port: port, SourcePort: source}
}

// recordOf waits for the record of a source port.
func recordOf(t *testing.T, c *harness.Cluster, port int) (found record) {
	t.Helper()
	must(t, harness.Eventually(t.Context(), 10*time.Second, func() error {
		for _, r := range records(t, c) {
			if r.Packet.SourcePort == port {
				found = r
				return nil
			}
		}
		return fmt.Errorf("no record of source port %d", port)
	}))
	return found
}

// logged waits for a line of a node's np.log that has a text in it.
func logged(t *testing.T, c *harness.Cluster, node, text string) {
	t.Helper()
	must(t, harness.Eventually(t.Context(), 10*time.Second, func() error {
		lines, err := os.ReadFile(c.NPLog(node))
		if err == nil && !strings.Contains(string(lines), text) {
			err = fmt.Errorf("np.log of %s has no line with %q:\n%s", node, text, lines)
		}
		return err
	}))
}

// What toServices drops or refuses is on record with the endpoint that it would
// have had; another Service of the same Pods, and the Pods themselves, are open.
func TestToServicesIsOnRecord(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/remote")
	client := c.Pod("default/client")
	services := clusterService("web", 1, webPorts) + endpoints("web", webTargets, entry("default/remote", ready)) +
		clusterService("twin", 2, webPorts) + endpoints("twin", webTargets, entry("default/remote", ready))
	source := uint16(20000)
	for _, action := range []string{"Drop", "Reject"} {
		set(t, c, smallObjects(false), services, ordered("keep-off", "client", "egress: ["+toService(action, "web")+"]"))
		for f, v6 := range families {
			for p, port := range map[api.Protocol]uint16{api.ProtocolTCP: 80, api.ProtocolUDP: 53} {
				source++
				outcomes(t, []harness.Probe{through(client, 1, v6, p, port, source), through(client, 2, v6, p, port, 0)}, strings.ToLower(action), harness.Allow)
				r := recordOf(t, c, int(source)).Packet
				if r.Direction != "egress" || !strings.EqualFold(r.Action, action) || r.Table != "AntreaPolicyEgressRule" || r.AppliedTo != "default/client" ||
					r.SourceIP != client.Addr(v6).String() || r.DestinationIP != c.Pod("default/remote").Addr(v6).String() || r.DestinationPort != 8080 ||
					!slices.Equal(r.Policies, []string{"AntreaClusterNetworkPolicy:keep-off"}) {
					t.Errorf("%s %s %s: %+v", action, f, p, r)
				}
				logged(t, c, "node-1", fmt.Sprintf("AntreaPolicyEgressRule AntreaClusterNetworkPolicy:keep-off %s-it Egress %s ", strings.ToLower(action), action))
				logged(t, c, "node-1", fmt.Sprintf(" default/client %s %d %s 8080 %s ", r.SourceIP, source, r.DestinationIP, p))
			}
		}
		direct := harness.Probe{From: client, To: ip("10.9.2.1"), Protocol: api.ProtocolTCP, Port: 8080}
		outcomes(t, []harness.Probe{direct}, harness.Allow)
	}
}

// A refusal at the endpoint, or on the way to it, comes to the client from the
// Service, as a closed port's would.
func TestRefusalsComeFromTheService(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	named(t, c, 8080, "default/nginx", "default/remote")
	client := c.Pod("default/client")
	for _, server := range []string{"default/nginx", "default/remote"} {
		services := clusterService("web", 1, webPorts) + endpoints("web", webTargets, entry(server, ready)) +
			clusterService("assoc", 2, "ports: [{name: s, port: 3868, protocol: SCTP, targetPort: 80}]") + endpoints("assoc", "{name: s, protocol: SCTP, port: 80}", entry(server, ready))
		for where, text := range map[string]string{"at the endpoint": ordered("shut", strings.TrimPrefix(server, "default/"), rejectIn), "at the client": ordered("shut", "client", rejectOut)} {
			set(t, c, smallObjects(false), services, text)
			for f, v6 := range families {
				what := fmt.Sprintf("%s, %s, %s", server, where, f)
				if _, err := dial(t, client, "tcp", netip.AddrPortFrom(vip(1, v6), 80)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: a connection ends by %v", what, err)
				}
				conn, err := dial(t, client, "udp", netip.AddrPortFrom(vip(1, v6), 53))
				must(t, err)
				_, _, err = ask(conn)
				if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) {
					t.Errorf("%s: datagrams end by %v", what, err)
				}
				outcomes(t, []harness.Probe{{From: client, To: vip(2, v6), Protocol: api.ProtocolSCTP, Port: 3868, Answered: true}}, harness.Reject)
			}
		}
	}
}

// With no more let out than DNS, names are asked for by way of the cluster's DNS
// Service, and what else is tried is on record.
func TestDNSServiceUnderBlockedEgress(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t)
	pods := append(smallPodConfigs(), harness.PodConfig{Namespace: "kube-system", Name: "dns", Node: "node-2", IPs: []netip.Addr{ip("10.9.2.53"), ip("fd09:2::53")}})
	must(t, c.SetPods(t.Context(), pods))
	named(t, c, 53, "kube-system/dns")
	client := c.Pod("default/client")
	dns := "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}\n" +
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}\nspec: {nodeName: node-2, containers: [{name: c, image: c}]}\nstatus: {podIPs: [{ip: 10.9.2.53}, {ip: 'fd09:2::53'}]}\n" +
		clusterService("kube-dns, namespace: kube-system", 10, "selector: {k8s-app: kube-dns}, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]")
	source := uint16(21000)
	for _, tc := range []struct {
		name, policies string
		tcp            string // What becomes of TCP.
	}{
		{"let out by its own policy", policy("block-egress", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]}"), harness.Drop},
		{"let out by a tier, and in", policy("shut", "{podSelector: {}, policyTypes: [Ingress, Egress]}") +
			policy("shut, namespace: kube-system", "{podSelector: {}, policyTypes: [Ingress, Egress]}") + `---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: dns}
spec:
  tier: securityops
  priority: 5
  appliedTo: [{podSelector: {}}]
  ingress: [{name: in, action: Allow, enableLogging: true, ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]
  egress: [{name: out, action: Allow, to: [{podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]
`, harness.Allow},
	} {
		set(t, c, smallObjects(true), dns, tc.policies)
		for f, v6 := range families {
			source += 10
			to := netip.AddrPortFrom(vip(10, v6), 53)
			for range 5 {
				if name, _ := served(t, client, "udp", to); name != "kube-system/dns" {
					t.Errorf("%s %s: %q answers", tc.name, f, name)
				}
			}
			web := harness.Probe{From: client, To: c.Pod("default/nginx").Addr(v6), Protocol: api.ProtocolTCP, Port: 80, SourcePort: source}
			outcomes(t, []harness.Probe{web, through(client, 10, v6, api.ProtocolTCP, 53, source+1)}, harness.Drop, tc.tcp)
			logged(t, c, "node-1", fmt.Sprintf("EgressDefaultRule K8sNetworkPolicy <nil> Egress Drop <nil> default/client %s %d %s 80 TCP", client.Addr(v6), source, web.To))
			if tc.tcp == harness.Drop {
				logged(t, c, "node-1", fmt.Sprintf("EgressDefaultRule K8sNetworkPolicy <nil> Egress Drop <nil> default/client %s %d %s 53 TCP", client.Addr(v6), source+1, c.Pod("kube-system/dns").Addr(v6)))
			} else {
				logged(t, c, "node-2", fmt.Sprintf("AntreaPolicyIngressRule AntreaClusterNetworkPolicy:dns in Ingress Allow 32500 kube-system/dns %s %d %s 53 TCP", client.Addr(v6), source+1, c.Pod("kube-system/dns").Addr(v6)))
			}
		}
	}
}

// A shim that is to leave Services to others balances none, and says of rules with
// toServices that they match nothing.
func TestServicesLeftToOthers(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	c := smallCluster(t, "--service-lb=false")
	named(t, c, 8080, "default/nginx")
	client := c.Pod("default/client")
	objects := smallObjects(false) + clusterService("web", 1, webPorts) + endpoints("web", webTargets, entry("default/nginx", ready))
	set(t, c, objects)
	for _, v6 := range families {
		outcomes(t, []harness.Probe{through(client, 1, v6, api.ProtocolTCP, 80, 0), {From: client, To: c.Pod("default/nginx").Addr(v6), Protocol: api.ProtocolTCP, Port: 8080}}, harness.Drop, harness.Allow)
	}
	for _, n := range c.Nodes {
		for _, table := range []string{"table=7", "table=8"} {
			if got := flows(t, n, table); len(got) > 1 {
				t.Errorf("%s balances: %v", n.Name, got)
			}
		}
	}
	must(t, c.WriteManifests(t.Context(), []byte(objects+ordered("keep-off", "client", "egress: ["+toService("Drop", "web")+"]"))))
	eventually(t, func() error {
		resp, err := c.Inspection().ListNodes(t.Context(), &policyv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, n := range resp.GetNodes() {
			if n.GetName() == "node-1" && !n.GetInSync() && strings.Contains(n.GetLastError(), "--service-lb=false") {
				return nil
			}
		}
		return fmt.Errorf("nodes: %v", resp.GetNodes())
	})
}
