package bridge

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Trace asks the switch what it would do with a packet, described as ovs-ofctl
// describes flows, and returns its account. Options, such as "--ct-next",
// "trk,new", come before.
func (b *Bridge) Trace(ctx context.Context, packet string, options ...string) (string, error) {
	args := append([]string{"ofproto/trace"}, options...)
	out, err := b.appctl(ctx, append(args, b.cfg.Name, packet)...)
	if err != nil {
		return "", fmt.Errorf("trace %q on bridge %s: %w", packet, b.cfg.Name, err)
	}
	return out, nil
}

// Outcome is what became of a packet.
type Outcome struct {
	// Outputs are the ports that it left by, ascending; as text where the trace
	// names them so ("LOCAL").
	Outputs []string
	// ToController tells whether a flow sent a copy to a controller.
	ToController bool
	// Tables are those that it was looked up in, in order, over all rounds.
	Tables []uint8
	// Cookies are those of the flows that it hit, in order; a table miss has 0.
	Cookies []uint64
	// Recirculations is how often it went through the connection tracker and on.
	Recirculations int
}

// Dropped tells whether it left by no port.
func (o Outcome) Dropped() bool { return len(o.Outputs) == 0 }

var (
	traceHit    = regexp.MustCompile(`^\s*(\d+)\. (.*)$`)
	traceCookie = regexp.MustCompile(`cookie (0x[0-9a-f]+)`)
	traceOutput = regexp.MustCompile(`^\s*(?:output:(\S+)|LOCAL|IN_PORT)$`)
	traceMore   = regexp.MustCompile(`^recirc\(0x[0-9a-f]+\)`)
)

// ParseTrace reads the account of a Trace.
func ParseTrace(text string) (Outcome, error) {
	var o Outcome
	seen := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if traceMore.MatchString(line) {
			o.Recirculations++
			continue
		}
		if m := traceHit.FindStringSubmatch(line); m != nil {
			table, err := strconv.ParseUint(m[1], 10, 8)
			if err != nil {
				return Outcome{}, fmt.Errorf("trace: table %s: %w", m[1], err)
			}
			seen = true
			o.Tables = append(o.Tables, uint8(table))
			var cookie uint64
			if c := traceCookie.FindStringSubmatch(m[2]); c != nil {
				if cookie, err = strconv.ParseUint(c[1], 0, 64); err != nil {
					return Outcome{}, fmt.Errorf("trace: cookie %s: %w", c[1], err)
				}
			}
			o.Cookies = append(o.Cookies, cookie)
			continue
		}
		o.takeAction(strings.TrimSpace(line))
	}
	if !seen {
		return Outcome{}, fmt.Errorf("trace: no table in %q", shorten(text))
	}
	slices.Sort(o.Outputs)
	return o, nil
}

func (o *Outcome) takeAction(action string) {
	switch {
	case strings.HasPrefix(action, "controller(") || strings.HasPrefix(action, "CONTROLLER:"):
		o.ToController = true
	case strings.HasPrefix(action, ">> skipping output"), strings.HasPrefix(action, ">> Nonexistent output port"):
		// Said of the output just before.
		o.Outputs = o.Outputs[:max(len(o.Outputs)-1, 0)]
	case strings.HasPrefix(action, "-> output port is "):
		port := strings.TrimPrefix(action, "-> output port is ")
		if port == "65534" { // LOCAL, as a register names it
			port = "LOCAL"
		}
		o.Outputs = append(o.Outputs, port)
	default:
		if m := traceOutput.FindStringSubmatch(action); m != nil {
			port := m[1]
			if port == "" {
				port = action
			}
			if !strings.Contains(port, "[") { // of a field: the next line names the port
				o.Outputs = append(o.Outputs, port)
			}
		}
	}
}
