// Package rpc makes the gRPC servers of the services alike: transport
// security, limits, keepalive, interceptors (recovery, logging, metrics),
// health, reflection and channelz, and the HTTP side that serves metrics and
// liveness.
//
// A composition root calls New, registers its services on GRPC, and runs Run
// until its context ends. A panic in a handler ends that call with INTERNAL and
// is logged with its stack; it does not end the process. Whether a server may
// listen where it is told to without TLS is decided in package identity.
//
// Read rpc_test.go first.
package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
)

// Limits of every server. Static windows switch bandwidth probing off, which
// would double the CPU cost of a message.
const (
	MaxMessageBytes   = 4 << 20 // Largest message received.
	MaxStreams        = 1024    // Concurrent streams of one connection.
	windowBytes       = 1 << 20
	connWindowBytes   = 4 << 20
	keepaliveTime     = 20 * time.Second
	keepaliveTimeout  = 10 * time.Second
	minClientPing     = 5 * time.Second
	handshakeTimeout  = 10 * time.Second
	connectionGrace   = time.Second // Left to the calls of a client that is sent away.
	shutdownTimeout   = 3 * time.Second
	readHeaderTimeout = 5 * time.Second
)

// Config of a Server.
type Config struct {
	Listen  string      // TCP address of the gRPC side.
	TLS     *tls.Config // Nil: plain text, or Credentials.
	Metrics string      // TCP address of the HTTP side. Empty: none.
	// Credentials are for callers of whom TLS alone cannot tell who they are. Nil: TLS
	// counts.
	Credentials credentials.TransportCredentials
	// Anyone are the methods that callers without a verified certificate may call,
	// where TLS or Credentials let such callers in, and services, such as
	// "/weir.audit.v1.AuditService/", which then judge the callers themselves. Health
	// and reflection, which tell nothing that is secret, are always among them. Empty:
	// TLS decides.
	Anyone  []string
	Options []grpc.ServerOption
	// MaxConnectionAge is after how long, give or take a tenth, a client is sent
	// away to connect anew. Zero: never.
	MaxConnectionAge time.Duration
	Logger           hclog.Logger
	// Registry collects the server's metrics and serves all of its own. Required.
	Registry *prometheus.Registry
}

// Server is one gRPC server with its HTTP side.
type Server struct {
	cfg      Config
	GRPC     *grpc.Server   // For registering services, before Run.
	Health   *health.Server // All services are NOT_SERVING until set otherwise.
	listener net.Listener
	http     net.Listener

	condition atomic.Pointer[Condition]
}

// New binds the addresses and starts nothing.
func New(cfg Config) (*Server, error) {
	metrics := grpcprom.NewServerMetrics()
	if err := cfg.Registry.Register(metrics); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	logger := cfg.Logger.Named("grpc")
	recoverOpt := recovery.WithRecoveryHandlerContext(func(_ context.Context, p any) error {
		logger.Error("handler panicked", "panic", p, "stack", string(debug.Stack()))
		return status.Error(codes.Internal, "internal error")
	})
	logOpts := []logging.Option{logging.WithLogOnEvents(logging.FinishCall), logging.WithLevels(level)}
	admitUnary, admitStream := admit(cfg.Anyone)
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxConcurrentStreams(MaxStreams),
		grpc.InitialWindowSize(windowBytes),
		grpc.InitialConnWindowSize(connWindowBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout,
			MaxConnectionAge: cfg.MaxConnectionAge, MaxConnectionAgeGrace: connectionGrace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(metrics.UnaryServerInterceptor(), logging.UnaryServerInterceptor(sink(logger), logOpts...), recovery.UnaryServerInterceptor(recoverOpt), admitUnary),
		grpc.ChainStreamInterceptor(metrics.StreamServerInterceptor(), logging.StreamServerInterceptor(sink(logger), logOpts...), recovery.StreamServerInterceptor(recoverOpt), admitStream),
	}
	switch {
	case cfg.Credentials != nil:
		opts = append(opts, grpc.Creds(cfg.Credentials))
	case cfg.TLS != nil:
		opts = append(opts, grpc.Creds(credentials.NewTLS(cfg.TLS)))
	}
	s := &Server{cfg: cfg, GRPC: grpc.NewServer(append(opts, cfg.Options...)...), Health: health.NewServer()}
	s.condition.Store(&Condition{Refusal: "starting"})
	healthv1.RegisterHealthServer(s.GRPC, s.Health)
	reflection.Register(s.GRPC)
	channelz.RegisterChannelzServiceToServer(s.GRPC)
	s.Health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	var err error
	if s.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("listen for gRPC: %w", err)
	}
	if cfg.Metrics != "" {
		if s.http, err = net.Listen("tcp", cfg.Metrics); err != nil {
			s.listener.Close()
			return nil, fmt.Errorf("listen for metrics: %w", err)
		}
	}
	return s, nil
}

