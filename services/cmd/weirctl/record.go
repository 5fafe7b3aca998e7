package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/audit/record"
)

// lineOf makes a record into what the collector's own outputs are made of, so
// that a record looks the same wherever it is read.
func lineOf(d *record.Decoder, r *auditv1.Record) (*record.Line, error) {
	data, err := proto.Marshal(r.GetEvent())
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", r.GetCursor(), err)
	}
	event, err := d.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", r.GetCursor(), err)
	}
	l := &record.Line{Record: record.Record{Cursor: r.GetCursor(), Node: r.GetNode(), Boot: r.GetBoot(), Sequence: r.GetSequence(), Event: event}, Packets: event.Packet.Count}
	if r.GetReceived() != nil {
		l.Received = r.GetReceived().AsTime()
	}
	return l, nil
}

func stampText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// recordColumns are wide enough for most; records are printed as they come, so
// that the columns cannot wait for the widest.
const recordColumns = "%-10s %-27s %-12s %-7s %-6s %-6s %-28s %-28s %-7s %s\n"

// newRecordPrinter prints records as they come: aligned lines under a header, or a JSON
// object a line.
func newRecordPrinter(w io.Writer, f format) func(*auditv1.Record) error {
	decoder := record.NewDecoder()
	header := false
	return func(r *auditv1.Record) error {
		l, err := lineOf(decoder, r)
		if err != nil {
			return err
		}
		if f == asJSON {
			_, err := w.Write(record.AppendJSON(nil, l))
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

func printRecord(w io.Writer, l *record.Line) error {
	cursor := fmt.Sprint(l.Cursor)
	if l.Kind == record.KindLoss {
		_, err := fmt.Fprintf(w, recordColumns, cursor, stampText(l.Loss.To), l.Node, "-", "lost", "-", "-", "-", fmt.Sprint(l.Loss.Count), "at "+lower(l.Loss.Stage.String(), "LOSS_STAGE_"))
		return err
	}
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
	_, err := fmt.Fprintf(w, recordColumns, cursor, stampText(p.Last), l.Node, lower(p.Direction.String(), "DIRECTION_"), lower(p.Action.String(), "ACTION_"),
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
