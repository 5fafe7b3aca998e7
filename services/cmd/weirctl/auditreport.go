package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// reportFormat is the flag -o of a report.
type reportFormat string

const asDOT reportFormat = "dot"

func (f *reportFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *reportFormat) Type() string { return "table|json|dot" }

// Set implements pflag.Value.
func (f *reportFormat) Set(s string) error {
	switch s {
	case string(table), string(asJSON), string(asDOT):
		*f = reportFormat(s)
		return nil
	}
	return fmt.Errorf("write table, json or dot")
}

func newAuditReport(streams Streams) *cobra.Command {
	var server dial
	var req auditv1.SummarizeRequest
	var filter auditv1.RecordFilter
	var since, until, action, counters string
	output := reportFormat(table)
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Say who talked to whom, and with which verdict",
		Long: "Group the packets of a time range by source and destination workload, port, verdict, and the verdict\n" +
			"with the staged policies. Only what is on record is shown: what rules with logging, isolation of\n" +
			"annotated Namespaces and staged policies concern, and where shims run with --observe a sample of all\n" +
			"new connections (marked as observed). With --counters the rules' own counters are added, which count\n" +
			"every packet, logged or not, since they began to count.",
		Example: "  weirctl audit report --since 24h --namespace shop\n" +
			"  weirctl audit report --since 1h -o dot | dot -Tsvg > flows.svg\n" +
			"  weirctl audit report --counters weir-policyd",
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&since, "since", "", "not before: a time such as 2006-01-02T15:04:05Z, or how long ago, such as 10m")
	flags.StringVar(&until, "until", "", "before: as --since")
	flags.StringVar(&filter.Node, "node", "", "of this node alone")
	flags.StringVar(&filter.Namespace, "namespace", "", "of a Pod of this Namespace")
	flags.StringVar(&filter.Pod, "pod", "", "of this Pod, NAMESPACE/NAME")
	flags.StringVar(&filter.Policy, "policy", "", "of this policy, NAMESPACE/NAME or NAME")
	flags.StringVar(&action, "action", "", "allow, drop or reject")
	flags.BoolVar(&filter.Staged, "staged", false, "only packets that fare otherwise with the staged policies")
	flags.Uint32Var(&req.Limit, "limit", 0, "rows at most, those with most packets; zero for 10,000")
	flags.StringVar(&counters, "counters", "", "add the rules' counters of the policies named, of the policy service at HOST:PORT, or weir-policyd: of the kubeconfig's cluster")
	flags.VarP(&output, "output", "o", "how to show the answer")
	server.flags(cmd, auditService)
	if err := flags.Set("timeout", "5m"); err != nil { // A log of millions of records is read.
		panic(err)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		now := time.Now()
		if filter.Since, err = moment("--since", since, now); err != nil {
			return err
		}
		if filter.Until, err = moment("--until", until, now); err != nil {
			return err
		}
		if filter.Action, err = enum[policyv1.Action]("--action", action, "ACTION_", policyv1.Action_value, "allow, drop or reject"); err != nil {
			return err
		}
		req.Filter = &filter
		conn, ctx, done, err := server.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		resp, err := auditv1.NewAuditServiceClient(conn).Summarize(ctx, &req)
		if err != nil {
			return server.failed("audit report", err)
		}
		var counted []*policyv1.PolicySummary
		if counters != "" {
			if counted, err = countersOf(ctx, server, counters, resp); err != nil {
				return err
			}
		}
		switch output {
		case reportFormat(asJSON):
			return reportJSON(streams, resp, counted)
		case asDOT:
			return reportDOT(streams.Out, resp)
		default:
			return reportTable(streams, resp, counted)
		}
	}
	return cmd
}

