package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// KubeConfig of a Kube.
type KubeConfig struct {
	Bin string // Folder of the binaries, see BuildKube.
	Dir string // Of everything that is written; made where it is missing, and left there by Stop.
	// NS is the namespace that it runs in, and Address its address there. Nil:
	// the host, with a port that is free; there Address is of the loopback.
	NS      *NetNS
	Address netip.Addr // The zero Addr: 127.0.0.1.
	// ServerArgs are added to kube-apiserver's flags.
	ServerArgs []string
	// Log gets a line about each step that takes long. Nil: none.
	Log func(format string, args ...any)
}

// Kube is a Kubernetes API server with its etcd, and nothing else of a cluster:
// nobody schedules or runs Pods, nobody makes the ServiceAccount default of a
// Namespace, EndpointSlices or a Pod's status, the aggregated roles (view, edit,
// admin) are empty, and a Namespace that is deleted stays Terminating for good:
// use fresh names. Pods need no ServiceAccount, and go with --grace-period=0
// --force.
type Kube struct {
	Etcd, Server *Process

	cfg     KubeConfig
	address netip.AddrPort
	reserve int // Socket that keeps the port on the host; -1 for none.
}

// kubeService is the cluster IP of the Service kubernetes.
var kubeService = netip.MustParseAddr("10.96.0.1")

const kubePort = 6443 // In a namespace, where every port is free.

// StartKube starts an API server and waits until it is ready. The caller stops
// it, whatever happens afterwards.
func StartKube(ctx context.Context, cfg KubeConfig) (k *Kube, err error) {
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	if !cfg.Address.IsValid() {
		cfg.Address = netip.MustParseAddr("127.0.0.1")
	}
	k = &Kube{cfg: cfg, reserve: -1}
	defer func() {
		if err != nil {
			k.Stop()
			k = nil
		}
	}()
	if k.cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return k, err
	}
	if err := os.MkdirAll(k.path("pki"), 0o755); err != nil {
		return k, err
	}
	if err := k.choosePort(); err != nil {
		return k, err
	}
	if err := makeKubePKI(k.path("pki"), cfg.Address); err != nil {
		return k, err
	}
	if err := k.writeAdminKubeconfig(); err != nil {
		return k, err
	}
	k.Etcd, k.Server = k.process("etcd", etcdArgs), k.process("kube-apiserver", append(k.serverArgs(), cfg.ServerArgs...))
	if err := k.Etcd.Start(); err != nil {
		return k, err
	}
	start := time.Now()
	if err := k.StartServer(ctx); err != nil {
		return k, err
	}
	cfg.Log("kube-apiserver serves at %s after %v", k.URL(), time.Since(start).Round(100*time.Millisecond))
	return k, nil
}

// Stop ends the processes.
func (k *Kube) Stop() {
	for _, p := range []*Process{k.Server, k.Etcd} {
		if p != nil {
			p.Kill()
		}
	}
	if k.reserve >= 0 {
		unix.Close(k.reserve)
		k.reserve = -1
	}
}

// StopServer takes kube-apiserver away at once, with every connection to it.
func (k *Kube) StopServer() { k.Server.Kill() }

// StartServer brings kube-apiserver back, at the same address and with the same
// data, and waits until it is ready.
func (k *Kube) StartServer(ctx context.Context) error {
	if err := k.Server.Start(); err != nil {
		return err
	}
	return k.Ready(ctx, time.Minute)
}

