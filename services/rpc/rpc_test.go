package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// collector acknowledges what it gets; a batch that begins with 13 is too much
// for it.
type collector struct {
	auditv1.UnimplementedCollectorServiceServer
	auditv1.UnimplementedAuditServiceServer
}

func (collector) Report(s grpc.BidiStreamingServer[auditv1.ReportRequest, auditv1.ReportResponse]) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if m.GetBatch().GetFirstSequence() == 13 {
			panic("thirteen")
		}
		if err := s.Send(&auditv1.ReportResponse{AckedSequence: m.GetBatch().GetFirstSequence()}); err != nil {
			return err
		}
	}
}

func (collector) Stats(context.Context, *auditv1.StatsRequest) (*auditv1.StatsResponse, error) {
	panic("no stats")
}

type fixture struct {
	t      *testing.T
	server *Server
	conn   *grpc.ClientConn
	ctx    context.Context
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	s, err := New(Config{Listen: "127.0.0.1:0", Metrics: "127.0.0.1:0", Logger: hclog.NewNullLogger(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	auditv1.RegisterCollectorServiceServer(s.GRPC, collector{})
	auditv1.RegisterAuditServiceServer(s.GRPC, collector{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	conn, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	call, end := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(func() {
		end()
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &fixture{t, s, conn, call}
}

func (f *fixture) report() grpc.BidiStreamingClient[auditv1.ReportRequest, auditv1.ReportResponse] {
	f.t.Helper()
	stream, err := auditv1.NewCollectorServiceClient(f.conn).Report(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	return stream
}

func batch(first uint64, events ...*auditv1.Event) *auditv1.ReportRequest {
	return &auditv1.ReportRequest{Message: &auditv1.ReportRequest_Batch{Batch: &auditv1.EventBatch{FirstSequence: first, Events: events}}}
}

// echo sends a batch and returns how it was answered.
func echo(s grpc.BidiStreamingClient[auditv1.ReportRequest, auditv1.ReportResponse], m *auditv1.ReportRequest) (uint64, error) {
	if err := s.Send(m); err != nil && err != io.EOF {
		return 0, err
	}
	resp, err := s.Recv()
	return resp.GetAckedSequence(), err
}

func TestPanicEndsItsCallOnly(t *testing.T) {
	f := newFixture(t)
	other := f.report()
	if n, err := echo(other, batch(1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := echo(f.report(), batch(13)); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "thirteen") {
		t.Errorf("a stream whose handler panics ends with %v", err)
	}
	if _, err := auditv1.NewAuditServiceClient(f.conn).Stats(f.ctx, &auditv1.StatsRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("a call whose handler panics ends with %v", err)
	}
	if n, err := echo(other, batch(2)); n != 2 || err != nil {
		t.Errorf("another stream answers %d, %v", n, err)
	}
}

func TestOversizedMessageEndsItsStreamOnly(t *testing.T) {
	f := newFixture(t)
	other := f.report()
	if n, err := echo(other, batch(1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	huge := batch(2, &auditv1.Event{Kind: &auditv1.Event_Packet{Packet: &auditv1.PacketEvent{Rule: strings.Repeat("x", MaxMessageBytes)}}})
	if _, err := echo(f.report(), huge); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message over the limit is answered with %v", err)
	}
	if n, err := echo(other, batch(3)); n != 3 || err != nil {
		t.Errorf("another stream answers %d, %v", n, err)
	}
}

func (f *fixture) get(path string) (int, string) {
	f.t.Helper()
	resp, err := http.Get("http://" + f.server.http.Addr().String() + path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHealthSaysWhetherItServes(t *testing.T) {
	f := newFixture(t)
	const service = "weir.audit.v1.CollectorService"
	for _, c := range []struct {
		Condition
		text string
	}{{Condition{}, "ok\n"}, {Condition{Refusal: "disk full"}, "not ready: disk full\n"}, {Condition{Warnings: []string{"a lags", "b fails"}}, "ok\nwarning: a lags\nwarning: b fails\n"}} {
		f.server.SetCondition(c.Condition)
		want, code := healthv1.HealthCheckResponse_NOT_SERVING, http.StatusServiceUnavailable
		if c.Refusal == "" {
			want, code = healthv1.HealthCheckResponse_SERVING, http.StatusOK
		}
		for _, name := range []string{"", service} {
			resp, err := healthv1.NewHealthClient(f.conn).Check(f.ctx, &healthv1.HealthCheckRequest{Service: name})
			if err != nil || resp.GetStatus() != want {
				t.Errorf("health of %q is %v, %v, want %v", name, resp.GetStatus(), err, want)
			}
		}
		if got, text := f.get("/readyz"); got != code || text != c.text {
			t.Errorf("/readyz answers %d %q, want %d %q", got, text, code, c.text)
		}
		if got, _ := f.get("/healthz"); got != http.StatusOK {
			t.Errorf("/healthz answers %d", got)
		}
	}
}

func TestNotReadyBeforeItIsSaid(t *testing.T) {
	f := newFixture(t)
	if got, _ := f.get("/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d before SetCondition", got)
	}
}

func TestMetricsCountCalls(t *testing.T) {
	f := newFixture(t)
	if _, err := auditv1.NewAuditServiceClient(f.conn).Stats(f.ctx, &auditv1.StatsRequest{}); err == nil {
		t.Fatal("no error")
	}
	code, body := f.get("/metrics")
	if code != http.StatusOK || !strings.Contains(body, `grpc_server_handled_total{grpc_code="Internal",grpc_method="Stats"`) {
		t.Errorf("/metrics answers %d:\n%s", code, body)
	}
}

func TestReflectionListsServices(t *testing.T) {
	f := newFixture(t)
	stream, err := reflectionv1.NewServerReflectionClient(f.conn).ServerReflectionInfo(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range []string{"weir.audit.v1.CollectorService", "weir.audit.v1.AuditService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
}

// TestWhoShowsNoCertificate: may call what is for anyone, by method or by service.
func TestWhoShowsNoCertificate(t *testing.T) {
	unary, stream := admit([]string{"/weir.audit.v1.AuditService/", "/weir.policy.v1.EnrollmentService/Enroll"})
	plain := peer.NewContext(t.Context(), &peer.Peer{})
	with := func(chains ...[]*x509.Certificate) context.Context {
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: chains}}})
	}
	for method, open := range map[string]bool{"/weir.audit.v1.AuditService/Tail": true, "/weir.policy.v1.EnrollmentService/Enroll": true, "/grpc.health.v1.Health/Check": true,
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": true, "/weir.audit.v1.CollectorService/Report": false, "/weir.policy.v1.EnrollmentService/Other": false,
		"/weir.audit.v1.AuditServiceX/Tail": false, "/grpc.channelz.v1.Channelz/GetServers": false} {
		for ctx, want := range map[context.Context]bool{with(): open, with([]*x509.Certificate{{}}): true, plain: true} {
			called := 0
			_, err := unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { called++; return nil, nil })
			streamErr := stream(nil, callOf{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: method}, func(any, grpc.ServerStream) error { called++; return nil })
			if (called == 2) != want || (status.Code(err) == codes.Unauthenticated) == want || (status.Code(streamErr) == codes.Unauthenticated) == want {
				t.Errorf("%s: called %d times, %v, %v", method, called, err, streamErr)
			}
		}
	}
}

// callOf is a call with a context and nothing else.
type callOf struct {
	grpc.ServerStream
	ctx context.Context
}

func (c callOf) Context() context.Context { return c.ctx }
