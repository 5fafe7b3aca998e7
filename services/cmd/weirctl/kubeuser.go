package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"k8s.io/client-go/rest"
)

// kubeUser is the user of a kubeconfig, as Weir's services are shown it: by the
// bearer token with each call (credentials.PerRPCCredentials), by the client
// certificate with each connection. Tokens of files and of plugins are renewed when
// they end.
type kubeUser struct {
	sign http.RoundTripper // Returns the request that it is given, as the API server would get it.
	// certificate is that of tls.Config; nil where the user has none.
	certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
}

// newKubeUser reads the user of a kubeconfig, and runs its plugin if it has one.
func newKubeUser(ctx context.Context, config *rest.Config) (*kubeUser, error) {
	if i := config.Impersonate; i.UserName != "" || i.UID != "" || len(i.Groups) > 0 || len(i.Extra) > 0 {
		return nil, errors.New("kubeconfig: the user impersonates another, which Weir does not know of: leave that out of the context")
	}
	sign, err := rest.HTTPWrappersForConfig(config, echo{})
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	u := &kubeUser{sign: sign}
	token, err := u.authorization(ctx)
	if err != nil {
		return nil, err
	}
	if err := u.readCertificate(config); err != nil {
		return nil, fmt.Errorf("kubeconfig: client certificate: %w", err)
	}
	if token == "" && u.certificate == nil {
		return nil, errors.New("kubeconfig: the user has neither a token nor a client certificate by which Weir could know it: give --cert and --key")
	}
	return u, nil
}

func (u *kubeUser) readCertificate(config *rest.Config) error {
	c, err := rest.TLSConfigFor(config)
	if err != nil || c == nil || c.GetClientCertificate == nil {
		return err
	}
	cert, err := c.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err == nil && len(cert.Certificate) > 0 { // A plugin may have given none.
		u.certificate = c.GetClientCertificate
	}
	return err
}

// echo answers a request with itself.
type echo struct{}

// RoundTrip implements http.RoundTripper.
func (echo) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: make(http.Header), Body: http.NoBody, Request: r}, nil
}

// authorization is the header of that name; empty where the user has no token.
func (u *kubeUser) authorization(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://kubernetes", nil)
	if err != nil {
		return "", err
	}
	resp, err := u.sign.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("kubeconfig: token: %w", err)
	}
	header := resp.Request.Header.Get("Authorization")
	if header != "" && !strings.HasPrefix(header, "Bearer ") {
		return "", errors.New("kubeconfig: the user has a password, which Weir does not take: give it a token or a client certificate")
	}
	return header, nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (u *kubeUser) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	header, err := u.authorization(ctx)
	if err != nil || header == "" {
		return nil, err
	}
	return map[string]string{"authorization": header}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*kubeUser) RequireTransportSecurity() bool { return true }
