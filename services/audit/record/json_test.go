package record

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// published compiles the schema by another's implementation, which checks it
// against the metaschema too.
func published(t testing.TB) func(line []byte) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(JSONSchema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("weir.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("weir.json")
	if err != nil {
		t.Fatal(err)
	}
	return func(line []byte) error {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			return err
		}
		return s.Validate(v)
	}
}

func TestLinesKeepToTheSchema(t *testing.T) {
	valid := published(t)
	for name, l := range samples(t) {
		line := AppendJSON(nil, l)
		if err := valid(line); err != nil {
			t.Errorf("%s: %v\n%s", name, err, line)
		}
		if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
			t.Errorf("%s: not one line: %q", name, line)
		}
	}
}

// Each is a line that the schema must not take; the last member says what is
// replaced.
func TestSchemaRefuses(t *testing.T) {
	valid := published(t)
	all := samples(t)
	for name, tt := range map[string]struct{ of, old, new string }{
		"another version":         {"isolation", `"weir.audit/v1"`, `"weir.audit/v2"`},
		"no version":              {"isolation", `"schema":"weir.audit/v1",`, ``},
		"an unknown member":       {"isolation", `"cursor"`, `"x":1,"cursor"`},
		"an unknown field":        {"isolation", `"first"`, `"x":1,"first"`},
		"an unknown end":          {"context", `"pod":"web-1"`, `"pod":"web-1","x":1`},
		"an end of nobody":        {"context", `"destination":{"node":"n1"}`, `"destination":{}`},
		"half a Pod":              {"context", `"namespace":"shop",`, ``},
		"two kinds":               {"isolation", `"packet":{`, `"test":{"time":"2023-07-04T12:33:25Z","sink":"s","id":"i"},"packet":{`},
		"no kind":                 {"isolation", `"packet":{`, `"other":{`},
		"a count as text":         {"isolation", `"count":3`, `"count":"3"`},
		"a count of none":         {"isolation", `"count":3`, `"count":0`},
		"an action":               {"isolation", `"action":"drop"`, `"action":"Drop"`},
		"a time of a zone":        {"isolation", `25.221413Z`, `25.221413+02:00`},
		"a time that is none":     {"isolation", `2023-07-04T12:33:25.22`, `2023-07-34T12:33:25.22`},
		"an address":              {"isolation", `10.10.1.13`, `10.10.1.313`},
		"a port":                  {"isolation", `57050`, `75050`},
		"a policy without kind":   {"isolation", `"K8sNetworkPolicy:default/web"`, `"default/web"`},
		"a packet without length": {"isolation", `"length":60,`, ``},
		"an overflow with ends":   {"overflow", `"overflow":true`, `"overflow":true,"sourceIP":"10.0.0.1"`},
		"a stage":                 {"loss ovs", `"ovs"`, `"elsewhere"`},
		"a loss without count":    {"loss ovs", `"count":9,`, ``},
		"a negative count":        {"loss ovs", `"count":9`, `"count":-9`},
		"a change without object": {"change created", `"object"`, `"subject"`},
		"a manifest as text":      {"change of a tier", `"name":"t"`, `"name":"t","manifest":"{}"`},
		"a test without id":       {"test", `,"id":"4711"`, ``},
		"hardware":                {"forged", `"02:00:00:00:00:ab"`, `"02-00-00-00-00-ab"`},
	} {
		line := string(AppendJSON(nil, all[tt.of]))
		wrong := strings.Replace(line, tt.old, tt.new, 1)
		if wrong == line {
			t.Fatalf("%s: %s is not in %s", name, tt.old, line)
		}
		if valid([]byte(wrong)) == nil {
			t.Errorf("%s is taken: %s", name, wrong)
		}
	}
}

