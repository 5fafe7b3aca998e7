package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// difference is the answer of diff. Its JSON is a stable interface.
type difference struct {
	Changes []changed  `json:"changes"` // Never null.
	Log     *loggedUse `json:"log"`     // Null: no log was given.
}

// changed is connections that get another verdict: every one of From to every
// one of To.
type changed struct {
	From    []string `json:"from"`
	To      []string `json:"to"`
	Traffic string   `json:"traffic"`
	Old     verdict  `json:"old"`
	New     verdict  `json:"new"`
}

type verdict struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
}

// loggedUse is how many connections of a log would have got another verdict.
type loggedUse struct {
	Connections int `json:"connections"` // Distinct ones that are recorded.
	Changed     int `json:"changed"`
	Unknown     int `json:"unknown"` // Whose ends the manifests do not have, or that are no connections.
}

func newDiff(streams Streams) *cobra.Command {
	var paths []string
	var log string
	cmd := &cobra.Command{
		Use:   "diff -f OLD -f NEW",
		Short: "Say which connections get another verdict by other manifests",
		Long: "Compare two files or folders of manifests, each a cluster with its policies: which Pods, Nodes and\n" +
			"outside addresses reach which, on which ports, by the one and not by the other. Nothing is sampled:\n" +
			"what is not listed stays as it is. Of Pods that only one of the two has, nothing is said.\n" +
			"With --against-log, the connections of a JSON audit log are judged by both. The exit status is 0\n" +
			"whatever is found.",
		Example: "  weirctl diff -f cluster/ -f cluster-next/\n  weirctl diff -f cluster/ -f cluster-next/ --against-log /var/log/weir/audit.json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "file or folder; twice: the old, then the new")
	cmd.Flags().StringVar(&log, "against-log", "", "JSON audit log, as the collector writes it; - for standard input")
	must(cmd.MarkFlagRequired("filename"))
	output := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(paths) != 2 {
			return fmt.Errorf("-f: write it twice, for the old manifests and for the new")
		}
		old, err := loadState(paths[0])
		if err != nil {
			return err
		}
		new, err := loadState(paths[1])
		if err != nil {
			return err
		}
		answer := difference{Changes: []changed{}}
		for _, c := range evaluate.Diff(old, new, runtime.GOMAXPROCS(0), progressTo(streams.Err)) {
			answer.Changes = append(answer.Changes, changed{From: c.From, To: c.To, Traffic: c.Traffic, Old: verdictOf(&c.Old), New: verdictOf(&c.New)})
		}
		if log != "" {
			if answer.Log, err = againstLog(cmd.InOrStdin(), log, old, new); err != nil {
				return err
			}
		}
		if *output == asJSON {
			return printJSON(streams.Out, answer)
		}
		return answer.show(streams.Out)
	}
	return cmd
}

// progressTo tells how far a long comparison is.
func progressTo(w io.Writer) func(done, of int) {
	began, told := time.Now(), time.Now()
	return func(done, of int) {
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			fmt.Fprintf(w, "compared the connections from %d of %d kinds of ends in %s\n", done, of, time.Since(began).Round(time.Second))
		}
	}
}

func verdictOf(r *evaluate.Result) verdict { return verdict{r.Verdict.String(), r.Deciding().Reason} }

func (d difference) show(w io.Writer) error {
	rows := make([][]string, len(d.Changes))
	for i, c := range d.Changes {
		rows[i] = []string{shorten(c.From, 3), shorten(c.To, 3), c.Traffic, c.Old.Verdict, c.New.Verdict, c.New.Reason}
	}
	if len(rows) > 0 {
		if err := printTable(w, []string{"FROM", "TO", "TRAFFIC", "OLD", "NEW", "WHY"}, rows); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(w, "no connection gets another verdict")
	}
	if l := d.Log; l != nil {
		fmt.Fprintf(w, "\n%d of %d recorded connections would have got another verdict", l.Changed, l.Connections)
		if l.Unknown > 0 {
			fmt.Fprintf(w, "; %d more cannot be judged by these manifests", l.Unknown)
		}
		fmt.Fprintln(w)
	}
	return nil
}

// logLine is what is read of a line of the log.
type logLine struct {
	Packet *struct {
		Direction, AppliedTo, Peer, SourceIP, DestinationIP, Protocol string
		SourcePort, DestinationPort                                   *uint16
		ICMPType, ICMPCode                                            *uint8
	}
}

// againstLog judges the connections of a log by both States.
func againstLog(stdin io.Reader, path string, old, new *evaluate.State) (*loggedUse, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("--against-log: %w", err)
		}
		defer f.Close()
		in = f
	}
	use := &loggedUse{}
	seen := map[string]bool{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		var line logLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("--against-log: line %d is no record of a JSON audit log: %w", n, err)
		}
		if line.Packet == nil {
			continue // A loss.
		}
		key := line.key()
		if seen[key] {
			continue
		}
		seen[key] = true
		c, ok := line.connection()
		if !ok {
			use.Unknown++
			continue
		}
		before, err1 := old.Evaluate(c)
		after, err2 := new.Evaluate(c)
		if err1 != nil || err2 != nil {
			use.Unknown++
			continue
		}
		use.Connections++
		if before.Verdict != after.Verdict {
			use.Changed++
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("--against-log: %w", err)
	}
	return use, nil
}

// key tells connections apart: both ends' records of one are the same.
func (l *logLine) key() string {
	p := l.Packet
	number := func(n *uint16) string {
		if n == nil {
			return "-"
		}
		return fmt.Sprint(*n)
	}
	icmp := ""
	if p.ICMPType != nil {
		icmp = fmt.Sprint(*p.ICMPType)
	}
	return strings.Join([]string{p.SourceIP, number(p.SourcePort), p.DestinationIP, number(p.DestinationPort), p.Protocol, icmp}, " ")
}

var logProtocols = map[string]api.Protocol{"TCP": api.ProtocolTCP, "UDP": api.ProtocolUDP, "SCTP": api.ProtocolSCTP, "ICMP": api.ProtocolICMP, "IPv6-ICMP": api.ProtocolICMP}

// connection is what the record is of: false where that cannot be judged.
func (l *logLine) connection() (c evaluate.Connection, ok bool) {
	p := l.Packet
	from, err1 := netip.ParseAddr(p.SourceIP)
	to, err2 := netip.ParseAddr(p.DestinationIP)
	c = evaluate.Connection{From: evaluate.Endpoint{Addr: from}, To: evaluate.Endpoint{Addr: to}, Protocol: logProtocols[p.Protocol],
		ICMPType: p.ICMPType, ICMPCode: p.ICMPCode}
	if p.SourcePort != nil {
		c.SourcePort = *p.SourcePort
	}
	if p.DestinationPort != nil {
		c.Port = *p.DestinationPort
	}
	return c, err1 == nil && err2 == nil && c.Protocol != api.ProtocolAny
}
