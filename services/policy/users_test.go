package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/server"
)

// idle is a source from which nothing comes.
type idle struct{}

func (idle) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
func (idle) Next(ctx context.Context) (Batch, error) {
	<-ctx.Done()
	return Batch{}, ctx.Err()
}

// granted are what the holders of tokens see.
type granted map[string]identity.Scope

func (g granted) Review(_ context.Context, p identity.Proof, want identity.Right) (identity.User, identity.Scope, error) {
	scope, known := g[p.Token]
	if !known {
		return identity.User{}, identity.Scope{}, identity.ErrToken
	}
	for _, ns := range want.Namespaces {
		if scope.Sees(ns) {
			return identity.User{Name: p.Token}, scope, nil
		}
	}
	if len(want.Namespaces) > 0 {
		return identity.User{}, identity.Scope{}, identity.ErrDenied
	}
	return identity.User{Name: p.Token}, scope, nil
}

// inspected is an inspection service over objects, and the contexts of its callers.
func inspected(t *testing.T, manifest string) (*server.Server, func(token string) context.Context) {
	t.Helper()
	logger := hclog.NewNullLogger()
	s, err := New(Config{Source: idle{}, Listen: "127.0.0.1:0", Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.rpc.GRPC.Stop)
	m, err := api.Decode([]byte(manifest))
	if err != nil {
		t.Fatalf("%v in\n%s", err, manifest)
	}
	b := Batch{Synced: true}
	for _, o := range m.Objects {
		b.Events = append(b.Events, api.Event{Ref: o.Object.Ref(), Object: o.Object})
	}
	s.take(b)
	face, err := server.New(server.Config{Store: s.store, Model: s, NodeOf: server.CertifiedNode, MayInspect: server.CertifiedInspector, MayReplicate: server.CertifiedReplica,
		Users:  granted{"shop": identity.ScopeOf("shop"), "all": identity.Scope{All: true}, "none": {}},
		Synced: s.synced.Load, Registry: prometheus.NewRegistry(), Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	return face, func(token string) context.Context {
		ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{}})
		if token == "" {
			return ctx
		}
		return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
	}
}

// mixedCluster makes random objects of the Namespace shop, of others, and of none. What
// is foreign is called so, and its addresses begin with 10.254.237.
type mixedCluster struct {
	*rand.Rand
	strings.Builder
}

func (g *mixedCluster) one(of ...string) string { return of[g.IntN(len(of))] }

func (g *mixedCluster) object(apiVersion, kind, namespace, name, spec string) {
	where := ""
	if namespace != "" {
		where = ", namespace: " + namespace
	}
	fmt.Fprintf(g, "---\napiVersion: %s\nkind: %s\nmetadata: {name: %s%s}\n%s\n", apiVersion, kind, name, where, spec)
}

func (g *mixedCluster) make() string {
	for _, ns := range []string{"shop", "foreign-ns", "foreign-two"} {
		g.object("v1", "Namespace", "", ns, "")
		node, prefix, label := "own-node", "10.0.0.", "web"
		if ns != "shop" {
			node, prefix, label = "foreign-node", "10.254.237.", "foreign-label"
		}
		for i := range 1 + g.IntN(3) {
			address := fmt.Sprint(prefix, 10*len(ns)+i)
			name := fmt.Sprintf("%s-pod-%d", ns, i)
			g.object("v1", "Pod", ns, name+", labels: {app: "+label+"}", fmt.Sprintf("spec: {nodeName: %s, containers: [{name: c, image: i}]}\nstatus: {podIPs: [{ip: %s}]}", node, address))
		}
		g.object("v1", "Service", ns, ns+"-service", fmt.Sprintf("spec: {clusterIP: 10.96.0.%d, selector: {app: web}, ports: [{port: 80}]}", len(ns)))
		for i := range g.IntN(3) {
			g.object("networking.k8s.io/v1", "NetworkPolicy", ns, fmt.Sprintf("%s-np-%d", ns, i), "spec: {podSelector: {}, policyTypes: [Ingress, Egress], "+
				g.one("ingress: [{from: [{namespaceSelector: {}}]}]", "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]", "ingress: []")+"}")
		}
		for i := range g.IntN(3) {
			name := fmt.Sprintf("%s-anp-%d", ns, i)
			g.object("crd.antrea.io/v1beta1", "NetworkPolicy", ns, name, fmt.Sprintf("spec: {priority: %d, tier: %s, appliedTo: [{podSelector: {}}], ingress: [{name: %s-rule, action: %s, from: [{podSelector: {matchLabels: {app: %s}}}]}], "+
				"egress: [{name: %s-out, action: %s, to: [{group: %s-group}]}]}", 1+g.IntN(2), g.one("application", "platform", "baseline"), name, g.one("Allow", "Drop", "Reject"), label, name, g.one("Allow", "Drop"), ns))
		}
		if g.IntN(2) == 0 {
			g.object("crd.antrea.io/v1beta1", "Group", ns, ns+"-group", "spec: {namespaceSelector: {}, podSelector: {}}")
		}
	}
	g.object("v1", "Node", "", "own-node", "status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}")
	g.object("v1", "Node", "", "foreign-node", "status: {addresses: [{type: InternalIP, address: 10.254.237.200}]}")
	g.object("crd.antrea.io/v1beta1", "ClusterGroup", "", "cluster-group", "spec: {namespaceSelector: {}}")
	for i := range g.IntN(3) {
		staged := g.one("", "\n  annotations: {weir.dev/enforcement: staged}")
		fmt.Fprintf(g, "---\napiVersion: crd.antrea.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata:\n  name: cluster-%d%s\nspec: {priority: %d, tier: %s, appliedTo: [{namespaceSelector: {}}], %s: [{name: cluster-rule, action: %s, %s: [{%s}]}]}\n",
			i, staged, 1+g.IntN(2), g.one("application", "securityops", "platform"), "ingress", g.one("Allow", "Drop", "Pass"), "from", g.one("namespaceSelector: {}", "group: cluster-group", "podSelector: {matchLabels: {app: foreign-label}}"))
	}
	return g.String()
}

// TestNothingForeignIsAnswered: who sees shop gets of random clusters nothing of another
// Namespace, in no answer and no error.
func TestNothingForeignIsAnswered(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	answers, verdicts := 0, make(map[policyv1.Verdict]int)
	for range 60 {
		manifest := (&mixedCluster{Rand: random}).make()
		s, as := inspected(t, manifest)
		ctx := as("shop")
		check := func(asked string, m proto.Message, err error) bool {
			t.Helper()
			text := status.Convert(err).Message()
			if err == nil {
				text = prototext.Format(m)
				answers++
			}
			if strings.Contains(text, "foreign") || strings.Contains(text, "10.254.237.") && !strings.Contains(asked, "10.254.237.") {
				t.Fatalf("%s is answered\n%s\nof\n%s", asked, text, manifest)
			}
			return err == nil
		}
		policies, err := s.ListPolicies(ctx, &policyv1.ListPoliciesRequest{Stats: true})
		check("policies", policies, err)
		if want := strings.Count(manifest, "name: shop-np") + strings.Count(manifest, "metadata: {name: shop-anp"); len(policies.GetPolicies()) != want {
			t.Fatalf("%d policies of shop, want %d", len(policies.GetPolicies()), want)
		}
		groups, err := s.ListGroups(ctx, &policyv1.ListGroupsRequest{Members: true})
		check("groups", groups, err)
		if want := strings.Count(manifest, "kind: Pod\nmetadata: {name: shop-"); len(policies.GetPolicies()) > 0 && (len(groups.GetGroups()) == 0 || int(groups.Groups[0].Members) != want) {
			t.Fatalf("the groups of shop are %v, of %d Pods", groups, want)
		}
		for _, ask := range [][2]string{
			{"shop/shop-pod-0", "10.254.237.100"}, {"10.254.237.100", "shop/shop-pod-0"}, {"shop/shop-pod-0", "10.254.237.110"}, {"shop/shop-pod-0", "10.254.237.200"}, {"10.254.237.200", "10.0.0.40"},
			{"shop/shop-pod-0", "198.51.100.7"}, {"10.0.0.40", "10.254.237.111"}, {"shop/shop-pod-0", "shop/shop-pod-0"}, {"shop/shop-pod-0", "10.96.0.4"}, {"shop/shop-pod-0", "service:shop/shop-service"},
		} {
			asked := ask[0] + " to " + ask[1]
			resp, err := s.Explain(ctx, &policyv1.ExplainRequest{From: ask[0], To: ask[1], Port: 80})
			if check(asked, resp, err) {
				verdicts[resp.GetVerdict()]++
				all, err := s.Explain(as("all"), &policyv1.ExplainRequest{From: ask[0], To: ask[1], Port: 80})
				if err != nil || all.GetVerdict() != resp.GetVerdict() || all.GetEgress().GetAction() != resp.GetEgress().GetAction() || all.GetIngress().GetAction() != resp.GetIngress().GetAction() {
					t.Fatalf("%s: %v, who sees all is told %v, %v", asked, resp, all, err)
				}
			}
		}
		for _, ask := range [][2]string{{"10.254.237.100", "10.254.237.110"}, {"shop/shop-pod-0", "10.96.0.10"}, {"198.51.100.7", "198.51.100.8"}} {
			resp, err := s.Explain(ctx, &policyv1.ExplainRequest{From: ask[0], To: ask[1], Port: 80})
			if check(ask[0]+" to "+ask[1], resp, err) || status.Code(err) != codes.PermissionDenied {
				t.Fatalf("%s: %v, %v", ask, resp, err)
			}
		}
		// What is named must be seen, and the answer does not tell whether it exists.
		for _, to := range []string{"foreign-ns/%s", "service:foreign-ns/%s", "fqdn:%s.foreign-ns.svc.cluster.local", "node:%s"} {
			said := make(map[string]bool)
			for _, name := range []string{"foreign-ns-pod-0", "foreign-ns-service", "foreign-node", "nothing"} {
				_, err := s.Explain(ctx, &policyv1.ExplainRequest{From: "shop/shop-pod-0", To: fmt.Sprintf(to, name), Port: 80})
				said[err.Error()] = true
				if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "get inspections.weir.dev") {
					t.Fatalf(to+": %v", name, err)
				}
			}
			if len(said) != 1 {
				t.Fatalf("%s tells apart what exists: %v", to, said)
			}
		}
	}
	if answers < 600 || verdicts[policyv1.Verdict_VERDICT_ALLOW] < 50 || verdicts[policyv1.Verdict_VERDICT_DROP] < 50 {
		t.Errorf("%d answers, verdicts %v", answers, verdicts)
	}
}

