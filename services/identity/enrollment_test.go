package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// reviews knows tokens by heart.
type reviews map[string]Account

func (r reviews) Review(_ context.Context, token string) (Account, error) {
	switch token {
	case "busy":
		return Account{}, ErrBusy
	case "down":
		return Account{}, errors.New("connection refused")
	}
	a, ok := r[token]
	if !ok {
		return a, fmt.Errorf("%w: unknown", ErrToken)
	}
	return a, nil
}

func newRequest(t *testing.T, template *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestEnroll(t *testing.T) {
	made, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	authority := &Authority{*made}
	e, err := NewEnrollment(EnrollmentConfig{
		Authority: func() *Authority { return authority },
		Reviewer: reviews{
			"shim":     {Namespace: "weir-system", Name: "weir-shim", Node: "n1"},
			"unbound":  {Namespace: "weir-system", Name: "weir-shim"},
			"auditd":   {Namespace: "weir-system", Name: "weir-auditd", Node: "n2"},
			"operator": {Namespace: "weir-system", Name: "weir-operator"},
			"stranger": {Namespace: "shop", Name: "weir-shim", Node: "n1"},
		},
		Grants: []Grant{{Namespace: "weir-system", Name: "weir-shim", Role: RoleNode}, {Namespace: "weir-system", Name: "weir-operator", Role: RoleOperator},
			{Namespace: "weir-system", Name: "weir-auditd", Role: RoleAuditd, Hosts: []string{"weir-auditd.weir-system.svc"}}},
		Lifetime: time.Hour, Registry: prometheus.NewRegistry(), Logger: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	greedy := newRequest(t, &x509.CertificateRequest{DNSNames: []string{"weir-policyd"}, URIs: []*url.URL{nodeURI("n9"), roleURI(RolePolicyd)}})
	torn := newRequest(t, &x509.CertificateRequest{})
	torn[len(torn)-1] ^= 1
	for _, test := range []struct {
		name, token string
		csr         []byte
		want        string // Of the identity and names, or of the code behind "!".
	}{
		{"a shim", "shim", greedy, "node/n1 []"},
		{"a shim whose token is of no Pod", "unbound", greedy, "!PermissionDenied"},
		{"the collector", "auditd", greedy, "role/auditd [weir-auditd.weir-system.svc]"},
		{"an operator", "operator", greedy, "role/operator []"},
		{"an account of that name in another Namespace", "stranger", greedy, "!PermissionDenied"},
		{"a token that the cluster does not take", "rubbish", greedy, "!Unauthenticated"},
		{"too many at once", "busy", greedy, "!ResourceExhausted"},
		{"no cluster", "down", greedy, "!Unavailable"},
		{"no token", "", greedy, "!InvalidArgument"},
		{"no request", "shim", nil, "!InvalidArgument"},
		{"a request that is none", "shim", []byte("abc"), "!InvalidArgument"},
		{"a request with another's signature", "shim", torn, "!InvalidArgument"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, err := e.Enroll(t.Context(), &policyv1.EnrollRequest{Token: test.token, Csr: test.csr})
			if code, fails := strings.CutPrefix(test.want, "!"); fails {
				if status.Code(err).String() != code {
					t.Errorf("got %v, want %s", err, code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(resp.GetCertificate())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cert.Verify(x509.VerifyOptions{Roots: authority.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
			id, err := FromCertificate(cert)
			if got := fmt.Sprint(id, " ", cert.DNSNames); err != nil || got != test.want {
				t.Errorf("the certificate says %s, %v, want %s", got, err, test.want)
			}
			if left := time.Until(cert.NotAfter); left > time.Hour || left < 59*time.Minute || resp.GetNotAfter() != cert.NotAfter.Unix() {
				t.Errorf("good for %v, until %d", left, resp.GetNotAfter())
			}
			serves := len(cert.ExtKeyUsage) == 2
			if want := test.token == "auditd"; serves != want {
				t.Errorf("good for a server: %v", serves)
			}
		})
	}
	authority = nil
	if _, err := e.Enroll(t.Context(), &policyv1.EnrollRequest{Token: "shim", Csr: greedy}); status.Code(err) != codes.Unavailable {
		t.Errorf("before there is an authority: %v", err)
	}
}

func TestParseGrant(t *testing.T) {
	for text, ok := range map[string]bool{
		"node=a/b": true, "auditd=a/b,host,10.0.0.1": true, "operator=a/b": true, "reader=a/b,shop,web": true,
		"reader=a/b": false, "reader=a/b,": false, "reader=a/b,Shop": false, "reader=a/b,*": false, "operator=a/b,shop": false,
		"policyd=a/b": false, "node=a": false, "node=/b": false, "node": false, "node=a/b,host": false, "": false,
	} {
		if _, err := ParseGrant(text); (err == nil) != ok {
			t.Errorf("ParseGrant(%q): %v", text, err)
		}
	}
}

// Rubbish is found out without asking anybody.
func TestPlausible(t *testing.T) {
	now := time.Unix(1000, 0)
	token := func(claims map[string]any) string {
		raw, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		return "e30." + base64.RawURLEncoding.EncodeToString(raw) + ".sig"
	}
	good := map[string]any{"aud": []string{"other", Audience}, "sub": "system:serviceaccount:a:b", "exp": 1001}
	with := func(key string, value any) string {
		claims := map[string]any{}
		for k, v := range good {
			claims[k] = v
		}
		claims[key] = value
		return token(claims)
	}
	for _, test := range []struct {
		name, token string
		ok          bool
	}{
		{"a good one", token(good), true},
		{"its audience as one string", with("aud", Audience), true},
		{"that never expires", with("exp", 0), true},
		{"for another audience", with("aud", []string{"other"}), false},
		{"without an audience", with("aud", nil), false},
		{"of a user", with("sub", "jane"), false},
		{"that has expired", with("exp", 999), false},
		{"no token", "abc", false},
		{"three parts of nothing", "..", false},
		{"parts that are no JSON", "a.YQ.c", false},
		{"parts that are no base64", "a.?.c", false},
		{"a long one", token(good) + strings.Repeat("x", maxTokenBytes), false},
	} {
		if err := plausible(test.token, now); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
