package admission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	readTimeout     = 10 * time.Second // A review is one message.
	writeTimeout    = 30 * time.Second // The API server waits no longer (timeoutSeconds).
	idleTimeout     = 90 * time.Second
	shutdownTimeout = 3 * time.Second
)

// Serve answers over HTTPS until the context ends, and then what is under way.
func Serve(ctx context.Context, l net.Listener, cfg *tls.Config, handler http.Handler, logger hclog.Logger) error {
	server := &http.Server{Handler: handler, TLSConfig: cfg, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		ErrorLog: logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(l, "", "") }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve webhooks: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(stopping)
	<-ended
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("serve webhooks: %w", err)
	}
	return ctx.Err()
}
