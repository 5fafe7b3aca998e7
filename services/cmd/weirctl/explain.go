package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/services/policy/source/manifests"
)

// explanation is the answer of explain. Its JSON is a stable interface:
// policies are named as in audit lines, "K8sNetworkPolicy:NAMESPACE/NAME".
type explanation struct {
	Verdict string             `json:"verdict"` // "allow", "drop" or "reject".
	Egress  explainedDirection `json:"egress"`
	Ingress explainedDirection `json:"ingress"`
	// Staged is what would be if staged policies were enforced; null where no
	// action would be another.
	Staged *explanation `json:"staged"`
}

type explainedDirection struct {
	Action     string          `json:"action"`     // As verdict.
	Policy     string          `json:"policy"`     // Empty: no policy decided.
	Rule       string          `json:"rule"`       // Empty: no rule decided.
	Reason     string          `json:"reason"`     // Never empty.
	IsolatedBy []string        `json:"isolatedBy"` // Never null.
	Steps      []explainedStep `json:"steps"`      // Never null.
}

type explainedStep struct {
	Name    string          `json:"name"`    // Such as "tier securityops (100)".
	Outcome string          `json:"outcome"` // Never empty.
	Rules   []explainedRule `json:"rules"`   // Of the policies that apply, as far as they were looked at. Never null.
	Others  []string        `json:"others"`  // Policies that apply to others. Never null.
}

type explainedRule struct {
	Policy  string `json:"policy"`
	Rule    string `json:"rule"` // Empty: the policy has no rule in this direction.
	Decides bool   `json:"decides"`
	Why     string `json:"why"` // Never empty.
}

func newExplain(streams Streams) *cobra.Command {
	var path, from, to, protocol string
	var port, sourcePort uint16
	var icmpType, icmpCode uint8
	var server dial
	cmd := &cobra.Command{
		Use:   "explain --from NS/POD|IP --to NS/POD|IP [--port N] [--protocol TCP]",
		Short: "Say whether a connection is allowed, which policies decide, and why",
		Long: "Say what happens to a connection, in both directions: which rule decides, and why each that was\n" +
			"considered before it did not. With -f the answer follows from manifests alone; without it the policy\n" +
			"service is asked. Ends may also be node:NAME, and destinations service:NS/NAME or fqdn:NAME.",
		Example: "  weirctl explain -f cluster/ --from shop/cart --to shop/db --port 5432\n" +
			"  weirctl explain --from 203.0.113.7 --to shop/web --port 443",
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVarP(&path, "filename", "f", "", "file or folder of manifests; without it the policy service is asked")
	flags.StringVar(&from, "from", "", "source: NAMESPACE/POD, node:NAME or an address")
	flags.StringVar(&to, "to", "", "destination: NAMESPACE/POD, an address, service:NAMESPACE/NAME, node:NAME or fqdn:NAME")
	flags.Uint16Var(&port, "port", 0, "destination port; not for ICMP")
	flags.Uint16Var(&sourcePort, "source-port", 0, "source port, where rules name one")
	flags.StringVar(&protocol, "protocol", "TCP", "TCP, UDP, SCTP, ICMP or IGMP")
	flags.Uint8Var(&icmpType, "icmp-type", 0, "of ICMP and IGMP; without it an echo request, or a membership query")
	flags.Uint8Var(&icmpCode, "icmp-code", 0, "of ICMP")
	must(cmd.MarkFlagRequired("from"))
	must(cmd.MarkFlagRequired("to"))
	server.flags(cmd, policyService)
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		number, ok := protocolNumbers[strings.ToUpper(protocol)]
		if !ok {
			return fmt.Errorf("--protocol %q: write TCP, UDP, SCTP, ICMP or IGMP", protocol)
		}
		ported := number != policyv1.Protocol_PROTOCOL_ICMP && number != policyv1.Protocol_PROTOCOL_IGMP
		if ported && port == 0 {
			return fmt.Errorf("--port: %s needs a destination port", strings.ToUpper(protocol))
		}
		req := &policyv1.ExplainRequest{From: from, To: to, Protocol: number, Port: uint32(port), SourcePort: uint32(sourcePort)}
		if !ported && flags.Changed("icmp-type") {
			req.IcmpType = proto.Uint32(uint32(icmpType))
		}
		if !ported && flags.Changed("icmp-code") {
			req.IcmpCode = proto.Uint32(uint32(icmpCode))
		}
		var resp *policyv1.ExplainResponse
		var err error
		if path != "" {
			resp, err = explainOffline(path, req)
		} else {
			resp, err = explainOnline(cmd, &server, req)
		}
		if err != nil {
			return err
		}
		answer := explain(resp)
		if *output == asJSON {
			return printJSON(streams.Out, answer)
		}
		return answer.show(streams)
	}
	return cmd
}

