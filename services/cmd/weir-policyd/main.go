// Command weir-policyd is the policy service: it works out what each node must
// enforce and streams it.
package main

import (
	"context"
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
	f.StringVar(&cfg.Listen, "listen", identity.DefaultPolicyAddress, "address of gRPC")
	f.StringVar(&cfg.Metrics, "metrics-listen", "127.0.0.1:9750", "address of /metrics, /healthz and /readyz; none if empty")
	f.StringVar(&cfg.TLS.CA, "ca", "", "file of the certificate authority, PEM")
	f.StringVar(&cfg.TLS.Cert, "cert", "", "file of the server's certificate, PEM")
	f.StringVar(&cfg.TLS.Key, "key", "", "file of the certificate's key, PEM")
	f.BoolVar(&cfg.Insecure, "insecure", false, "listen in plain text beyond loopback")
	f.DurationVar(&cfg.MaxConnectionAge, "max-connection-age", 30*time.Minute, "after how long a shim is sent to connect anew; 0 for never")
	f.StringSliceVar(&cfg.Replicas, "replicas", nil, "host:port of all replicas, to wait for each other's nodes before a new Pod's port opens; a name may have several addresses")
	f.StringVar(&level, "log-level", "info", "trace, debug, info, warn or error")
	return cmd
}
