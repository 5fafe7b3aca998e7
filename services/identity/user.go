package identity

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// User is a person or an account of the cluster, as its API server knows it. A
// user is never a part of Weir, whatever the name.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// String names the user in logs.
func (u User) String() string { return "user " + u.Name }

// Proof is what a caller who is no part of Weir shows of itself: either a token or
// a certificate, which nobody has judged yet.
type Proof struct {
	Token string // Of the metadata, "authorization: Bearer TOKEN".
	// Certificates are DER, first the caller's, which has proven to hold its key.
	Certificates [][]byte
}

// ErrNoProof is the error for callers that show nothing.
var ErrNoProof = errors.New("the caller shows neither a certificate nor a bearer token")

// ProofFromContext reads what a caller shows who has no certificate of ours. A token
// counts before a certificate.
func ProofFromContext(ctx context.Context) (Proof, error) {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		switch values := md.Get("authorization"); {
		case len(values) > 1:
			return Proof{}, errors.New("authorization: it is given more than once")
		case len(values) == 1:
			scheme, token, _ := strings.Cut(values[0], " ")
			if token = strings.TrimSpace(token); !strings.EqualFold(scheme, "bearer") || token == "" {
				return Proof{}, errors.New("authorization: write Bearer TOKEN")
			}
			return Proof{Token: token}, nil
		}
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			var proof Proof
			for _, c := range info.State.PeerCertificates {
				proof.Certificates = append(proof.Certificates, c.Raw)
			}
			return proof, nil
		}
	}
	return Proof{}, ErrNoProof
}

// Scope is what somebody may see: everything, or what is of some Namespaces. The
// zero Scope sees nothing. It is immutable.
type Scope struct {
	All        bool
	namespaces map[string]bool
}

// ScopeOf is the Scope of some Namespaces.
func ScopeOf(namespaces ...string) Scope {
	s := Scope{namespaces: make(map[string]bool, len(namespaces))}
	for _, n := range namespaces {
		s.namespaces[n] = true
	}
	return s
}

// Sees says whether what is of a Namespace may be seen. What is of none is seen by
// who sees all.
func (s Scope) Sees(namespace string) bool { return s.All || s.namespaces[namespace] }
