package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/shim/bridge/ovstest"
)

// Config of a Cluster.
type Config struct {
	Bin   string // Folder of the built binaries.
	Nodes []NodeConfig
	// PolicydArgs, AuditdArgs and ShimArgs are added to the flags of each.
	PolicydArgs, AuditdArgs, ShimArgs []string
	// PodNetwork is the mode of the Pod network that the shims make, and for which
	// they configure a container runtime. Empty: Pods are SetPods's alone.
	PodNetwork string
	// Overlay is a folder of manifests that Weir is installed from, into a real API
	// server whose objects are then read; KubeBin is that of its binaries. Empty: a
	// folder of objects is read, see SetManifests.
	Overlay, KubeBin string
	// Replicas is how many policy services there are. Zero: one, or of an Overlay two.
	Replicas int
	// Found says that the nodes' bridges are there before Weir, and forward; the
	// shims are started by the test.
	Found bool
	// Log gets a line about each step that takes long. Nil: none.
	Log func(format string, args ...any)
}

// NodeConfig is one node.
type NodeConfig struct {
	Name string
	IPs  []netip.Addr // The Node's own addresses, beside those of the harness.
}

// Cluster is a running cluster.
type Cluster struct {
	Dir      string // Of everything that its processes write.
	Fabric   *NetNS
	Nodes    map[string]*Node
	Policyd  *Process // The first of Policyds.
	Auditd   *Process
	Policyds []*Process
	Kube     *Kube // With an Overlay.

	cfg       Config
	prefix    string
	pods      map[string]*Host
	podSerial int
	sandboxes []*Host // Of Pods whose network the CNI plugin makes.
	outside   map[netip.Addr]*Host
	sequence  uint64 // Position that the last manifests bring.
	markers   int
	objects   *objects             // With an Overlay.
	wanted    map[string]PodConfig // With an Overlay, by NAMESPACE/NAME.
	conn      *grpc.ClientConn
	conns     []*grpc.ClientConn // One to each of Policyds.

	mu          sync.Mutex // Guards projections.
	projections []string   // Folders that await the authority.
	auditConn   *grpc.ClientConn
}

// Node is one node of a cluster.
type Node struct {
	Name    string
	NS      *NetNS
	OVS     *ovstest.Instance
	Shim    *Process
	IPs     []netip.Addr
	via     [2]netip.Addr // Its addresses on the fabric, v4 and v6.
	dir     string
	proxies bool // SetProxied was called.
	cluster *Cluster
}

// Addresses of the fabric, which no case uses (RFC 2544 and a ULA).
var (
	fabric4     = netip.MustParseAddr("198.18.0.1")
	fabric6     = netip.MustParseAddr("fd18::1")
	policydPort = uint16(9740)
	auditdPort  = uint16(9741)
)

const (
	// Bridge is the name of every node's bridge.
	Bridge = "br-weir"
	// Gateway is what every Pod has its default route through.
	Gateway = "169.254.1.1"
	gateLL  = "fe80::1"
)

var serial atomic.Uint32