// TestEveryFieldWasJudged fails when a message that is told to users has a new field,
// until somebody has said here, and in server.redactPolicies, server.groupsOf or
// evaluate.AnswerTo, whether who sees some Namespaces may see it.
func TestEveryFieldWasJudged(t *testing.T) {
	for _, tt := range []struct {
		message proto.Message
		fields  int
	}{
		{&policyv1.ListPoliciesResponse{}, 1}, {&policyv1.PolicySummary{}, 20}, {&policyv1.PolicyRef{}, 3}, {&policyv1.RuleStats{}, 7}, {&policyv1.Condition{}, 4},
		{&policyv1.ListGroupsResponse{}, 2}, {&policyv1.GroupSummary{}, 6}, {&policyv1.GroupDefinition{}, 8},
		{&policyv1.ExplainResponse{}, 4}, {&policyv1.DirectionExplanation{}, 6}, {&policyv1.EvaluationStep{}, 4}, {&policyv1.ConsideredRule{}, 4},
	} {
		d := tt.message.ProtoReflect().Descriptor()
		if n := d.Fields().Len(); n != tt.fields {
			t.Errorf("%s has %d fields, of which %d were judged", d.FullName(), n, tt.fields)
		}
	}
}

// TestInspectionByUsers: which methods are for whom.
func TestInspectionByUsers(t *testing.T) {
	s, as := inspected(t, manifest)
	for _, tt := range []struct {
		token string
		want  map[string]codes.Code
	}{
		{"all", map[string]codes.Code{"policies": codes.OK, "policies of x": codes.OK, "nodes": codes.OK, "explain": codes.OK, "probe": codes.PermissionDenied}},
		{"shop", map[string]codes.Code{"policies": codes.OK, "policies of x": codes.PermissionDenied, "nodes": codes.PermissionDenied, "explain": codes.PermissionDenied, "probe": codes.PermissionDenied}},
		{"unknown", map[string]codes.Code{"policies": codes.Unauthenticated, "policies of x": codes.Unauthenticated, "nodes": codes.Unauthenticated, "explain": codes.Unauthenticated, "probe": codes.PermissionDenied}},
		{"", map[string]codes.Code{"policies": codes.Unauthenticated, "policies of x": codes.Unauthenticated, "nodes": codes.Unauthenticated, "explain": codes.Unauthenticated, "probe": codes.PermissionDenied}},
	} {
		ctx := as(tt.token)
		_, policies := s.ListPolicies(ctx, &policyv1.ListPoliciesRequest{})
		_, ofX := s.ListPolicies(ctx, &policyv1.ListPoliciesRequest{Namespace: "x"})
		_, nodes := s.ListNodes(ctx, &policyv1.ListNodesRequest{})
		_, explain := s.Explain(ctx, &policyv1.ExplainRequest{From: "x/web", To: "x/other", Port: 80})
		_, probe := s.Probe(ctx, &policyv1.InspectionServiceProbeRequest{From: "x/web", To: "x/other", Port: 80})
		for name, err := range map[string]error{"policies": policies, "policies of x": ofX, "nodes": nodes, "explain": explain, "probe": probe} {
			if status.Code(err) != tt.want[name] {
				t.Errorf("%q, %s: %v", tt.token, name, err)
			}
		}
	}
}
