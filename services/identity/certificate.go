package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Role is what a holder may do besides speaking for a node.
type Role string

// The roles.
const (
	RolePolicyd  Role = "policyd"  // The policy service.
	RoleAuditd   Role = "auditd"   // The audit collector.
	RoleOperator Role = "operator" // Inspects and reads the record.
	RoleReader   Role = "reader"   // Reads of the record what concerns some Namespaces.
)

var roles = []Role{RolePolicyd, RoleAuditd, RoleOperator, RoleReader}

const scheme = "weir"

// Identity is who a caller is.
type Identity struct {
	Node       string // Name of the Node it speaks for. Empty: none.
	Roles      []Role
	Namespaces []string // That RoleReader is for, sorted. Of others none.
}

// Has reports whether the holder has a role.
func (i Identity) Has(r Role) bool { return slices.Contains(i.Roles, r) }

// String names the holder in logs.
func (i Identity) String() string {
	if i.Node != "" {
		return "node/" + i.Node
	}
	if len(i.Namespaces) > 0 {
		return "role/" + string(RoleReader) + " of " + strings.Join(i.Namespaces, ",")
	}
	if len(i.Roles) > 0 {
		return "role/" + string(i.Roles[0])
	}
	return "nobody"
}

// ErrNoIdentity is the error for callers without a certificate of ours.
var ErrNoIdentity = errors.New("the certificate names neither a node nor a role")

// FromCertificate reads who holds a verified certificate.
func FromCertificate(cert *x509.Certificate) (Identity, error) {
	var id Identity
	for _, u := range cert.URIs {
		if u.Scheme != scheme {
			continue
		}
		if len(u.Path) < 2 || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return Identity{}, fmt.Errorf("certificate of %q: malformed name %s", cert.Subject.CommonName, u)
		}
		name := u.Path[1:]
		switch u.Host {
		case "node":
			if id.Node != "" {
				return Identity{}, fmt.Errorf("certificate of %q names two nodes, %s and %s", cert.Subject.CommonName, id.Node, name)
			}
			id.Node = name
		case "role":
			if !slices.Contains(roles, Role(name)) {
				return Identity{}, fmt.Errorf("certificate of %q: unknown role %s", cert.Subject.CommonName, name)
			}
			id.Roles = append(id.Roles, Role(name))
		case "namespace":
			if msgs := validation.IsDNS1123Label(name); len(msgs) > 0 {
				return Identity{}, fmt.Errorf("certificate of %q: Namespace %q: %s", cert.Subject.CommonName, name, msgs[0])
			}
			id.Namespaces = append(id.Namespaces, name)
		default:
			return Identity{}, fmt.Errorf("certificate of %q: unknown name %s", cert.Subject.CommonName, u)
		}
	}
	if id.Node == "" && len(id.Roles) == 0 {
		return Identity{}, fmt.Errorf("certificate of %q: %w", cert.Subject.CommonName, ErrNoIdentity)
	}
	if err := id.checkReader(); err != nil {
		return Identity{}, fmt.Errorf("certificate of %q: %w", cert.Subject.CommonName, err)
	}
	slices.Sort(id.Namespaces)
	id.Namespaces = slices.Compact(id.Namespaces)
	return id, nil
}

// checkReader refuses what would leave open which of two rights holds.
func (i Identity) checkReader() error {
	switch reader := i.Has(RoleReader); {
	case reader && (len(i.Roles) > 1 || i.Node != ""):
		return errors.New("a reader is nothing else")
	case reader && len(i.Namespaces) == 0:
		return errors.New("a reader's needs a Namespace, weir://namespace/NAME")
	case !reader && len(i.Namespaces) > 0:
		return errors.New("it names Namespaces, which readers' alone do")
	}
	return nil
}

// NodeFromCertificate reads the node whose shim holds a verified certificate.
func NodeFromCertificate(cert *x509.Certificate) (string, error) {
	id, err := FromCertificate(cert)
	if err != nil {
		return "", err
	}
	if id.Node == "" {
		return "", fmt.Errorf("certificate of %q names no node", cert.Subject.CommonName)
	}
	return id.Node, nil
}

// FromContext reads who calls a gRPC method. Verified is false for callers over
// a connection without TLS, who have no identity.
func FromContext(ctx context.Context) (id Identity, verified bool, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, false, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Identity{}, false, nil
	}
	if len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return Identity{}, false, errors.New("the caller showed no certificate that can be verified")
	}
	id, err = FromCertificate(info.State.VerifiedChains[0][0])
	return id, err == nil, err
}

// uris name an identity in a certificate.
func (i Identity) uris() []*url.URL {
	var out []*url.URL
	if i.Node != "" {
		out = append(out, nodeURI(i.Node))
	}
	for _, r := range i.Roles {
		out = append(out, roleURI(r))
	}
	for _, ns := range i.Namespaces {
		out = append(out, &url.URL{Scheme: scheme, Host: "namespace", Path: "/" + ns})
	}
	return out
}

func nodeURI(name string) *url.URL { return &url.URL{Scheme: scheme, Host: "node", Path: "/" + name} }
func roleURI(r Role) *url.URL      { return &url.URL{Scheme: scheme, Host: "role", Path: "/" + string(r)} }
