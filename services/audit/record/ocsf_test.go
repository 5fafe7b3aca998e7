package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ocsfFacts is what testdata/ocsf-*.txt say: the attributes of the classes and
// objects that are used here.
type ocsfFacts map[string]*ocsfShape

type ocsfShape struct {
	attributes map[string]ocsfAttribute
	oneOf      []string
}

type ocsfAttribute struct {
	kind     string
	required bool
	values   []int
}

func readOCSF(t testing.TB, version string) ocsfFacts {
	t.Helper()
	text, err := os.ReadFile("testdata/ocsf-" + version + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	facts := ocsfFacts{}
	var shape *ocsfShape
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case words[0] == "#":
		case words[0] == "class" || words[0] == "object":
			shape = &ocsfShape{attributes: map[string]ocsfAttribute{}}
			facts[words[1]] = shape
			if last := words[len(words)-1]; strings.HasPrefix(last, "one_of=") {
				shape.oneOf = strings.Split(last[len("one_of="):], ",")
			}
		default:
			a := ocsfAttribute{kind: strings.TrimSuffix(words[1], "!"), required: strings.HasSuffix(words[1], "!")}
			if len(words) > 2 {
				for v := range strings.SplitSeq(words[2], ",") {
					n, err := strconv.Atoi(v)
					if err != nil {
						t.Fatal(err)
					}
					a.values = append(a.values, n)
				}
			}
			shape.attributes[words[0]] = a
		}
	}
	return facts
}

// check judges one event as OCSF does.
func (f ocsfFacts) check(line []byte) error {
	var e map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&e); err != nil {
		return err
	}
	class := fmt.Sprint(e["class_uid"])
	if f[class] == nil || len(class) != 4 {
		return fmt.Errorf("class_uid %s", class)
	}
	if err := f.object(class, class, e); err != nil {
		return err
	}
	if want := class + fmt.Sprintf("%02s", e["activity_id"]); fmt.Sprint(e["type_uid"]) != want {
		return fmt.Errorf("type_uid %v, want %s", e["type_uid"], want)
	}
	if fmt.Sprint(e["category_uid"]) != class[:1] {
		return fmt.Errorf("category_uid %v", e["category_uid"])
	}
	if v := e["metadata"].(map[string]any)["version"]; v != OCSFVersion {
		return fmt.Errorf("metadata.version %v", v)
	}
	if e["count"] != nil && (e["start_time"] == nil || e["end_time"] == nil) {
		return fmt.Errorf("a count without its time")
	}
	return nil
}

func (f ocsfFacts) object(path, name string, o map[string]any) error {
	shape := f[name]
	if shape == nil {
		return fmt.Errorf("%s: no facts of %s", path, name)
	}
	for key, v := range o {
		a, known := shape.attributes[key]
		if !known {
			return fmt.Errorf("%s: no attribute %s", path, key)
		}
		if err := f.value(path+"."+key, a, v); err != nil {
			return err
		}
		// Of values that the schema does not know, the text says which they are.
		if text, isID := strings.CutSuffix(key, "_id"); isID && fmt.Sprint(v) == "99" {
			if text == "activity" {
				text = "activity_name"
			}
			if s, _ := o[text].(string); s == "" {
				return fmt.Errorf("%s.%s is other, without %s", path, key, text)
			}
		}
	}
	for key, a := range shape.attributes {
		if a.required && o[key] == nil {
			return fmt.Errorf("%s: %s is missing", path, key)
		}
	}
	if shape.oneOf != nil && !slices.ContainsFunc(shape.oneOf, func(key string) bool { return o[key] != nil }) {
		return fmt.Errorf("%s: none of %v", path, shape.oneOf)
	}
	return nil
}

var ocsfPatterns = map[string]*regexp.Regexp{
	"mac_t":      regexp.MustCompile(`^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$`),
	"hostname_t": regexp.MustCompile(`^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$`),
	"string_t":   regexp.MustCompile(`(?s).+`), // An attribute without a value is left out.
	"username_t": regexp.MustCompile(`(?s).+`),
}

func (f ocsfFacts) value(path string, a ocsfAttribute, v any) error {
	if kind, isList := strings.CutSuffix(a.kind, "[]"); isList {
		list, ok := v.([]any)
		if !ok || len(list) == 0 {
			return fmt.Errorf("%s: %v is no list", path, v)
		}
		a.kind = kind
		for _, v := range list {
			if err := f.value(path, a, v); err != nil {
				return err
			}
		}
		return nil
	}
	wrong := fmt.Errorf("%s: %v is no %s", path, v, a.kind)
	text, isText := v.(string)
	switch a.kind {
	case "json_t":
		return nil
	case "object":
		if _, ok := v.(map[string]any); !ok {
			return wrong
		}
		return nil
	case "integer_t", "long_t", "timestamp_t", "port_t":
		number, ok := v.(json.Number)
		n, err := number.Int64()
		if !ok || err != nil || a.kind == "port_t" && (n < 0 || n > 65535) || a.values != nil && !slices.Contains(a.values, int(n)) {
			return wrong
		}
		return nil
	case "ip_t":
		if _, err := netip.ParseAddr(text); err != nil {
			return wrong
		}
		return nil
	}
	if p := ocsfPatterns[a.kind]; p != nil {
		if !isText || !p.MatchString(text) {
			return wrong
		}
		return nil
	}
	o, ok := v.(map[string]any)
	if !ok {
		return wrong
	}
	return f.object(path, a.kind, o)
}

