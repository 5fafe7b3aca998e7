package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	grpccredentials "google.golang.org/grpc/credentials"

	"github.com/weirnet/weir/shim/credentials"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/shim/podnet"
)

// Version is the build's, set by the linker.
var Version = "dev"

// Config of a Shim.
type Config struct {
	Node           string   // Name of the node; required.
	PolicyServers  []string // host:port; at least one.
	Collectors     []string // host:port. None: events are counted and dropped.
	TLS            credentials.Files
	TokenFile      string        // Of a service-account token, in place of a certificate and key; with TLS.CA.
	Bridge         string        // Name of the OVS bridge.
	RunDir         string        // Of OVS. Empty: its default.
	Datapath       string        // "system" or "netdev".
	StateDir       string        // Where the checkpoint is kept; required.
	LogRate        uint32        // Log events a second, of all rules together.
	LogBurst       uint32        // How many of them may come at once. Zero: LogRate.
	RuleLogRate    uint32        // Log events a second of one rule, or of one isolation. Zero: a fifth of LogRate.
	Observe        []string      // Namespaces whose Pods' new connections are sampled; "*": all. None: nothing is.
	ObserveRate    uint32        // Such samples a second.
	RejectRate     uint32        // Answers to rejected packets a second.
	LogIsolation   string        // "annotated" or "all".
	DNSServices    []string      // Services of DNS servers whose answers say where hosts are that policies name, NAMESPACE/NAME.
	DNSServers     []string      // Other such servers: IP, or IP:PORT.
	NameMinTTL     time.Duration // How long such an address holds at least.
	ServiceLB      bool          // Send what Pods send to Services to their endpoints.
	NodePolicies   bool          // Enforce policies for the node itself.
	MarkOwnTraffic bool          // Tell the host's own traffic from what it forwards, by nftables.
	PodNetwork     string        // "off", "routed" or "vxlan".
	Masquerade     bool          // With a Pod network: what Pods send out of the cluster bears the node's address.
	VXLANID        int
	VXLANPort      int
	CNIConfDir     string // Of the container runtime's network configuration, which is written there. Empty: it is not.
	CNIBinDir      string // Where weir-cni is installed. Empty: it is not.
	MetricsListen  string // host:port of /metrics, /healthz, /readyz. Empty: none.
	Socket         string // Path of the Unix socket of NodeService. Empty: none.
	Reconcile      time.Duration
	StatsInterval  time.Duration // How often rules' counters are read, and reported.
	// Uplink is the port of the bridge by which the node reaches its network,
	// where that is on the bridge. Empty: none is.
	Uplink string
	// Adopt says what becomes of connections that are older than a bridge's
	// adoption: AdoptJudge or AdoptEstablished, and then for how long after it
	// conntrack may get to know them.
	Adopt       string
	AdoptWindow time.Duration
	// RecoveryWindow is for how long after the switch has lost its flows TCP segments
	// of unknown connections are judged as the answers that they may be. Zero: not at all.
	RecoveryWindow time.Duration
	// TakeOver goes on where Antrea's agent is at work; AntreaRunDir is where
	// that has its sockets. Empty: they are not looked for.
	TakeOver     bool
	AntreaRunDir string
	// PeerBarrier is how long a new Pod's port waits at the most for other nodes
	// to have the Pod's address, where their rules await it. Zero: it does not.
	PeerBarrier time.Duration
	Logger      hclog.Logger

	// Dataplane is run in place of the bridge that the fields above name, and
	// Dial connects to policy services in place of TCP. Tests set them.
	Dataplane Dataplane
	Dial      func(ctx context.Context, address string) (net.Conn, error)
}

// Defaults are the values of flags that are not given.
func Defaults() Config {
	return Config{
		Bridge:         "br-weir",
		Datapath:       "system",
		StateDir:       "/var/lib/weir",
		LogRate:        500,
		ObserveRate:    50,
		RejectRate:     1000,
		LogIsolation:   "annotated",
		DNSServices:    []string{"kube-system/kube-dns"},
		NameMinTTL:     5 * time.Second,
		ServiceLB:      true,
		NodePolicies:   true,
		MarkOwnTraffic: true,
		MetricsListen:  "127.0.0.1:9752",
		PodNetwork:     string(podnet.Off),
		Masquerade:     true,
		VXLANID:        4100,
		VXLANPort:      4789,
		Socket:         "/run/weir/shim.sock",
		Reconcile:      4 * time.Second,
		StatsInterval:  10 * time.Second,
		PeerBarrier:    500 * time.Millisecond,
		Adopt:          AdoptJudge,
		AdoptWindow:    time.Minute,
		RecoveryWindow: time.Minute,
		AntreaRunDir:   "/var/run/antrea",
	}
}

