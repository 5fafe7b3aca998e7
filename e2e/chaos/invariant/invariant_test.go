package invariant

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }

func between(from, to float64) Interval { return Interval{at(from), at(to)} }

// flow is ten datagrams a second for thirty seconds, of which those came that say so.
func flow(name string, allowed bool, came func(second float64) bool) Flow {
	f := Flow{Name: name, Source: "n1", Target: "n2", Verdicts: []Verdict{{between(0, 40), allowed}}}
	for i := range 300 {
		micros := int64(i)*100_000 + 1
		f.Sent, f.Received = append(f.Sent, micros), append(f.Received, 0)
		if came(float64(micros) / 1e6) {
			f.Received[i] = micros + 500
		}
	}
	return f
}

// right is evidence of a run in which all was right: the switch of n2 was killed
// from 10 s to 11 s, and took packets for two seconds more.
func right() *Evidence {
	e := &Evidence{Begin: begin, End: at(30), Files: make(map[string]File), Logs: map[string]string{"shim-n1": "all well\n"}}
	e.Flows = []Flow{
		flow("allowed", true, func(s float64) bool { return s < 10 || s > 12.5 }),
		flow("denied", false, func(float64) bool { return false }),
	}
	e.Flows[1].Policy, e.Flows[1].Where = "guard", "n2"
	e.Faults = []Fault{{Name: "switch-kill", Interval: between(10, 11), Takes: []string{"n2"}, Limit: 2 * time.Second, Uncounted: []string{"n2"}}}
	e.Streams = []Stream{{Name: "talk", Source: "n1", Target: "n2", Bytes: 9, Gaps: []Interval{between(10, 13.5)}}}
	e.Dials = []Dial{{between(1, 1.1), "dial", "n1", "n2", true, true}, {between(10.5, 13), "dial", "n1", "n2", true, false}, {between(2, 4), "barred", "n1", "n2", false, false}}
	e.Rules = []Rule{{"n2", "guard", true}, {"n1", "calm", false}}
	// Of guard 95 were matched before the death, of which some are not on record, and
	// 180 since; of calm 50.
	for second := 0.0; second <= 30; second += 0.5 {
		packets, age := uint64(second*10), second+5
		switch {
		case second > 9.5 && second < 12.5:
			continue // There is no switch to be asked.
		case second >= 12.5:
			packets, age = packets-120, second-11
		}
		e.Readings = append(e.Readings, Reading{between(second, second), "n2", []FlowCount{{"22 isolation", "guard", packets, time.Duration(age * float64(time.Second))}}},
			Reading{between(second, second), "n1", []FlowCount{{"20 rule", "calm", min(50, uint64(second*10)), time.Duration(second * float64(time.Second))}}})
	}
	packets := func(sequence, count uint64, boot, action string) Record {
		return Record{Key: Key{uint64(len(e.Records) + 1), "n2", boot, sequence}, Kind: "packet", Count: count, Policies: []string{"guard"},
			Direction: "ingress", Action: action, Table: "IngressDefaultRule", AppliedTo: "x/web"}
	}
	e.Records = append(e.Records, packets(1, 60, "b1", "drop"))
	e.Records = append(e.Records, packets(2, 30, "b1", "drop"))
	e.Records = append(e.Records, Record{Key: Key{3, "n2", "b1", 3}, Kind: "loss", Stage: StageUnknown, Over: between(9.5, 11.5)})
	e.Records = append(e.Records, packets(1, 180, "b2", "drop"))
	e.Records = append(e.Records, Record{Key: Key{5, "n2", "b2", 2}, Kind: "loss", Stage: "RULE_METER", Count: 9, Policies: []string{"guard"}, Over: between(20, 21)})
	e.Records = append(e.Records, packets(3, 1, "b2", "allow"))
	e.Records = append(e.Records, Record{Key: Key{7, "n1", "b3", 1}, Kind: "packet", Count: 49, Policies: []string{"calm"}, Direction: "egress", Action: "reject", Table: "EgressRule", AppliedTo: "x/web"})
	e.Records = append(e.Records, Record{Key: Key{8, "n1", "b3", 2}, Kind: "loss", Stage: "QUEUE", Count: 1, Policies: []string{"calm"}, Over: between(20, 21)})
	e.Seen = []Key{e.Records[0].Key, e.Records[3].Key}
	np := func(action string, count int) string {
		line := "2026/01/01 00:00:01.000000 IngressDefaultRule K8sNetworkPolicy <nil> Ingress " + action + " <nil> x/web 10.0.0.1 1 10.0.0.2 80 UDP 40 <nil>"
		if count > 1 {
			line += fmt.Sprintf(" [%d packets in 1.2s]", count)
		}
		return line
	}
	e.Files["n2"] = File{[]string{np("Drop", 90), np("Drop", 180), np("Allow", 1)}}
	e.Files["n1"] = File{[]string{"2026/01/01 00:00:01.000000 EgressRule K8sNetworkPolicy:x/calm <nil> Egress Reject 100 x/web fd00::1 1 fd00::2 80 TCP 40 <nil> [49 packets in 1s]"}}
	line := func(cursor int, of string) string { return fmt.Sprintf(`{"cursor":%d,"node":"n2",%s}`, cursor, of) }
	packet := `"packet":{"count":%d,"direction":"ingress","action":"%s","table":"IngressDefaultRule","appliedTo":"x/web"}`
	e.Files[JSONFile] = File{[]string{line(1, fmt.Sprintf(packet, 90, "drop")), line(3, `"loss":{}`), line(4, fmt.Sprintf(packet, 180, "drop")), line(5, `"loss":{}`), line(6, fmt.Sprintf(packet, 1, "allow")),
		`{"cursor":7,"node":"n1","packet":{"count":49,"direction":"egress","action":"reject","table":"EgressRule","appliedTo":"x/web"}}`, `{"cursor":8,"node":"n1","loss":{}}`}}
	e.Final = Final{Check: map[string]string{"n2": ""}, Touched: map[string]string{"n2": ""}}
	return e
}

