package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// WithUsers are the transport credentials of a server that parts of Weir call, with a
// certificate of ours, and users of the cluster, with another one or none. A
// certificate of ours that does not hold ends the handshake, as it does elsewhere.
// One of an authority that is not ours has no verified chain afterwards: for
// FromContext its holder is nobody, whatever names it has, and ProofFromContext has it
// for who can judge it.
func WithUsers(c Credentials) credentials.TransportCredentials {
	return admitting{c, credentials.NewTLS(nil).Info()}
}

type admitting struct {
	own  Credentials
	info credentials.ProtocolInfo
}

// ServerHandshake implements credentials.TransportCredentials.
func (a admitting) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	own, err := a.own.Server().GetConfigForClient(nil)
	if err != nil {
		return nil, nil, err
	}
	roots := own.ClientCAs
	var chains [][]*x509.Certificate
	cfg := own.Clone()
	// No authority is named to the caller: clients would keep a certificate of another
	// one back.
	cfg.ClientAuth, cfg.ClientCAs = tls.RequestClientCert, nil
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		var err error
		chains, err = verifyOwn(state.PeerCertificates, roots)
		return err
	}
	conn, info, err := credentials.NewTLS(cfg).ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	verified, ok := info.(credentials.TLSInfo)
	if !ok {
		conn.Close()
		return nil, nil, errors.New("a handshake without TLS")
	}
	verified.State.VerifiedChains = chains
	return conn, verified, nil
}

// verifyOwn verifies a caller's certificate by our authorities. One that is not
// signed by them has no chain; one that is and does not hold is an error.
func verifyOwn(shown []*x509.Certificate, roots *x509.CertPool) ([][]*x509.Certificate, error) {
	if len(shown) == 0 {
		return nil, nil
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range shown[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := shown[0].Verify(opts)
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return nil, nil
	}
	return chains, err
}

// ClientHandshake implements credentials.TransportCredentials; a server has none.
func (a admitting) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of a server cannot dial")
}

// Info implements credentials.TransportCredentials.
func (a admitting) Info() credentials.ProtocolInfo { return a.info }

// Clone implements credentials.TransportCredentials.
func (a admitting) Clone() credentials.TransportCredentials { return a }

// OverrideServerName implements credentials.TransportCredentials, which gRPC
// does not call any more.
func (a admitting) OverrideServerName(string) error {
	return errors.New("credentials of a server name nobody")
}
