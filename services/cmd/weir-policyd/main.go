// Command weir-policyd is the policy service: it works out what each node must
// enforce and streams it.
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

	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy"
)

func main() {
	signal.Ignore(syscall.SIGHUP) // It may be meant for all that log: there is no file of ours to open anew.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weir-policyd:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var cfg policy.Config
	var level string
	var issue bool
	var issuer identity.ClusterConfig
	var grants []string
	cmd := &cobra.Command{
		Use:           "weir-policyd",
		Short:         "Work out what each node must enforce, and stream it",
		Version:       policy.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inPod := os.Getenv("KUBERNETES_SERVICE_HOST") != ""
			cfg.Kubernetes = cfg.Kubeconfig != "" || cfg.Manifests == "" && inPod
			cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: "weir-policyd", Level: hclog.LevelFromString(level)})
			cfg.WebhookNamespace, cfg.Namespace = issuer.Namespace, issuer.Namespace
			if issue {
				if cfg.TLS.Cert != "" || cfg.TLS.Key != "" {
					return errors.New("--issue-certificates makes the service's own certificate: leave --cert and --key out")
				}
				issuer.Kubeconfig, issuer.Trust, issuer.Logger = cfg.Kubeconfig, cfg.TLS.CA, cfg.Logger.Named("identity")
				cfg.Cluster, cfg.TLS = &issuer, identity.Files{}
				for _, text := range grants {
					g, err := identity.ParseGrant(text)
					if err != nil {
						return fmt.Errorf("--grant: %w", err)
					}
					cfg.Grants = append(cfg.Grants, g)
				}
			}
			s, err := policy.New(cfg)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Manifests, "manifests", "", "folder of manifests, read again whenever it changes")
	f.StringVar(&cfg.Kubeconfig, "kubeconfig", "", "kubeconfig of the API server to read; in a Pod without --manifests, that of the cluster by the Pod's service account")
	f.BoolVar(&cfg.TakeOver, "take-over", false, "start although Antrea's kinds are installed: its agents must not run any more")
	f.BoolVar(&cfg.ChangeTrail, "change-trail", true, "tell those who watch changes what policies, tiers and groups say and who wrote it; keeping that costs about 400 bytes each")
	f.StringVar(&cfg.Listen, "listen", identity.DefaultPolicyAddress, "address of gRPC")
	f.StringVar(&cfg.Metrics, "metrics-listen", "127.0.0.1:9750", "address of /metrics, /healthz and /readyz; none if empty")
	f.StringVar(&cfg.TLS.CA, "ca", "", "file of the certificate authority of Weir's parts, PEM; never that of the cluster's client certificates, whose holders could then pass for parts")
	f.StringVar(&cfg.TLS.Cert, "cert", "", "file of the server's certificate, PEM")
	f.StringVar(&cfg.TLS.Key, "key", "", "file of the certificate's key, PEM")
	f.BoolVar(&cfg.Insecure, "insecure", false, "listen in plain text beyond loopback")
	f.DurationVar(&cfg.MaxConnectionAge, "max-connection-age", 30*time.Minute, "after how long a shim is sent to connect anew; 0 for never")
	f.BoolVar(&cfg.RuleMetrics, "rule-metrics", true, "have /metrics tell of each rule by itself what it matched, of at most 20,000")
	f.StringVar(&cfg.Webhook, "webhook-listen", "", "address of the admission webhooks, over HTTPS; none if empty")
	f.StringSliceVar(&cfg.WebhookConfigurations, "webhook-configuration", nil, "MutatingWebhookConfiguration, beside those of the manifests, that calls the webhooks and is given the certificate authority; may be repeated")
	f.StringSliceVar(&cfg.Replicas, "replicas", nil, "host:port of all replicas, to wait for each other's nodes before a new Pod's port opens, and to answer for each other; a name may have several addresses")
	f.BoolVar(&issue, "issue-certificates", false, "keep a certificate authority in the Secret weir-pki of --namespace, and give certificates to who has a token; --ca then names further authorities")
	f.StringVar(&issuer.Namespace, "namespace", os.Getenv("POD_NAMESPACE"), "Namespace of Weir itself, where the replicas agree on who writes the status of policies; POD_NAMESPACE by default")
	f.StringSliceVar(&issuer.Hosts, "server-name", nil, "name or address by which the service is reached, for its certificate; may be repeated")
	f.DurationVar(&issuer.Lifetime, "certificate-lifetime", 8*time.Hour, "of certificates that are issued; they are renewed after two thirds of it")
	f.StringArrayVar(&grants, "grant", nil, "who gets a certificate by a token, ROLE=NAMESPACE/SERVICEACCOUNT; the role is node, auditd (with ,HOST for each of its names), operator or reader (with ,NAMESPACE for each whose record it may read); may be repeated")
	f.StringVar(&level, "log-level", "info", "trace, debug, info, warn or error")
	return cmd
}
