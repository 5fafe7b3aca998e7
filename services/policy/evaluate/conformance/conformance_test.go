package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
)

// ours is where this repository's own cases are.
const ours = "../../../../e2e/testdata/conformance"

func TestOwnCases(t *testing.T) {
	cases, err := Load(ours)
	if err != nil {
		t.Fatal(err)
	}
	report := Evaluate(cases)
	for _, f := range report.Failures {
		t.Error(f)
	}
	for _, s := range report.Skips {
		t.Errorf("%s/%s is skipped: %s", s.Suite, s.Case, s.Why)
	}
	if report.Totals.Passed < 95 || report.Totals.Verdicts < 5500 {
		t.Errorf("%d cases and %d verdicts passed: the cases are not all there", report.Totals.Passed, report.Totals.Verdicts)
	}
}

// The cases published with the design, where they are at hand. What is not
// supported yet may be skipped, save in the suites of Kubernetes NetworkPolicy.
func TestPublishedCases(t *testing.T) {
	dir := os.Getenv("WEIR_CONFORMANCE_DIR")
	if dir == "" {
		t.Skip("WEIR_CONFORMANCE_DIR is not set")
	}
	cases, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	report := Evaluate(cases)
	for _, f := range report.Failures {
		t.Error(f)
	}
	for _, suite := range []string{"k8s-e2e-netpol", "cyclonus", "recipes"} {
		if s := report.Suites[suite]; s == nil || s.Cases == 0 || s.Passed != s.Cases {
			t.Errorf("suite %s: %+v", suite, s)
		}
	}
	t.Logf("%+v", report.Totals)
}

// small is a case of one step to begin variations from.
const small = `schema: weir-conformance/v1
suite: s
case: c
denyMode: drop
fixture:
  namespaces: [{name: y}, {name: n}]
  nodes: [{name: node, ip: 192.0.2.1}]
  pods:
  - {name: a, namespace: y, ips: [10.0.0.1], node: node}
  - {name: b, namespace: n, labels: {app: b}, ips: [10.0.0.2], node: node}
steps:
- policies:
  - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: n}, spec: {podSelector: {}}}
  tables:
  - flows: [{port: 80, protocol: TCP}]
    order: [y/a, n/b]
    rows: {y/a: .d, n/b: a.}
`