// countersOf asks the policy service for the counters of the policies in a report.
func countersOf(ctx context.Context, server dial, address string, resp *auditv1.SummarizeResponse) ([]*policyv1.PolicySummary, error) {
	named := make(map[string]bool)
	for _, f := range resp.GetFlows() {
		for _, p := range f.GetPolicies() {
			named[p] = true
		}
	}
	server.service, server.server = policyService, ""
	if address != policyService.name {
		server.server, server.kubeconfig = address, kubeconfig{}
	}
	conn, err := server.client(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	list, err := policyv1.NewInspectionServiceClient(conn).ListPolicies(ctx, &policyv1.ListPoliciesRequest{Stats: true})
	if err != nil {
		return nil, server.failed("counters", err)
	}
	var out []*policyv1.PolicySummary
	for _, p := range list.GetPolicies() {
		ref := record.Policy{Kind: p.GetRef().GetKind(), Namespace: p.GetRef().GetNamespace(), Name: p.GetRef().GetName()}
		if named[ref.String()] {
			out = append(out, p)
		}
	}
	return out, nil
}

// reportJSON is {"report": …, "counters": […]}, of the messages' own JSON.
func reportJSON(streams Streams, resp *auditv1.SummarizeResponse, counted []*policyv1.PolicySummary) error {
	m := protojson.MarshalOptions{EmitUnpopulated: true}
	report, err := m.Marshal(resp)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	list, err := m.Marshal(&policyv1.ListPoliciesResponse{Policies: counted})
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return printRaw(streams.Out, `{"report":`, report, `,"counters":`, list, `}`)
}

func reportTable(streams Streams, resp *auditv1.SummarizeResponse, counted []*policyv1.PolicySummary) error {
	span := "none"
	if resp.GetFrom() != nil {
		span = stampText(resp.GetFrom().AsTime()) + " to " + stampText(resp.GetTo().AsTime())
	}
	fmt.Fprintf(streams.Out, "%d packets in %d records, %s", resp.GetPackets(), resp.GetRecords(), span)
	if resp.GetLost() > 0 {
		fmt.Fprintf(streams.Out, "; %d packets of the time were lost, and are in no row", resp.GetLost())
	}
	fmt.Fprint(streams.Out, "\n\n")
	var rows [][]string
	for _, f := range resp.GetFlows() {
		rows = append(rows, []string{f.GetSource(), f.GetDestination(), f.GetService(), portText(f), lower(f.GetDirection().String(), "DIRECTION_"), verdictText(f), stagedText(f),
			fmt.Sprint(f.GetPackets()), fmt.Sprint(f.GetRecords()), policiesText(f)})
	}
	if err := printTable(streams.Out, []string{"SOURCE", "DESTINATION", "SERVICE", "PORT", "DIRECTION", "VERDICT", "STAGED", "PACKETS", "RECORDS", "POLICIES"}, rows); err != nil {
		return err
	}
	if resp.GetMore() > 0 {
		fmt.Fprintf(streams.Out, "… and %d rows more; --limit shows them\n", resp.GetMore())
	}
	if len(counted) == 0 {
		return nil
	}
	fmt.Fprintln(streams.Out)
	header, rows := matched(counted)
	return printTable(streams.Out, header, rows)
}

func portText(f *auditv1.FlowSummary) string {
	text := record.ProtocolName(uint8(f.GetProtocol()))
	if f.GetPort() != 0 {
		text += "/" + fmt.Sprint(f.GetPort())
	}
	return text
}

func verdictText(f *auditv1.FlowSummary) string {
	text := lower(f.GetAction().String(), "ACTION_")
	if f.GetObserved() {
		text += " (observed)"
	}
	return text
}

func stagedText(f *auditv1.FlowSummary) string {
	if f.GetStaged() == 0 {
		return ""
	}
	return lower(f.GetStaged().String(), "ACTION_")
}

// policiesText is the first policy, and how many more there are.
func policiesText(f *auditv1.FlowSummary) string {
	switch p := f.GetPolicies(); len(p) {
	case 0:
		return ""
	case 1:
		return p[0]
	default:
		return fmt.Sprintf("%s and %d more", p[0], len(p)-1)
	}
}

// edgeColours of a graph, by verdict.
var edgeColours = map[policyv1.Action]string{
	policyv1.Action_ACTION_ALLOW: "darkgreen", policyv1.Action_ACTION_DROP: "red", policyv1.Action_ACTION_REJECT: "orange",
}

// reportDOT writes a graph for Graphviz: an arrow a row; dashed where the staged
// policies would decide otherwise.
func reportDOT(w io.Writer, resp *auditv1.SummarizeResponse) error {
	if _, err := fmt.Fprintln(w, "digraph flows {\n  rankdir=LR;\n  node [shape=box];"); err != nil {
		return err
	}
	for _, f := range resp.GetFlows() {
		label := fmt.Sprintf("%s %s, %d", portText(f), verdictText(f), f.GetPackets())
		style := "solid"
		if f.GetStaged() != 0 {
			label += ", staged: " + stagedText(f)
			style = "dashed"
		}
		colour := edgeColours[f.GetAction()]
		if colour == "" {
			colour = "black"
		}
		if _, err := fmt.Fprintf(w, "  %s -> %s [label=%s, color=%s, style=%s];\n", strconv.Quote(f.GetSource()), strconv.Quote(f.GetDestination()), strconv.Quote(label), colour, style); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, "}")
	return err
}
