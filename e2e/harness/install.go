package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A cluster with an Overlay is installed from the manifests, by kubectl apply -k,
// into a real API server in the fabric. What a kubelet would do is done here: the
// containers of the manifests' workloads are started with the flags that these
// have, as far as they do not name what is not there (addresses of Services,
// folders of nodes); tokens and the authority are put into their files; and Pods'
// networks are made by the CNI plugin, and their status written.

// weirNamespace is where the manifests install Weir.
const weirNamespace = "weir-system"

const webhookPort = 9743

// replicaAddress is where the i-th policy service listens, in the fabric.
func replicaAddress(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("198.18.0.%d", 2+i)) }

// policyAddresses are where the policy services listen.
func (c *Cluster) policyAddresses() string {
	address := servingAddress
	if c.Kube != nil {
		address = replicaAddress
	}
	var list []string
	for i := range c.replicas() {
		list = append(list, netip.AddrPortFrom(address(i), policydPort).String())
	}
	return strings.Join(list, ",")
}

// install starts the API server, and installs Weir's manifests into it.
func (c *Cluster) install(ctx context.Context) (err error) {
	for i := range c.cfg.Replicas {
		if err := c.Fabric.IP(ctx, fmt.Sprintf("addr add %s/24 dev fab0", replicaAddress(i))); err != nil {
			return err
		}
	}
	c.Kube, err = StartKube(ctx, KubeConfig{Bin: c.cfg.KubeBin, Dir: filepath.Join(c.Dir, "kube"), NS: c.Fabric, Address: fabric4, Log: c.cfg.Log})
	if err != nil {
		return err
	}
	if err := c.Kube.Install(ctx, c.cfg.Overlay); err != nil {
		return err
	}
	if err := c.Kube.ApplyUpstreamCRDs(ctx); err != nil {
		return err
	}
	if err := c.SetServing(ctx); err != nil {
		return err
	}
	c.objects, err = newObjects(c.Kube)
	return err
}

// SetServing says, in place of the controller that does it on a cluster, which
// policy services the Service of the manifests leads to: all but some.
func (c *Cluster) SetServing(ctx context.Context, but ...int) error {
	var endpoints []string
	for i := range c.cfg.Replicas {
		if !slices.Contains(but, i) {
			endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], conditions: {ready: true}}", replicaAddress(i)))
		}
	}
	slice := fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: weir-policyd-1, namespace: %s, labels: {kubernetes.io/service-name: weir-policyd}}\naddressType: IPv4\n"+
		"ports: [{name: grpc, port: %d, protocol: TCP}, {name: webhook, port: %d, protocol: TCP}]\nendpoints: [%s]\n", weirNamespace, policydPort, webhookPort, strings.Join(endpoints, ", "))
	_, err := c.Kube.Kubectl(ctx, []byte(slice), "apply", "-f", "-")
	return err
}

// Install applies an overlay, and waits until its kinds are served.
func (k *Kube) Install(ctx context.Context, overlay string) error {
	if err := k.ApplyWeirCRDs(ctx); err != nil {
		return err
	}
	_, err := k.Kubectl(ctx, nil, "apply", "--server-side", "--force-conflicts", "-k", overlay)
	return err
}

// container is a container of a workload as the manifests have it.
type container struct {
	args []string          // As written: with $(NAME).
	env  map[string]string // But for what a node or a Pod adds.
}

// containerOf reads a container back from the API server.
func (c *Cluster) containerOf(ctx context.Context, resource, name, containerName string) (container, error) {
	o, err := c.objects.api.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: resource}).Namespace(weirNamespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return container{}, err
	}
	raw, _, err := unstructured.NestedMap(o.Object, "spec", "template", "spec")
	if err != nil {
		return container{}, err
	}
	spec := &corev1.PodSpec{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw, spec); err != nil {
		return container{}, err
	}
	for _, found := range spec.Containers {
		if found.Name != containerName {
			continue
		}
		out := container{args: found.Args, env: make(map[string]string)}
		for _, e := range found.Env {
			if e.ValueFrom == nil {
				out.env[e.Name] = e.Value
			}
		}
		return out, nil
	}
	return container{}, fmt.Errorf("%s %s has no container %s", resource, name, containerName)
}

// expand is the container's command line: $(NAME) replaced by its environment and
// what is given, and values that name what is not there by what is.
func (k container) expand(env map[string]string, replace ...string) []string {
	var pairs []string
	for _, e := range []map[string]string{env, k.env} {
		for name, value := range e {
			pairs = append(pairs, "$("+name+")", value)
		}
	}
	vars, values := strings.NewReplacer(pairs...), strings.NewReplacer(replace...)
	var out []string
	for _, a := range k.args {
		out = append(out, values.Replace(vars.Replace(a)))
	}
	return out
}