func parse(t *testing.T, text string) Case {
	t.Helper()
	c, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ name, old, new, want string }{
		{"a field that is not known", "ips: [10.0.0.1]", "ip: 10.0.0.1", `unknown field "ip"`},
		{"another schema", "conformance/v1", "conformance/v9", "schema"},
		{"no deny mode", "denyMode: drop", "denyMode: maybe", "denyMode"},
		{"a letter that means nothing", ".d", ".x", `rows.y/a: ".x" has letters`},
		{"a row too short", ".d", ".", "1 letters for 2 columns"},
		{"no flows", "flows: [{port: 80, protocol: TCP}]", "flows: []", "no flows"},
		{"nothing to check", "{y/a: .d, n/b: a.}", "{}", "checks nothing"},
		{"an unknown protocol", "protocol: TCP", "protocol: tcp", `protocol "tcp"`},
		{"broken YAML", "steps:", "steps", "not valid YAML"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := strings.Replace(small, test.old, test.new, 1)
			if text == small {
				t.Fatal("the variation changes nothing")
			}
			if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func report(t *testing.T, text string) *Report {
	t.Helper()
	return Evaluate([]Case{parse(t, text)})
}

func TestReportCountsWhatWentWrong(t *testing.T) {
	r := report(t, strings.Replace(small, "{y/a: .d, n/b: a.}", "{y/a: .a, n/b: r.}", 1))
	var out bytes.Buffer
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := `{"failures":[` +
		`{"case":"c","expected":"allow","from":"y/a","got":"deny","port":80,"protocol":"TCP","step":"step-1","suite":"s","to":"n/b","why":"isolated by n/p; no rule allows TCP/80 from y/a"},` +
		`{"case":"c","expected":"reject","from":"n/b","got":"allow","port":80,"protocol":"TCP","step":"step-1","suite":"s","to":"y/a","why":"no rule decides on ingress of y/a, and no policy isolates it"}],` +
		`"mode":"evaluate","skips":[],"suites":{"s":{"cases":1,"passed":0}},"totals":{"cases":1,"passed":0,"skipped":0,"verdicts":2,"wrong":2}}`
	canonical, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if string(canonical) != want {
		t.Errorf("got  %s\nwant %s", canonical, want)
	}
	if !r.Failed(false) {
		t.Error("the run does not fail")
	}
}

// Reports added up are the report of all of their cases.
func TestReportsAddUp(t *testing.T) {
	right, wrong := parse(t, small), parse(t, strings.Replace(small, "{y/a: .d, n/b: a.}", "{y/a: .a, n/b: r.}", 1))
	elsewhere := parse(t, strings.Replace(small, "suite: s", "suite: elsewhere", 1))
	sum := NewReport(ModeEvaluate)
	for _, cases := range [][]Case{{right, wrong}, {elsewhere}, {right}} {
		part := Evaluate(cases)
		part.Begin(&right).Skip("for a reason")
		sum.Add(part)
	}
	want := Evaluate([]Case{right, wrong, elsewhere, right})
	for range 3 {
		want.Begin(&right).Skip("for a reason")
	}
	if !reflect.DeepEqual(sum, want) {
		t.Errorf("the sum is %+v, and of all %+v", sum, want)
	}
	if want.Totals.Passed != 3 || want.Totals.Wrong != 2 || want.Totals.Cases != 7 {
		t.Errorf("of all: %+v", want.Totals)
	}
}

func TestSkipsAreNoPasses(t *testing.T) {
	c := parse(t, small)
	r := NewReport(ModeEvaluate)
	of := r.Begin(&c)
	of.Skip("for a reason")
	of.Skip("and another")
	if of.End() || r.Totals.Passed != 0 || r.Totals.Skipped != 1 || len(r.Skips) != 2 {
		t.Errorf("got %+v and %+v", r.Totals, r.Skips)
	}
	if r.Failed(false) || !r.Failed(true) {
		t.Error("skips must fail the strict run alone")
	}
}

func TestEvaluations(t *testing.T) {
	for _, tc := range []struct{ name, evaluation, want string }{
		{"isolation", "{from: y/a, to: n/b, policy: p, action: Isolate}", ""},
		{"nobody", "{from: n/b, to: y/a, policy: <NONE>, action: <NONE>}", ""},
		{"nobody, in another word", "{from: n/b, to: y/a, policy: None}", ""},
		{"another policy", "{from: y/a, to: n/b, policy: q, action: Isolate}", `expected Isolate by q, got Isolate by "p"`},
		{"another action", "{from: y/a, to: n/b, policy: p, action: Allow}", `expected Allow by p, got Isolate by "p"`},
		{"a Pod that is not there", "{from: y/x, to: n/b, policy: p, action: Drop}", "there is no Pod y/x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := report(t, strings.Replace(small, "  tables:", "  evaluations: ["+tc.evaluation+"]\n  tables:", 1))
			if r.Totals.Verdicts != 3 || (tc.want == "") != (r.Totals.Passed == 1) {
				t.Errorf("%+v, %+v", r.Totals, r.Failures)
			}
			if tc.want != "" && (len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Why, tc.want)) {
				t.Errorf("%+v, want %s", r.Failures, tc.want)
			}
		})
	}
}

func TestACaseWithAnInvalidPolicyFails(t *testing.T) {
	r := report(t, strings.Replace(small, "podSelector: {}", "podSelector: {}, policyTypes: [Both]", 1))
	if r.Totals.Wrong != 1 || r.Totals.Passed != 0 || !strings.Contains(r.Failures[0].Why, "policyTypes[0]") {
		t.Errorf("got %+v %v", r.Totals, r.Failures)
	}
}