var protocolNumbers = map[string]policyv1.Protocol{
	"TCP": policyv1.Protocol_PROTOCOL_TCP, "UDP": policyv1.Protocol_PROTOCOL_UDP, "SCTP": policyv1.Protocol_PROTOCOL_SCTP,
	"ICMP": policyv1.Protocol_PROTOCOL_ICMP, "IGMP": policyv1.Protocol_PROTOCOL_IGMP,
}

// explainOffline answers from manifests, as the policy service would.
func explainOffline(path string, req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	state, err := loadState(path)
	if err != nil {
		return nil, err
	}
	return state.Answer(req)
}

// loadState reads manifests, all of which must be valid: the answer would not
// be theirs otherwise.
func loadState(paths ...string) (*evaluate.State, error) {
	state := evaluate.New()
	l, err := manifests.Load(paths...)
	if err != nil {
		return nil, err
	}
	if len(l.Problems) > 0 {
		lines := make([]string, len(l.Problems))
		for i, p := range l.Problems {
			lines[i] = "\n  " + p.String()
		}
		return nil, fmt.Errorf("the manifests are not valid, and the answer would not be theirs:%s", strings.Join(lines, ""))
	}
	for _, o := range l.Objects {
		state.Set(o)
	}
	return state, nil
}

func explainOnline(cmd *cobra.Command, server *dial, req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	conn, ctx, done, err := server.connect(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer done()
	resp, err := policyv1.NewInspectionServiceClient(conn).Explain(ctx, req)
	if err != nil {
		return nil, server.failed("explain", err)
	}
	return resp, nil
}

func explain(resp *policyv1.ExplainResponse) explanation {
	out := explanation{Verdict: lower(resp.GetVerdict().String(), "VERDICT_"), Egress: explainDirection(resp.GetEgress()), Ingress: explainDirection(resp.GetIngress())}
	if resp.GetStaged() != nil {
		staged := explain(resp.GetStaged())
		out.Staged = &staged
	}
	return out
}

func explainDirection(d *policyv1.DirectionExplanation) explainedDirection {
	out := explainedDirection{Action: lower(d.GetAction().String(), "ACTION_"), Policy: policyName(d.GetPolicy()), Rule: d.GetRule(), Reason: d.GetReason(),
		IsolatedBy: refNames(d.GetIsolatedBy()), Steps: []explainedStep{}}
	for _, s := range d.GetSteps() {
		step := explainedStep{Name: s.GetName(), Outcome: s.GetOutcome(), Rules: []explainedRule{}, Others: refNames(s.GetOthers())}
		for _, r := range s.GetRules() {
			step.Rules = append(step.Rules, explainedRule{policyName(r.GetPolicy()), r.GetRule(), r.GetDecides(), r.GetWhy()})
		}
		out.Steps = append(out.Steps, step)
	}
	return out
}

// show writes the answer for people: the verdict, what decided, and the steps.
func (e explanation) show(streams Streams) error {
	fmt.Fprintf(streams.Out, "%s\n\n", e.Verdict)
	row := func(name string, d explainedDirection) []string {
		return []string{name, d.Action, d.Policy, d.Rule, d.Reason}
	}
	if err := printTable(streams.Out, []string{"DIRECTION", "ACTION", "POLICY", "RULE", "REASON"},
		[][]string{row("egress", e.Egress), row("ingress", e.Ingress)}); err != nil {
		return err
	}
	var steps [][]string
	walk := func(direction string, d explainedDirection) {
		for _, s := range d.Steps {
			steps = append(steps, []string{direction, s.Name, "", "", s.Outcome})
			for _, r := range s.Rules {
				steps = append(steps, []string{"", "", r.Policy, r.Rule, r.Why})
			}
			if len(s.Others) > 0 {
				steps = append(steps, []string{"", "", "", "", "not for this end: " + shorten(s.Others, 5)})
			}
		}
	}
	walk("egress", e.Egress)
	walk("ingress", e.Ingress)
	if len(steps) > 0 {
		fmt.Fprintln(streams.Out)
		if err := printSparse(streams.Out, []string{"DIRECTION", "STEP", "POLICY", "RULE", "WHY"}, steps); err != nil {
			return err
		}
	}
	if e.Staged != nil {
		fmt.Fprint(streams.Out, "\nWith the staged policies: ")
		return e.Staged.show(streams)
	}
	return nil
}

// shorten joins the first of a list.
func shorten(list []string, n int) string {
	if len(list) > n {
		return strings.Join(list[:n], ", ") + fmt.Sprintf(" and %d more", len(list)-n)
	}
	return strings.Join(list, ", ")
}

// lower is an enum's name without its prefix, in lower case.
func lower(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

// policyName names a policy as audit lines do. Empty for none.
func policyName(r *policyv1.PolicyRef) string {
	if r == nil {
		return ""
	}
	name := r.GetName()
	if r.GetNamespace() != "" {
		name = r.GetNamespace() + "/" + name
	}
	return api.PolicyKindName(r.GetKind()) + ":" + name
}

func refNames(refs []*policyv1.PolicyRef) []string {
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = policyName(r)
	}
	return out
}