func TestRightEvidenceHasNoViolation(t *testing.T) {
	for _, f := range Judge(right()) {
		if len(f.Violations) > 0 || f.Checked == 0 {
			t.Errorf("%+v", f)
		}
	}
}

// Each wrong thing breaks the invariant that it is about, and no other.
func TestOneWrongThingIsFound(t *testing.T) {
	for _, tt := range []struct {
		name, invariant, want string
		change                func(e *Evidence)
	}{
		{"a denied datagram came", "no denied packet arrives", "denied: 1 denied datagrams came, the first is number 5 of 0.500s; no fault", func(e *Evidence) { e.Flows[1].Received[5] = 500_100 }},
		{"a denied datagram came while the switch was back", "no denied packet arrives", "switch-kill", func(e *Evidence) { e.Flows[1].Received[115] = 11_500_100 }},
		{"a datagram waited until it was allowed", "", "", func(e *Evidence) {
			e.Flows[1].Verdicts = []Verdict{{between(0, 11), false}, {between(12, 40), true}}
			clear(e.Flows[1].Received)
			for i := 105; i < 300; i++ {
				e.Flows[1].Received[i] = max(e.Flows[1].Sent[i], 12_100_000)
			}
		}},
		{"a denied connection was made", "no denied packet arrives", "barred", func(e *Evidence) { e.Dials[2].Made = true }},
		{"an allowed datagram was lost", "allowed packets are lost to faults alone", "1 allowed datagrams sent in 5.000s to 5.000s were lost", func(e *Evidence) { e.Flows[0].Received[50] = 0 }},
		{"a datagram was under way when the switch died", "", "", func(e *Evidence) { e.Flows[0].Received[99] = 0 }},
		{"a datagram was lost before the switch died", "allowed packets are lost to faults alone", "1 allowed datagrams sent in 9.800s", func(e *Evidence) { e.Flows[0].Received[98] = 0 }},
		{"packets were lost too long", "allowed packets are lost to faults alone", "sent in 13.000s to 13.900s", func(e *Evidence) { clear(e.Flows[0].Received[125:140]) }},
		{"a datagram came twice", "allowed packets are lost to faults alone", "1 datagrams came twice", func(e *Evidence) { e.Flows[0].Twice = 1 }},
		{"an allowed connection was not made", "allowed packets are lost to faults alone", "not made in 1.000s", func(e *Evidence) { e.Dials[0].Made = false }},
		{"a verdict that held no more does not count", "", "", func(e *Evidence) {
			e.Flows[0].Received[50] = 0
			e.Flows[0].Verdicts = []Verdict{{between(0, 4.9), true}, {between(5.1, 40), true}}
		}},
		{"what held recovery up counts", "", "", func(e *Evidence) {
			clear(e.Flows[0].Received[125:150])
			e.Faults = append(e.Faults, Fault{Name: "shim-pause", Interval: between(12, 14), Holds: []string{"n2"}})
		}},
		{"a connection broke", "connections live on", "talk broke: reset", func(e *Evidence) { e.Streams[0].Broken = "reset" }},
		{"a connection stalled without a fault", "connections live on", "talk stalled for 2s at 20.000s to 22.000s; no fault", func(e *Evidence) { e.Streams[0].Gaps = append(e.Streams[0].Gaps, between(20, 22)) }},
		{"a connection stalled too long", "connections live on", "stalled for 12s", func(e *Evidence) { e.Streams[0].Gaps[0].To = at(22) }},
		{"a connection waits as long as two faults in a row were", "", "", func(e *Evidence) {
			e.Faults = append(e.Faults, Fault{Name: "flows-deleted", Interval: between(15, 15.5), Takes: []string{"n1"}, Limit: time.Second})
			e.Streams[0].Gaps = append(e.Streams[0].Gaps, between(16, 22.1))
		}},
		{"a connection waits for a fault long past", "connections live on", "stalled for 3s at 25.000s to 28.000s; flows-deleted", func(e *Evidence) {
			e.Faults = append(e.Faults, Fault{Name: "flows-deleted", Interval: between(24, 24.5), Takes: []string{"n1"}, Limit: 500 * time.Millisecond})
			e.Streams[0].Gaps = append(e.Streams[0].Gaps, between(25, 28))
		}},
		{"nothing came", "connections live on", "nothing came", func(e *Evidence) { e.Streams[0].Bytes = 0 }},
		{"a packet is not on record", "records and losses are what log flows matched", "n1: of calm 48 packets are on record and 1 are stated as lost (0 of no one rule); its flows matched 50 (0 at", func(e *Evidence) { e.Records[6].Count--; replace(e, "49", "48") }},
		{"a packet is on record that no flow matched", "records and losses are what log flows matched", "n1: of calm 50 packets", func(e *Evidence) { e.Records[6].Count++; replace(e, "49", "50") }},
		{"a loss is not stated", "records and losses are what log flows matched", "49 packets are on record and 0 are stated", func(e *Evidence) { e.Records[7].Count = 0 }},
		{"more is missing than was matched while losses were unknown", "records and losses are what log flows matched", "n2: of guard 250 packets are on record", func(e *Evidence) { e.Records[3].Count = 159; replace(e, "180", "159") }},
		{"more is on record than was sent while flows were gone", "records and losses are what log flows matched", "n2: of guard 321 packets are on record", func(e *Evidence) { e.Records[3].Count = 230; replace(e, "180", "230") }},
		{"a flow that was put in its own place counts on", "", "", func(e *Evidence) {
			for i, r := range e.Readings {
				if r.Node == "n1" && r.From.After(at(20)) {
					e.Readings[i].Flows[0].Age -= 15 * time.Second
				}
			}
		}},
		{"unknown losses without a death", "records and losses are what log flows matched", "the switch lost no counters", func(e *Evidence) { e.Records[2].Over = between(20, 21) }},
		{"packets of who does not log", "records and losses are what log flows matched", `"stranger"`, func(e *Evidence) { e.Records[5].Policies = []string{"stranger"} }},
		{"packets of nobody, of a shim that knew", "records and losses are what log flows matched", `1 packets are on record of ""`, func(e *Evidence) { unattributed(e) }},
		{"packets of nobody, of a shim that did not know", "", "", func(e *Evidence) {
			unattributed(e)
			e.Faults = append(e.Faults, Fault{Name: "checkpoint-removed", Interval: between(3, 4), Blind: []string{"n1"}})
		}},
		{"a number is there twice", "events are numbered without gaps", "n2: boot b1 has number 2 twice", func(e *Evidence) { e.Records[2].Sequence = 2 }},
		{"a number is missing", "events are numbered without gaps", "n2: 1 numbers are missing, and 0 are stated", func(e *Evidence) { e.Records[5].Sequence = 4 }},
		{"the first number is missing", "events are numbered without gaps", "n1: 1 numbers are missing", func(e *Evidence) { e.Records[6].Sequence, e.Records[7].Sequence = 2, 3 }},
		{"a cursor is there twice", "events are numbered without gaps", "cursor 5", func(e *Evidence) { e.Records[2].Cursor = 5 }},
		{"an acknowledged record is gone", "what was acknowledged stays", "is gone", func(e *Evidence) { e.Seen = append(e.Seen, Key{99, "n2", "b1", 99}) }},
		{"a JSON line is lost", "JSON lines are the event log", "have 91 packets, and the event log has 270", func(e *Evidence) {
			drop(e, JSONFile, 2)
			e.Files[JSONFile].Lines[0] = strings.Replace(e.Files[JSONFile].Lines[0], "90", "91", 1)
		}},
		{"a loss has no JSON line", "JSON lines are the event log", "has no line", func(e *Evidence) { drop(e, JSONFile, 1) }},
		{"a JSON line is torn", "JSON lines are the event log", "line 2 is torn", func(e *Evidence) { e.Files[JSONFile].Lines[1] = `{"cursor":3,"no` }},
		{"a JSON line is there twice", "JSON lines are the event log", "a second line of record 3", func(e *Evidence) { double(e, JSONFile, 1) }},
		{"the files are behind", "JSON lines are the event log", "lag", func(e *Evidence) { e.Final.Unwritten = "lag" }},
		{"a line of np.log is lost", "np.log adds up to the event log", "have 90 packets, and the event log has 270", func(e *Evidence) { drop(e, "n2", 1) }},
		{"a line of np.log is there twice", "np.log adds up to the event log", "have 2 packets, and the event log has 1", func(e *Evidence) { double(e, "n2", 2) }},
		{"a line of np.log is torn", "np.log adds up to the event log", "n2: line 3 is torn", func(e *Evidence) { e.Files["n2"].Lines[2] = "2026/01/01 00:0" }},
		{"a node is not in sync", "all come to rest", "not in sync: n2", func(e *Evidence) { e.Final.NotInSync = "n2" }},
		{"check finds a flow", "all come to rest", "a flow is missing", func(e *Evidence) { e.Final.Check["n2"] = "a flow is missing" }},
		{"a restart touches a flow", "all come to rest", "table=3", func(e *Evidence) { e.Final.Touched["n2"] = "table=3" }},
		{"a fault could not be done", "all come to rest", "no such process", func(e *Evidence) { e.Faults[0].Error = "no such process" }},
		{"a process ended", "no process ends by itself", "shim-n1", func(e *Evidence) { e.Final.Ended = []string{"shim-n1: exit status 2"} }},
		{"a process panicked", "no process ends by itself", "panic: oh", func(e *Evidence) { e.Logs["shim-n1"] = "well\npanic: oh\n" }},
		{"a process raced", "no process ends by itself", "DATA RACE", func(e *Evidence) { e.Logs["shim-n1"] = "WARNING: DATA RACE\n" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := right()
			tt.change(e)
			found := tt.invariant == ""
			for _, f := range Judge(e) {
				switch text := strings.Join(f.Violations, "\n"); {
				case f.Invariant == tt.invariant && strings.Contains(text, tt.want):
					found = true
				case text != "":
					t.Errorf("%s: %s", f.Invariant, text)
				}
			}
			if !found {
				t.Errorf("%s: no violation with %q", tt.invariant, tt.want)
			}
		})
	}
}

