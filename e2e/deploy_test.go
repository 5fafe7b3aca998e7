package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/e2e/harness"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

const (
	weirNamespace = "weir-system"
)

// installation is an overlay that was applied to a real API server, whose Pods
// run as its manifests say: see harness.Container. What differs from a cluster:
//
//   - The network is the harness's. Service names are in /etc/hosts, and the
//     address of the policy service's is one of each node's own.
//   - The datapath is the userspace one: the kernel may have no other.
//   - The collector has an address of its own, and no Pod network.
type installation struct {
	*harness.Kube
	t               *testing.T
	dir             string
	network         *harness.Network
	nodes           map[string]*installedNode
	replicas, shims []*installedPod
	collector       *installedPod
	env             map[string]string // What the kubelet tells Pods of Services.
	running         map[string]*harness.Process
}

type installedNode struct {
	name    string
	ns      *harness.NetNS
	address netip.Addr
	folders map[string]string // By the path on the node.
}

// substitutes are the variables of manifests that are another's here.
var substitutes = map[string]string{"DATAPATH": "netdev"}

// install applies an overlay to an API server with some feature gates, and starts
// nothing of it.
func install(t *testing.T, overlay, gates string) *installation {
	t.Helper()
	requireDataplane(t)
	dir, err := os.MkdirTemp("", "weir-d-") // Short: sockets are in it.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	in := &installation{t: t, dir: dir, nodes: make(map[string]*installedNode), env: make(map[string]string), running: make(map[string]*harness.Process)}
	if in.network, err = harness.NewNetwork(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, in.network.Stop()) })
	t.Cleanup(in.stop)
	kubeBin, err := harness.BuildKube(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.Chmod(bin, 0o755)) // Not all containers are root's.
	must(t, os.WriteFile(in.path("audit.yaml"), []byte(auditPolicy), 0o644))
	if in.Kube, err = harness.StartKube(t.Context(), harness.KubeConfig{Bin: kubeBin, Dir: in.path("kube"), NS: in.network.NS, Address: in.network.Address, Log: t.Logf,
		ServerArgs: []string{"--audit-log-path", in.path("audit.log"), "--audit-policy-file", in.path("audit.yaml"), "--allow-privileged", "--feature-gates", gates}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Kube.Stop)
	must(t, in.ApplyUpstreamCRDs(t.Context()))
	in.apply(overlay)
	for _, name := range []string{"node-1", "node-2"} {
		in.addNode(name)
	}
	in.readServices()
	return in
}

func (in *installation) path(name ...string) string {
	return filepath.Join(append([]string{in.dir}, name...)...)
}

// apply applies an overlay, by the client and by the server, and each again,
// which changes nothing.
func (in *installation) apply(overlay string) {
	in.t.Helper()
	dir := filepath.Join("..", "deploy", "overlays", overlay)
	apply := func(flags ...string) []string {
		in.t.Helper()
		kubectl(in.t, in.Kube, "", append([]string{"apply", "-k", dir}, flags...)...)
		return strings.Split(kubectl(in.t, in.Kube, "", "get", "-k", dir, "-o",
			`jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.labels}{.spec}{.data}{.rules}{.subjects}{"\n"}{end}`), "\n")
	}
	first := apply()
	for _, flags := range [][]string{nil, {"--server-side", "--force-conflicts"}, {"--server-side"}} {
		for i, line := range apply(flags...) {
			// Who holds a Lease writes into it.
			if line != first[i] && !(strings.HasPrefix(line, "Lease ") && strings.HasPrefix(first[i], "Lease ")) {
				in.t.Errorf("applied again %q: what was\n%s\nis\n%s", flags, first[i], line)
			}
		}
	}
}

func (in *installation) addNode(name string) {
	in.t.Helper()
	ns, address, err := in.network.Host(in.t.Context())
	must(in.t, err)
	in.nodes[name] = &installedNode{name: name, ns: ns, address: address, folders: make(map[string]string)}
	serial := len(in.nodes)
	kubectl(in.t, in.Kube, fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: 10.244.%d.0/24, podCIDRs: [10.244.%d.0/24]}\n", name, serial, serial), "apply", "-f", "-")
	kubectl(in.t, in.Kube, "", "patch", "node", name, "--subresource=status", "-p", fmt.Sprintf(`{"status": {"addresses": [{"type": "InternalIP", "address": %q}]}}`, address))
}