// Ready waits until the server serves, with its roles, the Namespaces that are
// always there and the Service kubernetes.
func (k *Kube) Ready(ctx context.Context, limit time.Duration) error {
	gone := false
	err := Eventually(ctx, limit, func() error {
		for _, p := range []*Process{k.Etcd, k.Server} {
			if gone = !p.Running(); gone {
				return nil
			}
		}
		if _, err := k.Kubectl(ctx, nil, "get", "--raw", "/readyz"); err != nil {
			return err
		}
		_, err := k.Kubectl(ctx, nil, "get", "namespace/default", "namespace/kube-system", "namespace/kube-public", "namespace/kube-node-lease", "service/kubernetes")
		return err
	})
	switch {
	case gone:
		return fmt.Errorf("etcd or kube-apiserver ended\n%s\n%s", k.Etcd.Tail(), k.Server.Tail())
	case err != nil:
		return fmt.Errorf("kube-apiserver is not ready: %w\n%s", err, k.Server.Tail())
	}
	return nil
}

// choosePort takes the port of a namespace, or one of the host that is free. A
// socket that is bound to it and never listens keeps it ours while the server is
// away; connections to it are refused.
func (k *Kube) choosePort() error {
	if k.cfg.NS != nil {
		k.address = netip.AddrPortFrom(k.cfg.Address, kubePort)
		return nil
	}
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: k.cfg.Address.Unmap().As4()})
	if k.cfg.Address.Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: k.cfg.Address.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reserve a port: %w", err)
	}
	k.reserve = fd
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("reserve a port: %w", err)
	}
	if err := unix.Bind(fd, to); err != nil {
		return fmt.Errorf("reserve a port of %s: %w", k.cfg.Address, err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("reserve a port: %w", err)
	}
	var port int
	switch a := bound.(type) {
	case *unix.SockaddrInet4:
		port = a.Port
	case *unix.SockaddrInet6:
		port = a.Port
	}
	k.address = netip.AddrPortFrom(k.cfg.Address, uint16(port))
	return nil
}

// etcdArgs make etcd listen in its working folder alone, so that it needs no port.
var etcdArgs = []string{"--name", "weir", "--data-dir", "etcd", "--unsafe-no-fsync", "--log-level", "warn",
	"--listen-client-urls", "unix://etcd-client:1", "--advertise-client-urls", "unix://etcd-client:1",
	"--listen-peer-urls", "unix://etcd-peer:1", "--initial-advertise-peer-urls", "unix://etcd-peer:1", "--initial-cluster", "weir=unix://etcd-peer:1"}

