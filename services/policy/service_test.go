package policy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/storage"
)

const manifest = `
apiVersion: v1
kind: Namespace
metadata: {name: x}
---
apiVersion: v1
kind: Pod
metadata: {namespace: x, name: web, labels: {app: web}}
spec: {nodeName: n1}
status: {podIP: 10.0.1.1, podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: x, name: other, labels: {app: other}}
spec: {nodeName: n2}
status: {podIP: 10.0.2.1, podIPs: [{ip: 10.0.2.1}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: closed}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
`

// fixture is a running service with mutual TLS on loopback.
type fixture struct {
	t         *testing.T
	manifests string
	pki       string
	addr      string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, manifests: t.TempDir(), pki: filepath.Join(t.TempDir(), "pki")}
	if _, err := identity.Init(identity.InitConfig{Dir: f.pki, Nodes: []string{"n1", "n2"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	f.write(manifest)
	f.addr = f.replica()
	return f
}

// replica starts a service on the folder, and returns its address.
func (f *fixture) replica() (addr string) {
	f.t.Helper()
	addr, _ = f.start("127.0.0.1:0")
	return addr
}

// start starts a service that knows of replicas, and returns how it is stopped.
func (f *fixture) start(listen string, replicas ...string) (addr string, stop func()) {
	f.t.Helper()
	s, stop := f.run(Config{Listen: listen, Replicas: replicas})
	return s.Addr(), stop
}

// run starts a service on the folder.
func (f *fixture) run(cfg Config) (s *Service, stop func()) {
	t := f.t
	t.Helper()
	cfg.Manifests, cfg.TLS, cfg.Logger = f.manifests, f.files("policyd"), hclog.NewNullLogger()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func (f *fixture) files(name string) identity.Files {
	return identity.Files{CA: filepath.Join(f.pki, "ca.crt"), Cert: filepath.Join(f.pki, name+".crt"), Key: filepath.Join(f.pki, name+".key")}
}

// write puts the manifest in place at once.
func (f *fixture) write(text string) { f.t.Helper(); f.writeTo("all.yaml", text) }

func (f *fixture) writeTo(name, text string) {
	f.t.Helper()
	temp := filepath.Join(filepath.Dir(f.manifests), "next")
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(f.manifests, name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) dial(name string) (*grpc.ClientConn, context.Context) {
	f.t.Helper()
	config, err := identity.ClientTLS(f.files(name))
	if err != nil {
		f.t.Fatal(err)
	}
	// Until the manifests have been read the answer is UNAVAILABLE, which asks for another try.
	retry := grpc.WithDefaultServiceConfig(`{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":5,"initialBackoff":"0.05s","maxBackoff":"1s","backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}]}`)
	conn, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)), retry)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	f.t.Cleanup(cancel)
	return conn, ctx
}

// node is one node's stream and state.
type node struct {
	t       *testing.T
	stream  grpc.BidiStreamingClient[policyv1.SubscribeRequest, policyv1.SubscribeResponse]
	replica storage.Replica
}

func (f *fixture) subscribe(certificate, name string) *node {
	f.t.Helper()
	return f.resume(certificate, &policyv1.Hello{Node: name})
}

func (f *fixture) resume(certificate string, h *policyv1.Hello) *node {
	f.t.Helper()
	conn, ctx := f.dial(certificate)
	stream, err := policyv1.NewPolicyServiceClient(conn).Subscribe(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	hello := &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: h}}
	if err := stream.Send(hello); err != nil {
		f.t.Fatal(err)
	}
	return &node{t: f.t, stream: stream}
}

// until takes cuts, and acknowledges them, until the state is as wanted.
func (n *node) until(what string, condition func() bool) {
	n.t.Helper()
	for !condition() {
		resp, err := n.stream.Recv()
		if err != nil {
			n.t.Fatalf("never: %s: %v", what, err)
		}
		_, done, err := n.replica.Apply(resp.GetCut())
		if err != nil {
			n.t.Fatal(err)
		}
		if done {
			ack := &policyv1.Ack{Revision: resp.GetCut().GetRevision(), Digest: n.replica.Digest().Bytes()}
			if err := n.stream.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: ack}}); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

