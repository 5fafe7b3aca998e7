package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// EnrolledConfig of an Enrolled.
type EnrolledConfig struct {
	PolicyServers []string // host:port of policy services, one of which is asked.
	CA            string   // File of the authority; it may come later.
	TokenFile     string   // Of a service-account token, read anew each time.
	Logger        hclog.Logger
}

// Enrolled is the credentials of a process that gets its certificate from the
// policy service, by its service-account token.
type Enrolled struct {
	cfg     EnrolledConfig
	current current
}

// NewEnrolled checks the configuration and asks for nothing.
func NewEnrolled(cfg EnrolledConfig) (*Enrolled, error) {
	if len(cfg.PolicyServers) == 0 || cfg.CA == "" || cfg.TokenFile == "" {
		return nil, errors.New("a certificate by token: give --policy-server, --ca and --token-file")
	}
	return &Enrolled{cfg: cfg}, nil
}

// Server implements Credentials.
func (e *Enrolled) Server() *tls.Config {
	return configs{e.current.get, tls.RequireAndVerifyClientCert}.Server()
}

// Client implements Credentials.
func (e *Enrolled) Client() credentials.TransportCredentials {
	return configs{get: e.current.get}.Client()
}

// Issued says whether there is a certificate.
func (e *Enrolled) Issued() bool { return e.current.Load() != nil }

// Run gets a certificate and renews it until the context ends.
func (e *Enrolled) Run(ctx context.Context) error {
	said := ""
	for i := 0; ; i++ {
		wait := retryInterval
		h, err := e.enroll(ctx, e.cfg.PolicyServers[i%len(e.cfg.PolicyServers)])
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			e.current.Store(h)
			wait, said = untilRenewal(h.cert.Leaf), ""
			e.cfg.Logger.Info("got a certificate", "until", h.cert.Leaf.NotAfter.UTC())
		case err.Error() != said:
			said = err.Error()
			e.cfg.Logger.Warn("no new certificate yet; trying on", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// enroll gets a certificate from one policy service.
func (e *Enrolled) enroll(ctx context.Context, server string) (*held, error) {
	roots, err := readRoots(e.cfg.CA)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(e.cfg.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	cert, err := Enroll(ctx, server, roots, strings.TrimSpace(string(token)))
	if err != nil {
		return nil, err
	}
	return &held{cert, roots}, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	return pool, addRoots(pool, path)
}

func addRoots(pool *x509.CertPool, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read CA: %w", err)
	}
	if !pool.AppendCertsFromPEM(text) {
		return fmt.Errorf("read CA: %s holds no PEM certificate", path)
	}
	return nil
}

// Enroll gets a certificate with a new key from a policy service, whose own
// certificate must be of one of the roots.
func Enroll(ctx context.Context, server string, roots *x509.CertPool, token string) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	conn, err := grpc.NewClient(server, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots})))
	if err != nil {
		return nil, fmt.Errorf("policy service %s: %w", server, err)
	}
	defer conn.Close()
	resp, err := policyv1.NewEnrollmentServiceClient(conn).Enroll(ctx, &policyv1.EnrollRequest{Token: token, Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("policy service %s: %w", server, err)
	}
	leaf, err := x509.ParseCertificate(resp.GetCertificate())
	if err != nil {
		return nil, fmt.Errorf("policy service %s: its certificate for us: %w", server, err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
