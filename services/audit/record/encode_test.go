package record

import (
	"bytes"
	"encoding/json"
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
	want := `{"cursor":7,"node":"n1","boot":"b1","sequence":3,"received":"2023-07-04T12:33:26.221413Z","packet":{` +
		`"first":"2023-07-04T12:33:25.221413Z","last":"2023-07-04T12:33:25.521413Z","count":3,"direction":"ingress","action":"drop","reason":"isolation",` +
		`"table":"IngressDefaultRule","policies":["K8sNetworkPolicy:default/a-deny-all","K8sNetworkPolicy:default/web"],"isolation":true,` +
		`"appliedTo":"default/nettool","peer":"default/client","sourceIP":"10.10.1.13","sourcePort":57050,"destinationIP":"10.10.1.7","destinationPort":80,` +
		`"protocol":"TCP","length":60,"tcpFlags":2}}` + "\n"
	if got := string(AppendJSON(nil, sample(t))); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	l := sample(t)
	l.Kind, l.Loss = KindLoss, Loss{From: l.Packet.First, To: l.Packet.Last, Count: 9, Stage: auditv1.LossStage_LOSS_STAGE_METER}
	want = `{"cursor":7,"node":"n1","boot":"b1","sequence":3,"received":"2023-07-04T12:33:26.221413Z","loss":{"from":"2023-07-04T12:33:25.221413Z","to":"2023-07-04T12:33:25.521413Z","count":9,"stage":"meter"}}` + "\n"
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

// FuzzEncoders: whatever the names are, a line is one line of as many words, JSON
// is JSON with the same name in it, and syslog parses.
func FuzzEncoders(f *testing.F) {
	for _, s := range []string{"rule", "", "a b", "a\nb", "\r\n2023/07/04 faked", `"`, `\`, `]`, "\x00\x1b[31m", "\u2028", "\u0085", "é", "\xff\xfe", "\u202egnp", strings.Repeat("]", 5000), strings.Repeat("é", 3000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l := sample(t)
		p := &l.Packet
		p.Isolation = false
		p.Table, p.Rule, p.LogLabel, p.AppliedTo, p.Peer, p.Reason = s, s, s, s, s, s
		p.Policies = []Policy{{k8s, s, s}, {k8s, s, s}}
		p.Staged = &Staged{Action: drop, Policy: Policy{k8s, s, s}, Rule: s, Policies: p.Policies}
		line := NPLog{Named: true}.Append(nil, l)
		if bytes.Count(line, []byte("\n")) != 1 || len(bytes.Fields(line)) != 16+4 || bytes.Count(line, []byte(" ")) != 15+4 {
			t.Errorf("np.log: %q", line)
		}
		for _, r := range string(line[:len(line)-1]) {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u202e' {
				t.Fatalf("np.log: %q in %q", r, line)
			}
		}
		text := AppendJSON(nil, l)
		var got struct {
			Packet struct{ Rule, LogLabel string }
		}
		if err := json.Unmarshal(text, &got); err != nil || bytes.Count(text, []byte("\n")) != 1 {
			t.Fatalf("%v: %q", err, text)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); utf8.ValidString(s) && got.Packet.Rule != want {
			t.Errorf("JSON: %q, want %q", got.Packet.Rule, want)
		}
		msg := DefaultSyslog().Append(nil, l)
		if bytes.ContainsAny(msg, "\n\r\x00") || len(msg) > maxMessage || !utf8.Valid(msg) {
			t.Errorf("syslog: %q", msg)
		}
		if _, err := rfc5424.NewParser().Parse(msg); err != nil {
			t.Errorf("syslog: %v: %q", err, msg)
		}
		p.Reason = reasonStaged
		if msg := DefaultSyslog().Append(nil, l); bytes.ContainsAny(msg, "\n\r\x00") || len(msg) > maxMessage || !utf8.Valid(msg) {
			t.Errorf("syslog: %q", msg)
		}
	})
}
