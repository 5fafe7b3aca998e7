package credentials

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// TokenConfig of a Token.
type TokenConfig struct {
	Node    string   // The certificate has to be of this node.
	Servers []string // host:port of policy services, one of which is asked.
	CA      string   // File of the authority, PEM; it may come later.
	File    string   // Of the token, read anew each time: the kubelet renews it.
	Dir     string   // Where the certificate is kept.
	Logger  hclog.Logger
	// Dial connects in place of TCP. Tests set it.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Token is credentials by a service-account token. Run gets them and keeps them
// new.
type Token struct {
	cfg     TokenConfig
	current atomic.Pointer[held]
}

// KeptFile is the file in TokenConfig.Dir: certificate, key and authorities, in one
// piece, so that it is replaced as one.
const KeptFile = "identity.pem"

// How long to wait after what failed, at the least and at the most.
const minRetry, maxRetry = 500 * time.Millisecond, 10 * time.Second

// NewToken checks the configuration, and takes up what an earlier process kept.
func NewToken(cfg TokenConfig) (*Token, error) {
	if cfg.CA == "" || cfg.File == "" || len(cfg.Servers) == 0 {
		return nil, errors.New("TLS: a certificate by token needs --token-file, --ca and --policy-server")
	}
	t := &Token{cfg: cfg}
	if h, err := t.kept(); err == nil {
		t.current.Store(h)
	}
	return t, nil
}

// Transport is for connections of gRPC. Without a certificate handshakes fail.
func (t *Token) Transport() credentials.TransportCredentials {
	return transport{func() (*held, error) {
		if h := t.current.Load(); h != nil {
			return h, nil
		}
		return nil, errors.New("there is no certificate of the node yet")
	}}
}

// Run gets a certificate where there is none that is good for a while, and
// renews it, until the context ends.
func (t *Token) Run(ctx context.Context) error {
	pause, said := minRetry, ""
	for i := 0; ; i++ {
		wait := t.untilRenewal(time.Now())
		if wait <= 0 {
			err := t.enroll(ctx, t.cfg.Servers[i%len(t.cfg.Servers)])
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err == nil:
				pause, said = minRetry, ""
				t.cfg.Logger.Info("got a certificate", "until", t.current.Load().cert.Leaf.NotAfter.UTC())
				continue
			case err.Error() != said:
				said = err.Error()
				t.cfg.Logger.Warn("no new certificate yet; trying on", "err", err)
			}
			wait, pause = pause, min(2*pause, maxRetry)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// untilRenewal is when two thirds of the certificate's life will be over, give or
// take a tenth that depends on the node: many began together.
func (t *Token) untilRenewal(now time.Time) time.Duration {
	h := t.current.Load()
	if h == nil {
		return 0
	}
	life := h.cert.Leaf.NotAfter.Sub(h.cert.Leaf.NotBefore.Add(backdated))
	spread := time.Duration(h.cert.Leaf.SerialNumber.Bit(0)+2*h.cert.Leaf.SerialNumber.Bit(1)) * life / 40
	return h.cert.Leaf.NotAfter.Add(-life / 3).Add(-spread).Sub(now)
}

// backdated is how much earlier than its signing a certificate begins, for
// clocks that are behind.
const backdated = time.Hour

// enroll gets a certificate from one policy service.
func (t *Token) enroll(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	roots, err := readRoots(t.cfg.CA)
	if err != nil {
		return err
	}
	token, err := os.ReadFile(t.cfg.File)
	if err != nil {
		return fmt.Errorf("TLS: read token: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("TLS: make key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("TLS: make certificate request: %w", err)
	}
	opts := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}))}
	target := server
	if t.cfg.Dial != nil {
		target = "passthrough:///" + server
		opts = append(opts, grpc.WithContextDialer(t.cfg.Dial))
	}
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		return fmt.Errorf("policy service %s: %w", server, err)
	}
	defer conn.Close()
	resp, err := policyv1.NewEnrollmentServiceClient(conn).Enroll(ctx, &policyv1.EnrollRequest{Token: strings.TrimSpace(string(token)), Csr: csr})
	if err != nil {
		return fmt.Errorf("policy service %s: %w", server, err)
	}
	leaf, err := x509.ParseCertificate(resp.GetCertificate())
	if err != nil {
		return fmt.Errorf("policy service %s: its certificate for us: %w", server, err)
	}
	if err := ofNode(leaf, t.cfg.Node); err != nil {
		return err
	}
	ca, err := os.ReadFile(t.cfg.CA)
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h := &held{tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, roots}
	t.current.Store(h)
	if err := t.keep(leaf, key, ca); err != nil {
		t.cfg.Logger.Warn("the certificate cannot be kept; a restart needs the policy service", "err", err)
	}
	return nil
}

// ofNode is an error where a certificate is of another node.
func ofNode(cert *x509.Certificate, node string) error {
	for _, u := range cert.URIs {
		if u.Scheme == "weir" && u.Host == "node" {
			if u.Path == "/"+node {
				return nil
			}
			return fmt.Errorf("TLS: the token is of a Pod on node %s, and this is the shim of %s: give --node as the Node is called", strings.TrimPrefix(u.Path, "/"), node)
		}
	}
	return errors.New("TLS: the token is good for a certificate of no node")
}

// keep writes what another process is to begin with.
func (t *Token) keep(leaf *x509.Certificate, key *ecdsa.PrivateKey, ca []byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})...)
	text = append(text, ca...) // The authorities come behind the node's own.
	path := filepath.Join(t.cfg.Dir, KeptFile)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// kept reads what keep wrote. A certificate that has ended is an error.
func (t *Token) kept() (*held, error) {
	text, err := os.ReadFile(filepath.Join(t.cfg.Dir, KeptFile))
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	if err := ofNode(cert.Leaf, t.cfg.Node); err != nil {
		return nil, err
	}
	if time.Now().After(cert.Leaf.NotAfter) {
		return nil, errors.New("the certificate has ended")
	}
	roots := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		roots.AddCert(ca)
	}
	cert.Certificate = cert.Certificate[:1]
	return &held{cert, roots}, nil
}
