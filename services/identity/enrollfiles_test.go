package identity

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// What is written is as good as what Init writes, and a second call replaces it.
func TestEnrollFiles(t *testing.T) {
	made, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a := &Authority{*made}
	own, err := a.own(RolePolicyd, []string{"127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewEnrollment(EnrollmentConfig{Authority: func() *Authority { return a }, Reviewer: reviews{"jane": {Namespace: "w", Name: "operator"}, "shim": {Namespace: "w", Name: "shim", Node: "n1"}},
		Grants: []Grant{{Namespace: "w", Name: "operator", Role: RoleOperator}, {Namespace: "w", Name: "shim", Role: RoleNode}}, Lifetime: time.Hour,
		Registry: prometheus.NewRegistry(), Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*own}})))
	policyv1.RegisterEnrollmentServiceServer(s, e)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	ca, dir := filepath.Join(t.TempDir(), "ca.crt"), filepath.Join(t.TempDir(), "pki")
	if err := os.WriteFile(ca, append([]byte("# of the cluster\n"), a.certificate()...), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ token, want string }{{"jane", "operator"}, {"shim", "node-n1"}, {"jane", "operator"}} {
		written, err := EnrollFiles(t.Context(), EnrollFilesConfig{Server: l.Addr().String(), CA: ca, Token: test.token, Dir: dir})
		want := files(dir, test.want)
		if err != nil || !slices.Equal(written, []string{want.Cert, want.Key, want.CA}) {
			t.Fatalf("wrote %v, %v", written, err)
		}
		if info, err := os.Stat(want.Key); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key is %v, %v", info.Mode(), err)
		}
		credentialsOf(t, want)
	}
	if _, err := EnrollFiles(t.Context(), EnrollFilesConfig{Server: l.Addr().String(), CA: ca, Token: "mallory", Dir: dir}); err == nil || !strings.Contains(err.Error(), "does not take the token") {
		t.Errorf("an unknown token: %v", err)
	}
}

// A name that is none ends the process, which begins anew with better ones.
func TestClusterChecksItsNames(t *testing.T) {
	_, err := NewCluster(ClusterConfig{Namespace: "w", Hosts: []string{"weir-policyd", "$(WEIR_POLICYD_SERVICE_HOST)"}, Logger: hclog.NewNullLogger()})
	if err == nil || !strings.Contains(err.Error(), "neither an address nor a host name") {
		t.Errorf("got %v", err)
	}
}
