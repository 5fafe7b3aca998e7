package audit

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
)

// judge is a policy service that knows who sees which Namespaces, by token.
type judge struct {
	policyv1.UnimplementedAccessServiceServer
	mu    sync.Mutex // Guards what follows.
	sees  map[string][]string
	asked []string
	down  bool
}

func (j *judge) Review(_ context.Context, r *policyv1.ReviewRequest) (*policyv1.ReviewResponse, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked = append(j.asked, r.GetVerb()+" "+r.GetResource()+" "+strings.Join(r.GetNamespaces(), ","))
	sees, known := j.sees[r.GetToken()]
	switch {
	case j.down:
		return nil, status.Error(codes.Unavailable, "the cluster cannot be asked")
	case !known:
		return nil, status.Error(codes.Unauthenticated, "the cluster does not take the token")
	case len(sees) == 0 || len(r.GetNamespaces()) > 0 && !slices.Contains(sees, r.GetNamespaces()[0]) && sees[0] != "*":
		return nil, status.Error(codes.PermissionDenied, "grant it")
	}
	return &policyv1.ReviewResponse{User: r.GetToken(), All: sees[0] == "*", Namespaces: sees}, nil
}

func (j *judge) set(token string, sees ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.sees[token] = sees
}

func (j *judge) fail() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.down = true
}

