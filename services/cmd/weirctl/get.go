package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
)

func newGet(streams Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "get", Short: "List what is in force"}
	cmd.AddCommand(newGetPolicies(streams), newGetGroups(streams), newGetNodes(streams), newGetChanges(streams), newGetFQDN(streams))
	return cmd
}

// lister is a command that asks the policy service for one list. Notes are lines
// below it; nil for none.
func lister(streams Streams, use, short string, ask func(context.Context, policyv1.InspectionServiceClient) (proto.Message, error), show func(proto.Message) ([]string, [][]string), notes func(proto.Message) []string) *cobra.Command {
	var server dial
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	server.flags(cmd, policyService)
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conn, ctx, done, err := server.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		answer, err := ask(ctx, policyv1.NewInspectionServiceClient(conn))
		if err != nil {
			return server.failed("get "+use, err)
		}
		if *output == asJSON {
			return printProto(streams, answer)
		}
		header, rows := show(answer)
		if err := printTable(streams.Out, header, rows); err != nil || notes == nil {
			return err
		}
		for i, note := range notes(answer) {
			if i == 0 {
				note = "\n" + note
			}
			if _, err := fmt.Fprintln(streams.Out, note); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// printProto writes a message as JSON. Its own encoder varies the white space
// on purpose, so that it is indented anew.
func printProto(streams Streams, m proto.Message) error {
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = fmt.Fprintln(streams.Out, out.String())
	return err
}

func newGetPolicies(streams Streams) *cobra.Command {
	var namespace, sortBy string
	var stats bool
	cmd := lister(streams, "policies", "List policies, how they rank and how far they are realised",
		func(ctx context.Context, c policyv1.InspectionServiceClient) (proto.Message, error) {
			return c.ListPolicies(ctx, &policyv1.ListPoliciesRequest{Namespace: namespace, ByEffectivePriority: sortBy == "effectivePriority", Stats: stats})
		},
		func(m proto.Message) ([]string, [][]string) {
			policies := m.(*policyv1.ListPoliciesResponse).GetPolicies()
			if stats {
				return matched(policies)
			}
			if sortBy == "effectivePriority" {
				return inOrder(policies)
			}
			var rows [][]string
			for _, p := range policies {
				rows = append(rows, []string{policyName(p.GetRef()), p.GetTier(), fmt.Sprint(p.GetRank()), fmt.Sprint(p.GetPriority()),
					fmt.Sprint(p.GetIngressRules()), fmt.Sprint(p.GetEgressRules()), fmt.Sprint(p.GetEndpoints()),
					fmt.Sprintf("%d/%d", p.GetNodesRealized(), p.GetNodes()), strings.Join(remarks(p), "; ")})
			}
			return []string{"POLICY", "TIER", "RANK", "PRIORITY", "INGRESS", "EGRESS", "PODS", "REALISED", "WARNINGS"}, rows
		},
		func(m proto.Message) []string {
			if !stats {
				return nil
			}
			return notCounted(m.(*policyv1.ListPoliciesResponse).GetPolicies())
		})
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "of this Namespace alone")
	cmd.Flags().BoolVar(&stats, "stats", false, "list what each rule matched, and what isolation dropped, on all nodes")
	cmd.Flags().StringVar(&sortBy, "sort-by", "name", "name, or effectivePriority for the order of evaluation")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if sortBy != "name" && sortBy != "effectivePriority" {
			return fmt.Errorf("--sort-by %q: write name or effectivePriority", sortBy)
		}
		return nil
	}
	return cmd
}

// matched shows what rules matched, a line each, and what the isolation by
// policies dropped.
func matched(policies []*policyv1.PolicySummary) ([]string, [][]string) {
	var rows [][]string
	for _, p := range policies {
		for _, r := range p.GetRules() {
			rule := r.GetRule()
			switch {
			case r.GetIsolation():
				rule = "isolation"
			case rule == "":
				rule = fmt.Sprint(r.GetIndex())
			}
			rows = append(rows, []string{api.PolicyKindName(p.GetRef().GetKind()), p.GetRef().GetNamespace(), p.GetRef().GetName(), lower(r.GetDirection().String(), "DIRECTION_"), rule,
				fmt.Sprint(r.GetSessions()), fmt.Sprint(r.GetPackets()), fmt.Sprint(r.GetBytes())})
		}
	}
	return []string{"KIND", "NAMESPACE", "NAME", "DIRECTION", "RULE", "SESSIONS", "PACKETS", "BYTES"}, rows
}

// notCounted says of which policies counts may be missing, and for how long.
func notCounted(policies []*policyv1.PolicySummary) []string {
	var out []string
	for _, p := range policies {
		if ms := p.GetUncountedMs(); ms > 0 {
			missing := time.Duration(min(ms, 1<<43)) * time.Millisecond
			out = append(out, fmt.Sprintf("%s: counts of %s may be missing, over %d nodes", policyName(p.GetRef()), missing, p.GetNodesCounted()))
		}
	}
	return out
}

// remarks are what is to be said of a policy: why it is not realised as
// written, and its warnings.
func remarks(p *policyv1.PolicySummary) []string {
	var out []string
	if p.GetStaged() {
		out = append(out, "staged")
	}
	for _, c := range p.GetConditions() {
		if c.GetMessage() != "" {
			out = append(out, c.GetMessage())
		}
	}
	return append(out, p.GetWarnings()...)
}