func TestDenyModes(t *testing.T) {
	for _, test := range []struct {
		mode, expected, got string
		want                bool
	}{
		{"drop", Deny, Deny, true}, {"drop", Deny, Reject, false}, {"drop", Reject, Reject, true}, {"drop", Reject, Deny, false}, {"drop", Allow, Allow, true}, {"drop", Allow, Deny, false},
		{"any", Deny, Reject, true}, {"any", Reject, Deny, true}, {"any", Deny, Allow, false}, {"any", Allow, Reject, false}, {"any", Deny, "error", false},
	} {
		c := Case{DenyMode: test.mode}
		if got := c.Meets(test.expected, test.got); got != test.want {
			t.Errorf("denyMode %s, expected %s, got %s: %v", test.mode, test.expected, test.got, got)
		}
	}
}

func TestWorldFollowsSteps(t *testing.T) {
	c := parse(t, small+`- policies: []
  fixtureSet: {namespaces: [{name: y, labels: {l: v}}], pods: [{name: c, namespace: y, ips: [10.0.0.3], node: node, phase: Succeeded}]}
  fixtureRemove: {pods: [n/b]}
- policies: []
  fixtureRemove: {namespaces: [y]}
- policies: []
  fixtureRemove: {pods: [n/b]}
`)
	w, err := NewWorld(&c)
	if err != nil {
		t.Fatal(err)
	}
	enter := func(i int) string {
		t.Helper()
		events, err := w.Enter(&c.Steps[i])
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, e := range events {
			sign := "+"
			if e.Object == nil {
				sign = "-"
			}
			list = append(list, sign+e.Ref.String())
		}
		return strings.Join(list, ", ")
	}
	for i, want := range []string{
		"+NetworkPolicy n/p",
		"+Namespace y, -NetworkPolicy n/p, -Pod n/b, +Pod y/c",
		"-Namespace y, -Pod y/a, -Pod y/c",
	} {
		if got := enter(i); got != want {
			t.Errorf("step %d: got %s, want %s", i, got, want)
		}
	}
	if _, err := w.Enter(&c.Steps[3]); err == nil || !strings.Contains(err.Error(), "n/b is not there") {
		t.Errorf("removing what is not there: %v", err)
	}
	// The manifest is what a watched folder would take, and gives the same objects.
	text, err := w.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m, err := api.Decode(text)
	if err != nil || len(m.Objects) != len(w.Objects()) || len(m.Warnings) > 0 {
		t.Errorf("manifest: %d objects of %d, %v, %v", len(m.Objects), len(w.Objects()), m.Warnings, err)
	}
}

// Probes of Services say which of their addresses they are for, and by which port
// on nodes.
func TestProbesOfServices(t *testing.T) {
	c := parse(t, strings.Replace(small, "steps:", `  services:
  - {name: web, namespace: n, type: NodePort, clusterIPs: [10.96.0.1, "fd96::1"], selector: {app: b}, ports: [{port: 80, nodePort: 30080}, {port: 80, protocol: UDP, nodePort: 30081}]}
steps:`, 1))
	world, err := NewWorld(&c)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		probe Probe
		port  uint16
		to    string
	}{
		{Probe{ToService: "n/web", Port: 80}, 80, "Service n/web"},
		{Probe{ToService: "n/web", ToIP: "fd96::1", Port: 80}, 80, "fd96::1"},
		{Probe{ToNode: "node", ToService: "n/web", Port: 80}, 30080, "node node"},
		{Probe{ToNode: "node", ToService: "n/web", Port: 80, Protocol: "UDP"}, 30081, "node node"},
		{Probe{ToNode: "node", ToService: "n/web", Port: 30080}, 30080, "node node"},
		{Probe{ToNode: "node", ToService: "n/web", ToIP: "192.0.2.1", Port: 30080}, 30080, "192.0.2.1"},
		{Probe{ToNode: "node", Port: 80}, 80, "node node"},
	} {
		tc.probe.From = "y/a"
		got, err := world.Direct(tc.probe).Connection()
		want := evaluate.Connection{From: evaluate.Endpoint{Namespace: "y", Pod: "a"}, Protocol: ProtocolOf(tc.probe.Protocol), Port: tc.port, SourcePort: ephemeralPort}
		switch kind, name, named := strings.Cut(tc.to, " "); {
		case !named:
			want.To, _ = evaluate.ParseEndpoint(kind)
		default:
			want.To, _ = evaluate.ParseEndpoint(strings.ToLower(kind) + ":" + name)
		}
		if err != nil || got != want {
			t.Errorf("%+v is %+v, %v, want %+v", tc.probe, got, err, want)
		}
	}
}

