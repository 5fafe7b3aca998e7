package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
)

func newAuditExplain(streams Streams) *cobra.Command {
	var server dial
	cmd := &cobra.Command{
		Use:   "explain RECORD",
		Short: "Show a record's packet, and the policies as they were in force then",
		Long: "Show the record at a cursor (the first column of weirctl audit tail), whose the packet's ends were,\n" +
			"and each of its policies as it was at that time: who had changed it last, and what became of it since.",
		Example: "  weirctl audit explain 481516",
		Args:    cobra.ExactArgs(1),
	}
	server.flags(cmd, auditService)
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cursor, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil || cursor == 0 {
			return fmt.Errorf("record %q: write the number of a record, the first column of weirctl audit tail", args[0])
		}
		conn, ctx, done, err := server.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		e := explained{client: auditv1.NewAuditServiceClient(conn), server: &server}
		if err := e.read(ctx, cursor); err != nil {
			return err
		}
		if *output == asJSON {
			return e.json(streams.Out)
		}
		return e.text(streams.Out)
	}
	return cmd
}

// explained is a record with its policies as they were.
type explained struct {
	client   auditv1.AuditServiceClient
	server   *dial
	record   *auditv1.Record
	policies []policyThen
}

type policyThen struct {
	ref   *policyv1.PolicyRef
	then  *auditv1.ObjectAtResponse
	error string // Why it cannot be told.
}

func (e *explained) read(ctx context.Context, cursor uint64) error {
	tail, err := e.client.Tail(ctx, &auditv1.TailRequest{After: cursor - 1, Limit: 1})
	if err != nil {
		return e.server.failed("audit explain", err)
	}
	for e.record == nil {
		resp, err := tail.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return e.server.failed("audit explain", err)
		}
		e.record = resp.GetRecord()
	}
	if e.record.GetCursor() != cursor {
		return fmt.Errorf("audit explain: the log has no record %d, or none any more", cursor)
	}
	p := e.record.GetEvent().GetPacket()
	refs := p.GetPolicies()
	if s := p.GetStaged().GetPolicy(); s != nil {
		refs = append(refs, s)
	}
	for _, ref := range refs {
		then, err := e.client.ObjectAt(ctx, &auditv1.ObjectAtRequest{Policy: ref, Cursor: cursor})
		switch status.Code(err) {
		case codes.OK:
			e.policies = append(e.policies, policyThen{ref: ref, then: then})
		case codes.NotFound:
			e.policies = append(e.policies, policyThen{ref: ref, error: status.Convert(err).Message()})
		default:
			return e.server.failed("audit explain", err)
		}
	}
	return nil
}

// json is {"record": …, "policies": [{"policy": …, "then": …} or {"policy": …, "error": …}]}.
func (e *explained) json(w io.Writer) error {
	m := protojson.MarshalOptions{EmitUnpopulated: true}
	raw, err := m.Marshal(e.record)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	parts := []any{`{"record":`, raw, `,"policies":[`}
	for i, p := range e.policies {
		if i > 0 {
			parts = append(parts, ",")
		}
		ref, err := json.Marshal(policyName(p.ref))
		if err != nil {
			return err
		}
		parts = append(parts, `{"policy":`, ref)
		if p.then == nil {
			text, err := json.Marshal(p.error)
			if err != nil {
				return err
			}
			parts = append(parts, `,"error":`, text, "}")
			continue
		}
		then, err := m.Marshal(p.then)
		if err != nil {
			return fmt.Errorf("encode policy: %w", err)
		}
		parts = append(parts, `,"then":`, then, "}")
	}
	return printRaw(w, append(parts, "]}")...)
}

// printRaw writes pieces of JSON as one indented document.
func printRaw(w io.Writer, parts ...any) error {
	var raw, out bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			raw.WriteString(p)
		case []byte:
			raw.Write(p)
		}
	}
	if err := json.Indent(&out, raw.Bytes(), "", "  "); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err := fmt.Fprintln(w, out.String())
	return err
}

func (e *explained) text(w io.Writer) error {
	line, err := lineOf(record.NewDecoder(), e.record)
	if err != nil {
		return err
	}
	if err := newRecordPrinter(w, recordFormat(table))(e.record); err != nil {
		return err
	}
	if line.Kind != record.KindPacket {
		return nil
	}
	p, c := &line.Packet, line.Context
	if c == nil {
		c = &record.Context{}
	}
	fmt.Fprintln(w)
	rows := [][]string{
		{"source", addressAnd(p.Source.String(), &c.Source)},
		{"destination", addressAnd(p.Destination.String(), &c.Destination)},
		{"applied to", p.AppliedTo},
		{"peer", p.Peer},
		{"service", cmp.Or(p.Service, c.Service)},
		{"rule", p.Rule},
		{"reason", p.Reason},
	}
	for _, row := range rows {
		if row[1] != "" {
			fmt.Fprintf(w, "%-12s %s\n", row[0], row[1])
		}
	}
	for _, p := range e.policies {
		fmt.Fprintf(w, "\n%s\n", policyName(p.ref))
		if p.then == nil {
			fmt.Fprintf(w, "  not known: %s\n", p.error)
			continue
		}
		if err := p.print(w); err != nil {
			return err
		}
	}
	return nil
}

func (p *policyThen) print(w io.Writer) error {
	change := p.then.GetChange().GetEvent().GetChange()
	o := change.GetObject()
	fmt.Fprintf(w, "  generation %d, %s %s%s\n", o.GetGeneration(), lower(change.GetKind().String(), "CHANGE_KIND_"), stampText(change.GetTime().AsTime()), byWhom(o))
	if next := p.then.GetNext().GetEvent().GetChange(); next != nil {
		fields := ""
		if len(next.GetFields()) > 0 {
			fields = ": " + strings.Join(next.GetFields(), ", ")
		}
		fmt.Fprintf(w, "  %s since, %s%s%s\n", lower(next.GetKind().String(), "CHANGE_KIND_"), stampText(next.GetTime().AsTime()), byWhom(next.GetObject()), fields)
	}
	if len(o.GetManifest()) == 0 {
		_, err := fmt.Fprintln(w, "  its manifest is too large for the log")
		return err
	}
	text, err := yaml.JSONToYAML(o.GetManifest())
	if err != nil {
		return fmt.Errorf("%s: its manifest: %w", policyName(p.ref), err)
	}
	_, err = fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n    "))
	return err
}

func byWhom(o *policyv1.ObjectVersion) string {
	text := ""
	if o.GetUser() != "" {
		text += " by " + o.GetUser()
	}
	if o.GetManager() != "" {
		text += " with " + o.GetManager()
	}
	return text
}

// addressAnd is an address and whose it was.
func addressAnd(address string, e *record.End) string {
	switch {
	case e.Pod != "":
		address += "   " + e.Namespace + "/" + e.Pod
		if e.Workload != "" {
			address += " of " + e.Workload
		}
		return address + " on " + e.Node
	case e.Node != "":
		return address + "   node " + e.Node
	}
	return address
}