// admit turns callers without a verified certificate away from all methods but
// some. Without such methods, the transport has decided.
func admit(anyone []string) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	open := make(map[string]bool)
	for _, m := range append([]string{healthv1.Health_Check_FullMethodName, "/" + reflectionv1.ServerReflection_ServiceDesc.ServiceName + "/",
		"/" + reflectionv1alpha.ServerReflection_ServiceDesc.ServiceName + "/"}, anyone...) {
		open[m] = true
	}
	check := func(ctx context.Context, method string) error {
		if len(anyone) == 0 || open[method] || open[method[:strings.LastIndexByte(method, '/')+1]] {
			return nil
		}
		if p, ok := peer.FromContext(ctx); ok {
			if info, ok := p.AuthInfo.(credentials.TLSInfo); !ok || len(info.State.VerifiedChains) > 0 {
				return nil
			}
		}
		return status.Error(codes.Unauthenticated, "the caller shows no certificate of ours, which this method takes")
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}, func(srv any, call grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := check(call.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, call)
		}
}

// level logs what a server's owner should see: failures of its own, not those
// of callers, and not every end of a stream.
func level(code codes.Code) logging.Level {
	switch code {
	case codes.Internal, codes.DataLoss, codes.Unknown:
		return logging.LevelError
	case codes.ResourceExhausted, codes.Aborted, codes.PermissionDenied, codes.Unauthenticated:
		return logging.LevelWarn
	}
	return logging.LevelDebug
}

func sink(logger hclog.Logger) logging.Logger {
	return logging.LoggerFunc(func(_ context.Context, l logging.Level, msg string, fields ...any) {
		logger.Log(hclogLevel(l), msg, fields...)
	})
}

func hclogLevel(l logging.Level) hclog.Level {
	switch {
	case l >= logging.LevelError:
		return hclog.Error
	case l >= logging.LevelWarn:
		return hclog.Warn
	case l >= logging.LevelInfo:
		return hclog.Info
	}
	return hclog.Debug
}

// Addr is where the gRPC side listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Condition is how a server is.
type Condition struct {
	Refusal  string   // Why its services cannot be used, in a line. Empty: they can.
	Warnings []string // What is wrong beside that, a line each.
}

// SetCondition says by the health service whether the server's services can be used,
// and by /readyz why not, and what else is wrong.
func (s *Server) SetCondition(c Condition) {
	s.condition.Store(&c)
	st := healthv1.HealthCheckResponse_NOT_SERVING
	if c.Refusal == "" {
		st = healthv1.HealthCheckResponse_SERVING
	}
	s.Health.SetServingStatus("", st)
	for name := range s.GRPC.GetServiceInfo() {
		s.Health.SetServingStatus(name, st)
	}
}

// Run serves until the context ends; then it lets calls finish for a moment.
func (s *Server) Run(ctx context.Context) error {
	errs := make(chan error, 2)
	go func() { errs <- s.GRPC.Serve(s.listener) }()
	web := &http.Server{Handler: s.handler(), ReadHeaderTimeout: readHeaderTimeout}
	if s.http != nil {
		go func() {
			if err := web.Serve(s.http); !errors.Is(err, http.ErrServerClosed) {
				errs <- err
			}
		}()
	}
	var err error
	select {
	case err = <-errs:
	case <-ctx.Done():
	}
	s.Health.Shutdown()
	stopped := make(chan struct{})
	go func() { s.GRPC.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(shutdownTimeout):
		s.GRPC.Stop()
	}
	web.Close()
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(s.cfg.Registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		resp, err := s.Health.Check(r.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || resp.Status != healthv1.HealthCheckResponse_SERVING {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, strings.TrimSuffix("not ready: "+s.condition.Load().Refusal, ": "))
		} else {
			fmt.Fprintln(w, "ok")
		}
		for _, warning := range s.condition.Load().Warnings {
			fmt.Fprintln(w, "warning: "+warning)
		}
	})
	return mux
}
