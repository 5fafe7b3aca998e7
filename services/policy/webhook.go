package policy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/weirnet/weir/services/identity"
	"github.com/weirnet/weir/services/policy/admission"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/validate"
)

// webhook serves admission webhooks, and keeps it so that the API server believes
// them.
type webhook struct {
	listener net.Listener
	tls      *tls.Config
	hook     *admission.Webhook
	bundles  *admission.Bundles
	issued   <-chan struct{} // Closed once there is a certificate.
	logger   hclog.Logger
}

func newWebhook(s *Service, creds identity.Credentials) (*webhook, error) {
	switch {
	case !s.cfg.Kubernetes:
		return nil, errors.New("admission webhooks need an API server: give --kubeconfig, or run in a Pod of the cluster, or leave out --webhook-listen")
	case creds == nil:
		return nil, errors.New("admission webhooks are called over HTTPS: give --issue-certificates, or --ca, --cert and --key")
	}
	logger := s.logger.Named("admission")
	w := &webhook{tls: identity.Anonymous(creds), logger: logger, hook: admission.New(admission.Config{Model: judged{s}, Registry: s.registry, Logger: logger})}
	bundle := func() ([]byte, error) { return os.ReadFile(s.cfg.TLS.CA) }
	if s.cluster != nil {
		bundle, w.issued = s.cluster.Bundle, s.cluster.Issued()
	} else {
		there := make(chan struct{})
		close(there)
		w.issued = there
	}
	var err error
	if w.bundles, err = admission.NewBundles(admission.BundlesConfig{Kubeconfig: s.cfg.Kubeconfig, Namespace: s.cfg.WebhookNamespace, Bundle: bundle, Mutating: s.cfg.WebhookConfigurations, Logger: logger}); err != nil {
		return nil, err
	}
	if w.listener, err = net.Listen("tcp", s.cfg.Webhook); err != nil {
		return nil, fmt.Errorf("listen for webhooks: %w", err)
	}
	return w, nil
}

func (w *webhook) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return admission.Serve(ctx, w.listener, w.tls, w.hook, w.logger) })
	g.Go(func() error {
		select {
		case <-w.issued:
			return w.bundles.Run(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g.Wait()
}

// judged is the service as what webhooks judge by.
type judged struct{ *Service }

// Complete implements admission.Model.
func (s judged) Complete() bool { return s.synced.Load() }

// Change implements admission.Model.
func (s judged) Change(old, changed api.Object) (violations, warnings []api.Violation) {
	s.judge.ask(func(x *validate.Index) { violations, warnings = x.Change(old, changed) })
	return violations, warnings
}