// inOrder shows policies in the order of evaluation, with the columns that
// antctl get netpol --sort-by=effectivePriority has.
func inOrder(policies []*policyv1.PolicySummary) ([]string, [][]string) {
	const none = "<NONE>"
	var rows [][]string
	for _, p := range policies {
		name, appliedTo, tier, priority := p.GetUid(), none, none, none
		if name == "" {
			name = none
		}
		if groups := p.GetAppliedTo(); len(groups) > 0 {
			appliedTo = groups[0]
			if len(groups) > 1 {
				appliedTo += fmt.Sprintf(" + %d more", len(groups)-1)
			}
		}
		if p.GetRef().GetKind() != policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY {
			tier, priority = fmt.Sprint(p.GetRank()), fmt.Sprint(p.GetPriority())
		}
		rows = append(rows, []string{name, appliedTo, fmt.Sprint(p.GetIngressRules() + p.GetEgressRules()), policyName(p.GetRef()), tier, priority})
	}
	return []string{"NAME", "APPLIED-TO", "RULES", "SOURCE", "TIER-PRIORITY", "PRIORITY"}, rows
}

func newGetGroups(streams Streams) *cobra.Command {
	var members bool
	cmd := lister(streams, "groups", "List the groups that policies use",
		func(ctx context.Context, c policyv1.InspectionServiceClient) (proto.Message, error) {
			return c.ListGroups(ctx, &policyv1.ListGroupsRequest{Members: members})
		},
		func(m proto.Message) ([]string, [][]string) {
			header := []string{"GROUP", "USE", "MEMBERS", "NODES", "SELECTOR"}
			if members {
				header = append(header, "NAMES")
			}
			var rows [][]string
			for _, g := range m.(*policyv1.ListGroupsResponse).GetGroups() {
				row := []string{hex.EncodeToString(g.GetId()), strings.ReplaceAll(lower(g.GetUse().String(), "GROUP_USE_"), "_", "-"),
					fmt.Sprint(g.GetMembers()), fmt.Sprint(g.GetNodes()), g.GetSelector()}
				if members {
					row = append(row, strings.Join(g.GetMemberNames(), ","))
				}
				rows = append(rows, row)
			}
			return header, rows
		}, nil)
	cmd.Flags().BoolVar(&members, "members", false, "name the members too")
	return cmd
}

func newGetNodes(streams Streams) *cobra.Command {
	return lister(streams, "nodes", "List the nodes and how far each has come",
		func(ctx context.Context, c policyv1.InspectionServiceClient) (proto.Message, error) {
			return c.ListNodes(ctx, &policyv1.ListNodesRequest{})
		},
		func(m proto.Message) ([]string, [][]string) {
			var rows [][]string
			for _, n := range m.(*policyv1.ListNodesResponse).GetNodes() {
				rows = append(rows, []string{n.GetName(), yes(n.GetConnected()), yes(n.GetInSync()), behind(n.GetBehindSeconds()), fmt.Sprint(n.GetAckedRevision()), fmt.Sprint(n.GetLag()),
					short(n.GetReplica()), fmt.Sprint(n.GetEndpoints()), fmt.Sprint(n.GetPolicies()), hex.EncodeToString(n.GetDigest()), n.GetVersion(), n.GetLastError()})
			}
			return []string{"NODE", "CONNECTED", "IN-SYNC", "BEHIND", "REVISION", "LAG", "REPLICA", "PODS", "POLICIES", "DIGEST", "VERSION", "LAST-ERROR"}, rows
		}, nil)
}

func newGetFQDN(streams Streams) *cobra.Command {
	return lister(streams, "fqdn", "List the addresses of hosts that policies name, as the nodes know them from DNS answers",
		func(ctx context.Context, c policyv1.InspectionServiceClient) (proto.Message, error) {
			return c.ListNodes(ctx, &policyv1.ListNodesRequest{Named: true})
		},
		func(m proto.Message) ([]string, [][]string) {
			var rows [][]string
			for _, n := range m.(*policyv1.ListNodesResponse).GetNodes() {
				for _, a := range n.GetNamed() {
					ip, _ := netip.AddrFromSlice(a.GetIp())
					rows = append(rows, []string{n.GetName(), a.GetHost(), ip.String(), time.UnixMilli(a.GetUntilMs()).UTC().Format(time.RFC3339), strings.Join(a.GetNames(), " ")})
				}
			}
			return []string{"NODE", "HOST", "ADDRESS", "UNTIL", "FQDN"}, rows
		},
		func(m proto.Message) (notes []string) {
			for _, n := range m.(*policyv1.ListNodesResponse).GetNodes() {
				if more := int(n.GetNamedTotal()) - len(n.GetNamed()); more > 0 {
					notes = append(notes, fmt.Sprintf("%s knows %d addresses more.", n.GetName(), more))
				}
			}
			return notes
		})
}

// behind is for how long a node has not been in sync; empty while it is.
func behind(seconds uint64) string {
	if seconds == 0 {
		return ""
	}
	return (time.Duration(min(seconds, 1<<32)) * time.Second).String()
}

// short is as much of an epoch as tells a few replicas apart.
func short(epoch string) string { return epoch[:min(len(epoch), 6)] }

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
