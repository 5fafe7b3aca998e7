package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/go-logr/logr/funcr"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	informers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/cert"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// APIGroup is the group of the resources that stand for what people may see. There
// are no objects of them: they are there for RBAC, and other authorizers, to grant.
const APIGroup = "weir.dev"

// The virtual resources, which are namespaced.
const (
	Inspections = "inspections" // Policies, groups, nodes, and why a connection is allowed or denied.
	Records     = "records"     // The audit record.
)

// Right is what a user wants to do.
type Right struct {
	Resource, Verb string
	// Namespaces are those of which one is to be seen. Empty: any that there is.
	Namespaces []string
}

// Errors of a review of a user, besides ErrToken, ErrBusy, and that the cluster could
// not be asked.
var (
	ErrCertificate = errors.New("the cluster's authority of client certificates has not signed it")
	ErrDenied      = errors.New("not allowed")
	ErrTooMany     = errors.New("too many Namespaces to ask about each")
)

// UsersConfig of Users.
type UsersConfig struct {
	Kubeconfig string // Empty: the service account of the Pod.
	// Namespaces are those that there are, for users who name none.
	Namespaces func() []string
	Logger     hclog.Logger
}

// Users asks the cluster who its users are, and what they may see. Answers are
// remembered for reviewAge.
type Users struct {
	cfg         UsersConfig
	api         kubernetes.Interface
	tokens      *tokenReviewer
	clock       clock.Clock
	authorities atomic.Pointer[x509.CertPool] // Of client certificates. Nil: there is none, or it has not been read.
	known       *memo[judged]                 // By a token's hash.
	rights      *memo[bool]                   // By user, right and Namespace.
}

// judged is what the cluster says of a token: whose it is, or why it does not take it.
type judged struct {
	user   User
	reason error
}

// Limits of what is asked of the API server on users' behalf, beside those of Reviewer.
// They are apart from those of parts of Weir, so that no user can keep a node out.
const (
	maxNamespaces     = 500 // That are asked about for one who names none.
	namespacesAtOnce  = 16
	accessRate        = 400 // A second.
	accessBurst       = 800
	maxTokensKnown    = 4096
	maxRightsKnown    = 1 << 16
	maxChain          = 8
	authenticated     = "system:authenticated"
	credentialID      = "authentication.kubernetes.io/credential-id"
	authoritiesSpace  = "kube-system" // Where the API server tells other servers of its authorities.
	authoritiesObject = "extension-apiserver-authentication"
	authoritiesKey    = "client-ca-file"
)

// NewUsers asks nothing of the cluster yet.
func NewUsers(cfg UsersConfig) (*Users, error) {
	api, err := newClient(cfg.Kubeconfig, accessRate, accessBurst)
	if err != nil {
		return nil, fmt.Errorf("users of the cluster: %w", err)
	}
	return newUsers(cfg, api, clock.RealClock{}), nil
}

func newUsers(cfg UsersConfig, api kubernetes.Interface, c clock.Clock) *Users {
	return &Users{cfg: cfg, api: api, tokens: newTokenReviewer(api), clock: c, known: newMemo[judged](maxTokensKnown, c), rights: newMemo[bool](maxRightsKnown, c)}
}

// Run follows which authority signs the cluster's client certificates, until the
// context ends.
func (u *Users) Run(ctx context.Context) error {
	informer := informers.NewFilteredConfigMapInformer(u.api, authoritiesSpace, 0, cache.Indexers{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, authoritiesObject).String()
	})
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    u.readAuthorities,
		UpdateFunc: func(_, o any) { u.readAuthorities(o) },
		DeleteFunc: func(any) { u.authorities.Store(nil) },
	}); err != nil {
		return fmt.Errorf("follow the authority of client certificates: %w", err)
	}
	said := "" // The reflector's goroutine's.
	if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		if errors.Is(err, io.EOF) || apierrors.IsResourceExpired(err) || err.Error() == said {
			return
		}
		said = err.Error()
		u.cfg.Logger.Warn("the authority of client certificates cannot be read; what was read counts, and it is tried again", "configmap", authoritiesSpace+"/"+authoritiesObject, "err", err)
	}); err != nil {
		return fmt.Errorf("follow the authority of client certificates: %w", err)
	}
	logger := funcr.New(func(prefix, args string) { u.cfg.Logger.Trace("informer", "of", prefix, "said", args) }, funcr.Options{})
	informer.RunWithContext(klog.NewContext(ctx, logger)) // What fails is told above.
	return ctx.Err()
}

