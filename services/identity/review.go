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
	ErrBusy  = errors.New("too many tokens are being reviewed; try again")
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
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		return Account{}, ErrBusy
	}
	if !r.rate.Allow() {
		return Account{}, ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	got, err := r.api.AuthenticationV1().TokenReviews().Create(ctx,
		&authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}}}, metav1.CreateOptions{})
	if err != nil {
		return Account{}, fmt.Errorf("review a token: %w", err)
	}
	if !got.Status.Authenticated || !slices.Contains(got.Status.Audiences, Audience) {
		return Account{}, fmt.Errorf("%w: %s", ErrToken, orElse(got.Status.Error, "it is not valid for the audience "+Audience))
	}
	name, is := strings.CutPrefix(got.Status.User.Username, "system:serviceaccount:")
	namespace, name, found := strings.Cut(name, ":")
	if !is || !found {
		return Account{}, fmt.Errorf("%w: %s is no service account", ErrToken, got.Status.User.Username)
	}
	a := Account{Namespace: namespace, Name: name}
	if nodes := got.Status.User.Extra[nodeOfPodsToken]; len(nodes) == 1 {
		a.Node = nodes[0]
	}
	return a, nil
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
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("it is no JSON web token")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return errors.New("it is no JSON web token")
	}
	var claims struct {
		Audience audiences `json:"aud"`
		Expires  int64     `json:"exp"`
		Subject  string    `json:"sub"`
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		return errors.New("it is no JSON web token")
	}
	switch {
	case !slices.Contains(claims.Audience, Audience):
		return fmt.Errorf("it is for the audience %q, not %s", claims.Audience, Audience)
	case !strings.HasPrefix(claims.Subject, "system:serviceaccount:"):
		return errors.New("it is of no service account")
	case claims.Expires != 0 && now.Unix() > claims.Expires:
		return errors.New("it has expired")
	}
	return nil
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
