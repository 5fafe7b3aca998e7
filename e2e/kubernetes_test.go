package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate/conformance"
)

// startInstalled is a cluster with an API server, installed from an overlay.
func startInstalled(t *testing.T, cfg harness.Config) *harness.Cluster {
	t.Helper()
	requireDataplane(t)
	kube, err := harness.BuildKube(t.Context())
	must(t, err)
	cfg.KubeBin = kube
	if cfg.Overlay == "" {
		cfg.Overlay = "../deploy/overlays/production"
	}
	return startCluster(t, cfg)
}

const clusterObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {networkpolicy.antrea.io/enable-logging: "true"}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: node-1, containers: [{name: c, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: node-2, containers: [{name: c, image: none}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: other}}
spec: {nodeName: node-3, containers: [{name: c, image: none}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`

// nodeObjects are the Node objects of a cluster, with prefixes for Pods.
func nodeObjects(c *harness.Cluster) string {
	var b strings.Builder
	for i, name := range []string{"node-1", "node-2", "node-3"} {
		via := c.Nodes[name].Vias()
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: 10.77.%d.0/24, podCIDRs: [10.77.%d.0/24, 'fd77:%d::/64']}\n"+
			"status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: '%s'}]}\n", name, i+1, i+1, i+1, via[0], via[1])
	}
	return b.String()
}

// TestInstalledCluster installs the production overlay: two policy services,
// three nodes, the collector, with the identities of the manifests; Pods get
// their networks by weir-cni, addresses of their nodes, and reach each other by
// VXLAN as far as the policy allows, from their first packet.
func TestInstalledCluster(t *testing.T) {
	c := startInstalled(t, harness.Config{PodNetwork: "vxlan", Nodes: []harness.NodeConfig{{Name: "node-1"}, {Name: "node-2"}, {Name: "node-3"}}})
	serves := []harness.Service{{Protocol: 6, Port: 80}}
	pod := func(name, node string) harness.PodConfig {
		return harness.PodConfig{Namespace: "shop", Name: name, Node: node, Serves: serves}
	}
	must(t, c.SetManifests(t.Context(), []byte(nodeObjects(c))))
	for _, n := range c.Nodes {
		must(t, harness.Eventually(t.Context(), 20*time.Second, func() error { _, err := n.CNIConfig(); return err }))
	}
	must(t, c.SetPods(t.Context(), []harness.PodConfig{pod("web", "node-1"), pod("client", "node-2"), pod("other", "node-3")}))
	must(t, c.SetManifests(t.Context(), []byte(nodeObjects(c)+"---\n"+clusterObjects)))
	web := c.Pod("shop/web")
	for _, ip := range web.IPs {
		for from, allowed := range map[string]bool{"client": true, "other": false} {
			outcomes, err := harness.Run(t.Context(), []harness.Probe{{From: c.Pod("shop/" + from), To: ip, Protocol: 6, Port: 80, Allowed: allowed}})
			must(t, err)
			if (outcomes[0] == harness.Allow) != allowed {
				t.Errorf("%s to %s: %v", from, ip, outcomes[0])
			}
		}
	}
	must(t, harness.Eventually(t.Context(), 10*time.Second, func() error {
		text, err := os.ReadFile(c.NPLog("node-1"))
		if err == nil && !strings.Contains(string(text), "IngressDefaultRule") {
			err = fmt.Errorf("np.log has no line of the denial:\n%s", text)
		}
		return err
	}))
}

// Cases through an API server: how many share a cluster, and how many clusters
// there are at once; each has an API server.
const casesPerInstallation, installationsAtOnce = 30, 2

// TestConformanceThroughAPIServer runs the cases of Kubernetes NetworkPolicies on
// installed clusters of three nodes: objects by the API server, Pods by weir-cni.
func TestConformanceThroughAPIServer(t *testing.T) {
	requireDataplane(t)
	report := conformance.NewReport(conformance.ModeDatapath)
	cases := slices.DeleteFunc(loadCases(report), func(c conformance.Case) bool { return !onlyNetworkPolicies(&c) })
	if len(cases) < 10 {
		t.Fatalf("%d cases are of Kubernetes NetworkPolicies alone", len(cases))
	}
	runAll(t, report, groupCases(report, cases, casesPerInstallation), installationsAtOnce, func(t *testing.T, nodes []harness.NodeConfig) *harness.Cluster {
		for i := len(nodes); i < 3; i++ {
			nodes = append(nodes, harness.NodeConfig{Name: fmt.Sprintf("spare-%d", i)})
		}
		return startInstalled(t, harness.Config{Nodes: nodes})
	})
	judge(t, report)
}

// onlyNetworkPolicies says that a case has policies of Kubernetes alone, and
// nothing that an API server without its controllers would not have.
func onlyNetworkPolicies(c *conformance.Case) bool {
	if c.Schema == conformance.SchemaAdmission {
		return false
	}
	for i := range c.Steps {
		world, err := conformance.NewWorld(c)
		if err != nil {
			return true // Running it says it better.
		}
		for j := range c.Steps[:i+1] {
			if _, err := world.Enter(&c.Steps[j]); err != nil {
				return true
			}
		}
		for _, o := range world.Objects() {
			switch o.Ref().Kind {
			case api.KindNamespace, api.KindNode, api.KindPod, api.KindNetworkPolicy, api.KindService:
			default:
				return false
			}
		}
	}
	return true
}
