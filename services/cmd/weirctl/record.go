package main

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// recordFormat is the flag -o of records: a table, or what the collector's own
// outputs write.
type recordFormat string

// recordFormats are its choices, in the order of their telling.
func recordFormats() []string {
	return append([]string{string(table)}, slices.Sorted(maps.Keys(record.Formats))...)
}

func (f *recordFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *recordFormat) Type() string { return strings.Join(recordFormats(), "|") }

// Set implements pflag.Value.
func (f *recordFormat) Set(s string) error {
	if !slices.Contains(recordFormats(), s) {
		return fmt.Errorf("write one of %s", strings.Join(recordFormats(), ", "))
	}
	*f = recordFormat(s)
	return nil
}

// lineOf makes a record into what the collector's own outputs are made of, so
// that a record looks the same wherever it is read.
func lineOf(d *record.Decoder, r *auditv1.Record) (*record.Line, error) {
	source, destination := withheld(r.GetEvent().GetPacket())
	data, err := proto.Marshal(r.GetEvent())
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", r.GetCursor(), err)
	}
	event, err := d.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", r.GetCursor(), err)
	}
	if source {
		event.Packet.Source = netip.Addr{}
	}
	if destination {
		event.Packet.Destination = netip.Addr{}
	}
	l := &record.Line{Record: record.Record{Cursor: r.GetCursor(), Node: r.GetNode(), Boot: r.GetBoot(), Sequence: r.GetSequence(), Event: event}, Packets: event.Packet.Count}
	if r.GetReceived() != nil {
		l.Received = r.GetReceived().AsTime()
	}
	return l, nil
}

// withheld says which address the reader's role hides. Something of the same
// length takes its place: decoders take no packet without both.
func withheld(p *auditv1.PacketEvent) (source, destination bool) {
	switch from, to := len(p.GetSourceIp()), len(p.GetDestinationIp()); {
	case from == 0 && to != 0:
		p.SourceIp = make([]byte, to)
		return true, false
	case to == 0 && from != 0:
		p.DestinationIp = make([]byte, from)
		return false, true
	}
	return false, false
}

func stampText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// recordColumns are wide enough for most; records are printed as they come, so
// that the columns cannot wait for the widest.
const recordColumns = "%-10s %-27s %-12s %-7s %-6s %-6s %-28s %-28s %-7s %s\n"

// newRecordPrinter prints records as they come: aligned lines under a header, or a
// line of another format each.
func newRecordPrinter(w io.Writer, f recordFormat) func(*auditv1.Record) error {
	decoder := record.NewDecoder()
	var buf []byte
	header := false
	return func(r *auditv1.Record) error {
		l, err := lineOf(decoder, r)
		if err != nil {
			return err
		}
		if encode := record.Formats[string(f)]; encode != nil {
			if buf = encode(buf[:0], l); len(buf) > 0 && buf[len(buf)-1] != '\n' {
				buf = append(buf, '\n')
			}
			_, err := w.Write(buf)
			return err
		}
		if !header {
			header = true
			if _, err := fmt.Fprintf(w, recordColumns, "CURSOR", "TIME", "NODE", "DIR", "ACTION", "PROTO", "SOURCE", "DESTINATION", "PACKETS", "POLICIES"); err != nil {
				return err
			}
		}
		return printRecord(w, l)
	}
}

// printRecord prints a row. Of what is no packet, the columns of packets are
// empty, and the last says what it is.
func printRecord(w io.Writer, l *record.Line) error {
	when, node := stampText(l.Time()), l.Node
	if node == "" {
		node = "-"
	}
	row := func(direction, action, packets, what string) error {
		_, err := fmt.Fprintf(w, recordColumns, fmt.Sprint(l.Cursor), when, node, direction, action, "-", "-", "-", packets, what)
		return err
	}
	switch l.Kind {
	case record.KindLoss:
		direction, count := "-", "unknown"
		if l.Loss.Direction != 0 {
			direction = lower(l.Loss.Direction.String(), "DIRECTION_")
		}
		if l.Loss.Count != 0 {
			count = fmt.Sprint(l.Loss.Count)
		}
		return row(direction, "lost", count, lossText(&l.Loss))
	case record.KindChange:
		return row("-", lower(l.Change.Kind.String(), "CHANGE_KIND_"), "-", changeText(l.Change))
	case record.KindTest:
		return row("-", "test", "-", fmt.Sprintf("%s for sink %s", l.Test.ID, l.Test.Sink))
	}
	return printPacket(w, l)
}

// lossText says where, and of which rule if that is known.
func lossText(s *record.Loss) string {
	text := "at " + lower(s.Stage.String(), "LOSS_STAGE_")
	if s.Reason != "" {
		text += ", " + s.Reason
	}
	if s.Policy.Name != "" {
		text += ", of " + s.Policy.String()
	}
	if s.Rule != "" {
		text += " " + s.Rule
	}
	return text
}

// changeText says of what, by whom, and what it made of the Pods.
func changeText(c *record.Change) string {
	o := c.Object
	text := o.GetKind() + " " + record.Policy{Namespace: o.GetNamespace(), Name: o.GetName()}.Path()
	if o.GetGeneration() != 0 {
		text += fmt.Sprintf(", generation %d", o.GetGeneration())
	}
	if c.PodsBefore != 0 || c.PodsAfter != 0 {
		text += fmt.Sprintf(", Pods %d to %d", c.PodsBefore, c.PodsAfter)
	}
	if len(c.Fields) > 0 {
		text += ", changed " + strings.Join(c.Fields, " ")
	}
	switch {
	case o.GetUser() != "":
		text += ", by " + o.GetUser()
	case o.GetManager() != "":
		text += ", by " + o.GetManager()
	}
	return text
}

func printPacket(w io.Writer, l *record.Line) error {
	p := &l.Packet
	policies := policyNames(p.Policies)
	if s := p.Staged; s != nil {
		if policies != "" {
			policies += " "
		}
		policies += "(staged: " + lower(s.Action.String(), "ACTION_") + " for " + stagedCause(s) + ")"
	}
	if f := p.Forged; f != nil {
		policies = "(forged by " + p.AppliedTo + ", from MAC " + net.HardwareAddr(f.SourceMAC[:]).String() + ")"
	}
	_, err := fmt.Fprintf(w, recordColumns, fmt.Sprint(l.Cursor), stampText(p.Last), l.Node, lower(p.Direction.String(), "DIRECTION_"), lower(p.Action.String(), "ACTION_"),
		p.ProtocolName(), socket(p.Source, p.SourcePort), socket(p.Destination, p.DestPort), fmt.Sprint(p.Count), policies)
	return err
}

func policyNames(refs []record.Policy) string {
	var out []string
	for _, ref := range refs {
		out = append(out, ref.String())
	}
	return strings.Join(out, ",")
}

// stagedCause is the staged policy that makes the difference, with its rule.
func stagedCause(s *record.Staged) string {
	switch {
	case s.Policy.Name == "":
		return "a policy that is gone"
	case s.Rule == "":
		return s.Policy.String()
	}
	return s.Policy.String() + " " + s.Rule
}

// socket is address and port, where there is one.
func socket(a netip.Addr, port record.Number) string {
	if !a.IsValid() {
		return "-"
	}
	if !port.Set {
		return a.String()
	}
	return netip.AddrPortFrom(a, uint16(port.Value)).String()
}