// TestOCSF holds every line to the facts of the version that it says, and to
// those of a later one.
func TestOCSF(t *testing.T) {
	for _, version := range []string{OCSFVersion, "1.8.0"} {
		facts := readOCSF(t, version)
		for name, l := range samples(t) {
			line := AppendOCSF(nil, l)
			if err := facts.check(line); err != nil {
				t.Errorf("%s: %s: %v\n%s", version, name, err, line)
			}
			if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
				t.Errorf("%s: not one line: %q", name, line)
			}
		}
	}
}

// The check would see what is wrong.
func TestOCSFCheckRefuses(t *testing.T) {
	facts := readOCSF(t, OCSFVersion)
	all := samples(t)
	for name, tt := range map[string]struct{ of, old, new string }{
		"type":                {"isolation", `"type_uid":400104`, `"type_uid":400105`},
		"category":            {"isolation", `"category_uid":4`, `"category_uid":3`},
		"unknown attribute":   {"isolation", `"device"`, `"devices"`},
		"no severity":         {"isolation", `"severity_id":2,`, ``},
		"severity":            {"isolation", `"severity_id":2,`, `"severity_id":12,`},
		"no destination":      {"isolation", `"dst_endpoint"`, `"proxy"`},
		"port":                {"isolation", `"port":57050`, `"port":75050`},
		"address":             {"isolation", `"ip":"10.10.1.13"`, `"ip":"10.10.1"`},
		"time as text":        {"isolation", `"time":1688474005221`, `"time":"1688474005221"`},
		"count without times": {"isolation", `"start_time":1688474005221,`, ``},
		"nameless other":      {"loss ovs", `"activity_name":"Loss",`, ``},
		"no direction":        {"isolation", `"direction_id":1,`, ``},
		"version":             {"isolation", `"version":"1.4.0"`, `"version":"1.2.0"`},
		"nobody":              {"overflow of anything", `"dst_endpoint":{"name":"various"}`, `"dst_endpoint":{}`},
	} {
		line := string(AppendOCSF(nil, all[tt.of]))
		wrong := strings.Replace(line, tt.old, tt.new, 1)
		if wrong == line {
			t.Fatalf("%s: %s is not in %s", name, tt.old, line)
		}
		if facts.check([]byte(wrong)) == nil {
			t.Errorf("%s is taken: %s", name, wrong)
		}
	}
}

// TestOCSFMapping: where things stand.
func TestOCSFMapping(t *testing.T) {
	all := samples(t)
	for name, wants := range map[string][]string{
		"isolation": {`"class_uid":4001`, `"activity_id":4,`, `"action_id":2,"disposition_id":6`, `"time":1688474005221`, `"count":3,"start_time":1688474005221,"end_time":1688474005521`,
			`"src_endpoint":{"ip":"10.10.1.13","port":57050,"name":"default/client","type_id":99,"type":"Pod"}`, `"dst_endpoint":{"ip":"10.10.1.7","port":80,"name":"default/nettool"`,
			`"connection_info":{"direction_id":1,"protocol_num":6,"protocol_name":"tcp","protocol_ver_id":4,"tcp_flags":2}`, `"traffic":{"packets":3,"bytes":180}`,
			`"policy":{"name":"K8sNetworkPolicy:default/a-deny-all"}`, `"policies":["K8sNetworkPolicy:default/a-deny-all","K8sNetworkPolicy:default/web"]`, `"device":{"name":"n1","type_id":1}`},
		"allow":                 {`"activity_id":1,`, `"action_id":1,"disposition_id":1,`, `"firewall_rule":{"name":"r"}`, `"logLabel":"web"`, `"severity_id":1`},
		"reject":                {`"activity_id":5,`, `"action_id":2,"disposition_id":2,`, `"direction_id":2`, `"src_endpoint":{"ip":"10.10.1.13","port":57050,"name":"default/nettool"`},
		"redirect":              {`"activity_id":6,`, `"action_id":99,"action":"Redirect","disposition_id":99,"disposition":"Redirect"`},
		"context":               {`"src_endpoint":{"ip":"10.10.1.13","port":57050,"name":"shop/web-1"`, `"svc_name":"shop/db"`, `"uid":"0b1e-2","version":"3"`, `"workload":"Deployment/web"`},
		"forged":                {`"activity_id":6,`, `"severity_id":4`, `"mac":"02:00:00:00:00:ab"`, `"event_code":"packet-forged"`},
		"forged frame":          {`"protocol_num":-1`},
		"ipv6":                  {`"protocol_num":58,"protocol_name":"ipv6-icmp","protocol_ver_id":6`},
		"staged":                {`"staged":{"action":"allow","policy":"AntreaNetworkPolicy:default/open"`},
		"loss of a rule":        {`"class_uid":1008`, `"status_id":2,"status_detail":"rule_meter"`, `"policy":"AntreaNetworkPolicy:default/p","rule":"r","direction":"ingress"`, `"count":0`},
		"loss of the collector": {`"device":{"name":"weir-auditd"`, `"count":9223372036854775808`},
		"change updated":        {`"class_uid":3004`, `"activity_id":3,`, `"entity":{"name":"shop/deny","type_id":99,"type":"NetworkPolicy","uid":"u-1","version":"4","data":{"metadata":{"name":"deny"},`, `"actor":{"user":{"name":"eve@example.net"},"app_name":"kubectl"}`},
		"change present":        {`"activity_id":99,`, `"activity_name":"Present"`},
		"test":                  {`"activity_name":"Test"`, `"unmapped":{"sink":"siem","id":"4711"}`},
	} {
		line := string(AppendOCSF(nil, all[name]))
		for _, want := range wants {
			if !strings.Contains(line, want) {
				t.Errorf("%s: %s is missing in %s", name, want, line)
			}
		}
	}
}
