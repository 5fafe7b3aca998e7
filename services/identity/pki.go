package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Lifetimes of what Init makes.
const (
	authorityLifetime   = 10 * 365 * 24 * time.Hour
	certificateLifetime = 2 * 365 * 24 * time.Hour
)

// InitConfig says what Init makes.
type InitConfig struct {
	Dir     string    // Made if it is absent.
	Nodes   []string  // Names of the nodes whose shims get a certificate.
	Servers []string  // Names and addresses of the servers, besides localhost, 127.0.0.1 and ::1.
	Now     time.Time // Beginning of validity, less an hour for clocks that are behind. Required.
}

// Init makes a CA and what a first installation needs: policyd, auditd,
// operator and one certificate a node (node-NAME), each with its key beside it. It returns
// the paths of what it wrote. It writes nothing if one of the files is there already.
func Init(cfg InitConfig) ([]string, error) {
	if cfg.Dir == "" {
		return nil, errors.New("make certificates: no folder given")
	}
	if cfg.Now.IsZero() {
		return nil, errors.New("make certificates: no time given")
	}
	for _, node := range cfg.Nodes {
		if msgs := validation.IsDNS1123Subdomain(node); len(msgs) > 0 {
			return nil, fmt.Errorf("make certificates: node %q: %s", node, msgs[0])
		}
	}
	a, err := newAuthority(cfg.Now)
	if err != nil {
		return nil, err
	}
	files := a.files("ca")
	hosts := append([]string{"localhost", "127.0.0.1", "::1"}, cfg.Servers...)
	requests := []request{
		{name: "policyd", uris: []*url.URL{roleURI(RolePolicyd)}, hosts: hosts},
		{name: "auditd", uris: []*url.URL{roleURI(RoleAuditd)}, hosts: hosts},
		{name: "operator", uris: []*url.URL{roleURI(RoleOperator)}},
	}
	nodes := slices.Compact(slices.Sorted(slices.Values(cfg.Nodes)))
	for _, node := range nodes {
		requests = append(requests, request{name: "node-" + node, uris: []*url.URL{nodeURI(node)}})
	}
	for _, r := range requests {
		issued, err := a.issue(r, cfg.Now)
		if err != nil {
			return nil, fmt.Errorf("make certificate %s: %w", r.name, err)
		}
		files = append(files, issued.files(r.name)...)
	}
	return write(cfg.Dir, files)
}

// ReaderConfig says what IssueReader makes.
type ReaderConfig struct {
	Dir        string   // Of the CA that Init made.
	Name       string   // Of the files, reader-NAME.
	Namespaces []string // Whose record may be read.
	Now        time.Time
}

// IssueReader makes the certificate of one who reads the record of some Namespaces.
// It returns the paths of what it wrote, and replaces nothing.
func IssueReader(cfg ReaderConfig) ([]string, error) {
	if msgs := validation.IsDNS1123Label(cfg.Name); len(msgs) > 0 {
		return nil, fmt.Errorf("make certificate of a reader: name %q: %s", cfg.Name, msgs[0])
	}
	if len(cfg.Namespaces) == 0 {
		return nil, errors.New("make certificate of a reader: no Namespace given")
	}
	for _, ns := range cfg.Namespaces {
		if msgs := validation.IsDNS1123Label(ns); len(msgs) > 0 {
			return nil, fmt.Errorf("make certificate of a reader: Namespace %q: %s", ns, msgs[0])
		}
	}
	cert, err := os.ReadFile(filepath.Join(cfg.Dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("make certificate of a reader: %w", err)
	}
	key, err := os.ReadFile(filepath.Join(cfg.Dir, "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("make certificate of a reader: %w", err)
	}
	a, err := parseAuthority(cert, key)
	if err != nil {
		return nil, err
	}
	id := Identity{Roles: []Role{RoleReader}, Namespaces: slices.Compact(slices.Sorted(slices.Values(cfg.Namespaces)))}
	name := "reader-" + cfg.Name
	issued, err := a.issue(request{name: name, uris: id.uris()}, cfg.Now)
	if err != nil {
		return nil, fmt.Errorf("make certificate %s: %w", name, err)
	}
	return write(cfg.Dir, issued.files(name))
}

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(now time.Time) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "weir CA"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return sign(template, template, key, key)
}

// request is what a certificate is to say.
type request struct {
	name  string
	uris  []*url.URL
	hosts []string // Of a server. Empty: a client.

	lifetime time.Duration // Zero: certificateLifetime.
}

func (a *pair) issue(r request, now time.Time) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := r.template(now)
	if err != nil {
		return nil, err
	}
	return sign(template, a.cert, key, a.key)
}

func sign(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (*pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &pair{cert, key}, nil
}

// serial is a random serial number of 127 bits.
func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // Never fails.
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

// file is one file to be written.
type file struct {
	name string
	text []byte
	mode os.FileMode
}

func (p *pair) files(name string) []file {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		panic("identity: a key that was just made cannot be encoded: " + err.Error())
	}
	return []file{
		{name + ".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}), 0o644},
		{name + ".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600},
	}
}

// write makes all of the files or none, and replaces none.
func write(dir string, files []file) ([]string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("make certificates: %s is there already; nothing was written", path)
		}
	}
	var written []string
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := create(path, f); err != nil {
			for _, w := range written {
				_ = os.Remove(w) // The error that counts is the first.
			}
			return nil, fmt.Errorf("make certificates: %w", err)
		}
		written = append(written, path)
	}
	return written, nil
}

func create(path string, f file) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	if _, err := out.Write(f.text); err != nil {
		_ = out.Close() // The write's error counts.
		return err
	}
	return out.Close()
}
