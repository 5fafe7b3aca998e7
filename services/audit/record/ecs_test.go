package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// ecsFacts is what testdata/ecs-*.txt says.
type ecsFacts struct {
	fields map[string]string   // Type by field, with [] for lists.
	values map[string][]string // By field.
	types  map[string][]string // Of events, by category.
}

func readECS(t testing.TB) *ecsFacts {
	t.Helper()
	text, err := os.ReadFile("testdata/ecs-" + ECSVersion + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	f := &ecsFacts{fields: map[string]string{}, values: map[string][]string{}, types: map[string][]string{}}
	for line := range strings.Lines(string(text)) {
		switch words := strings.Fields(line); words[0] {
		case "#":
		case "values":
			f.values[words[1]] = strings.Split(words[2], ",")
		case "types":
			f.types[words[1]] = strings.Split(words[2], ",")
		default:
			f.fields[words[0]] = words[1]
		}
	}
	return f
}

// check judges one document: every field is one of the schema with a value of
// its type, or stands under weir.
func (f *ecsFacts) check(line []byte) error {
	var doc map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return err
	}
	for _, field := range []string{"@timestamp", "ecs", "event", "message"} {
		if doc[field] == nil {
			return fmt.Errorf("%s is missing", field)
		}
	}
	if v := doc["ecs"].(map[string]any)["version"]; v != ECSVersion {
		return fmt.Errorf("ecs.version %v", v)
	}
	delete(doc, "weir")
	if err := f.object("", doc); err != nil {
		return err
	}
	event := doc["event"].(map[string]any)
	for _, category := range event["category"].([]any) {
		for _, kind := range event["type"].([]any) {
			if !slices.Contains(f.types[category.(string)], kind.(string)) {
				return fmt.Errorf("event.type %v of category %v", kind, category)
			}
		}
	}
	return nil
}

func (f *ecsFacts) object(prefix string, o map[string]any) error {
	for key, v := range o {
		name := prefix + key
		if sub, ok := v.(map[string]any); ok && f.fields[name] != "object" {
			if err := f.object(name+".", sub); err != nil {
				return err
			}
			continue
		}
		kind, known := f.fields[name]
		if !known {
			return fmt.Errorf("no field %s", name)
		}
		if err := f.value(name, kind, v); err != nil {
			return err
		}
	}
	return nil
}

var ecsMACs = regexp.MustCompile(`^[0-9A-F]{2}(-[0-9A-F]{2}){5}$`)

func (f *ecsFacts) value(name, kind string, v any) error {
	wrong := fmt.Errorf("%s: %v is no %s", name, v, kind)
	if element, isList := strings.CutSuffix(kind, "[]"); isList {
		list, ok := v.([]any)
		if !ok || len(list) == 0 {
			return wrong
		}
		for _, v := range list {
			if err := f.value(name, element, v); err != nil {
				return err
			}
		}
		return nil
	}
	text, isText := v.(string)
	switch kind {
	case "keyword", "match_only_text":
		if values := f.values[name]; !isText || values != nil && !slices.Contains(values, text) || strings.HasSuffix(name, ".mac") && !ecsMACs.MatchString(text) {
			return wrong
		}
	case "date":
		if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
			return wrong
		}
	case "ip":
		if _, err := netip.ParseAddr(text); err != nil {
			return wrong
		}
	case "long":
		number, ok := v.(json.Number)
		if _, err := number.Int64(); !ok || err != nil {
			return wrong
		}
	case "object": // Of labels: flat, and of keywords.
		o, ok := v.(map[string]any)
		if !ok {
			return wrong
		}
		for _, v := range o {
			if _, isText := v.(string); !isText {
				return wrong
			}
		}
	default:
		return wrong
	}
	return nil
}

func TestECS(t *testing.T) {
	facts := readECS(t)
	for name, l := range samples(t) {
		line := AppendECS(nil, l)
		if err := facts.check(line); err != nil {
			t.Errorf("%s: %v\n%s", name, err, line)
		}
		if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
			t.Errorf("%s: not one line: %q", name, line)
		}
	}
}