// readAuthorities takes over what the API server believes. What cannot be read leaves
// in place what was.
func (u *Users) readAuthorities(o any) {
	m, ok := o.(*corev1.ConfigMap)
	if !ok || m.Name != authoritiesObject {
		return
	}
	text := m.Data[authoritiesKey]
	if text == "" {
		u.authorities.Store(nil)
		return
	}
	pool, err := cert.NewPoolFromBytes([]byte(text))
	if err != nil {
		u.cfg.Logger.Error("the authority of client certificates cannot be read; the former one counts", "configmap", authoritiesSpace+"/"+authoritiesObject, "err", err)
		return
	}
	u.authorities.Store(pool)
}

// Review says whose a proof is, and what of a right the user has. An error wraps
// ErrToken, ErrCertificate, ErrDenied, ErrBusy or ErrTooMany, or the cluster could not
// be asked.
func (u *Users) Review(ctx context.Context, proof Proof, want Right) (User, Scope, error) {
	user, err := u.authenticate(ctx, proof)
	if err != nil {
		return User{}, Scope{}, err
	}
	scope, err := u.authorize(ctx, user, want)
	return user, scope, err
}

func (u *Users) authenticate(ctx context.Context, proof Proof) (User, error) {
	if proof.Token == "" {
		return u.certified(proof.Certificates)
	}
	if len(proof.Token) > maxTokenBytes {
		return User{}, fmt.Errorf("%w: it has %d bytes, at most %d", ErrToken, len(proof.Token), maxTokenBytes)
	}
	sum := sha256.Sum256([]byte(proof.Token))
	j, err := u.known.get(ctx, hex.EncodeToString(sum[:]), func(ctx context.Context) (judged, error) { return u.judge(ctx, proof.Token) })
	if err != nil {
		return User{}, err
	}
	return j.user, j.reason
}

// judge has the cluster review a token, for the audience that it is made out to: ours,
// or the API server's, which is what kubeconfigs have.
func (u *Users) judge(ctx context.Context, token string) (judged, error) {
	c, _ := claimsOf(token)
	got, err := u.tokens.ask(ctx, token, slices.Contains(c.Audience, Audience))
	if errors.Is(err, ErrToken) {
		return judged{reason: err}, nil
	}
	if err != nil {
		return judged{}, err
	}
	user := User{Name: got.Username, UID: got.UID, Groups: got.Groups, Extra: make(map[string][]string, len(got.Extra))}
	for key, values := range got.Extra {
		user.Extra[key] = values
	}
	return judged{user: user}, nil
}

