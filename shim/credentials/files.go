package credentials

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
)

// Files name a certificate authority, and the node's certificate and key, as
// PEM. All empty: plain text, which the peers accept only if told so.
type Files struct {
	CA, Cert, Key string
}

// Transport is for connections of gRPC; nil for plain text. That the files can be
// read now is checked.
func (f Files) Transport() (credentials.TransportCredentials, error) {
	if f == (Files{}) {
		return nil, nil
	}
	if f.CA == "" || f.Cert == "" || f.Key == "" {
		return nil, errors.New("TLS: --ca, --cert and --key must be given together")
	}
	if _, err := f.held(); err != nil {
		return nil, err
	}
	return transport{f.held}, nil
}

func (f Files) held() (*held, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("TLS: certificate %s: %w", f.Cert, err)
	}
	roots, err := readRoots(f.CA)
	if err != nil {
		return nil, err
	}
	return &held{cert, roots}, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("TLS: %s holds no certificate", path)
	}
	return roots, nil
}

// held is the node's certificate, and the authorities that it believes.
type held struct {
	cert  tls.Certificate
	roots *x509.CertPool
}

// transport makes each connection with what is held then.
type transport struct{ get func() (*held, error) }

// ClientHandshake implements credentials.TransportCredentials.
func (t transport) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	h, err := t.get()
	if err != nil {
		return nil, nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{h.cert}, RootCAs: h.roots}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials; a shim serves nobody so.
func (t transport) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a client cannot serve")
}

// Info implements credentials.TransportCredentials.
func (t transport) Info() credentials.ProtocolInfo { return credentials.NewTLS(nil).Info() }

// Clone implements credentials.TransportCredentials.
func (t transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials; gRPC does not
// call it any more.
func (t transport) OverrideServerName(string) error {
	return errors.New("the name of a server is that of its address")
}
