package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testingclock "k8s.io/utils/clock/testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// apiServer knows tokens and grants rights, and counts what it was asked.
type apiServer struct {
	*fake.Clientset
	mu      sync.Mutex           // Guards what follows.
	tokens  map[string][2]string // User by token, and its audience; empty: the API server's own.
	grants  map[string]bool      // "USER VERB RESOURCE NAMESPACE"; a group counts as a user.
	reviews []string
	down    bool
}

func newAPIServer(objects ...runtime.Object) *apiServer {
	s := &apiServer{Clientset: fake.NewClientset(objects...), tokens: make(map[string][2]string), grants: make(map[string]bool)}
	s.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		s.reviews = append(s.reviews, "token")
		if s.down {
			return true, nil, errors.New("down")
		}
		t, known := s.tokens[r.Spec.Token]
		if known && (t[1] == "" && len(r.Spec.Audiences) == 0 || slices.Contains(r.Spec.Audiences, t[1])) {
			r.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: r.Spec.Audiences, User: authenticationv1.UserInfo{Username: t[0], Groups: []string{"system:authenticated"}}}
		}
		return true, r, nil
	})
	s.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		r := a.(clienttesting.CreateAction).GetObject().(*authv1.SubjectAccessReview)
		at := r.Spec.ResourceAttributes
		for _, who := range append([]string{r.Spec.User}, r.Spec.Groups...) {
			what := fmt.Sprintf("%s %s %s.%s ", who, at.Verb, at.Resource, at.Group)
			r.Status.Allowed = r.Status.Allowed || s.grants[what+at.Namespace] || s.grants[what]
		}
		s.reviews = append(s.reviews, "access in "+at.Namespace)
		return true, r, nil
	})
	return s
}

