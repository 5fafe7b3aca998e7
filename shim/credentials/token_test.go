package credentials

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// service signs certificates of an authority of its own for the token "good", as
// the policy service does.
type service struct {
	policyv1.UnimplementedEnrollmentServiceServer
	t       *testing.T
	ca      *x509.Certificate
	key     *ecdsa.PrivateKey
	address string
	node    string // In the certificates.
	short   int32  // How many certificates, of the first, live for shortLife; the others for longLife.
	asked   atomic.Int32
	caller  atomic.Pointer[x509.Certificate] // Of the last health check.
}

const shortLife, longLife = 900 * time.Millisecond, time.Hour

func (s *service) sign(template *x509.Certificate, key any) *x509.Certificate {
	template.SerialNumber, template.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-backdated)
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, key, s.key)
	if err != nil {
		s.t.Error(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Error(err)
	}
	return cert
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func startService(t *testing.T) *service {
	t.Helper()
	s := &service{t: t, key: newKey(t), node: "n1"}
	s.ca = &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}
	s.ca = s.sign(s.ca, &s.key.PublicKey)
	own := newKey(t)
	cert := s.sign(&x509.Certificate{NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, &own.PublicKey)
	roots := x509.NewCertPool()
	roots.AddCert(s.ca)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: own}}})),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if p, ok := peer.FromContext(ctx); ok {
				if chains := p.AuthInfo.(credentials.TLSInfo).State.VerifiedChains; len(chains) > 0 {
					s.caller.Store(chains[0][0])
				}
			}
			return next(ctx, req)
		}))
	policyv1.RegisterEnrollmentServiceServer(server, s)
	healthv1.RegisterHealthServer(server, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return s
}

func (s *service) Enroll(_ context.Context, req *policyv1.EnrollRequest) (*policyv1.EnrollResponse, error) {
	life := longLife
	if s.asked.Add(1) <= s.short {
		life = shortLife
	}
	if req.GetToken() != "good" {
		return nil, status.Error(codes.Unauthenticated, "the cluster does not take the token")
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil {
		return nil, err
	}
	cert := s.sign(&x509.Certificate{NotAfter: time.Now().Add(life), URIs: []*url.URL{{Scheme: "weir", Host: "node", Path: "/" + s.node}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, csr.PublicKey)
	return &policyv1.EnrollResponse{Certificate: cert.Raw, Ca: s.ca.Raw, NotAfter: cert.NotAfter.Unix()}, nil
}

// shimOf is the configuration of a shim whose files are in a folder.
func (s *service) shimOf(dir string, log *strings.Builder) TokenConfig {
	logger := hclog.NewNullLogger()
	if log != nil {
		logger = hclog.New(&hclog.LoggerOptions{Output: log})
	}
	return TokenConfig{Node: "n1", Servers: []string{s.address}, CA: filepath.Join(dir, "ca.crt"), File: filepath.Join(dir, "token"), Dir: dir, Logger: logger}
}

func (s *service) write(t *testing.T, dir, name string) {
	t.Helper()
	text := []byte("good\n")
	if name == "ca.crt" {
		text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Raw})
	}
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// check calls the service, waiting for a certificate.
func check(t *testing.T, token *Token, address string) error {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(token.Transport()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	return err
}

// running is a Token that runs until the test ends, or stop is called.
func running(t *testing.T, cfg TokenConfig) (*Token, func()) {
	t.Helper()
	token, err := NewToken(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = token.Run(ctx) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return token, stop
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so", what)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestTokenGetsACertificateAndKeepsIt(t *testing.T) {
	s, dir := startService(t), t.TempDir()
	token, stop := running(t, s.shimOf(dir, nil))
	if err := check(t, token, s.address); err == nil {
		t.Error("a call goes through without a certificate")
	}
	// The authority and the token come later: the kubelet mounts what there is.
	s.write(t, dir, "ca.crt")
	s.write(t, dir, "token")
	eventually(t, "a call with the certificate", func() bool { return check(t, token, s.address) == nil })
	if c := s.caller.Load(); c == nil || c.URIs[0].String() != "weir://node/n1" {
		t.Errorf("the service sees %v", c)
	}
	stop()
	if info, err := os.Stat(filepath.Join(dir, KeptFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("kept as %v, %v", info, err)
	}
	// Another process begins with it, and asks nobody.
	if err := os.Remove(filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	asked := s.asked.Load()
	again, _ := running(t, s.shimOf(dir, nil))
	if err := check(t, again, s.address); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if now := s.asked.Load(); now != asked {
		t.Errorf("asked %d times more", now-asked)
	}
	// That of another node is not taken.
	other := s.shimOf(dir, nil)
	other.Node = "n2"
	if token, err := NewToken(other); err != nil || check(t, token, s.address) == nil {
		t.Errorf("another node's certificate is used: %v", err)
	}
}

// Of three certificates two live for a moment, so that no pause of the machine ends
// the one that calls go on with.
func TestTokenIsRenewed(t *testing.T) {
	s, dir := startService(t), t.TempDir()
	s.short = 2
	s.write(t, dir, "ca.crt")
	s.write(t, dir, "token")
	token, _ := running(t, s.shimOf(dir, nil))
	eventually(t, "a call with the third certificate", func() bool {
		return check(t, token, s.address) == nil && time.Until(s.caller.Load().NotAfter) > shortLife
	})
	begins := token.current.Load().cert.Leaf.NotBefore.Add(backdated)
	if after := token.untilRenewal(begins); after < longLife/2 || after > longLife*2/3+time.Second {
		t.Errorf("a certificate of %v is renewed after %v", longLife, after)
	}
}

func TestTokenOfAnotherNodeIsRefused(t *testing.T) {
	s, dir := startService(t), t.TempDir()
	s.node = "n7"
	s.write(t, dir, "ca.crt")
	s.write(t, dir, "token")
	var log strings.Builder
	token, stop := running(t, s.shimOf(dir, &log))
	eventually(t, "a request", func() bool { return s.asked.Load() >= 2 })
	stop()
	if err := check(t, token, s.address); err == nil {
		t.Error("the certificate is used")
	}
	if !strings.Contains(log.String(), "node n7") || !strings.Contains(log.String(), "shim of n1") {
		t.Errorf("the log does not say why:\n%s", log.String())
	}
}

func TestConfigurationsThatAreNone(t *testing.T) {
	for _, cfg := range []TokenConfig{{}, {CA: "x", File: "y"}, {CA: "x", Servers: []string{"y"}}, {File: "x", Servers: []string{"y"}}} {
		if _, err := NewToken(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
	for _, f := range []Files{{CA: "x"}, {CA: "x", Cert: "y", Key: "z"}} {
		if _, err := f.Transport(); err == nil {
			t.Errorf("%+v is taken", f)
		}
	}
}
