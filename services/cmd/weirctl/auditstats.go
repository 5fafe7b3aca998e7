package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

func newAuditStats(streams Streams) *cobra.Command {
	var server dial
	cmd := &cobra.Command{Use: "stats", Short: "Say what was received, kept, merged and lost", Args: cobra.NoArgs}
	server.flags(cmd, auditService)
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conn, ctx, done, err := server.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		s, err := auditv1.NewAuditServiceClient(conn).Stats(ctx, &auditv1.StatsRequest{})
		if err != nil {
			return server.failed("audit stats", err)
		}
		if *output == asJSON {
			return printProto(streams, s)
		}
		return showStats(streams, s)
	}
	return cmd
}

func showStats(streams Streams, s *auditv1.StatsResponse) error {
	if s.GetUnhealthy() != "" {
		fmt.Fprintf(streams.Out, "nothing is taken: %s\n", s.GetUnhealthy())
	}
	fmt.Fprintf(streams.Out, "received %d, kept %d, repeated %d; cursors %d to %d\n", s.GetReceived(), s.GetKept(), s.GetDuplicates(), s.GetOldestCursor(), s.GetNewestCursor())
	section := func(header []string, rows [][]string) error {
		if len(rows) == 0 {
			return nil
		}
		fmt.Fprintln(streams.Out)
		return printTable(streams.Out, header, rows)
	}
	var nodes, lost, sinks, rules [][]string
	for _, n := range s.GetNodes() {
		last := ""
		if n.GetLast() != nil {
			last = n.GetLast().AsTime().Format(time.RFC3339)
		}
		nodes = append(nodes, []string{n.GetNode(), fmt.Sprint(n.GetKept()), last})
	}
	for _, l := range s.GetLost() {
		lost = append(lost, []string{l.GetNode(), lower(l.GetStage().String(), "LOSS_STAGE_"), fmt.Sprint(l.GetCount())})
	}
	for _, k := range s.GetSinks() {
		sinks = append(sinks, []string{k.GetName(), k.GetType(), k.GetFormat(), fmt.Sprint(k.GetCursor()), fmt.Sprint(k.GetLag()), ageText(k.GetOldest()), fmt.Sprint(k.GetLines()),
			fmt.Sprint(k.GetDeduplicated()), fmt.Sprint(k.GetSkipped()), fmt.Sprint(k.GetDeadLetters()), k.GetLastError()})
	}
	for _, r := range s.GetRules() {
		policy := ""
		if r.GetPolicy() != nil {
			policy = policyName(r.GetPolicy())
		}
		rules = append(rules, []string{policy, r.GetRule(), lower(r.GetDirection().String(), "DIRECTION_"), r.GetReason(), fmt.Sprint(r.GetPackets()), fmt.Sprint(r.GetLost())})
	}
	if err := section([]string{"NODE", "KEPT", "LAST"}, nodes); err != nil {
		return err
	}
	if err := section([]string{"NODE", "LOST-AT", "COUNT"}, lost); err != nil {
		return err
	}
	if err := section([]string{"POLICY", "RULE", "DIRECTION", "REASON", "PACKETS", "LOST"}, rules); err != nil {
		return err
	}
	return section([]string{"SINK", "TYPE", "FORMAT", "CURSOR", "LAG", "OLDEST", "LINES", "MERGED", "SKIPPED", "DEAD", "LAST-ERROR"}, sinks)
}

// ageText is a duration for a table; empty for none.
func ageText(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return d.AsDuration().Round(time.Millisecond).String()
}
