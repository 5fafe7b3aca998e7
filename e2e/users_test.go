package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// team is a Namespace with a Pod and a policy; whoever is bound there sees it.
func team(name string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %[1]s}\n"+
		"---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: viewer, namespace: %[1]s}\n"+
		"---\napiVersion: v1\nkind: Pod\nmetadata: {name: %[1]s-pod, namespace: %[1]s, labels: {app: %[1]s-app}}\nspec: {nodeName: node-1, containers: [{name: c, image: i}]}\n"+
		"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %[1]s-policy, namespace: %[1]s}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n", name)
}

// bound binds users in a Namespace to what the ClusterRole view has of Weir.
func bound(namespace string) string {
	return fmt.Sprintf("---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: seers, namespace: %[1]s}\n"+
		"roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir-view}\nsubjects:\n"+
		"- {kind: ServiceAccount, name: viewer, namespace: %[1]s}\n- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: team-%[1]s}\n", namespace)
}

// caller is how a user of the cluster calls a service of Weir's.
type caller struct {
	cert  *tls.Certificate // Of the cluster's authority. Nil: a token is shown.
	token string
}

func (c caller) dial(t *testing.T, p *installedPod, address string, roots *x509.CertPool) *grpc.ClientConn {
	t.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	if c.cert != nil {
		config.Certificates = []tls.Certificate{*c.cert}
	}
	conn, err := p.dial(address, credentials.NewTLS(config))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (c caller) as(ctx context.Context) context.Context {
	if c.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// authority is the one that Weir has published.
func (in *installation) authority() *x509.CertPool {
	in.t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(in.roots())) {
		in.t.Fatal("weir-ca holds no certificate")
	}
	return pool
}

// askAsUser has a policy service judge a user who may do nothing.
func (in *installation) askAsUser() {
	in.t.Helper()
	token, err := in.TokenFor(in.t.Context(), weirNamespace, "weir-operator")
	must(in.t, err)
	c := caller{token: token}
	conn := c.dial(in.t, in.replicas[0], "127.0.0.1:9740", in.authority())
	_, err = policyv1.NewInspectionServiceClient(conn).ListPolicies(c.as(in.t.Context()), &policyv1.ListPoliciesRequest{})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "apiGroups [weir.dev], resources [inspections], verbs [list]") {
		in.t.Errorf("a user who may do nothing: %v", err)
	}
}