// readServices makes what the kubelet tells of Services, and gives each node the
// address of the policy service's.
func (in *installation) readServices() {
	in.t.Helper()
	var list corev1.ServiceList
	in.get(&list, "services", "-n", weirNamespace)
	in.env["KUBERNETES_SERVICE_HOST"], in.env["KUBERNETES_SERVICE_PORT"] = in.network.Address.String(), "6443"
	for _, s := range list.Items {
		if s.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
		in.env[name+"_SERVICE_HOST"], in.env[name+"_SERVICE_PORT"] = s.Spec.ClusterIP, fmt.Sprint(s.Spec.Ports[0].Port)
		if s.Name == "weir-policyd" {
			for _, n := range in.nodes {
				must(in.t, n.ns.IP(in.t.Context(), "addr add "+s.Spec.ClusterIP+"/32 dev lo"))
			}
		}
	}
}

// get reads objects as the administrator.
func (in *installation) get(into any, args ...string) {
	in.t.Helper()
	if err := json.Unmarshal([]byte(kubectl(in.t, in.Kube, "", append([]string{"get", "-o", "json"}, args...)...)), into); err != nil {
		in.t.Fatal(err)
	}
}

// hosts is DNS: node-1 has the first replica of the policy service.
func (in *installation) hosts() string {
	text := "127.0.0.1 localhost\n::1 localhost\n" + in.network.Address.String() + " weir-auditd.weir-system.svc\n" +
		in.nodes["node-1"].address.String() + " weir-policyd.weir-system.svc\n"
	for _, n := range in.nodes {
		text += n.address.String() + " weir-policyd-replicas.weir-system.svc\n"
	}
	return text
}

// template is the Pod that a workload makes, with the volumes that it claims.
func (in *installation) template(workload string) corev1.PodTemplateSpec {
	in.t.Helper()
	var w struct {
		Spec struct {
			Template             corev1.PodTemplateSpec
			VolumeClaimTemplates []corev1.PersistentVolumeClaim
		}
	}
	in.get(&w, workload, "-n", weirNamespace)
	for _, c := range w.Spec.VolumeClaimTemplates {
		w.Spec.Template.Spec.Volumes = append(w.Spec.Template.Spec.Volumes, corev1.Volume{Name: c.Name,
			VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name}}})
	}
	return w.Spec.Template
}

// pod is a Pod of a workload on a node; it runs nowhere yet.
func (in *installation) pod(workload, name, node string) *installedPod {
	in.t.Helper()
	template := in.template(workload)
	object := corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	object.Name, object.Namespace, object.Spec.NodeName = name, weirNamespace, node
	for i := range object.Spec.Containers {
		for j, e := range object.Spec.Containers[i].Env {
			if value, is := substitutes[e.Name]; is {
				object.Spec.Containers[i].Env[j].Value = value
			}
		}
	}
	raw, err := json.Marshal(object)
	must(in.t, err)
	kubectl(in.t, in.Kube, string(raw), "create", "-f", "-")
	p := &installedPod{in: in, node: in.nodes[node], volumes: make(map[string]string), mounts: make(map[string]string)}
	in.get(&p.object, "pod", "-n", weirNamespace, name)
	p.ns, p.address = p.node.ns, p.node.address
	if !p.object.Spec.HostNetwork {
		p.ns, p.address = in.network.NS, in.network.Address
	}
	p.makeVolumes()
	return p
}

type installedPod struct {
	in              *installation
	object          corev1.Pod
	node            *installedNode
	ns              *harness.NetNS
	address         netip.Addr
	volumes, mounts map[string]string
	roots           string // Folder that is to have ca.crt of weir-ca. Empty: none.
}