// Start builds a cluster and waits until its processes serve. The caller stops
// it, whatever happens.
func Start(ctx context.Context, cfg Config) (c *Cluster, err error) {
	sweep(ctx)
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	c = &Cluster{cfg: cfg, prefix: fmt.Sprintf("%s%d-%d-", namePrefix, os.Getpid(), serial.Add(1)),
		Nodes: make(map[string]*Node), pods: make(map[string]*Host), outside: make(map[netip.Addr]*Host)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
			c = nil
		}
	}()
	if c.Dir, err = os.MkdirTemp("", "weir-e2e-"); err != nil {
		return c, err
	}
	for _, d := range []string{"manifests", "pki", "audit"} {
		if err := os.Mkdir(filepath.Join(c.Dir, d), 0o755); err != nil {
			return c, err
		}
	}
	if err := c.startFabric(ctx); err != nil {
		return c, fmt.Errorf("fabric: %w", err)
	}
	switch {
	case cfg.Overlay != "":
		if c.cfg.Replicas == 0 {
			c.cfg.Replicas = 2
		}
		if err := c.install(ctx); err != nil {
			return c, err
		}
		if err := c.startInstalled(ctx); err != nil {
			return c, err
		}
	default:
		if err := c.makePKI(); err != nil {
			return c, err
		}
		if err := c.startServices(ctx); err != nil {
			return c, err
		}
	}
	errs := make([]error, len(cfg.Nodes))
	var wait sync.WaitGroup
	for i, nc := range cfg.Nodes {
		n := &Node{Name: nc.Name, IPs: nc.IPs, cluster: c,
			via: [2]netip.Addr{netip.MustParseAddr(fmt.Sprintf("198.18.0.%d", 10+i)), netip.MustParseAddr(fmt.Sprintf("fd18::%d", 10+i))}}
		c.Nodes[nc.Name] = n
		wait.Go(func() {
			if errs[i] = n.start(ctx, i); errs[i] != nil {
				errs[i] = fmt.Errorf("node %s: %w", n.Name, errs[i])
			}
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return c, err
	}
	if c.Kube != nil {
		if err := c.projectAuthority(ctx); err != nil {
			return c, err
		}
		if err := c.enrollOperator(ctx); err != nil {
			return c, err
		}
	}
	if err := c.connect(); err != nil {
		return c, err
	}
	if c.Kube != nil { // Else the first SetManifests waits.
		if err := c.Settled(ctx); err != nil {
			return c, err
		}
	}
	return c, c.routeNodes(ctx)
}

func (c *Cluster) startFabric(ctx context.Context) (err error) {
	if c.Fabric, err = newNetNS(ctx, c.prefix+"fab"); err != nil {
		return err
	}
	if err := c.Fabric.IP(ctx, "link add fab0 type bridge"); err != nil {
		return err
	}
	if err := c.Fabric.linkUp(ctx, "fab0"); err != nil {
		return err
	}
	return c.Fabric.IP(ctx, "addr add "+fabric4.String()+"/24 dev fab0", "addr add "+fabric6.String()+"/64 dev fab0 nodad")
}

func (c *Cluster) makePKI() error {
	var nodes []string
	for _, n := range c.cfg.Nodes {
		nodes = append(nodes, n.Name)
	}
	servers := []string{"127.0.0.1", "localhost"}
	for i := range c.replicas() {
		servers = append(servers, servingAddress(i).String())
	}
	_, err := identity.Init(identity.InitConfig{Dir: c.PKI(""), Nodes: nodes, Servers: servers, Now: time.Now()})
	return err
}

// PKI is the path of a file of the cluster's certificates.
func (c *Cluster) PKI(name string) string { return filepath.Join(c.Dir, "pki", name) }

// Manifests is the folder that weir-policyd watches.
func (c *Cluster) Manifests() string { return filepath.Join(c.Dir, "manifests") }

// NPLog is the path of a node's np.log.
func (c *Cluster) NPLog(node string) string { return filepath.Join(c.Dir, "audit", node, "np.log") }

// JSONLog is the path of the collector's JSON lines.
func (c *Cluster) JSONLog() string { return filepath.Join(c.Dir, "audit", "audit.json") }

// PolicyAddress is where the policy service, or the first of them, listens, in
// the fabric.
func (c *Cluster) PolicyAddress() string {
	if c.Kube != nil {
		return netip.AddrPortFrom(replicaAddress(0), policydPort).String()
	}
	return netip.AddrPortFrom(fabric4, policydPort).String()
}

// AuditAddress is where the collector listens, in the fabric.
func (c *Cluster) AuditAddress() string { return netip.AddrPortFrom(fabric4, auditdPort).String() }

func (c *Cluster) tlsArgs(name string) []string {
	return []string{"--ca", c.PKI("ca.crt"), "--cert", c.PKI(name + ".crt"), "--key", c.PKI(name + ".key")}
}

// OperatorArgs are weirctl's flags for an operator of this cluster.
func (c *Cluster) OperatorArgs() []string { return c.tlsArgs("operator") }

func (c *Cluster) startServices(ctx context.Context) (err error) {
	for i, address := range strings.Split(c.policyAddresses(), ",") {
		args := []string{"--manifests", c.Manifests(), "--listen", address, "--metrics-listen", ""}
		if i > 0 {
			if err := c.Fabric.IP(ctx, fmt.Sprintf("addr add %s/24 dev fab0", servingAddress(i))); err != nil {
				return err
			}
		}
		if c.replicas() > 1 {
			args = append(args, "--replicas", c.policyAddresses())
		}
		c.Policyds = append(c.Policyds, c.process(c.Fabric, replicaName(i), "weir-policyd", slices.Concat(args, c.tlsArgs("policyd"), c.cfg.PolicydArgs)))
	}
	c.Policyd = c.Policyds[0]
	c.Auditd = c.process(c.Fabric, "auditd", "weir-auditd", slices.Concat([]string{
		"--dir", filepath.Join(c.Dir, "eventlog"), "--np-log-dir", filepath.Join(c.Dir, "audit"), "--json-file", c.JSONLog(),
		"--log-timezone", "UTC", "--policy-server", c.policyAddresses(), "--listen", c.AuditAddress(), "--metrics-listen", ""}, c.tlsArgs("auditd"), c.cfg.AuditdArgs))
	for _, p := range append(slices.Clone(c.Policyds), c.Auditd) {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// connect makes clients of the services, as an operator.
func (c *Cluster) connect() error {
	operator, err := identity.Files{CA: c.PKI("ca.crt"), Cert: c.PKI("operator.crt"), Key: c.PKI("operator.key")}.Credentials()
	if err != nil {
		return err
	}
	dial := func(address string) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(operator.Client()),
			grpc.WithContextDialer(func(_ context.Context, addr string) (conn net.Conn, err error) {
				err = c.Fabric.Do(func() error { conn, err = net.DialTimeout("tcp", addr, 5*time.Second); return err })
				return conn, err
			}))
	}
	for address := range strings.SplitSeq(c.policyAddresses(), ",") {
		conn, err := dial(address)
		if err != nil {
			return err
		}
		c.conns = append(c.conns, conn)
	}
	c.conn = c.conns[0]
	c.auditConn, err = dial(c.AuditAddress())
	return err
}

func (c *Cluster) process(ns *NetNS, name, binary string, args []string) *Process {
	return &Process{Name: name, Log: filepath.Join(c.Dir, name+".log"), ns: ns, bin: filepath.Join(c.cfg.Bin, binary), args: args}
}

// Inspection is a client of the policy service, as an operator.
func (c *Cluster) Inspection() policyv1.InspectionServiceClient {
	return policyv1.NewInspectionServiceClient(c.conn)
}

// Audit is a client of the collector, as an operator.
func (c *Cluster) Audit() auditv1.AuditServiceClient {
	return auditv1.NewAuditServiceClient(c.auditConn)
}

func (n *Node) start(ctx context.Context, i int) (err error) {
	c := n.cluster
	if n.NS, err = newNetNS(ctx, fmt.Sprintf("%sn%d", c.prefix, i+1)); err != nil {
		return err
	}
	link := fmt.Sprintf("n%d", i+1)
	if err := c.Fabric.IP(ctx, fmt.Sprintf("link add %s type veth peer name uplink netns %s", link, n.NS.Name), fmt.Sprintf("link set %s master fab0 up", link)); err != nil {
		return err
	}
	if err := n.NS.linkUp(ctx, "uplink"); err != nil {
		return err
	}
	lines := []string{
		fmt.Sprintf("addr add %s/24 dev uplink", n.via[0]), fmt.Sprintf("addr add %s/64 dev uplink nodad", n.via[1]),
		fmt.Sprintf("route add default via %s", fabric4), fmt.Sprintf("route add default via %s", fabric6)}
	for _, ip := range n.IPs {
		lines = append(lines, fmt.Sprintf("addr add %s/%d dev uplink%s", ip, ip.BitLen(), nodad(ip)))
	}
	if err := n.NS.IP(ctx, lines...); err != nil {
		return err
	}
	err = n.NS.Do(func() error {
		for file, value := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0"} {
			if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	dir := filepath.Join(c.Dir, link)
	n.dir = dir
	for _, d := range []string{"state", "net.d", "bin", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if n.OVS, err = ovstest.Start(ctx, ovstest.Config{NetNS: n.NS.Name, Dir: dir}); err != nil {
		return err
	}
	args := slices.Concat([]string{
		"--node", n.Name, "--policy-server", c.policyAddresses(), "--collector", c.AuditAddress(), "--bridge", Bridge,
		"--ovs-rundir", n.OVS.Dir, "--datapath", "netdev", "--state-dir", filepath.Join(dir, "state"), "--metrics-listen", "127.0.0.1:9752",
		"--socket", n.Socket()},
		c.tlsArgs("node-"+n.Name), n.cniArgs())
	if c.Kube != nil {
		if args, err = n.shimArgs(ctx); err != nil {
			return err
		}
	}
	n.Shim = c.process(n.NS, "shim-"+link, "weir-shim", append(args, c.cfg.ShimArgs...))
	if c.cfg.Found {
		return n.findBridge(ctx)
	}
	if err := n.Shim.Start(); err != nil {
		return err
	}
	if err := Eventually(ctx, 20*time.Second, func() error { return n.bridgeMade(ctx) }); err != nil {
		return fmt.Errorf("the shim made no bridge: %w\n%s", err, n.Shim.Tail())
	}
	return n.gateway(ctx)
}

// Socket is where the node's shim answers about its ports.
func (n *Node) Socket() string { return filepath.Join(n.dir, "run", "shim.sock") }

// bridgeMade fails until the bridge's own port has the address that it is to
// keep: to set it, the switch takes the port down for a moment, and its routes go.
func (n *Node) bridgeMade(ctx context.Context) error {
	has, err := n.BridgeMAC()
	if err != nil {
		return err
	}
	out, err := n.OVS.Vsctl(ctx, "get", "bridge", Bridge, "other_config:hwaddr")
	if err != nil {
		return err
	}
	if want := strings.Trim(strings.TrimSpace(string(out)), `"`); has != want {
		return fmt.Errorf("%s has the address %s, and is to have %s", Bridge, has, want)
	}
	return nil
}

// BridgeMAC is the address by which Pods reach their gateway.
func (n *Node) BridgeMAC() (mac string, err error) {
	err = n.NS.Do(func() error {
		link, err := net.InterfaceByName(Bridge)
		if err == nil {
			mac = link.HardwareAddr.String()
		}
		return err
	})
	return mac, err
}

func nodad(ip netip.Addr) string {
	if ip.Is6() {
		return " nodad"
	}
	return ""
}

// routeNodes tells every node and the fabric where the nodes' own addresses are.
func (c *Cluster) routeNodes(ctx context.Context) error {
	for _, n := range c.Nodes {
		for _, ip := range n.IPs {
			if err := c.route(ctx, ip, n, "replace"); err != nil {
				return err
			}
		}
	}
	return nil
}

// route adds or deletes the routes of every other node, and the fabric, to an
// address behind a node.
func (c *Cluster) route(ctx context.Context, ip netip.Addr, behind *Node, op string) error {
	via := behind.via[0]
	if ip.Is6() {
		via = behind.via[1]
	}
	line := fmt.Sprintf("route %s %s/%d via %s", op, ip, ip.BitLen(), via)
	if err := c.Fabric.IP(ctx, line); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if n != behind {
			if err := n.NS.IP(ctx, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// Stop ends the processes and removes everything.
func (c *Cluster) Stop() error {
	var errs []error
	for _, conn := range append(c.conns, c.auditConn) {
		if conn != nil {
			conn.Close()
		}
	}
	for _, h := range c.pods {
		errs = append(errs, h.close())
	}
	for _, h := range c.sandboxes {
		errs = append(errs, h.close())
	}
	for _, h := range c.outside {
		h.stopServing()
	}
	for _, n := range c.Nodes {
		if n.Shim != nil {
			n.Shim.Kill()
		}
		if n.OVS != nil {
			errs = append(errs, n.OVS.Stop())
		}
		if n.NS != nil {
			errs = append(errs, n.NS.remove())
		}
	}
	for _, p := range append(c.Policyds, c.Policyd, c.Auditd) {
		if p != nil {
			p.Kill()
		}
	}
	if c.Kube != nil {
		c.Kube.Stop()
	}
	if c.Fabric != nil {
		errs = append(errs, c.Fabric.remove())
	}
	errs = append(errs, os.RemoveAll(c.Dir))
	return errors.Join(errs...)
}

// Eventually tries until there is no error, or the time is over.
func Eventually(ctx context.Context, limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
