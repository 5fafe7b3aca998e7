package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weirnet/weir/e2e/harness"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	policyd "github.com/weirnet/weir/services/policy"
)

// kubectl runs kubectl, which has to go well.
func kubectl(t testing.TB, k *harness.Kube, stdin string, args ...string) string {
	t.Helper()
	out, err := k.Kubectl(t.Context(), []byte(stdin), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// reader is a policy service that reads an API server, in this process.
type reader struct {
	policyv1.InspectionServiceClient
	t testing.TB
}

func readServer(t testing.TB, kubeconfig string) reader {
	t.Helper()
	s, err := policyd.New(policyd.Config{Kubernetes: true, Kubeconfig: kubeconfig, Listen: "127.0.0.1:0",
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: testWriter{t}})})
	if err != nil {
		t.Fatal(err)
	}
	return follow(t, s)
}

// follow runs a policy service until the test ends.
func follow(t testing.TB, s *policyd.Service) reader {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("policy service: %v", err)
		}
	})
	return reader{policyv1.NewInspectionServiceClient(conn), t}
}

// testWriter logs to a test until that has ended.
type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// policies waits until these are the policies, with how many Pods each applies
// to, as KIND NAMESPACE/NAME PODS.
func (r reader) policies(want ...string) {
	r.t.Helper()
	err := harness.Eventually(r.t.Context(), 20*time.Second, func() error {
		resp, err := r.ListPolicies(r.t.Context(), &policyv1.ListPoliciesRequest{})
		if err != nil {
			return err
		}
		var got []string
		for _, p := range resp.GetPolicies() {
			kind := strings.TrimPrefix(p.GetRef().GetKind().String(), "POLICY_KIND_")
			got = append(got, fmt.Sprintf("%s %s/%s %d", kind, p.GetRef().GetNamespace(), p.GetRef().GetName(), p.GetEndpoints()))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("policies are %q, want %q", got, want)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

const sourceObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}}
`

const sourceACNP = `
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  priority: 5
  appliedTo: [{podSelector: {matchLabels: {app: web}}}]
  ingress: [{action: Drop, from: [{podSelector: {}}]}]
`

// TestKubernetesSource reads a real API server: what is there, what changes,
// kinds that come and go, and a server that goes away.
func TestKubernetesSource(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	k := startKube(t, harness.KubeConfig{})
	kubectl(t, k, sourceObjects, "apply", "-f", "-")
	r := readServer(t, k.AdminKubeconfig())
	r.policies("K8S_NETWORK_POLICY shop/deny 0") // The Pod has no address yet.
	kubectl(t, k, "", "patch", "pod", "-n", "shop", "web", "--subresource=status", "-p", `{"status": {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}}`)
	r.policies("K8S_NETWORK_POLICY shop/deny 1")

	// Kinds that were absent at the start are taken up when they appear, with
	// the static tiers.
	if err := k.ApplyWeirCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	kubectl(t, k, sourceACNP, "apply", "-f", "-")
	r.policies("ANTREA_CLUSTER_NETWORK_POLICY /guard 1", "K8S_NETWORK_POLICY shop/deny 1")
	static := func() error {
		out, err := k.Kubectl(t.Context(), nil, "get", "tiers", "--sort-by=.spec.priority", "-o", "jsonpath={range .items[*]}{.metadata.name}={.spec.priority} {end}")
		if want := "emergency=50 securityops=100 networkops=150 platform=200 application=250 baseline=253 "; err == nil && out != want {
			err = fmt.Errorf("tiers are %q, want %q", out, want)
		}
		return err
	}
	if err := harness.Eventually(t.Context(), 20*time.Second, static); err != nil {
		t.Fatal(err)
	}

	// While the server is away, everything stays; afterwards changes count again.
	k.StopServer()
	r.policies("ANTREA_CLUSTER_NETWORK_POLICY /guard 1", "K8S_NETWORK_POLICY shop/deny 1")
	if err := k.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	kubectl(t, k, "", "delete", "networkpolicy", "-n", "shop", "deny")
	r.policies("ANTREA_CLUSTER_NETWORK_POLICY /guard 1")

	// A kind that is taken away takes its objects with it, and may come back.
	kubectl(t, k, "", "delete", "crd", "clusternetworkpolicies.crd.antrea.io")
	r.policies()
	if err := k.ApplyWeirCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	kubectl(t, k, sourceACNP, "apply", "-f", "-")
	r.policies("ANTREA_CLUSTER_NETWORK_POLICY /guard 1")
}

const antreaCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: antreaagentinfos.crd.antrea.io}
spec:
  group: crd.antrea.io
  scope: Cluster
  names: {kind: AntreaAgentInfo, plural: antreaagentinfos, singular: antreaagentinfo}
  versions: [{name: v1beta1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`

// TestAntreaIsNotTakenOverUnasked starts where Antrea was installed.
func TestAntreaIsNotTakenOverUnasked(t *testing.T) {
	t.Parallel()
	requireDataplane(t)
	k := startKube(t, harness.KubeConfig{})
	kubectl(t, k, antreaCRD, "apply", "-f", "-")
	if err := k.ApplyWeirCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg := policyd.Config{Kubernetes: true, Kubeconfig: k.AdminKubeconfig(), Listen: "127.0.0.1:0", Logger: hclog.NewNullLogger()}
	s, err := policyd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.Run(ctx); err == nil || !strings.Contains(err.Error(), "antreaagentinfos.crd.antrea.io") || !strings.Contains(err.Error(), "--take-over") {
		t.Errorf("it ends with %v", err)
	}
	kubectl(t, k, sourceObjects, "apply", "-f", "-")
	cfg.TakeOver = true
	if s, err = policyd.New(cfg); err != nil {
		t.Fatal(err)
	}
	follow(t, s).policies("K8S_NETWORK_POLICY shop/deny 0")
}