func (n *node) endpoints() (names []string) {
	n.replica.Items(storage.ScopeNode, func(_ storage.ScopeID, item *policyv1.Item) {
		if ep := item.GetEndpoint(); ep != nil {
			names = append(names, ep.GetName())
		}
	})
	return names
}

func (n *node) policies() (list []*policyv1.Policy) {
	n.replica.Items(storage.ScopePolicies, func(_ storage.ScopeID, item *policyv1.Item) { list = append(list, item.GetPolicy()) })
	return list
}

func TestNodeGetsItsOwnSpanOnly(t *testing.T) {
	f := newFixture(t)
	n1, n2 := f.subscribe("node-n1", "n1"), f.subscribe("node-n2", "n2")
	n1.until("n1 has its Pod", func() bool { return len(n1.endpoints()) > 0 })
	n2.until("n2 has its Pod", func() bool { return len(n2.endpoints()) > 0 })
	if got := n1.endpoints(); len(got) != 1 || got[0] != "web" || len(n1.policies()) != 1 {
		t.Errorf("n1 holds the Pods %v and %d policies", got, len(n1.policies()))
	}
	if got := n2.endpoints(); len(got) != 1 || got[0] != "other" || len(n2.policies()) != 0 {
		t.Errorf("n2 holds the Pods %v and %d policies", got, len(n2.policies()))
	}
	for _, test := range []struct{ certificate, name string }{{"node-n2", "n1"}, {"operator", "n1"}} {
		if _, err := f.subscribe(test.certificate, test.name).stream.Recv(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s subscribes as %s: %v", test.certificate, test.name, err)
		}
	}
}

// Nodes follow the Services and EndpointSlices of a folder.
func TestNodesFollowServices(t *testing.T) {
	f := newFixture(t)
	n1 := f.subscribe("node-n1", "n1")
	backends := func(want ...string) func() bool {
		return func() bool {
			var got []string
			n1.replica.Items(storage.ScopeServices, func(_ storage.ScopeID, item *policyv1.Item) {
				if b := item.GetBackend(); b != nil {
					ip, _ := netip.AddrFromSlice(b.Ip)
					got = append(got, fmt.Sprint(ip, " ", b.Ports[0].Port))
				}
			})
			slices.Sort(got)
			return slices.Equal(got, want)
		}
	}
	const service = `{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}`
	slice := func(endpoints string) string {
		return service + "\n---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}, addressType: IPv4, ports: [{port: 5432}], endpoints: [" + endpoints + "]}\n"
	}
	f.writeTo("services.yaml", slice("{addresses: [10.9.0.1]}, {addresses: [10.9.0.2]}"))
	n1.until("n1 has both", backends("10.9.0.1 5432", "10.9.0.2 5432"))
	f.writeTo("services.yaml", slice("{addresses: [10.9.0.1], conditions: {ready: false}}, {addresses: [10.9.0.2]}"))
	n1.until("one is not ready", backends("10.9.0.2 5432"))
	f.writeTo("services.yaml", "")
	n1.until("none is there", backends())
}

