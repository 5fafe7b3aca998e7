package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ClusterConfig is for a policy service whose certificates are the cluster's.
type ClusterConfig struct {
	Kubeconfig string // Empty: the service account of the Pod.
	Namespace  string // Of the Secret and the ConfigMap below, which are there already.
	// Trust is a file of further authorities whose clients are believed: the
	// user's own. Empty: none.
	Trust    string
	Hosts    []string // Names and addresses by which the service is reached.
	Lifetime time.Duration
	Logger   hclog.Logger
}

// The objects that the authority is kept in. Who may read the Secret may be any
// node; the ConfigMap is for everybody.
const (
	authoritySecret = "weir-pki"
	rootsConfigMap  = "weir-ca"
	certKey, keyKey = "ca.crt", "ca.key"
)

// Cluster is the credentials of a policy service that has its authority in a
// Secret of the cluster: the first replica makes it, all use it.
type Cluster struct {
	cfg       ClusterConfig
	api       kubernetes.Interface
	authority atomic.Pointer[Authority]
	current   current
	issued    chan struct{} // Closed with the first certificate.
}

// NewCluster asks nothing of the cluster yet.
func NewCluster(cfg ClusterConfig) (*Cluster, error) {
	if cfg.Namespace == "" {
		return nil, errors.New("certificates by the cluster: no Namespace of our own is given (--namespace)")
	}
	if _, err := (request{hosts: cfg.Hosts}).template(time.Time{}); err != nil {
		return nil, fmt.Errorf("certificates by the cluster: %w", err)
	}
	api, err := newClient(cfg.Kubeconfig, reviewRate, reviewBurst)
	if err != nil {
		return nil, fmt.Errorf("certificates by the cluster: %w", err)
	}
	return &Cluster{cfg: cfg, api: api, issued: make(chan struct{})}, nil
}

// newClient is a client of the API server of a kubeconfig or, where that is empty, of
// the cluster that the process runs in.
func newClient(kubeconfig string, rate float32, burst int) (kubernetes.Interface, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, err
	}
	config.UserAgent, config.QPS, config.Burst = "weir-policyd", rate, burst
	return kubernetes.NewForConfig(config)
}

// Issued is closed once this process has a certificate.
func (c *Cluster) Issued() <-chan struct{} { return c.issued }

// Server implements Credentials: callers without a certificate are let in, for
// package rpc to turn away from all but enrolling.
func (c *Cluster) Server() *tls.Config {
	return configs{c.current.get, tls.VerifyClientCertIfGiven}.Server()
}

// Client implements Credentials.
func (c *Cluster) Client() credentials.TransportCredentials {
	return configs{get: c.current.get}.Client()
}

// Bundle is the authority's certificate, PEM, by which others may believe what
// Server shows.
func (c *Cluster) Bundle() ([]byte, error) {
	if a := c.authority.Load(); a != nil {
		return a.certificate(), nil
	}
	return nil, errNotYet
}

// Authority is the authority; nil until it has been read.
func (c *Cluster) Authority() *Authority { return c.authority.Load() }

// Reviewer reviews tokens with the cluster.
func (c *Cluster) Reviewer() Reviewer { return newTokenReviewer(c.api) }

// retryInterval is how soon what failed is tried again.
const retryInterval = time.Second

// Run reads or makes the authority, and renews this process's certificate, until
// the context ends. Before that is done there are no credentials.
func (c *Cluster) Run(ctx context.Context) error {
	said := ""
	for {
		wait := retryInterval
		cert, err := c.renew(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			wait, said = untilRenewal(cert), ""
		case err.Error() != said:
			said = err.Error()
			c.cfg.Logger.Error("no certificate for this process yet; trying on", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// untilRenewal is when two thirds of a certificate's life will be over.
func untilRenewal(cert *x509.Certificate) time.Duration {
	now := time.Now()
	return max(cert.NotAfter.Sub(now)*2/3, retryInterval)
}

func (c *Cluster) renew(ctx context.Context) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	a, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.publish(ctx, a); err != nil {
		return nil, err
	}
	roots := a.Roots()
	if c.cfg.Trust != "" {
		if err := addRoots(roots, c.cfg.Trust); err != nil {
			return nil, err
		}
	}
	cert, err := a.own(RolePolicyd, c.cfg.Hosts, c.cfg.Lifetime, time.Now())
	if err != nil {
		return nil, err
	}
	c.authority.Store(a)
	if c.current.Swap(&held{cert, roots}) == nil {
		close(c.issued)
	}
	return cert.Leaf, nil
}

// open reads the authority, or makes it where the Secret is empty. Of two
// replicas that make one, the second to write is refused and reads.
func (c *Cluster) open(ctx context.Context) (*Authority, error) {
	secrets := c.api.CoreV1().Secrets(c.cfg.Namespace)
	for {
		s, err := secrets.Get(ctx, authoritySecret, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		if len(s.Data[certKey])+len(s.Data[keyKey]) > 0 {
			a, err := parseAuthority(s.Data[certKey], s.Data[keyKey])
			if err != nil {
				return nil, fmt.Errorf("read secret %s/%s: %w; empty its data to have a new one made", c.cfg.Namespace, authoritySecret, err)
			}
			return a, nil
		}
		made, err := newAuthority(time.Now())
		if err != nil {
			return nil, err
		}
		s = s.DeepCopy()
		s.Data = make(map[string][]byte)
		for _, f := range made.files("ca") {
			s.Data[f.name] = f.text
		}
		if _, err := secrets.Update(ctx, s, metav1.UpdateOptions{FieldManager: "weir-policyd"}); err == nil {
			c.cfg.Logger.Info("made a certificate authority", "secret", c.cfg.Namespace+"/"+authoritySecret)
		} else if !apierrors.IsConflict(err) {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
	}
}

// publish has the ConfigMap show the authority to those who are to believe it.
func (c *Cluster) publish(ctx context.Context, a *Authority) error {
	maps := c.api.CoreV1().ConfigMaps(c.cfg.Namespace)
	want := string(a.certificate())
	for {
		m, err := maps.Get(ctx, rootsConfigMap, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("publish the certificate authority: %w", err)
		}
		if m.Data[certKey] == want {
			return nil
		}
		m = m.DeepCopy()
		setData(m, certKey, want)
		if _, err := maps.Update(ctx, m, metav1.UpdateOptions{FieldManager: "weir-policyd"}); err != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("publish the certificate authority: %w", err)
		}
	}
}

func setData(m *corev1.ConfigMap, key, value string) {
	if m.Data == nil {
		m.Data = make(map[string]string)
	}
	m.Data[key] = value
}
