package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
)

// webService is a Service as a user writes it: its addresses are the API server's
// choice.
const webService = `
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: %s}, %s}
`

// slicesOf are what the endpoint slice controller makes of the Service web whose
// Pods are these, each in a condition; of none there are slices that are empty.
func (c *guests) slicesOf(pods map[string]string) string {
	ports := "ports: []"
	if len(pods) > 0 {
		ports = "ports: [" + webTargets + "]"
	}
	var b strings.Builder
	for f, v6 := range families {
		fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-%s
  labels: {kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}
addressType: %s
%s
endpoints:
`, strings.ToLower(f), f, ports)
		for _, name := range slices.Sorted(maps.Keys(pods)) {
			fmt.Fprintf(&b, "- {addresses: ['%s'], conditions: {%s}, nodeName: %s, targetRef: {kind: Pod, namespace: default, name: %s, uid: %s}}\n",
				c.Pod("default/"+name).Addr(v6), pods[name], c.nodeOf(name), name, c.uid(name))
		}
	}
	return b.String()
}

func (c *guests) nodeOf(pod string) string {
	i := slices.IndexFunc(c.pods, func(p harness.PodConfig) bool { return p.Name == pod })
	return c.pods[i].Node
}

func (c *guests) uid(pod string) string {
	return kubectl(c.t, c.Kube, "", "get", "pod", "-n", "default", pod, "-o", "jsonpath={.metadata.uid}")
}

// vips are the addresses that the API server gave the Service web, IPv4 first.
func (c *guests) vips() (out [2]netip.Addr) {
	c.t.Helper()
	list := strings.Fields(kubectl(c.t, c.Kube, "", "get", "service", "-n", "default", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"))
	if len(list) != 2 {
		c.t.Fatalf("the Service has the addresses %q", list)
	}
	for _, text := range list {
		a := ip(text)
		if a.Is4() {
			out[0] = a
		} else {
			out[1] = a
		}
	}
	return out
}

// What a slice's endpoint may be, as the controller writes it.
const (
	isReady = "ready: true, serving: true, terminating: false"
	isGoing = "ready: false, serving: true, terminating: true"
	isNot   = "ready: false, serving: false, terminating: false"
)

// onlyWeb lets the client reach the Service and nothing else, and offBackends
// keeps it from the Pods that the Service selects.
var (
	onlyWeb     = ordered("only-web", "client", "egress: ["+toService("Allow", "web")+", {action: Drop}]")
	offBackends = ordered("off-backends", "client", "egress: [{action: Drop, to: [{group: backends}]}]") +
		"---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterGroup\nmetadata: {name: backends}\nspec: {serviceReference: {name: web, namespace: default}}\n"
)

// TestServicesThroughAPIServer has Services and EndpointSlices in an API server,
// as a cluster's controllers write them, and follows their changes with packets.
func TestServicesThroughAPIServer(t *testing.T) {
	t.Parallel()
	c := &guests{t: t, Cluster: startInstalled(t, harness.Config{PodNetwork: "vxlan", Nodes: []harness.NodeConfig{{Name: "node-1"}, {Name: "node-2"}}})}
	must(t, c.SetManifests(t.Context(), []byte(nodeObjects(c.Cluster))))
	for _, n := range c.Nodes {
		must(t, harness.Eventually(t.Context(), 20*time.Second, func() error { _, err := n.CNIConfig(); return err }))
	}
	c.namespace("default", "")
	c.pod("default/client", "node-1", "app: client")
	c.pod("default/near", "node-1", "app: web")
	c.pod("default/far", "node-2", "app: web")
	c.pod("default/spare", "node-2", "app: spare")
	c.apply()
	named(t, c.Cluster, 8080, "default/near", "default/far", "default/spare")

	type conditions = map[string]string
	for _, tc := range []struct {
		name      string
		selector  string
		endpoints conditions
		policies  string
		servers   string // Pods that serve; none: see otherwise.
		otherwise string // What becomes of connections to the Service.
		direct    conditions
	}{
		{"both Pods", "web", conditions{"near": isReady, "far": isReady}, "", "far near", "", conditions{"near": harness.Allow, "far": harness.Allow, "spare": harness.Allow}},
		{"one is about to go", "web", conditions{"near": isGoing, "far": isReady}, "", "far", "", nil},
		{"one has gone", "web", conditions{"far": isReady}, "", "far", "", nil},
		{"it is back, and the other fails", "web", conditions{"near": isReady, "far": isNot}, "", "near", "", nil},
		{"nobody", "web", nil, "", "", harness.Reject, conditions{"near": harness.Allow}},
		{"the Service alone is let out", "web", conditions{"near": isReady, "far": isReady}, onlyWeb, "far near", "", conditions{"near": harness.Drop, "far": harness.Drop, "spare": harness.Drop}},
		{"the Pods of its selector are shut off", "web", conditions{"near": isReady, "far": isReady}, offBackends, "", harness.Drop, conditions{"near": harness.Drop, "far": harness.Drop, "spare": harness.Allow}},
		{"the selector changes, and the slices not yet", "spare", conditions{"near": isReady, "far": isReady}, offBackends, "far near", "", conditions{"near": harness.Allow, "far": harness.Allow, "spare": harness.Drop}},
		{"the slices follow", "spare", conditions{"spare": isReady}, offBackends, "", harness.Drop, conditions{"near": harness.Allow, "far": harness.Allow, "spare": harness.Drop}},
		{"the policy goes", "spare", conditions{"spare": isReady}, "", "spare", "", conditions{"near": harness.Allow, "spare": harness.Allow}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.t = t
			must(t, c.SetManifests(t.Context(), []byte(nodeObjects(c.Cluster)+c.text.String()+fmt.Sprintf(webService, tc.selector, webPorts)+c.slicesOf(tc.endpoints)+tc.policies)))
			for _, vip := range c.vips() {
				for network, port := range webNetworks {
					if tc.servers == "" {
						p := map[string]api.Protocol{"tcp": api.ProtocolTCP, "udp": api.ProtocolUDP}[network]
						outcomes(t, []harness.Probe{{From: c.Pod("default/client"), To: vip, Protocol: p, Port: port}}, tc.otherwise)
						continue
					}
					got := spreadOver(t, c.Pod("default/client"), network, netip.AddrPortFrom(vip, port), 16, len(strings.Fields(tc.servers)))
					if servers := strings.ReplaceAll(strings.Join(slices.Sorted(maps.Keys(got)), " "), "default/", ""); servers != tc.servers {
						t.Errorf("%s %s: connections were served by %v, want %s", network, vip, got, tc.servers)
					}
				}
			}
			var direct []connection
			for name, want := range tc.direct {
				direct = append(direct, connection{"default/client", "default/" + name, 8080, want})
			}
			c.expect(direct...)
		})
	}
}
