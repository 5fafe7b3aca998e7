package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate/conformance"
)

// startInstalled is a cluster with an API server, installed from an overlay.
func startInstalled(t testing.TB, cfg harness.Config) *harness.Cluster {
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

// nodeObjects are the Node objects of a cluster, with prefixes for Pods.
func nodeObjects(c *harness.Cluster) string {
	var b strings.Builder
	for i, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		via := c.Nodes[name].Vias()
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: 10.77.%d.0/24, podCIDRs: [10.77.%d.0/24, 'fd77:%d::/64']}\n"+
			"status: {addresses: [{type: InternalIP, address: %s}, {type: InternalIP, address: '%s'}]}\n", name, i+1, i+1, i+1, via[0], via[1])
	}
	return b.String()
}

// guests is an installed cluster whose Pods get their networks by weir-cni,
// with addresses of their nodes, and reach each other by VXLAN.
type guests struct {
	*harness.Cluster
	t    *testing.T
	pods []harness.PodConfig
	text strings.Builder
}

func (c *guests) namespace(name, more string) {
	fmt.Fprintf(&c.text, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s%s}\n", name, more)
}

// pod adds a Pod NAMESPACE/NAME that answers on TCP ports.
func (c *guests) pod(name, node, labels string, ports ...uint16) {
	namespace, name, _ := strings.Cut(name, "/")
	p := harness.PodConfig{Namespace: namespace, Name: name, Node: node}
	for _, port := range ports {
		p.Serves = append(p.Serves, harness.Service{Protocol: api.ProtocolTCP, Port: port})
	}
	c.pods = append(c.pods, p)
	fmt.Fprintf(&c.text, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {%s}}\nspec: {nodeName: %s, containers: [{name: c, image: none}]}\n",
		name, namespace, labels, node)
}

// apply has the API server hold what was added, and waits until it is in force.
func (c *guests) apply() {
	c.t.Helper()
	must(c.t, c.SetPods(c.t.Context(), c.pods))
	must(c.t, c.SetManifests(c.t.Context(), []byte(nodeObjects(c.Cluster)+c.text.String())))
}

// kubectl runs kubectl and waits until what it did is in force.
func (c *guests) kubectl(stdin string, args ...string) {
	c.t.Helper()
	kubectl(c.t, c.Kube, stdin, args...)
	must(c.t, c.Settled(c.t.Context()))
}

// connection is one from Pod to Pod, and what has to become of it.
type connection struct {
	from, to string
	port     uint16
	want     string
}

// expect makes connections of both families, all at once.
func (c *guests) expect(connections ...connection) {
	c.t.Helper()
	var probes []harness.Probe
	var of []connection
	for _, p := range connections {
		for _, ip := range c.Pod(p.to).IPs {
			probes = append(probes, harness.Probe{From: c.Pod(p.from), To: ip, Protocol: api.ProtocolTCP, Port: p.port, Answered: p.want != harness.Drop})
			of = append(of, p)
		}
	}
	got, err := harness.Run(c.t.Context(), probes)
	must(c.t, err)
	for i, p := range of {
		if got[i] != p.want {
			c.t.Errorf("%s to %s at %s, port %d: %s, want %s", p.from, p.to, probes[i].To, p.port, got[i], p.want)
		}
	}
}

// TestInstalledCluster installs the production overlay: two policy services,
// three nodes, the collector, with the identities of the manifests.
func TestInstalledCluster(t *testing.T) {
	t.Parallel()
	c := &guests{t: t, Cluster: startInstalled(t, harness.Config{PodNetwork: "vxlan", Nodes: []harness.NodeConfig{{Name: "node-1"}, {Name: "node-2"}, {Name: "node-3"}}})}
	must(t, c.SetManifests(t.Context(), []byte(nodeObjects(c.Cluster))))
	for _, n := range c.Nodes {
		must(t, harness.Eventually(t.Context(), 20*time.Second, func() error { _, err := n.CNIConfig(); return err }))
	}
	c.namespace("default", `, annotations: {networkpolicy.antrea.io/enable-logging: "true"}`)
	c.namespace("monitoring", "")
	c.pod("default/nginx", "node-1", "app: nginx", 80)
	c.pod("default/backend", "node-1", "app: backend", 8080)
	c.pod("default/mysql", "node-2", "app: mysql", 3306)
	c.pod("default/frontend", "node-2", "app: frontend", 80)
	c.pod("default/api-server", "node-3", "app: api-server", 80)
	c.pod("default/tester", "node-3", "env: test", 9100)
	c.pod("monitoring/scraper", "node-1", "app: scraper", 80)
	c.apply()
	t.Run("the examples of the guides, by kubectl", func(t *testing.T) { c.t = t; c.examples() })
	t.Run("Namespaces and Pods that come after a policy", func(t *testing.T) { c.t = t; c.newPods() })
	t.Run("what goes away and comes back", func(t *testing.T) { c.t = t; c.outages() })
}