func (k *Kube) serverArgs() []string {
	pki := func(name string) string { return filepath.Join("pki", name) }
	return []string{"--etcd-servers", "unix://etcd-client:1",
		"--bind-address", k.cfg.Address.String(), "--advertise-address", k.cfg.Address.String(), "--secure-port", fmt.Sprint(k.address.Port()), "--permit-port-sharing",
		"--tls-cert-file", pki("server.crt"), "--tls-private-key-file", pki("server.key"), "--client-ca-file", pki("ca.crt"), "--authorization-mode", "RBAC",
		"--kubelet-client-certificate", pki("kubelet-client.crt"), "--kubelet-client-key", pki("kubelet-client.key"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-signing-key-file", pki("service-account.key"), "--service-account-key-file", pki("service-account.key"),
		"--service-cluster-ip-range", kubeService.String() + "/16,fd00:10:96::/112",
		// Webhooks are called at their Service's endpoints: nobody balances here.
		"--enable-aggregator-routing=true",
		// Nobody makes ServiceAccounts and Endpoints, and the machine is small.
		"--endpoint-reconciler-type", "none", "--disable-admission-plugins", "ServiceAccount", "--enable-priority-and-fairness=false", "--profiling=false"}
}

func (k *Kube) process(name string, args []string) *Process {
	return &Process{Name: name, Log: k.path(name + ".log"), ns: k.cfg.NS, dir: k.cfg.Dir, bin: filepath.Join(k.cfg.Bin, name), args: args}
}

func (k *Kube) path(name ...string) string {
	return filepath.Join(append([]string{k.cfg.Dir}, name...)...)
}

// URL is where the server listens.
func (k *Kube) URL() string { return "https://" + k.address.String() }

// CAFile is the certificate that the server's is signed by.
func (k *Kube) CAFile() string { return k.path("pki", "ca.crt") }

// AdminKubeconfig is a kubeconfig of the cluster's administrator.
func (k *Kube) AdminKubeconfig() string { return k.path("admin.kubeconfig") }

// Kubeconfig writes a kubeconfig for the holder of a token. The file contains
// all that it needs.
func (k *Kube) Kubeconfig(name, token string) (path string, err error) {
	return k.writeKubeconfig(name, &clientcmdapi.AuthInfo{Token: token})
}

func (k *Kube) writeAdminKubeconfig() error {
	var user clientcmdapi.AuthInfo
	var err error
	if user.ClientCertificateData, err = os.ReadFile(k.path("pki", "admin.crt")); err != nil {
		return err
	}
	if user.ClientKeyData, err = os.ReadFile(k.path("pki", "admin.key")); err != nil {
		return err
	}
	_, err = k.writeKubeconfig("admin", &user)
	return err
}

func (k *Kube) writeKubeconfig(name string, user *clientcmdapi.AuthInfo) (path string, err error) {
	ca, err := os.ReadFile(k.CAFile())
	if err != nil {
		return "", err
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["kube"] = &clientcmdapi.Cluster{Server: k.URL(), CertificateAuthorityData: ca}
	c.AuthInfos[name] = user
	c.Contexts[name] = &clientcmdapi.Context{Cluster: "kube", AuthInfo: name}
	c.CurrentContext = name
	path = k.path(name + ".kubeconfig")
	return path, clientcmd.WriteToFile(*c, path)
}

// TokenFor asks the API server for a token of a ServiceAccount, which must be
// there. The flags are those of kubectl create token: --audience, --duration (10m
// at least), --bound-object-kind and --bound-object-name.
func (k *Kube) TokenFor(ctx context.Context, namespace, serviceAccount string, flags ...string) (string, error) {
	out, err := k.Kubectl(ctx, nil, append([]string{"create", "token", serviceAccount, "--namespace", namespace}, flags...)...)
	return strings.TrimSpace(out), err
}

// Kubectl runs kubectl as the cluster's administrator, and returns what it wrote
// to its output. What it complained of is in the error.
func (k *Kube) Kubectl(ctx context.Context, stdin []byte, args ...string) (string, error) {
	return k.KubectlAs(ctx, k.AdminKubeconfig(), stdin, args...)
}

// KubectlAs runs kubectl with a kubeconfig.
func (k *Kube) KubectlAs(ctx context.Context, kubeconfig string, stdin []byte, args ...string) (string, error) {
	out, complaint, err := k.KubectlSays(ctx, kubeconfig, stdin, args...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return out, fmt.Errorf("kubectl %s: %s", strings.Join(args, " "), strings.TrimSpace(complaint))
	case err != nil:
		return out, fmt.Errorf("kubectl: %w", err)
	}
	return out, nil
}

// KubectlSays runs kubectl with a kubeconfig, and returns what it wrote to its
// output and what it warned or complained of.
func (k *Kube) KubectlSays(ctx context.Context, kubeconfig string, stdin []byte, args ...string) (out, complaint string, err error) {
	cmd := k.cfg.NS.Command(ctx, filepath.Join(k.cfg.Bin, "kubectl"), append([]string{"--kubeconfig", kubeconfig, "--cache-dir", k.path("cache")}, args...)...)
	var written, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &written, &said
	err = cmd.Run()
	return written.String(), said.String(), err
}

// Config is how client-go reaches the server as the cluster's administrator,
// without a limit of its rate.
func (k *Kube) Config() (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", k.AdminKubeconfig())
	if err != nil {
		return nil, err
	}
	c.QPS = -1
	if k.cfg.NS != nil {
		c.Dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = k.cfg.NS.Do(func() error { conn, err = new(net.Dialer).DialContext(ctx, network, address); return err })
			return conn, err
		}
	}
	return c, nil
}
