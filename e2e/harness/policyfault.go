package harness

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/services/identity"
)

// What disturbs the way to a policy service of a cluster without an API server.

// CutOff drops, without a word to either end, what nodes and the policy service
// send each other, until it is called with false.
func (c *Cluster) CutOff(ctx context.Context, cut bool) error {
	rules := "table inet cutoff\ndelete table inet cutoff\n"
	if cut {
		rules += fmt.Sprintf(`table inet cutoff {
			chain in { type filter hook input priority 0; iifname "fab0" tcp dport %d drop; }
			chain out { type filter hook output priority 0; oifname "fab0" tcp sport %[1]d drop; }
		}`, policydPort)
	}
	nft := c.Fabric.Command(ctx, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// besideAddress is where a second policy service listens, and the first while a
// Relay has its address.
func besideAddress() string { return netip.AddrPortFrom(fabric4, policydPort+10).String() }

// BesideAddress is where BesidePolicyd listens.
func (c *Cluster) BesideAddress() string { return besideAddress() }

// BesidePolicyd is a second policy service that reads a folder of its own. It is not
// started.
func (c *Cluster) BesidePolicyd(manifests string) *Process {
	p := c.process(c.Fabric, "policyd-beside", "weir-policyd", slices.Concat([]string{
		"--manifests", manifests, "--listen", besideAddress(), "--metrics-listen", ""}, c.tlsArgs("policyd")))
	c.Policyds = append(c.Policyds, p) // Stop ends them.
	return p
}

// Checkpoint is the path of the node's.
func (n *Node) Checkpoint() string { return filepath.Join(n.dir, "state", "checkpoint") }

// Impersonate listens at the policy service's address, with its certificate, while
// the service is away. Connections that are accepted speak TLS.
func (c *Cluster) Impersonate() (net.Listener, error) {
	config, err := identity.ServerTLS(identity.Files{CA: c.PKI("ca.crt"), Cert: c.PKI("policyd.crt"), Key: c.PKI("policyd.key")})
	if err != nil {
		return nil, err
	}
	config.NextProtos = []string{"h2"}
	l, err := c.listen(c.PolicyAddress())
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, config), nil
}

func (c *Cluster) listen(address string) (l net.Listener, err error) {
	err = c.Fabric.Do(func() error { l, err = net.Listen("tcp", address); return err })
	return l, err
}

// Relay stands at the policy service's address and passes on, in pieces, what it
// and its clients send each other.
type Relay struct {
	cluster  *Cluster
	listener net.Listener
	wait     sync.WaitGroup

	mu      sync.Mutex // Guards what follows.
	spoil   func(sent int, piece []byte) []byte
	conns   map[net.Conn]struct{}
	spoiled int
}

// RelayPolicy moves the policy service to another port, and stands in its place.
// The caller closes the relay.
func (c *Cluster) RelayPolicy() (*Relay, error) {
	c.Policyd.Terminate()
	c.Policyd.args = append(slices.Clone(c.Policyd.args), "--listen", besideAddress())
	l, err := c.listen(c.PolicyAddress())
	if err != nil {
		return nil, err
	}
	r := &Relay{cluster: c, listener: l, conns: make(map[net.Conn]struct{})}
	r.wait.Go(r.accept)
	return r, c.Policyd.Start()
}

// Spoil has what the service sends changed from now on, on new connections and those
// there are: fn is given how many bytes the connection had from it before, and
// returns what is passed on instead; nil ends the connection. A nil fn passes on
// everything.
func (r *Relay) Spoil(fn func(sent int, piece []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spoil, r.spoiled = fn, 0
}

// Spoiled is how many pieces were changed since the last Spoil.
func (r *Relay) Spoiled() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spoiled
}

// Close ends the relay and its connections.
func (r *Relay) Close() {
	r.listener.Close()
	r.mu.Lock()
	for conn := range r.conns {
		conn.Close()
	}
	r.mu.Unlock()
	r.wait.Wait()
}

func (r *Relay) accept() {
	for {
		down, err := r.listener.Accept()
		if err != nil {
			return
		}
		var up net.Conn
		if r.cluster.Fabric.Do(func() error { up, err = net.Dial("tcp", besideAddress()); return err }) != nil {
			down.Close() // Nobody listens.
			continue
		}
		r.mu.Lock()
		r.conns[down], r.conns[up] = struct{}{}, struct{}{}
		r.mu.Unlock()
		r.wait.Go(func() { io.Copy(up, down); r.end(up, down) })
		r.wait.Go(func() { r.pass(down, up); r.end(up, down) })
	}
}

func (r *Relay) end(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range conns {
		conn.Close()
		delete(r.conns, conn)
	}
}

// pass passes on what the service sends.
func (r *Relay) pass(down, up net.Conn) {
	buf := make([]byte, 4<<10)
	for sent := 0; ; {
		n, err := up.Read(buf)
		if err != nil {
			return
		}
		piece := buf[:n]
		r.mu.Lock()
		if r.spoil != nil {
			was := string(piece)
			if piece = r.spoil(sent, piece); string(piece) != was {
				r.spoiled++
			}
		}
		r.mu.Unlock()
		if piece == nil {
			return
		}
		if _, err := down.Write(piece); err != nil {
			return
		}
		sent += n
	}
}

// RebuildBridgePort gives the bridge's own port again what Pods on the node need of
// it: a switch that was started anew has made it anew.
func (n *Node) RebuildBridgePort(ctx context.Context) error {
	if err := Eventually(ctx, 20*time.Second, func() error { return n.bridgeMade(ctx) }); err != nil {
		return err
	}
	if err := n.gateway(ctx); err != nil {
		return err
	}
	var routes []string
	for _, h := range n.cluster.pods {
		if h.pod.Node != n.Name {
			continue
		}
		for _, ip := range h.IPs {
			routes = append(routes, fmt.Sprintf("route replace %s/%d dev %s", ip, ip.BitLen(), Bridge))
		}
	}
	return n.NS.IP(ctx, routes...)
}