// networkPolicyExamples are like those that operators' guides have; those of
// WEIR_EXAMPLES_DIR are added.
var networkPolicyExamples = []string{
	"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: shut}, spec: {podSelector: {matchLabels: {app: nginx}}, policyTypes: [Ingress]}}",
	"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: backend}, spec: {podSelector: {matchLabels: {app: backend}}, " +
		"ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 8080}]}]}}",
}

// examples creates policies one by one, and holds packets to what the policy
// service says, and the record to what was denied.
func (c *guests) examples() {
	texts := slices.Clone(networkPolicyExamples)
	if dir := os.Getenv("WEIR_EXAMPLES_DIR"); dir != "" {
		files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		must(c.t, err)
		for _, f := range files {
			text, err := os.ReadFile(f)
			must(c.t, err)
			if strings.Contains(string(text), "networking.k8s.io/v1") {
				texts = append(texts, string(text))
			}
		}
	}
	for _, text := range texts {
		c.kubectl(text, "create", "-n", "default", "-f", "-")
		var probes []connection
		denied := 0
		for _, p := range []connection{
			{"default/frontend", "default/backend", 8080, ""}, {"default/api-server", "default/backend", 8080, ""}, {"default/api-server", "default/mysql", 3306, ""},
			{"default/nginx", "default/mysql", 3306, ""}, {"default/frontend", "default/nginx", 80, ""}, {"default/tester", "default/frontend", 80, ""},
			{"monitoring/scraper", "default/tester", 9100, ""}, {"default/nginx", "monitoring/scraper", 80, ""}, {"monitoring/scraper", "default/nginx", 80, ""},
		} {
			said, err := c.Inspection().Explain(c.t.Context(), &policyv1.ExplainRequest{From: p.from, To: p.to, Port: uint32(p.port)})
			must(c.t, err)
			p.want = harness.Allow
			if said.GetVerdict() != policyv1.Verdict_VERDICT_ALLOW {
				p.want = harness.Drop
				denied++
			}
			probes = append(probes, p)
		}
		if denied == 0 {
			c.t.Errorf("the probes do not tell the policy\n%s", text)
		}
		c.expect(probes...)
		for _, p := range probes {
			if p.want == harness.Drop {
				c.onRecord(p)
			}
		}
		c.kubectl(text, "delete", "-n", "default", "-f", "-")
	}
}

// onRecord waits for a line of np.log about a denial, by the node of either end.
func (c *guests) onRecord(p connection) {
	c.t.Helper()
	from, to := c.Pod(p.from).Addr(false).String()+" ", c.Pod(p.to).Addr(false).String()+" "
	must(c.t, harness.Eventually(c.t.Context(), 10*time.Second, func() error {
		var all strings.Builder
		for name := range c.Nodes {
			text, err := os.ReadFile(c.NPLog(name))
			if err != nil && !os.IsNotExist(err) {
				return err
			}
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, "DefaultRule K8sNetworkPolicy") && strings.Contains(line, from) && strings.Contains(line, to) {
					return nil
				}
			}
			all.Write(text)
		}
		return fmt.Errorf("np.log has no line of %s to %s:\n%s", from, to, all.String())
	}))
}

const guard = `
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard-nginx}
spec:
  priority: 1
  tier: securityops
  appliedTo: [{podSelector: {matchLabels: {app: nginx}}}]
  ingress: [{action: Drop, from: [{podSelector: {matchLabels: {app: attacker}}}], enableLogging: true}]
`

// newPods: a policy for the whole cluster covers Namespaces and Pods that are
// made after it, from their first packet, and that can be seen.
func (c *guests) newPods() {
	c.kubectl(guard, "create", "-f", "-")
	c.namespace("later", "")
	c.pod("later/nginx", "node-2", "app: nginx", 80)
	c.pod("later/attacker", "node-3", "app: attacker", 80)
	c.pod("later/friend", "node-3", "app: friend", 80)
	c.apply()
	c.expect(connection{"later/attacker", "later/nginx", 80, harness.Drop}, connection{"later/attacker", "default/nginx", 80, harness.Drop},
		connection{"later/friend", "later/nginx", 80, harness.Allow})
	// What is in force where is seen the same at either replica.
	for i := range c.Policyds {
		must(c.t, harness.Eventually(c.t.Context(), 10*time.Second, func() error {
			out, err := c.Weirctl(i, "get", "nodes", "-o", "json")
			if err != nil {
				return err
			}
			for _, node := range []string{"node-1", "node-2", "node-3"} {
				if n := gjson(out, node); n == nil || n["inSync"] != true || n["connected"] != true || n["lastError"] != "" || n["digest"] == "" {
					return fmt.Errorf("replica %d says of %s: %v", i, node, n)
				}
			}
			if out, err = c.Weirctl(i, "get", "policies"); err == nil && !regexp.MustCompile(`guard-nginx .* 2/2 `).MatchString(out) {
				err = fmt.Errorf("replica %d says of the policy:\n%s", i, out)
			}
			return err
		}))
		must(c.t, harness.Eventually(c.t.Context(), 10*time.Second, func() error {
			text, err := c.PolicydMetrics(i)
			if err == nil && (strings.Contains(text, "weir_policy_node_behind_seconds{") || !strings.Contains(text, "weir_policy_nodes_connected")) {
				err = fmt.Errorf("the metrics of replica %d do not say that no node is behind", i)
			}
			return err
		}))
	}
}

