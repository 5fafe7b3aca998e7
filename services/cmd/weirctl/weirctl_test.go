package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy"
)

// run runs one command line.
func run(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	code = Run(ctx, Streams{Out: &o, Err: &e}, args)
	return o.String(), e.String(), code
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const cluster = `apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}
`

func TestExplainOffline(t *testing.T) {
	path := write(t, "c.yaml", cluster)
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"allowed", []string{"--from", "shop/cart", "--to", "shop/web", "--port", "80"}, `{
  "verdict": "allow",
  "egress": {
    "action": "allow",
    "policy": "",
    "rule": "",
    "reason": "no rule decides on egress of shop/cart, and no policy isolates it",
    "isolatedBy": [],
    "steps": [
      {
        "name": "Kubernetes NetworkPolicies",
        "outcome": "no policy isolates shop/cart for egress",
        "rules": [],
        "others": [
          "K8sNetworkPolicy:shop/web"
        ]
      }
    ]
  },
  "ingress": {
    "action": "allow",
    "policy": "K8sNetworkPolicy:shop/web",
    "rule": "ingress[0]",
    "reason": "isolated by shop/web; ingress[0] of shop/web allows it",
    "isolatedBy": [
      "K8sNetworkPolicy:shop/web"
    ],
    "steps": [
      {
        "name": "Kubernetes NetworkPolicies",
        "outcome": "isolated by shop/web; ingress[0] of shop/web allows it",
        "rules": [
          {
            "policy": "K8sNetworkPolicy:shop/web",
            "rule": "ingress[0]",
            "decides": true,
            "why": "allows it"
          }
        ],
        "others": []
      }
    ]
  },
  "staged": null
}
`},
		{"dropped", []string{"--from", "203.0.113.7", "--to", "shop/web", "--port", "53", "--protocol", "udp"}, `{
  "verdict": "drop",
  "egress": {
    "action": "allow",
    "policy": "",
    "rule": "",
    "reason": "203.0.113.7 is no Pod, so that no policy of Pods applies to it",
    "isolatedBy": [],
    "steps": []
  },
  "ingress": {
    "action": "drop",
    "policy": "",
    "rule": "",
    "reason": "isolated by shop/web; no rule allows UDP/53 from 203.0.113.7",
    "isolatedBy": [
      "K8sNetworkPolicy:shop/web"
    ],
    "steps": [
      {
        "name": "Kubernetes NetworkPolicies",
        "outcome": "isolated by shop/web; no rule allows UDP/53 from 203.0.113.7",
        "rules": [
          {
            "policy": "K8sNetworkPolicy:shop/web",
            "rule": "ingress[0]",
            "decides": false,
            "why": "203.0.113.7 is none of its peers"
          }
        ],
        "others": []
      }
    ]
  },
  "staged": null
}
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := run(t, append([]string{"explain", "-f", path, "-o", "json"}, test.args...)...)
			if code != 0 || out != test.want {
				t.Errorf("status %d %s\n%s", code, errs, out)
			}
		})
	}
	out, _, _ := run(t, "explain", "-f", path, "--from", "shop/cart", "--to", "shop/web", "--port", "80")
	want := "allow\n\nDIRECTION   ACTION   POLICY                      RULE         REASON\n" +
		"egress      allow    -                           -            no rule decides on egress of shop/cart, and no policy isolates it\n" +
		"ingress     allow    K8sNetworkPolicy:shop/web   ingress[0]   isolated by shop/web; ingress[0] of shop/web allows it\n\n" +
		"DIRECTION   STEP                         POLICY                      RULE         WHY\n" +
		"egress      Kubernetes NetworkPolicies                                            no policy isolates shop/cart for egress\n" +
		"                                                                                  not for this end: K8sNetworkPolicy:shop/web\n" +
		"ingress     Kubernetes NetworkPolicies                                            isolated by shop/web; ingress[0] of shop/web allows it\n" +
		"                                         K8sNetworkPolicy:shop/web   ingress[0]   allows it\n"
	if out != want {
		t.Errorf("got\n%s", out)
	}
}

func TestDiff(t *testing.T) {
	old := write(t, "old.yaml", cluster)
	next := write(t, "new.yaml", cluster+`---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: shut}
spec: {tier: securityops, priority: 1, appliedTo: [{podSelector: {matchLabels: {app: web}}}], ingress: [{name: no-http, action: Drop, from: [{namespaceSelector: {}}], ports: [{port: 80, endPort: 90}]}]}
`)
	log := write(t, "audit.json", `{"cursor":1,"node":"n","packet":{"action":"allow","sourceIP":"10.0.0.2","sourcePort":4000,"destinationIP":"10.0.0.1","destinationPort":80,"protocol":"TCP"}}
{"cursor":2,"node":"n","packet":{"action":"allow","sourceIP":"10.0.0.2","sourcePort":4000,"destinationIP":"10.0.0.1","destinationPort":80,"protocol":"TCP"}}
{"cursor":3,"node":"n","packet":{"action":"allow","sourceIP":"10.0.0.2","sourcePort":4001,"destinationIP":"10.0.0.1","destinationPort":8080,"protocol":"TCP"}}
{"cursor":4,"node":"n","loss":{"count":3}}
{"cursor":5,"node":"n","packet":{"action":"drop","overflow":true}}
`)
	out, errs, code := run(t, "diff", "-f", old, "-f", next, "--against-log", log)
	want := `FROM        TO         TRAFFIC   OLD     NEW    WHY
shop/cart   shop/web   TCP/80    allow   drop   no-http of AntreaClusterNetworkPolicy shut drops it

1 of 2 recorded connections would have got another verdict; 1 more cannot be judged by these manifests
`
	if code != 0 || out != want {
		t.Errorf("status %d %s\n%s", code, errs, out)
	}
	var got difference
	if out, _, _ := run(t, "diff", "-f", next, "-f", old, "-o", "json"); json.Unmarshal([]byte(out), &got) != nil || len(got.Changes) != 1 || got.Log != nil ||
		got.Changes[0].Old.Verdict != "drop" || got.Changes[0].New.Verdict != "allow" || got.Changes[0].Traffic != "TCP/80" {
		t.Errorf("%+v", got)
	}
	if out, _, _ := run(t, "diff", "-f", old, "-f", old); out != "no connection gets another verdict\n" {
		t.Errorf("%s", out)
	}
}

func TestCommandsRefuse(t *testing.T) {
	good := write(t, "c.yaml", cluster)
	bad := write(t, "bad.yaml", cluster+"---\nkind: Oops\n")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"explain", "-f", bad, "--from", "shop/cart", "--to", "shop/web", "--port", "80"}, "the manifests are not valid"},
		{[]string{"explain", "-f", good, "--from", "cart", "--to", "shop/web", "--port", "80"}, `from: "cart" is none of NAMESPACE/POD`},
		{[]string{"explain", "-f", good, "--from", "shop/nobody", "--to", "shop/web", "--port", "80"}, "there is no Pod shop/nobody"},
		{[]string{"explain", "-f", good, "--from", "shop/cart", "--to", "shop/web"}, "--port: TCP needs a destination port"},
		{[]string{"explain", "-f", good, "--from", "shop/cart", "--to", "shop/web", "--protocol", "GRE"}, `--protocol "GRE": write TCP`},
		{[]string{"explain", "-f", good, "--from", "shop/cart"}, `required flag(s) "to"`},
		{[]string{"explain", "-f", "/nowhere", "--from", "shop/cart", "--to", "shop/web", "--port", "80"}, "no such file"},
		{[]string{"diff", "-f", good}, "-f: write it twice"},
		{[]string{"diff", "-f", good, "-f", bad}, "the manifests are not valid"},
		{[]string{"diff", "-f", good, "-f", good, "--against-log", good}, "--against-log: line 1 is no record of a JSON audit log"},
		{[]string{"validate", "-f", t.TempDir()}, "holds no manifest"},
		{[]string{"validate", "-f", good, "-o", "xml"}, "write table or json"},
		{[]string{"evaluate", "-f", "/nowhere"}, "no such file"},
		{[]string{"get", "policies", "--sort-by", "age"}, "write name or effectivePriority"},
		{[]string{"get", "nodes", "--server", "192.0.2.1:1"}, "192.0.2.1:1 is beyond loopback"},
		{[]string{"get", "nodes", "--server", "127.0.0.1:1", "--ca", "x"}, "mutual TLS needs a CA, a certificate and a key"},
		{[]string{"get", "nodes", "--server", "127.0.0.1:1", "--ca", "x", "--insecure"}, "--insecure contradicts --ca"},
		{[]string{"get", "nodes", "--server", "127.0.0.1:1", "--timeout", "5s"}, "127.0.0.1:1 does not answer"},
		{[]string{"audit", "tail", "--after", "1", "--from-end"}, "contradicts"},
		{[]string{"audit", "tail", "--action", "unspecified"}, "write allow, drop"},
		{[]string{"audit", "tail", "--since", "yesterday"}, "write a time such as"},
		{[]string{"frobnicate"}, "unknown command"},
	} {
		_, errs, code := run(t, test.args...)
		if code != 1 || !strings.Contains(errs, test.want) {
			t.Errorf("%v: status %d, %q, want %q", test.args, code, errs, test.want)
		}
	}
}

// holds checks that a text has some parts.
func holds(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, want := range parts {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestValidate(t *testing.T) {
	good := write(t, "good.yaml", cluster+"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n")
	out, _, code := run(t, "validate", "-f", good)
	if code != 0 || !strings.Contains(out, "warning: "+good+":16: ConfigMap c: skipped") || !strings.Contains(out, "1 files, 3 valid objects, 0 violations, 1 warnings") {
		t.Errorf("status %d\n%s", code, out)
	}
	bad := write(t, "bad.yaml", cluster+"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, policyTypes: [in], ingress: [{ports: [{port: 0}]}]}\n")
	out, errs, code := run(t, "validate", "-f", good, "-f", bad)
	holds(t, out, bad+`:16: NetworkPolicy default/p: spec.policyTypes[0]: "in" is unknown`, "NetworkPolicy default/p: spec.ingress[0].ports[0].port: 0 is no port", "2 files, 6 valid objects, 2 violations, 2 warnings")
	if code != 1 || errs != "" {
		t.Errorf("status %d, %q", code, errs)
	}
	out, _, code = run(t, "validate", "-f", bad, "-o", "json")
	var got struct {
		Valid      bool
		Violations []finding
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || got.Valid || len(got.Violations) != 2 ||
		got.Violations[0] != (finding{bad, 4, 16, "NetworkPolicy default/p", "spec.policyTypes[0]", `"in" is unknown; write Ingress or Egress`}) {
		t.Errorf("status %d, %v\n%s", code, err, out)
	}
}

// What is wrong and what is odd between objects is found as that within one is.
func TestValidateJudgesObjectsBesideEachOther(t *testing.T) {
	tier := func(name string) string {
		return "---\napiVersion: crd.antrea.io/v1beta1\nkind: Tier\nmetadata: {name: " + name + "}\nspec: {priority: 7}\n"
	}
	file := write(t, "set.yaml", tier("a")+tier("b")+"---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\n"+
		"spec: {priority: 1, appliedTo: [{podSelector: {}}], ingress: [{action: Deny, name: all}, {action: Allow, name: web, ports: [{port: 80}]}]}\n")
	out, errs, code := run(t, "validate", "-f", file)
	holds(t, out,
		file+":7: Tier b: spec.priority: 7 is the priority of Tier a too; write another",
		"warning: "+file+":12: AntreaClusterNetworkPolicy p: spec.ingress[0].action: Deny is read as Drop",
		"warning: "+file+`:12: AntreaClusterNetworkPolicy p: spec.ingress[1]: the rule "web" decides nothing: all that it matches is decided before, by rule "all" (spec.ingress[0]) (Drop)`,
		"1 files, 2 valid objects, 1 violations, 2 warnings")
	if code != 1 || errs != "" {
		t.Errorf("status %d, %q", code, errs)
	}
	out, _, code = run(t, "validate", "-f", file, "-o", "json")
	var got struct {
		Valid                bool
		Violations, Warnings []finding
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || got.Valid || len(got.Violations) != 1 || len(got.Warnings) != 2 ||
		got.Violations[0] != (finding{file, 2, 7, "Tier b", "spec.priority", "7 is the priority of Tier a too; write another"}) {
		t.Errorf("status %d, %v\n%s", code, err, out)
	}
}

// Every example of the reference is valid.
func TestValidateExamples(t *testing.T) {
	dir := os.Getenv("WEIR_EXAMPLES_DIR")
	if dir == "" {
		t.Skip("WEIR_EXAMPLES_DIR is not set")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		if out, errs, code := run(t, "validate", "-f", file); code != 0 {
			t.Errorf("%s: %s%s", filepath.Base(file), out, errs)
		}
	}
}

func TestEvaluate(t *testing.T) {
	const text = `schema: weir-conformance/v1
suite: s
case: c
denyMode: drop
fixture:
  namespaces: [{name: a}]
  pods: [{name: x, namespace: a, ips: [10.0.0.1]}, {name: y, namespace: a, ips: [10.0.0.2]}]
steps:
- policies: []
  probes: [{from: a/x, to: a/y, port: 1, protocol: TCP, expected: allow}]
`
	path := write(t, "case.yaml", text)
	reportPath := filepath.Join(t.TempDir(), "report.json")
	out, errs, code := run(t, "evaluate", "-f", filepath.Dir(path), "--report", reportPath, "--strict")
	if code != 0 || !strings.Contains(out, "1 verdicts, 0 wrong, 0 cases skipped") {
		t.Errorf("status %d %s\n%s", code, errs, out)
	}
	var report struct {
		Mode   string
		Totals map[string]int
	}
	raw, err := os.ReadFile(reportPath)
	if err != nil || json.Unmarshal(raw, &report) != nil || report.Mode != "evaluate" || report.Totals["passed"] != 1 {
		t.Errorf("report: %v\n%s", err, raw)
	}
	wrong := write(t, "case.yaml", strings.Replace(text, "expected: allow", "expected: deny", 1))
	if out, _, code := run(t, "evaluate", "-f", wrong); code != 1 || !strings.Contains(out, "wrong: s/c step-1: a/x -> a/y TCP/1: expected deny, got allow") {
		t.Errorf("status %d\n%s", code, out)
	}
	broken := write(t, "case.yaml", strings.Replace(text, "suite:", "sweet:", 1))
	if out, _, code := run(t, "evaluate", "-f", broken); code != 1 || !strings.Contains(out, `unknown field "sweet"`) {
		t.Errorf("status %d\n%s", code, out)
	}
	if _, _, code := run(t, "evaluate", "-f", t.TempDir()); code != 1 {
		t.Error("a run without cases passes")
	}
}

// inspection and record are services that remember what they were asked.
type inspection struct {
	policyv1.UnimplementedInspectionServiceServer
	asked proto.Message
}

var shopWeb = &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "shop", Name: "web"}

func (s *inspection) ListPolicies(_ context.Context, r *policyv1.ListPoliciesRequest) (*policyv1.ListPoliciesResponse, error) {
	s.asked = r
	if r.GetStats() {
		return &policyv1.ListPoliciesResponse{Policies: []*policyv1.PolicySummary{
			{Ref: shopWeb, NodesCounted: 2, UncountedMs: 1500, Rules: []*policyv1.RuleStats{{Direction: policyv1.Direction_DIRECTION_INGRESS, Sessions: 12, Packets: 3456, Bytes: 7890123},
				{Direction: policyv1.Direction_DIRECTION_INGRESS, Isolation: true, Sessions: 7, Packets: 7, Bytes: 420}}},
			{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: "guard"}, Rules: []*policyv1.RuleStats{{Direction: policyv1.Direction_DIRECTION_EGRESS, Rule: "dns"}}}}}, nil
	}
	return &policyv1.ListPoliciesResponse{Policies: []*policyv1.PolicySummary{{Ref: shopWeb, Rank: 252, IngressRules: 1, Endpoints: 3, Nodes: 2, NodesRealized: 1}}}, nil
}

func (s *inspection) ListGroups(_ context.Context, r *policyv1.ListGroupsRequest) (*policyv1.ListGroupsResponse, error) {
	s.asked = r
	return &policyv1.ListGroupsResponse{Groups: []*policyv1.GroupSummary{{Id: []byte{1, 0xff}, Use: policyv1.GroupUse_GROUP_USE_APPLIED_TO, Selector: "app=web", Members: 1, MemberNames: []string{"shop/web"}}}}, nil
}

func (s *inspection) ListNodes(_ context.Context, r *policyv1.ListNodesRequest) (*policyv1.ListNodesResponse, error) {
	s.asked = r
	return &policyv1.ListNodesResponse{Nodes: []*policyv1.NodeSummary{{Name: "n1", Connected: true, AckedRevision: 7, Digest: []byte{0xab}, LastError: "bridge is away",
		BehindSeconds: 75, Replica: "0123456789abcdef"}}}, nil
}

func (s *inspection) Explain(_ context.Context, r *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	s.asked = r
	if r.GetFrom() == "a/b" {
		return nil, status.Error(codes.NotFound, "there is no Pod a/b")
	}
	return &policyv1.ExplainResponse{Verdict: policyv1.Verdict_VERDICT_REJECT,
		Egress:  &policyv1.DirectionExplanation{Action: policyv1.Action_ACTION_ALLOW, Reason: "no policy"},
		Ingress: &policyv1.DirectionExplanation{Action: policyv1.Action_ACTION_REJECT, Policy: shopWeb, Rule: "r", Reason: "because", IsolatedBy: []*policyv1.PolicyRef{shopWeb}}}, nil
}

func (s *inspection) WatchChanges(r *policyv1.WatchChangesRequest, stream policyv1.InspectionService_WatchChangesServer) error {
	s.asked = r
	change := func(second int64, name string, more *policyv1.ObjectChange) *policyv1.ObjectChange {
		more.TimeUnixNano = second * 1e9
		more.Object = &policyv1.ObjectChange_Version{Version: &policyv1.ObjectVersion{ApiVersion: "crd.antrea.io/v1beta1", Kind: "NetworkPolicy", Namespace: "shop", Name: name,
			Generation: 2, Manager: "kubectl", Manifest: []byte(`{"a":"<"}`)}}
		return more
	}
	endpoint := &policyv1.ObjectChange{Object: &policyv1.ObjectChange_Endpoint{Endpoint: &policyv1.EndpointFact{Name: "n1"}}}
	for _, m := range []*policyv1.WatchChangesResponse{
		{Changes: []*policyv1.ObjectChange{endpoint, change(2, "b", &policyv1.ObjectChange{PodsBefore: 3, PodsAfter: 3})}},
		{Changes: []*policyv1.ObjectChange{change(1, "a", &policyv1.ObjectChange{})}, Complete: true},
		{Changes: []*policyv1.ObjectChange{change(3, "b", &policyv1.ObjectChange{PodsBefore: 3, PodsAfter: 4})}},
		{Changes: []*policyv1.ObjectChange{change(4, "b", &policyv1.ObjectChange{PodsBefore: 4, Removed: true})}},
	} {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "this replica stops")
}

type auditLog struct {
	auditv1.UnimplementedAuditServiceServer
	asked *auditv1.TailRequest
}

func (s *auditLog) Tail(r *auditv1.TailRequest, stream auditv1.AuditService_TailServer) error {
	s.asked = r
	at := timestamppb.New(time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC))
	port, sport := uint32(443), uint32(50000)
	for _, rec := range []*auditv1.Record{
		{Cursor: 4, Node: "n1", Sequence: 2, Event: &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{First: at, Direction: policyv1.Direction_DIRECTION_INGRESS,
			Action: policyv1.Action_ACTION_DROP, Table: "IngressDefaultRule", Isolation: true, Policies: []*policyv1.PolicyRef{shopWeb}, AppliedTo: "shop/web",
			SourceIp: []byte{203, 0, 113, 7}, DestinationIp: []byte{10, 0, 0, 1}, Protocol: 6, SourcePort: &sport, DestinationPort: &port, Length: 60,
			Staged: &auditv1.StagedOutcome{Action: policyv1.Action_ACTION_ALLOW, Policy: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ADMIN_NETWORK_POLICY, Name: "tried"}, Rule: "r"}}}}},
		{Cursor: 5, Node: "n1", Event: &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: &auditv1.LossEvent{From: at, To: at, Count: 12, Stage: auditv1.LossStage_LOSS_STAGE_METER}}}},
		{Cursor: 6, Node: "n1", Event: &auditv1.Event{Kind: &auditv1.Event_Loss{Loss: &auditv1.LossEvent{From: at, To: at, Stage: auditv1.LossStage_LOSS_STAGE_RULE_METER, Policy: shopWeb, Rule: "r",
			Direction: policyv1.Direction_DIRECTION_EGRESS}}}},
		nil, // How far the log was read.
		{Cursor: 7, Event: &auditv1.Event{Kind: &auditv1.Event_Change{Change: &auditv1.ChangeEvent{Time: at, Kind: auditv1.ChangeKind_CHANGE_KIND_UPDATED, PodsBefore: 2, PodsAfter: 3, Fields: []string{"spec.ingress"},
			Object: &policyv1.ObjectVersion{Kind: "NetworkPolicy", Namespace: "shop", Name: "web", Generation: 4, Manager: "kubectl", User: "eve", Manifest: []byte(`{"kind": "NetworkPolicy"}`)}}}}},
		{Cursor: 8, Event: &auditv1.Event{Kind: &auditv1.Event_Test{Test: &auditv1.TestEvent{Time: at, Sink: "siem", Id: "4711"}}}},
		{Cursor: 9, Node: "n1", Event: &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{First: at, Direction: policyv1.Direction_DIRECTION_INGRESS, // Whose source is hidden.
			Action: policyv1.Action_ACTION_ALLOW, Table: "IngressRule", AppliedTo: "shop/web", DestinationIp: []byte{10, 0, 0, 9}, Protocol: 17, Length: 60}}}},
	} {
		if err := stream.Send(&auditv1.TailResponse{Record: rec}); err != nil {
			return err
		}
	}
	return nil
}

func (s *auditLog) Stats(context.Context, *auditv1.StatsRequest) (*auditv1.StatsResponse, error) {
	return &auditv1.StatsResponse{Received: 10, Kept: 9, Duplicates: 1, NewestCursor: 9, OldestCursor: 1,
		Lost: []*auditv1.LossCount{{Node: "n1", Stage: auditv1.LossStage_LOSS_STAGE_OVS, Count: 3}}, Sinks: []*auditv1.SinkStats{{Name: "np.log", Cursor: 9}}}, nil
}

// serve runs both services, with mutual TLS where files are given.
func serve(t *testing.T, files *identity.Files) (string, *inspection, *auditLog) {
	t.Helper()
	var opts []grpc.ServerOption
	if files != nil {
		config, err := identity.ServerTLS(*files)
		if err != nil {
			t.Fatal(err)
		}
		opts = append(opts, grpc.Creds(credentials.NewTLS(config)))
	}
	s := grpc.NewServer(opts...)
	i, a := &inspection{}, &auditLog{}
	policyv1.RegisterInspectionServiceServer(s, i)
	auditv1.RegisterAuditServiceServer(s, a)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String(), i, a
}

// The policy service and manifests alone give the same answer, to the byte.
func TestExplainIsTheSameOnlineAndOffline(t *testing.T) {
	path := write(t, "c.yaml", cluster+`---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: tried, annotations: {weir.dev/enforcement: staged}}