// The check would see what is wrong.
func TestECSCheckRefuses(t *testing.T) {
	facts := readECS(t)
	all := samples(t)
	for name, tt := range map[string]struct{ of, old, new string }{
		"no time":     {"isolation", `"@timestamp"`, `"timestamp"`},
		"version":     {"isolation", `"8.17.0"`, `"8.16.0"`},
		"field":       {"isolation", `"ruleset"`, `"rule_set"`},
		"kind":        {"isolation", `"kind":"event"`, `"kind":"thing"`},
		"type":        {"isolation", `"denied"`, `"creation"`},
		"category":    {"isolation", `["network"]`, `"network"`},
		"direction":   {"isolation", `"direction":"ingress"`, `"direction":"in"`},
		"port":        {"isolation", `"port":80`, `"port":"80"`},
		"address":     {"isolation", `"ip":"10.10.1.7"`, `"ip":"10.10.1"`},
		"hardware":    {"forged", `02-00-00-00-00-AB`, `02:00:00:00:00:ab`},
		"iana_number": {"isolation", `"iana_number":"6"`, `"iana_number":6`},
		"label":       {"allow", `"log_label":"web"`, `"log_label":["web"]`},
	} {
		line := string(AppendECS(nil, all[tt.of]))
		wrong := strings.Replace(line, tt.old, tt.new, 1)
		if wrong == line {
			t.Fatalf("%s: %s is not in %s", name, tt.old, line)
		}
		if facts.check([]byte(wrong)) == nil {
			t.Errorf("%s is taken: %s", name, wrong)
		}
	}
}

// TestECSMapping: where things stand.
func TestECSMapping(t *testing.T) {
	all := samples(t)
	for name, wants := range map[string][]string{
		"isolation": {`"@timestamp":"2023-07-04T12:33:25.221413Z"`, `"category":["network"],"type":["connection","denied"],"action":"packet-dropped","outcome":"failure"`, `"id":"7","sequence":3`,
			`"source":{"address":"10.10.1.13","ip":"10.10.1.13","port":57050}`, `"network":{"direction":"ingress","type":"ipv4","transport":"tcp","iana_number":"6","packets":3}`,
			`"rule":{"ruleset":"K8sNetworkPolicy:default/a-deny-all"}`, `"orchestrator":{"type":"kubernetes","namespace":"default","resource":{"type":"pod","name":"nettool"}}`,
			`"observer":{"name":"n1","type":"firewall"`, `"end":"2023-07-04T12:33:25.521413Z","reason":"isolation"`},
		"allow":          {`"type":["connection","allowed"]`, `"outcome":"success"`, `"rule":{"name":"r",`, `"labels":{"log_label":"web"}`},
		"node":           {`"resource":{"type":"node","name":"n1"}`},
		"service":        {`"namespace":"default","resource":{"type":"service","name":"web"}`},
		"context":        {`"uuid":"0b1e-2","version":"3"`, `"source":{"namespace":"shop","pod":"web-1"`},
		"forged":         {`"mac":"02-00-00-00-00-AB"`, `"code":"packet-forged"`},
		"ipv6":           {`"type":"ipv6","transport":"ipv6-icmp","iana_number":"58"`},
		"loss of a rule": {`"action":"records-lost","outcome":"failure"`, `"reason":"rule_meter"`, `"rule":{"name":"r","ruleset":"AntreaNetworkPolicy:default/p"}`, `"direction":"ingress"`, `"count":0`},
		"change deleted": {`"category":["configuration"],"type":["deletion"],"action":"object-deleted"`, `"user":{"name":"eve@example.net"}`, `"resource":{"type":"networkpolicy","name":"deny"}`},
		"test":           {`"action":"sink-test"`, `"sink":"siem","id":"4711"`},
	} {
		line := string(AppendECS(nil, all[name]))
		for _, want := range wants {
			if !strings.Contains(line, want) {
				t.Errorf("%s: %s is missing in %s", name, want, line)
			}
		}
	}
}