// gjson is the node of a name in what weirctl get nodes says.
func gjson(text, node string) map[string]any {
	var list struct{ Nodes []map[string]any }
	if json.Unmarshal([]byte(text), &list) != nil {
		return nil
	}
	for _, n := range list.Nodes {
		if n["name"] == node {
			return n
		}
	}
	return nil
}

var outage = flag.Duration("outage", time.Minute, "how long the API server is away in TestInstalledCluster")

// outages: the API server is away, policy services and shims are rolled one by
// one, while packets are sent and, where there is an API server, Pods change
// their labels: no verdict is wrong. With nothing changing, nobody who is in sync
// is sent anything.
func (c *guests) outages() {
	ctx, stop := context.WithCancel(c.t.Context())
	defer stop()
	var sent, wrong atomic.Int64
	var load sync.WaitGroup
	var last atomic.Value
	for _, p := range []struct{ from, want string }{{"later/attacker", harness.Drop}, {"later/friend", harness.Allow}} {
		load.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for ; ctx.Err() == nil; <-pace.C {
				got, err := harness.Run(ctx, []harness.Probe{{From: c.Pod(p.from), To: c.Pod("later/nginx").IPs[0], Protocol: api.ProtocolTCP, Port: 80, Answered: p.want != harness.Drop}})
				if err != nil || ctx.Err() != nil {
					continue
				}
				if sent.Add(1); got[0] != p.want {
					wrong.Add(1)
					last.Store(fmt.Sprintf("%s at %s: %s", p.from, time.Now().UTC().Format(time.TimeOnly), got[0]))
				}
			}
		})
	}
	check := func(what string) {
		c.t.Helper()
		c.t.Logf("%s: %d connections", what, sent.Swap(0))
		if n := wrong.Swap(0); n > 0 {
			c.t.Errorf("%s: %d verdicts are wrong, the last: %v", what, n, last.Load())
		}
	}
	// Pods of which a policy takes notice, one after the other.
	changing, halt := context.WithCancel(ctx)
	var changes sync.WaitGroup
	changes.Go(func() {
		for i := 0; changing.Err() == nil; i++ {
			_, _ = c.Kube.Kubectl(changing, nil, "label", "pod", "-n", "default", "tester", "--overwrite", "app="+[]string{"attacker", "none"}[i%2])
		}
	})
	c.Kube.StopServer()
	select {
	case <-ctx.Done():
	case <-time.After(*outage):
	}
	check("no API server")
	must(c.t, c.Kube.StartServer(ctx))
	roll := func() {
		for _, p := range c.Policyds {
			p.Terminate()
			must(c.t, p.Start())
			must(c.t, c.InSync(ctx))
		}
		for _, name := range []string{"node-1", "node-2", "node-3"} {
			n := c.Nodes[name]
			n.Shim.Terminate()
			must(c.t, n.Shim.Start())
			must(c.t, c.InSync(ctx))
		}
	}
	roll()
	check("rolled under load")
	halt()
	changes.Wait()
	must(c.t, c.Settled(ctx))
	before := make(map[string]int)
	for name, n := range c.Nodes {
		before[name] = len(n.Shim.Lines())
	}
	roll()
	must(c.t, c.Settled(ctx))
	check("rolled with nothing changing")
	for name, n := range c.Nodes {
		resumed := 0
		for _, line := range n.Shim.Lines()[before[name]:] {
			switch {
			case strings.Contains(line, "in sync: server="):
				resumed++
			case strings.Contains(line, "state is not the service's present one"):
				c.t.Errorf("%s was sent what it had: %s", name, line)
			}
		}
		if resumed == 0 {
			c.t.Errorf("%s did not resume in sync:\n%s", name, n.Shim.Tail())
		}
	}
	stop()
	load.Wait()
}

var throughAPI = flag.Int("conformance.through-api", 30, "how many cases TestConformanceThroughAPIServer runs, evenly chosen; 0: all")

// Cases through an API server: how many share a cluster, and how many clusters
// there are at once; each has an API server.
const casesPerInstallation, installationsAtOnce = 30, 2

// TestConformanceThroughAPIServer runs cases of Kubernetes NetworkPolicies on
// installed clusters of three nodes: objects by the API server, Pods by weir-cni. That
// is all that differs from TestConformance, so a part of them shows it; make soak runs all.
func TestConformanceThroughAPIServer(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	report := conformance.NewReport(conformance.ModeDatapath)
	cases := slices.DeleteFunc(loadCases(report), func(c conformance.Case) bool { return !onlyNetworkPolicies(&c) })
	if len(cases) < 10 {
		t.Fatalf("%d cases are of Kubernetes NetworkPolicies alone", len(cases))
	}
	if n := *throughAPI; n > 0 && n < len(cases) {
		var some []conformance.Case
		for i := range n {
			some = append(some, cases[i*len(cases)/n])
		}
		cases = some
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
	if c.Schema == conformance.SchemaAdmission || throughServices(c) {
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