// TestUsersSeeTheirNamespaces: what RBAC grants in a Namespace shows its holder that
// Namespace's policies and denials, by gRPC, and nothing of another's; what is revoked
// is seen no more.
func TestUsersSeeTheirNamespaces(t *testing.T) {
	t.Parallel()
	in := install(t, "production", "WatchList=true")
	in.startAll()
	in.operator() // Which puts the authority where weirctl finds it.
	kubectl(t, in.Kube, team("shop")+team("bank")+bound("shop"), "apply", "-f", "-")
	for i, name := range []string{"shop", "bank"} {
		kubectl(t, in.Kube, "", "patch", "pod", name+"-pod", "-n", name, "--subresource=status", "-p", fmt.Sprintf(`{"status": {"phase": "Running", "podIP": "10.244.1.%[1]d", "podIPs": [{"ip": "10.244.1.%[1]d"}]}}`, 11+i))
	}
	collector := in.collector
	node, roots := in.thirdNode()
	in.reportDenials(collector, node, roots)

	token, err := in.TokenFor(t.Context(), "shop", "viewer")
	must(t, err)
	ours, err := in.TokenFor(t.Context(), "shop", "viewer", "--audience", "weir")
	must(t, err)
	cert, err := in.ClientCertificate(&x509.Certificate{Subject: pkix.Name{CommonName: "alice", Organization: []string{"team-shop"}}})
	must(t, err)
	callers := map[string]caller{"a token of the API server's": {token: token}, "a token for Weir": {token: ours}, "a client certificate of the cluster": {cert: cert}}
	for name, c := range callers {
		t.Run(name, func(t *testing.T) {
			inspection := policyv1.NewInspectionServiceClient(c.dial(t, in.replicas[0], "127.0.0.1:9740", roots))
			audit := auditv1.NewAuditServiceClient(c.dial(t, collector, "127.0.0.1:9741", roots))
			see := func(what string, m proto.Message, err error, words ...string) {
				t.Helper()
				text := prototext.Format(m)
				for _, word := range words {
					if err != nil || !strings.Contains(text, word) {
						t.Fatalf("%s has no %s: %v, %s", what, word, err, text)
					}
				}
				if strings.Contains(text, "bank") || strings.Contains(text, "10.244.1.12") {
					t.Errorf("%s tells of bank: %s", what, text)
				}
			}
			var policies *policyv1.ListPoliciesResponse
			must(t, harness.Eventually(t.Context(), 30*time.Second, func() (err error) { // Rights, and the authority of certificates, come to be known.
				if policies, err = inspection.ListPolicies(c.as(t.Context()), &policyv1.ListPoliciesRequest{}); err == nil && len(policies.GetPolicies()) == 0 {
					err = errors.New("there are none yet")
				}
				return err
			}))
			see("the policies", policies, nil, "shop-policy")
			groups, err := inspection.ListGroups(c.as(t.Context()), &policyv1.ListGroupsRequest{Members: true})
			see("the groups", groups, err, "shop/shop-pod")
			why, err := inspection.Explain(c.as(t.Context()), &policyv1.ExplainRequest{From: "10.244.1.12", To: "shop/shop-pod", Port: 80})
			if why.GetVerdict() != policyv1.Verdict_VERDICT_DROP || strings.Contains(prototext.Format(why), "bank") {
				t.Errorf("explained: %v, %v", why, err)
			}
			for what, err := range map[string]error{
				"a named Pod": func() error {
					_, err := inspection.Explain(c.as(t.Context()), &policyv1.ExplainRequest{From: "bank/bank-pod", To: "shop/shop-pod", Port: 80})
					return err
				}(),
				"its policies": func() error {
					_, err := inspection.ListPolicies(c.as(t.Context()), &policyv1.ListPoliciesRequest{Namespace: "bank"})
					return err
				}(),
				"nodes": func() error {
					_, err := inspection.ListNodes(c.as(t.Context()), &policyv1.ListNodesRequest{})
					return err
				}(),
				"sums of all": func() error { _, err := audit.Stats(c.as(t.Context()), &auditv1.StatsRequest{}); return err }(),
				"its denials": func() error {
					_, err := all(c.as(t.Context()), audit, &auditv1.TailRequest{Filter: &auditv1.RecordFilter{Namespace: "bank"}})
					return err
				}(),
			} {
				if status.Code(err) != codes.PermissionDenied {
					t.Errorf("%s: %v", what, err)
				}
			}
			records, err := all(c.as(t.Context()), audit, &auditv1.TailRequest{})
			must(t, err)
			if len(records) != 2 || !records[1].GetRedacted() {
				t.Fatalf("the denials are %v", records)
			}
			for _, r := range records {
				see("a denial", r, nil, "shop/shop-pod")
				raw, err := proto.Marshal(r)
				must(t, err)
				if bytes.Contains(raw, []byte{10, 244, 1, 12}) {
					t.Errorf("a denial has the address of bank: %v", r)
				}
			}
		})
	}
	t.Run("grpcurl", func(t *testing.T) { // As in the README.
		ask := func(p *installedPod, args ...string) string {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			out, err := p.ns.Command(ctx, "../.tools/bin/grpcurl", append([]string{"-cacert", in.path("ca.crt"), "-H", "authorization: Bearer " + ours}, args...)...).CombinedOutput()
			if err != nil || strings.Contains(string(out), "bank") {
				t.Errorf("grpcurl %v: %v\n%s", args, err, out)
			}
			return string(out)
		}
		if out := ask(in.replicas[0], "localhost:9740", "weir.policy.v1.InspectionService/ListPolicies"); !strings.Contains(out, "shop-policy") {
			t.Errorf("the policies are\n%s", out)
		}
		if out := ask(collector, "-d", `{"filter": {"namespace": "shop"}}`, "localhost:9741", "weir.audit.v1.AuditService/Tail"); strings.Count(out, "shop-pod") < 2 {
			t.Errorf("the record is\n%s", out)
		}
	})
	t.Run("posing as a part of Weir", func(t *testing.T) { in.pose(t, roots) })
	t.Run("what is revoked", func(t *testing.T) {
		ended := make(chan error, len(callers))
		for _, c := range callers {
			stream, err := auditv1.NewAuditServiceClient(c.dial(t, collector, "127.0.0.1:9741", roots)).Tail(c.as(t.Context()), &auditv1.TailRequest{Follow: true})
			must(t, err)
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					if _, err := stream.Recv(); err != nil {
						ended <- err
						return
					}
				}
			}()
		}
		kubectl(t, in.Kube, "", "delete", "rolebinding", "seers", "-n", "shop")
		revoked := time.Now()
		for range callers {
			select {
			case err := <-ended:
				if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "records") {
					t.Errorf("a stream ended with %v", err)
				}
			case <-time.After(30*time.Second - time.Since(revoked)):
				t.Fatal("a stream goes on 30 s after the right was revoked")
			}
		}
		t.Logf("the last stream ended %v after the right was revoked", time.Since(revoked).Round(100*time.Millisecond))
		for name, c := range callers {
			_, err := policyv1.NewInspectionServiceClient(c.dial(t, in.replicas[0], "127.0.0.1:9740", roots)).ListPolicies(c.as(t.Context()), &policyv1.ListPoliciesRequest{})
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// all is what a Tail that does not follow sends of records.
func all(ctx context.Context, c auditv1.AuditServiceClient, req *auditv1.TailRequest) (records []*auditv1.TailResponse, err error) {
	stream, err := c.Tail(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		r, err := stream.Recv()
		switch {
		case err == io.EOF:
			return records, nil
		case err != nil:
			return records, err
		case r.GetRecord().GetEvent().GetPacket() != nil:
			records = append(records, r)
		}
	}
}

// reportDenials reports as a node does: of a packet from outside to shop, of one from
// bank to shop, and of one from outside to bank.
func (in *installation) reportDenials(collector *installedPod, node *tls.Certificate, roots *x509.CertPool) {
	t := in.t
	t.Helper()
	conn := caller{cert: node}.dial(t, collector, "127.0.0.1:9741", roots)
	stream, err := auditv1.NewCollectorServiceClient(conn).Report(t.Context())
	must(t, err)
	must(t, stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "node-3", Boot: "test"}}}))
	var events []*auditv1.Event
	for _, e := range []struct {
		to, peer string
		from     byte
	}{{"shop", "", 99}, {"shop", "bank/bank-pod", 12}, {"bank", "", 99}} {
		address := byte(11)
		if e.to == "bank" {
			address = 12
		}
		events = append(events, &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{First: timestamppb.Now(), Direction: policyv1.Direction_DIRECTION_INGRESS,
			Action: policyv1.Action_ACTION_DROP, Table: "IngressDefaultRule", Isolation: true, AppliedTo: e.to + "/" + e.to + "-pod", Peer: e.peer,
			Policies: []*policyv1.PolicyRef{{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: e.to, Name: e.to + "-policy"}},
			SourceIp: []byte{10, 244, 1, e.from}, DestinationIp: []byte{10, 244, 1, address}, Protocol: 1, Length: 84}}})
	}
	must(t, stream.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: 1, Events: events}}}))
	for acked := uint64(0); acked < uint64(len(events)); {
		resp, err := stream.Recv()
		must(t, err)
		acked = resp.GetAckedSequence()
	}
}