func TestOperatorsInspectAndNodesDoNot(t *testing.T) {
	f := newFixture(t)
	n1 := f.subscribe("node-n1", "n1") // Once it has its state, the manifests have been read.
	n1.until("n1 has its Pod", func() bool { return len(n1.endpoints()) > 0 })
	request := &policyv1.ExplainRequest{From: "x/other", To: "x/web", Port: 80}
	conn, ctx := f.dial("node-n1")
	if _, err := policyv1.NewInspectionServiceClient(conn).Explain(ctx, request); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node inspects: %v", err)
	}
	conn, ctx = f.dial("operator")
	operator := policyv1.NewInspectionServiceClient(conn)
	closed, err := operator.Explain(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	isolating := closed.GetIngress().GetIsolatedBy()
	if closed.GetVerdict() != policyv1.Verdict_VERDICT_DROP || len(isolating) != 1 || isolating[0].GetName() != "closed" || closed.GetIngress().GetReason() == "" {
		t.Errorf("explained: %v", closed)
	}
	open, err := operator.Explain(ctx, &policyv1.ExplainRequest{From: "x/web", To: "x/other", Port: 80})
	if err != nil || open.GetVerdict() != policyv1.Verdict_VERDICT_ALLOW {
		t.Errorf("explained: %v, %v", open, err)
	}
	if _, err := operator.Explain(ctx, &policyv1.ExplainRequest{From: "x/nobody", To: "x/web", Port: 80}); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a Pod that is not there: %v", err)
	}
	list, err := operator.ListPolicies(ctx, &policyv1.ListPoliciesRequest{})
	if err != nil || len(list.GetPolicies()) != 1 || list.GetPolicies()[0].GetNodes() != 1 {
		t.Errorf("policies: %v, %v", list, err)
	}
}

// The annotation that has a Namespace's policies logged comes to the nodes as
// soon as it is written.
func TestAnnotatedNamespaceIsLogged(t *testing.T) {
	f := newFixture(t)
	n1 := f.subscribe("node-n1", "n1")
	n1.until("the policy is there", func() bool { return len(n1.policies()) == 1 })
	if n1.policies()[0].GetLogIsolation() {
		t.Fatal("it is logged before anyone asks")
	}
	f.write(strings.Replace(manifest, "{name: x}", `{name: x, annotations: {networkpolicy.antrea.io/enable-logging: "true"}}`, 1))
	n1.until("the policy is logged", func() bool { return n1.policies()[0].GetLogIsolation() })
	f.write(manifest)
	n1.until("the policy is not logged any more", func() bool { return !n1.policies()[0].GetLogIsolation() })
}

func TestPlainTextBeyondLoopbackMustBeAskedFor(t *testing.T) {
	cfg := Config{Manifests: t.TempDir(), Listen: "0.0.0.0:0", Logger: hclog.NewNullLogger()}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("New: %v, want a refusal that says how to go on", err)
	}
	cfg.Insecure = true
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Error(err)
	}
}

// A node that moves between replicas of one folder resumes with an equal digest,
// and no item is sent again, in whatever order each replica read its files.
func TestReplicasAreInterchangeable(t *testing.T) {
	f := newFixture(t)
	at := f.subscribe("node-n1", "n1")
	at.until("the Pod", func() bool { return len(at.endpoints()) == 1 })
	// The first replica reads one file after the other, and something that goes again.
	pod := func(name string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {namespace: x, name: " + name + ", labels: {app: web}}\n" +
			"spec: {nodeName: n1}\nstatus: {podIPs: [{ip: 10.0.1." + strconv.Itoa(len(name)) + "}]}\n"
	}
	for _, name := range []string{"second", "gone", "first"} {
		f.writeTo(name+".yaml", pod(name))
		at.until(name, func() bool { return slices.Contains(at.endpoints(), name) })
	}
	if err := os.Remove(filepath.Join(f.manifests, "gone.yaml")); err != nil {
		t.Fatal(err)
	}
	at.until("gone", func() bool { return !slices.Contains(at.endpoints(), "gone") })

	f.addr = f.replica()
	h := &policyv1.Hello{Node: "n1", Digest: at.replica.Digest().Bytes(), Position: at.replica.Position(), Version: "v0.1.0-100-g0123456"}
	moved := f.resume("node-n1", h)
	resp, err := moved.stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	in := resp.GetInSync()
	if in == nil {
		t.Fatalf("the other replica answers with %v", resp)
	}
	if in.GetEpoch() == at.replica.Epoch() || !storage.Position(in.GetPosition().GetSources()).Reaches(at.replica.Position().GetSources()) {
		t.Errorf("epoch %q and position %v after %q and %v", in.GetEpoch(), in.GetPosition(), at.replica.Epoch(), at.replica.Position())
	}
	ack := &policyv1.Ack{Revision: in.GetRevision(), ApplyMicros: 1000, Digest: h.Digest}
	exchanged := []proto.Message{
		&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Hello{Hello: h}}, resp,
		&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: ack}},
	}
	bytes := 0
	for _, m := range exchanged {
		bytes += proto.Size(m)
	}
	if bytes >= 200 {
		t.Errorf("a reconnect in sync exchanges %d bytes", bytes)
	}
}

