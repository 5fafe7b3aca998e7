package main

import (
	"fmt"
	"io"
	"os"
	"strings"
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
	cmd.AddCommand(init, newReader(streams), newEnroll(streams))
	return cmd
}

func newReader(streams Streams) *cobra.Command {
	var cfg identity.ReaderConfig
	cmd := &cobra.Command{
		Use:   "reader --dir DIR --name NAME --namespace NAMESPACE...",
		Short: "Make a certificate by which the audit record of some Namespaces can be read",
		Long: "Make reader-NAME.crt and reader-NAME.key, signed by the CA in DIR. Who shows them reads what concerns\n" +
			"Pods and policies of these Namespaces (weirctl audit tail); of a record whose other end is foreign,\n" +
			"not who that is. Nothing is overwritten.",
		Example: "  weirctl pki reader --dir pki --name shop-team --namespace shop --namespace cart",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg.Now = time.Now()
			written, err := identity.IssueReader(cfg)
			for _, path := range written {
				fmt.Fprintln(streams.Out, path)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Dir, "dir", "", "folder of ca.crt and ca.key, to write to")
	f.StringVar(&cfg.Name, "name", "", "of the files: reader-NAME")
	f.StringArrayVar(&cfg.Namespaces, "namespace", nil, "whose record may be read; may be given several times")
	for _, name := range []string{"dir", "name", "namespace"} {
		must(cmd.MarkFlagRequired(name))
	}
	return cmd
}

func newEnroll(streams Streams) *cobra.Command {
	var server, ca, tokenFile, dir string
	cmd := &cobra.Command{
		Use:   "enroll --server HOST:PORT --ca FILE --token-file FILE|- --dir DIR",
		Short: "Get a certificate from the policy service of a cluster, by a service-account token",
		Long: "Get a short-lived certificate from the policy service of a cluster, and write it with its key and\n" +
			"the CA as NAME.crt, NAME.key and ca.crt; NAME is who the token is for, as a rule operator. A token is\n" +
			"made by kubectl create token weir-operator --namespace weir-system --audience weir. What an earlier\n" +
			"call wrote is replaced.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := readToken(streams.In, tokenFile)
			if err != nil {
				return err
			}
			written, err := identity.EnrollFiles(cmd.Context(), identity.EnrollFilesConfig{Server: server, CA: ca, Token: token, Dir: dir})
			for _, path := range written {
				fmt.Fprintln(streams.Out, path)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&server, "server", identity.DefaultPolicyAddress, "address of the policy service, HOST:PORT")
	f.StringVar(&ca, "ca", "", "file of its certificate authority, PEM")
	f.StringVar(&tokenFile, "token-file", "", "file of the token; - for standard input")
	f.StringVar(&dir, "dir", "", "folder to write to")
	for _, name := range []string{"ca", "token-file", "dir"} {
		must(cmd.MarkFlagRequired(name))
	}
	return cmd
}

func readToken(in io.Reader, path string) (string, error) {
	var text []byte
	var err error
	if path == "-" {
		text, err = io.ReadAll(in)
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