// unattributed has one packet be on record of nobody, in place of the loss of calm.
func unattributed(e *Evidence) {
	e.Records[7].Count = 0
	e.Records = append(e.Records, Record{Key: Key{9, "n1", "b3", 3}, Kind: "packet", Count: 1, Reason: "unattributed", Direction: "unspecified", Action: "unspecified"})
	e.Files["n1"] = File{append(e.Files["n1"].Lines, "2026/01/01 00:00:01.000000 <nil> <nil> <nil> <nil> <nil> <nil> <nil> fd00::1 1 fd00::2 80 TCP 40 <nil>")}
	e.Files[JSONFile] = File{append(e.Files[JSONFile].Lines, `{"cursor":9,"node":"n1","packet":{"count":1,"direction":"","action":""}}`)}
}

// replace makes the files tell of another count.
func replace(e *Evidence, before, now string) {
	for _, f := range e.Files {
		for i, line := range f.Lines {
			f.Lines[i] = strings.NewReplacer("["+before+" ", "["+now+" ", `"count":`+before, `"count":`+now).Replace(line)
		}
	}
}

func drop(e *Evidence, name string, i int) {
	lines := e.Files[name].Lines
	e.Files[name] = File{append(append([]string(nil), lines[:i]...), lines[i+1:]...)}
}

func double(e *Evidence, name string, i int) {
	e.Files[name] = File{append(e.Files[name].Lines, e.Files[name].Lines[i])}
}

// What is saved is judged again as it was.
func TestFolder(t *testing.T) {
	dir, want := t.TempDir(), right()
	for path, text := range map[string]string{
		"audit/audit.json": strings.Join(want.Files[JSONFile].Lines, "\n") + "\n", "audit/n2/np-1.log": want.Files["n2"].Lines[0] + "\n", "audit/n1/np.log": want.Files["n1"].Lines[0] + "\n",
		"audit/n2/np.log": strings.Join(want.Files["n2"].Lines[1:], "\n") + "\n", "logs/shim-n1.log": want.Logs["shim-n1"],
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := Save(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Error("what was loaded is not what was saved")
	}
	var text bytes.Buffer
	got.Final.NotInSync = "n2"
	Report(&text, Judge(got))
	for _, line := range []string{"all come to rest                               1           1 nodes", "all come to rest: not in sync: n2"} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("no %q in\n%s", line, text.String())
		}
	}
}