// certified is the user of a client certificate, as the API server reads it: the
// common name is the user's, the organizations are the groups.
func (u *Users) certified(chain [][]byte) (User, error) {
	if len(chain) == 0 {
		return User{}, fmt.Errorf("%w: none is shown", ErrCertificate)
	}
	if len(chain) > maxChain {
		return User{}, fmt.Errorf("%w: a chain of %d, at most %d", ErrCertificate, len(chain), maxChain)
	}
	opts := x509.VerifyOptions{Roots: u.authorities.Load(), Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, CurrentTime: u.clock.Now()}
	if opts.Roots == nil { // Those of the system would count.
		return User{}, fmt.Errorf("%w: the API server tells of none in ConfigMap %s/%s, or it has not been read yet; use a token", ErrCertificate, authoritiesSpace, authoritiesObject)
	}
	var leaf *x509.Certificate
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return User{}, fmt.Errorf("%w: %w", ErrCertificate, err)
		}
		if i == 0 {
			leaf = c
		} else {
			opts.Intermediates.AddCert(c)
		}
	}
	if _, err := leaf.Verify(opts); err != nil {
		return User{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if leaf.Subject.CommonName == "" {
		return User{}, fmt.Errorf("%w: it names no user", ErrCertificate)
	}
	sum := sha256.Sum256(leaf.Raw)
	return User{Name: leaf.Subject.CommonName, Groups: append(slices.Clone(leaf.Subject.Organization), authenticated),
		Extra: map[string][]string{credentialID: {"X509SHA256=" + hex.EncodeToString(sum[:])}}}, nil
}

// authorize asks for all Namespaces at once first, which is all that most who operate
// a cluster cost.
func (u *Users) authorize(ctx context.Context, user User, want Right) (Scope, error) {
	raw, err := json.Marshal(user)
	if err != nil {
		return Scope{}, fmt.Errorf("%s: %w", user, err)
	}
	sum := sha256.Sum256(raw)
	allowed := func(ctx context.Context, namespace string) (bool, error) {
		key := strings.Join([]string{hex.EncodeToString(sum[:]), want.Resource, want.Verb, namespace}, "\n")
		return u.rights.get(ctx, key, func(ctx context.Context) (bool, error) { return u.ask(ctx, user, want, namespace) })
	}
	if all, err := allowed(ctx, metav1.NamespaceAll); err != nil || all {
		return Scope{All: all}, err
	}
	names := want.Namespaces
	if len(names) == 0 {
		names = u.cfg.Namespaces()
	}
	if len(names) > maxNamespaces {
		return Scope{}, fmt.Errorf("%w: %s may not %s in all, and there are %d; name one", ErrTooMany, user, want, len(names))
	}
	may := make([]bool, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(namespacesAtOnce)
	for i, name := range names {
		group.Go(func() (err error) {
			if name != "" {
				may[i], err = allowed(ctx, name)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Scope{}, err
	}
	var granted []string
	for i, name := range names {
		if may[i] {
			granted = append(granted, name)
		}
	}
	if len(granted) == 0 {
		return Scope{}, denied(user, want)
	}
	return ScopeOf(granted...), nil
}

// String is the right in the words of RBAC.
func (r Right) String() string { return fmt.Sprintf("%s %s.%s", r.Verb, r.Resource, APIGroup) }

func denied(user User, want Right) error {
	where, grant := "any Namespace", "a RoleBinding in a Namespace, or a ClusterRoleBinding"
	if len(want.Namespaces) > 0 {
		where = "Namespace " + strings.Join(want.Namespaces, " or ")
		grant = "a RoleBinding there"
	}
	return fmt.Errorf("%w: %s may not %s in %s; it takes %s to a role with apiGroups [%s], resources [%s], verbs [%s], such as view",
		ErrDenied, user, want, where, grant, APIGroup, want.Resource, want.Verb)
}

// ask is one SubjectAccessReview.
func (u *Users) ask(ctx context.Context, user User, want Right, namespace string) (bool, error) {
	spec := authv1.SubjectAccessReviewSpec{User: user.Name, UID: user.UID, Groups: user.Groups,
		ResourceAttributes: &authv1.ResourceAttributes{Group: APIGroup, Resource: want.Resource, Verb: want.Verb, Namespace: namespace}}
	for key, values := range user.Extra {
		if spec.Extra == nil {
			spec.Extra = make(map[string]authv1.ExtraValue, len(user.Extra))
		}
		spec.Extra[key] = values
	}
	got, err := u.api.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("review access of %s: %w", user, err)
	}
	return got.Status.Allowed && !got.Status.Denied, nil
}
