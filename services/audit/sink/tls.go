package sink

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

// TLSFiles say how a receiver is believed, and what is shown to it. The files are
// read for each handshake, so that renewed certificates need no restart.
type TLSFiles struct {
	CA         string `json:"ca,omitempty"`         // PEM. Empty: the system's authorities.
	Cert       string `json:"cert,omitempty"`       // PEM. Empty: none is shown.
	Key        string `json:"key,omitempty"`        // PEM, of Cert.
	ServerName string `json:"serverName,omitempty"` // That the receiver's certificate must be for. Empty: the host that is dialled.
}

// Check reads the files once, so that what is wrong is told at start.
func (t *TLSFiles) Check() error {
	_, err := t.config("")
	return err
}

// config is for one handshake with a host.
func (t *TLSFiles) config(host string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.ServerName != "" {
		cfg.ServerName = t.ServerName
	}
	if (t.Cert == "") != (t.Key == "") {
		return nil, errors.New("tls: cert and key belong together")
	}
	if t.CA != "" {
		roots, err := readCA(t.CA)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = roots
	}
	if t.Cert != "" {
		pair, err := t.pair()
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func readCA(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tls: ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls: ca: %s has no certificate", path)
	}
	return roots, nil
}

func (t *TLSFiles) pair() (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return pair, fmt.Errorf("tls: cert and key: %w", err)
	}
	return pair, nil
}

// handshake makes a connection one of TLS.
func (t *TLSFiles) handshake(ctx context.Context, conn net.Conn, address string, protocols ...string) (*tls.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	cfg, err := t.config(host)
	if err != nil {
		return nil, err
	}
	cfg.NextProtos = protocols
	over := tls.Client(conn, cfg)
	return over, over.HandshakeContext(ctx)
}

// grpcTLS are credentials of gRPC over TLSFiles.
type grpcTLS struct {
	credentials.TransportCredentials // For what does not depend on the files.
	files                            *TLSFiles
}

func newGRPCTLS(files *TLSFiles) credentials.TransportCredentials {
	return grpcTLS{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), files}
}

// ClientHandshake implements credentials.TransportCredentials.
func (g grpcTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := g.files.config("")
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (g grpcTLS) Clone() credentials.TransportCredentials { return g }
