package identity

import (
	"context"
	"crypto/ecdsa"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// EnrollFilesConfig says where EnrollFiles gets a certificate, and where to.
type EnrollFilesConfig struct {
	Server string // host:port of the policy service.
	CA     string // File of its authority, PEM.
	Token  string
	Dir    string // Made if it is absent.
}

// EnrollFiles gets a certificate by a token and writes it as Init does, under the
// name of its role or node-NAME, with the authority as ca.crt. It returns the
// paths of what it wrote. What an earlier call wrote is replaced.
func EnrollFiles(ctx context.Context, cfg EnrollFilesConfig) ([]string, error) {
	roots, err := readRoots(cfg.CA)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	got, err := Enroll(ctx, cfg.Server, roots, cfg.Token)
	if err != nil {
		return nil, err
	}
	id, err := FromCertificate(got.Leaf)
	if err != nil {
		return nil, fmt.Errorf("policy service %s: %w", cfg.Server, err)
	}
	key, is := got.PrivateKey.(*ecdsa.PrivateKey)
	if !is {
		return nil, errors.New("enroll: the key is not of an elliptic curve")
	}
	name := "node-" + id.Node
	if id.Node == "" {
		name = string(id.Roles[0])
	}
	if strings.ContainsRune(name, os.PathSeparator) {
		return nil, fmt.Errorf("policy service %s: the certificate is for %q", cfg.Server, name)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	var written []string
	for _, f := range append((&pair{got.Leaf, key}).files(name), file{"ca.crt", reencode(ca), 0o644}) {
		path := filepath.Join(cfg.Dir, f.name)
		if err := replace(path, f); err != nil {
			return written, fmt.Errorf("enroll: %w", err)
		}
		written = append(written, path)
	}
	return written, nil
}

// reencode is the certificates of a PEM text, and nothing else of it.
func reencode(text []byte) (out []byte) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return out
		}
		if b.Type == "CERTIFICATE" {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: b.Type, Bytes: b.Bytes})...)
		}
	}
}

// replace puts a whole file in the place of another.
func replace(path string, f file) error {
	_ = os.Remove(path + ".new") // Of a call that was interrupted.
	if err := create(path+".new", f); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