func (s *apiServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// asked is what was asked since the last time, in order.
func (s *apiServer) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.reviews
	s.reviews = nil
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// jwt is a token that says an audience of itself, and proves nothing.
func jwt(audience string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"aud": [%q], "sub": "system:serviceaccount:a:b"}`, audience)) + ".sig"
}

func usersOf(api *apiServer, namespaces ...string) (*Users, *testingclock.FakeClock) {
	c := testingclock.NewFakeClock(time.Now())
	return newUsers(UsersConfig{Namespaces: func() []string { return namespaces }, Logger: hclog.NewNullLogger()}, api, c), c
}

var listInspections = Right{Resource: Inspections, Verb: "list"}

func TestReviewOfUsers(t *testing.T) {
	api := newAPIServer()
	ours := jwt(Audience)
	api.tokens = map[string][2]string{"opaque": {"alice", ""}, ours: {"system:serviceaccount:a:b", Audience}, "chief": {"chief", ""}}
	api.grants = map[string]bool{"alice list inspections.weir.dev shop": true, "alice list inspections.weir.dev web": true, "chief list inspections.weir.dev ": true,
		"system:serviceaccount:a:b list inspections.weir.dev shop": true}
	u, _ := usersOf(api, "bank", "shop", "web")
	many := make([]string, maxNamespaces+1)
	for i := range many {
		many[i] = fmt.Sprint("ns-", i)
	}
	for _, tt := range []struct {
		name, token string
		namespaces  []string
		sees        string
		err         error
		says, asks  string
	}{
		{name: "of those that there are", token: "opaque", sees: "shop web", asks: "access in , access in bank, access in shop, access in web, token"},
		{name: "again, from memory", token: "opaque", sees: "shop web"},
		{name: "of one that is named", token: "opaque", namespaces: []string{"shop"}, sees: "shop"},
		{name: "of one that is not granted", token: "opaque", namespaces: []string{"bank"}, err: ErrDenied, says: "alice may not list inspections.weir.dev in Namespace bank"},
		{name: "of all", token: "chief", sees: "all", asks: "access in , token"},
		{name: "of all, and one is named", token: "chief", namespaces: []string{"bank"}, sees: "all"},
		{name: "a token for us", token: ours, namespaces: []string{"shop"}, sees: "shop", asks: "access in , access in shop, token"},
		{name: "a token that says that it is for us", token: jwt(Audience) + "x", err: ErrToken, asks: "token"},
		{name: "unknown", token: "unknown", err: ErrToken, says: "does not take the token", asks: "token"},
		{name: "unknown, again", token: "unknown", err: ErrToken},
		{name: "too long", token: strings.Repeat("x", maxTokenBytes+1), err: ErrToken},
		{name: "too many Namespaces", token: "opaque", namespaces: many, err: ErrTooMany, says: "name one"},
		{name: "nothing", err: ErrCertificate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := listInspections
			want.Namespaces = tt.namespaces
			_, scope, err := u.Review(t.Context(), Proof{Token: tt.token}, want)
			if !errors.Is(err, tt.err) || tt.says != "" && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %v", err, tt.err)
			}
			var sees []string
			for _, ns := range []string{"bank", "shop", "web"} {
				if !scope.All && scope.Sees(ns) {
					sees = append(sees, ns)
				}
			}
			if scope.All {
				sees = []string{"all"}
			}
			if got := strings.Join(sees, " "); got != tt.sees {
				t.Errorf("sees %q, want %q", got, tt.sees)
			}
			if scope.Sees("") != scope.All {
				t.Error("what is of no Namespace is for who sees all")
			}
			if asked := api.asked(); asked != tt.asks {
				t.Errorf("the API server was asked %q, want %q", asked, tt.asks)
			}
		})
	}
	if _, _, err := u.Review(t.Context(), Proof{Token: "opaque"}, Right{Resource: Records, Verb: "list"}); !errors.Is(err, ErrDenied) ||
		!strings.Contains(err.Error(), "apiGroups [weir.dev], resources [records], verbs [list]") {
		t.Errorf("another resource: %v", err)
	}
}

// TestReviewsAreRemembered: for ten seconds, and not where the cluster could not be
// asked.
func TestReviewsAreRemembered(t *testing.T) {
	api := newAPIServer()
	api.tokens["opaque"] = [2]string{"alice", ""}
	api.grants["alice list inspections.weir.dev shop"] = true
	u, c := usersOf(api, "shop")
	review := func() error {
		_, _, err := u.Review(t.Context(), Proof{Token: "opaque"}, listInspections)
		return err
	}
	api.set(func() { api.down = true })
	if err := review(); err == nil || errors.Is(err, ErrToken) {
		t.Errorf("without an API server: %v", err)
	}
	api.set(func() { api.down = false })
	if err := review(); err != nil {
		t.Error(err)
	}
	api.set(func() { api.grants = nil })
	c.Step(reviewAge - time.Second)
	if err := review(); err != nil {
		t.Errorf("an answer that is not old: %v", err)
	}
	c.Step(2 * time.Second)
	if err := review(); !errors.Is(err, ErrDenied) {
		t.Errorf("a right that was revoked: %v", err)
	}
	api.set(func() { api.tokens = nil })
	c.Step(reviewAge + time.Second)
	if err := review(); !errors.Is(err, ErrToken) {
		t.Errorf("a token that was revoked: %v", err)
	}
}

func TestMemoIsBounded(t *testing.T) {
	m := newMemo[int](3, testingclock.NewFakeClock(time.Now()))
	asked := 0
	for _, key := range []string{"a", "b", "c", "d", "d", "b", "a"} {
		if _, err := m.get(t.Context(), key, func(context.Context) (int, error) { asked++; return 0, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 5 || len(m.answers.Keys()) != 3 {
		t.Errorf("asked %d times, %d are kept", asked, len(m.answers.Keys()))
	}
}

// clusterCA signs client certificates as the authority of a cluster does, with
// whatever names are asked for.
type clusterCA struct {
	*testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newClusterCA(t *testing.T, name string) *clusterCA {
	ca := &clusterCA{T: t}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	pair := ca.issue(template)
	ca.cert, ca.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return ca
}

func (ca *clusterCA) issue(template *x509.Certificate) *tls.Certificate {
	ca.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.Fatal(err)
	}
	template.SerialNumber = serial()
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if ca.cert != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		ca.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (ca *clusterCA) client(user string, groups ...string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: user, Organization: groups}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

func (ca *clusterCA) configMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: authoritiesSpace, Name: authoritiesObject},
		Data: map[string]string{authoritiesKey: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))}}
}

func TestClientCertificatesOfTheCluster(t *testing.T) {
	first, second := newClusterCA(t, "kubernetes"), newClusterCA(t, "kubernetes")
	api := newAPIServer(first.configMap())
	api.grants = map[string]bool{"alice list inspections.weir.dev shop": true, "team list inspections.weir.dev web": true, "system:authenticated list inspections.weir.dev all": true}
	u, _ := usersOf(api, "shop", "web", "all")
	before := first.issue(first.client("alice"))
	if _, err := u.certified(before.Certificate); !errors.Is(err, ErrCertificate) || !strings.Contains(err.Error(), "use a token") {
		t.Errorf("before the authority is read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- u.Run(ctx) }()
	defer func() { cancel(); <-ran }()
	read := func(ca *clusterCA) {
		t.Helper()
		cert := ca.issue(ca.client("probe"))
		for deadline := time.Now().Add(10 * time.Second); ; {
			_, err := u.certified(cert.Certificate)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	read(first)
	expired, server := first.client("alice"), first.client("alice")
	expired.NotAfter = time.Now().Add(-time.Minute)
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, tt := range []struct {
		name string
		cert *tls.Certificate
		sees string
		err  error
	}{
		{"a user", before, "shop all", nil},
		{"a group", first.issue(first.client("bob", "team")), "web all", nil},
		{"of no name", first.issue(first.client("", "team")), "", ErrCertificate},
		{"expired", first.issue(expired), "", ErrCertificate},
		{"a server's", first.issue(server), "", ErrCertificate},
		{"of another authority of the same name", second.issue(second.client("alice")), "", ErrCertificate},
	} {
		_, scope, err := u.Review(t.Context(), Proof{Certificates: tt.cert.Certificate}, listInspections)
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		var sees []string
		for _, ns := range []string{"shop", "web", "all"} {
			if scope.Sees(ns) {
				sees = append(sees, ns)
			}
		}
		if strings.Join(sees, " ") != tt.sees {
			t.Errorf("%s sees %q, want %q", tt.name, sees, tt.sees)
		}
	}
	// Another authority takes its place; what cannot be read does not.
	broken := second.configMap()
	broken.Data[authoritiesKey] = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
	u.readAuthorities(broken)
	if _, err := u.certified(before.Certificate); err != nil {
		t.Errorf("after an authority that cannot be read: %v", err)
	}
	if _, err := api.CoreV1().ConfigMaps(authoritiesSpace).Update(t.Context(), second.configMap(), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	read(second)
	if _, err := u.certified(before.Certificate); !errors.Is(err, ErrCertificate) {
		t.Errorf("of the former authority: %v", err)
	}
}

// TestNobodyPosesAsAPart: a certificate of ours is as good as ever; whoever has one of
// another authority, with whatever names, or none, is no part of Weir.
func TestNobodyPosesAsAPart(t *testing.T) {
	dir := initPKI(t)
	ca := newClusterCA(t, "weir CA")
	var id Identity
	var verified bool
	var idErr, proofErr error
	var proof Proof
	s := grpc.NewServer(grpc.Creds(WithUsers(credentialsOf(t, files(dir, "policyd")))), grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		id, verified, idErr = FromContext(ctx)
		proof, proofErr = ProofFromContext(ctx)
		return h(ctx, req)
	}))
	addr := serveOn(t, s)
	roots, err := readRoots(files(dir, "").CA)
	if err != nil {
		t.Fatal(err)
	}
	with := func(cert *tls.Certificate) credentials.TransportCredentials {
		cfg := &tls.Config{RootCAs: roots}
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		return credentials.NewTLS(cfg)
	}
	if err := call(t, addr, credentialsOf(t, files(dir, "node-n1")).Client()); err != nil || !verified || id.Node != "n1" || idErr != nil {
		t.Fatalf("a node is %v, %v, %v: %v", id, verified, idErr, err)
	}
	posing := ca.client("weir node/n1", "weir node/n1")
	for _, name := range []string{"weir://node/n1", "weir://role/operator", "weir://role/policyd", "weir://role/auditd"} {
		uri, err := url.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		posing.URIs = append(posing.URIs[:0], uri)
		cert := ca.issue(posing)
		if err := call(t, addr, with(cert)); err != nil {
			t.Fatal(err)
		}
		if verified || idErr == nil || id.Node != "" || len(id.Roles) > 0 {
			t.Errorf("with %s: %v, %v, %v", name, id, verified, idErr)
		}
		if proofErr != nil || len(proof.Certificates) != 1 || !slices.Equal(proof.Certificates[0], cert.Certificate[0]) {
			t.Errorf("with %s, the proof is %v, %v", name, proof, proofErr)
		}
	}
	if err := call(t, addr, with(nil)); err != nil || verified || idErr == nil || !errors.Is(proofErr, ErrNoProof) {
		t.Errorf("without a certificate: %v, %v, %v, %v", verified, idErr, proofErr, err)
	}
	// One of ours that does not hold any more ends the handshake.
	authority := func() *Authority {
		pair, err := tls.LoadX509KeyPair(files(dir, "ca").Cert, files(dir, "ca").Key)
		if err != nil {
			t.Fatal(err)
		}
		return &Authority{pairOf(t, pair)}
	}()
	past, err := authority.own(RoleOperator, nil, time.Minute, time.Now().Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := call(t, addr, with(past)); err == nil {
		t.Error("an expired certificate of ours is let in")
	}
}

func pairOf(t *testing.T, p tls.Certificate) pair {
	key, ok := p.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("another sort of key")
	}
	return pair{p.Leaf, key}
}

func TestProofFromContext(t *testing.T) {
	for header, want := range map[string]string{"Bearer abc": "abc", "bearer  abc": "abc", "Basic abc": "error", "Bearer": "error", "abc": "error"} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", header))
		proof, err := ProofFromContext(ctx)
		if got := proof.Token; (err != nil) != (want == "error") || err == nil && got != want {
			t.Errorf("%q: %q, %v", header, got, err)
		}
	}
	if _, err := ProofFromContext(metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer a", "authorization", "Bearer b"))); err == nil {
		t.Error("two tokens are taken")
	}
}

// TestAccess: the collector alone may ask what others may see.
func TestAccess(t *testing.T) {
	api := newAPIServer()
	api.tokens["opaque"] = [2]string{"alice", ""}
	api.grants = map[string]bool{"alice watch records.weir.dev web": true, "alice watch records.weir.dev shop": true}
	u, _ := usersOf(api, "web", "shop", "bank")
	as := func(names ...string) context.Context {
		cert := &x509.Certificate{}
		for _, n := range names {
			uri, err := url.Parse(n)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, uri)
		}
		info := credentials.TLSInfo{}
		if len(names) > 0 {
			info.State.VerifiedChains = [][]*x509.Certificate{{cert}}
		}
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info})
	}
	for _, tt := range []struct {
		name string
		ctx  context.Context
		req  *policyv1.ReviewRequest
		of   *Users
		code codes.Code
		want string
	}{
		{"the collector", as("weir://role/auditd"), &policyv1.ReviewRequest{Token: "opaque", Resource: Records, Verb: "watch"}, u, codes.OK, "alice false [shop web]"},
		{"an operator", as("weir://role/operator"), &policyv1.ReviewRequest{Token: "opaque", Resource: Records, Verb: "watch"}, u, codes.PermissionDenied, ""},
		{"a node", as("weir://node/n1"), &policyv1.ReviewRequest{Token: "opaque", Resource: Records, Verb: "watch"}, u, codes.PermissionDenied, ""},
		{"nobody", as(), &policyv1.ReviewRequest{Token: "opaque", Resource: Records, Verb: "watch"}, u, codes.Unauthenticated, ""},
		{"another verb", as("weir://role/auditd"), &policyv1.ReviewRequest{Token: "opaque", Resource: Records, Verb: "list"}, u, codes.PermissionDenied, ""},
		{"another token", as("weir://role/auditd"), &policyv1.ReviewRequest{Token: "no", Resource: Records, Verb: "list"}, u, codes.Unauthenticated, ""},
		{"no verb", as("weir://role/auditd"), &policyv1.ReviewRequest{Token: "opaque", Resource: Records}, u, codes.InvalidArgument, ""},
		{"of a folder", as("weir://role/auditd"), &policyv1.ReviewRequest{Token: "opaque", Resource: Records, Verb: "watch"}, nil, codes.FailedPrecondition, ""},
	} {
		resp, err := NewAccess(tt.of).Review(tt.ctx, tt.req)
		if got := status.Code(err); got != tt.code || err == nil && fmt.Sprint(resp.GetUser(), " ", resp.GetAll(), " ", resp.GetNamespaces()) != tt.want {
			t.Errorf("%s: %v, %v", tt.name, resp, err)
		}
	}
}