// TestUsers: users of the cluster see by Tail what the policy service says, and for as
// long as it says so.
func TestUsers(t *testing.T) {
	pki := t.TempDir()
	if _, err := identity.Init(identity.InitConfig{Dir: pki, Nodes: []string{"n1"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	files := func(name string) identity.Files {
		return identity.Files{CA: filepath.Join(pki, "ca.crt"), Cert: filepath.Join(pki, name+".crt"), Key: filepath.Join(pki, name+".key")}
	}
	config := func(name string) *tls.Config {
		c, err := identity.ClientTLS(files(name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	server, err := identity.ServerTLS(files("policyd"))
	if err != nil {
		t.Fatal(err)
	}
	j := &judge{sees: map[string][]string{"shop": {"shop"}, "chief": {"*"}, "nothing": {}}}
	policyd := grpc.NewServer(grpc.Creds(credentials.NewTLS(server)))
	policyv1.RegisterAccessServiceServer(policyd, j)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = policyd.Serve(listener) }()
	t.Cleanup(policyd.Stop)
	c := start(t, func(c *Config) {
		c.TLS, c.PolicyServers, c.review = files("auditd"), []string{listener.Addr().String()}, 20*time.Millisecond
	})
	report, err := auditv1.NewCollectorServiceClient(c.dial(credentials.NewTLS(config("auditd")))).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{t, report}
	s.send(&auditv1.ReportRequest{Message: &auditv1.ReportRequest_Hello{Hello: &auditv1.ReportHello{Node: "n1", Boot: "b"}}})
	half, foreign := drop(2), drop(3)
	half.GetPacket().Peer = "bank/teller"
	foreign.GetPacket().AppliedTo, foreign.GetPacket().Peer = "bank/vault", "bank/teller"
	s.batch(1, drop(1), half, foreign)
	s.acked(3)

	anonymous := config("operator")
	anonymous.Certificates = nil
	conn := c.dial(credentials.NewTLS(anonymous))
	client := auditv1.NewAuditServiceClient(conn)
	as := func(token string) context.Context {
		if token == "" {
			return t.Context()
		}
		return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
	}
	// tail is the cursors of all records that there are, and how it ended.
	tail := func(token string, f *auditv1.RecordFilter) (cursors []uint64, err error) {
		t.Helper()
		call, err := client.Tail(as(token), &auditv1.TailRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for {
			r, err := call.Recv()
			if err != nil {
				if status.Code(err) == codes.Unknown { // EOF is.
					err = nil
				}
				return cursors, err
			}
			if raw, _ := proto.Marshal(r); token == "shop" && bytes.Contains(raw, []byte("bank")) {
				t.Errorf("bank is told: %v", r)
			}
			if r.GetRecord() != nil {
				cursors = append(cursors, r.GetCursor())
			}
		}
	}
	for _, tt := range []struct {
		token, namespace string
		want             []uint64
		code             codes.Code
	}{
		{token: "shop", want: []uint64{1, 2}},
		{token: "shop", namespace: "shop", want: []uint64{1, 2}},
		{token: "shop", namespace: "bank", code: codes.PermissionDenied},
		{token: "chief", want: []uint64{1, 2, 3}},
		{token: "nothing", code: codes.PermissionDenied},
		{token: "unknown", code: codes.Unauthenticated},
		{code: codes.Unauthenticated},
	} {
		got, err := tail(tt.token, &auditv1.RecordFilter{Namespace: tt.namespace})
		if status.Code(err) != tt.code || !slices.Equal(got, tt.want) {
			t.Errorf("%q in %q: %v, %v", tt.token, tt.namespace, got, err)
		}
	}
	for token, want := range map[string]codes.Code{"chief": codes.OK, "shop": codes.PermissionDenied, "": codes.Unauthenticated} {
		if _, err := client.Stats(as(token), &auditv1.StatsRequest{}); status.Code(err) != want {
			t.Errorf("Stats for %q: %v", token, err)
		}
	}
	test, err := client.TestSink(as("chief"), &auditv1.TestSinkRequest{Sink: "s"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := test.Recv(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "weir://role/operator") {
		t.Errorf("TestSink by a user: %v", err)
	}
	stranger, err := auditv1.NewCollectorServiceClient(conn).Report(as("chief"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a report by a user: %v", err)
	}
	j.mu.Lock()
	if want := []string{"list records ", "list records shop", "list records bank"}; !slices.Equal(j.asked[:3], want) {
		t.Errorf("asked %q, want %q", j.asked[:3], want)
	}
	j.mu.Unlock()

	// ended is how a stream that follows ends.
	ended := func(token string, change func()) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(as(token), 20*time.Second)
		defer cancel()
		call, err := client.Tail(ctx, &auditv1.TailRequest{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := call.Recv(); err != nil {
			t.Fatal(err)
		}
		change()
		for {
			if _, err := call.Recv(); err != nil {
				return err
			}
		}
	}
	if err := ended("shop", func() { j.set("shop") }); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "grant it") {
		t.Errorf("a right that was revoked: %v", err)
	}
	if err := ended("chief", func() { j.set("chief", "shop") }); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "any more") {
		t.Errorf("a right in all Namespaces that was revoked: %v", err)
	}
	if err := ended("chief", j.fail); status.Code(err) != codes.Unavailable {
		t.Errorf("without anybody to ask: %v", err)
	}
}

// TestViewFollowsTheRights: what is granted or revoked while a stream is open counts
// for what comes.
func TestViewFollowsTheRights(t *testing.T) {
	slot := make(chan *view, 1)
	ctx, end := context.WithCancelCause(t.Context())
	defer end(nil)
	j := &judge{sees: map[string][]string{"a": {"shop", "bank"}}}
	policyd := grpc.NewServer()
	policyv1.RegisterAccessServiceServer(policyd, j)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = policyd.Serve(listener) }()
	defer policyd.Stop()
	r := &reviewer{addresses: []string{listener.Addr().String()}, creds: insecure.NewCredentials(), interval: time.Millisecond, conns: make(map[string]*grpc.ClientConn)}
	defer r.close()
	was, err := r.review(ctx, &identity.Proof{Token: "a"}, "watch", nil)
	if err != nil || !was.Sees("bank") || was.holder != "user a" {
		t.Fatalf("%v, %v", was, err)
	}
	go r.follow(ctx, end, was, "watch", nil, slot)
	for _, sees := range [][]string{{"shop"}, {"shop", "web"}, {"web"}} {
		j.set("a", sees...)
		for deadline := time.After(10 * time.Second); ; {
			var v *view
			select {
			case v = <-slot:
			case <-deadline:
				t.Fatalf("%v does not come to count", sees)
			}
			if v.Sees("shop") == slices.Contains(sees, "shop") && v.Sees("web") == slices.Contains(sees, "web") && !v.Sees("bank") {
				break
			}
		}
	}
}
