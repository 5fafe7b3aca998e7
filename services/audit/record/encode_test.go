package record

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/leodido/go-syslog/v4/rfc5424"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

func sample(t testing.TB) *Line {
	p := isolation()
	p.First = time.Date(2023, 7, 4, 12, 33, 25, 221413000, time.UTC)
	p.Last = p.First.Add(300 * time.Millisecond)
	l := lineOf(p, 3, time.Second)
	l.Received = p.First.Add(time.Second)
	return l
}

func TestJSON(t *testing.T) {
	want := `{"schema":"weir.audit/v1","cursor":7,"node":"n1","boot":"b1","sequence":3,"received":"2023-07-04T12:33:26.221413Z","packet":{` +
		`"first":"2023-07-04T12:33:25.221413Z","last":"2023-07-04T12:33:25.521413Z","count":3,"direction":"ingress","action":"drop","reason":"isolation",` +
		`"table":"IngressDefaultRule","policies":["K8sNetworkPolicy:default/a-deny-all","K8sNetworkPolicy:default/web"],"isolation":true,` +
		`"appliedTo":"default/nettool","peer":"default/client","sourceIP":"10.10.1.13","sourcePort":57050,"destinationIP":"10.10.1.7","destinationPort":80,` +
		`"protocol":"TCP","length":60,"tcpFlags":2}}` + "\n"
	if got := string(AppendJSON(nil, sample(t))); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	l := sample(t)
	l.Kind, l.Loss = KindLoss, Loss{From: l.Packet.First, To: l.Packet.Last, Count: 9, Stage: auditv1.LossStage_LOSS_STAGE_METER}
	want = `{"schema":"weir.audit/v1","cursor":7,"node":"n1","boot":"b1","sequence":3,"received":"2023-07-04T12:33:26.221413Z","loss":{"from":"2023-07-04T12:33:25.221413Z","to":"2023-07-04T12:33:25.521413Z","count":9,"stage":"meter"}}` + "\n"
	if got := string(AppendJSON(nil, l)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// What staged policies would do stands in JSON and in syslog's structured data.
func TestStagedOutcomeIsWritten(t *testing.T) {
	l := sample(t)
	l.Packet.Staged = &Staged{Action: allow, Policy: Policy{annp, "default", "open"}, Rule: "r", Policies: []Policy{{annp, "default", "open"}}}
	if got, want := string(AppendJSON(nil, l)), `,"staged":{"action":"allow","policy":"AntreaNetworkPolicy:default/open","rule":"r","policies":["AntreaNetworkPolicy:default/open"]}}}`+"\n"; !strings.HasSuffix(got, want) {
		t.Errorf("got  %swant …%s", got, want)
	}
	text := string(DefaultSyslog().Append(nil, l))
	for _, want := range []string{` action="drop"`, ` stagedAction="allow" stagedPolicy="AntreaNetworkPolicy:default/open" stagedRule="r" stagedPolicies="AntreaNetworkPolicy:default/open"] 2023/07/04`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
	l.Packet.Reason = reasonStaged
	if text := string(DefaultSyslog().Append(nil, l)); !strings.Contains(text, ` reason="staged"`) || !strings.HasSuffix(text, "] staged allow for AntreaNetworkPolicy:default/open") {
		t.Errorf("got %s", text)
	}
}

// TestSyslog parses what is written by another's parser.
func TestSyslog(t *testing.T) {
	parse := func(l *Line) (*rfc5424.SyslogMessage, map[string]string) {
		t.Helper()
		text := DefaultSyslog().Append(nil, l)
		m, err := rfc5424.NewParser().Parse(text)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		msg := m.(*rfc5424.SyslogMessage)
		return msg, (*msg.StructuredData)[StructuredDataID]
	}
	l := sample(t)
	l.Packet.Rule = `a"b\c]d`
	m, sd := parse(l)
	if *m.Facility != 16 || *m.Severity != 4 || *m.Hostname != "n1" || *m.Appname != "weir" || *m.ProcID != "b1" || *m.MsgID != "PACKET" || !m.Timestamp.Equal(l.Packet.First) {
		t.Errorf("%+v", m)
	}
	for name, want := range map[string]string{"cursor": "7", "count": "3", "policies": "K8sNetworkPolicy:default/a-deny-all,K8sNetworkPolicy:default/web", "isolation": "true",
		"rule": `a"b\c]d`, "sourceIP": "10.10.1.13", "destinationPort": "80", "direction": "ingress", "action": "drop", "peer": "default/client"} {
		if sd[name] != want {
			t.Errorf("%s is %q, want %q", name, sd[name], want)
		}
	}
	if !strings.HasSuffix(*m.Message, "TCP 60 <nil> [3 packets in 1s]") {
		t.Errorf("message %q", *m.Message)
	}
	l.Packet.Action = allow
	if m, _ := parse(l); *m.Severity != 6 {
		t.Errorf("severity of an allow: %d", *m.Severity)
	}
	l.Kind, l.Loss = KindLoss, Loss{From: l.Packet.First, To: l.Packet.Last, Count: 9, Stage: auditv1.LossStage_LOSS_STAGE_OVS}
	if m, sd := parse(l); *m.MsgID != "LOSS" || sd["stage"] != "ovs" || sd["count"] != "9" || *m.Severity != 4 {
		t.Errorf("%+v", m)
	}
}

// named puts a name wherever a line has one that comes from outside.
func named(l *Line, s string) {
	must := s // Of what is never empty.
	if s == "" {
		must = "x"
	}
	l.Node, l.Boot = s, s
	switch l.Kind {
	case KindLoss:
		l.Loss.Reason, l.Loss.Rule, l.Loss.Policy = s, s, Policy{k8s, s, must}
	case KindChange:
		c := l.Change
		c.Fields = []string{s, s}
		o := c.Object
		o.ApiVersion, o.Kind, o.Namespace, o.Name, o.Uid, o.Manager, o.User = s, must, s, must, s, s, s
		o.Manifest = appendQuoted([]byte(`{ "spec" :`), s)
		o.Manifest = append(o.Manifest, '}')
		if len(s)%2 == 1 {
			o.Manifest = []byte(s)
		}
	case KindTest:
		l.Test.Sink, l.Test.ID = must, must
	default:
		p := &l.Packet
		p.Table, p.Rule, p.LogLabel, p.AppliedTo, p.Peer, p.Service = s, s, s, s, s, s
		if p.printed() {
			p.Reason = s
		}
		p.Policies = []Policy{{k8s, s, must}, {k8s, s, must}}
		p.Staged = &Staged{Action: drop, Policy: Policy{k8s, s, must}, Rule: s, Policies: p.Policies}
		l.Context = &Context{Service: s, Policies: []Version{{s, 1}, {s, -1}}}
		if s != "" {
			l.Context.Source, l.Context.Destination = End{s, s, s, s}, End{Node: s}
		}
	}
}

// readers are those of the formats: each says whether it takes a line.
func readers(t testing.TB) map[string]func(line []byte, l *Line) error {
	schema, ocsf, ecs, fluent := published(t), readOCSF(t, OCSFVersion), readECS(t), fluentBit(t)
	return map[string]func(line []byte, l *Line) error{
		"np.log":  func(line []byte, l *Line) error { return readsBack(fluent, line, l) },
		"json":    func(line []byte, _ *Line) error { return schema(line) },
		"rfc5424": func(line []byte, _ *Line) error { _, err := rfc5424.NewParser().Parse(line); return err },
		"cef":     func(line []byte, _ *Line) error { _, err := checkCEF(line); return err },
		"ocsf":    func(line []byte, _ *Line) error { return ocsf.check(line) },
		"ecs":     func(line []byte, _ *Line) error { return ecs.check(line) },
	}
}

// checkLine: a line with these names is one line in every format that states
// it, and its readers take it.
func checkLine(t *testing.T, readers map[string]func([]byte, *Line) error, l *Line) {
	for format, encode := range Formats {
		line := encode(nil, l)
		if format == "np.log" && (l.Kind != KindPacket || !l.Packet.printed()) {
			if len(line) != 0 {
				t.Errorf("np.log has a line of it: %q", line)
			}
			continue
		}
		if err := oneLine(format, line); err != nil {
			t.Errorf("%s: %v: %q", format, err, line)
		}
		if err := readers[format](line, l); err != nil {
			t.Errorf("%s: %v: %q", format, err, line)
		}
	}
}

var hostileNames = []string{"rule", "", "a b", "a\nb", "\r\n2023/07/04 faked", `"`, `\`, `]`, "=|", " src=1.2.3.4", "\x00\x1b[31m", "\u2028", "\u0085", "é", "\xff\xfe", "\u202egnp", `{"a": 1}`,
	"node:n", "service:a/b", "a/b", "spoof", "staged", strings.Repeat("]", 5000), strings.Repeat("é", 3000)}

func TestHostileNames(t *testing.T) {
	t.Parallel()
	readers := readers(t)
	for name, l := range samples(t) {
		t.Run(name, func(t *testing.T) {
			for _, s := range hostileNames {
				named(l, s)
				checkLine(t, readers, l)
			}
		})
	}
}

// FuzzEncoders looks for names, and lines to put them into, that any format is
// written wrong of.
func FuzzEncoders(f *testing.F) {
	kinds := slices.Sorted(maps.Keys(samples(f)))
	for i, s := range hostileNames {
		f.Add(i, s)
	}
	readers := readers(f)
	f.Fuzz(func(t *testing.T, kind int, s string) {
		l := samples(t)[kinds[uint(kind)%uint(len(kinds))]]
		named(l, s)
		checkLine(t, readers, l)
	})
}

// oneLine says whether a line ends, and ends only there, for any reader.
func oneLine(format string, line []byte) error {
	text, ended := strings.CutSuffix(string(line), "\n")
	if ended == (format == "rfc5424") {
		return errors.New("the newline at its end")
	}
	if format == "rfc5424" && len(line) > maxMessage {
		return errors.New("too long")
	}
	if !utf8.ValidString(text) || text == "" {
		return errors.New("not UTF-8")
	}
	for _, r := range text {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\u202e' && format == "np.log" {
			return fmt.Errorf("%q", r)
		}
	}
	return nil
}

// TestNothingIsLeftOut: every format but np.log states all that there is.
func TestNothingIsLeftOut(t *testing.T) {
	for name, l := range samples(t) {
		for format, encode := range Formats {
			if len(encode([]byte("x"), l)) == 1 && format != "np.log" {
				t.Errorf("%s has nothing of %s", format, name)
			}
		}
	}
}

// TestEncodersAppend: what is there stays.
func TestEncodersAppend(t *testing.T) {
	for name, l := range samples(t) {
		for format, encode := range Formats {
			if got, want := string(encode([]byte("before\n"), l)), "before\n"+string(encode(nil, l)); got != want {
				t.Errorf("%s: %s: %q", format, name, got)
			}
		}
	}
}

// BenchmarkEncode is of the line of a dropped packet with its context.
func BenchmarkEncode(b *testing.B) {
	l := samples(b)["context"]
	for format, encode := range Formats {
		b.Run(format, func(b *testing.B) {
			b.ReportAllocs()
			buf := encode(nil, l)
			for b.Loop() {
				buf = encode(buf[:0], l)
			}
		})
	}
}