// Each replica says of all nodes what the one knows that they are connected to,
// and of all policies on how many nodes they are in force. One that is dead, and
// one that was never there, are left out.
func TestReplicasAnswerForAll(t *testing.T) {
	f := newFixture(t)
	var addresses []string
	for range 3 { // Nobody listens at the third.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
		l.Close()
	}
	f.write(strings.Replace(manifest, "{matchLabels: {app: web}}", "{}", 1))
	var stop [2]func()
	for i := range 2 {
		_, stop[i] = f.start(addresses[i], addresses...)
	}
	ask := make([]policyv1.InspectionServiceClient, 2)
	var ctx context.Context
	for i := range 2 {
		f.addr = addresses[i]
		name := "n" + strconv.Itoa(i+1)
		n := f.subscribe("node-"+name, name)
		n.until("the policy", func() bool { return len(n.policies()) == 1 })
		var conn *grpc.ClientConn
		conn, ctx = f.dial("operator")
		ask[i] = policyv1.NewInspectionServiceClient(conn)
	}
	nodes := func(from int, local bool) (lines []string) {
		list, err := ask[from].ListNodes(ctx, &policyv1.ListNodesRequest{Local: local})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range list.GetNodes() {
			at := "nobody"
			switch n.GetReplica() {
			case "":
			case list.GetEpoch():
				at = "own"
			default:
				at = "other"
			}
			lines = append(lines, fmt.Sprint(n.GetName(), " ", at, " ", n.GetInSync(), " ", n.GetAckedRevision() > 0))
		}
		return lines
	}
	realized := func(from int, local bool) string {
		list, err := ask[from].ListPolicies(ctx, &policyv1.ListPoliciesRequest{Local: local})
		if err != nil || len(list.GetPolicies()) != 1 {
			t.Fatal(list, err)
		}
		p := list.GetPolicies()[0]
		return fmt.Sprint(p.GetNodesRealized(), "/", p.GetNodes())
	}
	await := func(what string, from int, wantNodes []string, wantRealized string) {
		t.Helper()
		for deadline := time.Now().Add(8 * time.Second); !slices.Equal(nodes(from, false), wantNodes) || realized(from, false) != wantRealized; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %q, realised on %s; want %q, %s", what, nodes(from, false), realized(from, false), wantNodes, wantRealized)
			}
		}
	}
	await("asked at the first", 0, []string{"n1 own true true", "n2 other true true"}, "2/2")
	await("asked at the second", 1, []string{"n1 other true true", "n2 own true true"}, "2/2")
	if got, want := nodes(0, true), []string{"n1 own true true", "n2 nobody false false"}; !slices.Equal(got, want) || realized(0, true) != "1/2" {
		t.Errorf("the first by itself: %q, %s; want %q", got, realized(0, true), want)
	}
	// The same question has the same answer, to the byte.
	encoded := func() string {
		list, err := ask[0].ListNodes(ctx, &policyv1.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return prototext.MarshalOptions{Multiline: false}.Format(list)
	}
	strip := func(s string) string { return strings.ReplaceAll(s, " ", "") }
	if once, again := strip(encoded()), strip(encoded()); once != again {
		t.Errorf("%s\n%s", once, again)
	}
	stop[1]()
	await("the second is gone", 0, []string{"n1 own true true", "n2 nobody false false"}, "1/2")
}

