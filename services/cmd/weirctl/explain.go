package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
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
}

type explainedDirection struct {
	Action     string   `json:"action"`     // As verdict.
	Policy     string   `json:"policy"`     // Empty: no policy decided.
	Rule       string   `json:"rule"`       // Empty: no rule decided.
	Reason     string   `json:"reason"`     // Never empty.
	IsolatedBy []string `json:"isolatedBy"` // Never null.
}

func newExplain(streams Streams) *cobra.Command {
	var path, from, to, protocol string
	var port, sourcePort uint16
	var server dial
	cmd := &cobra.Command{
		Use:   "explain --from NS/POD|IP --to NS/POD|IP [--port N] [--protocol TCP]",
		Short: "Say whether a connection is allowed, which policies decide, and why",
		Long: "Say what happens to a connection, in both directions. With -f the answer follows from manifests\n" +
			"alone; without it the policy service is asked.",
		Example: "  weirctl explain -f cluster/ --from shop/cart --to shop/db --port 5432\n" +
			"  weirctl explain --server policy.example:9740 --ca ca.crt --cert operator.crt --key operator.key --from 203.0.113.7 --to shop/web --port 443",
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVarP(&path, "filename", "f", "", "file or folder of manifests; without it the policy service is asked")
	flags.StringVar(&from, "from", "", "source: NAMESPACE/POD or an address")
	flags.StringVar(&to, "to", "", "destination: NAMESPACE/POD or an address")
	flags.Uint16Var(&port, "port", 0, "destination port; not for ICMP")
	flags.Uint16Var(&sourcePort, "source-port", 0, "source port, where rules name one")
	flags.StringVar(&protocol, "protocol", "TCP", "TCP, UDP, SCTP or ICMP")
	must(cmd.MarkFlagRequired("from"))
	must(cmd.MarkFlagRequired("to"))
	server.flags(cmd, identity.DefaultPolicyAddress)
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		number, ok := protocolNumbers[strings.ToUpper(protocol)]
		if !ok {
			return fmt.Errorf("--protocol %q: write TCP, UDP, SCTP or ICMP", protocol)
		}
		if number != api.ProtocolICMP && port == 0 {
			return fmt.Errorf("--port: %s needs a destination port", strings.ToUpper(protocol))
		}
		var answer explanation
		var err error
		if path != "" {
			answer, err = explainOffline(path, from, to, evaluate.Connection{Protocol: number, Port: port, SourcePort: sourcePort})
		} else {
			answer, err = explainOnline(cmd, &server, &policyv1.ExplainRequest{From: from, To: to, Protocol: wireProtocols[number], Port: uint32(port), SourcePort: uint32(sourcePort)})
		}
		if err != nil {
			return err
		}
		if *output == asJSON {
			return printJSON(streams.Out, answer)
		}
		fmt.Fprintf(streams.Out, "%s\n\n", answer.Verdict)
		row := func(name string, d explainedDirection) []string {
			return []string{name, d.Action, d.Policy, d.Rule, d.Reason}
		}
		return printTable(streams.Out, []string{"DIRECTION", "ACTION", "POLICY", "RULE", "REASON"},
			[][]string{row("egress", answer.Egress), row("ingress", answer.Ingress)})
	}
	return cmd
}

var protocolNumbers = map[string]api.Protocol{"TCP": api.ProtocolTCP, "UDP": api.ProtocolUDP, "SCTP": api.ProtocolSCTP, "ICMP": api.ProtocolICMP}

var wireProtocols = map[api.Protocol]policyv1.Protocol{
	api.ProtocolTCP: policyv1.Protocol_PROTOCOL_TCP, api.ProtocolUDP: policyv1.Protocol_PROTOCOL_UDP,
	api.ProtocolSCTP: policyv1.Protocol_PROTOCOL_SCTP, api.ProtocolICMP: policyv1.Protocol_PROTOCOL_ICMP,
}

func explainOffline(path, from, to string, c evaluate.Connection) (explanation, error) {
	l, err := manifests.Load(path)
	if err != nil {
		return explanation{}, err
	}
	if len(l.Problems) > 0 {
		lines := make([]string, len(l.Problems))
		for i, p := range l.Problems {
			lines[i] = "\n  " + p.String()
		}
		return explanation{}, fmt.Errorf("the manifests are not valid, and the answer would not be theirs:%s", strings.Join(lines, ""))
	}
	if c.From, err = evaluate.ParseEndpoint(from); err != nil {
		return explanation{}, fmt.Errorf("--from: %w", err)
	}
	if c.To, err = evaluate.ParseEndpoint(to); err != nil {
		return explanation{}, fmt.Errorf("--to: %w", err)
	}
	r, err := evaluate.New(l.Objects...).Evaluate(c)
	if err != nil {
		return explanation{}, err
	}
	return explanation{Verdict: r.Verdict.String(), Egress: explainDecision(r.Egress), Ingress: explainDecision(r.Ingress)}, nil
}

func explainDecision(d evaluate.Decision) explainedDirection {
	name := func(r api.Ref) string { return "K8sNetworkPolicy:" + r.Namespace + "/" + r.Name }
	out := explainedDirection{Action: d.Action.String(), Rule: d.Rule, Reason: d.Reason, IsolatedBy: []string{}}
	if d.Policy != nil {
		out.Policy = name(*d.Policy)
	}
	for _, r := range d.IsolatedBy {
		out.IsolatedBy = append(out.IsolatedBy, name(r))
	}
	return out
}

func explainOnline(cmd *cobra.Command, server *dial, req *policyv1.ExplainRequest) (explanation, error) {
	conn, ctx, done, err := server.connect(cmd.Context())
	if err != nil {
		return explanation{}, err
	}
	defer done()
	resp, err := policyv1.NewInspectionServiceClient(conn).Explain(ctx, req)
	if err != nil {
		return explanation{}, server.failed("explain", err)
	}
	return explanation{
		Verdict: lower(resp.GetVerdict().String(), "VERDICT_"),
		Egress:  explainWire(resp.GetEgress()),
		Ingress: explainWire(resp.GetIngress()),
	}, nil
}

func explainWire(d *policyv1.DirectionExplanation) explainedDirection {
	out := explainedDirection{Action: lower(d.GetAction().String(), "ACTION_"), Policy: policyName(d.GetPolicy()), Rule: d.GetRule(), Reason: d.GetReason(), IsolatedBy: []string{}}
	for _, r := range d.GetIsolatedBy() {
		out.IsolatedBy = append(out.IsolatedBy, policyName(r))
	}
	return out
}

// lower is an enum's name without its prefix, in lower case.
func lower(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

var policyKinds = map[policyv1.PolicyKind]string{
	policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY:            "K8sNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY: "AntreaClusterNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ANTREA_NETWORK_POLICY:         "AntreaNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY:          "AdminNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_BASELINE_ADMIN_NETWORK_POLICY: "BaselineAdminNetworkPolicy",
	policyv1.PolicyKind_POLICY_KIND_CLUSTER_NETWORK_POLICY:        "ClusterNetworkPolicy",
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
	kind := policyKinds[r.GetKind()]
	if kind == "" {
		kind = r.GetKind().String()
	}
	return kind + ":" + name
}
