package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

func newAudit(streams Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read the audit record"}
	cmd.AddCommand(newAuditTail(streams), newAuditStats(streams), newAuditReport(streams), newAuditExplain(streams), newAuditSchema(streams), newAuditTestSink(streams))
	return cmd
}

func newAuditTail(streams Streams) *cobra.Command {
	var server dial
	var req auditv1.TailRequest
	var filter auditv1.RecordFilter
	var action, direction, since, until string
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print records, and follow what comes",
		Long: "Print the records of the log, oldest first. Each has a cursor; --after continues behind one. But in\n" +
			"a table every record is one line, as the collector's own outputs write it without merging; np.log\n" +
			"has lines of packets alone. weirctl audit schema tells of those of -o json. By an operator's\n" +
			"certificate all are shown; by a reader's (weirctl pki reader) those that concern its Namespaces,\n" +
			"without who a foreign end is.",
		Example: "  weirctl audit tail --follow --from-end --pod shop/db --action drop\n" +
			"  weirctl audit tail --since 10m --prefix 10.0.0.0/8 --port 443 -o json\n" +
			"  weirctl audit tail --changes --policy shop/web",
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.Uint64Var(&req.After, "after", 0, "print what comes behind this cursor")
	flags.BoolVarP(&req.Follow, "follow", "f", false, "stay, and print what comes")
	flags.BoolVar(&req.FromEnd, "from-end", false, "begin behind the newest record")
	flags.Uint32VarP(&req.Limit, "limit", "n", 0, "end after so many records; zero for no limit")
	flags.StringVar(&filter.Node, "node", "", "of this node alone")
	flags.StringVar(&filter.Namespace, "namespace", "", "of a Pod of this Namespace")
	flags.StringVar(&filter.Pod, "pod", "", "of this Pod, NAMESPACE/NAME")
	flags.StringVar(&filter.Policy, "policy", "", "of this policy, NAMESPACE/NAME or NAME")
	flags.StringVar(&filter.Prefix, "prefix", "", "with source or destination in this CIDR or at this address")
	flags.Uint32Var(&filter.Port, "port", 0, "with this destination port")
	flags.BoolVar(&filter.Staged, "staged", false, "only packets that fare otherwise with the staged policies")
	flags.BoolVar(&filter.Losses, "losses", true, "losses too")
	flags.BoolVar(&filter.Changes, "changes", false, "changes of policies, tiers and groups too")
	flags.StringVar(&action, "action", "", "allow, drop, reject or pass")
	flags.StringVar(&direction, "direction", "", "ingress or egress")
	flags.StringVar(&since, "since", "", "not before: a time such as 2006-01-02T15:04:05Z, or how long ago, such as 10m")
	flags.StringVar(&until, "until", "", "before: as --since")
	server.flags(cmd, auditService)
	output := recordFormat(table)
	flags.VarP(&output, "output", "o", "how to show records")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if req.FromEnd && req.After != 0 {
			return errors.New("--from-end contradicts --after: give one or the other")
		}
		var err error
		if filter.Action, err = enum[policyv1.Action]("--action", action, "ACTION_", policyv1.Action_value, "allow, drop, reject or pass"); err != nil {
			return err
		}
		if filter.Direction, err = enum[policyv1.Direction]("--direction", direction, "DIRECTION_", policyv1.Direction_value, "ingress or egress"); err != nil {
			return err
		}
		now := time.Now()
		if filter.Since, err = moment("--since", since, now); err != nil {
			return err
		}
		if filter.Until, err = moment("--until", until, now); err != nil {
			return err
		}
		req.Filter = &filter
		return tail(cmd.Context(), &server, &req, streams.Err, newRecordPrinter(streams.Out, output))
	}
	return cmd
}

// enum reads an enum's name; empty is its zero.
func enum[E ~int32](flag, s, prefix string, values map[string]int32, choices string) (E, error) {
	if s == "" {
		return 0, nil
	}
	v, ok := values[prefix+strings.ToUpper(s)]
	if !ok || v == 0 {
		return 0, fmt.Errorf("%s %q: write %s", flag, s, choices)
	}
	return E(v), nil
}

// moment reads a time, or how long ago it was.
func moment(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if ago, err := time.ParseDuration(s); err == nil {
		return timestamppb.New(now.Add(-ago)), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return nil, fmt.Errorf("%s %q: write a time such as 2006-01-02T15:04:05Z, or how long ago, such as 10m", flag, s)
	}
	return timestamppb.New(t), nil
}

// resumeInterval is how soon a stream that was lost is begun anew.
const resumeInterval = time.Second

// tail prints what the collector sends. There is no timeout: a quiet log is no failure.
// Where the collector is lost on the way, it goes on behind the last cursor: for as
// long as it follows, or else until the collector did not answer for the timeout.
func tail(ctx context.Context, server *dial, req *auditv1.TailRequest, warnings io.Writer, print func(*auditv1.Record) error) error {
	conn, err := server.client(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	req.Batch = 1000
	t := tailer{client: auditv1.NewAuditServiceClient(conn), req: req, warnings: warnings, print: print}
	for said := ""; ; {
		before := t.answered
		err := t.read(ctx)
		var call *callError
		switch {
		case !errors.As(err, &call):
			return err
		case ctx.Err() != nil:
			return nil // Interrupted.
		case status.Code(call.error) != codes.Unavailable || t.answered.IsZero() || !req.Follow && time.Since(t.answered) > server.timeout:
			return server.failed("audit tail", call.error)
		}
		if why := server.failed("audit tail", call.error).Error(); why != said || !t.answered.Equal(before) {
			said = why
			fmt.Fprintf(warnings, "%s; going on behind cursor %d\n", why, req.After)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(resumeInterval):
		}
	}
}

// tailer reads a log by as many calls as it takes.
type tailer struct {
	client   auditv1.AuditServiceClient
	req      *auditv1.TailRequest // Of the next call: what was printed is behind.
	answered time.Time            // When the collector said something last.
	warnings io.Writer
	print    func(*auditv1.Record) error
}

// callError is how a call ended, other than by what was to be done with its answers.
type callError struct{ error }

func (t *tailer) read(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := t.client.Tail(ctx, t.req)
	if err != nil {
		return &callError{err}
	}
	for {
		resp, err := stream.Recv()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return &callError{err}
		}
		t.answered = time.Now()
		if n := resp.GetSkipped(); n > 0 {
			fmt.Fprintf(t.warnings, "%d records behind cursor %d are not there any more\n", n, resp.GetCursor())
		}
		records := resp.GetRecords()
		if r := resp.GetRecord(); r != nil { // Of a reader of some Namespaces.
			records = append(records, r)
		}
		for _, r := range records { // None: how far the log was read.
			if err := t.print(r); err != nil {
				return err
			}
		}
		t.req.After, t.req.FromEnd = resp.GetCursor(), false
		if limit := t.req.Limit; limit > 0 {
			if t.req.Limit -= min(limit, uint32(len(records))); t.req.Limit == 0 {
				return nil
			}
		}
	}
}

func newAuditSchema(streams Streams) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the record's JSON lines",
		Long: "Print the JSON Schema (2020-12) of the lines of audit tail -o json and of weir-auditd --json-file.\n" +
			"Each line names its version in the member schema. Within a version members are only added.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(streams.Out, record.JSONSchema)
			return err
		},
	}
}
