package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// KubeletPort is where kubelets listen.
const KubeletPort = 10250

// Kubelet is as much of a node's kubelet, and of the container runtime below it, as
// a port-forward needs: the API server calls it by the address and the port of the
// Node's status, and it connects to ports in Pods' networks.
type Kubelet struct {
	server *httptest.Server
	pod    func(namespace, name string) (*NetNS, error)
	conns  *keptConns
}

// StartKubelet starts a kubelet of a node, which believes the API server by its
// client certificate. Pod says in which network a Pod is.
func (k *Kube) StartKubelet(node *NetNS, address netip.Addr, pod func(namespace, name string) (*NetNS, error)) (*Kubelet, error) {
	text, err := os.ReadFile(k.CAFile())
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(text)
	var l net.Listener
	err = node.Do(func() error {
		l, err = net.Listen("tcp", netip.AddrPortFrom(address, KubeletPort).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	let := &Kubelet{pod: pod, conns: &keptConns{Listener: l, open: make(map[net.Conn]bool)}}
	mux := http.NewServeMux()
	mux.HandleFunc("/portForward/{namespace}/{name}", let.portForward)
	let.server = &httptest.Server{Listener: let.conns, Config: &http.Server{Handler: mux},
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}}
	let.server.StartTLS()
	return let, nil
}

// Stop ends the kubelet with all that it forwards.
func (l *Kubelet) Stop() {
	l.conns.drop()
	l.server.Close()
}

// Drop ends everything that is forwarded now, as a node does that loses its network.
// It returns how many connections these were.
func (l *Kubelet) Drop() int { return l.conns.drop() }

func (l *Kubelet) portForward(w http.ResponseWriter, r *http.Request) {
	ns, err := l.pod(r.PathValue("namespace"), r.PathValue("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	portforward.ServePortForward(w, r, podPorts{ns}, r.PathValue("name"), "", nil, time.Hour, 10*time.Second, portforward.SupportedProtocols)
}

// podPorts are the ports on a Pod's loopback.
type podPorts struct{ ns *NetNS }

// PortForward implements portforward.PortForwarder.
func (p podPorts) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	var conn net.Conn
	err := p.ns.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("localhost:%d", port))
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	var copies errgroup.Group
	copies.Go(func() error { defer stream.Close(); _, err := io.Copy(stream, conn); return err })
	copies.Go(func() error { defer conn.Close(); _, err := io.Copy(conn, stream); return err })
	_ = copies.Wait() // Whoever is at an end knows why it ended.
	return nil
}

// keptConns keeps what it accepted, hijacked or not.
type keptConns struct {
	net.Listener
	mu   sync.Mutex // Guards open.
	open map[net.Conn]bool
}

// Accept implements net.Listener.
func (k *keptConns) Accept() (net.Conn, error) {
	conn, err := k.Listener.Accept()
	if err == nil {
		conn = &keptConn{conn, k}
		k.mu.Lock()
		k.open[conn] = true
		k.mu.Unlock()
	}
	return conn, err
}

func (k *keptConns) drop() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.open)
	for conn := range k.open {
		conn.(*keptConn).Conn.Close()
	}
	clear(k.open)
	return n
}

type keptConn struct {
	net.Conn
	of *keptConns
}

// Close implements net.Conn.
func (c *keptConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
