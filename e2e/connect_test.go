package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/weirnet/weir/e2e/harness"
)

// TestWeirctlByKubeconfig: outside of the cluster's network, with nothing but a
// kubeconfig, weirctl comes to Weir through a real API server and a port-forward, and
// in a Pod, with nothing at all, by the Service. Its user sees what RBAC lets it: an
// administrator everything, by a client certificate, and who may view one Namespace
// that, by a token.
func TestWeirctlByKubeconfig(t *testing.T) {
	t.Parallel()
	in := install(t, "dev", listsOnly)
	in.startAll()
	kubelets := in.startKubelets() // Of the nodes that there are: nothing runs on the third.
	node, roots := in.thirdNode()
	kubectl(t, in.Kube, team("shop")+team("bank"), "apply", "-f", "-")
	for i, name := range []string{"shop", "bank"} {
		kubectl(t, in.Kube, "", "patch", "pod", name+"-pod", "-n", name, "--subresource=status", "-p", fmt.Sprintf(`{"status": {"phase": "Running", "podIP": "10.244.1.%[1]d", "podIPs": [{"ip": "10.244.1.%[1]d"}]}}`, 11+i))
	}
	in.reportDenials(in.collector, node, roots)
	outside, _, err := in.network.Host(t.Context())
	must(t, err)
	admin := &connector{in: in, ns: outside, kubeconfig: in.AdminKubeconfig()}
	admin.shows([]string{"node-1", "node-2"}, nil, "get", "nodes")
	admin.shows([]string{"shop-policy", "bank-policy"}, nil, "get", "policies")
	admin.shows([]string{"drop"}, nil, "explain", "--from", "bank/bank-pod", "--to", "shop/shop-pod", "--port", "80")
	admin.shows([]string{"shop-policy", "bank-policy"}, nil, "audit", "tail")
	admin.shows([]string{"received "}, nil, "audit", "stats")
	admin.tailGoesOn(kubelets)

	token, err := in.TokenFor(t.Context(), "shop", "viewer")
	must(t, err)
	path, err := in.Kubeconfig("viewer", token)
	must(t, err)
	viewer := &connector{in: in, ns: outside, kubeconfig: path}
	kubectl(t, in.Kube, bound("shop"), "apply", "-f", "-")
	viewer.needsRole()
	others := []string{"bank", "10.244.1.12"}
	viewer.shows([]string{"shop-policy"}, others, "get", "policies")
	viewer.shows([]string{"10.244.1.99", "shop-policy"}, others, "audit", "tail", "--changes")
	viewer.shows([]string{"drop", "shop-policy"}, []string{"bank"}, "explain", "--from", "10.244.1.12", "--to", "shop/shop-pod", "--port", "80")
	for _, args := range [][]string{{"get", "nodes"}, {"get", "policies", "-n", "bank"}, {"audit", "tail", "--namespace", "bank"}, {"audit", "stats"}} {
		if out, err := viewer.run(args...); err == nil || !strings.Contains(err.Error(), "PermissionDenied") {
			t.Errorf("weirctl %s: %s, %v", strings.Join(args, " "), out, err)
		}
	}
	in.insideOfPod(token)

	in.replicas[0].kill("policyd")
	for range 6 { // The order of Pods is another each time.
		admin.shows([]string{"node-2"}, nil, "get", "nodes")
	}
}

// startKubelets gives the nodes kubelets that know the Pods of Weir.
func (in *installation) startKubelets() (kubelets []*harness.Kubelet) {
	in.t.Helper()
	pods := make(map[string]*harness.NetNS)
	for _, p := range slices.Concat(in.replicas, in.shims, []*installedPod{in.collector}) {
		pods[p.object.Namespace+"/"+p.object.Name] = p.ns
	}
	for name, n := range in.nodes {
		kubectl(in.t, in.Kube, "", "patch", "node", name, "--subresource=status", "-p", fmt.Sprintf(`{"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": %d}}}}`, harness.KubeletPort))
		k, err := in.StartKubelet(n.ns, n.address, func(namespace, name string) (*harness.NetNS, error) {
			if ns := pods[namespace+"/"+name]; ns != nil {
				return ns, nil
			}
			return nil, fmt.Errorf("no Pod %s/%s is on this node", namespace, name)
		})
		must(in.t, err)
		in.t.Cleanup(k.Stop)
		kubelets = append(kubelets, k)
	}
	return kubelets
}

