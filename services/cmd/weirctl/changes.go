package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// version is a change as it is printed with -o json, an object a line.
type version struct {
	Time       string          `json:"time"`
	Removed    bool            `json:"removed,omitempty"`
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Namespace  string          `json:"namespace,omitempty"`
	Name       string          `json:"name"`
	UID        string          `json:"uid,omitempty"`
	Generation int64           `json:"generation,omitempty"`
	Manager    string          `json:"manager,omitempty"`
	User       string          `json:"user,omitempty"`
	PodsBefore uint32          `json:"podsBefore"`
	PodsAfter  uint32          `json:"podsAfter"`
	Manifest   json.RawMessage `json:"manifest,omitempty"`
}

func newGetChanges(streams Streams) *cobra.Command {
	var server dial
	var watch bool
	cmd := &cobra.Command{Use: "changes", Short: "List policies, tiers and groups as they were changed last, and by whom", Args: cobra.NoArgs}
	server.flags(cmd, policyService)
	output := formatFlag(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and print each change as it is read, until the service ends the connection (--max-connection-age)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conn, ctx, done, err := server.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		if watch { // There is no timeout: that nothing is changed is no failure.
			ctx = cmd.Context()
		}
		return changes(ctx, policyv1.NewInspectionServiceClient(conn), versionPrinter(streams.Out, *output), watch, &server)
	}
	return cmd
}

// changes prints what there is, by time, and then what comes.
func changes(ctx context.Context, c policyv1.InspectionServiceClient, print func(version) error, watch bool, server *dial) error {
	stream, err := c.WatchChanges(ctx, &policyv1.WatchChangesRequest{})
	if err != nil {
		return server.failed("get changes", err)
	}
	var there []version
	for complete := false; ; {
		resp, err := stream.Recv()
		switch {
		case watch && status.Code(err) == codes.Canceled && ctx.Err() != nil:
			return nil // Interrupted.
		case errors.Is(err, io.EOF):
			return errors.New("get changes: the service ended the stream")
		case err != nil:
			return server.failed("get changes", err)
		}
		for _, c := range resp.GetChanges() {
			if c.GetVersion() != nil {
				there = append(there, versionOf(c))
			}
		}
		if complete = complete || resp.GetComplete(); !complete {
			continue
		}
		slices.SortStableFunc(there, func(a, b version) int { return cmp.Compare(a.Time, b.Time) })
		for _, v := range there {
			if err := print(v); err != nil {
				return err
			}
		}
		if there = nil; !watch {
			return nil
		}
	}
}

func versionOf(c *policyv1.ObjectChange) version {
	v := c.GetVersion()
	return version{Time: time.Unix(0, c.GetTimeUnixNano()).UTC().Format("2006-01-02T15:04:05.000000000Z"), Removed: c.GetRemoved(),
		APIVersion: v.GetApiVersion(), Kind: v.GetKind(), Namespace: v.GetNamespace(), Name: v.GetName(), UID: v.GetUid(), Generation: v.GetGeneration(),
		Manager: v.GetManager(), User: v.GetUser(), PodsBefore: c.GetPodsBefore(), PodsAfter: c.GetPodsAfter(), Manifest: v.GetManifest()}
}

// versionPrinter prints versions as they come: aligned lines under a header, or
// a JSON object a line.
func versionPrinter(w io.Writer, f format) func(version) error {
	const columns = "%-30s %-28s %-44s %-10s %-24s %-24s %s\n"
	header := false
	return func(v version) error {
		if f == asJSON {
			encoder := json.NewEncoder(w)
			encoder.SetEscapeHTML(false)
			return encoder.Encode(v)
		}
		if !header {
			header = true
			if _, err := fmt.Fprintf(w, columns, "TIME", "KIND", "NAME", "GENERATION", "MANAGER", "USER", "PODS"); err != nil {
				return err
			}
		}
		name, pods, generation := v.Name, fmt.Sprint(v.PodsAfter), orDash(v.Generation)
		if v.Namespace != "" {
			name = v.Namespace + "/" + name
		}
		kind := api.KindOf(v.APIVersion, v.Kind)
		switch {
		case v.Removed:
			pods, generation = fmt.Sprintf("%d, removed", v.PodsBefore), "-"
		case api.WireKind(kind) == policyv1.PolicyKind_POLICY_KIND_UNSPECIFIED:
			pods = "-"
		case v.PodsBefore != v.PodsAfter:
			pods = fmt.Sprintf("%d to %d", v.PodsBefore, v.PodsAfter)
		}
		_, err := fmt.Fprintf(w, columns, v.Time, kind, name, generation, orDash(v.Manager), orDash(v.User), pods)
		return err
	}
}

// orDash is a value, or a dash where there is none.
func orDash[T comparable](v T) string {
	if v == *new(T) {
		return "-"
	}
	return fmt.Sprint(v)
}
