package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weirnet/weir/services/audit/record"
	"github.com/weirnet/weir/services/identity"
)

// OTLPConfig of an OTLP.
type OTLPConfig struct {
	Endpoint        string    // host:port of a collector's gRPC.
	TLS             *TLSFiles // Nil: plain text, which goes no further than loopback.
	Insecure        bool      // Unless this is said.
	Headers         map[string]string
	BearerTokenFile string // Read for each call. Empty: none.
	Format          Format // Of the bodies.
}

// OTLP exports lines as log records of OpenTelemetry, over gRPC. A batch is the
// receiver's when its call succeeds; of a partial success what it rejected is
// counted, and not sent again, as the protocol wants it.
type OTLP struct {
	cfg     OTLPConfig
	conn    *grpc.ClientConn
	client  collogs.LogsServiceClient
	records batcher[otlpRecord]
	link    Link
	dead    deadLetters
	peer    string
	buf     []byte
}

// otlpRecord is a log record and whose.
type otlpRecord struct {
	node   string
	record *logs.LogRecord
}

// NewOTLP checks the configuration.
func NewOTLP(cfg OTLPConfig, dead deadLetters) (*OTLP, error) {
	if host, port, err := net.SplitHostPort(cfg.Endpoint); err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("endpoint %q: write HOST:PORT", cfg.Endpoint)
	}
	if cfg.TLS == nil && !cfg.Insecure && !identity.Loopback(cfg.Endpoint) {
		return nil, fmt.Errorf("endpoint %q is beyond loopback: give tls, {} for the system's authorities, or say insecure", cfg.Endpoint)
	}
	if cfg.TLS != nil {
		if err := cfg.TLS.Check(); err != nil {
			return nil, err
		}
	}
	return &OTLP{cfg: cfg, dead: dead}, nil
}

// Peer implements Peered.
func (o *OTLP) Peer() string { return o.peer }

// Open implements Output.
func (o *OTLP) Open(_ context.Context, link Link) error {
	creds := insecure.NewCredentials()
	if o.cfg.TLS != nil {
		creds = newGRPCTLS(o.cfg.TLS)
	}
	conn, err := grpc.NewClient(o.cfg.Endpoint, grpc.WithTransportCredentials(creds))
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", o.cfg.Endpoint, err)
	}
	o.conn, o.client, o.link = conn, collogs.NewLogsServiceClient(conn), link
	o.records = batcher[otlpRecord]{post: o.post, trouble: link.Trouble, dead: func(r otlpRecord, reason error) error {
		link.Refused(1)
		return o.dead.add(r.record.GetBody().GetStringValue(), reason)
	}}
	return nil
}

// Write implements Output.
func (o *OTLP) Write(ctx context.Context, l *record.Line) (int, error) {
	o.buf = o.cfg.Format.message(o.buf[:0], l)
	if len(o.buf) == 0 {
		return 0, nil
	}
	// Attributes take about as much as the body.
	return 1, o.records.add(ctx, otlpRecord{l.Node, newLogRecord(l, string(o.buf))}, 2*len(o.buf))
}

// Flush implements Output.
func (o *OTLP) Flush(ctx context.Context) error { return o.records.flush(ctx) }

// Sync implements Output: what was flushed is acknowledged.
func (o *OTLP) Sync(context.Context) error { return o.dead.sync() }

// Close implements Output.
func (o *OTLP) Close() error {
	o.records.reset()
	err := o.dead.close()
	if o.conn != nil {
		err = errors.Join(err, o.conn.Close())
		o.conn = nil
	}
	return err
}

func (o *OTLP) post(ctx context.Context, records []otlpRecord) error {
	headers := metadata.New(o.cfg.Headers)
	if o.cfg.BearerTokenFile != "" {
		token, err := secret(o.cfg.BearerTokenFile)
		if err != nil {
			return fmt.Errorf("bearerTokenFile: %w", err)
		}
		headers.Set("authorization", "Bearer "+token)
	}
	var from peer.Peer
	resp, err := o.client.Export(metadata.NewOutgoingContext(ctx, headers), exportRequest(records), grpc.Peer(&from))
	if from.Addr != nil {
		o.peer = "grpc " + from.Addr.String()
	}
	if err != nil {
		return o.answer(err)
	}
	partial := resp.GetPartialSuccess()
	rejected := partial.GetRejectedLogRecords()
	if rejected <= 0 {
		return nil
	}
	o.link.Refused(int(min(rejected, int64(len(records)))))
	line := ""
	if len(records) == 1 {
		line = records[0].record.GetBody().GetStringValue()
	}
	return o.dead.add(line, fmt.Errorf("export to %s: %d of %d records rejected: %s", o.cfg.Endpoint, rejected, len(records), partial.GetErrorMessage()))
}

// exportRequest has the records of each node under its resource.
func exportRequest(records []otlpRecord) *collogs.ExportLogsServiceRequest {
	req := &collogs.ExportLogsServiceRequest{}
	scopes := make(map[string]*logs.ScopeLogs)
	for _, r := range records {
		scope := scopes[r.node]
		if scope == nil {
			scope = &logs.ScopeLogs{Scope: instrumentation}
			scopes[r.node] = scope
			req.ResourceLogs = append(req.ResourceLogs, &logs.ResourceLogs{ScopeLogs: []*logs.ScopeLogs{scope},
				Resource: &resource.Resource{Attributes: attributes{}.text("service.name", "weir").text("host.name", r.node).text("k8s.node.name", r.node)}})
		}
		scope.LogRecords = append(scope.LogRecords, r.record)
	}
	return req
}

// answer is what an error of a call means. InvalidArgument is of a record, and so
// is a message that is too long; anything else may go by.
func (o *OTLP) answer(err error) error {
	st := status.Convert(err)
	wrapped := fmt.Errorf("export to %s: %w", o.cfg.Endpoint, err)
	switch st.Code() {
	case codes.InvalidArgument:
		return &refusal{wrapped}
	case codes.ResourceExhausted:
		if strings.Contains(st.Message(), "larger than max") {
			return &refusal{wrapped}
		}
	}
	var after time.Duration
	for _, detail := range st.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			after = min(retry.GetRetryDelay().AsDuration(), maxRetryAfter)
		}
	}
	return &laterError{wrapped, after}
}