// kill ends a container at once, and nobody starts it again.
func (p *installedPod) kill(container string) { p.in.running[p.object.Name+"/"+container].Kill() }

// connector runs weirctl in a network of its own, with a kubeconfig.
type connector struct {
	in         *installation
	ns         *harness.NetNS
	kubeconfig string
}

func (c *connector) command(args ...string) *exec.Cmd {
	cmd := c.ns.Command(c.in.t.Context(), filepath.Join(bin, "weirctl"), args...)
	cmd.Env = append(cmd.Environ(), "KUBECONFIG="+c.kubeconfig)
	return cmd
}

func (c *connector) run(args ...string) (string, error) {
	out, err := c.command(args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("weirctl %s: %s", strings.Join(args, " "), exit.Stderr)
	}
	return string(out), err
}

// shows runs a command that says some things and others not, at the latest when Weir
// has read all.
func (c *connector) shows(want, not []string, args ...string) {
	c.in.t.Helper()
	must(c.in.t, harness.Eventually(c.in.t.Context(), 30*time.Second, func() error {
		out, err := c.run(args...)
		for _, part := range want {
			if err == nil && !strings.Contains(out, part) {
				err = fmt.Errorf("weirctl %s does not say %q:\n%s", strings.Join(args, " "), part, out)
			}
		}
		for _, part := range not {
			if strings.Contains(out, part) {
				c.in.t.Errorf("weirctl %s says %q:\n%s", strings.Join(args, " "), part, out)
			}
		}
		return err
	}))
}

// tailGoesOn breaks the way of a stream between two changes that it shows.
func (c *connector) tailGoesOn(kubelets []*harness.Kubelet) {
	t := c.in.t
	t.Helper()
	path := c.in.path("tail")
	out, err := os.Create(path)
	must(t, err)
	defer out.Close()
	complaints, err := os.Create(path + "-complaints")
	must(t, err)
	defer complaints.Close()
	cmd := c.command("audit", "tail", "--follow", "--changes", "-o", "json")
	cmd.Stdout, cmd.Stderr = out, complaints
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	told := func(name string) {
		t.Helper()
		kubectl(t, c.in.Kube, policy(name, "{podSelector: {}}"), "apply", "-f", "-")
		must(t, harness.Eventually(t.Context(), 30*time.Second, func() error {
			text, err := os.ReadFile(path)
			if err == nil && !strings.Contains(string(text), `"name":"`+name+`"`) {
				said, _ := os.ReadFile(path + "-complaints")
				err = fmt.Errorf("%s is not among\n%s\n%s", name, text, said)
			}
			return err
		}))
	}
	told("before")
	dropped := 0
	for _, k := range kubelets {
		dropped += k.Drop()
	}
	if dropped == 0 {
		t.Error("nothing was forwarded")
	}
	told("after")
	text, err := os.ReadFile(path)
	must(t, err)
	seen := make(map[uint64]bool)
	for line := range strings.Lines(string(text)) {
		var rec struct{ Cursor uint64 }
		must(t, json.Unmarshal([]byte(line), &rec))
		if seen[rec.Cursor] {
			t.Errorf("record %d came twice", rec.Cursor)
		}
		seen[rec.Cursor] = true
	}
	if said, _ := os.ReadFile(path + "-complaints"); !strings.Contains(string(said), "going on behind cursor") {
		t.Errorf("the loss is told by %q", said)
	}
}