func (c *Config) validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(c.Node != "", "node: no name given (--node)")
	require(len(c.PolicyServers) > 0, "policy service: no address given (--policy-server)")
	require(c.Bridge != "", "bridge: no name given (--bridge)")
	require(c.StateDir != "", "state folder: none given (--state-dir)")
	require(c.LogRate > 0, "log rate: must be at least 1 a second (--log-rate)")
	require(c.ObserveRate > 0, "samples: must be at least 1 a second (--observe-rate)")
	for _, ns := range c.Observe {
		require(ns != "" && !strings.Contains(ns, "/"), "samples: %q is no name of a Namespace (--observe)", ns)
	}
	require(c.RejectRate > 0, "reject rate: must be at least 1 a second (--reject-rate)")
	require(c.Reconcile > 0, "reconcile interval: must be above zero (--reconcile)")
	require(c.StatsInterval > 0, "interval of counters: must be above zero (--stats-interval)")
	require(c.LogIsolation == "annotated" || c.LogIsolation == "all", "log isolation: %q is neither annotated nor all (--log-isolation)", c.LogIsolation)
	require(slices.Contains([]string{"", string(podnet.Off), string(podnet.Routed), string(podnet.VXLAN)}, c.PodNetwork), "pod network: %q is neither off, routed nor vxlan (--pod-network)", c.PodNetwork)
	require(slices.Contains([]string{"", AdoptJudge, AdoptEstablished}, c.Adopt), "adoption: %q is neither judge nor allow-established (--adopt)", c.Adopt)
	require(c.AdoptWindow >= 0, "adoption: the window must not be below zero (--adopt-window)")
	require(c.RecoveryWindow >= 0, "recovery: the window must not be below zero (--recovery-window)")
	require(c.CNIConfDir == "" || c.Socket != "", "CNI: weir-cni needs a socket to ask (--socket)")
	require(c.NameMinTTL >= 0, "names: the least time must not be below zero (--fqdn-min-ttl)")
	for _, name := range c.DNSServices {
		namespace, service, ok := strings.Cut(name, "/")
		require(ok && namespace != "" && service != "" && !strings.Contains(service, "/"), "DNS: Service %q is not NAMESPACE/NAME (--dns-service)", name)
	}
	for _, at := range c.DNSServers {
		_, err := dnsServer(at)
		require(err == nil, "DNS: server %q is neither IP nor IP:PORT (--dns-server)", at)
	}
	return errors.Join(errs...)
}

// dnsServer reads the address of a DNS server, by default with port 53.
func dnsServer(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), nil
	}
	return netip.ParseAddrPort(text)
}

// credentials are what the shim shows its servers; nil for plain text. A Token
// has to be run.
func (c *Config) credentials() (grpccredentials.TransportCredentials, *credentials.Token, error) {
	if c.TokenFile == "" {
		creds, err := c.TLS.Transport()
		return creds, nil, err
	}
	if c.TLS.Cert != "" || c.TLS.Key != "" {
		return nil, nil, errors.New("TLS: a token gets the shim its certificate: leave --cert and --key out")
	}
	t, err := credentials.NewToken(credentials.TokenConfig{Node: c.Node, Servers: c.PolicyServers, CA: c.TLS.CA, File: c.TokenFile, Dir: c.StateDir,
		Logger: c.Logger.Named("identity"), Dial: c.Dial})
	if err != nil {
		return nil, nil, err
	}
	return t.Transport(), t, nil
}

func (c *Config) logBurst() uint32 {
	if c.LogBurst == 0 {
		return c.LogRate
	}
	return c.LogBurst
}

// ruleLogRate is never more than all rules together have.
func (c *Config) ruleLogRate() uint32 {
	if c.RuleLogRate == 0 {
		return max(1, c.LogRate/5)
	}
	return min(c.RuleLogRate, c.LogRate)
}

func (c *Config) ruleLogBurst() uint32 { return min(c.ruleLogRate(), c.logBurst()) }

// compiler is what a compiler is told of the flags: the bridge tells the rest.
func (c *Config) compiler() pipeline.Config {
	var servers []netip.AddrPort
	for _, text := range c.DNSServers {
		if at, err := dnsServer(text); err == nil { // Else validate has said so.
			servers = append(servers, at)
		}
	}
	var services []pipeline.NamespacedName
	for _, text := range c.DNSServices {
		namespace, name, _ := strings.Cut(text, "/")
		services = append(services, pipeline.NamespacedName{Namespace: namespace, Name: name})
	}
	return pipeline.Config{Resolvers: servers, ResolverServices: services, Node: c.Node, RuleLogRate: c.ruleLogRate(), RuleLogBurst: c.ruleLogBurst(), Observe: c.Observe, ObserveRate: c.ObserveRate, RejectRate: c.RejectRate, LogIsolationAll: c.LogIsolation == "all", BalanceServices: c.ServiceLB}
}

func (c *Config) checkpoint() string { return filepath.Join(c.StateDir, "checkpoint") }
