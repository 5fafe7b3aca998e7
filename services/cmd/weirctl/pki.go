package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/services/identity"
)

func newPKI(streams Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "pki", Short: "Make certificates"}
	var cfg identity.InitConfig
	init := &cobra.Command{
		Use:   "init --dir DIR [--node NAME]... [--server NAME|IP]...",
		Short: "Make a CA and the certificates of a first installation",
		Long: "Make a CA, certificates for policyd, auditd and operators, and one for the shim of each node\n" +
			"(node-NAME). Who a certificate is for stands in its URI: weir://node/NAME or weir://role/ROLE.\n" +
			"Private keys can be read by their owner alone. Nothing is overwritten.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg.Now = time.Now()
			written, err := identity.Init(cfg)
			for _, path := range written {
				fmt.Fprintln(streams.Out, path)
			}
			return err
		},
	}
	init.Flags().StringVar(&cfg.Dir, "dir", "", "folder to write to")
	init.Flags().StringArrayVar(&cfg.Nodes, "node", nil, "name of a node; may be given several times")
	init.Flags().StringArrayVar(&cfg.Servers, "server", nil, "name or address of the servers, besides localhost; may be given several times")
	must(init.MarkFlagRequired("dir"))
	cmd.AddCommand(init)
	return cmd
}
