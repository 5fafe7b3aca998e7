package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

func newAuditTestSink(streams Streams) *cobra.Command {
	var server dial
	cmd := &cobra.Command{
		Use:   "test-sink NAME",
		Short: "Send a test event through one sink, and say how far it gets",
		Long: "Store a marked event that this one sink writes, and follow it: stored, read, encoded, connected,\n" +
			"written, acknowledged. The id is in what the receiver gets. Names are those of audit stats. --timeout\n" +
			"is how long to wait for the acknowledgement.",
		Example: "  weirctl audit test-sink siem",
		Args:    cobra.ExactArgs(1),
	}
	server.flags(cmd, auditService)
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return testSink(cmd.Context(), &server, args[0], func(h *auditv1.TestSinkResponse) error {
			if *output == asJSON {
				return printProto(streams, h)
			}
			text := h.GetDetail()
			if h.GetError() != "" {
				text = "FAILED: " + h.GetError()
			}
			_, err := fmt.Fprintf(streams.Out, "%8s  %-12s  %s\n", h.GetElapsed().AsDuration().Round(time.Millisecond), h.GetHop(), text)
			return err
		}, func(id string) error {
			if *output == asJSON {
				return nil
			}
			_, err := fmt.Fprintf(streams.Out, "look for %s at the other end\n", id)
			return err
		})
	}
	return cmd
}

// errTestFailed ends a test of which some hop failed.
var errTestFailed = errors.New("the test did not pass every hop")

// testSink prints the hops, and the id at the end. It fails unless the receiver has
// the event; tries that failed before do not count.
func testSink(parent context.Context, server *dial, name string, hop func(*auditv1.TestSinkResponse) error, end func(id string) error) error {
	conn, ctx, done, err := server.connect(parent)
	if err != nil {
		return err
	}
	defer done()
	stream, err := auditv1.NewAuditServiceClient(conn).TestSink(ctx, &auditv1.TestSinkRequest{Sink: name})
	if err != nil {
		return server.failed("audit test-sink", err)
	}
	acknowledged, lost, id := false, false, ""
	for {
		h, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return server.failed("audit test-sink", err)
		}
		id = h.GetId()
		acknowledged = acknowledged || h.GetHop() == "acknowledged"
		lost = lost || h.GetHop() == "refused" || h.GetHop() == "encoded" && h.GetError() != ""
		if err := hop(h); err != nil {
			return err
		}
	}
	if !acknowledged || lost {
		return errTestFailed
	}
	return end(id)
}
