package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Authority signs certificates of an installation.
type Authority struct{ pair }

// parseAuthority reads what files wrote.
func parseAuthority(cert, key []byte) (*Authority, error) {
	both, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	signer, is := both.PrivateKey.(*ecdsa.PrivateKey)
	if !is || !both.Leaf.IsCA {
		return nil, errors.New("certificate authority: it is none, or its key is not of an elliptic curve")
	}
	return &Authority{pair{both.Leaf, signer}}, nil
}

// Roots are the authority alone.
func (a *Authority) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// certificate is the authority's, as PEM.
func (a *Authority) certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// own is a certificate with a new key, for this process.
func (a *Authority) own(role Role, hosts []string, lifetime time.Duration, now time.Time) (*tls.Certificate, error) {
	p, err := a.issue(request{name: string(role), uris: []*url.URL{roleURI(role)}, hosts: hosts, lifetime: lifetime}, now)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{p.cert.Raw}, PrivateKey: p.key, Leaf: p.cert}, nil
}

// Sign signs a request's key, and nothing of what the request asks for: the
// certificate says who id is, and the names of a server.
func (a *Authority) Sign(csr []byte, id Identity, hosts []string, lifetime time.Duration, now time.Time) (*x509.Certificate, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	r := request{name: id.String(), uris: id.uris(), hosts: hosts, lifetime: lifetime}
	if len(r.uris) == 0 {
		return nil, ErrNoIdentity
	}
	template, err := r.template(now)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, req.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", id, err)
	}
	return x509.ParseCertificate(der)
}

// template is the certificate that a request gets.
func (r request) template(now time.Time) (*x509.Certificate, error) {
	lifetime := r.lifetime
	if lifetime == 0 {
		lifetime = certificateLifetime
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "weir " + r.name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  r.uris,
	}
	if len(r.hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range r.hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if msgs := validation.IsDNS1123Subdomain(h); len(msgs) > 0 {
			return nil, fmt.Errorf("server %q is neither an address nor a host name", h)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return template, nil
}