// startInstalled starts the services of the manifests, with their identities.
func (c *Cluster) startInstalled(ctx context.Context) error {
	policyd, err := c.containerOf(ctx, "deployments", "weir-policyd", "policyd")
	if err != nil {
		return err
	}
	token, err := c.Kube.TokenFor(ctx, weirNamespace, "weir-policyd", "--duration", "24h")
	if err != nil {
		return err
	}
	kubeconfig, err := c.Kube.Kubeconfig("weir-policyd", token)
	if err != nil {
		return err
	}
	for i := range c.cfg.Replicas {
		own := replicaAddress(i).String()
		args := policyd.expand(map[string]string{"POD_NAMESPACE": weirNamespace, "HOST_IP": own, "WEIR_POLICYD_SERVICE_HOST": own},
			"--listen=:", "--listen="+own+":", "--webhook-listen=:", "--webhook-listen="+own+":", "weir-policyd-replicas.weir-system.svc:9740", c.policyAddresses(), ",localhost", ",localhost,"+fabric4.String())
		args = append(args, "--kubeconfig", kubeconfig)
		p := c.process(c.Fabric, fmt.Sprintf("policyd-%d", i), "weir-policyd", append(args, c.cfg.PolicydArgs...))
		if err := p.Start(); err != nil {
			return err
		}
		c.Policyds = append(c.Policyds, p)
	}
	c.Policyd = c.Policyds[0]
	auditd, err := c.containerOf(ctx, "statefulsets", "weir-auditd", "auditd")
	if err != nil {
		return err
	}
	secrets := filepath.Join(c.Dir, "auditd-secrets")
	if err := c.project(ctx, secrets, "weir-auditd", "weir-auditd-0", ""); err != nil {
		return err
	}
	args := auditd.expand(nil, "--listen=:", "--listen="+fabric4.String()+":", "--metrics-listen=:", "--metrics-listen="+fabric4.String()+":",
		"weir-policyd.weir-system.svc:9740", c.policyAddresses(), "/var/run/secrets/weir", secrets,
		"/var/lib/weir-audit/nodes", filepath.Join(c.Dir, "audit"), "/var/lib/weir-audit/events", filepath.Join(c.Dir, "eventlog"))
	args = append(args, "--json-file", c.JSONLog(), "--log-timezone", "UTC")
	c.Auditd = c.process(c.Fabric, "auditd", "weir-auditd", append(args, c.cfg.AuditdArgs...))
	return c.Auditd.Start()
}

// shimArgs are the flags of a node's shim by the manifests.
func (n *Node) shimArgs(ctx context.Context) ([]string, error) {
	c := n.cluster
	shim, err := c.containerOf(ctx, "daemonsets", "weir-shim", "shim")
	if err != nil {
		return nil, err
	}
	secrets := filepath.Join(n.dir, "secrets")
	if err := c.project(ctx, secrets, "weir-shim", "weir-shim-"+n.Name, n.Name); err != nil {
		return nil, err
	}
	network := c.cfg.PodNetwork
	if network == "" {
		network = "off"
	}
	args := shim.expand(map[string]string{"NODE_NAME": n.Name, "HOST_IP": "127.0.0.1", "COLLECTOR": c.AuditAddress(), "DATAPATH": "netdev", "POD_NETWORK": network},
		"[$(WEIR_POLICYD_SERVICE_HOST)]:9740", c.policyAddresses(), "/var/run/secrets/weir", secrets, "=/var/lib/weir", "="+filepath.Join(n.dir, "state"),
		"/run/weir/", filepath.Join(n.dir, "run")+"/", "/etc/cni/net.d", n.CNIConf(), "/opt/cni/bin", n.CNIBin())
	return append(args, "--ovs-rundir", n.OVS.Dir), nil
}

// project puts into a folder what the kubelet would project for a Pod of Weir's:
// its token, and the authority as soon as there is one.
func (c *Cluster) project(ctx context.Context, dir, account, pod, node string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	on := ""
	if node != "" {
		on = "nodeName: " + node + ", "
	}
	text := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s}, spec: {%shostNetwork: true, serviceAccountName: %s, containers: [{name: c, image: none}]}}",
		pod, weirNamespace, on, account)
	if _, err := c.Kube.Kubectl(ctx, []byte(text), "apply", "-f", "-"); err != nil {
		return err
	}
	token, err := c.Kube.TokenFor(ctx, weirNamespace, account, "--audience", "weir", "--duration", "24h", "--bound-object-kind", "Pod", "--bound-object-name", pod)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.projections = append(c.projections, dir)
	c.mu.Unlock()
	return os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600)
}

// projectAuthority waits for the authority and puts it where it is awaited.
func (c *Cluster) projectAuthority(ctx context.Context) error {
	var ca string
	err := Eventually(ctx, 30*time.Second, func() (err error) {
		ca, err = c.Kube.Kubectl(ctx, nil, "get", "configmap", "weir-ca", "-n", weirNamespace, "-o", `jsonpath={.data.ca\.crt}`)
		if err == nil && ca == "" {
			err = errors.New("the policy service has published no certificate authority")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, c.Policyd.Tail())
	}
	for _, dir := range append(slices.Clone(c.projections), c.PKI("")) {
		if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(ca), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// enrollOperator gets the operator's certificate as the README says.
func (c *Cluster) enrollOperator(ctx context.Context) error {
	token, err := c.Kube.TokenFor(ctx, weirNamespace, "weir-operator", "--audience", "weir")
	if err != nil {
		return err
	}
	return Eventually(ctx, 20*time.Second, func() error {
		cmd := c.Fabric.Command(ctx, filepath.Join(c.cfg.Bin, "weirctl"), "pki", "enroll", "--server", netip.AddrPortFrom(replicaAddress(0), policydPort).String(),
			"--ca", c.PKI("ca.crt"), "--token-file", "-", "--dir", c.PKI(""))
		cmd.Stdin = bytes.NewReader([]byte(token))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("weirctl pki enroll: %w: %s", err, out)
		}
		return nil
	})
}

// Weirctl runs weirctl as an operator, against the i-th policy service.
func (c *Cluster) Weirctl(i int, args ...string) (string, error) {
	address := netip.AddrPortFrom(replicaAddress(i), policydPort).String()
	cmd := c.Fabric.Command(context.Background(), filepath.Join(c.cfg.Bin, "weirctl"), slices.Concat(args, []string{"--server", address}, c.OperatorArgs())...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("weirctl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// PolicydMetrics are the metrics of the i-th policy service.
func (c *Cluster) PolicydMetrics(i int) (string, error) {
	return get(c.Fabric, netip.AddrPortFrom(replicaAddress(i), 9750).String(), "/metrics")
}