// makeVolumes makes the Pod's folders, which the kubelet would.
func (p *installedPod) makeVolumes() {
	in := p.in
	in.t.Helper()
	folder := func(name ...string) string {
		dir := in.path(name...)
		must(in.t, os.MkdirAll(dir, 0o755))
		return dir
	}
	for _, v := range p.object.Spec.Volumes {
		switch {
		case v.HostPath != nil:
			if p.node.folders[v.HostPath.Path] == "" {
				if *v.HostPath.Type != corev1.HostPathDirectoryOrCreate {
					in.t.Fatalf("%s: the node has no folder %s", p.object.Name, v.HostPath.Path)
				}
				p.node.folders[v.HostPath.Path] = folder(p.node.name, fmt.Sprint(len(p.node.folders)))
			}
			p.volumes[v.Name] = p.node.folders[v.HostPath.Path]
		case v.EmptyDir != nil, v.PersistentVolumeClaim != nil:
			p.volumes[v.Name] = folder(p.object.Name, v.Name)
			p.own(p.volumes[v.Name])
		case v.Projected != nil:
			p.volumes[v.Name] = folder(p.object.Name, v.Name)
			p.project(p.volumes[v.Name], v.Projected.Sources)
		default:
			in.t.Fatalf("%s: volume %s is of a sort that is not known here", p.object.Name, v.Name)
		}
	}
	if auto := p.object.Spec.AutomountServiceAccountToken; auto == nil || *auto {
		dir := folder(p.object.Name, "service-account")
		must(in.t, os.WriteFile(filepath.Join(dir, "token"), []byte(p.token()), 0o644))
		ca, err := os.ReadFile(in.CAFile())
		must(in.t, err)
		must(in.t, os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o644))
		p.mounts["/var/run/secrets/kubernetes.io/serviceaccount"] = dir
	}
}

// own gives a folder to the Pod's group.
func (p *installedPod) own(dir string) {
	if s := p.object.Spec.SecurityContext; s != nil && s.FSGroup != nil {
		must(p.in.t, os.Chown(dir, 0, int(*s.FSGroup)))
		must(p.in.t, os.Chmod(dir, 0o2775))
	}
}

func (p *installedPod) token(flags ...string) string {
	p.in.t.Helper()
	token, err := p.in.TokenFor(p.in.t.Context(), weirNamespace, p.object.Spec.ServiceAccountName, append(flags, "--bound-object-kind", "Pod", "--bound-object-name", p.object.Name)...)
	must(p.in.t, err)
	return token
}

func (p *installedPod) project(dir string, sources []corev1.VolumeProjection) {
	for _, s := range sources {
		switch {
		case s.ServiceAccountToken != nil:
			t := s.ServiceAccountToken
			token := p.token("--audience", t.Audience, "--duration", (time.Duration(*t.ExpirationSeconds) * time.Second).String())
			must(p.in.t, os.WriteFile(filepath.Join(dir, t.Path), []byte(token), 0o644))
		case s.ConfigMap != nil && s.ConfigMap.Name == "weir-ca":
			p.roots = dir
		default:
			p.in.t.Fatalf("%s: a projection is of a sort that is not known here", p.object.Name)
		}
	}
}

// start starts a container of the Pod.
func (p *installedPod) start(container string) *harness.Process {
	p.in.t.Helper()
	name := p.object.Name + "/" + container
	c := harness.Container{Pod: &p.object, Name: container, NS: p.ns, Bin: bin, Dir: p.in.path("c", strings.ReplaceAll(name, "/", "-")),
		Volumes: p.volumes, Mounts: p.mounts, Env: maps.Clone(p.in.env), HostIP: p.node.address.String(), Hosts: p.in.hosts()}
	process, err := c.Process()
	must(p.in.t, err)
	must(p.in.t, process.Start())
	p.in.running[name] = process
	return process
}

func (in *installation) stop() {
	for name, p := range in.running {
		p.Kill()
		if in.t.Failed() {
			in.t.Logf("%s:\n%s", name, p.Tail())
		}
	}
}

// probe asks as a probe does.
func (p *installedPod) probe(container, path string) error {
	for _, c := range p.object.Spec.Containers {
		if c.Name != container {
			continue
		}
		probe := c.ReadinessProbe
		if path == "live" {
			probe = c.LivenessProbe
		}
		for _, port := range c.Ports {
			if port.Name == probe.HTTPGet.Port.String() {
				return p.in.ask(p.ns, fmt.Sprintf("http://%s%s", netip.AddrPortFrom(p.address, uint16(port.ContainerPort)), probe.HTTPGet.Path))
			}
		}
	}
	return fmt.Errorf("container %s has no such probe", container)
}

// ask is an error where the answer is not that all is well.
func (in *installation) ask(ns *harness.NetNS, url string) error {
	_, err := in.read(ns, url)
	return err
}

func (in *installation) read(ns *harness.NetNS, url string) (string, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = ns.Do(func() error { conn, err = new(net.Dialer).DialContext(ctx, network, address); return err })
			return conn, err
		}}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, resp.Status)
	}
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// ready waits until the container's probe says that it is.
func (p *installedPod) ready(container string) {
	p.in.t.Helper()
	if err := harness.Eventually(p.in.t.Context(), 40*time.Second, func() error { return p.probe(container, "ready") }); err != nil {
		p.in.t.Fatalf("%s/%s is not ready: %v\n%s", p.object.Name, container, err, p.in.running[p.object.Name+"/"+container].Tail())
	}
}

