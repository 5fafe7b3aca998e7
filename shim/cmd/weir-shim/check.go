package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim"
)

var (
	errDiffers = errors.New("the bridge is not as it ought to be") // Exit status 1.
	errUnknown = errors.New("it cannot be told")                   // Exit status 2.
)

// check takes the flags of the shim whose bridge it looks at.
func check(cfg *shim.Config, level *string) *cobra.Command {
	var output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare the bridge's flows, groups and meters with those that the node's state asks for",
		Long: "Compare what the bridge holds with what it ought to. The running shim is asked, at --socket; where none\n" +
			"answers, the checkpoint in --state-dir is compared. Nothing is mended: a running shim does that by itself,\n" +
			"every --reconcile.\n\n" +
			"The exit status is 0 where nothing differs, 1 where something does, and 2 where it cannot be told.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("%w: --output %q: write json, or leave it out", errUnknown, output)
			}
			if !cmd.Flags().Changed("log-level") {
				*level = "warn" // The answer alone.
			}
			cfg.Logger = hclog.New(&hclog.LoggerOptions{Name: "weir-shim", Level: hclog.LevelFromString(*level)})
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			resp, err := compareBridge(ctx, cfg)
			if err != nil {
				return fmt.Errorf("%w: %w", errUnknown, err)
			}
			if output == "json" {
				err = showJSON(cmd.OutOrStdout(), resp)
			} else {
				err = showCheck(cmd.OutOrStdout(), resp)
			}
			if err != nil {
				return fmt.Errorf("%w: %w", errUnknown, err)
			}
			if len(resp.GetDifferences()) > 0 || resp.GetDigestDiffers() {
				return errDiffers
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, for programs; a table if empty")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for an answer")
	return cmd
}

// compareBridge asks the shim, or where none answers reads the checkpoint.
func compareBridge(ctx context.Context, cfg *shim.Config) (*policyv1.CheckResponse, error) {
	if cfg.Socket != "" {
		conn, err := grpc.NewClient("unix:"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		c := policyv1.NewNodeServiceClient(conn)
		_, err = c.Status(ctx, &policyv1.NodeServiceStatusRequest{})
		if err == nil {
			return c.Check(ctx, &policyv1.CheckRequest{})
		}
		if status.Code(err) != codes.Unavailable {
			return nil, err
		}
	}
	return shim.Check(ctx, *cfg)
}

// showJSON writes the answer as it is in node.proto, every field of it. The
// encoder varies its white space on purpose, so that it is indented anew.
func showJSON(w io.Writer, resp *policyv1.CheckResponse) error {
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(resp)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, out.String())
	return err
}

func showCheck(w io.Writer, resp *policyv1.CheckResponse) error {
	var b bytes.Buffer
	if list := resp.GetDifferences(); len(list) > 0 {
		var table bytes.Buffer
		t := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t, "DIFFERENCE\tWHERE\tPRIORITY\tMATCH\tSTANDS FOR")
		for _, d := range list {
			kind := strings.ToLower(strings.TrimPrefix(d.GetKind().String(), "DIFFERENCE_KIND_"))
			if d.GetObject() != "flow" {
				fmt.Fprintf(t, "%s\t%s %d\t-\t-\t-\n", kind, d.GetObject(), d.GetId())
			} else {
				fmt.Fprintf(t, "%s\t%s (%d)\t%d\t%s\t%s\n", kind, or(d.GetTableName(), "no table of ours"), d.GetTable(), d.GetPriority(), or(d.GetMatch(), "any"), standsFor(d.GetMeaning()))
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for i, line := range strings.SplitAfter(table.String(), "\n") { // The columns are those of all rows.
			b.WriteString(line)
			if i == 0 || i > len(list) {
				continue
			}
			for _, side := range []struct{ name, text string }{{"intended", list[i-1].GetIntended()}, {"installed", list[i-1].GetInstalled()}} {
				if side.text != "" {
					fmt.Fprintf(&b, "  %s: %s\n", side.name, side.text)
				}
			}
		}
		if more := int(resp.GetMissing()+resp.GetChanged()+resp.GetUnexpected()) - len(list); more > 0 {
			fmt.Fprintf(&b, "and %d more\n", more)
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "%d missing, %d changed, %d unexpected; the bridge ought to hold %d flows, %d groups and %d meters\n",
		resp.GetMissing(), resp.GetChanged(), resp.GetUnexpected(), resp.GetFlows(), resp.GetGroups(), resp.GetMeters())
	if resp.GetDigestDiffers() {
		fmt.Fprintln(&b, "the node's state is not what the policy service sent: its digest differs")
	} else {
		fmt.Fprintf(&b, "the node's state is what the policy service sent: digest %s\n", hex.EncodeToString(resp.GetDigest()))
	}
	for _, n := range resp.GetNotes() {
		fmt.Fprintln(&b, n)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// standsFor is a flow's meaning in a few words.
func standsFor(m *policyv1.FlowMeaning) string {
	text := m.GetKind()
	if m.GetPod() != "" {
		text += " of " + m.GetPod()
	}
	if m.GetService() != "" {
		text += " " + m.GetService()
	}
	const most = 3
	for i, r := range m.GetRules() {
		if i == most {
			return text + fmt.Sprintf(", and %d more", len(m.GetRules())-most)
		}
		sep := ", "
		if i == 0 {
			sep = " of "
		}
		p := r.GetPolicy()
		name := p.GetName()
		if p.GetNamespace() != "" {
			name = p.GetNamespace() + "/" + name
		}
		text += sep + kindName(p.GetKind()) + ":" + name
		if r.GetRule() != "" {
			text += " " + r.GetRule()
		}
	}
	return text
}

// kindName is a policy's kind as audit lines have it, such as "K8sNetworkPolicy".
func kindName(kind policyv1.PolicyKind) string {
	var b strings.Builder
	for word := range strings.SplitSeq(strings.TrimPrefix(kind.String(), "POLICY_KIND_"), "_") {
		b.WriteString(word[:1] + strings.ToLower(word[1:]))
	}
	return b.String()
}