// What a status is to say of policies and groups is told over gRPC: whether
// they can be realised, what contradicts them, and whether members are known.
func TestConditionsAreServed(t *testing.T) {
	f := newFixture(t)
	antrea := func(kind, name, spec string) string {
		return "---\napiVersion: crd.antrea.io/v1beta1\nkind: " + kind + "\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
	}
	policy := func(name, spec string) string {
		return antrea("ClusterNetworkPolicy", name, "priority: 5, appliedTo: [{namespaceSelector: {}}], "+spec)
	}
	f.write(manifest + policy("open", "ingress: [{name: in, action: Allow}]") + policy("shut", "ingress: [{name: out, action: Drop, ports: [{port: 80}]}]") +
		policy("lost", "tier: nowhere, ingress: [{action: Drop}]") + policy("half", "egress: [{action: Drop, to: [{group: none}, {group: g}]}]") +
		antrea("ClusterGroup", "g", "childGroups: [web, none]") + antrea("ClusterGroup", "web", "podSelector: {matchLabels: {app: web}}"))
	conn, ctx := f.dial("operator")
	client := policyv1.NewInspectionServiceClient(conn)
	var policies *policyv1.ListPoliciesResponse
	for len(policies.GetPolicies()) != 5 {
		var err error
		if policies, err = client.ListPolicies(ctx, &policyv1.ListPoliciesRequest{}); err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
	}
	got := map[string]string{}
	for _, p := range policies.GetPolicies() {
		for _, c := range p.GetConditions() {
			got[p.GetRef().GetName()] += strings.TrimSpace(strings.Join([]string{c.GetType(), strconv.FormatBool(c.GetStatus()), c.GetReason(), c.GetMessage()}, " ")) + "\n"
		}
	}
	want := map[string]string{
		"closed": "Realizable true\nRealized false NotEnforcedOnAllNodes 0 of 1 nodes enforce it\n",
		"open": "Realizable true\nRealized false NotEnforcedOnAllNodes 0 of 2 nodes enforce it\nConflicting true EqualPrecedence spec.ingress[0] \"in\" (Allow) loses to rule \"out\" (spec.ingress[0]) of AntreaClusterNetworkPolicy shut (Drop), " +
			"which matches some of the same traffic with equal precedence\n",
		"shut": "Realizable true\nRealized false NotEnforcedOnAllNodes 0 of 2 nodes enforce it\nConflicting true EqualPrecedence spec.ingress[0] \"out\" (Drop) wins over rule \"in\" (spec.ingress[0]) of AntreaClusterNetworkPolicy open (Allow), " +
			"which matches some of the same traffic with equal precedence\n",
		"lost": "Realizable false TierNotFound tier nowhere is not there; the policy is held back until it is\nRealized false NotRealizable not as it is written: see the condition Realizable\n",
		"half": "Realizable false GroupNotFound egress[0] (egress-drop-",
	}
	for name, text := range want {
		if name == "half" && strings.HasPrefix(got[name], text) && strings.HasSuffix(got[name], "): group none is not there; it matches nothing\nRealized false NotRealizable not as it is written: see the condition Realizable\n") {
			continue
		}
		if got[name] != text {
			t.Errorf("%s: %s\nwant %s", name, got[name], text)
		}
	}
	groups, err := client.ListGroups(ctx, &policyv1.ListGroupsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var defined []string
	for _, d := range groups.GetDefinitions() {
		c := d.GetConditions()[0]
		defined = append(defined, strings.Join([]string{d.GetName(), strconv.Itoa(int(d.GetMembers())), c.GetType(), strconv.FormatBool(c.GetStatus()), c.GetMessage()}, " "))
	}
	if want := []string{"g 1 GroupMembersComputed true ClusterGroup none is not there, and adds nothing", "web 1 GroupMembersComputed true "}; !slices.Equal(defined, want) {
		t.Errorf("%q", defined)
	}
}