spec: {priority: 1, appliedTo: [{podSelector: {}}], ingress: [{action: Reject, name: r, ports: [{port: 80}]}]}
---
apiVersion: crd.antrea.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec: {tier: emergency, priority: 1, appliedTo: [{podSelector: {matchLabels: {app: web}}}], ingress: [{action: Drop, ports: [{port: 443}]}, {action: Drop, protocols: [{icmp: {icmpType: 8}}]}]}
`)
	s, err := policy.New(policy.Config{Manifests: filepath.Dir(path), Listen: "127.0.0.1:0", Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, question := range [][]string{
		{"--from", "shop/cart", "--to", "shop/web", "--port", "80"},
		{"--from", "shop/cart", "--to", "shop/web", "--port", "443"},
		{"--from", "203.0.113.7", "--to", "shop/web", "--protocol", "icmp", "--icmp-type", "8"},
		{"--from", "203.0.113.7", "--to", "shop/web", "--protocol", "icmp", "--icmp-type", "0", "--icmp-code", "1"},
		{"--from", "shop/web", "--to", "shop/web", "--port", "80", "--protocol", "sctp"},
	} {
		for _, format := range []string{"json", "table"} {
			args := append([]string{"explain", "-o", format}, question...)
			offline, errs, code := run(t, append(args, "-f", path)...)
			if code != 0 {
				t.Fatalf("%v: %s", args, errs)
			}
			var online string
			for code = 1; code != 0; { // It may not have read the manifests yet.
				if online, errs, code = run(t, append(args, "--server", s.Addr())...); code != 0 && !strings.Contains(errs, "have not been read yet") {
					t.Fatalf("%v: %s", args, errs)
				}
			}
			if online != offline {
				t.Errorf("%v: online\n%s\noffline\n%s", args, online, offline)
			}
		}
	}
}

func TestOnlineCommands(t *testing.T) {
	addr, inspect, audit := serve(t, nil)
	for _, test := range []struct {
		args []string
		want []string // Parts of the output.
	}{
		{[]string{"get", "policies"}, []string{"K8sNetworkPolicy:shop/web   -      252", "1/2"}},
		{[]string{"get", "policies", "-o", "json"}, []string{`"nodesRealized": 1`, `"name": "web"`, `"warnings": []`}},
		{[]string{"get", "groups", "--members"}, []string{"01ff    applied-to   1", "app=web", "shop/web"}},
		{[]string{"get", "nodes"}, []string{"n1     yes         no        1m15s    7          0     012345    0", "ab", "bridge is away"}},
		{[]string{"explain", "--from", "x/y", "--to", "shop/web", "--protocol", "ICMP", "-o", "json"}, []string{`"verdict": "reject"`, `"policy": "K8sNetworkPolicy:shop/web"`, `"isolatedBy": []`}},
		{[]string{"audit", "stats"}, []string{"received 10, kept 9, repeated 1; cursors 1 to 9", "n1     ovs       3", "np.log"}},
		{[]string{"audit", "stats", "-o", "json"}, []string{`"received": "10"`, `"LOSS_STAGE_OVS"`}},
		{[]string{"audit", "tail"}, []string{"CURSOR", "203.0.113.7:50000", "10.0.0.1:443", "K8sNetworkPolicy:shop/web (staged: allow for AdminNetworkPolicy:tried r)", "lost   -      -", "at meter"}},
		{[]string{"audit", "tail", "-o", "json"}, []string{`{"schema":"weir.audit/v1","cursor":4,"node":"n1","sequence":2,"packet":{"first":"2024-05-06T07:08:09Z","last":"2024-05-06T07:08:09Z","count":1,"direction":"ingress","action":"drop"`,
			`"policies":["K8sNetworkPolicy:shop/web"],"isolation":true`, `"sourceIP":"203.0.113.7","sourcePort":50000,"destinationIP":"10.0.0.1","destinationPort":443,"protocol":"TCP"`,
			`"cursor":5,"node":"n1","loss":{"from":"2024-05-06T07:08:09Z","to":"2024-05-06T07:08:09Z","count":12,"stage":"meter"}}`, `"change":{"time"`, `"test":{"time"`}},
		{[]string{"audit", "tail", "--changes"}, []string{"n1           egress  lost   -      -                            -                            unknown at rule_meter, of K8sNetworkPolicy:shop/web r\n",
			"-            -       updated -      -                            -                            -       NetworkPolicy shop/web, generation 4, Pods 2 to 3, changed spec.ingress, by eve\n",
			"test   -      -                            -                            -       4711 for sink siem\n", "allow  UDP    -                            10.0.0.9 "}},
		{[]string{"audit", "tail", "-o", "np.log"}, []string{"2024/05/06 07:08:09.000000 IngressDefaultRule K8sNetworkPolicy <nil> Ingress Drop <nil> shop/web 203.0.113.7 50000 10.0.0.1 443 TCP 60 <nil>\n" +
			"2024/05/06 07:08:09.000000 IngressRule <nil> <nil> Ingress Allow <nil> shop/web <nil> <nil> 10.0.0.9 <nil> UDP 60 <nil>\n"}},
		{[]string{"audit", "tail", "-o", "rfc5424"}, []string{"<132>1 2024-05-06T07:08:09.000000Z n1 weir - PACKET [weir@32473 cursor=\"4\"", "\n<134>1 2024-05-06T07:08:09.000000Z - weir - CHANGE ", "\n<134>1 2024-05-06T07:08:09.000000Z - weir - TEST "}},
		{[]string{"audit", "tail", "-o", "cef"}, []string{"CEF:0|Weir|weir-auditd|1|packet-drop|", "\nCEF:0|Weir|weir-auditd|1|loss|", "\nCEF:0|Weir|weir-auditd|1|change|", "\nCEF:0|Weir|weir-auditd|1|test|"}},
		{[]string{"audit", "tail", "-o", "ocsf"}, []string{`"class_uid":4001`, `"class_uid":1008`, `"class_uid":3004`, `"data":{"kind":"NetworkPolicy"}`}},
		{[]string{"audit", "tail", "-o", "ecs"}, []string{`"action":"packet-dropped"`, `"action":"records-lost"`, `"action":"object-updated"`, `"action":"sink-test"`}},
	} {
		out, errs, code := run(t, append(test.args, "--server", addr)...)
		for _, part := range test.want {
			if code != 0 || !strings.Contains(out, part) {
				t.Errorf("%v: status %d %s: %q is missing in\n%s", test.args, code, errs, part, out)
			}
		}
	}

	if out, errs, code := run(t, "get", "changes", "--server", addr); code != 0 || out != `TIME                           KIND                         NAME                                         GENERATION MANAGER                  USER                     PODS
1970-01-01T00:00:01.000000000Z AntreaNetworkPolicy          shop/a                                       2          kubectl                  -                        0
1970-01-01T00:00:02.000000000Z AntreaNetworkPolicy          shop/b                                       2          kubectl                  -                        3
` {
		t.Errorf("status %d %s:\n%s", code, errs, out)
	}
	out, errs, code := run(t, "get", "changes", "-w", "--server", addr)
	if code != 1 || !strings.Contains(errs, "this replica stops") {
		t.Errorf("status %d %s", code, errs)
	}
	holds(t, out, "kubectl                  -                        3 to 4\n", "kubectl                  -                        4, removed\n")
	out, _, _ = run(t, "get", "changes", "-o", "json", "--server", addr)
	holds(t, out, `{"time":"1970-01-01T00:00:01.000000000Z","apiVersion":"crd.antrea.io/v1beta1","kind":"NetworkPolicy","namespace":"shop","name":"a","generation":2,"manager":"kubectl","podsBefore":0,"podsAfter":0,"manifest":{"a":"<"}}`+"\n")

	out, errs, code = run(t, "get", "policies", "--server", addr, "--stats")
	if want := `KIND                         NAMESPACE   NAME    DIRECTION   RULE        SESSIONS   PACKETS   BYTES
K8sNetworkPolicy             shop        web     ingress     0           12         3456      7890123
K8sNetworkPolicy             shop        web     ingress     isolation   7          7         420
AntreaClusterNetworkPolicy   -           guard   egress      dns         0          0         0

K8sNetworkPolicy:shop/web: counts of 1.5s may be missing, over 2 nodes
`; code != 0 || out != want {
		t.Errorf("status %d %s:\n%s\nwant\n%s", code, errs, out, want)
	}
	if out, _, code := run(t, "get", "policies", "--server", addr, "--stats", "-o", "json"); code != 0 || !strings.Contains(out, `          "direction": "DIRECTION_INGRESS",
          "rule": "",
          "index": 0,
          "isolation": true,
          "sessions": "7",
          "packets": "7",
          "bytes": "420"
`) || !strings.Contains(out, `"uncountedMs": "1500"`) {
		t.Errorf("status %d:\n%s", code, out)
	}
	run(t, "get", "policies", "--server", addr, "--sort-by=effectivePriority", "-n", "shop")
	if want := (&policyv1.ListPoliciesRequest{Namespace: "shop", ByEffectivePriority: true}); !proto.Equal(inspect.asked, want) {
		t.Errorf("asked %v, want %v", inspect.asked, want)
	}
	run(t, "explain", "--server", addr, "--from", "x/y", "--to", "10.0.0.1", "--port", "5", "--protocol", "SCTP", "--source-port", "6")
	if want := (&policyv1.ExplainRequest{From: "x/y", To: "10.0.0.1", Protocol: policyv1.Protocol_PROTOCOL_SCTP, Port: 5, SourcePort: 6}); !proto.Equal(inspect.asked, want) {
		t.Errorf("asked %v, want %v", inspect.asked, want)
	}
	run(t, "audit", "tail", "--server", addr, "--after", "3", "-f", "-n", "9", "--action", "drop", "--direction", "egress", "--pod", "shop/web", "--port", "7", "--prefix", "10.0.0.0/8", "--since", "2024-01-01T00:00:00Z", "--losses=false", "--staged", "--changes")
	want := &auditv1.TailRequest{After: 3, Follow: true, Limit: 9, Batch: 1000, Filter: &auditv1.RecordFilter{Action: policyv1.Action_ACTION_DROP, Direction: policyv1.Direction_DIRECTION_EGRESS,
		Staged: true, Changes: true, Pod: "shop/web", Port: 7, Prefix: "10.0.0.0/8", Since: timestamppb.New(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC))}}
	if out, errs, code := run(t, "audit", "schema"); code != 0 || out != record.JSONSchema || !json.Valid([]byte(out)) {
		t.Errorf("audit schema: status %d %s\n%s", code, errs, out)
	}
	if _, errs, code := run(t, "audit", "tail", "-o", "xml"); code != 1 || !strings.Contains(errs, "write one of table, cef, ecs, json, np.log, ocsf, rfc5424") {
		t.Errorf("status %d, %q", code, errs)
	}
	if !proto.Equal(audit.asked, want) {
		t.Errorf("asked %v, want %v", audit.asked, want)
	}
	if _, errs, code := run(t, "explain", "--server", addr, "--from", "a/b", "--to", "x/y", "--port", "1"); code != 1 || !strings.Contains(errs, "explain: NotFound: there is no Pod a/b") {
		t.Errorf("status %d, %q", code, errs)
	}
}

func TestPKI(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	out, errs, code := run(t, "pki", "init", "--dir", dir, "--node", "n1", "--server", "policy.example")
	if code != 0 || strings.Count(out, "\n") != 10 || !strings.Contains(out, filepath.Join(dir, "node-n1.key")) {
		t.Fatalf("status %d, %s\n%s", code, errs, out)
	}
	if _, errs, code := run(t, "pki", "init", "--dir", dir); code != 1 || !strings.Contains(errs, "there already") {
		t.Errorf("overwriting: status %d, %q", code, errs)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	addr, _, _ := serve(t, &identity.Files{CA: file("ca.crt"), Cert: file("policyd.crt"), Key: file("policyd.key")})
	if out, errs, code := run(t, "get", "nodes", "--server", addr, "--ca", file("ca.crt"), "--cert", file("operator.crt"), "--key", file("operator.key")); code != 0 || !strings.Contains(out, "n1") {
		t.Errorf("over TLS: status %d, %s", code, errs)
	}
	if _, _, code := run(t, "get", "nodes", "--server", addr, "--timeout", "3s"); code != 1 {
		t.Error("the server takes callers without TLS")
	}
}
