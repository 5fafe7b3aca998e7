package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// kubePKI issues the certificates of an API server and its clients into a folder.
type kubePKI struct {
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64 // Serial number.
}

// makeKubePKI writes the keys and certificates ca, server, admin, kubelet-client and
// service-account (a key alone), each as .crt and .key.
func makeKubePKI(dir string, server netip.Addr) error {
	p := &kubePKI{dir: dir}
	if err := p.issue("ca", &x509.Certificate{Subject: pkix.Name{CommonName: "kubernetes"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}); err != nil {
		return err
	}
	if err := p.issue("server", &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{server.AsSlice(), net.IPv4(127, 0, 0, 1), net.IPv6loopback, kubeService.AsSlice()}}); err != nil {
		return err
	}
	if err := p.issue("admin", &x509.Certificate{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err
	}
	if err := p.issue("kubelet-client", &x509.Certificate{Subject: pkix.Name{CommonName: "kube-apiserver-kubelet-client"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err
	}
	_, err := p.writeKey("service-account")
	return err
}

// issue makes a key and its certificate. The first one signs itself, and those
// after it.
func (p *kubePKI) issue(name string, c *x509.Certificate) error {
	key, err := p.writeKey(name)
	if err != nil {
		return err
	}
	p.last++
	c.SerialNumber = big.NewInt(p.last)
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(7*24*time.Hour)
	if p.ca == nil {
		p.ca, p.key = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, p.ca, &key.PublicKey, p.key)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", name, err)
	}
	return p.write(name+".crt", "CERTIFICATE", der)
}

// ClientCertificate makes a key and a certificate of the cluster's authority, for what a
// template says, as an authority does that looks at nothing.
func (k *Kube) ClientCertificate(template *x509.Certificate) (*tls.Certificate, error) {
	ca, err := tls.LoadX509KeyPair(k.CAFile(), k.path("pki", "ca.key"))
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c := *template
	c.SerialNumber, c.ExtKeyUsage = big.NewInt(time.Now().UnixNano()), []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &c, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", c.Subject.CommonName, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func (p *kubePKI) writeKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, p.write(name+".key", "EC PRIVATE KEY", der)
}

func (p *kubePKI) write(name, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(p.dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
