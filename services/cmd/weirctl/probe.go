package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// probed is the answer of probe. Its JSON is a stable interface.
type probed struct {
	Agrees      bool          `json:"agrees"`      // What was seen is what the policies say.
	Seen        string        `json:"seen"`        // "allow", "drop" or "reject".
	Source      string        `json:"source"`      // Address and port, or of ICMP the address.
	Destination string        `json:"destination"` // As source.
	Answer      string        `json:"answer"`      // Such as "SYN-ACK". Empty: none came.
	Expected    explanation   `json:"expected"`    // As of explain.
	Nodes       []probedNode  `json:"nodes"`       // That the packet went through: the source's, and where it is another the destination's.
	Sights      []probedSight `json:"sights"`      // In the order of the nodes, and of their times. Never null.
}

type probedNode struct {
	Node      string           `json:"node"`
	Passes    bool             `json:"passes"`    // By its flows: ofproto/trace.
	Output    string           `json:"output"`    // "NAMESPACE/POD", "host", "uplink" or "port N". Empty: it does not pass.
	Decisions []probedDecision `json:"decisions"` // Where it does not pass, the last is what drops it. Never null.
}

type probedDecision struct {
	Direction string   `json:"direction"`
	Action    string   `json:"action"`
	Table     string   `json:"table"` // With its number. Never empty.
	Policies  []string `json:"policies"`
	Rule      string   `json:"rule"`
	Isolation bool     `json:"isolation"`
	Meaning   string   `json:"meaning"` // What the flow stands for, such as "rule", "static" or "foreign".
	Cookie    string   `json:"cookie"`
}

type probedSight struct {
	Node   string `json:"node"`
	Event  string `json:"event"`  // "delivered", "left" or "answered".
	Pod    string `json:"pod"`    // Whose port it left by. Empty: no Pod's.
	Answer string `json:"answer"` // Of an answer.
	After  string `json:"after"`  // Since it was sent, or since the watch began.
}

func newProbe(streams Streams) *cobra.Command {
	var from, to, protocol string
	var port, sourcePort uint16
	var limit time.Duration
	var server dial
	cmd := &cobra.Command{
		Use:   "probe --from NS/POD --to NS/POD|IP|node:NAME [--port N] [--protocol TCP]",
		Short: "Send a real packet from a Pod's port, and compare what becomes of it with explain",
		Long: "Send one real packet from a Pod's port through the flows of its node, and of the destination's, watch\n" +
			"where it goes, and compare that with what the policies say. The switches say which flow decided. The\n" +
			"destination may answer; the connection is forgotten afterwards.\n\n" +
			"The exit status is 1 where what was seen is not what the policies say, or nothing could be told.",
		Example: "  weirctl probe --from shop/cart --to shop/db --port 5432",
		Args:    cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&from, "from", "", "source: NAMESPACE/POD")
	flags.StringVar(&to, "to", "", "destination: NAMESPACE/POD, an address or node:NAME")
	flags.Uint16Var(&port, "port", 0, "destination port; not for ICMP")
	flags.Uint16Var(&sourcePort, "source-port", 0, "source port, where rules name one; otherwise one that no connection has")
	flags.StringVar(&protocol, "protocol", "TCP", "TCP, UDP, SCTP or ICMP (an echo request)")
	flags.DurationVar(&limit, "limit", 2*time.Second, "how long to watch for the packet, at most 5s")
	must(cmd.MarkFlagRequired("from"))
	must(cmd.MarkFlagRequired("to"))
	server.flags(cmd, policyService)
	timeout := flags.Lookup("timeout") // There is more to wait for than an answer.
	timeout.DefValue = "20s"
	must(timeout.Value.Set(timeout.DefValue))
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		number, ok := protocolNumbers[strings.ToUpper(protocol)]
		ported := number != policyv1.Protocol_PROTOCOL_ICMP
		switch {
		case !ok || number == policyv1.Protocol_PROTOCOL_IGMP:
			return fmt.Errorf("--protocol %q: write TCP, UDP, SCTP or ICMP", protocol)
		case ported && port == 0:
			return fmt.Errorf("--port: %s needs a destination port", strings.ToUpper(protocol))
		case !ported && port != 0:
			return fmt.Errorf("--port: ICMP has none")
		case limit <= 0 || limit > 5*time.Second:
			return fmt.Errorf("--limit %s: write more than nothing and at most 5s", limit)
		}
		conn, ctx, done, err := server.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer done()
		resp, err := policyv1.NewInspectionServiceClient(conn).Probe(ctx, &policyv1.InspectionServiceProbeRequest{From: from, To: to, Protocol: number,
			Port: uint32(port), SourcePort: uint32(sourcePort), LimitMillis: uint32(limit.Milliseconds())})
		if err != nil {
			return server.failed("probe", err)
		}
		p := probeAnswer(resp, port)
		if *output == asJSON {
			err = printJSON(streams.Out, p)
		} else {
			err = p.show(streams)
		}
		if err == nil && !p.Agrees {
			return errFound
		}
		return err
	}
	return cmd
}