// needsRole: a user who may do nothing with Weir's Namespace needs all of the Role's
// permissions, and uses them all.
func (c *connector) needsRole() {
	t := c.in.t
	t.Helper()
	refused := func(parts ...string) {
		t.Helper()
		must(t, harness.Eventually(t.Context(), 20*time.Second, func() error {
			_, err := c.run("get", "policies")
			for _, part := range append(parts, "is forbidden", "Role weir-connect of Namespace weir-system permits it") {
				if err == nil || !strings.Contains(err.Error(), part) {
					return fmt.Errorf("%q is missing: %v", part, err)
				}
			}
			return nil
		}))
	}
	refused(`certificate authority: configmaps "weir-ca"`)
	kubectl(t, c.in.Kube, "", "create", "rolebinding", "viewer", "-n", weirNamespace, "--role", "weir-connect", "--serviceaccount", "shop:viewer")
	c.shows([]string{"shop-policy"}, nil, "get", "policies")
	var role rbacv1.Role
	c.in.get(&role, "role", "weir-connect", "-n", weirNamespace)
	var used []permission
	c.in.eachRequest(func(r apiRequest) {
		if r.User.Username == viewersName && r.ObjectRef != nil && r.ResponseStatus.Code < 300 { // 101: a WebSocket.
			used = append(used, r.permission())
		}
	})
	for _, p := range finest(role.Rules, weirNamespace) {
		if p.resource == "pods/portforward" && p.verb == "create" {
			continue // Asked for beside get, which the record has not.
		}
		if !slices.ContainsFunc(used, p.covers) {
			t.Errorf("the Role weir-connect may %s, and nobody does: %v", p, used)
		}
	}
	for i, complaint := range []string{"certificate authority: configmaps", "find the Pods of Service weir-system/weir-policyd: endpointslices", "port-forward to Pod weir-system/weir-policyd-"} {
		kubectl(t, c.in.Kube, "", "patch", "role", "weir-connect", "-n", weirNamespace, "--type=json", "-p", fmt.Sprintf(`[{"op": "remove", "path": "/rules/%d"}]`, i))
		refused(complaint)
		rules, err := json.Marshal(role.Rules)
		must(t, err)
		kubectl(t, c.in.Kube, "", "patch", "role", "weir-connect", "-n", weirNamespace, "--type=merge", "-p", `{"rules": `+string(rules)+`}`)
	}
}

// insideOfPod runs weirctl in a Pod: there is no kubeconfig, no kubelet is asked, and
// the Service has a name.
func (in *installation) insideOfPod(token string) {
	in.t.Helper()
	account := in.path("viewer")
	must(in.t, os.MkdirAll(account, 0o755))
	must(in.t, os.WriteFile(filepath.Join(account, "token"), []byte(token), 0o644))
	ca, err := os.ReadFile(in.CAFile())
	must(in.t, err)
	must(in.t, os.WriteFile(filepath.Join(account, "ca.crt"), ca, 0o644))
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "weirctl", Command: []string{"/usr/local/bin/weirctl", "get", "policies"},
		SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{}}}}}}
	pod.Name = "weirctl"
	run := harness.Container{Pod: pod, Name: "weirctl", NS: in.nodes["node-2"].ns, Bin: bin, Dir: in.path("c", "weirctl"), Env: in.env, Hosts: in.hosts(),
		Mounts: map[string]string{"/var/run/secrets/kubernetes.io/serviceaccount": account}}
	p, err := run.Process()
	must(in.t, err)
	must(in.t, p.Start())
	must(in.t, harness.Eventually(in.t.Context(), 20*time.Second, func() error { return running(p) }))
	if said := p.Tail(); !strings.Contains(said, "shop-policy") || strings.Contains(said, "bank") {
		in.t.Errorf("in a Pod weirctl says %s", said)
	}
}