// pose tries to pass for a part of Weir with certificates that the cluster's authority
// has signed.
func (in *installation) pose(t *testing.T, roots *x509.CertPool) {
	for _, name := range []string{"weir://node/node-1", "weir://role/policyd", "weir://role/auditd", "weir://role/operator"} {
		uri, err := url.Parse(name)
		must(t, err)
		cert, err := in.ClientCertificate(&x509.Certificate{Subject: pkix.Name{CommonName: "weir node/node-1"}, URIs: []*url.URL{uri}})
		must(t, err)
		c := caller{cert: cert}
		policyd, auditd := c.dial(t, in.replicas[0], "127.0.0.1:9740", roots), c.dial(t, in.collector, "127.0.0.1:9741", roots)
		subscribe, err := policyv1.NewPolicyServiceClient(policyd).Subscribe(t.Context())
		must(t, err)
		_ = subscribe.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: &policyv1.Hello{Node: "node-1"}}})
		_, subscribed := subscribe.Recv()
		report, err := auditv1.NewCollectorServiceClient(auditd).Report(t.Context())
		must(t, err)
		_ = report.Send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "node-1", Boot: "x"}}})
		_, reported := report.Recv()
		_, reviewed := policyv1.NewAccessServiceClient(policyd).Review(t.Context(), &policyv1.ReviewRequest{Token: "x", Resource: "records", Verb: "get"})
		for what, err := range map[string]error{"subscribes": subscribed, "reports": reported, "reviews": reviewed} {
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s %s: %v", name, what, err)
			}
		}
		_, nodes := policyv1.NewInspectionServiceClient(policyd).ListNodes(t.Context(), &policyv1.ListNodesRequest{})
		_, tail := all(t.Context(), auditv1.NewAuditServiceClient(auditd), &auditv1.TailRequest{})
		for what, err := range map[string]error{"lists nodes": nodes, "reads the record": tail} {
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s %s: %v", name, what, err)
			}
		}
	}
}
