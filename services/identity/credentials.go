package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// Credentials are what a party shows its peers, and which peers it believes.
// They may change while they are used: what Server and Client return follows.
type Credentials interface {
	// Server is for a server whose callers show a certificate.
	Server() *tls.Config
	// Client is for a client of such a server, which must have a certificate for
	// the name that is dialled.
	Client() credentials.TransportCredentials
}

// Anonymous is a server's configuration for callers that show no certificate and
// speak HTTP, such as an API server that calls a webhook.
func Anonymous(c Credentials) *tls.Config {
	named := c.Server()
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		cfg, err := named.GetConfigForClient(hello)
		if err != nil {
			return nil, err
		}
		cfg = cfg.Clone()
		cfg.ClientAuth, cfg.NextProtos = tls.NoClientCert, []string{"h2", "http/1.1"}
		return cfg, nil
	}}
}

// held is a certificate with the authorities that are believed.
type held struct {
	cert  *tls.Certificate
	roots *x509.CertPool
}

var errNotYet = errors.New("this process has no certificate yet")

// configs are Credentials over whatever get returns at the time of a handshake.
type configs struct {
	get  func() (*held, error)
	auth tls.ClientAuthType
}

// Server implements Credentials.
func (c configs) Server() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		h, err := c.get()
		if err != nil {
			return nil, err
		}
		return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*h.cert}, ClientAuth: c.auth, ClientCAs: h.roots, NextProtos: []string{"h2"}}, nil
	}}
}

// Client implements Credentials.
func (c configs) Client() credentials.TransportCredentials {
	return client{c.get, credentials.NewTLS(nil).Info()}
}

// client makes each connection with what is held then.
type client struct {
	get  func() (*held, error)
	info credentials.ProtocolInfo
}

// ClientHandshake implements credentials.TransportCredentials.
func (c client) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	h, err := c.get()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*h.cert}, RootCAs: h.roots}).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials; a client has none.
func (c client) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a client cannot serve")
}

// Info implements credentials.TransportCredentials.
func (c client) Info() credentials.ProtocolInfo { return c.info }

// Clone implements credentials.TransportCredentials.
func (c client) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials, which gRPC
// does not call any more.
func (c client) OverrideServerName(string) error {
	return errors.New("the name of a server is that of its address; see grpc.WithAuthority")
}

// current is credentials that somebody renews. The zero value has none.
type current struct{ atomic.Pointer[held] }

func (c *current) get() (*held, error) {
	if h := c.Load(); h != nil {
		return h, nil
	}
	return nil, errNotYet
}

// fromFiles reads files again when they change.
type fromFiles struct {
	Files
	mu    sync.Mutex // Guards what follows.
	held  *held
	stamp [3]time.Time
}

// Credentials are those of the files, which are read again whenever they have
// changed; while they cannot be read, the former count. That they can be read now
// is checked.
func (f Files) Credentials() (Credentials, error) {
	c := &fromFiles{Files: f}
	if _, err := c.get(); err != nil {
		return nil, err
	}
	return configs{c.get, tls.RequireAndVerifyClientCert}, nil
}

func (c *fromFiles) get() (*held, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now [3]time.Time
	for i, path := range []string{c.CA, c.Cert, c.Key} {
		if info, err := os.Stat(path); err == nil {
			now[i] = info.ModTime()
		}
	}
	if c.held != nil && now == c.stamp {
		return c.held, nil
	}
	roots, pair, err := c.load()
	switch {
	case err == nil:
		c.held, c.stamp = &held{&pair, roots}, now
	case c.held == nil:
		return nil, err
	}
	return c.held, nil
}
