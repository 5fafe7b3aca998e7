// Command weir-shim is the node agent: it enforces a node's policies with the
// flows of an Open vSwitch bridge.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/weirnet/weir/shim"
	"github.com/weirnet/weir/shim/cni"
	"github.com/weirnet/weir/shim/credentials"
)

func main() {
	signal.Ignore(syscall.SIGHUP) // It may be meant for all that log: there is no file of ours to open anew.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errDiffers) { // Which has been shown.
			fmt.Fprintln(os.Stderr, "weir-shim:", err)
		}
		code := 1
		if errors.Is(err, errUnknown) {
			code = 2
		}
		os.Exit(code)
	}
}

func command() *cobra.Command {
	cfg := shim.Defaults()
	var level string
	var insecure bool
	cmd := &cobra.Command{
		Use:           "weir-shim",
		Short:         "Enforce a node's network policies with Open vSwitch",
		Version:       shim.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: "weir-shim", Level: hclog.LevelFromString(level)})
			if cfg.TLS == (credentials.Files{}) && !insecure {
				return errors.New("no certificate given: use --ca, --cert and --key (weirctl pki init makes them), --ca and --token-file in a Pod of a cluster, or --insecure for plain text")
			}
			boundMemory(cmd.Context())
			s, err := shim.New(cfg)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&cfg.Node, "node", os.Getenv("NODE_NAME"), "name of this node; NODE_NAME by default")
	f.StringSliceVar(&cfg.PolicyServers, "policy-server", nil, "address of a policy service, host:port; may be repeated")
	f.StringSliceVar(&cfg.Collectors, "collector", nil, "address of an audit collector, host:port; may be repeated; one on loopback (127.0.0.0/8, ::1, localhost, unix:PATH) is reached in plain text")
	f.StringVar(&cfg.TLS.CA, "ca", "", "file of the certificate authority, PEM")
	f.StringVar(&cfg.TLS.Cert, "cert", "", "file of the node's certificate, PEM")
	f.StringVar(&cfg.TLS.Key, "key", "", "file of the certificate's key, PEM")
	f.StringVar(&cfg.TokenFile, "token-file", "", "file of a service-account token that is bound to the shim's Pod, by which the policy service gives a certificate; in place of --cert and --key")
	f.BoolVar(&insecure, "insecure", false, "connect in plain text, where no certificate is given")
	f.StringVar(&cfg.Bridge, "bridge", cfg.Bridge, "name of the bridge; it becomes Weir's alone, and one with running Pods is adopted")
	f.StringVar(&cfg.RunDir, "ovs-rundir", cfg.RunDir, "run folder of Open vSwitch; its own default if empty")
	f.StringVar(&cfg.Datapath, "datapath", cfg.Datapath, "datapath type: system or netdev")
	f.StringVar(&cfg.StateDir, "state-dir", cfg.StateDir, "folder of the checkpoint")
	f.Uint32Var(&cfg.LogRate, "log-rate", cfg.LogRate, "log events a second, which all rules share fairly; what exceeds it is counted and stated, and no packet is dropped for it")
	f.Uint32Var(&cfg.LogBurst, "log-burst", 0, "log events that may come at once, of all rules; 0: as many as --log-rate, and of one rule no more than its rate")
	f.Uint32Var(&cfg.RuleLogRate, "log-rate-per-rule", 0, "log events a second of one rule, or of one isolation, which has a meter of its own; what exceeds it is stated by rule; 0: a fifth of --log-rate")
	f.StringSliceVar(&cfg.Observe, "observe", nil, "Namespace whose Pods' new connections are sampled, allowed ones too, whatever policies say; * for all; may be repeated, or a list with commas")
	f.Uint32Var(&cfg.ObserveRate, "observe-rate", cfg.ObserveRate, "samples of --observe a second, on this node; what exceeds it is counted and stated")
	f.Uint32Var(&cfg.RejectRate, "reject-rate", cfg.RejectRate, "rejected packets a second that are answered (TCP reset, ICMP unreachable); what exceeds it is dropped in silence, and counted")
	f.StringVar(&cfg.LogIsolation, "log-isolation", cfg.LogIsolation, "which isolation drops are recorded: annotated (Namespaces with logging) or all")
	f.BoolVar(&cfg.ServiceLB, "service-lb", cfg.ServiceLB, "send what Pods send to a Service's ClusterIP to one of its endpoints, before egress rules judge it; false where something else does that before Open vSwitch")
	f.StringSliceVar(&cfg.DNSServices, "dns-service", cfg.DNSServices, "Service of DNS servers, NAMESPACE/NAME, whose answers say where hosts are that policies name (fqdn); may be repeated")
	f.StringSliceVar(&cfg.DNSServers, "dns-server", nil, "further such DNS server that Pods ask, IP or IP:PORT; may be repeated")
	f.DurationVar(&cfg.NameMinTTL, "fqdn-min-ttl", cfg.NameMinTTL, "how long an address of a host that policies name holds at least, however short its time to live")
	f.BoolVar(&cfg.NodePolicies, "node-policies", cfg.NodePolicies, "enforce policies that are applied to the node itself (nftables)")
	f.BoolVar(&cfg.MarkOwnTraffic, "mark-own-traffic", cfg.MarkOwnTraffic, "tell the host's own traffic to its Pods, which is always allowed, from what it forwards (nftables)")
	f.StringVar(&cfg.MetricsListen, "metrics-listen", cfg.MetricsListen, "address of /metrics, /healthz and /readyz; none if empty")
	f.StringVar(&cfg.Socket, "socket", cfg.Socket, "Unix socket on which the node's CNI plugin and operators ask about ports; none if empty")
	f.StringVar(&cfg.PodNetwork, "pod-network", cfg.PodNetwork, "how Pods of other nodes are reached: off (somebody else sees to it), routed (routes through the nodes' addresses, on one link) or vxlan")
	f.BoolVar(&cfg.Masquerade, "masquerade", cfg.Masquerade, "with a Pod network: what Pods send out of the cluster bears the node's address (nftables)")
	f.IntVar(&cfg.VXLANID, "vxlan-id", cfg.VXLANID, "network identifier of the Pod network's VXLAN, the same on all nodes")
	f.IntVar(&cfg.VXLANPort, "vxlan-port", cfg.VXLANPort, "UDP port of the Pod network's VXLAN, the same on all nodes")
	f.StringVar(&cfg.CNIConfDir, "cni-conf-dir", cfg.CNIConfDir, "folder where "+cni.ConflistName+" is written once Pods can be added (/etc/cni/net.d); nothing if empty")
	f.StringVar(&cfg.CNIBinDir, "cni-bin-dir", cfg.CNIBinDir, "folder where weir-cni, and host-local if it is there, are installed from beside this program (/opt/cni/bin); nothing if empty")
	f.DurationVar(&cfg.PeerBarrier, "peer-barrier", cfg.PeerBarrier, "how long a new Pod's port waits at the most for other nodes to have the Pod's address, where their drop, reject or pass rules await it; 0 for not at all")
	f.DurationVar(&cfg.Reconcile, "reconcile", cfg.Reconcile, "how often the bridge is read back and mended")
	f.DurationVar(&cfg.StatsInterval, "stats-interval", cfg.StatsInterval, "how often it is read and reported what rules matched")
	f.StringVar(&cfg.Uplink, "uplink", cfg.Uplink, "port of the bridge by which the node reaches its network, where that is on the bridge; a physical device by default")
	f.StringVar(&cfg.Adopt, "adopt", cfg.Adopt, "what becomes of connections that are older than the adoption of a bridge with running Pods: judge (as if they were new) or allow-established (of TCP)")
	f.DurationVar(&cfg.AdoptWindow, "adopt-window", cfg.AdoptWindow, "with --adopt=allow-established: how long after the adoption such connections are found and let through")
	f.DurationVar(&cfg.RecoveryWindow, "recovery-window", cfg.RecoveryWindow, "how long after a restart of the switch TCP connections that were allowed are found by what answers them; 0 for not at all")
	f.BoolVar(&cfg.TakeOver, "take-over", cfg.TakeOver, "go on where Antrea's agent is at work on the node")
	f.StringVar(&cfg.AntreaRunDir, "antrea-run-dir", cfg.AntreaRunDir, "folder of the sockets by which Antrea's agent is known; not looked at if empty")
	f.StringVar(&level, "log-level", "info", "trace, debug, info, warn or error")
	cmd.AddCommand(uninstall(&cfg, &level), check(&cfg, &level))
	return cmd
}

// uninstall takes the flags of the shim that it removes; those that say nothing
// of what a shim leaves on a node mean nothing to it.
func uninstall(cfg *shim.Config, level *string) *cobra.Command {
	var force, wait bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take from the node what weir-shim put there, and leave its traffic flowing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: "weir-shim", Level: hclog.LevelFromString(*level)})
			if err := shim.Uninstall(cmd.Context(), *cfg, force); err != nil || !wait {
				return err
			}
			return shim.Idle(cmd.Context(), *cfg)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "go on although a shim is running")
	cmd.Flags().BoolVar(&wait, "wait", false, "then stay, and answer /readyz at --metrics-listen, in the place of a shim")
	return cmd
}
