package audit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leodido/go-syslog/v4/rfc5424"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// authority signs certificates for a test.
type authority struct {
	*testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{T: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", nil)
	return a
}

// sign makes NAME.crt and NAME.key.
func (a *authority) sign(name string, ip net.IP) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, signer := a.cert, a.key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		parent, signer = template, key
	}
	if ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.Fatal(err)
	}
	a.write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	return cert, key
}

func (a *authority) write(name string, data []byte) {
	a.Helper()
	if err := os.WriteFile(a.path(name), data, 0o600); err != nil {
		a.Fatal(err)
	}
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// sinksFile writes a configuration of sinks.
func sinksFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sinks.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sinkNamed is what Stats say of a sink.
func (c *collector) sinkNamed(name string) *auditv1.SinkStats {
	c.Helper()
	st, err := c.Stats(c.Context(), &auditv1.StatsRequest{})
	if err != nil {
		c.Fatal(err)
	}
	for _, s := range st.GetSinks() {
		if s.GetName() == name {
			return s
		}
	}
	c.Fatalf("no sink %s", name)
	return nil
}

// TestRsyslogTLS: rsyslogd takes records from who shows a certificate of the
// authority, and is believed by its name. The certificate is renewed while the
// collector runs: the one before it is not taken, and nothing is lost by that.
func TestRsyslogTLS(t *testing.T) {
	t.Parallel()
	daemon := rsyslogd(t)
	a, foreign := newAuthority(t), newAuthority(t)
	a.sign("siem", nil)
	foreign.sign("client", nil)
	for _, name := range []string{"client.crt", "client.key"} {
		b, err := os.ReadFile(foreign.path(name))
		if err != nil {
			t.Fatal(err)
		}
		a.write(name, b)
	}
	port := freePort(t, "tcp")
	written := startRsyslog(t, daemon, "tcp", port, fmt.Sprintf("global(DefaultNetstreamDriver=\"gtls\" DefaultNetstreamDriverCAFile=%q DefaultNetstreamDriverCertFile=%q DefaultNetstreamDriverKeyFile=%q)\n"+
		"StreamDriver.Name=\"gtls\" StreamDriver.Mode=\"1\" StreamDriver.AuthMode=\"x509/name\" PermittedPeer=[\"client\"]", a.path("ca.crt"), a.path("siem.crt"), a.path("siem.key")))
	text := fmt.Sprintf(`sinks:
- name: siem
  type: syslog
  target: tls://127.0.0.1:%[1]d
  tls: {ca: %[2]s/ca.crt, cert: %[2]s/client.crt, key: %[2]s/client.key, serverName: siem}
- name: other
  type: syslog
  target: tls://127.0.0.1:%[1]d
  tls: {ca: %[2]s/ca.crt, cert: %[2]s/client.crt, key: %[2]s/client.key}
- name: anonymous
  type: syslog
  target: tls://127.0.0.1:%[1]d
  tls: {ca: %[2]s/ca.crt, serverName: siem}
`, port, a.dir)
	c := start(t, func(c *Config) { c.Sinks = sinksFile(t, text) })
	s := c.report("n1", "b1")
	s.batch(1, allow(2), drop(7), drop(7), lossEvent(5))
	s.acked(4)
	eventually(t, "the foreign certificate to be refused", func() bool { return c.sinkNamed("siem").GetLastError() != "" })
	a.sign("client", nil)
	var lines []string
	eventually(t, "three messages", func() bool {
		b, _ := os.ReadFile(written)
		lines = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		return strings.Count(string(b), "\n") >= 3
	})
	for _, line := range lines {
		if _, err := rfc5424.NewParser().Parse([]byte(line)); err != nil {
			t.Errorf("%v: %s", err, line)
		}
	}
	eventually(t, "the cursor", func() bool { return c.sinkNamed("siem").GetCursor() == 4 && c.sinkNamed("siem").GetLastError() == "" })
	if other := c.sinkNamed("other"); other.GetCursor() != 0 || !strings.Contains(other.GetLastError(), "127.0.0.1") {
		t.Errorf("a receiver of another name is believed: %v", other)
	}
	if anonymous := c.sinkNamed("anonymous"); anonymous.GetCursor() != 0 {
		t.Errorf("without a certificate: %v", anonymous)
	}
}