// TestJSONOfContext: what the collector knew stands in the line, and not in that
// of an overflow, which is of many packets.
func TestJSONOfContext(t *testing.T) {
	l := samples(t)["context"]
	want := `,"service":"shop/db","source":{"namespace":"shop","pod":"web-1","node":"n2","workload":"Deployment/web"},"destination":{"node":"n1"},` +
		`"policyVersions":[{"uid":"0b1e-2","generation":3},{}]}}` + "\n"
	if got := string(AppendJSON(nil, l)); !strings.HasSuffix(got, want) {
		t.Errorf("got  %swant …%s", got, want)
	}
	l.Packet.Service = "shop/other"
	if got := string(AppendJSON(nil, l)); !strings.Contains(got, `,"service":"shop/other",`) {
		t.Errorf("the node's word for the Service is not taken: %s", got)
	}
	l.Overflow, l.Packet.Service = true, ""
	if got := string(AppendJSON(nil, l)); strings.Contains(got, "shop") {
		t.Errorf("an overflow with ends: %s", got)
	}
}

func TestJSONOfLossAndChange(t *testing.T) {
	all := samples(t)
	for name, want := range map[string]string{
		"loss of a rule": `{"schema":"weir.audit/v1","cursor":8,"node":"n1","boot":"b1","sequence":4,"loss":{"from":"2023-07-04T12:33:25.221413Z","to":"2023-07-04T12:33:26.221413Z",` +
			`"count":0,"stage":"rule_meter","reason":"isolation","policy":"AntreaNetworkPolicy:default/p","rule":"r","direction":"ingress"}}`,
		"change updated": `{"schema":"weir.audit/v1","cursor":8,"node":"","change":{"time":"2023-07-04T12:33:25.221413Z","kind":"updated","object":{"apiVersion":"networking.k8s.io/v1",` +
			`"kind":"NetworkPolicy","namespace":"shop","name":"deny","uid":"u-1","generation":4,"manager":"kubectl","user":"eve@example.net",` +
			`"manifest":{"metadata":{"name":"deny"},"spec":{"podSelector":{}}}},"fields":["spec.ingress","metadata.labels"],"podsBefore":2,"podsAfter":3}}`,
		"test": `{"schema":"weir.audit/v1","cursor":9,"node":"","test":{"time":"2023-07-04T12:33:25.221413Z","sink":"siem","id":"4711"}}`,
	} {
		if got := string(AppendJSON(nil, all[name])); got != want+"\n" {
			t.Errorf("got  %swant %s", got, want)
		}
	}
}

// TestManifests: whatever a manifest is, the line is one line of JSON; an object
// stands in it with the same meaning, and what is none is left out.
func TestManifests(t *testing.T) {
	valid := published(t)
	for _, tt := range []struct {
		manifest string
		kept     bool
	}{
		{`{"a": "b\"c\\", "d" : [1, 2.50, null, {"e": "  "}]}`, true}, {"{\"a\":\"\u2028\u0085é\x7f\"}", true}, {"{\"a\":\n\n\"\\n\"}", true}, {"{}", true}, {" {}\n", true},
		{"", false}, {"[]", false}, {"{", false}, {`{"a":1}}`, false}, {`{"a":1},"x":{"b":2}`, false}, {"null", false}, {"{\"a\":\"\n\"}", false},
	} {
		l := &Line{Record: Record{Event: Event{Kind: KindChange, Change: &Change{Kind: 1, Object: &policyv1.ObjectVersion{Kind: "K", Name: "n", Manifest: []byte(tt.manifest)}}}}}
		line := AppendJSON(nil, l)
		if err := valid(line); err != nil || strings.ContainsAny(string(line[:len(line)-1]), "\n\r\u2028\u0085\x7f") {
			t.Errorf("%q: %v: %q", tt.manifest, err, line)
		}
		var got struct {
			Change struct {
				Object struct{ Manifest json.RawMessage }
			}
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		if kept := got.Change.Object.Manifest; (kept != nil) != tt.kept {
			t.Errorf("%q: kept %s", tt.manifest, kept)
		} else if tt.kept && !sameJSON(t, kept, []byte(tt.manifest)) {
			t.Errorf("%q became %s", tt.manifest, kept)
		}
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var out [2]any
	for i, v := range [][]byte{a, b} {
		if err := json.Unmarshal(v, &out[i]); err != nil {
			t.Fatal(err)
		}
	}
	x, _ := json.Marshal(out[0])
	y, _ := json.Marshal(out[1])
	return bytes.Equal(x, y)
}
