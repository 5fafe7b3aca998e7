package sink

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// otlpReceiver is a collector of OpenTelemetry.
type otlpReceiver struct {
	collogs.UnimplementedLogsServiceServer
	mu      sync.Mutex
	seen    map[string]*logs.LogRecord // By uid.
	repeats int
	nodes   map[string]bool
	header  []string
	answer  func(uids []string) (*collogs.ExportLogsServiceResponse, error) // Nil, nil: take them.
}

func (r *otlpReceiver) Export(ctx context.Context, req *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	r.header = md.Get("x-tenant")
	var uids []string
	taken := make(map[string]*logs.LogRecord)
	for _, rl := range req.GetResourceLogs() {
		for _, a := range rl.GetResource().GetAttributes() {
			if a.GetKey() == "k8s.node.name" {
				r.nodes[a.GetValue().GetStringValue()] = true
			}
		}
		for _, sl := range rl.GetScopeLogs() {
			for _, lr := range sl.GetLogRecords() {
				uid := attribute(lr, "log.record.uid")
				uids = append(uids, uid)
				taken[uid] = lr
			}
		}
	}
	if r.answer != nil {
		if resp, err := r.answer(uids); resp != nil || err != nil {
			return resp, err
		}
	}
	for uid, lr := range taken {
		if r.seen[uid] != nil {
			r.repeats++
		}
		r.seen[uid] = lr
	}
	return &collogs.ExportLogsServiceResponse{}, nil
}

func attribute(lr *logs.LogRecord, key string) string {
	for _, a := range lr.GetAttributes() {
		if a.GetKey() == key {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

func (r *otlpReceiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.seen)
}

func newOTLPReceiver() *otlpReceiver {
	return &otlpReceiver{seen: make(map[string]*logs.LogRecord), nodes: make(map[string]bool)}
}

// serve serves at an address until it is stopped.
func (r *otlpReceiver) serve(t *testing.T, address string) (string, func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	collogs.RegisterLogsServiceServer(s, r)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String(), s.Stop
}

func (w *world) otlp(t *testing.T, endpoint string) *Sink {
	t.Helper()
	out, err := NewOTLP(OTLPConfig{Endpoint: endpoint, Headers: map[string]string{"x-tenant": "a"}, Format: formats[FormatJSON]},
		deadLetters{path: filepath.Join(t.TempDir(), "dead.json"), most: 1 << 20, logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	s, _ := w.start(Config{Output: out})
	return s
}

func TestOTLP(t *testing.T) {
	w := newWorld(t)
	r := newOTLPReceiver()
	address, _ := r.serve(t, "127.0.0.1:0")
	w.packet("n1", allow, 1, 0)
	w.packet("n2", drop, 2, 1)
	s := w.otlp(t, address)
	eventually(t, "the cursor", func() bool { return s.Stats().Cursor == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	a, d := r.seen["n1/b/1/1"], r.seen["n2/b/1/1"]
	if len(r.seen) != 2 || a == nil || d == nil || !r.nodes["n1"] || !r.nodes["n2"] || !slices.Equal(r.header, []string{"a"}) {
		t.Fatalf("%v of %v, %v", r.seen, r.nodes, r.header)
	}
	if a.GetSeverityNumber() != logs.SeverityNumber_SEVERITY_NUMBER_INFO || d.GetSeverityNumber() != logs.SeverityNumber_SEVERITY_NUMBER_WARN ||
		a.GetTimeUnixNano() != uint64(begin.UnixNano()) || attribute(d, "weir.action") != "drop" || attribute(d, "source.address") != "10.0.0.1" ||
		attribute(d, "network.transport") != "tcp" || !strings.Contains(a.GetBody().GetStringValue(), `"cursor":1,"node":"n1"`) || a.GetEventName() != "weir.packet" {
		t.Errorf("%v\n%v", a, d)
	}
}

// TestOTLPFaults: a receiver that is not there at first, is killed in the middle,
// is busy, takes a part, and refuses one record.
func TestOTLPFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	w.allows(10)
	s := w.otlp(t, address)
	eventually(t, "the trouble", func() bool { return strings.Contains(s.Stats().LastError, "connection refused") })
	r := newOTLPReceiver()
	_, kill := r.serve(t, address)
	eventually(t, "what waited", func() bool { return s.Stats().Cursor == 10 && s.Stats().LastError == "" })
	kill()
	w.allows(10)
	eventually(t, "the trouble", func() bool { return s.Stats().LastError != "" })
	busy := 2
	r.answer = func(uids []string) (*collogs.ExportLogsServiceResponse, error) {
		if busy--; busy >= 0 {
			return nil, status.Error(codes.Unavailable, "busy")
		}
		if slices.Contains(uids, "n1/b/13/1") {
			return nil, status.Error(codes.InvalidArgument, "not that one")
		}
		return nil, nil
	}
	_, _ = r.serve(t, address)
	eventually(t, "all but one", func() bool { return s.Stats().Cursor == 20 && r.count() == 19 })
	r.mu.Lock()
	r.answer = func(uids []string) (*collogs.ExportLogsServiceResponse, error) {
		return &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "too old"}}, nil
	}
	r.mu.Unlock()
	w.packet("n1", allow, 1, 99)
	eventually(t, "the partial success", func() bool { return s.Stats().Cursor == 21 })
	if n := s.Stats().DeadLetters; n != 2 || r.repeats != 0 {
		t.Errorf("%d dead letters, %d repeated", n, r.repeats)
	}
}
