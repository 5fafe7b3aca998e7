package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func TestFromCertificate(t *testing.T) {
	for _, test := range []struct {
		name string
		uris []string
		want string // Of the identity, or a part of the error behind "!".
	}{
		{"a node", []string{"weir://node/worker-1.example"}, "node/worker-1.example"},
		{"a role", []string{"weir://role/operator"}, "role/operator"},
		{"foreign names beside ours", []string{"spiffe://x/y", "weir://role/auditd"}, "role/auditd"},
		{"nothing", nil, "!neither a node nor a role"},
		{"foreign names alone", []string{"spiffe://node/a"}, "!neither a node nor a role"},
		{"two nodes", []string{"weir://node/a", "weir://node/b"}, "!names two nodes, a and b"},
		{"an unknown role", []string{"weir://role/root"}, "!unknown role root"},
		{"an unknown sort", []string{"weir://user/root"}, "!unknown name"},
		{"a reader", []string{"weir://namespace/web", "weir://role/reader", "weir://namespace/shop", "weir://namespace/web"}, "role/reader of shop,web"},
		{"a reader of nothing", []string{"weir://role/reader"}, "!needs a Namespace"},
		{"a reader who is more", []string{"weir://role/reader", "weir://role/operator", "weir://namespace/shop"}, "!a reader is nothing else"},
		{"a reader who is a node", []string{"weir://role/reader", "weir://node/n1", "weir://namespace/shop"}, "!a reader is nothing else"},
		{"Namespaces of an operator", []string{"weir://role/operator", "weir://namespace/shop"}, "!readers' alone do"},
		{"Namespaces of nobody", []string{"weir://namespace/shop"}, "!neither a node nor a role"},
		{"no Namespace", []string{"weir://role/reader", "weir://namespace/*"}, "!Namespace \"*\""},
		{"a path for a Namespace", []string{"weir://role/reader", "weir://namespace/a/b"}, "!Namespace \"a/b\""},
		{"an empty name", []string{"weir://node/"}, "!malformed"},
		{"a name with a query", []string{"weir://node/a?b"}, "!malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cert := &x509.Certificate{}
			for _, s := range test.uris {
				u, err := url.Parse(s)
				if err != nil {
					t.Fatal(err)
				}
				cert.URIs = append(cert.URIs, u)
			}
			id, err := FromCertificate(cert)
			if want, fails := strings.CutPrefix(test.want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			} else if err != nil || id.String() != test.want {
				t.Errorf("got %v, %v, want %s", id, err, test.want)
			}
		})
	}
}

func TestCheckListen(t *testing.T) {
	for _, test := range []struct {
		addr          string
		tls, insecure bool
		ok            bool
	}{
		{"127.0.0.1:1", false, false, true}, {"[::1]:1", false, false, true}, {"localhost:1", false, false, true}, {"unix:/run/x", false, false, true}, {"127.9.9.9:1", false, false, true},
		{"0.0.0.0:1", false, false, false}, {":1", false, false, false}, {"[::]:1", false, false, false}, {"10.0.0.1:1", false, false, false}, {"host:1", false, false, false}, {"rubbish", false, false, false},
		{":1", true, false, true}, {":1", false, true, true}, {"[::ffff:127.0.0.1]:1", false, false, true},
	} {
		if err := CheckListen(test.addr, test.tls, test.insecure); (err == nil) != test.ok {
			t.Errorf("CheckListen(%q, %v, %v): %v", test.addr, test.tls, test.insecure, err)
		}
	}
}

