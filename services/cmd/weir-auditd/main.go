// Command weir-auditd is the audit collector: it stores what nodes report,
// writes and forwards it, and answers those who read the record.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/weirnet/weir/services/audit"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/storage/eventlog"
)

func main() {
	hangup := make(chan os.Signal, 1) // One slot: one that comes while the log is opened is remembered.
	signal.Notify(hangup, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(hangup).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weir-auditd:", err)
		os.Exit(1)
	}
}

func command(hangup <-chan os.Signal) *cobra.Command {
	var cfg audit.Config
	var enroll, forward identity.EnrolledConfig
	var nats eventlog.NATSConfig
	var level, zone, retention, rotate, free string
	cmd := &cobra.Command{
		Use:           "weir-auditd",
		Short:         "Store, print and forward what nodes report",
		Version:       audit.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: "weir-auditd", Level: hclog.LevelFromString(level)})
			var err error
			if cfg.LogZone, err = location(zone); err != nil {
				return err
			}
			var rotateBytes uint64
			for _, q := range []struct {
				flag, text string
				to         *uint64
			}{{"--retention-size", retention, &cfg.RetentionBytes}, {"--rotate-size", rotate, &rotateBytes}, {"--min-free", free, &cfg.MinFree}} {
				if *q.to, err = size(q.flag, q.text); err != nil {
					return err
				}
			}
			cfg.Rotation.MaxBytes = int64(rotateBytes)
			if enroll.TokenFile != "" {
				if cfg.TLS.Cert != "" || cfg.TLS.Key != "" {
					return errors.New("--token-file gets the collector its certificate: leave --cert and --key out")
				}
				enroll.CA, enroll.Logger = cfg.TLS.CA, cfg.Logger.Named("identity")
				cfg.Enroll, cfg.TLS = &enroll, identity.Files{}
			}
			if forward.TokenFile != "" {
				if cfg.ForwardTLS.Cert != "" || cfg.ForwardTLS.Key != "" {
					return errors.New("--forward-token-file gets the collector a certificate: leave --forward-cert and --forward-key out")
				}
				forward.CA, forward.PolicyServers, forward.Logger = cfg.ForwardTLS.CA, enroll.PolicyServers, cfg.Logger.Named("identity")
				cfg.ForwardEnroll, cfg.ForwardTLS = &forward, identity.Files{}
			}
			if cfg.Node == "" { // That of a node leaves it to the central one: a cluster has many.
				cfg.PolicyServers = enroll.PolicyServers
			}
			if len(nats.Servers) > 0 {
				if cfg.NATS = &nats; nats.Collector == "" {
					if nats.Collector, err = os.Hostname(); err != nil {
						return fmt.Errorf("--nats-collector is needed: %w", err)
					}
				}
			}
			s, err := audit.New(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			go reopenOnHangup(cmd.Context(), hangup, s)
			return s.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Dir, "dir", "/var/lib/weir-audit", "folder of the event log")
	f.StringVar(&cfg.Listen, "listen", identity.DefaultAuditAddress, "address of gRPC")
	f.StringVar(&cfg.Metrics, "metrics-listen", "127.0.0.1:9751", "address of /metrics, /healthz and /readyz; none if empty")
	f.StringVar(&cfg.TLS.CA, "ca", "", "file of the certificate authority, PEM")
	f.StringVar(&cfg.TLS.Cert, "cert", "", "file of the server's certificate, PEM")
	f.StringVar(&cfg.TLS.Key, "key", "", "file of the certificate's key, PEM")
	f.StringVar(&enroll.TokenFile, "token-file", "", "file of a service-account token, by which the policy service gives a certificate; in place of --cert and --key")
	f.StringSliceVar(&enroll.PolicyServers, "policy-server", nil, "host:port of the policy service, by which records get names and the trail of changes is kept (not with --node), and for --token-file and --forward-token-file; may be repeated")
	f.BoolVar(&cfg.Insecure, "insecure", false, "listen, and forward, in plain text beyond loopback")
	f.DurationVar(&cfg.RetentionAge, "retention-age", 30*24*time.Hour, "how long records are kept; 0 for ever")
	f.StringVar(&retention, "retention-size", "10Gi", "how much disk the event log may take; 0 for any")
	f.StringVar(&free, "min-free", "256Mi", "room on the event log's disk below which nothing is taken")
	f.StringSliceVar(&nats.Servers, "nats", nil, "nats://HOST:PORT or tls://HOST:PORT of a NATS JetStream cluster that keeps the event log, in place of --dir; may be repeated")
	f.StringVar(&nats.Stream, "nats-stream", "weir-audit", "stream of the event log, which collectors may share; made if it is absent")
	f.IntVar(&nats.Replicas, "nats-replicas", eventlog.DefaultReplicas, "on how many servers the stream is at least")
	f.StringVar(&nats.Collector, "nats-collector", "", "name of this collector among those that share the stream, the same in every life: its sinks go on from their cursors by it; the host's if empty")
	f.StringVar(&nats.CA, "nats-ca", "", "file of the certificate authority of the NATS servers, PEM; with it nats:// is by TLS too")
	f.StringVar(&nats.Cert, "nats-cert", "", "file of the certificate for NATS, PEM")
	f.StringVar(&nats.Key, "nats-key", "", "file of that certificate's key, PEM")
	f.StringVar(&nats.Credentials, "nats-credentials", "", "file of a NATS user's credentials")
	f.StringVar(&cfg.NPLogDir, "np-log-dir", "/var/log/weir", "folder of the nodes' folders with np.log; none if empty")
	f.StringVar(&cfg.NPLog, "np-log", "", "np.log of the node of --node, such as /var/log/antrea/networkpolicy/np.log")
	f.StringVar(&cfg.Node, "node", "", "node whose lines go to --np-log; with --forward, only that node may report, and its record is forwarded")
	f.StringVar(&cfg.NPLogIsolation, "np-log-isolation", audit.IsolationKind, "how np.log refers to the policies of an isolation drop: kind or named")
	f.StringVar(&zone, "log-timezone", "Local", "time zone of np.log, such as UTC or Europe/Berlin")
	f.StringVar(&cfg.JSONFile, "json-file", "", "file of JSON lines; none if empty")
	f.StringArrayVar(&cfg.Syslog, "syslog", nil, "udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT, RFC 5424; may be repeated")
	f.StringVar(&cfg.Sinks, "sinks", "", "file of further sinks, YAML; none if empty")
	f.StringSliceVar(&cfg.Forward, "forward", nil, "host:port of another collector to send the record on to; may be repeated, for several addresses of it")
	f.StringVar(&cfg.ForwardTLS.CA, "forward-ca", "", "file of the certificate authority to forward with, PEM; these four are for forwarding alone, which otherwise uses --ca, --cert and --key, or --token-file")
	f.StringVar(&cfg.ForwardTLS.Cert, "forward-cert", "", "file of the certificate to forward with, such as the node's, PEM")
	f.StringVar(&cfg.ForwardTLS.Key, "forward-key", "", "file of that certificate's key, PEM")
	f.StringVar(&forward.TokenFile, "forward-token-file", "", "file of a service-account token, by which the policy service gives a certificate to forward with; in place of --forward-cert and --forward-key")
	f.StringVar(&rotate, "rotate-size", "500Mi", "size at which a file is set aside; 0 for never")
	f.DurationVar(&cfg.Rotation.Every, "rotate-every", 0, "age at which a file is set aside; 0 for never")
	f.IntVar(&cfg.Rotation.Keep, "rotate-keep", 3, "how many files set aside are kept; 0 for all")
	f.DurationVar(&cfg.Rotation.KeepAge, "rotate-keep-age", 28*24*time.Hour, "how long files set aside are kept; 0 for ever")
	f.BoolVar(&cfg.Rotation.Gzip, "rotate-gzip", true, "compress files set aside")
	f.IntVar(&cfg.MaxSubscribers, "max-subscribers", audit.DefaultMaxSubscribers, "how many callers may read the record at once; of one identity, half of them")
	f.StringVar(&level, "log-level", "info", "trace, debug, info, warn or error")
	return cmd
}

// reopenOnHangup opens files anew at each SIGHUP, until the context ends.
func reopenOnHangup(ctx context.Context, hangup <-chan os.Signal, s *audit.Service) {
	for {
		select {
		case <-hangup:
			s.Reopen()
		case <-ctx.Done():
			return
		}
	}
}

func location(name string) (*time.Location, error) {
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("--log-timezone %q: %w", name, err)
	}
	return zone, nil
}

// size reads a size such as 500Mi, 10Gi or 1000000.
func size(flag, text string) (uint64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return 0, fmt.Errorf("%s %q: write a size such as 500Mi", flag, text)
	}
	return uint64(q.Value()), nil
}
