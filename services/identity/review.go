package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Audience is whom service-account tokens for us are made out to.
const Audience = "weir"

// Account is a service account of the cluster, as a token names it.
type Account struct {
	Namespace, Name string
	Node            string // Of the Pod that the token is bound to. Empty: it is bound to none.
}

// Errors of a review, besides that the cluster cannot be asked.
var (
	ErrToken = errors.New("the cluster does not take the token")
	ErrBusy  = errors.New("too much is being reviewed; try again")
)

// Reviewer asks the cluster whose a token is.
type Reviewer interface {
	// Review returns an error that wraps ErrToken or ErrBusy, or another where the
	// cluster could not be asked.
	Review(ctx context.Context, token string) (Account, error)
}

// Limits of reviews: each is a call of the API server, and whoever reaches our
// port can ask for one.
const (
	reviewsAtOnce   = 8
	reviewRate      = 50 // A second.
	reviewBurst     = 100
	reviewTimeout   = 5 * time.Second
	maxTokenBytes   = 8 << 10
	nodeOfPodsToken = "authentication.kubernetes.io/node-name" // Of the user's extra; Kubernetes 1.30 and later.
)

// tokenReviewer reviews with the TokenReview API.
type tokenReviewer struct {
	api   kubernetes.Interface
	slots chan struct{}
	rate  *rate.Limiter
}

func newTokenReviewer(api kubernetes.Interface) *tokenReviewer {
	return &tokenReviewer{api: api, slots: make(chan struct{}, reviewsAtOnce), rate: rate.NewLimiter(reviewRate, reviewBurst)}
}

// Review implements Reviewer.
func (r *tokenReviewer) Review(ctx context.Context, token string) (Account, error) {
	if err := plausible(token, time.Now()); err != nil {
		return Account{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	user, err := r.ask(ctx, token, true)
	if err != nil {
		return Account{}, err
	}
	name, is := strings.CutPrefix(user.Username, "system:serviceaccount:")
	namespace, name, found := strings.Cut(name, ":")
	if !is || !found {
		return Account{}, fmt.Errorf("%w: %s is no service account", ErrToken, user.Username)
	}
	a := Account{Namespace: namespace, Name: name}
	if nodes := user.Extra[nodeOfPodsToken]; len(nodes) == 1 {
		a.Node = nodes[0]
	}
	return a, nil
}

// ask has the cluster say whose a token is, which is made out to us, or to the API
// server itself.
func (r *tokenReviewer) ask(ctx context.Context, token string, ours bool) (authv1.UserInfo, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		return authv1.UserInfo{}, ErrBusy
	}
	if !r.rate.Allow() {
		return authv1.UserInfo{}, ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	spec := authv1.TokenReviewSpec{Token: token}
	if ours {
		spec.Audiences = []string{Audience}
	}
	got, err := r.api.AuthenticationV1().TokenReviews().Create(ctx, &authv1.TokenReview{Spec: spec}, metav1.CreateOptions{})
	switch {
	case err != nil:
		return authv1.UserInfo{}, fmt.Errorf("review a token: %w", err)
	case ours && (!got.Status.Authenticated || !slices.Contains(got.Status.Audiences, Audience)):
		return authv1.UserInfo{}, fmt.Errorf("%w: %s", ErrToken, orElse(got.Status.Error, "it is not valid for the audience "+Audience))
	case !got.Status.Authenticated || got.Status.User.Username == "":
		return authv1.UserInfo{}, fmt.Errorf("%w: %s", ErrToken, orElse(got.Status.Error, "it is not valid"))
	}
	return got.Status.User, nil
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// plausible looks at what a token says of itself, before anybody is asked: it is
// no proof of anything, but rubbish costs the API server nothing.
func plausible(token string, now time.Time) error {
	if len(token) > maxTokenBytes {
		return fmt.Errorf("it has %d bytes, at most %d", len(token), maxTokenBytes)
	}
	claims, ok := claimsOf(token)
	switch {
	case !ok:
		return errors.New("it is no JSON web token")
	case !slices.Contains(claims.Audience, Audience):
		return fmt.Errorf("it is for the audience %q, not %s", claims.Audience, Audience)
	case !strings.HasPrefix(claims.Subject, "system:serviceaccount:"):
		return errors.New("it is of no service account")
	case claims.Expires != 0 && now.Unix() > claims.Expires:
		return errors.New("it has expired")
	}
	return nil
}

// claims are what a JSON web token says of itself.
type claims struct {
	Audience audiences `json:"aud"`
	Expires  int64     `json:"exp"`
	Subject  string    `json:"sub"`
}

func claimsOf(token string) (c claims, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	return c, err == nil && json.Unmarshal(raw, &c) == nil
}

// audiences is a list, or one string, as RFC 7519, section 4.1.3 has it.
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(a))
}