func files(dir, name string) Files {
	return Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

func credentialsOf(t *testing.T, f Files) Credentials {
	t.Helper()
	c, err := f.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func initPKI(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	written, err := Init(InitConfig{Dir: dir, Nodes: []string{"n1", "n2", "n1"}, Servers: []string{"weir.example", "192.0.2.1"}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if len(written) != 12 {
		t.Fatalf("wrote %v", written)
	}
	return dir
}

func TestInit(t *testing.T) {
	dir := initPKI(t)
	for _, name := range []string{"ca", "policyd", "auditd", "operator", "node-n1", "node-n2"} {
		info, err := os.Stat(filepath.Join(dir, name+".key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s.key: %v, %v", name, info.Mode(), err)
		}
	}
	config, err := credentialsOf(t, files(dir, "policyd")).Server().GetConfigForClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"weir.example", "192.0.2.1", "localhost", "::1"} {
		if err := config.Certificates[0].Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	before, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	written, err := IssueReader(ReaderConfig{Dir: dir, Name: "team", Namespaces: []string{"web", "shop"}, Now: time.Now()})
	if err != nil || len(written) != 2 {
		t.Fatalf("%v %v", written, err)
	}
	own, err := tls.LoadX509KeyPair(written[0], written[1])
	if err != nil {
		t.Fatal(err)
	}
	id, err := FromCertificate(own.Leaf)
	if err != nil || id.String() != "role/reader of shop,web" || len(own.Leaf.ExtKeyUsage) != 1 || own.Leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("%v %v, good for %v", id, err, own.Leaf.ExtKeyUsage)
	}
	for _, bad := range []ReaderConfig{{Dir: dir, Name: "team", Namespaces: []string{"a"}}, {Dir: dir, Name: "../x", Namespaces: []string{"a"}}, {Dir: dir, Name: "x"}, {Dir: dir, Name: "x", Namespaces: []string{"*"}}, {Dir: t.TempDir(), Name: "x", Namespaces: []string{"a"}}} {
		if _, err := IssueReader(bad); err == nil {
			t.Errorf("%+v: accepted", bad)
		}
	}
	if _, err := Init(InitConfig{Dir: dir, Nodes: []string{"n3"}, Now: time.Now()}); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("overwriting: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil || string(before) != string(after) {
		t.Errorf("the CA's key was replaced: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node-n3.key")); err == nil {
		t.Error("something was written nevertheless")
	}
	for _, bad := range []InitConfig{{Dir: ""}, {Dir: t.TempDir(), Nodes: []string{"../x"}}, {Dir: t.TempDir(), Servers: []string{"a b"}}} {
		if _, err := Init(bad); err == nil {
			t.Errorf("%+v is no error", bad)
		}
	}
}

// serve runs a health service that remembers who called.
func serve(t *testing.T, config *tls.Config) (addr string, called func() (Identity, bool, error)) {
	t.Helper()
	var id Identity
	var verified bool
	var idErr error
	creds := insecure.NewCredentials()
	if config != nil {
		creds = credentials.NewTLS(config)
	}
	s := grpc.NewServer(grpc.Creds(creds), grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		id, verified, idErr = FromContext(ctx)
		return h(ctx, req)
	}))
	return serveOn(t, s), func() (Identity, bool, error) { return id, verified, idErr }
}

// serveOn runs a health service on a server.
func serveOn(t *testing.T, s *grpc.Server) (addr string) {
	t.Helper()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func call(t *testing.T, addr string, creds credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

func TestMutualTLS(t *testing.T) {
	dir, other := initPKI(t), initPKI(t)
	addr, called := serve(t, credentialsOf(t, files(dir, "policyd")).Server())
	client := func(f Files) credentials.TransportCredentials {
		return credentialsOf(t, f).Client()
	}
	roots, err := readRoots(files(dir, "").CA)
	if err != nil {
		t.Fatal(err)
	}
	if err := call(t, addr, client(files(dir, "node-n2"))); err != nil {
		t.Fatal(err)
	}
	if id, verified, err := called(); err != nil || !verified || id.Node != "n2" {
		t.Errorf("the caller is %v, %v, %v", id, verified, err)
	}
	if err := call(t, addr, client(files(dir, "operator"))); err != nil {
		t.Fatal(err)
	}
	if id, _, _ := called(); !id.Has(RoleOperator) || id.Node != "" {
		t.Errorf("the operator is %v", id)
	}
	mixed := files(other, "node-n1")
	mixed.CA = files(dir, "").CA
	for name, creds := range map[string]credentials.TransportCredentials{
		"a certificate of another CA": client(mixed),
		"a server of another CA":      client(files(other, "node-n1")),
		"no TLS":                      insecure.NewCredentials(),
		"no certificate":              credentials.NewTLS(&tls.Config{RootCAs: roots}),
	} {
		if err := call(t, addr, creds); err == nil {
			t.Errorf("%s is let in", name)
		}
	}
	// A node's certificate is no server's.
	addr, _ = serve(t, credentialsOf(t, files(dir, "node-n1")).Server())
	if err := call(t, addr, client(files(dir, "operator"))); err == nil {
		t.Error("a node poses as a server")
	}
}

func TestWithoutTLSNobodyHasAnIdentity(t *testing.T) {
	addr, called := serve(t, nil)
	if err := call(t, addr, insecure.NewCredentials()); err != nil {
		t.Fatal(err)
	}
	if id, verified, err := called(); err != nil || verified || id.String() != "nobody" {
		t.Errorf("got %v, %v, %v", id, verified, err)
	}
}

func TestFilesMustBeComplete(t *testing.T) {
	dir := initPKI(t)
	for _, f := range []Files{{}, {CA: "x"}, {CA: filepath.Join(dir, "ca.key"), Cert: "x", Key: "y"}, {CA: filepath.Join(dir, "ca.crt"), Cert: "x", Key: "y"}} {
		if _, err := f.Credentials(); err == nil {
			t.Errorf("%+v is taken", f)
		}
	}
}