// giveRoots has a Pod see what the ConfigMap says by now.
func (p *installedPod) giveRoots() {
	p.in.t.Helper()
	must(p.in.t, os.WriteFile(filepath.Join(p.roots, "ca.crt"), []byte(p.in.roots()), 0o644))
}

func (in *installation) roots() string {
	in.t.Helper()
	ca := kubectl(in.t, in.Kube, "", "get", "configmap", "-n", weirNamespace, "weir-ca", "-o", `jsonpath={.data.ca\.crt}`)
	if !strings.HasPrefix(ca, "-----BEGIN CERTIFICATE") {
		in.t.Fatalf("weir-ca has %q", ca)
	}
	return ca
}

// startSwitch gives a node Open vSwitch: the overlay's, or one of its own.
func (in *installation) startSwitch(node *installedNode) {
	in.t.Helper()
	if _, err := in.Kubectl(in.t.Context(), nil, "get", "daemonset/weir-ovs", "-n", weirNamespace); err != nil {
		run := in.path(node.name, "ovs")
		must(in.t, os.MkdirAll(run, 0o755))
		ovs, err := ovstest.Start(in.t.Context(), ovstest.Config{NetNS: node.ns.Name, Dir: run})
		must(in.t, err)
		in.t.Cleanup(func() { must(in.t, ovs.Stop()) })
		node.folders["/run/openvswitch"] = run
		return
	}
	p := in.pod("daemonset/weir-ovs", "weir-ovs-"+node.name, node.name)
	for _, c := range p.object.Spec.InitContainers {
		if init := p.start(c.Name); harness.Eventually(in.t.Context(), 10*time.Second, func() error { return running(init) }) != nil {
			in.t.Fatalf("%s does not end", c.Name)
		} else if tail := init.Tail(); tail != "" {
			in.t.Fatalf("%s: %s", c.Name, tail)
		}
	}
	for _, c := range p.object.Spec.Containers {
		p.start(c.Name)
	}
}

func running(p *harness.Process) error {
	if p.Running() {
		return fmt.Errorf("%s still runs", p.Name)
	}
	return nil
}

// weirctl runs the command in the network of a replica of the policy service, whose
// loopback is what kubectl port-forward leads to, and weirctlAt in another's.
func (in *installation) weirctl(stdin string, args ...string) (string, error) {
	return in.weirctlAt(in.nodes["node-1"].ns, stdin, args...)
}

func (in *installation) weirctlAt(ns *harness.NetNS, stdin string, args ...string) (string, error) {
	cmd := ns.Command(in.t.Context(), filepath.Join(bin, "weirctl"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if exit, is := err.(*exec.ExitError); is {
		err = fmt.Errorf("weirctl %s: %s", strings.Join(args, " "), exit.Stderr)
	}
	return string(out), err
}

// operator gets an operator's certificate as the README says, and returns the
// flags that show it.
func (in *installation) operator() []string {
	in.t.Helper()
	ca, pki := in.path("ca.crt"), in.path("operator")
	must(in.t, os.WriteFile(ca, []byte(in.roots()), 0o644))
	token := kubectl(in.t, in.Kube, "", "create", "token", "weir-operator", "-n", weirNamespace, "--audience", "weir")
	for range 2 { // The second replaces what the first wrote.
		out, err := in.weirctl(token, "pki", "enroll", "--token-file", "-", "--ca", ca, "--dir", pki)
		must(in.t, err)
		if want := []string{filepath.Join(pki, "operator.crt"), filepath.Join(pki, "operator.key"), filepath.Join(pki, "ca.crt")}; !slices.Equal(strings.Fields(out), want) {
			in.t.Errorf("weirctl wrote %q", out)
		}
	}
	info, err := os.Stat(filepath.Join(pki, "operator.key"))
	must(in.t, err)
	if info.Mode().Perm() != 0o600 {
		in.t.Errorf("the operator's key is %v", info.Mode())
	}
	return []string{"--ca", filepath.Join(pki, "ca.crt"), "--cert", filepath.Join(pki, "operator.crt"), "--key", filepath.Join(pki, "operator.key")}
}