func probeAnswer(resp *policyv1.InspectionServiceProbeResponse, port uint16) probed {
	p := probed{Agrees: resp.GetAgrees(), Seen: lower(resp.GetSeen().String(), "VERDICT_"), Expected: explain(resp.GetExpected()), Nodes: []probedNode{}, Sights: []probedSight{},
		Source: endText(resp.GetSourceIp(), resp.GetSourcePort(), port != 0), Destination: endText(resp.GetDestinationIp(), uint32(port), port != 0)}
	for _, n := range []struct {
		name   string
		result *policyv1.ProbeResult
	}{{resp.GetSourceNode(), resp.GetSource()}, {resp.GetDestinationNode(), resp.GetDestination()}} {
		if n.result == nil {
			continue
		}
		t := n.result.GetTrace()
		node := probedNode{Node: n.name, Passes: t.GetPasses(), Output: t.GetOutput(), Decisions: []probedDecision{}}
		for _, d := range t.GetDecisions() {
			table := fmt.Sprint(d.GetTableNumber())
			if d.GetTable() != "" {
				table = fmt.Sprintf("%s (%d)", d.GetTable(), d.GetTableNumber())
			}
			node.Decisions = append(node.Decisions, probedDecision{lower(d.GetDirection().String(), "DIRECTION_"), lower(d.GetAction().String(), "ACTION_"), table,
				refNames(d.GetPolicies()), d.GetRule(), d.GetIsolation(), d.GetMeaning(), "0x" + strconv.FormatUint(d.GetCookie(), 16)})
		}
		p.Nodes = append(p.Nodes, node)
		for _, s := range n.result.GetSights() {
			p.Sights = append(p.Sights, probedSight{n.name, lower(s.GetEvent().String(), "PROBE_EVENT_"), s.GetPod(), s.GetAnswer(),
				(time.Duration(s.GetAfterMicros()) * time.Microsecond).String()})
			if s.GetAnswer() != "" && p.Answer == "" {
				p.Answer = s.GetAnswer()
			}
		}
	}
	return p
}

// endText is an address, with its port where the protocol has ports.
func endText(ip []byte, port uint32, ported bool) string {
	a, _ := netip.AddrFromSlice(ip)
	if !ported {
		return a.String()
	}
	return netip.AddrPortFrom(a, uint16(port)).String()
}

// show writes the answer for people: whether the two agree, then which flows
// decided, then what the policies say.
func (p probed) show(streams Streams) error {
	word := "agreed"
	if !p.Agrees {
		word = "DISAGREES"
	}
	rows := [][]string{{word, p.Expected.Verdict, p.Seen, p.Source, p.Destination, p.Answer}}
	if err := printTable(streams.Out, []string{"VERDICT", "EXPECTED", "SEEN", "SOURCE", "DESTINATION", "ANSWERED"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, n := range p.Nodes {
		for _, d := range n.Decisions {
			rows = append(rows, []string{n.Node, d.Direction, d.Action, d.Table, shorten(d.Policies, 3), d.Rule, d.Meaning})
		}
		if n.Passes {
			rows = append(rows, []string{n.Node, "", "output", "", "", "", n.Output})
		}
	}
	fmt.Fprintln(streams.Out, "\nThe flows:")
	if err := printTable(streams.Out, []string{"NODE", "DIRECTION", "ACTION", "TABLE", "POLICY", "RULE", "BY"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, s := range p.Sights {
		what := s.Pod
		if s.Answer != "" {
			what = s.Answer
		}
		rows = append(rows, []string{s.Node, s.Event, what, s.After})
	}
	if len(rows) > 0 {
		fmt.Fprintln(streams.Out, "\nThe packet:")
		if err := printTable(streams.Out, []string{"NODE", "SEEN", "WHAT", "AFTER"}, rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(streams.Out, "\nThe policies:")
	row := func(name string, d explainedDirection) []string {
		return []string{name, d.Action, d.Policy, d.Rule, d.Reason}
	}
	return printTable(streams.Out, []string{"DIRECTION", "ACTION", "POLICY", "RULE", "REASON"}, [][]string{row("egress", p.Expected.Egress), row("ingress", p.Expected.Ingress)})
}
