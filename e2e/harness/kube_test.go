package harness

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// startKube is an API server that ends with the test.
func startKube(t *testing.T, cfg KubeConfig) *Kube {
	t.Helper()
	var err error
	if cfg.Bin, err = BuildKube(t.Context()); err != nil {
		if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cfg.Dir, cfg.Log = t.TempDir(), t.Logf
	k, err := StartKube(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	return k
}

func kubectl(t *testing.T, k *Kube, stdin string, args ...string) string {
	t.Helper()
	out, err := k.Kubectl(t.Context(), []byte(stdin), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// On the host: who a caller is and may do, and a server that goes away and
// comes back with what it had.
func TestKubeOnTheHost(t *testing.T) {
	k := startKube(t, KubeConfig{})
	kubectl(t, k, `
apiVersion: v1
kind: Namespace
metadata: {name: own}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: own}
---
apiVersion: v1
kind: Pod
metadata: {name: pod, namespace: own}
spec: {serviceAccountName: reader, containers: [{name: c, image: none}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: own}]
`, "apply", "-f", "-")
	token, err := k.TokenFor(t.Context(), "own", "reader", "--duration", "10m", "--bound-object-kind", "Pod", "--bound-object-name", "pod")
	if err != nil {
		t.Fatal(err)
	}
	reader, err := k.Kubeconfig("reader", token)
	if err != nil {
		t.Fatal(err)
	}
	pods := func() (string, error) {
		return k.KubectlAs(t.Context(), reader, nil, "get", "pods", "--namespace", "own", "--output", "name")
	}
	if out, err := pods(); err != nil || out != "pod/pod\n" {
		t.Errorf("the reader sees %q, %v", out, err)
	}
	if out, err := k.KubectlAs(t.Context(), reader, nil, "delete", "pod", "pod", "--namespace", "own"); err == nil || !strings.Contains(err.Error(), "cannot delete") {
		t.Errorf("the reader deletes: %s, %v", out, err)
	}
	foreign, err := k.TokenFor(t.Context(), "own", "reader", "--audience", "weir")
	if err != nil {
		t.Fatal(err)
	}
	if path, err := k.Kubeconfig("foreign", foreign); err != nil {
		t.Error(err)
	} else if out, err := k.KubectlAs(t.Context(), path, nil, "get", "pods"); err == nil {
		t.Errorf("a token for another audience gets %s", out)
	}

	k.StopServer()
	if out, err := k.Kubectl(t.Context(), nil, "get", "namespaces"); err == nil {
		t.Errorf("a server that was stopped answers %s", out)
	}
	if err := k.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := pods(); err != nil || out != "pod/pod\n" {
		t.Errorf("after it came back the reader sees %q, %v", out, err)
	}
	if out := kubectl(t, k, "", "version", "--output", "yaml"); strings.Count(out, "gitVersion: v1.") != 2 {
		t.Errorf("client and server are of the versions\n%s", out)
	}
	if err := k.ApplyUpstreamCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	kubectl(t, k, "", "get", "anp,banp,cnp")
}

// In a namespace: the host does not reach it, client-go and kubectl do.
func TestKubeInANamespace(t *testing.T) {
	if why := Missing(); why != "" {
		if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	sweep(t.Context())
	ns, err := newNetNS(t.Context(), fmt.Sprintf("%s%d-kube", namePrefix, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.remove(); err != nil {
			t.Error(err)
		}
	})
	address := netip.MustParseAddr("fd18::7")
	if err := ns.IP(t.Context(), "addr add "+address.String()+"/128 dev lo nodad"); err != nil {
		t.Fatal(err)
	}
	k := startKube(t, KubeConfig{NS: ns, Address: address, ServerArgs: []string{"--v=1"}})
	if want := "https://[fd18::7]:6443"; k.URL() != want {
		t.Errorf("it serves at %s, want %s", k.URL(), want)
	}
	cfg, err := k.Config()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) < 4 {
		t.Errorf("client-go sees %d Namespaces, %v", len(list.Items), err)
	}
}

// Processes that need one folder at once: one holds the lock, the others wait.
func TestLockFile(t *testing.T) {
	path := t.TempDir() + "/lock"
	unlock, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockFile(ctx, path); err == nil {
		t.Error("two hold the lock")
	}
	unlock()
	again, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
