package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Files are the paths of the PEM files of one party.
type Files struct {
	CA   string // Certificates of the authorities that are trusted.
	Cert string // The party's own certificate.
	Key  string // Its private key.
}

// Set reports whether TLS is asked for.
func (f Files) Set() bool { return f.CA != "" || f.Cert != "" || f.Key != "" }

func (f Files) load() (*x509.CertPool, tls.Certificate, error) {
	if f.CA == "" || f.Cert == "" || f.Key == "" {
		return nil, tls.Certificate{}, errors.New("mutual TLS needs a CA, a certificate and a key")
	}
	pool, err := readRoots(f.CA)
	if err != nil {
		return nil, tls.Certificate{}, err
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, tls.Certificate{}, fmt.Errorf("read certificate and key: %w", err)
	}
	return pool, pair, nil
}

// ServerTLS is the configuration of a server that takes callers with a
// certificate of the CA alone.
func ServerTLS(f Files) (*tls.Config, error) {
	c, err := f.Credentials()
	if err != nil {
		return nil, err
	}
	return c.Server(), nil
}

// ClientTLS is the configuration of a client. The server must have a
// certificate of the CA for the name that is dialled.
func ClientTLS(f Files) (*tls.Config, error) {
	pool, pair, err := f.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
	}, nil
}

// CheckListen refuses to serve beyond loopback without TLS, unless the
// operator says insecure. The same holds for dialling.
func CheckListen(addr string, withTLS, insecure bool) error {
	if withTLS || insecure || Loopback(addr) {
		return nil
	}
	return fmt.Errorf("%s is beyond loopback: give a CA, a certificate and a key (weirctl pki init makes them), or say --insecure", addr)
}

// Loopback reports whether an address, "HOST:PORT" or "unix:PATH", stays on
// this machine. A name counts only if it is localhost.
func Loopback(addr string) bool {
	if len(addr) > 5 && addr[:5] == "unix:" {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Where the services listen, and where weirctl looks for them, unless told otherwise.
const (
	DefaultPolicyAddress = "127.0.0.1:9740"
	DefaultAuditAddress  = "127.0.0.1:9741"
)