func TestChecksTakeTablesApart(t *testing.T) {
	c := parse(t, small)
	c.Steps[0].Tables[0].Flows = append(c.Steps[0].Tables[0].Flows, Flow{Port: 53, Protocol: "UDP"})
	c.Steps[0].Probes = []Probe{{From: "y/a", ToIP: "10.0.0.9", Protocol: "ICMP", Expected: Reject}}
	var got []string
	for _, p := range c.Steps[0].Checks() {
		got = append(got, p.Source()+" "+p.Destination()+" "+p.Protocol+" "+p.Expected)
	}
	want := "y/a n/b TCP deny; n/b y/a TCP allow; y/a n/b UDP deny; n/b y/a UDP allow; y/a 10.0.0.9 ICMP reject"
	if strings.Join(got, "; ") != want {
		t.Errorf("got %s", strings.Join(got, "; "))
	}
}

// Each operation is answered on what those before it have left.
func TestAdmissionCases(t *testing.T) {
	const head = "schema: weir-conformance/v1-admission\nsuite: s\ncase: c\noperations:\n"
	tier := func(op, name string, priority int, expected string) string {
		return fmt.Sprintf("- {op: %s, expected: %s, object: {apiVersion: crd.antrea.io/v1beta1, kind: Tier, metadata: {name: %s}, spec: {priority: %d}}}\n", op, expected, name, priority)
	}
	acnp := func(op, expected, spec, more string) string {
		return fmt.Sprintf("- {op: %s, expected: %s, object: {apiVersion: crd.antrea.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: p}, spec: {priority: 1, appliedTo: [{podSelector: {}}], %s}}%s}\n", op, expected, spec, more)
	}
	gone := func(kind, name, expected string) string {
		return fmt.Sprintf("- {op: delete, expected: %s, object: {apiVersion: crd.antrea.io/v1beta1, kind: %s, metadata: {name: %s}}}\n", expected, kind, name)
	}
	const rules = "ingress: [{action: Drop, enableLogging: false}]"
	for _, test := range []struct{ name, operations, want string }{
		{"what validation refuses", "- {op: create, expected: accept, object: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}}}}\n" +
			"- {op: update, expected: accept, object: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}, policyTypes: [Both]}}}\n", "operations[1]: expected accept, got reject"},
		{"a priority that is taken", tier("create", "a", 1, "accept") + tier("create", "b", 1, "reject") + tier("update", "a", 2, "reject") + gone("Tier", "a", "accept") + tier("create", "b", 1, "accept"), ""},
		{"what exists, and what does not", tier("create", "a", 1, "accept") + tier("create", "a", 1, "reject") + tier("update", "b", 2, "reject") + gone("Tier", "b", "reject") + gone("Tier", "emergency", "reject"), ""},
		{"a tier that a policy names", acnp("create", "reject", "tier: a", "") + tier("create", "a", 1, "accept") + acnp("create", "accept", "tier: a", "") + gone("Tier", "a", "reject") + gone("ClusterNetworkPolicy", "p", "accept") + gone("Tier", "a", "accept"), ""},
		{"what defaulting sets", acnp("create", "accept", rules, ", expectMutated: {spec: {tier: application, ingress: [{name: ingress-drop-6fd1fd5}]}}"), "operations[0].expectMutated: object.spec.ingress[0].name is ingress-drop-"},
		{"what defaulting sets, by paths", acnp("create", "accept", rules, `, expectMutated: {spec.tier: application, "spec.ingress[0].action": Drop}`), ""},
		{"what defaulting does not set", acnp("create", "accept", rules, ", expectMutated: {spec: {more: 1}}"), "expectMutated: object.spec.more is not there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := report(t, head+test.operations)
			if test.want == "" && (r.Totals.Passed != 1 || len(r.Failures) > 0) {
				t.Errorf("got %+v %v", r.Totals, r.Failures)
			}
			if test.want != "" && (r.Totals.Wrong != 1 || !strings.Contains(r.Failures[0].Why, test.want)) {
				t.Errorf("got %+v %v, want %s", r.Totals, r.Failures, test.want)
			}
		})
	}
}
